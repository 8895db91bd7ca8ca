"""One writer per target: an exclusive lock on a file beside it.

`flock` on `.NAME.lock`, which the kernel gives back however the process ends, so that a dead writer
never blocks. Readers need no lock.
"""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

from engine.errors import StoreBusyError, StoreError

if TYPE_CHECKING:
    from pathlib import Path


class Lock:
    """The held lock. `release` gives it back and removes its file."""

    def __init__(self, path: Path, target: Path) -> None:
        """Take the lock.

        Raises:
            StoreBusyError: another process holds it; says which, and of which target.
            StoreError: the system refuses.
        """
        self._path = path
        self._descriptor = _take(path, target)

    def release(self) -> None:
        """Give the lock back. The file goes first, so that no one can lock a nameless file."""
        if self._descriptor >= 0:
            self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = -1


def writer_of(path: Path) -> int:
    """The living process on this machine that says in a lock's file that it holds it; 0 if none."""
    try:
        owner = int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0
    return owner if is_alive(owner) else 0


def is_alive(pid: int) -> bool:
    """Whether there is a process of this number on this machine, of whichever user."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _take(path: Path, target: Path) -> int:
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise StoreError(f"cannot write beside {target}: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(descriptor)
            raise StoreBusyError(
                f"another process (pid {owner}) is writing {target}: wait for it or stop it"
            ) from None
        except OSError as error:
            os.close(descriptor)
            raise StoreError(
                f"cannot lock {path}: {error.strerror}; choose a folder on a local disk"
            ) from None
        if _is_named(descriptor, path):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode("ascii"), 0)
            return descriptor
        # The last owner removed the file between our open and our lock: lock the new one.
        os.close(descriptor)


def _is_named(descriptor: int, path: Path) -> bool:
    try:
        named = path.lstat()
    except FileNotFoundError:
        return False
    return os.path.samestat(named, os.fstat(descriptor))
