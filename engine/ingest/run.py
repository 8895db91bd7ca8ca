"""Use cases: sources in, a store out; what that would cost; more sources into a store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from engine.compression.methods import Method, named
from engine.errors import (
    BudgetError,
    DocumentError,
    ReaderError,
    StoreError,
    StoreMismatchError,
)
from engine.ingest import renewal
from engine.ingest.build import Clock, StoreBuild, creator, source_reports
from engine.ingest.sources import check_named_once, check_new, entries, remarks
from engine.ingest.trained_router import check_use, learnt_before, routed
from engine.ingest.windows import Windows, cut_windows, longest_window
from engine.types import IngestOptions, IngestReport, Plan, Progress

if TYPE_CHECKING:
    from engine.compression.params import Tensors
    from engine.documents import Document, Source
    from engine.documents.tokens import Tokens
    from engine.models.reader import Reader
    from engine.store.manifest import Manifest
    from engine.store.reader import Store


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
    from engine.models import load
    from engine.models.locate import locate

    recipe = named(options.method)
    document = _load(paths, options, progress, stdin)
    located = locate(
        options.model, revision=options.revision, offline=options.offline, progress=progress
    )
    config = load.load_config(located.folder)
    load.check_supported(config)
    if options.router not in ("", router_file.NONE):
        # Whose it is shows when the weights are read.
        check_use(router_file.load(Path(options.router)), recipe, options.router)
    tokenizer = load.load_tokenizer(located.folder)
    tokens = tokenize(document, tokenizer)
    shape = config.get_text_config()
    windows = cut_windows(document, tokens, longest_window(shape, options.window, located.window))
    heads = getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads
    size = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    width = (
        4
        if load.pick_dtype(options.dtype, load.pick_device(options.device), config).itemsize == 4
        else 2
    )
    rows = len(tokens.ids) * shape.num_hidden_layers * heads * size * 2
    store, device = recipe.expected_shares(size)
    return Plan(
        sources=source_reports(document),
        model=located.name,
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

    clock = Clock()
    recipe = named(options.method)
    check_chunk(options)
    target = target or default_target(paths)
    if renewal.is_current(paths, target, options):
        return renewal.report(target)
    options = replace(options, overwrite=options.overwrite or options.update)
    StoreWriter.check(target, overwrite=options.overwrite)
    document = _load(paths, options, progress, stdin)
    clock.lap("read_s")

    from engine.documents.tokens import tokenize
    from engine.models import compresskv_heads, load
    from engine.models.locate import locate
    from engine.models.reader import load_reader

    located = locate(
        options.model, revision=options.revision, offline=options.offline, progress=progress
    )
    config = load.load_config(located.folder)
    load.check_supported(config)
    tokenizer = reader.tokenizer if reader else load.load_tokenizer(located.folder)
    clock.lap("load_s")  # libraries and tokenizer: seconds, whatever the text
    tokens = tokenize(document, tokenizer)
    clock.lap("tokenize_s")
    windows = cut_windows(
        document,
        tokens,
        longest_window(config.get_text_config(), options.window, located.window),
    )
    if len(tokens.ids) < 2:
        raise DocumentError(f"{paths[0]}: hardly any text; nothing to read")
    reader = reader or load_reader(
        located,
        device=options.device,
        dtype=options.dtype,
        tokenizer=tokenizer,
        progress=progress,
    )
    _measure_heads(reader, progress)
    calibrated = compresskv_heads.needed(recipe, located.folder, options.heads, reader.identity)
    recipe, trained = routed(recipe, options.router, located.folder, reader, progress)
    job = _job(document, windows, reader, recipe, options)
    if calibrated:
        job["heads"] = calibrated.heads
    with StoreWriter.begin(target, job, overwrite=options.overwrite) as writer:
        work = StoreBuild(recipe, reader, document, tokens, windows, writer, options.chunk_tokens)
        work.calibrated = calibrated.by_layer() if calibrated else []
        work.trained, work.copied = trained, bool(options.router)
        work.entries = entries(document.sources, target)
        return work.make(target, progress, clock)


def check_chunk(options: IngestOptions) -> None:
    """Whether a prefill step has tokens. Raises BudgetError."""
    if options.chunk_tokens < 1:
        raise BudgetError("--chunk-tokens must be at least 1")


def load_for(options: IngestOptions, progress: Progress) -> Reader:
    """The model that these options name, loaded for the documents that `ingest` is given.

    Raises:
        SekvError: no document can be read with these options: what `ingest` would refuse of each.
    """
    from engine.models import load
    from engine.models.locate import locate
    from engine.models.reader import load_reader

    recipe = named(options.method)
    check_chunk(options)
    located = locate(
        options.model, revision=options.revision, offline=options.offline, progress=progress
    )
    config = load.load_config(located.folder)
    load.check_supported(config)
    longest_window(config.get_text_config(), options.window, located.window)
    reader = load_reader(located, device=options.device, dtype=options.dtype, progress=progress)
    routed(recipe, options.router, located.folder, reader, progress)
    return reader


def _measure_heads(reader: Reader, progress: Progress) -> None:
    """Learn which heads of a model look at evidence, when it first reads a document; without,
    citations weigh what all heads copy."""
    from engine.models import evidence_heads

    if evidence_heads.find(reader.identity) is None:
        progress.start("finding the heads that look at evidence, once for this model", 0, "")
        try:
            evidence_heads.ensure(reader)
        except ReaderError as error:
            progress.note(str(error))


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
    Running headers are kept if the store's are, or `options` says so.

    Raises:
        SekvError: one line that says what is wrong; the store is then as it was.
    """
    clock = Clock()
    from engine.documents import Document
    from engine.documents.tokens import tokenize
    from engine.documents.types import HEADERS_KEPT
    from engine.models.locate import of_store
    from engine.models.reader import load_reader
    from engine.store.reader import Store
    from engine.store.writer import StoreWriter

    with Store.open(target) as store:
        base, table, shared = store.manifest, store.document(), store.shared()
        old = _stored_sources(store)
    if any(HEADERS_KEPT in entry.notes for entry in base.sources):
        options = replace(options, keep_headers=True)
    new = _load(paths, options, progress, stdin, old)
    clock.lap("read_s")
    located = of_store(
        target, base.model, options.model, offline=options.offline, progress=progress
    )
    reader = reader or load_reader(
        located, device=options.device, dtype=base.dtype, progress=progress
    )
    recipe = _method_of(target, base, shared, reader, options.router)
    clock.lap("load_s")
    added = tokenize(new, reader.tokenizer)
    clock.lap("tokenize_s")
    cuts = cut_windows(new, added, base.window_tokens)
    bounds = (*(w.start for w in base.windows), *(base.tokens + b for b in cuts.bounds))
    tokens, windows = _appended(table, len(old), added), Windows(bounds, base.window_tokens)
    document = Document((*old, *new.sources))
    trained = learnt_before(target, recipe, shared, options.router, located.folder, reader)
    job = _job(document, windows, reader, recipe, options)
    with StoreWriter.append(target, job) as writer:
        work = StoreBuild(recipe, reader, document, tokens, windows, writer, options.chunk_tokens)
        work.trained = trained
        work.kept = len(base.windows)
        work.entries = (*base.sources, *entries(new.sources, target))
        return work.make(target, progress, clock)


def _stored_sources(store: Store) -> tuple[Source, ...]:
    """The sources of a store as they were read."""
    from engine.documents import Page, Source

    return tuple(
        Source(
            path=entry.path,
            kind=entry.kind,
            text=store.text(index),
            pages=tuple(
                Page(label, start, entry.sheet(page))
                for page, (label, start) in enumerate(entry.pages)
            ),
            sha256=entry.sha256,
            notes=entry.notes,
        )
        for index, entry in enumerate(store.manifest.sources)
    )


def _method_of(
    target: Path, manifest: Manifest, shared: Tensors, reader: Reader, router: str
) -> Method:
    """The method of a store that this reader can go on with.

    Raises:
        StoreError: the store belongs to another reader, or is damaged.
        RouterError: the router that it was made with is not at hand.
    """
    from engine.memory.open import in_its_bases
    from engine.store.library import compare_identity
    from engine.store.schema import Schema, recipe_of

    dtypes = manifest.dtype, reader.dtype_name
    different = compare_identity(manifest.model, reader.identity, dtypes)
    if different:
        raise StoreMismatchError(f"{target}: {different}")
    try:
        recipe = recipe_of(manifest)
        schema = Schema.of(manifest, recipe)
        schema.check_shared(in_its_bases(shared, recipe, reader, router))
    except StoreError as error:
        raise type(error)(f"{target}: {error}") from None
    return recipe


def default_target(paths: Sequence[str]) -> Path:
    """`<first source's stem>.sekv` in the current folder; "stdin.sekv" for "-"."""
    if not paths:
        raise DocumentError("no source given; name a file, or - for standard input")
    stem = "stdin" if paths[0] == "-" else Path(paths[0]).stem
    return Path(f"{stem}.sekv")


def _appended(table: Mapping[str, Any], sources: int, added: Tokens) -> Tokens:
    """The tokens of a store, which has so many sources, and behind them those of others.

    table: integers [N] by name, see `Store.document`.
    """
    import numpy as np

    from engine.documents.tokens import Tokens

    more = {
        "ids": added.ids,
        "starts": added.starts,
        "ends": added.ends,
        "source": added.source + sources,
    }
    joined = {
        name: np.concatenate([table[name], column]).astype(table[name].dtype)
        for name, column in more.items()
    }
    return Tokens(**joined, engine=added.engine)


def _load(
    paths: Sequence[str],
    options: IngestOptions,
    progress: Progress,
    stdin: BinaryIO | None,
    old: Sequence[Source] = (),
) -> Document:
    from engine.documents import load

    check_named_once(paths)
    document = load(
        paths,
        pages=options.pages or None,
        password=options.password or None,
        keep_headers=options.keep_headers,
        stdin=stdin,
    )
    check_new(document.sources, old)
    for source in document.sources:
        for note in source.notes:
            progress.note(f"{source.path}: {note}")
    for remark in remarks(document.sources, old):
        progress.note(remark)
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
        "keep_headers": options.keep_headers,
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
