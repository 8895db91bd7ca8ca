"""Use case: look into a store. Spans, sizes and text without torch; zoom decisions with it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.answer import replay
from engine.compression.tensor_names import CODING_ERRORS, KEYS, VALUES, bits_of, of_layer
from engine.errors import DocumentError, SekvError, StoreError
from engine.object_storage import Address
from engine.store.library import check_sources
from engine.store.manifest import SHARED, Manifest, device_file, host_file, states_file
from engine.store.reader import Store
from engine.store.records import SPAN_TABLE, span_table_fault
from engine.types import ANCHOR, AskOptions, Citation, InspectReport, Progress, Recorded, SpanView

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True)
class TextPiece:
    """Characters that belong to one span; span -1 belongs to none."""

    text: str
    span: int
    anchor: bool


def inspect(
    store: Address,
    *,
    question: str = "",
    trace: Path | Mapping[str, Any] | None = None,
    text: tuple[int, int] | None = None,
    layer: int | None = None,
    head: int | None = None,
    options: AskOptions,
    progress: Progress,
) -> InspectReport:
    """What a store holds and, with a question or a trace, what it zoomed into.

    Args:
        trace: a file of `ask --trace`, or what one line of it holds.
        text: only spans that touch these characters of the first source.
        layer, head: only zoom decisions of this layer, this KV head.
    Raises:
        SekvError: no such store, layer or head; a trace of another store.
    """
    with Store.open(store) as opened:
        manifest = opened.manifest
        _check_narrowing(manifest, layer, head)
        spans = _spans(opened, layer, head)
        tiers = _tiers(opened)
    recorded = Recorded()
    if question:
        recorded = _ask(store, question, options, progress)
    elif trace is not None:
        recorded = (
            replay.read(trace, manifest)
            if isinstance(trace, Path)
            else replay.parse(trace, manifest)
        )
    if text is not None:
        name = manifest.sources[0].path
        spans = [s for s in spans if s.source == name and s.start < text[1] and s.end > text[0]]
    return InspectReport(
        manifest.to_json(),
        tuple(spans),
        tuple(z for z in recorded.zoom if layer in (None, z.layer) and head in (None, z.kv_head)),
        tiers,
        tuple(move for move in recorded.moves if layer in (None, move.layer)),
        recorded.question,
        recorded.answer,
        recorded.said,
        recorded.citations,
        recorded.remark,
        tuple(check_sources(manifest, store)),
        recorded.retrieval,
        recorded.resident,
    )


def text(store: Address, source: int, start: int, end: int) -> list[TextPiece]:
    """The characters [start, end) of a source, cut where spans end.

    Raises:
        DocumentError: no such source, or nothing of it lies there.
    """
    with Store.open(store) as opened:
        manifest = opened.manifest
        if not 0 <= source < len(manifest.sources):
            count = len(manifest.sources)
            raise DocumentError(f"there is no source {source + 1}; {store} has 1 to {count}")
        words = source_text(opened, source)
        if not words:
            raise DocumentError(f"{store} keeps no text of source {source + 1}; ingest it again")
        start, end = max(0, start), min(end, len(words))
        if start >= end:
            raise DocumentError(f"source {source + 1} has characters 0 to {len(words)} only")
        spans = [s for s in _places(opened) if s.source == source and s.start < end]
    pieces, at = [], start
    for span in spans:
        if span.end <= at:
            continue
        if span.start > at:
            pieces.append(TextPiece(words[at : span.start], -1, False))
            at = span.start
        upto = min(end, span.end)
        if upto > at:
            pieces.append(TextPiece(words[at:upto], span.id, span.anchor))
            at = upto
    if at < end:
        pieces.append(TextPiece(words[at:end], -1, False))
    return pieces


def excerpts(store: Address, spans: Collection[int]) -> dict[int, str]:
    """The words of some spans by their number, "" where a store keeps no text."""
    with Store.open(store) as opened:
        places = [place for place in _places(opened) if place.id in spans]
        texts = {n: source_text(opened, n) for n in {place.source for place in places}}
    return {place.id: texts[place.source][place.start : place.end] for place in places}


def around(store: Address, citation: Citation, width: int) -> tuple[str, str]:
    """Up to `width` characters before and after a passage, in the source that says it there; a word
    that this would cut in two is left out.

    Two sources may have one path, with another text each: a file that was appended again.

    Raises:
        DocumentError: the store does not say it, since it was made anew.
    """
    start, end = citation.start, citation.end
    with Store.open(store) as opened:
        for index, entry in enumerate(opened.manifest.sources):
            words = source_text(opened, index) if entry.path == citation.source else ""
            if words and words[start:end] == citation.text:
                first, last = max(0, start - width), min(len(words), end + width)
                if first and not words[first - 1].isspace():
                    first = next((at for at in range(first, start) if words[at].isspace()), start)
                if last < len(words) and not words[last].isspace():
                    last = next((at for at in range(last, end, -1) if words[at - 1].isspace()), end)
                return words[first:start], words[end:last]
    raise DocumentError(f"{store} was made anew and does not hold this passage; ask once more")


def source_text(opened: Store, source: int) -> str:
    """The text of a source, "" where a store keeps none of it.

    Raises:
        StoreError: it is damaged.
    """
    return opened.text(source) if opened.has_text(source) else ""


# ---------------------------------------------------------------------------- spans


@dataclass(frozen=True)
class _Place:
    """Where a span lies: document tokens, and characters of its source."""

    id: int
    window: int
    local: int
    first: int
    last: int
    source: int
    start: int
    end: int
    anchor: bool
    surprisal: float


def _places(store: Store) -> list[_Place]:
    """All spans in document order."""
    import numpy as np

    document = store.document()
    starts, ends, owner = document["starts"], document["ends"], document["source"]
    places: list[_Place] = []
    for index in store.manifest.read:
        window = store.manifest.windows[index]
        tables = store.tables(device_file(index), SPAN_TABLE)
        fault = span_table_fault(tables, window.end - window.start, window.spans)
        if fault:
            raise StoreError(f"{store.path}: {device_file(index)} has {fault}: ingest again")
        bounds = tables["bounds"].astype(np.int64)
        sums = np.concatenate([[0.0], np.cumsum(tables["surprisal"].astype(np.float64))])
        mean = np.diff(sums[bounds]) / np.diff(bounds)
        for local, (a, b) in enumerate(pairwise(bounds)):
            first, last = int(a) + window.start, int(b) + window.start
            source = int(owner[first])
            same = last - 1
            while int(owner[same]) != source:  # a span over two sources is shown in its first
                same -= 1
            places.append(
                _Place(
                    id=len(places),
                    window=index,
                    local=local,
                    first=first,
                    last=last,
                    source=source,
                    start=int(starts[first]),
                    end=int(ends[same]),
                    anchor=int(tables["kind"][local]) == ANCHOR,
                    surprisal=round(float(mean[local]), 4),
                )
            )
    return places


def _spans(store: Store, layer: int | None, head: int | None) -> list[SpanView]:
    manifest = store.manifest
    sizes = _record_bytes(store, layer)
    first = manifest.model.memory_layers[0]
    ranks = _ranks(store, first if layer is None else layer, head or 0)
    errors = _errors(store, layer, head)
    views = []
    for place in _places(store):
        entry = manifest.sources[place.source]
        page = bisect_right(entry.pages, place.start, key=lambda page: page[1]) - 1
        views.append(
            SpanView(
                id=place.id,
                start_token=place.first,
                end_token=place.last,
                source=entry.path,
                start=place.start,
                end=place.end,
                page=entry.pages[page][0] if page >= 0 else "",
                anchor=place.anchor,
                surprisal=place.surprisal,
                rank_k=int(ranks[0][place.id]),
                rank_v=int(ranks[1][place.id]),
                bytes=int(sizes[place.id]),
                error=round(float(errors[place.id]), 4),
            )
        )
    return views


def _record_bytes(store: Store, layer: int | None) -> npt.NDArray[np.int64]:
    """Host bytes of every span, of one layer or of all."""
    import numpy as np

    layers = store.manifest.model.memory_layers if layer is None else [layer]
    parts = []
    for index in store.manifest.read:
        section = store.host(index)
        parts.append(sum((section.sizes(number) for number in layers), np.zeros(1, np.int64)))
        section.close()
    return np.concatenate(parts)


def _errors(store: Store, layer: int | None, head: int | None) -> npt.NDArray[np.float64]:
    """What the codes of every span lost: of one layer and head, or on average over them."""
    import numpy as np

    layers = store.manifest.model.memory_layers if layer is None else [layer]
    names = [of_layer(number, CODING_ERRORS) for number in layers]
    parts = []
    for index in store.manifest.read:
        tables = store.tables(device_file(index), names)
        heads = [table if head is None else table[[head]] for table in tables.values()]
        spans = store.manifest.windows[index].spans
        lost = np.concatenate(heads) if heads else np.zeros((1, spans))
        parts.append(lost.mean(0) / 255)
    return np.concatenate(parts)


def _ranks(
    store: Store, layer: int, head: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Directions kept of K and V by every span's record in one layer and head."""
    import numpy as np

    manifest = store.manifest
    codec, size = manifest.settings.get("codec"), manifest.model.head_dim
    if not isinstance(codec, dict):
        raise StoreError(f"{store.path}: unknown method settings: open it with {manifest.creator}")
    if codec.get("kind") == "SpanSVD" and not codec.get("exact"):
        return _svd_ranks(store, layer, head)
    names = [of_layer(layer, bits_of(part)) for part in (KEYS, VALUES)]
    tables = store.tables(SHARED, names)
    for name, table in tables.items():
        if table.shape != (manifest.model.kv_heads, size):
            raise StoreError(f"{store.path}: {SHARED} is damaged in {name!r}: ingest again")
    kept = [int((tables[name][head] > 0).sum()) if name in tables else size for name in names]
    return np.full(manifest.spans, kept[0]), np.full(manifest.spans, kept[1])


def _svd_ranks(
    store: Store, layer: int, head: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The ranks that per-span factors carry; the only look at records, hence with torch."""
    import numpy as np
    import torch

    from engine.compression.codecs.span_svd import SpanSVD

    manifest = store.manifest
    k, v = [], []
    for index in manifest.read:
        window, section = manifest.windows[index], store.host(index)
        payload = section.read(layer, torch.arange(window.spans))
        offsets = section.offsets(layer)
        if len(offsets) != window.spans * manifest.model.kv_heads + 1 or offsets.diff().min() < 4:
            raise StoreError(f"{store.path}: {section.name} holds no records of spans")
        rank_k, rank_v = SpanSVD.ranks(payload, offsets, manifest.model.head_dim)
        k.append(rank_k[head :: manifest.model.kv_heads].numpy())
        v.append(rank_v[head :: manifest.model.kv_heads].numpy())
        section.close()
    return np.concatenate(k), np.concatenate(v)


def _tiers(store: Store) -> dict[str, int]:
    """Bytes on disk by tier, which add up to those of the store's files, and the full cache of
    the tokens that are read, for comparison."""
    manifest = store.manifest
    files = manifest.files
    states = [files[states_file(i)].bytes for i in manifest.read if manifest.has_states]
    device = sum(files[device_file(i)].bytes for i in manifest.read) + files[SHARED].bytes
    device += sum(states)
    host = sum(files[host_file(i)].bytes for i in manifest.read)
    width = 4 if manifest.dtype == "float32" else 2
    full = manifest.model.numbers_per_token * manifest.tokens_read * width + sum(states[-1:])
    return {
        "device": device,
        "host": host,
        "document": sum(f.bytes for f in files.values()) - device - host,
        "manifest": store.manifest_bytes,
        "full": full,
    }


# ---------------------------------------------------------------------------- zoom


def _ask(store: Address, question: str, options: AskOptions, progress: Progress) -> Recorded:
    from engine.answer.session import Session

    with Session(store, replace(options, trace=True), progress) as session:
        session.ask(question)
        return replay.parse(session.trace(), session.store.manifest)


def _check_narrowing(manifest: Manifest, layer: int | None, head: int | None) -> None:
    model = manifest.model
    if layer is not None and not 0 <= layer < model.layers:
        raise SekvError(f"there is no layer {layer}; the model has 0 to {model.layers - 1}")
    if layer is not None and layer not in model.memory_layers:
        listed = ", ".join(map(str, model.memory_layers))
        raise SekvError(
            f"layer {layer} has no document memory, for it has no full attention; these have: "
            f"{listed}"
        )
    if head is not None and not 0 <= head < model.kv_heads:
        raise SekvError(f"there is no KV head {head}; the model has 0 to {model.kv_heads - 1}")
