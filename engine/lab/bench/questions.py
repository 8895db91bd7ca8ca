"""Natural questions with their answers and where these stand, and excerpts of their documents.

A file of questions is JSON lines; docs/questions/README.md has the format. Evidence is found in
the text that the loader gives, white space aside, so that offsets need not survive a better loader.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from engine.documents import load
from engine.errors import DocumentError

if TYPE_CHECKING:
    from engine.documents import Document
    from engine.documents.tokens import Tokens

UNANSWERABLE = "unanswerable"


@dataclass(frozen=True)
class Question:
    """One question on one document.

    document: path below the folder of documents. answer: "" where the document gives none.
    aliases: other right answers. evidence: the words that state the answer. kind: "lexical",
    "paraphrase" (no word in common with the evidence) or "unanswerable".
    """

    id: str
    document: str
    text: str
    answer: str
    aliases: tuple[str, ...] = ()
    evidence: str = ""
    kind: str = "lexical"

    @property
    def answerable(self) -> bool:
        """Whether the document gives an answer."""
        return self.kind != UNANSWERABLE

    def place(self, text: str) -> tuple[int, int] | None:
        """Where the evidence stands in the document's text, white space aside; None: nowhere."""
        return find(text, self.evidence)


def find(text: str, words: str, start: int = 0) -> tuple[int, int] | None:
    """The characters of `text` from `start` on that say `words`, white space aside."""
    pattern = r"\s+".join(map(re.escape, words.split()))
    found = re.compile(pattern).search(text, start) if pattern else None
    return found.span() if found else None


def load_questions(path: Path) -> list[Question]:
    """The questions of a file, in order.

    Raises:
        DocumentError: no such file, or a line that is no question.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DocumentError(f"cannot read questions from {path}: {error.strerror}") from None
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            one = Question(
                id=str(record["id"]),
                document=str(record["document"]),
                text=str(record["question"]),
                answer=str(record["answer"]),
                aliases=tuple(map(str, record.get("aliases", ()))),
                evidence=str(record.get("evidence", "")),
                kind=str(record.get("kind", "lexical")),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise DocumentError(f"{path}: line {number} is no question: {error!r}") from None
        if not one.text.strip() or one.answerable != bool(one.answer):
            raise DocumentError(f"{path}: line {number} has no question, or an answer too many")
        found.append(one)
    if not found:
        raise DocumentError(f"{path} holds no questions")
    return found


@dataclass(frozen=True)
class Excerpt:
    """Part of a document, and the questions that it answers."""

    text: str
    questions: tuple[Question, ...]


@dataclass
class Excerpts:
    """Excerpts of some lengths in turn, each with all the questions whose evidence it holds.

    Documents take turns; every answerable question is asked once. Where an excerpt begins is drawn.

    documents: folder of what the questions name. tokenize: a document's tokens. lengths: tokens.
    """

    questions: Sequence[Question]
    documents: Path
    tokenize: Callable[[Document], Tokens]
    lengths: Sequence[int]
    seed: int = 0
    most: int = 8
    """Questions on one excerpt: what intervals need is many excerpts."""
    _count: int = field(default=0, init=False)

    def __iter__(self) -> Iterator[Excerpt]:
        self._count = 0
        rng = Random(self.seed)
        names = list(dict.fromkeys(q.document for q in self.questions if q.answerable))
        turns = [self._of(name, rng) for name in names]
        while turns:
            for turn in list(turns):
                excerpt = next(turn, None)
                if excerpt is None:
                    turns.remove(turn)
                else:
                    yield excerpt

    def _of(self, name: str, rng: Random) -> Iterator[Excerpt]:
        document = load([str(self.documents / name)])
        text = document.sources[0].text
        tokens = self.tokenize(document)
        left: dict[str, tuple[Question, tuple[int, int]]] = {}
        for question in self.questions:
            if question.document != name or not question.answerable:
                continue
            place = question.place(text)
            if place is None:
                raise DocumentError(f"{name} does not hold the evidence of {question.id}")
            left[question.id] = (question, place)
        order = list(left)
        rng.shuffle(order)
        for key in order:
            if key not in left:
                continue
            length = self.lengths[self._count % len(self.lengths)]
            self._count += 1
            _, place = left[key]
            first = int((tokens.starts <= place[0]).sum()) - 1
            last = int((tokens.starts < place[1]).sum())
            low = max(0, last - length)
            high = max(low, min(first, len(tokens) - length))
            begin = rng.randint(low, high)
            end = min(len(tokens), begin + length) - 1
            chars = int(tokens.starts[begin]), int(tokens.ends[end])
            inside = [
                one
                for one, (q, (a, b)) in left.items()
                if one == key or (chars[0] <= a and b <= chars[1])
            ][: self.most]
            if key not in inside:
                inside[-1] = key
            asked = tuple(left.pop(one)[0] for one in inside)
            yield Excerpt(text[chars[0] : chars[1]], asked)
