"""The work folder of one unfinished store: what is done, and nothing that is not.

`.NAME.work` beside the target, holding `job.json` (whose work this is), `journal` (one line per
finished piece, written after the piece is durable), `chunks/` (raw prefill state) and `store/` (the
store to be). A piece without its line does not exist: a killed run leaves at most bytes that nobody
names.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import StoreError
from engine.store.container import checksum
from engine.store.folders import WORK
from engine.store.manifest import NAME, WINDOWS, FileEntry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.store.disk import Disk


_LONGEST_NAME = 240

PUBLISH = "publish"
"""The key of the promise that the store is complete; its value names the manifest."""


@dataclass(frozen=True)
class Places:
    """Every path that belongs to one target."""

    target: Path

    @property
    def work(self) -> Path:
        return self.target.with_name(f".{self.target.name}{WORK}")

    @property
    def lock(self) -> Path:
        return self.target.with_name(f".{self.target.name}.lock")

    @property
    def done(self) -> Path:
        """A work folder on its way out: nothing in it counts any more."""
        return self.target.with_name(f".{self.target.name}.done")

    @property
    def leftovers(self) -> tuple[Path, ...]:
        """What a dead run may have left beside the target."""
        return self.work, self.done, self.lock

    @property
    def job(self) -> Path:
        return self.work / "job.json"

    @property
    def journal(self) -> Path:
        return self.work / "journal"

    @property
    def chunks(self) -> Path:
        return self.work / "chunks"

    @property
    def store(self) -> Path:
        """The store to be."""
        return self.work / "store"

    @property
    def old(self) -> Path:
        """The store that was, while `--overwrite` replaces it without an atomic exchange."""
        return self.work / "old"

    @property
    def draft(self) -> Path:
        """The manifest before it is complete."""
        return self.work / "manifest.draft"


def places_of(target: Path) -> Places:
    """The places of a target; a symbolic link stands for what it names.

    Raises:
        StoreError: the folder that shall hold the store does not exist.
    """
    real = Path(os.path.realpath(target))
    if len(os.fsencode(real.name)) > _LONGEST_NAME:
        raise StoreError(f"{real.name[:40]}... is too long a name for a store")
    if not real.parent.is_dir() or not real.name:
        raise StoreError(f"{target} cannot be made: the folder {real.parent} does not exist")
    return Places(real)


class Journal:
    """Finished pieces in the order they were finished, each under its key.

    A line is the xxh3_128 of its JSON, a space, the JSON. Reading stops at the first line that is
    torn; what follows it was never promised.
    """

    def __init__(self, places: Places, disk: Disk) -> None:
        self._places = places
        self._disk = disk
        self._broken = False
        self.entries: dict[str, dict[str, Any]] = {}

    def load(self) -> None:
        """Read what an earlier run finished and cut a torn end off."""
        path = self._places.journal
        data = path.read_bytes() if path.exists() else b""
        good = 0
        for line in data.splitlines(keepends=True):
            entry = _read_line(line)
            if entry is None:
                break
            self._apply(entry)
            good += len(line)
        if good < len(data):
            self._disk.truncate(path, good)

    def add(self, key: str, value: dict[str, Any], drops: tuple[str, ...] = ()) -> None:
        """Promise one piece, which must be durable already, and take back those it replaces."""
        if self._broken:
            raise StoreError("an earlier write failed: run the same command again to continue")
        entry = {"key": key, "value": value, "drops": drops}
        text = json.dumps(entry, sort_keys=True).encode("ascii")
        self._broken = True
        self._disk.append(
            self._places.journal, checksum(text).encode("ascii") + b" " + text + b"\n"
        )
        self._broken = False
        self._apply(entry)

    def drop(self, key: str) -> None:
        """Take a promise back, for this run and the next."""
        if key in self.entries:
            self.add(key, {}, drops=(key,))

    def _apply(self, entry: dict[str, Any]) -> None:
        self.entries[entry["key"]] = entry["value"]
        for key in entry["drops"]:
            self.entries.pop(key, None)


def open_work(places: Places, disk: Disk, job: dict[str, Any], base: str) -> Journal:
    """Resume the work folder of this very job, or start a fresh one. The lock must be held.

    Args:
        job: plain JSON values.
        base: checksum of the manifest that is appended to, "" when nothing is.
    Raises:
        StoreError: the job is not JSON.
        OSError: the disk refuses.
    """
    text = _job_text({"job": job, "base": base})
    journal = Journal(places, disk)
    if places.job.is_file() and places.job.read_bytes() == text:
        _make_folders(places, disk)
        journal.load()
        return journal
    clear_work(places, disk)
    _make_folders(places, disk)
    disk.write_file(places.draft, [text])
    disk.rename(places.draft, places.job)
    for folder in (places.store, places.work, places.work.parent):
        disk.sync_folder(folder)
    return journal


def _make_folders(places: Places, disk: Disk) -> None:
    for folder in (places.work, places.chunks, places.store, places.store / WINDOWS):
        disk.make_folder(folder)


@dataclass(frozen=True)
class Published:
    """A job whose store has its name already, so that only cleaning is left of it."""

    job: Any
    journal: Journal

    def is_of(self, job: dict[str, Any]) -> bool:
        """Whether it was this job. What its store was appended to is not compared: that name is
        the longer store's now."""
        return _job_text({"job": job}) == _job_text({"job": self.job})


def published_journal(places: Places, disk: Disk, far: bytes | None = None) -> Published | None:
    """What a run left that died between publishing a store and cleaning up after it, if one did.

    far: the manifest under the store's name, where that is not on this disk.
    """
    try:
        found = json.loads(places.job.read_bytes())["job"]
        manifest = checksum((places.target / NAME).read_bytes() if far is None else far)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    journal = Journal(places, disk)
    journal.load()
    done = journal.entries.get(PUBLISH) == {"manifest": manifest}
    return Published(found, journal) if done else None


def finish_exchange(places: Places, disk: Disk) -> None:
    """Put right a replacement that died between its two renames. The lock must be held."""
    if places.target.exists() or not places.old.exists():
        return
    complete = places.store if (places.store / NAME).is_file() else places.old
    disk.rename(complete, places.target)
    disk.sync_folder(places.target.parent)


def clear_work(places: Places, disk: Disk) -> None:
    """Remove the work folder. It stops to count in one instant, however long removing takes."""
    disk.remove_tree(places.done)
    if places.work.exists():
        disk.rename(places.work, places.done)
        disk.remove_tree(places.done)


def _job_text(job: dict[str, Any]) -> bytes:
    try:
        return json.dumps(job, sort_keys=True, indent=1, allow_nan=False).encode("ascii")
    except (TypeError, ValueError) as error:
        raise StoreError(f"the job cannot be written as JSON: {error}") from None


def file_from_json(value: dict[str, Any]) -> FileEntry:
    """The FileEntry back from the journal, whose own checksum vouches for the types."""
    return FileEntry(value["bytes"], value["tensors"], value["header"])


@contextlib.contextmanager
def disk_errors(doing: str) -> Iterator[None]:
    """Turn what the system refuses into one line that says what to do."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            advice = "free some space and run the same command again to continue"
        else:
            advice = "what was finished is kept; run the same command again to continue"
        raise StoreError(f"cannot write {doing}: {reason}; {advice}") from error


def _read_line(line: bytes) -> dict[str, Any] | None:
    head, _, text = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum(text).encode("ascii") != head:
        return None
    entry: dict[str, Any] = json.loads(text)
    return entry
