"""The names of the methods alone, so that a wrong one is refused before torch is imported.

`methods.METHODS` is the table; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Iterable

from engine.errors import BudgetError

NAMES = (
    "sekv",
    "sekv-paper",
    "full",
    "sentencekv",
    "compresskv",
    "compresskv-strict",
    "sentkvcompress",
    "dynsplit",
    "streaming",
    "snapkv",
    "zoomr",
)


def check(name: str, known: Iterable[str] = NAMES) -> None:
    """Whether there is a method of that name; what follows a "+" is for `methods.named` to judge.

    Raises:
        BudgetError: there is none; the line lists the known ones.
    """
    names = list(known)
    if name.partition("+")[0] not in names:
        raise BudgetError(f"unknown method '{name}'; known: {', '.join(names)}")
