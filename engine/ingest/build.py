"""The loop that makes a store: prefill, compress and write, window by window.

At most one window of uncompressed keys and values is held; every finished chunk and window is
on disk, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import time
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from engine.compression.methods import Method
from engine.errors import ReaderError
from engine.object_storage import Address
from engine.store.manifest import WindowEntry
from engine.types import IngestOptions, IngestReport, Progress, SourceReport

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.attention.layer_states import States
    from engine.compression.encode import CompressedLayer
    from engine.compression.spans import Spans
    from engine.documents import Document
    from engine.documents.tokens import Tokens
    from engine.ingest.clock import Clock
    from engine.ingest.windows import Windows
    from engine.models.chunked import Stop
    from engine.models.reader import Reader
    from engine.models.window_chunk import Chunk
    from engine.store.manifest import Manifest, SourceEntry
    from engine.store.writer import StoreWriter


STATE = "state "
"""How the names of a chunk's tensors begin that are states of layers."""


class StoreBuild:
    """The loop over windows: prefill, compress, write."""

    def __init__(
        self,
        recipe: Method,
        reader: Reader,
        document: Document,
        tokens: Tokens,
        windows: Windows,
        writer: StoreWriter,
        chunk_tokens: int,
    ):
        self.recipe, self.reader, self.writer = recipe, reader.at(windows.context), writer
        self.document, self.tokens, self.windows = document, tokens, windows
        self.chunk_tokens = chunk_tokens
        self.prefill_s = self.compress_s = 0.0
        self.resumed = 0
        self.calibrated: list[Any] = []  # per layer what was measured of the model, if anything was
        self.trained: list[Any] = []  # per layer what a trained router knows, if there is one
        self.copied = False  # whether the store keeps bases that it borrows: their file may move
        self.entries: tuple[SourceEntry, ...] = ()  # what the manifest says of the sources
        self.wanted: Sequence[int] = range(len(windows))  # those that are read, in this order
        self.stop: Stop | None = None
        self.state_bytes = 0  # of the last window that was read, in layers without full attention
        self.read: list[int] = []  # windows that this command read

    @property
    def _numbers(self) -> tuple[int, ...]:
        """The layers with full attention, by their number in the model."""
        return self.reader.memory_layers

    def make(self, target: Address, progress: Progress, clock: Clock) -> IngestReport:
        """Read, compress, write and publish."""
        self.run(progress)
        return self.report(target, self.publish(), clock)

    def publish(self) -> Manifest:
        """Give the store its name, with the windows that are written."""
        reader, bounds = self.reader, self.windows.bounds
        return self.writer.publish(
            creator=creator(),
            model=reader.identity,
            method=self.recipe.name,
            settings=self.recipe.settings(),
            dtype=reader.dtype_name,
            prompt=reader.prompt.to_json(),
            tokens=len(self.tokens.ids),
            tokenizer_engine=self.tokens.engine,
            window_tokens=self.windows.most,
            context=self.windows.context,
            sources=self.entries,
            unread=[
                (index, WindowEntry(bounds[index], bounds[index + 1], 0, 0))
                for index in range(len(self.windows))
                if not self.writer.window_done(index)
            ],
        )

    def report(self, target: Address, manifest: Manifest, clock: Clock) -> IngestReport:
        """What is told of the store."""
        identity, dtype = self.reader.identity, self.reader.dtype
        rows = identity.numbers_per_token * len(self.tokens.ids) * dtype.itemsize
        return IngestReport(
            store=str(target),
            sources=source_reports(self.document),
            model=identity.id,
            method=self.recipe.name,
            tokens=len(self.tokens.ids),
            windows=len(self.windows),
            window_tokens=self.windows.most,
            spans=manifest.spans,
            anchors=manifest.anchors,
            store_bytes=manifest.store_bytes,
            full_kv_bytes=rows + self.state_bytes,
            timing={
                "read_s": clock.laps["read_s"],
                "tokenize_s": clock.laps["tokenize_s"],
                "prefill_s": self.prefill_s,
                "compress_s": self.compress_s,
                "write_s": self.writer.seconds,
                "total_s": time.perf_counter() - clock.started,
            },
            resumed_tokens=self.resumed,
        )

    def run(self, progress: Progress) -> None:
        """Read, compress and write the windows that are wanted and not written.

        What all windows share is learnt from the first, so that no store depends on a question.

        Raises:
            StoppedError: `stop` said so; finished chunks stay for the next run.
        """
        import torch

        from engine.models.chunked import check

        self.writer.put_document(document_tensors(self.document, self.tokens))
        bounds = self.windows.bounds
        tokens = sum(bounds[index + 1] - bounds[index] for index in self.wanted)
        progress.start(self._stage(), tokens, "tokens")
        at = time.perf_counter()
        prefix = self.reader.prefix()
        self.prefill_s += time.perf_counter() - at
        params = self._known_params()
        for index in self.wanted:
            start, end = self.windows.bounds[index], self.windows.bounds[index + 1]
            if self.writer.window_done(index) and params is not None:
                self.resumed += end - start
                progress.resume(end - start)
                continue
            check(self.stop)
            chunks = self._read(index, prefix, progress, first=params is None)
            before = time.perf_counter() - self.writer.seconds
            with torch.inference_mode():
                params = self._compress(index, chunks, prefix, params)
            self.read.append(index)
            self.compress_s += time.perf_counter() - self.writer.seconds - before

    def _stage(self) -> str:
        """What is being read: how many windows, and of how many."""
        count, wanted = len(self.windows), list(self.wanted)
        if count == 1:
            return "reading"
        if wanted == [0]:
            return f"reading the first of {count} windows"
        return f"reading {count if len(wanted) == count else f'{len(wanted)} of {count}'} windows"

    def _read(self, index: int, prefix: Any, progress: Progress, *, first: bool) -> list[Chunk]:
        """All chunks of a window, those of an earlier run first; each is on disk when done."""
        from engine.models.chunked import check

        start, end = self.windows.bounds[index], self.windows.bounds[index + 1]
        chunks = [_unpack_chunk(tensors) for tensors in self.writer.chunks(index)]
        if self.reader.identity.state_layers:
            while chunks and not chunks[-1].states:  # one can go on only from states
                chunks.pop()
        for chunk in chunks:
            self.resumed += len(chunk.surprisal)
            progress.resume(len(chunk.surprisal))
        before = time.perf_counter() - self.writer.seconds
        ids = self.tokens.ids[start:end].tolist()
        observe = self.recipe.observe if first else replace(self.recipe.observe, spread=0)
        for chunk in self.reader.read_window(
            ids, prefix, self.chunk_tokens, chunks.copy(), observe
        ):
            if chunks:
                chunks[-1] = replace(chunks[-1], states={})  # those behind the last are enough
            chunks.append(chunk)
            progress.advance(len(chunk.surprisal))
            if chunk.start + len(chunk.surprisal) < len(ids):
                states = {f"{STATE}{name}": t for name, t in _pack_states(chunk.states).items()}
                self.writer.put_chunk(index, len(chunks) - 1, _pack_chunk(chunk), states)
                check(self.stop)
        self.prefill_s += time.perf_counter() - self.writer.seconds - before
        return chunks

    def _compress(
        self, index: int, chunks: list[Chunk], prefix: Any, params: list[Any] | None
    ) -> list[Any]:
        """Compress one window and write it; the first one also makes what all share.

        params: of every layer, which all windows share, None for the first.  Returns the same.
        """
        import torch

        from engine.compression.spans import ANCHOR
        from engine.compression.stored_layers import SharedLayer, of_layers

        surprisal = torch.cat([chunk.surprisal for chunk in chunks])
        spans = self._cut(index, chunks, surprisal)
        rows = _take_rows(chunks, len(prefix))
        fitted = params is None
        if params is None:
            params = self._fit(chunks, prefix, rows, surprisal, spans)
        device: dict[str, Any] = {
            "bounds": spans.bounds.to(torch.int32),
            "kind": spans.kind,
            "surprisal": surprisal.half(),
        }
        host: dict[str, Any] = {}
        names = self.recipe.router.key_names
        for place, (layer, known) in enumerate(zip(self._numbers, params, strict=True)):
            made = self._compress_layer(place, chunks, rows, surprisal, spans, known)
            device |= {f"{layer}.{name}": t for name, t in made.device.tensors(names).items()}
            host[f"{layer}.codes"] = made.records.payload
            host[f"{layer}.offsets"] = made.records.offsets
        if fitted:
            pairs = zip(params, prefix, strict=True)
            shared = (SharedLayer(known, (k.cpu(), v.cpu())) for known, (k, v) in pairs)
            tensors = (layer.tensors(with_model=self.copied) for layer in shared)
            kept = of_layers(self._numbers, tensors)
            self.writer.put_shared({name: t.contiguous() for name, t in kept.items()})
        start, end = self.windows.bounds[index], self.windows.bounds[index + 1]
        anchors = int((spans.kind == ANCHOR).sum())
        entry = WindowEntry(start, end, len(spans.kind), anchors)
        states = _pack_states(chunks[-1].states)
        self.state_bytes = sum(tensor.nbytes for tensor in states.values())
        self.writer.put_window(index, device, host, entry, states)
        return params

    def _cut(self, index: int, chunks: list[Chunk], surprisal: Any) -> Spans:
        """The spans of a window."""
        import torch

        from engine.compression import encode

        start, end = self.windows.bounds[index], self.windows.bounds[index + 1]
        reach = self.recipe.observe.reach
        near = None
        if reach:
            seen = [chunk.near for chunk in chunks if chunk.near is not None]
            near = torch.cat(seen)[:, :reach]
        last = index + 1 == len(self.windows)
        return encode.segment(
            self.recipe, surprisal, self._pieces(start, end), last=last, near=near
        )

    def _fit(
        self, chunks: list[Chunk], prefix: Any, rows: list[Any], surprisal: Any, spans: Spans
    ) -> list[Any]:
        """What all windows share, per layer, from the first one's rows."""
        import torch

        from engine.compression import encode
        from engine.compression.query_statistics import query_moments
        from engine.compression.terms import PLAIN

        learnt = []
        places = [place for chunk in chunks for place in chunk.places]
        if self.recipe.weighs_keys and places:
            for layer, (k, v) in enumerate(prefix):
                queries = torch.cat([chunk.spread[layer] for chunk in chunks], 1)
                terms = self.reader.terms.get(self._numbers[layer], PLAIN)
                before = k.cpu(), v.cpu()
                learnt.append(query_moments(queries, places, rows[layer], before, terms))
        known = encode.prepare(self.recipe, rows, learnt, self.trained, len(self.tokens.ids))
        params = []
        for layer, given in enumerate(known):
            if self.calibrated:
                given = replace(given, calibrated=self.calibrated[self._numbers[layer]])
            k, v = rows[layer]
            params.append(encode.fit(self.recipe, k, v, surprisal, spans, given))
        return params

    def _compress_layer(
        self,
        layer: int,
        chunks: list[Chunk],
        rows: list[Any],
        surprisal: Any,
        spans: Spans,
        params: Any,
    ) -> CompressedLayer:
        """One layer of a window, counted among those with full attention; its rows are not needed
        again and are let go of."""
        import torch

        from engine.compression import encode
        from engine.store.schema import is_finite

        k, v = rows[layer]
        rows[layer] = None
        queries = None
        if self.recipe.observe.rows:
            queries = torch.cat([chunk.queries[layer] for chunk in chunks], 1)
            queries = queries[:, -self.recipe.observe.rows :]
        made = encode.compress_layer(self.recipe, k, v, surprisal, spans, params, queries)
        names = self.recipe.router.key_names
        if not is_finite({**params.tensors(), **made.device.tensors(names)}):
            raise ReaderError(
                f"the keys and values of layer {self._numbers[layer]} are no numbers that a store "
                "can hold; read with another --dtype, or another model"
            )
        return made

    def _known_params(self) -> list[Any] | None:
        """The layers' parameters as an earlier run, or the store that is added to, has them."""
        from engine.compression.params import LayerParams, TrainedLayer
        from engine.compression.stored_layers import by_layer, with_model_bases

        shared = self.writer.shared()
        if shared is None:
            return None
        stored = by_layer(shared, self.reader.memory_layers)
        trained = self.trained or [TrainedLayer() for _ in stored]
        return [
            replace(LayerParams.of(with_model_bases(tensors, known.bases)), gates=known.gates)
            for tensors, known in zip(stored, trained, strict=True)
        ]

    def _pieces(self, start: int, end: int) -> list[str]:
        tokens = self.tokens
        return [
            self.document.sources[s].text[a:b]
            for s, a, b in zip(
                tokens.source[start:end].tolist(),
                tokens.starts[start:end].tolist(),
                tokens.ends[start:end].tolist(),
                strict=True,
            )
        ]


def document_tensors(document: Document, tokens: Tokens) -> dict[str, Any]:
    """What `StoreWriter.put_document` is given: texts, and the tables of tokens."""
    import numpy as np

    texts = {
        f"text.{i}": np.frombuffer(source.text.encode("utf-8", "surrogatepass"), dtype=np.uint8)
        for i, source in enumerate(document.sources)
    }
    return {
        "ids": tokens.ids,
        "starts": tokens.starts,
        "ends": tokens.ends,
        "source": tokens.source,
        **texts,
    }


def job_of(
    document: Document, windows: Windows, reader: Reader, recipe: Method, options: IngestOptions
) -> dict[str, Any]:
    """What makes two runs the same work: another chunk size or device is another job, because
    it may change the last bits. Which windows are wanted does not: what is read stays of use."""
    return {
        "creator": creator(),
        "sources": [[s.path, s.sha256, len(s.text)] for s in document.sources],
        "pages": options.pages,
        "keep_headers": options.keep_headers,
        "windows": list(windows.bounds),
        "context": windows.context,
        "model": reader.identity.weights,
        "tokenizer": reader.identity.tokenizer,
        "transformers": reader.identity.transformers,
        "dtype": str(reader.dtype),
        "device": str(reader.devices[0]),
        "chunk_tokens": options.chunk_tokens,
        "method": recipe.name,
        "settings": recipe.settings(),
        "router named": bool(options.router),
    }


def creator() -> str:
    """Program and version, as manifests record it."""
    try:
        return f"sekv {version('sekv')}"
    except PackageNotFoundError:
        return "sekv (not installed)"


def _take_rows(chunks: list[Chunk], layers: int) -> list[Any]:
    """k, v [Hkv, n, D] of each layer of all chunks, on the CPU; the chunks let go of theirs."""
    from engine.models.window_chunk import joined_rows

    rows = []
    for layer in range(layers):
        rows.append(joined_rows(chunks, layer))
        for chunk in chunks:
            nothing = chunk.k[layer].new_empty(0)  # of its own: a view would keep all
            chunk.k[layer] = chunk.v[layer] = nothing
    return rows


def _pack_chunk(chunk: Chunk) -> dict[str, Any]:
    """A chunk without its states."""
    import torch

    tensors: dict[str, Any] = {
        "start": torch.tensor([chunk.start]),
        "surprisal": chunk.surprisal,
        "hidden": chunk.hidden.cpu().contiguous(),
    }
    for layer, (k, v) in enumerate(zip(chunk.k, chunk.v, strict=True)):
        tensors |= {f"{layer}.k": k.cpu().contiguous(), f"{layer}.v": v.cpu().contiguous()}
    tensors |= {f"{layer}.queries": q.contiguous() for layer, q in enumerate(chunk.queries)}
    tensors |= {f"{layer}.spread": q.contiguous() for layer, q in enumerate(chunk.spread)}
    if chunk.near is not None:
        tensors["near"] = chunk.near
    if chunk.places:
        tensors["places"] = torch.tensor(chunk.places)
    return tensors


def _pack_states(states: States) -> dict[str, Any]:
    """States of layers as tensors `{layer}.{name}`."""
    from engine.compression.stored_layers import of_layers

    tensors = of_layers(states.keys(), states.values())
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


def _unpack_chunk(tensors: dict[str, Any]) -> Chunk:
    from engine.attention.layer_states import by_number
    from engine.models.window_chunk import Chunk

    layers = sum(name.endswith(".k") for name in tensors)
    states = {name.removeprefix(STATE): t for name, t in tensors.items() if name.startswith(STATE)}
    return Chunk(
        int(tensors["start"][0]),
        [tensors[f"{layer}.k"] for layer in range(layers)],
        [tensors[f"{layer}.v"] for layer in range(layers)],
        tensors["surprisal"],
        tensors["hidden"],
        [tensors[f"{layer}.queries"] for layer in range(layers) if f"{layer}.queries" in tensors],
        tensors.get("near"),
        [tensors[f"{layer}.spread"] for layer in range(layers) if f"{layer}.spread" in tensors],
        tensors["places"].tolist() if "places" in tensors else [],
        by_number(states),
    )


def source_reports(document: Document) -> tuple[SourceReport, ...]:
    return tuple(
        SourceReport(s.path, len(s.pages), len(s.text), s.sha256, s.notes) for s in document.sources
    )
