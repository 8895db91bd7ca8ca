"""sekv from Python: read documents into a store, open it, ask.

    from engine.api import ingest, open_store

    ingest("book.pdf", "book.sekv")
    with open_store("book.sekv") as book:
        print(book.ask("Who warned Jonathan Harker?").stated)

The command line is built on these functions. Importing this module is cheap; calling them imports
torch and loads the model, which is the default one where the options name none.

What is wrong with a document, a model, a store or an option is raised as a kind of `SekvError`: its
text says in one line what to do, its `code` ("store_missing", "budget", ...) stays the same when
the text changes. docs/cli.md lists the codes, `engine.errors` the kinds.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

from engine.answer import checks
from engine.errors import DocumentError, LibraryError, SekvError
from engine.ingest.sources import default_target
from engine.object_storage import Address, ObjectUrl, address, is_url
from engine.store import glance
from engine.store.folders import is_library
from engine.types import (
    Answer,
    AskOptions,
    Citation,
    IngestOptions,
    IngestReport,
    LibraryOptions,
    LibraryProgress,
    LibraryReport,
    Plan,
    Progress,
    Removal,
    Silent,
    SilentLibrary,
    Turn,
)

if TYPE_CHECKING:
    from engine.answer.library import LibrarySession
    from engine.answer.session import Session
    from engine.ingest.parity import Parity
    from engine.models.reader import Reader

__all__ = [
    "Answer",
    "AskOptions",
    "Citation",
    "IngestOptions",
    "IngestReport",
    "LibraryOptions",
    "LibraryReport",
    "Plan",
    "Progress",
    "Removal",
    "SekvError",
    "Turn",
    "append",
    "check_model",
    "ingest",
    "ingest_library",
    "open_document",
    "open_library",
    "open_store",
    "plan",
    "remove_source",
]

PathName: TypeAlias = str | os.PathLike[str] | ObjectUrl
"""A path, or the URL of an object store."""


def ingest(
    sources: PathName | Sequence[PathName],
    store: PathName | None = None,
    options: IngestOptions | None = None,
    progress: Progress | None = None,
    *,
    stdin: BinaryIO | None = None,
    reader: Reader | None = None,
) -> IngestReport:
    """Read documents once and write what the model remembers of them as a store.

    An interrupted call goes on where it stopped when it is made again.

    Args:
        sources: one file or several, read in this order as one document; "-" is `stdin`.
        store: the folder to write; None is the first source's name with `.sekv`, in the working
            directory.
        progress: is told what is done and what is left out; None: nobody is.
        stdin: what "-" reads; None is the process's own.
        reader: the model, where it is loaded already: the `reader` of an open store.
    Raises:
        DocumentError: a source cannot be read.
        ReaderError: the model cannot be loaded, computes what a memory does not, or its logits
            differ from its full cache's.
        StoreExistsError: the store is there, and `options.overwrite` is not set.
        SekvError: its other kinds, as they say. No store appears unless it is complete.
    """
    from engine.ingest import run

    target = None if store is None else address(store)
    return run.ingest(
        _paths(sources), target, options or IngestOptions(), progress or Silent(), stdin, reader
    )


def ingest_library(
    sources: PathName | Sequence[PathName],
    library: PathName,
    options: IngestOptions | None = None,
    many: LibraryOptions | None = None,
    progress: LibraryProgress | None = None,
    *,
    reader: Reader | None = None,
) -> LibraryReport:
    """Bring a library up to date: a store for each document of folders and files.

    What did not change is skipped, what changed is read again, and one document's failure stops no
    other: the report has them all.

    Args:
        library: a folder, made where there is none, or the URL of a place in an object store.
        progress: is told how far it has come; None: nobody is.
        reader: the model, where it is loaded already; else documents are read by processes of their
            own, `many.jobs` at a time.
    Raises:
        DocumentError: there is no document.
        LibraryError: the library is a store, or cannot be written.
        SekvError: no document can be read with these options.
    """
    from engine.ingest import library as documents

    return documents.ingest_library(
        _paths(sources),
        address(library),
        options or IngestOptions(),
        many or LibraryOptions(),
        progress or SilentLibrary(),
        reader,
    )


def append(
    sources: PathName | Sequence[PathName],
    store: PathName,
    options: IngestOptions | None = None,
    progress: Progress | None = None,
    *,
    stdin: BinaryIO | None = None,
    reader: Reader | None = None,
) -> IngestReport:
    """Add documents to a store; what is in it stays as it is, byte for byte.

    Model, method and window are the store's. Arguments are those of `ingest`.

    Raises:
        StoreMissingError: there is no such store.
        StoreMismatchError: the model is not the one that made it.
        SekvError: its other kinds, as of `ingest`. The store is then as it was.
    """
    from engine.ingest import run

    path = _store(store)
    return run.append(
        _paths(sources), path, options or IngestOptions(), progress or Silent(), stdin, reader
    )


def remove_source(
    store: PathName,
    source: str,
    progress: Progress | None = None,
    *,
    reader: Reader | None = None,
) -> Removal:
    """Remove one source of a store of several; the windows that had none of it stay as they are.

    Args:
        store: its path or URL.
        source: its path as the store has it, or the end of that.
        reader: the store's model, where it is loaded; it is needed only if no window can stay.
    Raises:
        DocumentError: no source or several have this name, or it is the only one.
        SekvError: the store cannot be read or written. It is then as it was.
    """
    from engine.ingest import removal

    path = address(store)
    glance.check_store(path)
    return removal.remove_source(path, source, progress or Silent(), reader)


def plan(
    sources: PathName | Sequence[PathName],
    options: IngestOptions | None = None,
    progress: Progress | None = None,
    *,
    stdin: BinaryIO | None = None,
) -> Plan:
    """What `ingest` would do with these arguments, in tokens, windows and bytes; loads no weights.

    Raises:
        SekvError: what `ingest` would raise, as far as it shows without the weights.
    """
    from engine.ingest import run

    return run.plan(_paths(sources), options or IngestOptions(), progress or Silent(), stdin)


def check_model(
    model: str = "",
    options: IngestOptions | None = None,
    progress: Progress | None = None,
) -> Parity:
    """Whether a model answers from a memory as it does from its full cache, measured in seconds.

    Args:
        model: as `IngestOptions.model` names it.  options: whose device, dtype and revision count.
    Returns:
        The difference in logits, `passed`, and where not, the `reason`.
    Raises:
        ReaderError: the model is not there or cannot be loaded.
    """
    from engine.ingest import parity

    return parity.check_named(model, options or IngestOptions(), progress or Silent())


def open_store(
    store: PathName,
    options: AskOptions | None = None,
    progress: Progress | None = None,
    *,
    reader: Reader | None = None,
) -> Session:
    """Load a store and its model, once for many questions. Use it as a context manager.

    `Session.ask` answers a question with an `Answer`: `stated` is what to show, `citations` are the
    passages it was read from. `turns` makes questions a conversation, `on_text` gets the answer
    while it is made.

    Args:
        progress: is told what is loaded; None: nobody is.
        reader: the model, where it is loaded already: the `reader` of another open store.
    Raises:
        StoreMissingError, StoreDamagedError, FormatError: there is no store, or none to be read.
        StoreMismatchError: the model is not the one that made it.
        OptionError: an option is out of its range.
        SekvError: its other kinds, as they say.
    """
    path, chosen = _store(store), options or AskOptions()
    checks.check_options(chosen)

    from engine.answer.session import Session

    return Session(path, chosen, progress or Silent(), reader)


def open_library(
    library: PathName,
    options: AskOptions | None = None,
    progress: Progress | None = None,
    *,
    reader: Reader | None = None,
) -> LibrarySession:
    """Open a folder of stores for many questions. Use it as a context manager.

    `LibrarySession.ask` is that of `open_store`'s session; the document that answers is found by
    the words of the question, and citations name it.

    Arguments and errors as of `open_store`.
    """
    path, chosen = address(library), options or AskOptions()
    if not is_library(path):
        raise LibraryError(f"{path} is no folder of stores; sekv ingest FOLDER -o {path} makes one")
    checks.check_options(chosen)

    from engine.answer.library import LibrarySession

    return LibrarySession(path, chosen, progress or Silent(), reader=reader)


def open_document(
    source: PathName,
    store: PathName | None = None,
    options: AskOptions | None = None,
    reading: IngestOptions | None = None,
    progress: Progress | None = None,
    *,
    reader: Reader | None = None,
) -> Session:
    """Ask a document that is not read yet: questions read what they need of it, once.

    Its store appears with the first window read; each question has the windows read that it needs
    and adds them; `ingest` reads the rest. A store of the document that is there already is used.

    Args:
        source: one file.  store: None is its name with `.sekv`, in the working directory.
        options: how questions are answered.  reading: how the document is read, where it is not.
    Raises:
        StoreExistsError: the store is there and of something else.
        SekvError: its other kinds, as of `ingest` and `open_store`.
    """
    chosen, document = options or AskOptions(), _file(source)
    checks.check_options(chosen)
    shown = progress or Silent()

    from engine.ingest import asked

    target = default_target([str(document)]) if store is None else _file(store)
    read = asked.begin_unless_there(document, target, reading or IngestOptions(), shown, reader)

    from engine.answer.session import Session  # later: a bad document is refused without torch

    return Session(target, chosen, shown, reader or read)


def _file(name: PathName) -> Path:
    """The path of a file or folder of this machine.

    Raises:
        DocumentError: it is a URL.
    """
    place = address(name)
    if isinstance(place, ObjectUrl):
        raise DocumentError(f"{place} cannot be asked before it is read: sekv ingest reads it")
    return place


def _paths(sources: PathName | Sequence[PathName]) -> list[str]:
    """The names of one source or several."""
    several = [sources] if isinstance(sources, str | os.PathLike | ObjectUrl) else sources
    names = [str(source) for source in several]
    return [str(address(name)) if is_url(name) else name for name in names]


def _store(store: PathName) -> Address:
    """The path or URL of a store that is there.

    Raises:
        StoreMissingError: there is none.
    """
    path = address(store)
    glance.check_store(path)
    return path
