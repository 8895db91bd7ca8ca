"""One document of many: the task, what is told while it is done, and where it is done.

A desk is a process's place of work with the model loaded once. What a desk tells are events of
plain values, so that it may stand in this process, in another one, or on another machine.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeAlias

from engine.errors import SekvError, StoreError
from engine.ingest.claims import Claims
from engine.object_storage import Address, address
from engine.store.library import digest_of
from engine.store.reader import read_manifest
from engine.types import LEASE, IngestOptions, Silent

if TYPE_CHECKING:
    from types import TracebackType

    from engine.models.reader import Reader

LENGTH, READ, RESUMED, NOTE = "length", "read", "resumed", "note"
"""Kinds of events while a document is read: its tokens are counted; more of them are read, or were
by an earlier run; a remark."""

DONE, BUSY, FAILED, STOP = "done", "busy", "failed", "stop"
"""Kinds of events that end a task: its store is there; another process is at it; it failed, and
others may not; no document can be read any more."""

ENDS = frozenset({DONE, BUSY, FAILED, STOP})

_FULL = {errno.ENOSPC, errno.EDQUOT}


@dataclass(frozen=True)
class Task:
    """A document to be read. name: of its store below the library. anew: even if the store that is
    there holds it as it is."""

    number: int
    source: str
    library: str
    name: str
    anew: bool = False


@dataclass(frozen=True)
class Event:
    """What happened to a task. tokens: how many, of LENGTH, READ, RESUMED and DONE. bytes: of a
    store that is done. text: a remark, or why it failed. code: of the error."""

    number: int
    kind: str
    tokens: int = 0
    bytes: int = 0
    text: str = ""
    code: str = ""


Tell: TypeAlias = Callable[[Event], None]


class Desk:
    """Reads documents one after the other with one loaded model. Use as a context manager."""

    def __init__(
        self,
        library: Address,
        options: IngestOptions,
        reader: Reader | None = None,
        lease: float = LEASE,
    ):
        """Load the model, unless it is given.

        Raises:
            SekvError: with these options no document can be read.
        """
        from engine.ingest import run

        self.options = options
        self.reader = reader or run.load_for(options, Silent())
        self._claims = Claims(library, lease)

    def __enter__(self) -> Self:
        self._claims.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._claims.__exit__(kind, error, at)

    def read(self, task: Task, tell: Tell) -> None:
        """Read a document, unless another process is at it; the last event says how it ended."""
        try:
            if not self._claims.take(task.name):
                return tell(Event(task.number, BUSY))
            try:
                tell(self._read(task, tell))
            finally:
                self._claims.give_back(task.name)
        except (SekvError, OSError, MemoryError) as error:
            tell(_failure(task.number, error))

    def _read(self, task: Task, tell: Tell) -> Event:
        from engine.ingest import run

        target = address(task.library) / task.name
        if not task.anew and holds(target, task.source):
            return Event(task.number, DONE, text="read by another process")
        if isinstance(target, Path):
            target.parent.mkdir(parents=True, exist_ok=True)
        told = _Told(task.number, tell)
        # A store that is partly read is completed, and not replaced.
        anew = task.anew or not holds(target, task.source, whole=False)
        options = replace(self.options, overwrite=anew)
        report = run.ingest([task.source], target, options, told, None, self.reader)
        return Event(task.number, DONE, report.tokens, report.store_bytes)


def holds(store: Address, source: str, *, whole: bool = True) -> bool:
    """Whether there is a store of this file as it is now. whole: and all of it is read."""
    try:
        manifest = read_manifest(store)
    except StoreError:
        return False
    read = {entry.sha256 for entry in manifest.sources}
    return read == {digest_of(source)} and not (whole and manifest.unread)


def _failure(number: int, error: BaseException) -> Event:
    """The event of a document that cannot be read; of a full disk no other can be either."""
    cause = error if isinstance(error, OSError) else error.__cause__
    kind = STOP if isinstance(cause, OSError) and cause.errno in _FULL else FAILED
    code = error.code if isinstance(error, SekvError) else "system"
    text = str(error) or "out of memory; a smaller --chunk-tokens or --window needs less"
    return Event(number, kind, text=" ".join(text.split()), code=code)


class _Told:
    """What `run.ingest` tells of one document, as events."""

    def __init__(self, number: int, tell: Tell) -> None:
        self._number, self._tell, self._counts = number, tell, False

    def start(self, stage: str, total: int, unit: str) -> None:
        self._counts = stage.startswith("reading")
        if self._counts:
            self._tell(Event(self._number, LENGTH, total))

    def advance(self, done: int) -> None:
        if self._counts:
            self._tell(Event(self._number, READ, done))

    def resume(self, done: int) -> None:
        if self._counts:
            self._tell(Event(self._number, RESUMED, done))

    def note(self, line: str) -> None:
        self._tell(Event(self._number, NOTE, text=line))
