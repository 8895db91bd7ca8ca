"""Served stores and the one worker that answers from them, a bounded number of questions ahead.

A session holds one question at a time, so that questions queue and never mix. A store that was
replaced on disk is opened anew by the next question; models are loaded once for all stores. Stores
that are named are opened when the server starts, those of a library when they are asked.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from engine.answer.library import LibrarySession
from engine.answer.open_stores import MEMORY, OpenStores
from engine.answer.session import Session
from engine.errors import BudgetError, SekvError, ServeError, StoppedError
from engine.object_storage import Address
from engine.store.catalogue import Holding
from engine.store.manifest import Manifest
from engine.types import Answer, AskOptions
from sekv_cli.progress import Shown
from sekv_cli.server.metrics import Metrics
from sekv_cli.server.unix_socket import LIBRARY
from sekv_cli.server.wire import Request


@dataclass(frozen=True)
class ServedAnswer:
    """An answer, and its trace where the request asked for one."""

    answer: Answer
    trace: dict[str, Any]


@dataclass(frozen=True)
class StoreFacts:
    """A store. question_tokens: most tokens of a question, its turns and its answer together, for
    which the model has positions behind a window of the document; None while it is not open, as
    the method is ""."""

    model: str
    method: str
    document_tokens: int
    question_tokens: int | None


class _Told:
    """What the worker tells while it answers: to the server's log under the store's name, and to
    whoever asked."""

    def __init__(self, log: Shown):
        self._log, self._store = log, ""
        self._listener: Callable[[str], None] | None = None

    def start(self, stage: str, total: int, unit: str) -> None:
        self._log.start(stage, total, unit)

    def advance(self, done: int) -> None:
        self._log.advance(done)

    def resume(self, done: int) -> None:
        self._log.resume(done)

    def note(self, line: str) -> None:
        self._log.note(f"{self._store}: {line}" if self._store else line)
        if self._listener is not None:
            self._listener(line)

    @contextlib.contextmanager
    def of(self, store: str, listener: Callable[[str], None] | None) -> Iterator[None]:
        """What is told now is of a question to this store."""
        self._store, self._listener = store, listener
        try:
            yield
        finally:
            self._store, self._listener = "", None
            self._log.clear()


class Warm:
    """Sessions by name of their store. metrics: what they have counted."""

    def __init__(
        self,
        stores: Mapping[str, Address],
        options: AskOptions,
        progress: Shown,
        most_waiting: int,
        *,
        libraries: Mapping[str, Address] | None = None,
        memory: int = MEMORY,
        later: Collection[str] = (),
    ):
        """Open the stores, and what is needed to answer from the libraries.

        Args:
            stores, libraries: resolved paths, or URLs, by name.
            most_waiting: questions that may be asked and not yet answered.
            memory: bytes that open stores may take together.
            later: names of stores that their first question opens; all others are opened now.
        Raises:
            SekvError: a store cannot be opened, or a library's catalogue.
        """
        self._named, self._most = dict(stores), most_waiting
        self._told = _Told(progress)
        self._stores = OpenStores(options, self._told, memory)
        self._libraries: dict[str, LibrarySession] = {}
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sekv-answers")
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self.metrics = Metrics()
        self.waiting = 0
        try:
            for name, path in self._named.items():
                if name not in later:
                    session = self._worker.submit(self._stores.session, path).result()
                    self._tell_of_unread(name, session.store.manifest, options.read)
            for name, path in (libraries or {}).items():
                library = LibrarySession(path, options, self._told, stores=self._stores)
                self._libraries[name] = library
                self._worker.submit(library.warm_up).result()
        except BaseException:
            self.close()
            raise

    def _tell_of_unread(self, name: str, manifest: Manifest, reads: bool) -> None:
        if manifest.unread:
            read = f"{len(manifest.read)} of {len(manifest.windows)} windows are read"
            then = "questions have read what they need" if reads else "questions see only these"
            self._told.note(f"{name}: {read}; {then}")

    @property
    def stores(self) -> list[str]:
        """What can be asked: the stores that are named, libraries, and the stores in these."""
        inside = [
            f"{name}/{_bare(holding)}"
            for name, library in self._libraries.items()
            for holding in library.holdings()
        ]
        return [*self._named, *self._libraries, *inside]

    def held(self) -> list[dict[str, str]]:
        """Name, path and fingerprint of what the user's own commands may ask: the stores that are
        open by their names, and libraries."""
        found = [
            {"name": name, "path": str(path), "fingerprint": self._stores.fingerprint(path)}
            for name, path in self._named.items()
            if path in self._stores
        ]
        return found + [
            {"name": name, "path": str(library.path), "fingerprint": LIBRARY}
            for name, library in self._libraries.items()
        ]

    def facts(self, name: str) -> StoreFacts | None:
        """What a client may want to know of a store; None of a library, or if nobody can say."""
        if name in self._libraries:
            return None
        path = self._path(name)
        session = None if path is None else self._stores.peek(path)
        if session is not None:
            manifest = session.store.manifest
            left = session.reader.max_positions - session.memory.length - 1
            return StoreFacts(manifest.model.id, manifest.method, manifest.tokens, max(0, left))
        holding = self._holding(name)
        return None if holding is None else StoreFacts(holding.model, "", holding.tokens, None)

    def now(self) -> dict[str, float]:
        """What is so at this moment, by the names of `metrics.NOW`."""
        return {
            "sekv_waiting_questions": self.waiting,
            "sekv_open_stores": len(self._stores),
            "sekv_resident_bytes": self._stores.bytes,
            "sekv_store_hits_total": self._stores.hits,
            "sekv_store_misses_total": self._stores.misses,
        }

    @property
    def is_full(self) -> bool:
        """Whether no question is taken because so many are waiting."""
        return self.waiting >= self._most

    def submit(
        self,
        asked: Request,
        on_text: Callable[[str], None],
        stop: Callable[[], bool],
        on_note: Callable[[str], None] | None = None,
    ) -> Future[ServedAnswer]:
        """Queue a question; `on_text`, `stop` (see `Session.ask`) and `on_note` are called by the
        worker, the last with what is told before an answer, as that windows are read for it.

        Raises:
            ServeError: too many are waiting, or the server is about to end.
        """
        with self._lock:
            if self._closing.is_set():
                raise ServeError("the server is about to end")
            if self.waiting >= self._most:
                self.metrics.failed("refused")
                raise ServeError(f"{self._most} questions are waiting already; try again later")
            self.waiting += 1
        arrived = time.monotonic()
        future = self._worker.submit(self._counted, asked, on_text, stop, on_note, arrived)
        future.add_done_callback(self._one_less)
        return future

    def close(self) -> None:
        """Give up what is asked, then close every store."""
        self._closing.set()
        self._worker.shutdown(wait=True, cancel_futures=True)
        for library in self._libraries.values():
            library.close()
        self._stores.close()

    def _one_less(self, _: Future[ServedAnswer]) -> None:
        with self._lock:
            self.waiting -= 1

    def _counted(
        self,
        asked: Request,
        on_text: Callable[[str], None],
        stop: Callable[[], bool],
        on_note: Callable[[str], None] | None,
        arrived: float,
    ) -> ServedAnswer:
        waited = time.monotonic() - arrived
        try:
            with self._told.of(asked.store, on_note):
                served = self._answer(asked, on_text, stop)
        except SekvError as error:
            outcome = "stopped" if isinstance(error, StoppedError) else "failed"
            self.metrics.failed("refused" if isinstance(error, BudgetError) else outcome)
            raise
        self.metrics.answered(served.answer, waited)
        return served

    def _answer(
        self, asked: Request, on_text: Callable[[str], None], stop: Callable[[], bool]
    ) -> ServedAnswer:
        def over() -> bool:
            return self._closing.is_set() or stop()

        if over():
            raise StoppedError("the answer was stopped before it began")
        asker = self._asker(asked)
        answer = asker.ask(asked.question, on_text, turns=asked.turns, stop=over)
        # Nothing was loaded for this question.
        timing = {**answer.timing, "model_load_s": 0.0, "store_open_s": 0.0}
        return ServedAnswer(
            replace(answer, timing=timing), asker.trace() if asked.options.trace else {}
        )

    def _asker(self, asked: Request) -> Session | LibrarySession:
        """Who answers, under the options of the request.

        Raises:
            ServeError: the store is not in its library any more.
        """
        library = self._libraries.get(asked.store)
        if library is not None:
            library.retune(asked.options)
            return library
        path = self._path(asked.store)
        if path is None:
            raise ServeError(f"{asked.store} is not here any more")
        self._stores.options = asked.options
        return self._stores.session(path)

    def _path(self, name: str) -> Address | None:
        """Where the store of a name is; None where there is none."""
        if name in self._named:
            return self._named[name]
        holding, library = self._holding(name), self._libraries.get(name.partition("/")[0])
        return None if holding is None or library is None else library.path / holding.name

    def _holding(self, name: str) -> Holding | None:
        """What a library's catalogue says of one of its stores."""
        first, _, rest = name.partition("/")
        library = self._libraries.get(first)
        holdings = library.holdings() if library is not None else []
        return next((each for each in holdings if _bare(each) == rest), None)


def _bare(holding: Holding) -> str:
    return holding.name.removesuffix(".sekv")
