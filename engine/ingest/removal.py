"""Use case: one source of several is removed from a store.

A window with tokens of that source alone goes; one without any stays, byte for byte, and is only
numbered and placed anew. A window that had tokens of it and of others is one that nobody has read:
the rows of the others were computed behind what is removed. What all windows share stays as it is,
since the windows that stay are coded in it. Where none can stay, the rest is read anew from the
store's own text, to the bytes of an ingest without that source. Nothing of its text is left, but
for bases that were fitted to its first window among others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from engine.errors import DocumentError, RouterError, StoreError
from engine.ingest.build import StoreBuild, creator, document_tensors, job_of
from engine.ingest.stored import Stored, method_of
from engine.ingest.trained_router import learnt_before
from engine.ingest.windows import Windows, cut_windows
from engine.object_storage import Address
from engine.store.library import sources_named
from engine.store.manifest import Manifest, WindowEntry
from engine.store.writer import StoreWriter
from engine.types import IngestOptions, Progress, Removal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.documents import Document, Source
    from engine.documents.tokens import Tokens
    from engine.models.reader import Reader
    from engine.store.manifest import SourceEntry


@dataclass(frozen=True)
class _Rest:
    """A store without a source, not yet written. kept: as `StoreWriter.reduce` takes it.
    unread: the other windows, by their new number."""

    document: Document
    entries: tuple[SourceEntry, ...]
    tokens: Tokens
    kept: dict[int, tuple[int, WindowEntry]]
    unread: list[tuple[int, WindowEntry]]


def remove_source(
    target: Address, name: str, progress: Progress, reader: Reader | None = None
) -> Removal:
    """Remove a source from a store, which stays as it is until the smaller one is complete.

    Args:
        name: the source's path as the store has it (`sekv inspect`), or the end of it.
        reader: the store's model, where it is loaded; it is loaded only if no window can stay.
    Raises:
        DocumentError: no source or several have this name, or it is the only one.
        StoreError: there is no store, it is damaged, another process is writing it, or the disk
            refuses.
        ObjectStorageError: its object store cannot be reached or refuses.
        SekvError: all is to be read anew, and the model cannot be had.
    """
    stored = Stored.at(target)
    base = stored.manifest
    number = _find(base.sources, name, target)
    rest = _without(number, base, stored.sources, stored.tokens)
    if len(rest.tokens.ids) < 2:
        raise DocumentError(f"{target} would hold hardly any text; sekv rm {target} removes it all")
    if rest.kept:
        manifest = _reduce(target, base, number, rest)
    else:
        manifest = _read_anew(target, base, stored.shared, rest, progress, reader)
    return Removal(
        store=str(target),
        removed=base.sources[number].path,
        sources=tuple(entry.path for entry in rest.entries),
        tokens=manifest.tokens,
        unread=manifest.tokens - manifest.tokens_read,
        read=0 if rest.kept else manifest.tokens,
    )


def _find(sources: Sequence[SourceEntry], name: str, target: Address) -> int:
    """The number of the source that a name means."""
    paths = [source.path for source in sources]
    found = sources_named(paths, name)
    if not found:
        raise DocumentError(f"{target} has no source {name}; it has {', '.join(paths)}")
    if len(found) > 1:
        same = ", ".join(paths[at] for at in found)
        raise DocumentError(f"{target} has {len(found)} sources of that name: {same}")
    if len(sources) == 1:
        raise DocumentError(
            f"{name} is the only source of {target}; sekv rm {target} removes the store"
        )
    return found[0]


def _without(number: int, base: Manifest, sources: Sequence[Source], tokens: Tokens) -> _Rest:
    """What is left of a store without one of its sources."""
    from engine.documents import Document
    from engine.documents.tokens import Tokens

    stays = tokens.source != number
    left = Tokens(
        ids=tokens.ids[stays],
        starts=tokens.starts[stays],
        ends=tokens.ends[stays],
        source=(tokens.source - (tokens.source > number))[stays].astype(tokens.source.dtype),
        engine=tokens.engine,
    )
    kept: dict[int, tuple[int, WindowEntry]] = {}
    unread: list[tuple[int, WindowEntry]] = []
    start = 0
    for index, window in enumerate(base.windows):
        size = int(stays[window.start : window.end].sum())
        if not size:
            continue
        place = len(kept) + len(unread)
        if size == window.end - window.start and index not in base.unread:
            kept[index] = place, replace(window, start=start, end=start + size)
        else:
            unread.append((place, WindowEntry(start, start + size, 0, 0)))
        start += size
    others = [at for at in range(len(sources)) if at != number]
    document = Document(tuple(sources[at] for at in others))
    return _Rest(document, tuple(base.sources[at] for at in others), left, kept, unread)


def _reduce(target: Address, base: Manifest, number: int, rest: _Rest) -> Manifest:
    """Write the smaller store from windows that stay."""
    job: dict[str, Any] = {
        "creator": creator(),
        "without": [number, base.sources[number].path, base.sources[number].sha256],
    }
    with StoreWriter.reduce(target, job, rest.kept) as writer:
        if writer.base != base:
            raise StoreError(f"{target} was replaced meanwhile: run the same command again")
        writer.put_document(document_tensors(rest.document, rest.tokens))
        return writer.publish(
            creator=creator(),
            model=base.model,
            method=base.method,
            settings=base.settings,
            dtype=base.dtype,
            prompt=base.prompt,
            tokens=len(rest.tokens.ids),
            tokenizer_engine=base.tokenizer_engine,
            window_tokens=base.window_tokens,
            context=base.context,
            sources=rest.entries,
            unread=rest.unread,
        )


def _read_anew(
    target: Address,
    base: Manifest,
    shared: Any,
    rest: _Rest,
    progress: Progress,
    reader: Reader | None,
) -> Manifest:
    """Read what is left as an ingest of it would, from the store's own text."""
    from engine.models import compresskv_heads
    from engine.models.locate import of_store
    from engine.models.reader import load_reader

    located = of_store(target, base.model, "", progress=progress)
    reader = reader or load_reader(located, dtype=base.dtype, progress=progress)
    recipe = method_of(target, base, shared, reader, "")
    trained = learnt_before(target, recipe, shared, "", located.folder, reader)
    if recipe.trained_by and not trained:
        raise RouterError(
            f"every window of {target} has to be read again, and it keeps a router whose file is "
            "not at hand: ingest the other sources with --router and --overwrite"
        )
    calibrated = compresskv_heads.needed(recipe, located.folder, "", reader.identity)
    cuts = cut_windows(rest.document, rest.tokens, base.window_tokens)
    windows = Windows(cuts.bounds, base.window_tokens, base.context)
    options = IngestOptions()
    job = job_of(rest.document, windows, reader, recipe, options)
    with StoreWriter.begin(target, job, overwrite=True) as writer:
        work = StoreBuild(
            recipe, reader, rest.document, rest.tokens, windows, writer, options.chunk_tokens
        )
        work.trained, work.entries = trained, rest.entries
        work.calibrated = calibrated.by_layer() if calibrated else []
        work.run(progress)
        return work.publish()
