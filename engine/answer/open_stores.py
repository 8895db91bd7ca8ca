"""Stores that are open for questions, opened on demand; the latest used are kept, models shared.

For whoever asks many stores in one process: a library, a server.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.answer.session import Session
from engine.object_storage import Address
from engine.store.glance import fingerprint
from engine.store.reader import read_manifest

if TYPE_CHECKING:
    from engine.models.reader import Reader
    from engine.store.reader import Store
    from engine.types import AskOptions, Progress

MEMORY = 2 * 10**9
"""Bytes that open stores take together where nobody says."""


@dataclass
class _Held:
    """A session, and which store it had open when that was last looked at."""

    session: Session
    store: Store
    fingerprint: str

    def now(self) -> str:
        """The fingerprint of the store that the session has open, which changes when it reads more
        of a document that is partly read."""
        if self.session.store is not self.store:
            self.store = self.session.store
            self.fingerprint = hashlib.sha256(self.store.manifest.to_bytes()).hexdigest()
        return self.fingerprint


class OpenStores:
    """Sessions by the path of their store; one at a time is asked.

    hits, misses: how often a store that was wanted was open, and was not.
    """

    def __init__(
        self, options: AskOptions, progress: Progress, memory: int, reader: Reader | None = None
    ) -> None:
        """
        Args:
            options: that stores are opened with.
            memory: bytes that they may take together; the one that is asked stays open, whatever it
                takes. Models are not counted.
            reader: a model that is loaded already.
        """
        self.options = options
        self._progress, self._memory = progress, memory
        self._held: OrderedDict[Address, _Held] = OrderedDict()
        self._readers: dict[tuple[str, str], Reader] = {}
        if reader is not None:
            self._readers[reader.identity.weights, reader.dtype_name] = reader
        self.hits = self.misses = 0

    def __contains__(self, path: Address) -> bool:
        return path in self._held

    def __len__(self) -> int:
        return len(self._held)

    @property
    def bytes(self) -> int:
        """Bytes that the open stores take, see `Session.held_bytes`."""
        return sum(held.session.held_bytes for held in list(self._held.values()))

    def peek(self, path: Address) -> Session | None:
        """The session of a store if it is open; it counts as no use of it."""
        held = self._held.get(path)
        return None if held is None else held.session

    def fingerprint(self, path: Address) -> str:
        """Which store the answers of a path come from, see `glance.fingerprint`; "" while it is not
        open."""
        held = self._held.get(path)
        return "" if held is None else held.now()

    def session(self, path: Address) -> Session:
        """The session of the store that has this path now, under the present options.

        A store that was replaced on disk since is opened anew. Those that were not used for longest
        are closed where all of them take too much.

        Raises:
            SekvError: it cannot be opened; it is then closed.
        """
        now = fingerprint(path)
        held = self._held.get(path)
        if held is not None and held.now() == now:
            self.hits += 1
            self._held.move_to_end(path)
            session = held.session
        else:
            self.misses += 1
            self.close(path)
            session = self._open(path)
            self._held[path] = _Held(session, session.store, now)
        session.retune(self.options)
        self._make_room()
        return session

    def close(self, path: Address | None = None) -> None:
        """Close the store of a path if it is open; None: all of them."""
        for each in list(self._held) if path is None else [path]:
            held = self._held.pop(each, None)
            if held is not None:
                held.session.store.close()

    def _open(self, path: Address) -> Session:
        model = read_manifest(path)
        known = self._readers.get((model.model.weights, model.dtype))
        session = Session(path, self.options, self._progress, known)
        self._readers[model.model.weights, model.dtype] = session.reader
        return session

    def _make_room(self) -> None:
        while len(self._held) > 1 and self.bytes > self._memory:
            self.close(next(iter(self._held)))
