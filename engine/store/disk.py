"""Every change a store makes to a file system, one small method each.

The seam that tests replace to break a disk at any instant. Each method promises the durability of
the one step that it names. Paths are absolute.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from engine.store.container import Bytes

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_FULL_SYNC = getattr(fcntl, "F_FULLFSYNC", None)
"""macOS alone has it, and needs it: `fsync` there leaves bytes in the disk's own cache."""
_COPY_BYTES = 1 << 22
_UNSUPPORTED = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM}
_NO_FULL_SYNC = {errno.ENOTSUP, errno.ENOTTY, errno.EINVAL}
_CANNOT_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS}


class Disk:
    """The real file system. Every method raises OSError when the system refuses.

    written: bytes given to files so far.
    """

    def __init__(self) -> None:
        self.written = 0

    def write_file(self, path: Path, pieces: Iterable[Bytes]) -> None:
        """Write a new file and wait until its bytes are durable; its name is not yet.

        What stood under the name is unlinked first, never written into: it may be a hard link
        that another store shares.
        """
        self.unlink(path)
        descriptor = self.create(path)
        try:
            for piece in pieces:
                self.write(descriptor, path, piece)
            self.sync(descriptor, path)
        finally:
            os.close(descriptor)

    def append(self, path: Path, data: Bytes) -> None:
        """Add bytes at the end of a file and wait until they are durable."""
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            self.write(descriptor, path, data)
            self.sync(descriptor, path)
        finally:
            os.close(descriptor)

    def create(self, path: Path) -> int:
        """Open a new file for writing; it must not exist."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)

    def write(self, descriptor: int, path: Path, data: Bytes) -> None:
        """Write all of `data` at the descriptor's position."""
        rest = memoryview(data).cast("B")
        while rest:
            done = os.write(descriptor, rest)
            self.written += done
            rest = rest[done:]

    def sync(self, descriptor: int, path: Path) -> None:
        """Wait until a file's bytes are durable, as far as its file system can say."""
        if _FULL_SYNC is not None:
            try:
                fcntl.fcntl(descriptor, _FULL_SYNC)
                return
            except OSError as error:  # file systems of networks do not have it
                if error.errno not in _NO_FULL_SYNC:
                    raise
        os.fsync(descriptor)

    def sync_folder(self, path: Path) -> None:
        """Wait until the names in a folder are durable."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.sync(descriptor, path)
        finally:
            os.close(descriptor)

    def make_folder(self, path: Path) -> None:
        """Make a folder; it may exist."""
        path.mkdir(exist_ok=True)

    def truncate(self, path: Path, size: int) -> None:
        """Cut a file to its first `size` bytes."""
        os.truncate(path, size)

    def rename(self, old: Path, new: Path) -> None:
        """Give a file or folder another name, atomically."""
        old.rename(new)

    def exchange(self, one: Path, other: Path) -> bool:
        """Swap two names atomically. False where the system or file system cannot."""
        call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
        if call is None:
            return False
        here = _AT_FDCWD
        if call(here, os.fsencode(one), here, os.fsencode(other), _RENAME_EXCHANGE) == 0:
            return True
        code = ctypes.get_errno()
        if code in _UNSUPPORTED:
            return False
        raise OSError(code, os.strerror(code), str(one))

    def link(self, old: Path, new: Path) -> None:
        """Let `new` be the same bytes as `old`: a hard link, else a copy."""
        try:
            os.link(old, new, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _CANNOT_LINK:
                raise
            self.copy(old, new)

    def copy(self, old: Path, new: Path) -> None:
        """Copy a file and make the copy durable."""
        with old.open("rb") as source:
            self.write_file(new, iter(lambda: source.read(_COPY_BYTES), b""))

    def unlink(self, path: Path) -> None:
        """Remove a file; it may be gone already."""
        path.unlink(missing_ok=True)

    def remove_tree(self, path: Path) -> None:
        """Remove a folder and all in it; it may be gone already. Links are not followed."""
        if path.exists() or path.is_symlink():
            shutil.rmtree(path)


def put(path: Path, data: Bytes) -> None:
    """A file under its name, whole or not at all: a crash leaves what stood there."""
    disk = Disk()
    partial = path.with_name(f"{path.name}.partial")
    disk.write_file(partial, [data])
    disk.rename(partial, path)
