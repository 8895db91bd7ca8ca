"""Passages of a text, by one rule for a store's own index and a library's, and how words find them
in a library.

A passage is a run of tokens within one window; passages overlap by half. In a library words are
found by FTS5 of SQLite and ranked by its BM25. torch-free.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable
from itertools import chain

from engine.errors import SekvError

PASSAGE, STEP = 256, 128
"""Tokens of a passage, and from the beginning of one to the next."""

TOKENIZE = "tokenize='porter unicode61 remove_diacritics 2'"
"""Words of letters and digits without accents, English ones cut to their stems."""

UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3]")
"""Characters of scripts without spaces; each counts as a word."""


def passages(window: tuple[int, int]) -> list[tuple[int, int]]:
    """The passages of a window, which overlap by half; the last one ends where the window does."""
    first, end = window
    starts = range(first, max(first + 1, end - PASSAGE + STEP), STEP)
    return [(start, min(start + PASSAGE, end)) for start in starts]


def make_table(database: sqlite3.Connection, options: str = "") -> None:
    """Make the table `passages(text)` of a database. options: more of FTS5's, each with a comma.

    Raises:
        SekvError: the SQLite of this Python has no full-text search.
    """
    try:
        database.execute(f"CREATE VIRTUAL TABLE passages USING fts5(text, {options} {TOKENIZE})")
    except sqlite3.OperationalError as error:
        raise SekvError(
            "libraries are searched with the FTS5 of SQLite 3.27 or newer, and this "
            f"Python has {sqlite3.sqlite_version} ({error}): use another build of Python"
        ) from None


def spaced(text: str) -> str:
    """The text with spaces around characters that are words by themselves."""
    return UNSPACED.sub(r" \g<0> ", text)


def query(words: Iterable[str]) -> str:
    """What FTS5 is asked for passages with any of the words; "" where there is none."""
    terms = dict.fromkeys(chain.from_iterable(spaced(word).split() for word in words))
    return " OR ".join(f'"{term}"' for term in terms)
