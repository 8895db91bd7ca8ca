"""Use cases: sources in, a store out; what that would cost; more sources into a store.

Importing it is cheap: a store in the way and a source that cannot be read are refused before torch
is imported.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from engine.errors import (
    BudgetError,
    DocumentError,
    ReaderError,
    StoreExistsError,
)
from engine.ingest import renewal
from engine.ingest.clock import Clock
from engine.ingest.sources import (
    check_named_once,
    check_new,
    default_target,
    entries,
    remarks,
)
from engine.ingest.windows import Windows, choose_windows, cut_windows, longest_window
from engine.object_storage import Address
from engine.store.reader import read_manifest, read_store
from engine.types import IngestOptions, IngestReport, ModelIdentity, Plan, Progress

if TYPE_CHECKING:
    from engine.compression.methods import Method
    from engine.documents import Document, Source
    from engine.documents.tokens import Tokens
    from engine.models.reader import Reader

TABLE_BYTES, WINDOW_BYTES = 16, 40_000
"""Of a store: the tables of a token (its id, its characters, its source), and what headers and the
manifest say of a window."""


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
    document = _load(paths, options, progress, stdin)

    from engine.compression.methods import CacheShape, named
    from engine.compression.routers import router_file
    from engine.documents.tokens import tokenize
    from engine.ingest.build import source_reports
    from engine.ingest.trained_router import check_use
    from engine.models import load
    from engine.models.expected_states import state_bytes
    from engine.models.identity import of_configuration
    from engine.models.locate import locate

    recipe = named(options.method)
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
    model = of_configuration(config)
    windows = choose_windows(document, tokens, config, options.window, located.window)
    remark_on_states(windows, model, progress)
    dtype = load.pick_dtype(options.dtype, load.pick_device(options.device), config)
    states = 0
    if model.state_layers:
        states = state_bytes(config, windows.longest, dtype)
    shape = CacheShape(len(model.memory_layers), model.kv_heads, model.head_dim)
    store, device = recipe.expected_bytes(shape, len(tokens.ids), len(windows))
    store += sum(len(source.text.encode("utf-8", "replace")) for source in document.sources)
    store += TABLE_BYTES * len(tokens.ids) + (WINDOW_BYTES + states) * len(windows)
    return Plan(
        sources=source_reports(document),
        model=located.name,
        method=recipe.name,
        tokens=len(tokens.ids),
        windows=len(windows),
        window_tokens=windows.most,
        full_kv_bytes=len(tokens.ids) * model.numbers_per_token * dtype.itemsize + states,
        estimated_store_bytes=store,
        estimated_device_bytes=device,
        state_bytes=states,
    )


def ingest(
    paths: Sequence[str],
    target: Address | None,
    options: IngestOptions,
    progress: Progress,
    stdin: BinaryIO | None = None,
    reader: Reader | None = None,
) -> IngestReport:
    """Read the sources into a store, or what is missing of it where it is partly read.

    Args:
        paths: files, or "-" for `stdin`.  target: None for `<first source's stem>.sekv`.
        reader: one already loaded for this model, when there is.
    Raises:
        SekvError: one line that says what is wrong. Nothing appears under the target's name
            unless it is complete; an interrupted run of the same job goes on where it stopped.
    """
    return _ingest(paths, target, options, progress, stdin, reader, whole=True)[0]


def begin(
    paths: Sequence[str],
    target: Address | None,
    options: IngestOptions,
    progress: Progress,
    reader: Reader | None = None,
) -> Reader | None:
    """Make a store of the sources of which only the first window is read, and give the model.

    What all windows share is learnt from the first, so it is always read first. Questions and
    `ingest` read the others (`on_demand`). Arguments and errors are those of `ingest`.
    """
    return _ingest(paths, target, options, progress, None, reader, whole=False)[1]


def _ingest(
    paths: Sequence[str],
    target: Address | None,
    options: IngestOptions,
    progress: Progress,
    stdin: BinaryIO | None,
    reader: Reader | None,
    *,
    whole: bool,
) -> tuple[IngestReport, Reader | None]:
    """The report of what was read, all windows or the first, and the model if it was loaded."""
    from engine.store.writer import StoreWriter

    clock = Clock()
    check_chunk(options)
    target = target or default_target(paths)
    if renewal.is_current(paths, target, options):
        return renewal.report(target), reader
    begun = None if options.overwrite or not whole else renewal.partly_read(target)
    if begun is not None and options.update and renewal.changed(paths, target, begun):
        begun = None
    if begun is None:
        options = replace(options, overwrite=options.overwrite or options.update)
        StoreWriter.check(target, overwrite=options.overwrite)
    document = _load(paths, options, progress, stdin)
    clock.lap("read_s")

    from engine.compression.methods import named
    from engine.documents.tokens import tokenize
    from engine.ingest import on_demand, parity
    from engine.ingest.build import StoreBuild, job_of
    from engine.ingest.trained_router import routed
    from engine.models import compresskv_heads, load
    from engine.models.locate import locate
    from engine.models.reader import load_reader

    recipe = named(options.method)
    located = locate(
        options.model, revision=options.revision, offline=options.offline, progress=progress
    )
    progress.start(f"loading {located.name}", 0, "")
    config = load.load_config(located.folder)
    load.check_supported(config)
    tokenizer = reader.tokenizer if reader else load.load_tokenizer(located.folder)
    clock.lap("load_s")  # libraries and tokenizer: seconds, whatever the text
    tokens = tokenize(document, tokenizer)
    clock.lap("tokenize_s")
    windows = choose_windows(document, tokens, config, options.window, located.window)
    if len(tokens.ids) < 2:
        raise DocumentError(
            f"{paths[0]}: hardly any text, so there is nothing to ask; name a longer document"
        )
    reader = reader or load_reader(
        located,
        device=options.device,
        dtype=options.dtype,
        tokenizer=tokenizer,
        progress=progress,
    )
    remark_on_states(windows, reader.identity, progress)
    parity.ensure(reader, progress)
    _measure_heads(reader, progress)
    calibrated = compresskv_heads.needed(recipe, located.folder, options.heads, reader.identity)
    recipe, trained = routed(recipe, options.router, located.folder, reader, progress)
    if begun is not None:
        _check_begun(target, tokens, windows.most, recipe, document)
        work = on_demand.read_windows(
            target,
            range(len(begun.windows)),
            reader,
            progress,
            chunk_tokens=options.chunk_tokens,
            router=options.router,
            wait=False,
        )
        if work is not None:
            return work.report(target, read_manifest(target), clock), reader
    job = job_of(document, windows, reader, recipe, options)
    if calibrated:
        job["heads"] = calibrated.heads
    with StoreWriter.begin(target, job, overwrite=options.overwrite) as writer:
        work = StoreBuild(recipe, reader, document, tokens, windows, writer, options.chunk_tokens)
        work.calibrated = calibrated.by_layer() if calibrated else []
        work.trained, work.copied = trained, bool(options.router)
        work.entries = entries(document.sources, target)
        if not whole:
            work.wanted = range(1)
        return work.make(target, progress, clock), reader


def _check_begun(
    target: Address, tokens: Tokens, window: int, recipe: Method, document: Document
) -> None:
    """Whether a partly read store is what this ingest would make.

    It is cut where it was cut: windows that stay when a source is removed are as they were.

    Args:
        window: tokens of a window.
    Raises:
        StoreExistsError: it is of another document, or read in another way.
    """
    begun, ids = read_store(target, lambda store: (store.manifest, store.document()["ids"]))
    known = [source.sha256 for source in begun.sources]
    differs = (
        ("of other sources, or of other pages", known != [s.sha256 for s in document.sources]),
        ("of other text, pages or model", ids.tolist() != tokens.ids.tolist()),
        ("in other windows", begun.window_tokens != window),
        ("by another method", begun.settings != json.loads(json.dumps(recipe.settings()))),
    )
    for how, different in differs:
        if different:
            raise StoreExistsError(
                f"{target} is there and partly read, but {how}: choose another name with -o, or "
                "pass --overwrite"
            )


def remark_on_states(windows: Windows, model: ModelIdentity, progress: Progress) -> None:
    """Say what windows mean for a model that has layers without full attention."""
    if len(windows) > 1 and model.state_layers:
        progress.note(
            f"{len(windows)} windows, of which a question sees the one with the best passage: "
            f"{len(model.state_layers)} of {model.layers} layers keep a state of one window"
        )


def check_chunk(options: IngestOptions) -> None:
    """Whether a prefill step has tokens. Raises BudgetError."""
    if options.chunk_tokens < 1:
        raise BudgetError("--chunk-tokens must be at least 1")


def load_for(options: IngestOptions, progress: Progress) -> Reader:
    """The model that these options name, loaded for the documents that `ingest` is given.

    Raises:
        SekvError: no document can be read with these options: what `ingest` would refuse of each.
    """
    from engine.attention.layer_states import positions
    from engine.compression.methods import named
    from engine.ingest.trained_router import routed
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
    longest_window(positions(config), options.window, located.window)
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
    target: Address,
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
    from engine.ingest.build import StoreBuild, job_of
    from engine.ingest.stored import Stored, method_of
    from engine.ingest.trained_router import learnt_before
    from engine.models.locate import of_store
    from engine.models.reader import load_reader
    from engine.store.writer import StoreWriter

    stored = Stored.at(target)
    base, shared, old = stored.manifest, stored.shared, stored.sources
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
    recipe = method_of(target, base, shared, reader, options.router)
    clock.lap("load_s")
    added = tokenize(new, reader.tokenizer)
    clock.lap("tokenize_s")
    cuts = cut_windows(new, added, base.window_tokens)
    bounds = (*(w.start for w in base.windows), *(base.tokens + b for b in cuts.bounds))
    tokens = _appended(stored.table, len(old), added)
    windows = Windows(bounds, base.window_tokens, base.context)
    document = Document((*old, *new.sources))
    trained = learnt_before(target, recipe, shared, options.router, located.folder, reader)
    job = job_of(document, windows, reader, recipe, options)
    with StoreWriter.append(target, job) as writer:
        work = StoreBuild(recipe, reader, document, tokens, windows, writer, options.chunk_tokens)
        work.trained = trained
        work.wanted = range(len(base.windows), len(windows))
        work.entries = (*base.sources, *entries(new.sources, target))
        return work.make(target, progress, clock)


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
