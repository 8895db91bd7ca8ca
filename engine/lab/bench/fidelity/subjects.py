"""The data of the laboratory: real keys and values of a window, and queries of real questions.

Queries are those of real questions and of the answers that the full cache gives to them, taken
by the model's own forward behind the window.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine.compression.observation import Observe
from engine.compression.query_statistics import SPREAD, QueryMoments
from engine.compression.scores import NEG_INF, group_queries
from engine.compression.terms import PLAIN, Terms
from engine.documents import load
from engine.documents.tokens import tokenize
from engine.errors import ReaderError
from engine.ingest.windows import cut_windows, longest_window
from engine.lab.bench.questions import find

if TYPE_CHECKING:
    from engine.models.reader import Reader

CHUNK = 1024
Rows = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class AskedQuestion:
    """One question and the answer to it. Its R tokens follow the window.

    queries: per layer float32 [Hkv, G * R, D]. live: per layer k, v [Hkv, R, D] of its own tokens.
    value: tokens of the window that state what was asked, empty where none does.
    """

    queries: list[Tensor]
    live: Rows
    value: range

    def live_scores(self, layer: int) -> Tensor:
        """Scores of its own tokens, -inf where later than the query: [Hkv, G * R, R]."""
        k, _ = self.live[layer]
        rows = k.shape[1]
        seen = torch.ones(rows, rows, dtype=torch.bool).tril()
        scores = scores_of(self.queries[layer], k)
        return scores.masked_fill(~seen.repeat(scores.shape[1] // rows, 1), NEG_INF)


@dataclass(frozen=True)
class Subject:
    """The first window of a document. rows, prefix: per layer k, v [Hkv, n, D].

    pieces: the text of each token. learnt: see `Reader.query_statistics`. rotation: cos, sin
    [n, D] of the rows, see `Reader.rotation`; without, `unturned` says why there is none.
    """

    rows: Rows
    prefix: Rows
    surprisal: Tensor
    pieces: list[str]
    learnt: list[QueryMoments]
    asked: list[AskedQuestion]
    rotation: tuple[Tensor, Tensor] | None = None
    unturned: str = ""


@dataclass
class _Recorder:
    """The probe that keeps everything, sequence after sequence."""

    queries: dict[int, list[Tensor]] = field(default_factory=dict)
    live: dict[int, Rows] = field(default_factory=dict)

    def observe(self, layer: int, q: Tensor, k: Tensor, v: Tensor, terms: Terms = PLAIN) -> None:
        terms.check_plain("the fidelity bench")
        rows = q.shape[1]
        self.queries.setdefault(layer, []).append(group_queries(q, len(k)).cpu())
        live = (k[:, -rows:].float().cpu(), v[:, -rows:].float().cpu())
        self.live.setdefault(layer, []).append(live)


@torch.inference_mode()
def take(
    reader: Reader,
    source: Path,
    window: int,
    asked: Sequence[list[int]],
    stated: Sequence[tuple[str, str]],
) -> Subject:
    """Read the first window of a document and ask it.

    Args:
        window: as `IngestOptions`.  asked: token ids of each question and its answer.
        stated: of each question the sentence that answers it, and the value in that, or "".
    """
    document = load([str(source)])
    tokens = tokenize(document, reader.tokenizer)
    most = longest_window(reader.max_positions, window, reader.reads_well)
    end = cut_windows(document, tokens, most).bounds[1]
    ids = tokens.ids[:end].tolist()
    text = document.sources[0].text
    starts, ends = tokens.starts[:end].tolist(), tokens.ends[:end].tolist()
    prefix = reader.prefix()
    chunks = list(reader.read_window(ids, prefix, CHUNK, [], Observe(spread=SPREAD)))
    seen = _Recorder()
    reader.look_on(ids, prefix, chunks, asked, seen)
    rotation, unturned = None, ""
    try:
        rotation = reader.rotation(len(reader.prompt.prefix), len(ids))
    except ReaderError as error:  # the comparison goes on without
        unturned = str(error)
    rows = [
        (
            torch.cat([c.k[layer] for c in chunks], 1).float().cpu(),
            torch.cat([c.v[layer] for c in chunks], 1).float().cpu(),
        )
        for layer in range(reader.layers)
    ]
    return Subject(
        rows=rows,
        prefix=[(k.float().cpu(), v.float().cpu()) for k, v in prefix],
        surprisal=torch.cat([c.surprisal for c in chunks]),
        pieces=[text[a:b] for a, b in zip(starts, ends, strict=True)],
        learnt=reader.query_statistics(prefix, chunks),
        asked=[
            AskedQuestion(
                [seen.queries[layer][index] for layer in range(reader.layers)],
                [seen.live[layer][index] for layer in range(reader.layers)],
                _tokens_of(text, *stated[index], starts, ends),
            )
            for index in range(len(asked))
        ],
        rotation=rotation,
        unturned=unturned,
    )


def side_by_side(subjects: Sequence[Subject]) -> Subject:
    """Windows of many documents as one long view, as a question meets them before it knows where
    to look. What is asked keeps to the window it was asked behind."""
    first = subjects[0]
    asked, start = [], 0
    for subject in subjects:
        for each in subject.asked:
            value = range(each.value.start + start, each.value.stop + start)
            asked.append(replace(each, value=value if each.value else range(0)))
        start += len(subject.pieces)
    return replace(
        first,
        rows=[
            (
                torch.cat([s.rows[i][0] for s in subjects], 1),
                torch.cat([s.rows[i][1] for s in subjects], 1),
            )
            for i in range(len(first.rows))
        ],
        surprisal=torch.cat([subject.surprisal for subject in subjects]),
        pieces=[piece for subject in subjects for piece in subject.pieces],
        asked=asked,
        rotation=None,
        unturned="windows share their positions",
    )


def scores_of(queries: Tensor, k: Tensor) -> Tensor:
    """q.k / sqrt(D): queries [Hkv, R, D], k [Hkv, n, D] -> [Hkv, R, n]."""
    scores: Tensor = torch.bmm(queries, k.float().mT) / math.sqrt(queries.shape[-1])
    return scores


def _tokens_of(text: str, quote: str, value: str, starts: list[int], ends: list[int]) -> range:
    """The window's tokens that hold the value where its sentence stands; none if it does not."""
    sentence = find(text, quote, 0)
    place = find(text, value, sentence[0]) if value and sentence else None
    if place is None:
        return range(0)
    inside = [i for i in range(len(starts)) if starts[i] < place[1] and ends[i] > place[0]]
    return range(inside[0], inside[-1] + 1) if inside else range(0)
