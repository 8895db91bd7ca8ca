"""Use case: questions to a library. The words of a question find the document, which answers.

Every store of a library is a memory of its own, with bases of its own, so that passages of several
stores do not meet in one softmax: the best document is opened and asked, and the best passages of
the next ones are cited behind its own. docs/results.md has how often the best one is the right one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from engine.answer import checks
from engine.answer.citations import DocumentText
from engine.answer.focus import search_texts
from engine.answer.open_stores import MEMORY, OpenStores
from engine.answer.overlap import overlap, stems
from engine.answer.ranked_documents import rank_documents
from engine.errors import BudgetError, QuestionError, SekvError, StoppedError
from engine.object_storage import Address
from engine.store import glance
from engine.store.catalogue import Catalogue, Found, Holding
from engine.store.reader import read_store
from engine.types import Answer, AskOptions, Citation, Progress, Turn

if TYPE_CHECKING:
    from types import TracebackType

    from engine.models.chunked import Stop
    from engine.models.reader import Reader

NEXT_DOCUMENTS = 2
"""Documents whose best passage is cited behind those of the document that answered."""


class LibrarySession:
    """A library open for questions; asks as `Session` does. Use as a context manager."""

    def __init__(
        self,
        path: Address,
        options: AskOptions,
        progress: Progress,
        *,
        memory: int = MEMORY,
        stores: OpenStores | None = None,
        reader: Reader | None = None,
    ) -> None:
        """
        Args:
            memory: bytes that open stores take together, see `OpenStores`.
            stores: where stores are opened, if others use it too.
            reader: a model that is loaded already.
        Raises:
            LibraryError: its catalogue cannot be read or written.
        """
        checks.check_options(options)
        self.path, self._progress = path, progress
        self.options = options
        self._owns_stores = stores is None  # one that holds nothing yet is false
        self._stores = OpenStores(options, progress, memory, reader) if stores is None else stores
        self._catalogue = Catalogue(path)
        self._holdings: list[Holding] = []
        self._left_out: dict[str, str] = {}
        self._said: set[str] = set()
        self._last: Address | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()
        if self._owns_stores:
            self._stores.close()

    def close(self) -> None:
        """Close the catalogue; stores that others use too stay open."""
        self._catalogue.__exit__()

    def holdings(self) -> list[Holding]:
        """The stores that can be read, as of the last question."""
        return self._holdings

    def warm_up(self) -> None:
        """Bring the catalogue up to date and open one store, so that its model is loaded.

        Raises:
            SekvError: no store can be opened.
        """
        self._refresh()
        failure: SekvError | None = None
        for holding in self._holdings:
            try:
                self._stores.session(self.path / holding.name)
                return
            except SekvError as error:
                failure = error
                self._leave_out(holding.name, error)
        if failure is not None:
            raise failure

    def retune(self, options: AskOptions) -> None:
        """Take other options, as `Session.retune`."""
        checks.check_options(options)
        self.options = options

    def trace(self) -> dict[str, Any]:
        """That of the store which answered last, see `Session.trace`; {} before an answer."""
        session = self._stores.peek(self._last) if self._last is not None else None
        return {} if session is None else session.trace()

    def ask(
        self,
        question: str,
        on_text: Callable[[str], None] | None = None,
        *,
        turns: Sequence[Turn] = (),
        stop: Stop | None = None,
    ) -> Answer:
        """Answer one question from the document whose passages share most with its words.

        Arguments as `Session.ask`. A store that cannot be opened is left out with a remark, and the
        next document answers.

        Raises:
            QuestionError: as `Session.ask`; or no document has any of its words.
            SekvError: none of the documents that have can be opened.
        """
        checks.check_question(question, turns)
        begun = time.perf_counter()
        self._refresh()
        texts = search_texts(question, turns)
        best = rank_documents(texts, self._catalogue.find)
        searched = time.perf_counter() - begun
        if not best:
            raise QuestionError(
                f"no document of {self.path} has any word of the question; ask in other words"
            )
        ranked = list(best)
        failure: SekvError | None = None
        for place, name in enumerate(ranked):
            try:
                answer = self._ask(name, question, on_text, turns, stop)
            except (BudgetError, StoppedError):  # of the question, not of the store
                raise
            except SekvError as error:
                failure = error
                self._leave_out(name, error)
                continue
            others = ranked[place + 1 : place + 1 + NEXT_DOCUMENTS]
            further = [self._passage(best[other], question, answer) for other in others]
            citations = (*answer.citations, *(each for each in further if each is not None))
            stats = {**answer.stats, "documents": len(ranked), "library_search_s": searched}
            return replace(answer, citations=citations, stats=stats)
        assert failure is not None
        raise failure

    # -- steps

    def _ask(
        self,
        name: str,
        question: str,
        on_text: Callable[[str], None] | None,
        turns: Sequence[Turn],
        stop: Stop | None,
    ) -> Answer:
        """The answer of one store, whose name its citations bear."""
        path = self.path / name
        opened = path in self._stores
        self._stores.options = self.options
        session = self._stores.session(path)
        answer = session.ask(question, on_text, turns=turns, stop=stop)
        self._last = path
        self._left_out.pop(name, None)
        cited = tuple(replace(citation, store=name) for citation in answer.citations)
        timing = answer.timing
        for line in glance.changed_sources(path):
            self._say(line)
        if opened:  # nothing was loaded for this question
            timing = {**timing, "model_load_s": 0.0, "store_open_s": 0.0}
        return replace(answer, citations=cited, store=name, timing=timing)

    def _passage(self, found: Found, question: str, answer: Answer) -> Citation | None:
        """The sentence of a passage that shares most with the words of question and answer.

        None where its store cannot be read. Its weight is 0: no attention was paid to it.
        """
        try:
            book = read_store(
                self.path / found.store, lambda store: DocumentText.of(store, store.document())
            )
        except SekvError as error:
            self._leave_out(found.store, error)
            return None
        words = book.rare(stems(f"{question} {answer.answer}"))
        sentence = max(
            book.sentences((found.first, found.end)),
            key=lambda place: overlap(words, book.texts[place[0]][place[1] : place[2]]),
        )
        return replace(book.citation(sentence, 0.0), store=found.store)

    def _refresh(self) -> None:
        """Look which stores there are, and say once what is wrong with any."""
        self._catalogue.refresh(self._progress, sparing=True)
        entries = self._catalogue.entries()
        self._holdings = [holding for holding in entries if not holding.problem]
        for holding in entries:
            if holding.problem and self._left_out.get(holding.name) != holding.problem:
                self._left_out[holding.name] = holding.problem
                self._progress.note(f"{holding.problem}; it is left out")

    def _say(self, line: str) -> None:
        """A remark that is made once."""
        if line not in self._said:
            self._said.add(line)
            self._progress.note(line)

    def _leave_out(self, name: str, error: SekvError) -> None:
        """Say once that a store cannot answer, and why."""
        said = " ".join(str(error).split())
        if self._left_out.get(name) != said:
            self._left_out[name] = said
            self._progress.note(f"{said}; {name} is left out")
