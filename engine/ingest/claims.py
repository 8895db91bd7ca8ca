"""Claims: who reads which document, where several processes or hosts fill one library.

A claim is a file that is created only if it is absent, and renewed while its owner lives. An
owner that has not renewed it for a lease is taken to be dead; its claim is taken over by renaming
it away, which only one of several can do. Nothing but the file system is needed. A claim saves
double work; two writers of one store are kept apart by the store's own lock all the
same. Torch-free.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import uuid
from pathlib import Path
from typing import Self

from engine.errors import LibraryError
from engine.store.folders import CLAIMS
from engine.types import LEASE


class Claims:
    """The claims of one process in a library. Use as a context manager, which renews them."""

    def __init__(self, library: Path, lease: float = LEASE) -> None:
        self._folder, self._lease = library / CLAIMS, lease
        self._owner = json.dumps(
            {"host": socket.gethostname(), "pid": os.getpid(), "key": uuid.uuid4().hex}
        )
        self._mine: set[str] = set()
        self._over = threading.Event()
        self._renewing = threading.Thread(target=self._renew, name="sekv-claims", daemon=True)

    def __enter__(self) -> Self:
        self._renewing.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._renewing.join()
        for name in list(self._mine):
            self.give_back(name)
        with contextlib.suppress(OSError):  # there is none, or others have claims still
            self._folder.rmdir()

    def take(self, name: str) -> bool:
        """Claim the store of a name; False while another has it.

        Raises:
            LibraryError: the library cannot be written.
        """
        path = self._path(name)
        try:
            for _ in range(3):  # the claim or its folder may go between two steps of ours
                self._folder.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(FileExistsError, FileNotFoundError):
                    with path.open("x") as file:
                        file.write(self._owner)
                    self._mine.add(name)
                    return True
                if path.exists() and not self._bury_if_dead(path):
                    return False
        except OSError as error:
            place = self._folder.parent
            raise LibraryError(f"{place} cannot be written: {error.strerror}") from None
        return False

    def is_taken(self, name: str) -> bool:
        """Whether another process has the store of a name and lives."""
        path = self._path(name)
        return path.exists() and not self._bury_if_dead(path)

    def sweep(self) -> None:
        """Take away what dead processes left."""
        for path in self._folder.glob("*"):
            if path.suffix != ".claim":
                with contextlib.suppress(OSError):
                    path.unlink()
            elif path.exists():
                self._bury_if_dead(path)

    def give_back(self, name: str) -> None:
        """Let go of a claim that this process has."""
        self._mine.discard(name)
        path = self._path(name)
        with contextlib.suppress(OSError):
            if path.read_text() == self._owner:  # it was not taken over meanwhile
                path.unlink()

    def _path(self, name: str) -> Path:
        return self._folder / f"{name.replace('%', '%25').replace('/', '%2F')}.claim"

    def _bury_if_dead(self, path: Path) -> bool:
        """Whether a claim counts no more, and is taken away for it."""
        try:
            said, renewed = path.read_text(), path.stat().st_mtime
        except FileNotFoundError:
            return True
        if not _has_died(said) and self._now() - renewed <= self._lease:
            return False
        grave = path.with_name(f"{uuid.uuid4().hex}.dead")
        try:
            path.rename(grave)
            if grave.read_text() != said:  # another buried the dead one and made this one
                os.link(grave, path)
                return False
        except OSError:
            return False
        finally:
            grave.unlink(missing_ok=True)
        return True

    def _now(self) -> float:
        """The time by the clock of whoever keeps the files, which may be another host's."""
        probe = self._folder / f"{uuid.uuid4().hex}.now"
        try:
            probe.touch()
            return probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)

    def _renew(self) -> None:
        while not self._over.wait(self._lease / 4):
            for name in list(self._mine):
                with contextlib.suppress(OSError):
                    os.utime(self._path(name))


def _has_died(said: str) -> bool:
    """Whether a claim's owner is a process of this host that is no more."""
    try:
        owner = json.loads(said)
        if owner["host"] != socket.gethostname():
            return False
        os.kill(int(owner["pid"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError, LookupError, TypeError):  # not ours to signal, or half written
        return False
    return False
