"""Use case: folders, files and lists in, a library of stores out.

Every document has a store of its own. What is there and unchanged is skipped, what changed is read
again and replaced at one stroke, what has no source any more is named. One document's failure stops
no other. A run that is interrupted is continued by the same command, and several that run at the
same time share the work.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import DocumentError, LibraryError, ObjectMissingError, SekvError
from engine.ingest import processes
from engine.ingest.claims import Claims
from engine.ingest.collect import Selection, Wanted, collect
from engine.ingest.places import Glimpse, is_same, is_there, lies_at, look
from engine.ingest.sources import STDIN
from engine.ingest.tally import Tally
from engine.ingest.tasks import (
    BUSY,
    DONE,
    LENGTH,
    NOTE,
    READ,
    RESUMED,
    STOP,
    Desk,
    Event,
    Task,
    holds,
)
from engine.object_storage import Address, ObjectUrl, address, is_of_process, is_url
from engine.store.catalogue import Catalogue, Holding
from engine.store.folders import looks_like_a_store
from engine.store.glance import is_store
from engine.store.library import digest_of
from engine.store.upkeep import remove_store, tidy
from engine.types import (
    DocumentOutcome,
    IngestOptions,
    LibraryOptions,
    LibraryProgress,
    LibraryReport,
)

if TYPE_CHECKING:
    from engine.models.reader import Reader

POLL_SECONDS = 0.5
"""How often it is looked whether another process is done with a document."""

FRESH_NANOSECONDS = 2 * 10**9
"""A file that changed so lately may change again without its time telling; it is hashed."""

NAMED = 5
"""Files that are no documents, of which a remark tells the names."""


def ingest_library(
    sources: Sequence[str],
    library: Address,
    options: IngestOptions,
    many: LibraryOptions,
    progress: LibraryProgress,
    reader: Reader | None = None,
) -> LibraryReport:
    """Bring a library up to date with documents.

    Args:
        sources: folders and files, of object stores too.
        library: a folder, made where there is none, or a place in an object store.
        options: how each document is read; `overwrite` reads those again that did not change.
        reader: the model, where it is loaded already; documents are then read in this process.
    Raises:
        DocumentError: there is no document.
        LibraryError: the library is a store, or cannot be written.
        SekvError: no document can be read with these options.
    """
    begun = time.perf_counter()
    found = collect(sources, many.include, many.exclude)
    for line in [*found.remarks, *_left_out(found.left_out)]:
        progress.note(line)
    _make(library)
    with Catalogue(library) as catalogue:
        catalogue.refresh()
        run = _Run(catalogue, found, options, many, progress)
        if not many.dry_run:
            run.read(reader)
        return LibraryReport(
            library=str(library),
            documents=(*run.outcomes(), *run.orphans()),
            left_out=tuple(found.left_out),
            tokens=run.tally.tokens,
            total_s=round(time.perf_counter() - begun, 3),
            dry_run=many.dry_run,
        )


def _left_out(files: Sequence[str]) -> list[str]:
    """One line about files that are no documents, if there are any."""
    if not files:
        return []
    more = f" and {len(files) - NAMED} more" if len(files) > NAMED else ""
    return [f"left out, no documents by their endings: {', '.join(files[:NAMED])}{more}"]


def _make(library: Address) -> None:
    if isinstance(library, ObjectUrl):  # there is nothing to make: a key needs no folder
        taken = is_store(library)
    else:
        taken = looks_like_a_store(library) and any(library.iterdir())
    if taken:
        raise LibraryError(f"{library} is a store; name another folder for the library with -o")
    if isinstance(library, ObjectUrl):
        return
    try:
        library.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LibraryError(f"{library} cannot be made: {error.strerror}") from None


class _Run:
    """One run of the command over one library."""

    def __init__(
        self,
        catalogue: Catalogue,
        found: Selection,
        options: IngestOptions,
        many: LibraryOptions,
        progress: LibraryProgress,
    ) -> None:
        self._catalogue, self._library = catalogue, catalogue.folder
        self._options, self._many, self._progress = options, many, progress
        self._known = {entry.name: entry for entry in catalogue.entries()}
        self._wanted = found.documents
        self._refused = [_failed(wanted, reason) for wanted, reason in found.refused]
        self._size: dict[str, int] = {}
        self._judged = [self._judge(wanted) for wanted in self._wanted]
        self._busy: list[int] = []
        self._stopped: Event | None = None
        sizes = {number: self._size[self._wanted[number].source] for number in self._to_read()}
        done = len(self._wanted) - len(sizes)
        self.tally = Tally(sizes, done, sum(each.state == "failed" for each in self._judged))

    # -- what is to be done

    def _to_read(self) -> list[int]:
        return [n for n, each in enumerate(self._judged) if each.state in ("read", "replaced")]

    def _judge(self, wanted: Wanted) -> DocumentOutcome:
        """What is to become of a document, as the outcome that it will have."""
        entry = self._known.get(wanted.name)
        try:
            seen = look(wanted.source)
        except (DocumentError, ObjectMissingError) as error:
            return _failed(wanted, str(error))
        self._size[wanted.source] = seen.size
        if entry is None:
            return DocumentOutcome(wanted.source, wanted.name, "read")
        if self._options.overwrite:
            return DocumentOutcome(wanted.source, wanted.name, "replaced")
        refusal = self._refusal(wanted, entry)
        if refusal:
            return _failed(wanted, refusal)
        if entry.sources[0][2] != self._sha256(wanted.source, seen):
            return DocumentOutcome(wanted.source, wanted.name, "replaced")
        if entry.unread:
            return DocumentOutcome(wanted.source, wanted.name, "read")
        return DocumentOutcome(wanted.source, wanted.name, "unchanged", tokens=entry.tokens)

    def _refusal(self, wanted: Wanted, entry: Holding) -> str:
        """Why the store that has a document's name is not its to replace; "" if it is."""
        if entry.problem:
            return f"{entry.problem}; --overwrite reads it anew"
        if len(entry.sources) != 1:
            return f"{wanted.name} has {len(entry.sources)} sources, so it is not replaced; move it"
        path, near, _ = entry.sources[0]
        place, other = lies_at(path, near, self._library / wanted.name), address(wanted.source)
        if is_same(place, other) or not is_there(place):
            return ""
        return f"{wanted.name} is the store of {_shown(place)}; rename one of them"

    def _sha256(self, source: str, seen: Glimpse) -> str:
        """The hash of a source, which is read only if its size or time is not the noted one."""
        whole = source if is_url(source) else str(Path(source).absolute())
        key = whole, seen.size, seen.changed
        known = self._catalogue.sha256(*key)
        if known:
            return known
        made = digest_of(source)
        if time.time_ns() - seen.changed > FRESH_NANOSECONDS:
            self._catalogue.note(*key, made)
        return made

    def orphans(self) -> list[DocumentOutcome]:
        """Stores whose sources are gone, removed if the options say so.

        Of a library in an object store those alone whose sources are in one too.
        """
        wanted = {each.name for each in self._wanted}
        gone = []
        for name, entry in self._known.items():
            store = self._library / name
            places = [lies_at(path, near, store) for path, near, _ in entry.sources]
            if name in wanted or not places or any(path == STDIN for path, *_ in entry.sources):
                continue
            if isinstance(store, ObjectUrl) and any(isinstance(place, Path) for place in places):
                continue  # files of whichever host made it
            if any(is_there(place) for place in places):
                continue
            state = "gone"
            if self._many.prune and not self._many.dry_run:
                remove_store(store)
                state = "pruned"
            source, tokens = _shown(places[0]), entry.tokens
            gone.append(DocumentOutcome(source, name, state, tokens=tokens))
        if self._many.prune:
            self._catalogue.refresh()
        return gone

    # -- doing it

    def read(self, reader: Reader | None) -> None:
        """Read what is to be read, here or wherever the options say; what other processes read
        already is waited for."""
        numbers = self._to_read()
        if numbers and reader is None:
            self._check_model()
        while numbers and self._stopped is None:
            self._busy = []
            self._hand_out([self._task(number) for number in numbers], reader)
            numbers = self._wait()
        with Claims(self._library, self._many.lease) as claims:
            claims.sweep()
        if isinstance(self._library, Path):
            for each in self._judged:
                tidy(self._library / each.store)
        if self._stopped is not None and self._stopped.number < 0:
            error = SekvError(self._stopped.text)
            error.code = self._stopped.code
            raise error

    def _task(self, number: int) -> Task:
        wanted = self._wanted[number]
        library = str(self._library)
        return Task(number, wanted.source, library, wanted.name, anew=self._options.overwrite)

    def _hand_out(self, tasks: list[Task], reader: Reader | None) -> None:
        options, lease = self._options, self._many.lease
        if reader is None and _stays_here(self._library, tasks):
            from engine.ingest import run

            reader = run.load_for(options, _Notes(self._progress))
        if reader is None and self._many.cluster:
            from engine.ingest import cluster

            address = self._many.cluster
            cluster.run(tasks, self._library, options, address, self._hear, lease)
            return
        if reader is None:
            processes.run(tasks, self._library, options, self._many.jobs, self._hear, lease)
            return
        with Desk(self._library, options, reader, lease) as desk:
            for task in tasks:
                desk.read(task, self._hear)
                if self._stopped is not None:
                    return

    def _wait(self) -> list[int]:
        """The documents that another process was at and did not finish, once it is not any more."""
        if self._stopped is not None or not self._busy:
            return []
        self._progress.note(f"waiting for {len(self._busy)} documents that other processes read")
        left = []
        with Claims(self._library, self._many.lease) as claims:
            for number in self._busy:
                task = self._task(number)
                while claims.is_taken(task.name):
                    time.sleep(POLL_SECONDS)
                if not task.anew and holds(self._library / task.name, task.source):
                    self._hear(Event(number, DONE, text="read by another process"))
                else:
                    left.append(number)
        return left

    def _hear(self, event: Event) -> None:
        """Act on what a desk tells."""
        if event.kind == NOTE:
            self._progress.note(event.text)
        elif event.kind == LENGTH:
            self.tally.begin(event.number, event.tokens)
        elif event.kind == READ:
            self.tally.advance(event.number, event.tokens)
        elif event.kind == RESUMED:
            self.tally.resume(event.number, event.tokens)
        elif event.kind == BUSY:
            self._busy.append(event.number)
        else:
            self._end(event)
        self._progress.status(self.tally.status())

    def _end(self, event: Event) -> None:
        if event.kind == STOP:
            self._stopped = event
            if event.number < 0:
                return
        planned = self._judged[event.number]
        failed = event.kind != DONE
        self._judged[event.number] = DocumentOutcome(
            planned.source,
            planned.store,
            "failed" if failed else planned.state,
            event.text,
            event.tokens,
            event.bytes,
        )
        self.tally.end(event.number, event.tokens, failed=failed)
        if not failed:
            self._catalogue.take(planned.store)
        self._busy = [number for number in self._busy if number != event.number]

    def _check_model(self) -> None:
        """Find the model before anything is started, and say which stores have another."""
        from engine.models.locate import locate

        notes = _Notes(self._progress)
        options = self._options
        located = locate(
            options.model, revision=options.revision, offline=options.offline, progress=notes
        )
        kept = [self._known[each.store] for each in self._judged if each.state == "unchanged"]
        others = sorted({entry.model for entry in kept} - {located.name})
        if others:
            self._progress.note(
                f"unchanged documents stay as {', '.join(others)} read them; "
                f"--overwrite reads them with {located.name}"
            )

    def outcomes(self) -> list[DocumentOutcome]:
        """What became of every document, or is to become of it."""
        if self._stopped is not None:
            for number in self._to_read():
                if not self.tally.has_ended(number):
                    reason = f"not read any more: {self._stopped.text}"
                    self._judged[number] = _failed(self._wanted[number], reason)
        return [*self._refused, *self._judged]


class _Notes:
    """A Progress that passes on remarks alone."""

    def __init__(self, progress: LibraryProgress) -> None:
        self._progress = progress

    def start(self, stage: str, total: int, unit: str) -> None: ...

    def advance(self, done: int) -> None: ...

    def resume(self, done: int) -> None: ...

    def note(self, line: str) -> None:
        self._progress.note(line)


def _failed(wanted: Wanted, reason: str) -> DocumentOutcome:
    return DocumentOutcome(wanted.source, wanted.name, "failed", reason)


def _stays_here(library: Address, tasks: Sequence[Task]) -> bool:
    """Whether other processes would not see a library or a document."""
    return any(is_of_process(name) for name in (str(library), *(task.source for task in tasks)))


def _shown(place: Address) -> str:
    return os.path.normpath(place) if isinstance(place, Path) else str(place)
