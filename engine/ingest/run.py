"""Use case: sources in, a store out. Reads once, folds window by window, publishes last.

At most one window of uncompressed keys and values is held; every finished chunk and window is
on disk, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from engine.compression.methods import Method, named, with_router
from engine.errors import BudgetError, DocumentError, ReaderError, RouterError, StoreError
from engine.types import IngestOptions, IngestReport, Plan, Progress, SourceReport

if TYPE_CHECKING:
    from engine.compression.routers.router_file import TrainedRouter
    from engine.documents import Document
    from engine.documents.tokens import Tokens
    from engine.models.hf import Chunk, Reader
    from engine.store.writer import StoreWriter

ROOM = 1024
"""Positions kept free behind the document for question and answer."""


@dataclass(frozen=True)
class Windows:
    """How a document is read. bounds: token positions, first 0, last N. most: the window asked."""

    bounds: tuple[int, ...]
    most: int

    def __len__(self) -> int:
        return len(self.bounds) - 1


def plan(
    paths: Sequence[str],
    options: IngestOptions,
    progress: Progress,
    stdin: BinaryIO | None = None,
) -> Plan:
    """What `ingest` would do and how large the result would be; loads no weights.

    Raises:
        SekvError: what `ingest` would refuse, as far as no weights are needed to see it.
    """
    from engine.compression.routers import router_file
    from engine.documents.tokens import tokenize
    from engine.models import hf

    recipe = named(options.method)
    document = _load(paths, options, progress, stdin)
    name = hf.resolve(options.model)
    config = hf.load_config(name, options.revision)
    hf.check_supported(config)
    if options.router not in ("", router_file.NONE):
        # Whose it is shows when the weights are read.
        _check_use(router_file.load(Path(options.router)), recipe, options.router)
    tokenizer = hf.load_tokenizer(name, options.revision)
    tokens = tokenize(document, tokenizer)
    shape = config.get_text_config()
    windows = cut_windows(document, tokens, longest_window(shape, options.window))
    heads = getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads
    size = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    width = (
        4
        if hf.pick_dtype(options.dtype, hf.pick_device(options.device), config).itemsize == 4
        else 2
    )
    rows = len(tokens.ids) * shape.num_hidden_layers * heads * size * 2
    store, device = recipe.expected_shares(size)
    return Plan(
        sources=_source_reports(document),
        model=hf.display_name(name),
        method=recipe.name,
        tokens=len(tokens.ids),
        windows=len(windows),
        window_tokens=windows.most,
        full_kv_bytes=rows * width,
        estimated_store_bytes=int(rows * 2 * store),
        estimated_device_bytes=int(rows * 2 * device),
    )


def ingest(
    paths: Sequence[str],
    target: Path | None,
    options: IngestOptions,
    progress: Progress,
    stdin: BinaryIO | None = None,
    reader: Reader | None = None,
) -> IngestReport:
    """Read the sources into a store.

    Args:
        paths: files, or "-" for `stdin`.  target: None for `<first source's stem>.sekv`.
        reader: one already loaded for this model, when there is.
    Raises:
        SekvError: one line that says what is wrong. Nothing appears under the target's name
            unless it is complete; an interrupted run of the same job goes on where it stopped.
    """
    from engine.store.writer import StoreWriter

    clock = _Clock()
    recipe = named(options.method)
    if options.chunk_tokens < 1:
        raise BudgetError("--chunk-tokens must be at least 1")
    target = target or default_target(paths)
    StoreWriter.check(target, overwrite=options.overwrite)
    document = _load(paths, options, progress, stdin)
    clock.lap("read_s")

    from engine.documents.tokens import tokenize
    from engine.models import hf, retrieval_heads

    name = hf.resolve(options.model)
    config = hf.load_config(name, options.revision)
    hf.check_supported(config)
    tokens = tokenize(document, hf.load_tokenizer(name, options.revision))
    clock.lap("tokenize_s")
    windows = cut_windows(
        document, tokens, longest_window(config.get_text_config(), options.window)
    )
    if len(tokens.ids) < 2:
        raise DocumentError(f"{paths[0]}: hardly any text; nothing to read")
    reader = reader or hf.load(
        name, revision=options.revision, device=options.device, dtype=options.dtype
    )
    calibrated = retrieval_heads.needed(recipe, name, options.heads, reader.identity)
    recipe, trained = routed(recipe, options.router, Path(name), reader, progress)
    job = _job(document, windows, reader, recipe, options)
    if calibrated:
        job["heads"] = calibrated.heads
    with StoreWriter.begin(target, job, overwrite=options.overwrite) as writer:
        work = _Work(recipe, reader, document, tokens, windows, writer, options.chunk_tokens)
        work.given = calibrated.sides() if calibrated else None
        work.trained, work.copied = trained, bool(options.router)
        return work.make(target, progress, clock)


def append(
    paths: Sequence[str],
    target: Path,
    options: IngestOptions,
    progress: Progress,
    stdin: BinaryIO | None = None,
    reader: Reader | None = None,
) -> IngestReport:
    """Add sources to a store as new windows; what is there stays byte for byte.

    Model, method and window are the store's; `options` gives pages, password, device and chunk.

    Raises:
        SekvError: one line that says what is wrong; the store is then as it was.
    """
    clock = _Clock()
    from engine.documents import Document, Page, Source
    from engine.documents.tokens import Tokens, tokenize
    from engine.memory.open import lent
    from engine.models import hf
    from engine.store.library import compare_identity
    from engine.store.reader import Store
    from engine.store.schema import Schema, recipe_of
    from engine.store.writer import StoreWriter

    with Store.open(target) as store:
        base = store.manifest
        tables = store.document()
        shared = store.shared()
        old = tuple(
            Source(
                path=entry.path,
                kind=entry.kind,
                text=store.text(index),
                pages=tuple(Page(label, start) for label, start in entry.pages),
                sha256=entry.sha256,
                notes=entry.notes,
            )
            for index, entry in enumerate(base.sources)
        )
    new = _load(paths, options, progress, stdin)
    clock.lap("read_s")
    name = options.model or base.model.id
    reader = reader or hf.load(
        name,
        revision="" if options.model else base.model.revision,
        device=options.device,
        dtype=base.dtype,
    )
    different = compare_identity(base.model, reader.identity, (base.dtype, reader.dtype_name))
    if different:
        raise StoreError(f"{target}: {different}")
    try:
        recipe = recipe_of(base)
        Schema.of(base, recipe).check_shared(lent(shared, recipe, reader, options.router))
    except StoreError as error:
        raise StoreError(f"{target}: {error}") from None
    clock.lap("load_s")
    added = tokenize(new, reader.tokenizer)
    clock.lap("tokenize_s")
    cuts = cut_windows(new, added, base.window_tokens)
    tokens = Tokens(
        ids=_joined(tables["ids"], added.ids),
        starts=_joined(tables["starts"], added.starts),
        ends=_joined(tables["ends"], added.ends),
        source=_joined(tables["source"], added.source + len(old)),
        engine=added.engine,
    )
    windows = Windows(
        (*(w.start for w in base.windows), *(base.tokens + b for b in cuts.bounds)),
        base.window_tokens,
    )
    document = Document((*old, *new.sources))
    trained = _learnt_before(target, recipe, shared, options.router, Path(name), reader)
    job = _job(document, windows, reader, recipe, options)
    with StoreWriter.append(target, job) as writer:
        work = _Work(recipe, reader, document, tokens, windows, writer, options.chunk_tokens)
        work.trained = trained
        work.kept = len(base.windows)
        return work.make(target, progress, clock)


class _Clock:
    """Seconds of named stages, one after another."""

    def __init__(self) -> None:
        self.started = self._last = time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._last = now - self._last, now


class _Work:
    """The loop over windows: prefill, fold, write."""

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
        self.recipe, self.reader, self.writer = recipe, reader, writer
        self.document, self.tokens, self.windows = document, tokens, windows
        self.chunk_tokens = chunk_tokens
        self.prefill_s = self.compress_s = 0.0
        self.resumed = 0
        self.given: list[Any] | None = None  # what was calibrated for each layer
        self.trained: list[Any] = []  # per layer what a trained router knows, if there is one
        self.copied = False  # whether the store keeps bases that it borrows: their file may move
        self.kept = 0  # windows that were there before this command: an append's

    def make(self, target: Path, progress: Progress, clock: _Clock) -> IngestReport:
        """Read, fold, write and publish."""
        self._run(progress)
        reader = self.reader
        manifest = self.writer.publish(
            creator=creator(),
            model=reader.identity,
            method=self.recipe.name,
            settings=self.recipe.settings(),
            dtype=reader.dtype_name,
            prompt=reader.prompt.to_json(),
            tokens=len(self.tokens.ids),
            tokenizer_engine=self.tokens.engine,
            window_tokens=self.windows.most,
            sources=_source_entries(self.document),
        )
        identity = reader.identity
        row = 2 * identity.layers * identity.kv_heads * identity.head_dim
        return IngestReport(
            store=str(target),
            sources=_source_reports(self.document),
            model=identity.id,
            method=self.recipe.name,
            tokens=len(self.tokens.ids),
            windows=len(self.windows),
            window_tokens=self.windows.most,
            spans=manifest.spans,
            anchors=manifest.anchors,
            store_bytes=sum(f.stat().st_size for f in target.rglob("*") if f.is_file()),
            full_kv_bytes=row * len(self.tokens.ids) * reader.dtype.itemsize,
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

    def _run(self, progress: Progress) -> None:
        import torch

        self.writer.put_document(self._document_tensors())
        known = self.windows.bounds[self.kept]
        progress.start("reading", len(self.tokens.ids) - known, "tokens")
        at = time.perf_counter()
        prefix = self.reader.prefix()
        self.prefill_s += time.perf_counter() - at
        sides = self._known_sides()
        for index in range(self.kept, len(self.windows)):
            start, end = self.windows.bounds[index], self.windows.bounds[index + 1]
            if self.writer.window_done(index) and sides is not None:
                self.resumed += end - start
                progress.advance(end - start)
                continue
            chunks = self._read(index, prefix, progress)
            at = time.perf_counter()
            with torch.inference_mode():
                sides = self._fold(index, chunks, prefix, sides)
            self.compress_s += time.perf_counter() - at

    def _read(self, index: int, prefix: Any, progress: Progress) -> list[Chunk]:
        """All chunks of a window, those of an earlier run first; each is on disk when done."""
        start, end = self.windows.bounds[index], self.windows.bounds[index + 1]
        chunks = [_unpack_chunk(tensors) for tensors in self.writer.chunks(index)]
        for chunk in chunks:
            self.resumed += len(chunk.surprisal)
            progress.advance(len(chunk.surprisal))
        at = time.perf_counter()
        ids = self.tokens.ids[start:end].tolist()
        for chunk in self.reader.read_window(
            ids, prefix, self.chunk_tokens, chunks.copy(), self.recipe.observe
        ):
            chunks.append(chunk)
            if chunk.start + len(chunk.surprisal) < len(ids):
                self.writer.put_chunk(index, len(chunks) - 1, _pack_chunk(chunk))
            progress.advance(len(chunk.surprisal))
        self.prefill_s += time.perf_counter() - at
        return chunks

    def _fold(
        self, index: int, chunks: list[Chunk], prefix: Any, sides: list[Any] | None
    ) -> list[Any]:
        """Fold one window layer by layer and write it; the first one also makes the sides."""
        import torch

        from engine.compression import encode
        from engine.compression.codecs.layer_basis import of_document
        from engine.compression.spans import ANCHOR
        from engine.store.manifest import WindowEntry
        from engine.store.schema import is_finite

        start, end = self.windows.bounds[index], self.windows.bounds[index + 1]
        surprisal = torch.cat([chunk.surprisal for chunk in chunks])
        pieces = self._pieces(start, end)
        observe = self.recipe.observe
        near = (
            torch.cat([chunk.near for chunk in chunks if chunk.near is not None])[
                :, : observe.reach
            ]
            if observe.reach
            else None
        )
        last = index + 1 == len(self.windows)
        spans = encode.segment(self.recipe, surprisal, pieces, last=last, near=near)
        device: dict[str, Any] = {
            "bounds": spans.bounds.to(torch.int32),
            "kind": spans.kind,
            "surprisal": surprisal.half(),
        }
        host: dict[str, Any] = {}
        new_sides = []
        if sides is None:
            learnt = []
            if self.recipe.weighs_keys:
                ids = self.tokens.ids[start:end].tolist()
                learnt = self.reader.query_statistics(ids, prefix, chunks)
            layers = (_rows(chunks, layer) for layer in range(self.reader.layers))
            total = len(self.tokens.ids)
            given = encode.prepare(self.recipe, layers, learnt, self.trained, total)
        for layer in range(self.reader.layers):
            k, v = _rows(chunks, layer)
            for chunk in chunks:  # a layer's rows are not needed again
                chunk.k[layer] = chunk.v[layer] = k[:, :0]
            queries = None
            if observe.rows:
                queries = torch.cat([chunk.queries[layer] for chunk in chunks], 1)
                queries = queries[:, -observe.rows :]
            trained = of_document(self.trained[layer]) if self.trained else {}
            if sides is None:
                known = given[layer]
                if self.given:
                    known = replace(known, calibrated=self.given[layer])
                side = encode.fit(self.recipe, k, v, surprisal, spans, known)
                new_sides.append(side)
            else:
                side = sides[layer]
            folded = encode.compress_layer(
                self.recipe, k, v, surprisal, spans, side | trained, queries
            )
            if not is_finite({**side, **folded.device}):
                raise ReaderError(
                    f"the keys and values of layer {layer} are no numbers that a store can hold; "
                    "read with another --dtype, or another model"
                )
            device |= {f"{layer}.{name}": t for name, t in folded.device.items()}
            host[f"{layer}.codes"] = folded.records.payload
            host[f"{layer}.offsets"] = folded.records.offsets
        if sides is None:
            kept = new_sides if self.copied else [of_document(side) for side in new_sides]
            self.writer.put_shared(_pack_shared(kept, prefix))
            sides = new_sides
        anchors = int((spans.kind == ANCHOR).sum())
        entry = WindowEntry(start, end, len(spans.kind), anchors)
        self.writer.put_window(index, device, host, entry)
        return sides

    def _known_sides(self) -> list[Any] | None:
        from engine.compression.codecs.layer_basis import borrow
        from engine.compression.encode import sides_of

        shared = self.writer.shared()
        if shared is None:
            return None
        sides = sides_of(shared, self.reader.layers)
        trained = self.trained or [{} for _ in sides]
        return [borrow(side, own) for side, own in zip(sides, trained, strict=True)]

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

    def _document_tensors(self) -> dict[str, Any]:
        import numpy as np

        texts = {
            f"text.{i}": np.frombuffer(source.text.encode("utf-8", "surrogatepass"), dtype=np.uint8)
            for i, source in enumerate(self.document.sources)
        }
        tokens = self.tokens
        return {
            "ids": tokens.ids,
            "starts": tokens.starts,
            "ends": tokens.ends,
            "source": tokens.source,
            **texts,
        }


# ---------------------------------------------------------------------------- routers


def routed(
    recipe: Method, asked: str, folder: Path, reader: Reader, progress: Progress
) -> tuple[Method, list[Any]]:
    """The recipe with its trained router, if there is one, and what that knows of each layer.

    A router that was not asked for is used only where it is known to find more.

    Raises:
        RouterError: the file asked for is no router, another model's, or of no use to the method.
    """
    from engine.compression.routers import router_file

    trained, remark = router_file.find(asked, folder, reader.identity)
    if remark:
        progress.note(remark)
    if trained is None or not (asked or trained.pays(recipe.router)):
        return recipe, []
    if asked:
        _check_use(trained, recipe, asked)
    found = with_router(recipe, trained)
    return (recipe, []) if found == recipe else (found, trained.layers)


def _check_use(trained: TrainedRouter, recipe: Method, file: str) -> None:
    """Refuse a router of which a method makes nothing."""
    if with_router(recipe, trained) == recipe:
        raise RouterError(f"{file} holds no router for method '{recipe.name}'")


def _learnt_before(
    target: Path, recipe: Method, shared: Any, asked: str, folder: Path, reader: Reader
) -> list[Any]:
    """What the router that a store was made with knows of each layer; empty if it had none, or
    the store keeps what it needs of it.

    Raises:
        RouterError: the router at hand is not that one.
    """
    from engine.compression.codecs.layer_basis import lacks_bases
    from engine.compression.encode import sides_of
    from engine.compression.routers import router_file
    from engine.compression.routers.span_zoom import Learnt
    from engine.memory.open import router_of

    used = router_of(recipe)
    if not used and asked not in ("", router_file.NONE):
        raise RouterError(f"{target} is routed without training; --router cannot change that")
    acts = isinstance(recipe.router, Learnt)
    if not used or not (asked or acts or any(map(lacks_bases, sides_of(shared, reader.layers)))):
        return []
    trained, _ = router_file.find(asked, folder, reader.identity)
    if trained is None or trained.fingerprint != used:
        raise RouterError(
            f"{target} was made with the router {used[:8]}; name that file with --router"
        )
    return trained.layers


# ---------------------------------------------------------------------------- windows


def longest_window(config: Any, asked: int) -> int:
    """Document tokens per context: what was asked, what the reader reads well, or what fits.

    Raises:
        BudgetError: asked for more than the model's positions hold.
    """
    room = min(ROOM, config.max_position_embeddings // 4)
    most = int(config.max_position_embeddings - room)
    if asked < 0 or asked > most:
        raise BudgetError(
            f"--window {asked}: this model holds at most {most} document tokens beside a question"
        )
    return asked or min(most, int(getattr(config, "sekv_window", 0)) or most)


def cut_windows(document: Document, tokens: Tokens, most: int) -> Windows:
    """Cut a document that is longer than one window into windows of nearly equal length.

    A cut moves back, by at most an eighth of a window, to the end of a paragraph, else of a
    sentence, so that a statement is not read in two halves.
    """
    n = len(tokens.ids)
    bounds = [0]
    while n - bounds[-1] > most:
        start = bounds[-1]
        left = n - start
        target = start + min(most, -(-left // -(-left // most)) + most // 16)
        bounds.append(_good_cut(document, tokens, target, max(1, most // 8)))
    bounds.append(n)
    return Windows(tuple(bounds), most)


def _good_cut(document: Document, tokens: Tokens, target: int, reach: int) -> int:
    """The last token position in (target - reach, target] that follows an end of text."""
    best, found = 0, target
    for position in range(target, target - reach, -1):
        source = int(tokens.source[position])
        if int(tokens.source[position - 1]) != source:
            return position
        text = document.sources[source].text
        at = int(tokens.starts[position])
        before = text[max(0, at - 3) : at].rstrip(" ")
        here = text[at : at + 2]
        rank = 0
        if before.endswith("\n\n") or here.startswith("\n\n"):
            rank = 3
        elif before.endswith((".", "!", "?", '."', ".'", ".”")) and here[:1].isspace():
            rank = 2
        elif before.endswith("\n"):
            rank = 1
        if rank > best:
            best, found = rank, position
            if rank == 3:
                break
    return found


# ---------------------------------------------------------------------------- details


def default_target(paths: Sequence[str]) -> Path:
    """`<first source's stem>.sekv` in the current folder; "stdin.sekv" for "-"."""
    if not paths:
        raise DocumentError("no source given; name a file, or - for standard input")
    stem = "stdin" if paths[0] == "-" else Path(paths[0]).stem
    return Path(f"{stem}.sekv")


def creator() -> str:
    """Program and version, as manifests record it."""
    try:
        return f"sekv {version('sekv')}"
    except PackageNotFoundError:
        return "sekv (not installed)"


def _joined(first: Any, second: Any) -> Any:
    """Two integer tables one after the other, of the first's dtype."""
    import numpy as np

    return np.concatenate([first, second]).astype(first.dtype)


def _load(
    paths: Sequence[str], options: IngestOptions, progress: Progress, stdin: BinaryIO | None
) -> Document:
    from engine.documents import load

    document = load(
        paths, pages=options.pages or None, password=options.password or None, stdin=stdin
    )
    for source in document.sources:
        for note in source.notes:
            progress.note(f"{source.path}: {note}")
    return document


def _job(
    document: Document, windows: Windows, reader: Reader, recipe: Method, options: IngestOptions
) -> dict[str, Any]:
    """What makes two runs the same work: another chunk size or device is another job, because
    it may change the last bits."""
    return {
        "creator": creator(),
        "sources": [[s.path, s.sha256, len(s.text)] for s in document.sources],
        "pages": options.pages,
        "windows": list(windows.bounds),
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


def _rows(chunks: list[Chunk], layer: int) -> tuple[Any, Any]:
    """k, v [Hkv, n, D] of a layer of all chunks, on the CPU."""
    import torch

    k = torch.cat([chunk.k[layer] for chunk in chunks], 1)
    v = torch.cat([chunk.v[layer] for chunk in chunks], 1)
    return k.cpu(), v.cpu()


def _pack_chunk(chunk: Chunk) -> dict[str, Any]:
    import torch

    tensors: dict[str, Any] = {
        "start": torch.tensor([chunk.start]),
        "surprisal": chunk.surprisal,
        "hidden": chunk.hidden.cpu().contiguous(),
    }
    for layer, (k, v) in enumerate(zip(chunk.k, chunk.v, strict=True)):
        tensors |= {f"{layer}.k": k.cpu().contiguous(), f"{layer}.v": v.cpu().contiguous()}
    tensors |= {f"{layer}.queries": q.contiguous() for layer, q in enumerate(chunk.queries)}
    if chunk.near is not None:
        tensors["near"] = chunk.near
    return tensors


def _unpack_chunk(tensors: dict[str, Any]) -> Chunk:
    from engine.models.hf import Chunk

    layers = sum(name.endswith(".k") for name in tensors)
    return Chunk(
        int(tensors["start"][0]),
        [tensors[f"{layer}.k"] for layer in range(layers)],
        [tensors[f"{layer}.v"] for layer in range(layers)],
        tensors["surprisal"],
        tensors["hidden"],
        [tensors[f"{layer}.queries"] for layer in range(layers) if f"{layer}.queries" in tensors],
        tensors.get("near"),
    )


def _pack_shared(sides: list[Any], prefix: Any) -> dict[str, Any]:
    tensors: dict[str, Any] = {}
    for layer, (side, (k, v)) in enumerate(zip(sides, prefix, strict=True)):
        tensors |= {f"{layer}.{name}": t.contiguous() for name, t in side.items()}
        tensors[f"{layer}.prefix_k"] = k.cpu().contiguous()
        tensors[f"{layer}.prefix_v"] = v.cpu().contiguous()
    return tensors


def _source_entries(document: Document) -> tuple[Any, ...]:
    from engine.store.manifest import SourceEntry

    return tuple(
        SourceEntry(
            path=s.path,
            kind=s.kind,
            sha256=s.sha256,
            chars=len(s.text),
            pages=tuple((page.label, page.start) for page in s.pages),
            notes=tuple(s.notes),
        )
        for s in document.sources
    )


def _source_reports(document: Document) -> tuple[SourceReport, ...]:
    return tuple(
        SourceReport(s.path, len(s.pages), len(s.text), s.sha256) for s in document.sources
    )
