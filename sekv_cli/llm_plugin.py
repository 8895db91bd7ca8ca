"""A plugin of the command `llm` (llm.datasette.io): `llm -m sekv:book "..."` asks book.sekv.

Every store in the working directory, and in the folders that SEKV_STORES names, is a model. A
running `sekv serve` of the same user answers if it has the store open. Imported by llm alone.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import llm
from pydantic import Field

from engine.documents.line_ends import flat
from engine.errors import SekvError
from engine.store.folders import looks_like_a_store
from engine.types import AskOptions, Silent, Turn
from sekv_cli.answers import place

if TYPE_CHECKING:
    from engine.types import Answer

FOLDERS = "SEKV_STORES"
"""The variable that names folders of stores, separated as PATH is."""


class StoreOptions(llm.Options):
    """What `llm -o NAME VALUE` may say: options of `sekv ask`, and whether passages are shown."""

    budget: str | None = Field(default=None, description="10%, 4096 tokens or auto")
    max_tokens: int | None = Field(default=None, description="Longest answer, in tokens")
    temperature: float | None = Field(default=None, description="0 takes the likeliest token")
    top_p: float | None = Field(default=None, description="Sample from this share of the mass")
    seed: int | None = Field(default=None, description="Seed of the sampling")
    citations: bool = Field(default=True, description="Show the passages below the answer")


class StoreModel(llm.Model):
    """One store. It stays open between the questions of a talk (`llm chat`)."""

    can_stream = True
    Options = StoreOptions

    def __init__(self, name: str, store: Path) -> None:
        self.model_id = f"sekv:{name}"
        self._store = store
        self._asker: Any = None

    def __str__(self) -> str:
        return f"sekv: {self.model_id}"

    def execute(
        self, prompt: llm.Prompt, stream: bool, response: llm.Response, conversation: Any = None
    ) -> Iterator[str]:
        """Answer, piece by piece as it is made.

        Raises:
            llm.ModelError: a system prompt, or what `sekv ask` would refuse.
        """
        if prompt.system:
            raise llm.ModelError(
                "a store's prompt was read with its document: leave the system prompt out"
            )
        try:
            yield from self._answer(prompt, response, _turns(conversation))
        except SekvError as error:
            raise llm.ModelError(str(error)) from error

    def _answer(
        self, prompt: llm.Prompt, response: llm.Response, turns: Sequence[Turn]
    ) -> Iterator[str]:
        options = _chosen(prompt.options)
        if self._asker is None:
            from sekv_cli.asker import open_asker

            self._asker = open_asker(self._store, options, Silent(), no_server=False)
        else:
            self._asker.retune(options)
        asking = _Asking(self._asker, prompt.prompt, turns)
        shown = ""
        for piece in asking.pieces():
            shown += piece
            yield piece
        answer = asking.result()
        if not shown:
            yield answer.stated
        response.response_json = answer.to_json()
        response.set_usage(input=answer.usage.question_tokens, output=answer.usage.answer_tokens)
        if prompt.options.citations:
            yield _passages(answer)


class _Asking:
    """A question on its way in a thread of its own, so that pieces come while it is answered."""

    def __init__(self, asker: Any, question: str, turns: Sequence[Turn]) -> None:
        self._pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._answer: Answer | None = None
        self._error: BaseException | None = None

        def ask() -> None:
            try:
                self._answer = asker.ask(question, self._pieces.put, turns=turns)
            except BaseException as error:
                self._error = error
                raise
            finally:
                self._pieces.put(None)

        self._thread = threading.Thread(target=ask, daemon=True)
        self._thread.start()

    def pieces(self) -> Iterator[str]:
        while (piece := self._pieces.get()) is not None:
            yield piece

    def result(self) -> Answer:
        """The whole answer, or what it failed with."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        assert self._answer is not None
        return self._answer


@llm.hookimpl
def register_models(register: Any) -> None:
    """Every store that is in sight is a model; of two with one name the first counts."""
    for name, store in stores().items():
        register(StoreModel(name, store))


def stores() -> dict[str, Path]:
    """The stores in the working directory and in the folders of SEKV_STORES, by name."""
    found: dict[str, Path] = {}
    named = [place for place in os.environ.get(FOLDERS, "").split(os.pathsep) if place]
    for folder in [Path(), *map(Path, named)]:
        try:
            inside = sorted(folder.expanduser().iterdir())
        except OSError:
            continue  # a folder that is not there now has no stores
        for path in inside:
            if looks_like_a_store(path):
                found.setdefault(path.name.removesuffix(".sekv"), path.resolve())
    return found


def _chosen(said: Any) -> AskOptions:
    given = {
        "budget": said.budget,
        "max_new_tokens": said.max_tokens,
        "temperature": said.temperature,
        "top_p": said.top_p,
        "seed": said.seed,
    }
    return AskOptions(**{name: value for name, value in given.items() if value is not None})


def _turns(conversation: Any) -> tuple[Turn, ...]:
    """The questions and answers before this one, without the passages that stood below them."""
    if conversation is None:
        return ()
    turns = []
    for before in conversation.responses:
        kept = before.response_json or {}
        turns.append(Turn(before.prompt.prompt, str(kept.get("answer") or before.text())))
    return tuple(turns)


def _passages(answer: Answer) -> str:
    """The passages below an answer, as plain text."""
    lines = []
    for number, citation in enumerate(answer.citations, 1):
        where = place(citation, citation.source)
        lines.append(f"\n[{number}] {where}\n    {flat(citation.text)}")
    return "\n" + "\n".join(lines) if lines else ""
