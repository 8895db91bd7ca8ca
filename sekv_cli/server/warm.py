"""Loaded stores and the one worker that answers from them, a bounded number of questions ahead.

A session holds one question at a time, so that questions queue and never mix. A store that was
replaced on disk is opened anew by the next question; readers are loaded once for all stores.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from engine import api
from engine.errors import ServeError, StoppedError
from engine.object_storage import Address
from engine.store.reader import read_manifest
from engine.types import Answer, AskOptions, Progress
from sekv_cli.server import unix_socket
from sekv_cli.server.wire import Request

if TYPE_CHECKING:
    from engine.answer.session import Session
    from engine.models.reader import Reader


@dataclass(frozen=True)
class ServedAnswer:
    """An answer, and its trace where the request asked for one."""

    answer: Answer
    trace: dict[str, Any]


@dataclass(frozen=True)
class StoreFacts:
    """A store that is open. question_tokens: most tokens of a question, its turns and its answer
    together, for which the model has positions behind a window of the document."""

    model: str
    method: str
    document_tokens: int
    question_tokens: int


class Warm:
    """Sessions by name of their store."""

    def __init__(
        self,
        stores: Mapping[str, Address],
        options: AskOptions,
        progress: Progress,
        most_waiting: int,
    ):
        """Load all stores.

        Args:
            stores: resolved paths by name.
            most_waiting: questions that may be asked and not yet answered.
        Raises:
            SekvError: a store cannot be opened.
        """
        self.stores = dict(stores)
        self._options, self._progress, self._most = options, progress, most_waiting
        self._held: dict[str, tuple[str, Session]] = {}
        self._readers: dict[tuple[str, str], Reader] = {}
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sekv-answers")
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self.waiting = 0
        try:
            for name in self.stores:
                self._worker.submit(self._session, name).result()
        except BaseException:
            self.close()
            raise

    def fingerprint(self, name: str) -> str:
        """Which store the name's answers come from; "" while it cannot be opened."""
        held = self._held.get(name)
        return "" if held is None else held[0]

    def facts(self, name: str) -> StoreFacts | None:
        """What a client may want to know of a store, None while it cannot be opened."""
        held = self._held.get(name)
        if held is None:
            return None
        session, manifest = held[1], held[1].store.manifest
        left = session.reader.max_positions - session.memory.length - 1
        return StoreFacts(manifest.model.id, manifest.method, manifest.tokens, max(0, left))

    def submit(
        self, asked: Request, on_text: Callable[[str], None], stop: Callable[[], bool]
    ) -> Future[ServedAnswer]:
        """Queue a question; `on_text` and `stop` are called by the worker, see `Session.ask`.

        Raises:
            ServeError: too many are waiting, or the server is about to end.
        """
        with self._lock:
            if self._closing.is_set():
                raise ServeError("the server is about to end")
            if self.waiting >= self._most:
                raise ServeError(f"{self._most} questions are waiting already; try again later")
            self.waiting += 1
        future = self._worker.submit(self._answer, asked, on_text, stop)
        future.add_done_callback(self._one_less)
        return future

    def close(self) -> None:
        """Give up what is asked, then close every store."""
        self._closing.set()
        self._worker.shutdown(wait=True, cancel_futures=True)
        for _, session in self._held.values():
            session.store.close()
        self._held.clear()

    def _one_less(self, _: Future[ServedAnswer]) -> None:
        with self._lock:
            self.waiting -= 1

    def _answer(
        self, asked: Request, on_text: Callable[[str], None], stop: Callable[[], bool]
    ) -> ServedAnswer:
        def over() -> bool:
            return self._closing.is_set() or stop()

        if over():
            raise StoppedError("the answer was stopped before it began")
        session = self._session(asked.store)
        session.retune(asked.options)
        opened = session.store
        try:
            answer = session.ask(asked.question, on_text, turns=asked.turns, stop=over)
        finally:
            if session.store is not opened:  # it read more of the document
                path = self.stores[asked.store]
                self._held[asked.store] = (unix_socket.fingerprint(path), session)
        # Nothing was loaded for this question.
        timing = {**answer.timing, "model_load_s": 0.0, "store_open_s": 0.0}
        return ServedAnswer(
            replace(answer, timing=timing), session.trace() if asked.options.trace else {}
        )

    def _session(self, name: str) -> Session:
        """The open store of that name as it is on disk now; while that cannot be opened, none."""
        path = self.stores[name]
        now = unix_socket.fingerprint(path)
        held = self._held.get(name)
        if held is not None and held[0] == now:
            return held[1]
        if held is not None:
            self._held.pop(name)[1].store.close()
        manifest = read_manifest(path)
        identity = (manifest.model.weights, manifest.dtype)
        known = self._readers.get(identity)
        session = api.open_store(path, self._options, self._progress, reader=known)
        self._readers[identity] = session.reader
        self._held[name] = (now, session)
        return session
