"""Where the bytes of a store are: the interface, and the folder on disk.

Files are opened without leaving the folder and shared by whoever reads them, few at a time however
many windows a document has. `object_folder` has the same of a store in an object store.
"""

from __future__ import annotations

import os
import stat
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from engine.errors import StoreDamagedError, StoreError
from engine.store.manifest import MAX_BYTES, NAME, WINDOWS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from engine.store.manifest import FileEntry

Runs = list[tuple[list[memoryview], int]]
"""What to read of a file: each run fills its buffers, in order, from its position on."""


MOST_OPEN = 128
"""Files of one store that stay open while nobody reads them: systems allow a process some 1000."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# Without O_NONBLOCK a named pipe in the place of a file would hang the reader.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


_DEEPEST = 50

_MOST_BUFFERS = 1024

_PIECE = 8 << 20


class StoreFolder(Protocol):
    """Where the files of one store are. Who opens it holds it; the last `release` closes it.

    A file is asked for by its name and by what the manifest says of it. Safe for many threads.
    """

    def hold(self) -> None:
        """Keep it open until a further `release`."""

    def release(self) -> None:
        """End one hold."""

    def again(self) -> StoreFolder:
        """The same place with nothing seen in it yet."""

    def read_manifest(self) -> bytes:
        """The manifest's bytes, at most one more than `MAX_BYTES`.

        Raises:
            StoreError: there is none.
        """

    def size_of(self, name: str, entry: FileEntry) -> int:
        """Bytes of a file.

        Raises:
            StoreError: it is missing or no plain file.
        """

    def read(self, name: str, entry: FileEntry, runs: Runs, count: Callable[[int], None]) -> None:
        """Fill the buffers of all runs; `count` is told the bytes.

        Raises:
            StoreError: the file ends before, or cannot be read.
        """

    def fetch_ahead(self, files: Iterable[tuple[str, FileEntry, int]]) -> None:
        """Bring the first bytes of files near that will be read soon, where that saves time.

        Args:
            files: name, entry and how many bytes from the beginning.
        """

    def forget(self, entry: FileEntry) -> None:
        """Keep nothing of a file near: what was read of it does not fit its checksums."""

    def total_bytes(self) -> int:
        """Bytes of everything there."""

    def strangers(self, known: set[str]) -> Iterator[str]:
        """One line per thing there that is none of the `known` names."""

    def was_replaced(self) -> bool:
        """Whether another store has the name now."""

    @property
    def received(self) -> tuple[int, int]:
        """Bytes that came over a network so far, and requests that were made for them."""


def pieces(folder: StoreFolder, name: str, entry: FileEntry) -> Iterator[bytearray]:
    """All bytes of a file, some megabytes at a time.

    Raises:
        StoreError: it is missing, ends before, or cannot be read.
    """
    for start in range(0, entry.bytes, _PIECE):
        piece = bytearray(min(_PIECE, entry.bytes - start))
        folder.read(name, entry, [([memoryview(piece)], start)], lambda _: None)
        yield piece


@dataclass
class _Member:
    descriptor: int
    users: int = 0


class Folder:
    """A folder that stays the one it was, whatever its name becomes; safe for many threads.

    Who opens it holds it; each further holder says so with `hold`. The last `release` closes it.
    """

    def __init__(self, path: Path, within: int | None = None) -> None:
        """Open; a relative path begins at the open folder `within`.

        Raises:
            OSError: there is no such folder.
        """
        self.descriptor = os.open(path, _FOLDER, dir_fd=within)
        self._path = path
        self._holders = 1
        self._lock = threading.Lock()
        self._members: OrderedDict[str, _Member] = OrderedDict()
        self._seen: dict[str, tuple[int, int, int]] = {}

    def again(self) -> Folder:
        """The same folder with nothing open and nothing seen in it yet."""
        return Folder(Path(), within=self.descriptor)

    def hold(self) -> None:
        """Keep the folder open until a further `release`."""
        with self._lock:
            self._holders += 1

    def release(self) -> None:
        """End one hold."""
        with self._lock:
            self._holders -= 1
            if self._holders == 0:
                for member in self._members.values():
                    os.close(member.descriptor)
                self._members.clear()
                os.close(self.descriptor)

    def read_manifest(self) -> bytes:
        descriptor = open_below(self.descriptor, NAME)
        with os.fdopen(descriptor, "rb") as file:
            return file.read(MAX_BYTES + 1)

    def size_of(self, name: str, entry: FileEntry) -> int:
        descriptor = self._borrow(name)
        try:
            return os.fstat(descriptor).st_size
        finally:
            self._give_back(name)

    def read(self, name: str, entry: FileEntry, runs: Runs, count: Callable[[int], None]) -> None:
        descriptor = self._borrow(name)
        try:
            for buffers, position in runs:
                for first in range(0, len(buffers), _MOST_BUFFERS):
                    batch = [part for part in buffers[first : first + _MOST_BUFFERS] if part]
                    position = _fill(descriptor, name, batch, position, count)
        finally:
            self._give_back(name)

    def fetch_ahead(self, files: Iterable[tuple[str, FileEntry, int]]) -> None: ...

    def forget(self, entry: FileEntry) -> None: ...

    def total_bytes(self) -> int:
        return sum(
            found.st_size for _, found in walk(self.descriptor) if not stat.S_ISDIR(found.st_mode)
        )

    def strangers(self, known: set[str]) -> Iterator[str]:
        for name, found in walk(self.descriptor):
            if stat.S_ISLNK(found.st_mode):
                yield f"{name} is a symbolic link, which a store never holds"
            elif name not in known and not (name == WINDOWS and stat.S_ISDIR(found.st_mode)):
                yield f"{name} does not belong to the store"

    def was_replaced(self) -> bool:
        try:
            return not os.path.samestat(os.fstat(self.descriptor), self._path.stat())
        except OSError:
            return False

    @property
    def received(self) -> tuple[int, int]:
        return 0, 0

    def _borrow(self, name: str) -> int:
        """A descriptor of a file for reading; give it back with `_give_back`.

        Raises:
            StoreError: it is missing, a link, no plain file, or not the file it was before.
        """
        with self._lock:
            member = self._members.get(name)
            if member is None:
                member = _Member(self._open(name))
                self._members[name] = member
            member.users += 1
            self._members.move_to_end(name)
            return member.descriptor

    def _give_back(self, name: str) -> None:
        """End the use of a borrowed descriptor; it rests open until others need the place."""
        with self._lock:
            self._members[name].users -= 1
            if len(self._members) > MOST_OPEN:
                self._close_idle(list(self._members)[: len(self._members) - MOST_OPEN])

    def _close_idle(self, names: list[str]) -> None:
        for name in names:
            if self._members[name].users == 0:
                os.close(self._members.pop(name).descriptor)

    def _open(self, name: str) -> int:
        descriptor = open_below(self.descriptor, name)
        found = os.fstat(descriptor)
        identity = (found.st_dev, found.st_ino, found.st_size)
        if self._seen.setdefault(name, identity) != identity:
            os.close(descriptor)
            raise StoreDamagedError(f"{name} changed while the store was open")
        return descriptor


def _fill(
    descriptor: int,
    name: str,
    batch: list[memoryview],
    position: int,
    count: Callable[[int], None],
) -> int:
    """Fill buffers that lie side by side in a file; the position behind them."""
    while batch:
        try:
            done = os.preadv(descriptor, batch, position)
        except OSError as error:
            raise StoreError(f"{name} cannot be read: {error.strerror}") from None
        if done == 0:
            raise StoreDamagedError(f"{name} is cut short")
        position += done
        count(done)
        while batch and done >= len(batch[0]):
            done -= len(batch.pop(0))
        if done:
            batch[0] = batch[0][done:]
    return position


def walk(folder: int, below: str = "") -> Iterator[tuple[str, os.stat_result]]:
    """Everything below an open folder as (name, lstat), folders included, links not followed.

    Raises:
        StoreError: folders are nested deeper than any store's.
        OSError: a folder cannot be read.
    """
    if below.count("/") > _DEEPEST:
        raise StoreError(f"folders are nested too deeply at {below[:80]!r}")
    with os.scandir(folder) as entries:
        listed = sorted(entries, key=lambda entry: entry.name)
    for entry in listed:
        name = f"{below}{entry.name}"
        found = os.stat(entry.name, dir_fd=folder, follow_symlinks=False)
        yield name, found
        if stat.S_ISDIR(found.st_mode):
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            inner = os.open(entry.name, flags, dir_fd=folder)
            try:
                yield from walk(inner, f"{name}/")
            finally:
                os.close(inner)


def open_below(folder: int, name: str) -> int:
    """Open a file below an open folder for reading; no step may be a symbolic link.

    Raises:
        StoreError: it is missing, a link, or no plain file.
    """
    *parents, last = name.split("/")
    opened: list[int] = []
    try:
        place = folder
        for parent in parents:
            place = os.open(parent, _FOLDER | os.O_NOFOLLOW, dir_fd=place)
            opened.append(place)
        descriptor = os.open(last, _FILE, dir_fd=place)
    except FileNotFoundError:
        raise StoreDamagedError(f"{name} is missing") from None
    except OSError as error:
        if _is_link(folder, name):
            raise StoreDamagedError(
                f"{name} is a symbolic link, which a store never holds"
            ) from None
        raise StoreError(f"{name} cannot be read: {error.strerror}") from None
    finally:
        for place in opened:
            os.close(place)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise StoreDamagedError(f"{name} is no plain file")
    return descriptor


def _is_link(folder: int, name: str) -> bool:
    """Whether any step of `name` below `folder` is a symbolic link."""
    parts = name.split("/")
    for end in range(1, len(parts) + 1):
        try:
            found = os.stat("/".join(parts[:end]), dir_fd=folder, follow_symlinks=False)
        except OSError:
            return False
        if stat.S_ISLNK(found.st_mode):
            return True
    return False
