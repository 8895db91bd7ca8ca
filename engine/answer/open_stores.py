"""Stores that are open for questions, opened on demand; the latest used are kept, models shared.

For whoever asks many stores in one process: a library, a server.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING

from engine.answer.session import Session
from engine.store.folders import stamp
from engine.store.glance import not_a_store
from engine.store.reader import read_manifest

if TYPE_CHECKING:
    from engine.models.reader import Reader
    from engine.types import AskOptions, Progress

MEMORY = 2 * 10**9
"""Bytes that open stores take together where nobody says."""


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
        self._held: OrderedDict[Path, tuple[str, Session]] = OrderedDict()
        self._readers: dict[tuple[str, str], Reader] = {}
        if reader is not None:
            self._readers[reader.identity.weights, reader.dtype_name] = reader
        self.hits = self.misses = 0

    def __contains__(self, path: Path) -> bool:
        return path in self._held

    def __len__(self) -> int:
        return len(self._held)

    @property
    def bytes(self) -> int:
        """Bytes that the open stores take, see `Session.held_bytes`."""
        return sum(session.held_bytes for _, session in self._held.values())

    def peek(self, path: Path) -> Session | None:
        """The session of a store if it is open; it counts as no use of it."""
        held = self._held.get(path)
        return None if held is None else held[1]

    def session(self, path: Path) -> Session:
        """The session of the store that has this path now, under the present options.

        A store that was replaced on disk since is opened anew. Those that were not used for longest
        are closed where all of them take too much.

        Raises:
            SekvError: it cannot be opened; it is then closed.
        """
        now = stamp(path)
        held = self._held.get(path)
        if held is not None and held[0] == now:
            self.hits += 1
            self._held.move_to_end(path)
            session = held[1]
        else:
            self.misses += 1
            self.close(path)
            if not now:
                raise not_a_store(path)
            session = self._open(path)
            self._held[path] = now, session
        session.retune(self.options)
        self._make_room()
        return session

    def close(self, path: Path | None = None) -> None:
        """Close the store of a path if it is open; None: all of them."""
        for each in list(self._held) if path is None else [path]:
            held = self._held.pop(each, None)
            if held is not None:
                held[1].store.close()

    def _open(self, path: Path) -> Session:
        model = read_manifest(path)
        known = self._readers.get((model.model.weights, model.dtype))
        session = Session(path, self.options, self._progress, known)
        self._readers[model.model.weights, model.dtype] = session.reader
        return session

    def _make_room(self) -> None:
        while len(self._held) > 1 and self.bytes > self._memory:
            self.close(next(iter(self._held)))
