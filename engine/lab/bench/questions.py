"""Natural questions with their answers and where these stand, and excerpts of their documents.

A file of questions is JSON lines; docs/questions/README.md has the format. Evidence is found in
the text that the loader gives, white space aside, so that offsets need not survive a better loader.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from engine.documents import load
from engine.errors import DocumentError

if TYPE_CHECKING:
    from engine.documents import Document
    from engine.documents.tokens import Tokens

UNANSWERABLE = "unanswerable"

ONWARD = 400
"""Characters that are told of how a document goes on behind an excerpt."""


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
        DocumentError: no such file, no UTF-8 text, or a line that is no question.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DocumentError(f"cannot read questions from {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DocumentError(f"{path} is not UTF-8 text; save the questions as UTF-8") from None
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
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DocumentError(f"{path}: line {number} is no question: {error!r}") from None
        if not one.text.strip() or one.answerable != bool(one.answer):
            raise DocumentError(f"{path}: line {number} has no question, or an answer too many")
        found.append(one)
    if not found:
        raise DocumentError(f"{path} holds no questions; write one JSON object a line")
    return found


def choose(questions: Sequence[Question], count: int, seed: int = 0) -> list[Question]:
    """So many questions, evenly over kinds and, within a kind, over documents, in file order.

    The next one is always of the kind, then of the document, that has the fewest so far; which of
    its questions that is follows from the seed. All of them where there are no more.
    """
    left = list(questions)
    Random(seed).shuffle(left)
    kinds, documents, chosen = Counter[str](), Counter[tuple[str, str]](), set[str]()
    while left and len(chosen) < count:
        one = min(left, key=lambda q: (kinds[q.kind], documents[q.kind, q.document]))
        left.remove(one)
        kinds[one.kind] += 1
        documents[one.kind, one.document] += 1
        chosen.add(one.id)
    return [question for question in questions if question.id in chosen]


@dataclass(frozen=True)
class Excerpt:
    """Part of a document, and the questions that are asked on it.

    document: its name, as the questions have it. start: character of the document's text at which
    the excerpt begins. onward: how the document goes on behind it.
    """

    text: str
    questions: tuple[Question, ...]
    document: str = ""
    start: int = 0
    onward: str = ""


@dataclass(frozen=True)
class Excerpts:
    """Excerpts of some lengths in turn, each with all the questions whose evidence it holds.

    Documents take turns; every answerable question is asked once. Where an excerpt begins is drawn.

    documents: folder of what the questions name. tokenize: a document's tokens. lengths: tokens.
    most: questions on one excerpt; what intervals need is many excerpts.
    unanswerable: whether questions without an answer are asked too, each on an excerpt drawn at
    random of its document, several of which share one.
    """

    questions: Sequence[Question]
    documents: Path
    tokenize: Callable[[Document], Tokens]
    lengths: Sequence[int]
    seed: int = 0
    most: int = 8
    unanswerable: bool = False

    def __iter__(self) -> Iterator[Excerpt]:
        """
        Raises:
            DocumentError: a document is not there, or does not hold the evidence of a question.
        """
        rng, lengths = Random(self.seed), cycle(self.lengths)
        wanted = [q for q in self.questions if q.answerable or self.unanswerable]
        turns = [self._of(name, rng, lengths) for name in dict.fromkeys(q.document for q in wanted)]
        while turns:
            for turn in list(turns):
                excerpt = next(turn, None)
                if excerpt is None:
                    turns.remove(turn)
                else:
                    yield excerpt

    def _of(self, name: str, rng: Random, lengths: Iterator[int]) -> Iterator[Excerpt]:
        document = load([str(self.documents / name)])
        text = document.sources[0].text
        tokens = self.tokenize(document)
        mine = [question for question in self.questions if question.document == name]
        left = {q.id: (q, placed(q, text)) for q in mine if q.answerable}
        order = list(left)
        rng.shuffle(order)
        for key in order:
            if key not in left:
                continue
            start, end = _around(left[key][1], tokens, next(lengths), key, rng)
            inside = [
                one for one, (_, (a, b)) in left.items() if one != key and start <= a and b <= end
            ]
            asked = [key, *inside[: self.most - 1]]
            questions = tuple(left.pop(one)[0] for one in left.copy() if one in asked)
            yield Excerpt(text[start:end], questions, name, start, text[end : end + ONWARD])
        without = [q for q in mine if not q.answerable] if self.unanswerable else []
        for first in range(0, len(without), self.most):
            length = min(next(lengths), len(tokens))
            begin = rng.randint(0, len(tokens) - length)
            start, end = int(tokens.starts[begin]), int(tokens.ends[begin + length - 1])
            yield Excerpt(text[start:end], tuple(without[first:][: self.most]), name, start)


def placed(question: Question, text: str) -> tuple[int, int]:
    """Where the evidence of an answerable question stands.

    Raises:
        DocumentError: nowhere in this text.
    """
    place = question.place(text)
    if place is None:
        raise DocumentError(
            f"{question.document} does not hold the evidence of {question.id}; another edition?"
        )
    return place


def _around(
    place: tuple[int, int], tokens: Tokens, length: int, key: str, rng: Random
) -> tuple[int, int]:
    """The characters of so many tokens, less where the document is shorter, that hold a place.

    Raises:
        DocumentError: the place is longer than that.
    """
    first = int((tokens.starts <= place[0]).sum()) - 1
    while first and tokens.starts[first - 1] == tokens.starts[first]:
        first -= 1  # a character of several bytes may be split over tokens
    after = int((tokens.starts < place[1]).sum())
    if after - first > length:
        raise DocumentError(
            f"the evidence of {key} has {after - first} tokens, more than {length}; name a "
            "longer --length"
        )
    length = min(length, len(tokens))
    begin = rng.randint(max(0, after - length), min(first, len(tokens) - length))
    return int(tokens.starts[begin]), int(tokens.ends[begin + length - 1])
