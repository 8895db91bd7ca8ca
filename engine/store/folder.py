"""The open folder of a store and the descriptors of its files.

Files are opened without leaving the folder and shared by whoever reads them, few at a time however
many windows a document has.
"""

from __future__ import annotations

import os
import stat
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from engine.errors import StoreDamagedError, StoreError

ADVICE = "ingest again or restore it from a copy"

MOST_OPEN = 128
"""Files of one store that stay open while nobody reads them: systems allow a process some 1000."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# Without O_NONBLOCK a named pipe in the place of a file would hang the reader.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


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

    def borrow(self, name: str) -> int:
        """A descriptor of a file for reading; give it back with `give_back`.

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

    def give_back(self, name: str) -> None:
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
            raise StoreDamagedError(f"{name} changed while the store was open: {ADVICE}")
        return descriptor


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
        raise StoreDamagedError(f"{name} is missing: {ADVICE}") from None
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
