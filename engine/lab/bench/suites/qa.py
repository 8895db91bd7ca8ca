"""Natural questions, each asked on an excerpt of its document or on the whole of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from engine.documents import load
from engine.lab.bench.questions import Excerpt, Excerpts, Question, placed
from engine.lab.bench.suites.types import Ask, Count, Item, Sample

if TYPE_CHECKING:
    from engine.documents import Document
    from engine.documents.tokens import Tokens

MOST = 32
"""Tokens of an answer: right ones have one to six words, and a model may say them in a sentence."""


@dataclass
class NaturalQuestions:
    """The questions of a file, with their documents in a folder.

    length: tokens of an excerpt around the evidence, or of one at a random place for a question
    without an answer; 0 asks on whole documents, whose stores are then kept with the run.

    Raises:
        DocumentError: a document is not there, or does not hold the evidence of a question.
    """

    questions: Sequence[Question]
    documents: Path
    tokenize: Callable[[Document], Tokens]
    length: int
    seed: int
    name: str = "qa"
    items: Sequence[Item] = field(init=False)

    def __post_init__(self) -> None:
        excerpts = list(self._excerpts() if self.length else self._whole())
        self._drawn = {_key(excerpt): excerpt for excerpt in excerpts}
        self.items = [
            Item(key, excerpt.document, self.length) for key, excerpt in self._drawn.items()
        ]

    def draw(self, item: Item, count: Count) -> Sample:
        excerpt = self._drawn[item.key]
        asks = tuple(map(_ask, excerpt.questions))
        return Sample(excerpt.text, asks, keep=not self.length)

    def _excerpts(self) -> Excerpts:
        return Excerpts(
            self.questions, self.documents, self.tokenize, (self.length,), self.seed,
            unanswerable=True,
        )  # fmt: skip

    def _whole(self) -> list[Excerpt]:
        found = []
        for name in dict.fromkeys(question.document for question in self.questions):
            text = load([str(self.documents / name)]).sources[0].text
            asked = tuple(question for question in self.questions if question.document == name)
            for question in asked:
                if question.answerable:
                    placed(question, text)
            found.append(Excerpt(text, asked, name))
        return found


def _ask(question: Question) -> Ask:
    answers = (question.answer, *question.aliases) if question.answerable else ()
    return Ask(
        question.text, answers, "contains", MOST,
        id=question.id, kind=question.kind, evidence=question.evidence,
    )  # fmt: skip


def _key(excerpt: Excerpt) -> str:
    """A name that no other text and no other questions have."""
    whole = "\0".join([excerpt.text, *(question.id for question in excerpt.questions)])
    return f"{Path(excerpt.document).stem}-{hashlib.sha256(whole.encode()).hexdigest()[:12]}"
