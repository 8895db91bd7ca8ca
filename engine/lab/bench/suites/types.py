"""The nouns of a suite. Nothing is drawn or scored here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Count = Callable[[str], int]
"""How many tokens a text has."""

LIMIT = 1 << 20  # units of filler; a task that runs out of words cannot grow for ever


@dataclass(frozen=True)
class Ask:
    """One question. answers: what is right, by `metric` of `scores`; none where the document gives
    no answer. most: tokens of an answer.
    extra: what else a metric needs, such as the classes of a classification.
    first_line: only the first line of an answer counts. id, kind, evidence: of a natural question,
    see `questions.Question`."""

    text: str
    answers: tuple[Any, ...]
    metric: str
    most: int
    extra: tuple[Any, ...] = ()
    first_line: bool = False
    id: str = ""
    kind: str = ""
    evidence: str = ""


@dataclass(frozen=True)
class Item:
    """One document to be. key: unique in its suite. tokens: aimed length, 0 if it is what it is.
    depth: where in the document the answer stands, 0 to 1, None for anywhere."""

    key: str
    task: str
    tokens: int
    depth: float | None = None


@dataclass(frozen=True)
class Sample:
    """A document and its questions. keep: whether its stores are kept in the folder of the run,
    because it takes long to read."""

    document: str
    asks: tuple[Ask, ...]
    keep: bool = False


class Suite(Protocol):
    """name: as `--suite` has it. items: all of it, in order."""

    @property
    def name(self) -> str: ...
    @property
    def items(self) -> Sequence[Item]: ...
    def draw(self, item: Item, count: Count) -> Sample: ...


def fill(build: Callable[[int], str], tokens: int, count: Count, least: int = 1) -> int:
    """The most units of filler whose document has at most `tokens` tokens, `least` at least.

    Args:
        build: document of so many units; more units are more tokens.
    """
    high = max(least, 4)
    while high < LIMIT and count(build(high)) <= tokens:
        high *= 2
    low = least
    while low + 1 < high:
        middle = (low + high) // 2
        if count(build(middle)) <= tokens:
            low = middle
        else:
            high = middle
    return low
