"""Which line ends of a text only wrap it, and which part headings, items and cells from each other.

Pure functions on extracted text. A PDF has lines and no paragraphs: what is a unit of its own shows
only by how long its lines are beside their neighbours, and by how they begin.
"""

from __future__ import annotations

import re
from itertools import pairwise

SHORT = 0.7
"""Part of the longest line near by up to which a line is short: nothing was wrapped there."""

NEAR = 3
"""Lines before and after one that it is compared with."""

TINY = 12
"""Characters of lines that are no units of their own beside each other: pieces of a formula."""

FIGURE = 5
"""Characters of a figure by itself; a longer line that begins with a digit is a row, or a date."""

_ITEM = re.compile(
    r"[•·▪◦●■‣*–—-]\s|\(?(?:\d{1,3}|[a-z])[.)]\s"
    r"|(?:CHAPTER|Chapter|SECTION|Section|APPENDIX|Appendix)\s+(?:\d{1,3}|[IVXLC]+|[A-H])[.:]\s"
)
_NEW = re.compile(r"[\"“‘'(\[_#|]*[^\W_a-zß-öø-ÿ]|[\"“(\[_#|]+\w")
_GOES_ON = re.compile(r"(?:[,;–—-]|\b(?:and|or|of|the|an?|in|on|to|for|with|by|at|from|as))$")


def breaks(text: str, low: int, high: int) -> list[int]:
    """Where in text[low:high] a line begins that does not go on with the line before it.

    Returns:
        Offsets of first characters of lines, ascending, each greater than `low`.
    """
    first = low
    for _ in range(NEAR + 1):
        first = text.rfind("\n", 0, max(first - 1, 0)) + 1
    end = high
    for _ in range(NEAR):
        newline = text.find("\n", end + 1)
        end = len(text) if newline < 0 else newline
    lines = list(re.finditer(r"[^\n]*(?:\n|\Z)", text[first:end]))
    words = [line[0].strip() for line in lines]
    found = []
    for at in range(1, len(lines)):
        start = first + lines[at].start()
        near = max(len(line) for line in words[max(0, at - 1 - NEAR) : at + NEAR])
        if low < start < high and words[at] and _parted(words[at - 1], words[at], near):
            found.append(start)
    return found


def flat(text: str) -> str:
    """A passage on one line: wrapped lines are joined by a space, units of their own by " / ",
    cells by " | "."""
    starts = [0, *breaks(text, 0, len(text)), len(text)]
    parts = (text[a:b].strip() for a, b in pairwise(starts))
    return " / ".join(" ".join(re.sub(r"\s*\t\s*", " | ", part).split()) for part in parts if part)


def _parted(before: str, line: str, longest: int) -> bool:
    """Whether a line is a unit of its own behind another one. longest: of the lines near by."""
    if not before or _ITEM.match(line):
        return True
    if before[0].isdigit() and line[0].isdigit() and min(len(before), len(line)) > FIGURE:
        return True  # rows of a table
    if len(before) < TINY and len(line) < TINY:
        return False
    return bool(
        len(before) <= SHORT * longest and _NEW.match(line) and not _GOES_ON.search(before.lower())
    )
