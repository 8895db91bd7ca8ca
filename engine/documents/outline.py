"""The headings of a document: as its format marks them, else as its lines look. Pure functions.

HTML, EPUB, DOCX and Markdown mark their headings, which become pages with a name (`types.Page`). A
PDF or a plain text has lines: "CHAPTER IV. The Old Sea-dog", "4.2 Deployment", "PREFACE".
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

MARKED = frozenset({"markdown", "html", "epub", "docx", "email"})
"""Kinds of sources whose pages are sections with names."""

LONGEST, LONGEST_NAMED = 90, 140
"""Characters of a line that can be a heading, and of one that says so itself ("Chapter 3")."""

BODY, BODY_NAMED = 200, 600
"""Characters of text that follow such a heading; an entry of a list of contents has less."""

RUNNING = 4
"""How often a title may occur (volumes have chapters of the same numbers); a line that occurs more
often runs through the pages."""

_ROMAN = r"[IVXLC]{1,8}"
_NUMBERED = re.compile(
    rf"(?:chapter|part|book|letter|appendix|act|scene|section|federalist\s+no\.?|canto|stave)\s+"
    rf"(?:\d{{1,3}}|{_ROMAN}|[A-Z]|one|two|three|four|five|six|seven|eight|nine|ten)\b(?![,;])",
    re.IGNORECASE,
)
_SECTION = re.compile(r"(\d{1,2}(?:\.\d{1,2}){0,3})\.?\s+(?=[A-Z])")
_CAPITALS = re.compile(r"[A-Z][A-Z '’:,&—-]{3,60}\.?")
_LEADER = re.compile(r"(?:\.\s?){3,}|\s\d{1,4}$")


@dataclass(frozen=True)
class Heading:
    """A heading. start, end: its characters. number: "IV", "4.2", "12" or "" if it has none."""

    title: str
    start: int
    end: int
    number: str = ""


def headings(text: str, pages: Sequence[tuple[str, int]], kind: str) -> tuple[Heading, ...]:
    """The headings of a source, in order.

    Args:
        pages: label and first character of each page or section.  kind: of the source.
    """
    if kind in MARKED:
        marked = [(label, start) for label, start in pages if label.strip()]
        return tuple(
            Heading(label, start, min(len(text), start + len(label)), number_of(label))
            for label, start in marked
        )
    found = list(_lines(text))
    often = Counter(_key(heading.title) for heading in found)
    kept = [heading for heading in found if often[_key(heading.title)] <= RUNNING]
    return _with_body(kept, len(text))


def number_of(title: str) -> str:
    """The number in a heading: "4.2" of "4.2 Deployment", "IV" of "Chapter IV"."""
    section = _SECTION.match(title)
    if section:
        return section[1]
    named = re.match(rf"\W*\w+\s+(?:no\.?\s*)?(\d{{1,3}}|{_ROMAN}|[a-z]+)\b", title, re.IGNORECASE)
    return named[1].upper() if named and _NUMBERED.match(title) else ""


def _lines(text: str) -> list[Heading]:
    """Lines that look like headings, entries of lists of contents among them."""
    found = []
    for line in re.finditer(r"[^\n]+", text):
        words = line[0].strip()
        if not 3 <= len(words) <= LONGEST_NAMED or _LEADER.search(words):
            continue
        before, after = text[max(0, line.start() - 2) : line.start()], text[line.end() :][:2]
        alone = line.start() == 0 or before == "\n\n", after == "\n\n"
        numbered = _NUMBERED.match(words)
        section = _SECTION.match(words) if len(words) <= LONGEST else None
        capitals = _CAPITALS.fullmatch(words) and all(alone) and len(words.split()) <= 8
        listed = section and re.match(r"\d+\.\s", words)  # "2. Stores that ..." is an item
        if section and not words.isupper() and (listed or words.endswith((".", ",", ";", ":"))):
            continue
        if numbered and words.endswith((",", ";")):
            continue
        if numbered or section or capitals:
            start = line.start() + line[0].index(words[0])
            found.append(Heading(words, start, start + len(words), number_of(words)))
    return found


def _with_body(found: Sequence[Heading], length: int) -> tuple[Heading, ...]:
    """Those that text follows: the others are entries of a list of contents."""
    ends = [*(heading.start for heading in found), length][1:]
    return tuple(
        heading
        for heading, end in zip(found, ends, strict=True)
        if end - heading.end >= (BODY_NAMED if _NUMBERED.match(heading.title) else BODY)
    )


def _key(title: str) -> str:
    return re.sub(r"\W+", " ", title).strip().casefold()
