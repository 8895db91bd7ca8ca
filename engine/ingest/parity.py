"""Parity: whether a model answers from a memory as it does from its full cache.

Measured on the user's own checkpoint: a short text is read into a real store, by a method that
loses nothing; the store is closed, opened again and asked with everything zoomed, and the logits
are held against those of transformers' eager attention on the whole prompt. A model whose logits
differ is refused. The outcome is kept in the cache by the fingerprint of the weights.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.attention import seam
from engine.attention.layer_states import positions
from engine.attention.rope_length import context_for
from engine.compression.codecs.shared_basis import SharedBasis
from engine.compression.methods import METHODS, Method
from engine.errors import ReaderError
from engine.store import cache_folder, disk
from engine.types import IngestOptions, Progress, Silent

if TYPE_CHECKING:
    from torch import Tensor

    from engine.models.chunked import Stop
    from engine.models.reader import Reader
    from engine.types import ModelIdentity

FORMAT = "sekv-parity 1"

CHARS, CHUNK, FORCED = 900, 64, 3
"""Of the text that is read, its characters and the tokens of a prefill chunk; tokens that follow
the question one by one."""

QUESTION = "What is the inn called?"

EXACT = 1e-4
"""Logits may always differ by so much: in float32 only the order of sums differs."""

KERNELS = 4.0
"""Beyond that: how many times further from eager attention the memory may be than the library's
sdpa is. Both compute the same function, so that their distance is what rounding does in this dtype
and model. It never allows more than `_rounding`: a wrong row or position moves logits by more."""

KEPT = 15
"""Earlier outcomes that are kept of the same weights, under other releases or dtypes."""

NATS = 0.02
"""The surprisal of a token may differ by so much where `EXACT` holds; it decides on spans."""


@dataclass(frozen=True)
class Parity:
    """What a check found.

    weights, transformers, sekv, dtype, device: what it is about. tokens: of the whole prompt.
    difference: the largest between two logits; tolerance: what it may be; largest: the largest
    logit. surprisal_difference: nats. reason: why it did not pass, "" where it did.
    """

    model: str
    weights: str
    architecture: str
    transformers: str
    sekv: str
    dtype: str
    device: str
    tokens: int
    difference: float
    tolerance: float
    largest: float
    surprisal_difference: float
    passed: bool
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """Its fields; null where a number is not finite, as JSON has no such."""
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(self).items()
        }

    @classmethod
    def of_json(cls, plain: dict[str, Any]) -> Parity:
        """Raises TypeError where it is none."""
        known: dict[str, Any] = {k: math.inf if v is None else v for k, v in plain.items()}
        return cls(**known)


def ensure(reader: Reader, progress: Progress) -> None:
    """Check a model when it first reads a document; known aliases have been checked.

    Raises:
        ReaderError: its logits differ.
    """
    from transformers import PreTrainedModel

    from engine.models import aliases

    if aliases.named(reader.identity.id) or not isinstance(reader.model, PreTrainedModel):
        return
    found = known(reader)
    if found is None:
        progress.start("checking the model's logits against transformers', once", 0, "")
        found = check(reader, progress)
    if not found.passed:
        raise ReaderError(f"{found.model}: {found.reason}")


def check_named(model: str, options: IngestOptions, progress: Progress) -> Parity:
    """Load a model and check it, whether or not it was checked before.

    Raises:
        ReaderError: it is not there or cannot be loaded. One that is refused has not passed.
    """
    from engine.models import load
    from engine.models.identity import identify
    from engine.models.locate import locate
    from engine.models.reader import load_reader

    located = locate(model, revision=options.revision, offline=options.offline, progress=progress)
    config = load.load_config(located.folder)
    try:
        load.check_supported(config)
    except ReaderError as error:
        tokenizer = load.load_tokenizer(located.folder)
        identity = identify(located, config, tokenizer, progress)
        return _outcome(identity, options.dtype, options.device, reason=str(error))
    reader = load_reader(located, device=options.device, dtype=options.dtype, progress=progress)
    progress.start("checking the model's logits against transformers'", 0, "")
    return check(reader, progress)


def known(reader: Reader) -> Parity | None:
    """What an earlier check of the same weights, dtype, device and releases found."""
    path = _path(reader.identity)
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        if body.pop("format") != FORMAT:
            return None
        found = [Parity.of_json(entry) for entry in body["checks"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    about = _about(_of(reader))
    return next((each for each in reversed(found) if _about(each) == about), None)


def check(reader: Reader, progress: Progress | None = None) -> Parity:
    """Check a loaded model and keep the outcome, or say that it cannot be kept."""
    try:
        found = measure(reader)
    except ReaderError as error:
        found = _of(reader, reason=str(error))
    path = _path(reader.identity)
    try:
        others = json.loads(path.read_text(encoding="utf-8"))["checks"]
    except (OSError, ValueError, KeyError, TypeError):
        others = []
    body = {"format": FORMAT, "checks": [*others[-KEPT:], found.to_json()]}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        disk.put(path, (json.dumps(body) + "\n").encode())
    except OSError as error:
        (progress or Silent()).note(
            f"cannot keep what was found of the model in {path.parent} ({error.strerror}); "
            "name a folder that can be written with SEKV_CACHE"
        )
    return found


def measure(reader: Reader) -> Parity:
    """The check itself, on a loaded model.

    Raises:
        ReaderError: its attention does not call the registered function, or computes what a memory
            does not.
    """
    import torch

    config, trained = reader.model.config, reader
    reader = reader.at(context_for(config, positions(config)))
    with torch.inference_mode():
        with tempfile.TemporaryDirectory(prefix="sekv-parity-") as folder:
            ids, asked, logits = _from_memory(reader, Path(folder))
        whole, rows = [*reader.prompt.prefix, *ids, *asked], len(asked)
        plain = _plain(reader, whole, "eager")
        difference, largest = _apart(logits, plain[-rows:]), float(plain[-rows:].abs().max())
        tolerance = EXACT
        if difference > EXACT:
            tolerance = _tolerance(reader, whole, plain, largest)
        probe = reader.probe_ids
        nats = torch.nn.functional.cross_entropy(
            _plain(trained, probe, "eager")[:-1], torch.tensor(probe[1:]), reduction="none"
        )
        surprisal = _apart(nats, torch.tensor(reader.identity.behaviour))
        reason = ""
        if not difference <= tolerance:
            reason = _mechanism(reader, whole, plain, difference, tolerance)
        elif not surprisal <= max(NATS, tolerance):
            reason = (
                f"the model scales its logits in a way that is not known here: the surprisal of a "
                f"token is {surprisal:.3g} nats off"
            )
    return _of(
        reader,
        tokens=len(whole),
        difference=difference,
        tolerance=tolerance,
        largest=largest,
        surprisal_difference=surprisal,
        passed=not reason,
        reason=reason,
    )


def _from_memory(reader: Reader, folder: Path) -> tuple[list[int], list[int], Tensor]:
    """The document's tokens, those behind it, and the logits [n, V] of these, from a store."""
    import torch

    from engine.documents import load
    from engine.documents.tokens import tokenize
    from engine.ingest.build import StoreBuild, job_of
    from engine.ingest.sources import entries
    from engine.ingest.windows import Windows
    from engine.memory.conversation import Conversation
    from engine.memory.open import open_memory
    from engine.models import chunked
    from engine.models.evidence_heads import TEXT
    from engine.store.reader import Store
    from engine.store.writer import StoreWriter

    source, target = folder / "text.txt", folder / "text.sekv"
    asked = reader.prompt.question(reader.tokenizer, QUESTION)
    room = positions(reader.model.config) - len(reader.prompt.prefix) - len(asked) - FORCED
    chars = CHARS
    while chars:
        source.write_text(TEXT[:chars], encoding="utf-8")
        document = load([str(source)])
        tokens = tokenize(document, reader.tokenizer)
        if len(tokens.ids) <= room:
            break
        chars //= 2
    else:
        raise ReaderError(
            "the model has too few positions for a sentence and a question; use another model"
        )
    windows = Windows((0, len(tokens.ids)), len(tokens.ids), reader.context)
    recipe = _lossless()
    job = job_of(document, windows, reader, recipe, IngestOptions(chunk_tokens=CHUNK))
    with StoreWriter.begin(target, job, overwrite=False) as writer:
        work = StoreBuild(recipe, reader, document, tokens, windows, writer, CHUNK)
        work.entries = entries(document.sources, target)
        work.run(Silent())
        work.publish()
    ids = tokens.ids.tolist()
    steps = [asked, *([token] for token in ids[:FORCED])]
    with Store.open(target) as store:
        memory = open_memory(store, reader, budget="1000000%", coverage=1.0, full=False)
        cache = Conversation(reader, memory, _everything).cache()
        logits = [
            out.logits[0].float().cpu()
            for step in steps
            for out in chunked.read(reader.model, step, cache, None, logits_to_keep=0)
        ]
    return ids, [token for step in steps for token in step], torch.cat(logits)


def _everything(texts: Sequence[str], prompt: list[int], stop: Stop | None) -> None:
    """Retrieval that narrows nothing."""


def _lossless() -> Method:
    """The default method, every row kept at full rank in the model's own dtype."""
    return replace(METHODS["sekv"], codec=SharedBasis(bits=32), half_rows=False)


def _plain(reader: Reader, ids: list[int], kind: str) -> Tensor:
    """Logits float32 [n, V] of the same weights under one of the library's own attention functions,
    or of ours without a memory, in one forward; where RoPE depends on the length of the context, in
    one of the reader's."""
    import torch

    model, place = reader.model, reader.devices[0]
    decoder = model.get_decoder()
    own = decoder.config._attn_implementation
    count, given = len(ids), {}
    if reader.context:  # the library takes it from the last position, which no other token sees
        places = [*range(count), reader.context - 1]
        given["position_ids"] = torch.tensor([places], device=place)
        given["attention_mask"] = torch.ones_like(given["position_ids"])
        ids = [*ids, ids[-1]]
    decoder.set_attn_implementation(kind)
    try:
        out = model(input_ids=torch.tensor([ids], device=place), use_cache=False, **given)
    finally:
        decoder.set_attn_implementation(own)
    logits: Tensor = out.logits[0, :count].float().cpu()
    return logits


def _apart(a: Tensor, b: Tensor) -> float:
    """The largest difference; infinite where one is no number."""
    found = float((a - b).abs().max())
    return found if math.isfinite(found) else math.inf


def _tolerance(reader: Reader, ids: list[int], plain: Tensor, largest: float) -> float:
    """How far logits may be from `plain`, see `KERNELS`."""
    most = max(EXACT, _rounding(reader, largest))
    if not getattr(reader.model, "_supports_sdpa", False):
        return most
    return max(EXACT, min(most, KERNELS * _apart(_plain(reader, ids, "sdpa"), plain)))


def _rounding(reader: Reader, largest: float) -> float:
    """What rounding alone does to logits of that size: each of a layer's two sums adds an error of
    the dtype's epsilon, and independent errors add up by their squares. A sum of 16-bit numbers is
    kept in float32 and rounded once, one of float32 at each of its terms."""
    import torch

    sums = 2 * reader.layers
    if reader.dtype == torch.float32:
        sums *= reader.model.config.get_text_config(decoder=True).hidden_size
    return torch.finfo(reader.dtype).eps * math.sqrt(sums) * largest


def _mechanism(
    reader: Reader, ids: list[int], plain: Tensor, difference: float, tolerance: float
) -> str:
    """Why logits differ, as far as can be told."""
    where = "only from a memory"
    if _apart(_plain(reader, ids, seam.NAME), plain) > tolerance:
        cause = "its attention is more than a softmax over its rows"
        if reader.identity.quantized:
            cause = (
                f"products of weights in {reader.identity.quantized} round what they are "
                "multiplied with, so that two orders of the same sums differ by as much"
            )
        where = f"already when it is read at once: {cause}"
    return (
        f"{reader.identity.architecture} of transformers {reader.identity.transformers} differs "
        f"from its full cache by {difference:.3g} in a logit ({tolerance:.3g} is allowed), {where}"
    )


def _of(reader: Reader, **found: Any) -> Parity:
    """What was found of a loaded model."""
    return _outcome(reader.identity, reader.dtype_name, reader.devices[0].type, **found)


def _outcome(identity: ModelIdentity, dtype: str, device: str, **found: Any) -> Parity:
    """What was found of a model, with what it is about; not passed unless it says so."""
    from engine.ingest.build import creator

    nothing = {
        "tokens": 0,
        "difference": math.inf,
        "tolerance": EXACT,
        "largest": 0.0,
        "surprisal_difference": math.inf,
        "passed": False,
    }
    return Parity(
        model=identity.id,
        weights=identity.weights,
        architecture=identity.architecture,
        transformers=identity.transformers,
        sekv=creator(),
        dtype=dtype,
        device=device,
        **{**nothing, **found},
    )


def _about(found: Parity) -> tuple[str, ...]:
    return found.weights, found.transformers, found.sekv, found.dtype, found.device


def _path(identity: ModelIdentity) -> Path:
    return cache_folder.root() / "parity" / f"{identity.weights}.json"
