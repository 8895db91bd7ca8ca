"""How a document is cut into windows, each of which is read in one context."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.errors import BudgetError

if TYPE_CHECKING:
    from engine.documents import Document
    from engine.documents.tokens import Tokens

ROOM = 1024
"""Positions kept free behind the document for question and answer."""


@dataclass(frozen=True)
class Windows:
    """How a document is read. bounds: token positions, first 0, last N. most: the window asked."""

    bounds: tuple[int, ...]
    most: int

    def __len__(self) -> int:
        return len(self.bounds) - 1


def longest_window(positions: int, requested: int, reads_well: int) -> int:
    """Document tokens per context: what was asked, what the reader reads well, or what fits.

    Args:
        positions: most tokens of one context.
    Raises:
        BudgetError: asked for more than they hold.
    """
    most = positions - min(ROOM, positions // 4)
    if requested < 0 or requested > most:
        raise BudgetError(
            f"--window {requested}: this model holds at most {most} document tokens beside a "
            "question"
        )
    return requested or min(most, reads_well or most)


def cut_windows(document: Document, tokens: Tokens, most: int) -> Windows:
    """Cut a document that is longer than one window into windows of nearly equal length.

    A cut moves back, by at most an eighth of a window, to the end of a paragraph, else of a
    sentence, so that a statement is not read in two halves.
    """
    n = len(tokens.ids)
    bounds = [0]
    while n - bounds[-1] > most:
        start = bounds[-1]
        left = n - start
        target = start + min(most, -(-left // -(-left // most)) + most // 16)
        bounds.append(_good_cut(document, tokens, target, max(1, most // 8)))
    bounds.append(n)
    return Windows(tuple(bounds), most)


def _good_cut(document: Document, tokens: Tokens, target: int, reach: int) -> int:
    """The last token position in (target - reach, target] that follows an end of text."""
    best, found = 0, target
    for position in range(target, target - reach, -1):
        source = int(tokens.source[position])
        if int(tokens.source[position - 1]) != source:
            return position
        text = document.sources[source].text
        at = int(tokens.starts[position])
        before = text[max(0, at - 3) : at].rstrip(" ")
        here = text[at : at + 2]
        rank = 0
        if before.endswith("\n\n") or here.startswith("\n\n"):
            rank = 3
        elif before.endswith((".", "!", "?", '."', ".'", ".”")) and here[:1].isspace():
            rank = 2
        elif before.endswith("\n"):
            rank = 1
        if rank > best:
            best, found = rank, position
            if rank == 3:
                break
    return found
