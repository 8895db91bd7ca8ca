"""A document that is asked before it is read: where its store is, and how it begins."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from engine.documents import load
from engine.errors import DocumentError, StoreBusyError, StoreExistsError
from engine.store.glance import is_store
from engine.store.library import sha256_of
from engine.store.reader import read_manifest

if TYPE_CHECKING:
    from engine.models.reader import Reader
    from engine.types import IngestOptions, Progress

WAIT_SECONDS = 0.1
"""Between two looks at a store that another process is beginning."""


def check_store_of(source: Path, store: Path) -> None:
    """Whether a store is of this document and no other.

    Raises:
        StoreExistsError: it is of something else, or of what the document was.
        StoreError: it cannot be opened.
    """
    sources = read_manifest(store).sources
    if [each.sha256 for each in sources] == [sha256_of(source)]:
        return
    if [Path(each.path).name for each in sources] == [source.name]:
        raise StoreExistsError(
            f"{source} is not what {store} was made of: it changed since, or is another file of "
            "that name; ingest it with --overwrite, or name another store with -o"
        )
    raise StoreExistsError(
        f"{store} is there and of other sources than {source}: ask it by its own name, or name "
        "another store with -o"
    )


def check_read_as(
    source: Path, store: Path, *, pages: str = "", window: int = 0, method: str = ""
) -> None:
    """Whether the store of a document was read as these options say; one left out agrees.

    Args:
        pages: as `documents.load` has them; the document is read for them.
        window: document tokens per context, 0 for what the model reads well.
    Raises:
        StoreExistsError: it was read in another way.
        DocumentError: the document has no such pages.
    """
    manifest = read_manifest(store)
    wanted = ""
    if method and method != manifest.method:
        wanted = f"by the method {manifest.method}, not {method}; leave --method out"
    elif window and window != manifest.window_tokens:
        wanted = f"in windows of {manifest.window_tokens}, not {window} tokens; leave --window out"
    elif pages:
        [entry] = manifest.sources
        [read] = load([str(source)], pages=pages).sources
        sheets = [entry.sheet(page) for page in range(len(entry.pages))]
        if sheets != [page.sheet for page in read.pages]:
            first, last = entry.pages[0][0], entry.pages[-1][0]
            wanted = f"with pages {first} to {last}, not --pages {pages}; leave --pages out"
    if wanted:
        raise StoreExistsError(f"{store} was read {wanted}, or name another store with -o")


def begin_unless_there(
    source: Path,
    store: Path,
    options: IngestOptions,
    progress: Progress,
    reader: Reader | None = None,
) -> Reader | None:
    """Have a store of the document, its first window read; None where it is there already.

    Of two processes that ask at once one begins it, and the other waits for that.

    Raises:
        SekvError: the document or the model cannot be read, or the store is of something else.
    """
    from engine.ingest import run

    if not source.is_file():
        raise DocumentError(f"{source} is no file; name a document")
    said = False
    while not is_store(store):
        try:
            reader = run.begin([str(source)], store, options, progress, reader)
        except StoreBusyError as error:
            if not said:
                progress.note(f"{error}; waiting")
            said = True
            time.sleep(WAIT_SECONDS)
        except StoreExistsError:
            if not is_store(store):
                raise
    check_store_of(source, store)
    return reader
