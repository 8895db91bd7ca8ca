"""Claims: who reads which document, where several processes or hosts fill one library.

A claim is created only if there is none, and renewed while its owner lives. An owner that has not
renewed it for a lease is taken to be dead, and its claim is taken over. Nothing but the library's
own file system or object store is needed. A claim saves double work; two writers of one store are
kept apart by the store's own lock, or by how it is uploaded, all the same. Torch-free.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import uuid
from typing import TYPE_CHECKING, Self

from engine.errors import ObjectStorageError
from engine.ingest.claim_places import Claim, place_of_claims
from engine.store.lock import is_alive
from engine.types import LEASE

if TYPE_CHECKING:
    from engine.object_storage import Address


class Claims:
    """The claims of one process in a library. Use as a context manager, which renews them."""

    def __init__(self, library: Address, lease: float = LEASE) -> None:
        self._place, self._lease = place_of_claims(library), lease
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
        self._place.close()

    def take(self, name: str) -> bool:
        """Claim the store of a name; False while another has it.

        Raises:
            LibraryError, ObjectStorageError: the library cannot be written.
        """
        for _ in range(3):  # the claim or its folder may go between two steps of ours
            if self._place.create(name, self._owner):
                self._mine.add(name)
                return True
            if self.is_taken(name):
                return False
        return False

    def is_taken(self, name: str) -> bool:
        """Whether another process has the store of a name and lives; a dead one's claim goes."""
        found = self._place.find(name)
        return found is not None and not (self._is_dead(found) and self._place.bury(name, found))

    def sweep(self) -> None:
        """Take away what dead processes left."""
        self._place.tidy()
        for name in self._place.names():
            self.is_taken(name)

    def give_back(self, name: str) -> None:
        """Let go of a claim that this process has."""
        self._mine.discard(name)
        with contextlib.suppress(ObjectStorageError):  # it grows old by itself
            self._place.remove(name, self._owner)

    def _is_dead(self, claim: Claim) -> bool:
        return _has_died(claim.said) or self._place.now() - claim.renewed > self._lease

    def _renew(self) -> None:
        while not self._over.wait(self._lease / 4):
            for name in list(self._mine):
                with contextlib.suppress(ObjectStorageError):  # the next one may get through
                    self._place.renew(name, self._owner)


def _has_died(said: str) -> bool:
    """Whether a claim's owner is a process of this host that is no more."""
    try:
        owner = json.loads(said)
        return owner["host"] == socket.gethostname() and not is_alive(int(owner["pid"]))
    except (ValueError, LookupError, TypeError):  # half written
        return False
