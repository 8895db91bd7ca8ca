"""Reads windows that a partly read store lacks: those that a question needs, or all of them.

A store keeps text and tokens of the whole document, so no source is needed. Who reads holds the
store's lock; another process waits and finds the windows there.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from engine.errors import OptionError, StoreBusyError, StoreError
from engine.ingest.build import StoreBuild, job_of
from engine.ingest.stored import Stored, method_of
from engine.ingest.trained_router import learnt_before
from engine.ingest.windows import Windows
from engine.object_storage import Address
from engine.store.manifest import Manifest
from engine.store.reader import read_manifest
from engine.store.writer import StoreWriter
from engine.types import CHUNK_TOKENS, IngestOptions, Progress

if TYPE_CHECKING:
    from engine.models.chunked import Stop
    from engine.models.reader import Reader

WAIT_SECONDS = 0.1
"""Between two looks at a store that another process is writing."""


def read_windows(
    target: Address,
    wanted: Sequence[int],
    reader: Reader,
    progress: Progress,
    *,
    chunk_tokens: int = CHUNK_TOKENS,
    router: str = "",
    stop: Stop | None = None,
    wait: bool = True,
) -> StoreBuild | None:
    """Read those of the wanted windows that nobody has read, and publish the fuller store.

    Windows that a run which was killed left finished are published with them.

    Args:
        wanted: numbers of windows.  chunk_tokens: of one prefill forward.
        router: the file of the router that the store was made with, where it lies elsewhere now.
        wait: for another process that is writing; it is told once.
    Returns:
        what was done; None where nothing was missing.
    Raises:
        StoppedError: `stop` said so; finished chunks stay for the next reading.
        StoreBusyError: another process is writing, and nobody waits.
        StoreError: another model's store, one that is damaged, or that was replaced meanwhile.
    """
    stored = Stored.at(target)
    base, tokens = stored.manifest, stored.tokens
    if reader.dtype_name != base.dtype:
        raise OptionError("dtype", f"{target} is read in {base.dtype}; leave it out")
    recipe = method_of(target, base, stored.shared, reader, router)
    router = router if recipe.trained_by else ""
    trained = learnt_before(target, recipe, stored.shared, router, reader.located.folder, reader)

    from engine.documents import Document

    bounds = (*(window.start for window in base.windows), base.tokens)
    document = Document(stored.sources)
    windows = Windows(bounds, base.window_tokens, base.context)
    job = job_of(document, windows, reader, recipe, IngestOptions(chunk_tokens=chunk_tokens))
    said = False
    while set(wanted) & set(read_manifest(target).unread):
        try:
            with StoreWriter.append(target, job) as writer:
                _check_same(target, base, writer.base)
                work = StoreBuild(recipe, reader, document, tokens, windows, writer, chunk_tokens)
                work.trained, work.entries = trained, base.sources
                work.wanted, work.stop = sorted(wanted), stop
                work.run(progress)
                work.publish()
                return work
        except StoreBusyError as error:
            if not wait:
                raise
            if not said:
                progress.note(f"{error}; waiting")
            said = True
            _wait(stop)
    return None


def _check_same(target: Address, base: Manifest, now: Manifest | None) -> None:
    """Whether a store is still of the document that its windows are read of."""
    if now is None or (now.sources, now.tokens) != (base.sources, base.tokens):
        raise StoreError(f"{target} was replaced while it was open: open it again")


def _wait(stop: Stop | None) -> None:
    from engine.models.chunked import check

    check(stop)
    time.sleep(WAIT_SECONDS)
