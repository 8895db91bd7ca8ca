"""Evidence heads: how much each query head attends to the sentence that answers a question.

Measured once per model on a short text with questions, written for this purpose: the model reads
the text and a question, is made to say the answer, and each head is scored by the share of its
attention to the text that lies on the sentence which states it, above that sentence's share of the
text. Citations weigh attention by it.

Source: retrieval heads (arXiv 2404.15574) and their semantic form in CompressKV (arXiv 2606.24467,
section 3.2); there the answer's own tokens are looked for, here the whole sentence.
"""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_right
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from engine.attention.layer_states import states_of, take_back
from engine.compression.scores import NEG_INF, group_queries
from engine.compression.terms import PLAIN, Terms
from engine.errors import ReaderError
from engine.store import cache_folder, disk

if TYPE_CHECKING:
    from engine.models.reader import Reader
    from engine.types import ModelIdentity

FORMAT = "sekv-evidence-heads 1"
CHANCE, POWER, LEAST = 0.05, 2.0, 0.01
"""A head below the first share looks at evidence no more than at anything else; heads of less
importance than the last do not count at all. See `EvidenceHeads.importance`."""
SHIPPED = Path(__file__).parent / "heads"

TEXT = (
    "The village of Arnsby lies where the river Telm leaves the hills. "
    "A stone bridge of five arches was built there in 1714 by a mason called Peter Lund, who had "
    "learnt his trade in the south. "
    "Before the bridge there was only a ferry, and in spring the ferryman refused to cross for "
    "weeks. "
    "The oldest house is the inn, the Green Heron, whose cellar is older than its walls. "
    "It is said that a bishop once hid in that cellar from soldiers, and that the innkeeper's "
    "daughter brought him bread every night. "
    "In the year of the great flood the water reached the second floor of the school. "
    "The children were taken out through the windows by two fishermen, Anders Holt and his "
    "brother. "
    "Nobody drowned, but the church lost its organ, and for eleven years the hymns were sung "
    "without one. "
    "A new organ came at last from Lubeck, paid for by a widow who had sold her vineyard. "
    "Doctor Emma Varley settled in Arnsby when she was thirty-one. "
    "She had studied in Zurich and owned the only microscope in the district. "
    "On market days farmers brought her sick hens and lame horses as readily as their children. "
    "She never took money from the poor; most of them paid with eggs or firewood. "
    "Her diary, which she kept in green ink, is now in the town museum. "
    "She writes in it that the winter she feared most was that of the typhus, when she slept in "
    "her boots. "
    "The mill below the bridge belonged to the Kessler family until it burned down. "
    "The fire began in the drying room, where a lamp had been left near the hops. "
    "Old Kessler saved his ledgers and nothing else. "
    "His son Jacob did not rebuild the mill but went to sea, and returned after nine years with a "
    "parrot and a wooden leg. "
    "He opened a shop for clocks, although he had never learnt the trade, and the shop did well. "
    "The parrot could say the names of the apostles and was feared by the sexton. "
    "The railway came late to the valley. "
    "The engineers wanted to drive a tunnel through Crow Hill, but the rock was too soft, so the "
    "line was led around the lake. "
    "The first train was drawn by an engine named Juno and carried a brass band and forty sheep. "
    "The stationmaster, a thin man called Osric Bell, grew roses between the rails of the siding. "
    "His roses won a silver cup in the capital, and he drank his tea from it. "
    "Today most people in Arnsby work at the glassworks, which makes bottles for medicine. "
    "Its chimney is painted red because a pilot once mistook it for a church tower. "
    "Storks nest on it each April, and the furnace is not lit until the young have flown. "
    "The yearly fair is held on the last Sunday of August in the meadow behind the school."
)
"""Made up for this measurement; no place or person of it exists."""

QUESTIONS: tuple[tuple[str, str, str], ...] = (
    ("Who built the bridge over the Telm?", "Peter Lund", "A stone bridge of five"),
    ("How did people get over the river in earlier times?", "by a ferry", "Before the bridge"),
    ("What is the inn called?", "the Green Heron", "The oldest house is"),
    ("Who once took refuge below the inn?", "a bishop", "It is said that"),
    ("How high did the flood rise in the school?", "to the second floor", "In the year of"),
    ("Who rescued the pupils?", "Anders Holt and his brother", "The children were"),
    ("How long did the church go without an organ?", "eleven years", "Nobody drowned"),
    ("What did the widow part with to buy the instrument?", "her vineyard", "A new organ came"),
    ("At what age did Emma Varley come to live there?", "thirty-one", "Doctor Emma Varley"),
    ("Where did the doctor learn medicine?", "in Zurich", "She had studied"),
    ("How did poor patients pay the doctor?", "with eggs or firewood", "She never took"),
    ("What colour of ink did Emma Varley write with?", "green", "Her diary"),
    ("Which disease made the doctor sleep in her boots?", "typhus", "She writes in it"),
    ("What caused the fire in the mill?", "a lamp near the hops", "The fire began"),
    ("What did old Kessler rescue from the flames?", "his ledgers", "Old Kessler"),
    ("What did Jacob bring home from his voyages?", "a parrot and a wooden leg", "His son Jacob"),
    ("What did Jacob sell?", "clocks", "He opened a shop"),
    ("Who was afraid of the bird?", "the sexton", "The parrot could"),
    ("Why was no tunnel made through Crow Hill?", "the rock was too soft", "The engineers"),
    ("What was the name of the first locomotive?", "Juno", "The first train"),
    ("Which flowers did Osric Bell grow?", "roses", "The stationmaster"),
    ("What prize did the stationmaster's garden win?", "a silver cup", "His roses won"),
    ("What is made at the glassworks?", "bottles for medicine", "Today most people"),
    ("Why does the chimney have its colour?", "a pilot mistook it for a church", "Its chimney"),
    ("Which birds live on the chimney?", "storks", "Storks nest on it"),
    ("When does the fair take place?", "the last Sunday of August", "The yearly fair"),
)
"""Question, answer that is said, and how the sentence begins that states it."""


@dataclass(frozen=True)
class EvidenceHeads:
    """The weights of one model's heads.

    weights: fingerprints of the model's weights, one for each form they come in. share: per layer
    and query head the mean share of its attention to the text that lies on the sentence which
    states the answer. made: how, for people.
    """

    model: str
    weights: list[str]
    share: list[list[float]]
    made: dict[str, Any] = field(default_factory=dict)

    def importance(self) -> Tensor:
        """How much each head's attention counts, float32 [L, H], 1 for the best head.

        Most heads look everywhere a little; the power lets the few that look at evidence decide.
        """
        share = torch.tensor(self.share, dtype=torch.float32)
        above = (share - CHANCE).clamp_min(0)
        importance = (above / above.max().clamp_min(1e-6)) ** POWER
        return importance.masked_fill(importance < LEAST, 0)

    def save(self, path: Path) -> None:
        body = {"format": FORMAT, **asdict(self)}
        disk.put(path, (json.dumps(body) + "\n").encode())


@torch.inference_mode()
def measure(reader: Reader) -> EvidenceHeads:
    """Measure a loaded model: one forward over `TEXT`, about 600 tokens, and one per question."""
    ids, owner = _sentences(reader.tokenizer)
    before = list(reader.prompt.prefix)
    text = range(len(before), len(before) + len(ids))
    asked = [_asked(reader, question, answer) for question, answer, _ in QUESTIONS]
    cache = reader.empty_cache(text.stop + max(len(tokens) for tokens, _ in asked))
    reader.forward(before + ids, 0, cache)
    states = states_of(cache.layers)
    total = torch.zeros(reader.layers, reader.identity.heads)
    for (tokens, said), (_, _, begins) in zip(asked, QUESTIONS, strict=True):
        gold = bisect_right(_starts(), TEXT.index(begins)) - 1
        reader.forward(tokens, text.stop, cache, _Share(total, text, owner == gold, said))
        take_back(cache.layers, len(tokens), states, text.stop)
    share = total / len(QUESTIONS)
    return EvidenceHeads(
        model=reader.identity.id,
        weights=[reader.identity.weights],
        share=[[round(float(s), 5) for s in layer] for layer in share],
        made={"questions": len(QUESTIONS), "tokens": len(ids), "prompt": reader.prompt.kind},
    )


def _asked(reader: Reader, question: str, answer: str) -> tuple[list[int], int]:
    """Token ids of a question and its answer but for the last, and how many the answer has."""
    said = reader.tokenizer.encode(f" {answer}", add_special_tokens=False)
    return [*reader.prompt.question(reader.tokenizer, question), *said[:-1]], len(said)


def find(identity: ModelIdentity) -> EvidenceHeads | None:
    """What was measured of a model: what ships with this tool, else what lies in the cache folder;
    None of a model that nobody measured. A file that cannot be read counts as none."""
    for path in (*sorted(SHIPPED.glob("*.json")), cached(identity)):
        found = _stored(path)
        if found is not None and identity.weights in found.weights:
            shape = (len(found.share), {len(layer) for layer in found.share})
            if shape == (identity.layers, {identity.heads}):
                return found
    return None


def importance_of(identity: ModelIdentity) -> Tensor | None:
    """How much each head's attention counts, float32 [L, H]; None of a model that nobody measured,
    or in which no head looks at evidence more than at anything else."""
    found = find(identity)
    importance = None if found is None else found.importance()
    return importance if importance is not None and importance.any() else None


def ensure(reader: Reader) -> EvidenceHeads:
    """What is known of a loaded model, measured and kept for next time if it is nothing yet."""
    found = find(reader.identity)
    if found is None:
        found = measure(reader)
        path = cached(reader.identity)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            found.save(path)
        except OSError as error:
            raise ReaderError(
                f"cannot keep what was measured of the model in {path.parent} ({error.strerror}); "
                "name a folder that can be written with SEKV_CACHE"
            ) from error
    return found


def cached(identity: ModelIdentity) -> Path:
    """Where the measurement of a model is kept between runs."""
    return cache_folder.root() / "evidence-heads" / f"{identity.weights}.json"


def _stored(path: Path) -> EvidenceHeads | None:
    """The measurement in a file, which is read again only when it has changed."""
    try:
        now = path.stat()
    except OSError:
        return None
    return _load(path, now.st_mtime_ns, now.st_size, now.st_ino)


@lru_cache(maxsize=32)
def _load(path: Path, *version: int) -> EvidenceHeads | None:
    """version: tells apart what the path held at different times."""
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        if body.pop("format") != FORMAT:
            return None
        return EvidenceHeads(**body)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


@dataclass
class _Share:
    """A probe that adds up, per layer and head, how much of its attention to the text the last
    rows give to some of its tokens. total: [L, H]. inside: bool [N] of the text's tokens."""

    total: Tensor
    text: range
    inside: Tensor
    rows: int

    def observe(self, layer: int, q: Tensor, k: Tensor, v: Tensor, terms: Terms = PLAIN) -> None:
        seen = attention_rows(q[:, -self.rows :], k, terms)[
            :, :, self.text.start : self.text.stop
        ].cpu()
        on = seen[:, :, self.inside].sum((1, 2))
        self.total[layer] += on / seen.sum((1, 2)).clamp_min(1e-12)


def attention_rows(q: Tensor, k: Tensor, terms: Terms = PLAIN) -> Tensor:
    """Causal attention [H, w, N] of the last w rows; q [H, w, D] scaled, k [Hkv, N, D]."""
    rows, total = q.shape[1], k.shape[1]
    scores = torch.bmm(group_queries(q, len(k)), k.float().mT) / math.sqrt(q.shape[-1])
    seen = torch.ones(rows, total, dtype=torch.bool, device=q.device).tril(total - rows)
    scores = terms.capped(scores).masked_fill(~seen.repeat(len(q) // len(k), 1), NEG_INF)
    return terms.softmax(scores, rows).reshape(len(q), rows, total)


def _starts() -> list[int]:
    """Where the sentences of `TEXT` begin."""
    return [0, *(found.end() for found in re.finditer(r"\. ", TEXT))]


def _sentences(tokenizer: Any) -> tuple[list[int], Tensor]:
    """Token ids of `TEXT`, sentence by sentence, and the sentence of each."""
    starts = _starts()
    ids: list[int] = []
    owner: list[int] = []
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], len(TEXT)], strict=True)):
        # The space stands before a word, where tokenizers have it.
        words = (" " if number else "") + TEXT[start:end].strip()
        piece = tokenizer.encode(words, add_special_tokens=False)
        ids += piece
        owner += [number] * len(piece)
    return ids, torch.tensor(owner)
