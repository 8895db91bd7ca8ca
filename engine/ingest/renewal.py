"""Whether a store still holds its sources as they are, and what is said where one is in the way."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from engine.errors import StoreError, StoreExistsError
from engine.ingest.sources import STDIN
from engine.object_storage import Address, ObjectUrl, is_url
from engine.store.glance import is_store
from engine.store.library import digest_of, place_of
from engine.store.reader import Store, read_manifest
from engine.store.upload import places_at
from engine.types import IngestReport, SourceReport

if TYPE_CHECKING:
    from engine.store.manifest import Manifest
    from engine.types import IngestOptions


def is_current(paths: Sequence[str], target: Address, options: IngestOptions) -> bool:
    """Whether `options.update` has nothing to do, as the store holds these sources as they are.

    Raises:
        StoreExistsError: there is a store of these sources, and the options say nothing of reading
            them again; or, under `options.update`, one of other sources.
    """
    if options.overwrite or not is_store(target):
        return False
    unfinished = any(path.exists() for path in places_at(target).leftovers)
    try:
        with Store.open(target) as store:
            manifest = store.manifest
    except StoreError:
        return False  # whoever writes there says what is in the way
    differ = changed(paths, target, manifest)
    if manifest.unread and differ == []:
        return False  # the rest is to be read
    if options.update:
        if differ is None:
            raise StoreExistsError(
                f"{target} is a store of other sources: choose another name with -o, or pass "
                "--overwrite to replace it"
            )
        return not differ
    if differ is None or unfinished:
        return False
    if differ:
        raise StoreExistsError(
            f"{differ[0]} changed since {target} was made: pass --update to read it anew"
        )
    raise StoreExistsError(
        f"{target} holds {paths[0]} as it is: ask it, or pass --overwrite to read it again"
    )


def partly_read(target: Address) -> Manifest | None:
    """The manifest of the store at `target` if windows of it are not read; None of any other.

    Raises:
        StoreError: there is a store, and it cannot be opened.
    """
    if not is_store(target):
        return None
    manifest = read_manifest(target)
    return manifest if manifest.unread else None


def report(target: Address) -> IngestReport:
    """What there is to say of a store that is up to date.

    Raises:
        StoreError: it cannot be read.
    """
    with Store.open(target) as store:
        manifest, size = store.manifest, store.size()
    model = manifest.model
    row = model.numbers_per_token
    return IngestReport(
        store=str(target),
        sources=tuple(
            SourceReport(s.path, len(s.pages), s.chars, s.sha256, s.notes) for s in manifest.sources
        ),
        model=model.id,
        method=manifest.method,
        tokens=manifest.tokens,
        windows=len(manifest.windows),
        window_tokens=manifest.window_tokens,
        spans=manifest.spans,
        anchors=manifest.anchors,
        store_bytes=size,
        full_kv_bytes=row * manifest.tokens * (4 if manifest.dtype == "float32" else 2),
        timing={},
        unchanged=True,
    )


def changed(paths: Sequence[str], target: Address, manifest: Manifest) -> list[str] | None:
    """Those of the sources that are not what was read; None where the store is of other sources."""
    if len(paths) != len(manifest.sources) or STDIN in paths:
        return None
    changed = []
    for path, entry in zip(paths, manifest.sources, strict=True):
        digest = digest_of(path)
        if digest == entry.sha256:
            continue
        if isinstance(target, ObjectUrl) or is_url(entry.path):
            if not digest or path != entry.path:
                return None
            changed.append(path)
            continue
        place = place_of(entry.path, entry.near, target)
        if not digest or os.path.realpath(place) != os.path.realpath(path):
            return None
        changed.append(path)
    return changed
