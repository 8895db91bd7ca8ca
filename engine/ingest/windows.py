"""How a document is cut into windows, each of which is read in one context."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from engine.errors import BudgetError

if TYPE_CHECKING:
    from engine.documents import Document
    from engine.documents.tokens import Tokens

ROOM = 1024
"""Positions kept free behind the document for question and answer."""


@dataclass(frozen=True)
class Windows:
    """How a document is read. bounds: token positions, first 0, last N. most: the window asked.
    context: positions of the context whose RoPE frequencies all windows are read with, 0 where
    these do not depend on it (`attention.rope_length`)."""

    bounds: tuple[int, ...]
    most: int
    context: int = 0

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @property
    def longest(self) -> int:
        """Tokens of the longest one."""
        return max(end - start for start, end in pairwise(self.bounds))


def choose_windows(
    document: Document, tokens: Tokens, config: Any, requested: int, reads_well: int
) -> Windows:
    """The windows of a document for a model of this configuration.

    Where RoPE depends on the length of the context, it is that of a window that was asked for by
    name, else of the longest that the document has, with the room behind it.

    Raises:
        BudgetError: see `longest_window`.
    """
    from engine.attention.layer_states import positions
    from engine.attention.rope_length import context_for

    reach = positions(config)
    cut = cut_windows(document, tokens, longest_window(reach, requested, reads_well))
    longest = requested or cut.longest
    context = context_for(config, longest + reach - longest_window(reach, 0, 0))
    if not context:
        return cut
    return Windows(cut.bounds, min(cut.most, longest_window(context, 0, 0)), context)


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
