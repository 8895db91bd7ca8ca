"""Stop sequences: where they cut an answer, and what a stream holds back for them.

A mark may come in pieces, so that a streamed text must not show what may yet become one.
"""

from __future__ import annotations

from collections.abc import Sequence


def cut(text: str, marks: Sequence[str]) -> tuple[str, bool]:
    """The text before the first mark in it, and whether there was one."""
    at = min((found for mark in marks if (found := text.find(mark)) >= 0), default=-1)
    return (text, False) if at < 0 else (text[:at], True)


def safe(text: str, marks: Sequence[str]) -> str:
    """The text without an end that may be the beginning of a mark."""
    longest = max(map(len, marks), default=1) - 1
    for size in range(min(longest, len(text)), 0, -1):
        if any(mark.startswith(text[-size:]) for mark in marks):
            return text[:-size]
    return text
