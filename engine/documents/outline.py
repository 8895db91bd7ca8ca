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
_ROMAN_TITLE = re.compile(r"([IVXLC]{1,7})\.\s+(?=[A-Z])")
_CAPITALS = re.compile(r"[A-Z][A-Z '’:,&—-]{3,60}\.?")
_SET_OFF = re.compile(r"\n[^\S\n]*\n?[^\S\n]*(\S[^\n]*)(?=\n\s*\n)")
"""A line between two empty ones, at most one before it: two begin the text."""

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
    found = _lines(text)
    often = Counter(_key(heading.title) for heading in found)
    most = [RUNNING if heading.number else 1 for heading in found]  # "CHORUS." occurs twice
    kept = [h for h, times in zip(found, most, strict=True) if often[_key(h.title)] <= times]
    return _with_body([h for h in kept if h.number or not _is_verse(text, h.end)], text)


def number_of(title: str) -> str:
    """The number in a heading: "4.2" of "4.2 Deployment", "IV" of "Chapter IV"."""
    section = _SECTION.match(title) or _ROMAN_TITLE.match(title)
    if section:
        return section[1]
    named = re.match(rf"\W*\w+\s+(?:no\.?\s*)?(\d{{1,3}}|{_ROMAN}|[a-z]+)\b", title, re.IGNORECASE)
    return named[1].upper() if named and _NUMBERED.match(title) else ""


def _lines(text: str) -> list[Heading]:
    """Lines that look like headings, entries of lists of contents among them."""
    found: list[Heading] = []
    for line in re.finditer(r"[^\n]+", text):
        words = line[0].strip()
        inside = found and line.start() < found[-1].end
        if inside or not 3 <= len(words) <= LONGEST_NAMED or not _is_heading(text, line, words):
            continue
        start = line.start() + line[0].index(words[0])
        named = _NUMBERED.match(words)
        rest = _title_below(text, line.end()) if named and named.end() >= len(words) - 1 else ""
        rest = rest if re.search(r"[^\W\d_]", rest) else ""
        end = line.end() + len(rest) if rest else start + len(words)
        below = " ".join(rest.split())
        title = f"{words.rstrip('.:')}. {below}" if rest else words
        found.append(Heading(title, start, end, number_of(words)))
    return found


def _is_heading(text: str, line: re.Match[str], words: str) -> bool:
    """Whether a line looks like a heading by itself. words: it without white space around it."""
    numbered = _NUMBERED.match(words)
    if _LEADER.search(words[numbered.end() :] if numbered else words):
        return False  # an entry of a list of contents, with its page
    if numbered:  # "Chapter 14 provides a description" is the beginning of a sentence
        sentence = re.match(r"[.\d)]*\s+[a-z]", words[numbered.end() :])
        return not sentence and not words.endswith((",", ";"))
    section = _SECTION.match(words) if len(words) <= LONGEST else None
    listed = section and re.match(r"\d+\.\s", words)  # "2. Stores that ..." is an item
    if section:
        return words.isupper() or not (listed or words.endswith((".", ",", ";", ":")))
    before, after = text[max(0, line.start() - 2) : line.start()], text[line.end() :][:2]
    if not (line.start() == 0 or before == "\n\n") or after != "\n\n":
        return False
    if _ROMAN_TITLE.match(words):
        return len(words) <= LONGEST and _is_title(words)
    spelt = re.search(r"[A-Z]{3}", words) and len(words.split()) <= 8
    return bool(_CAPITALS.fullmatch(words) and spelt)


def _title_below(text: str, end: int) -> str:
    """The title in the lines below "CHAPTER IV", with the white space before it; "" where there is
    none. Empty lines set it off, or, as PDFs have it, it follows at once in up to three lines."""
    alone = _SET_OFF.match(text, end)
    if alone and len(alone[1].strip()) <= LONGEST and _is_title(alone[1]):
        return alone[0].rstrip()
    at = end
    for line in re.compile(r"\n([^\n]+)").finditer(text, end):
        words = line[1].strip()
        own = _NUMBERED.match(words) or _SECTION.match(words)
        if line.start() != at or len(words) > LONGEST or own or not _is_title(words):
            break
        at = line.end()
    return text[end:at] if 0 < text.count("\n", end, at) <= 3 else ""


def _is_title(words: str) -> bool:
    """Whether all words of four letters or more begin with a capital: no sentence does."""
    long = re.findall(r"(?<![^\W\d_])[^\W\d_]{4,}", words)
    return all(word[0].isupper() for word in long) and not words.rstrip().endswith((",”", ":", ";"))


def _is_verse(text: str, at: int) -> bool:
    """Whether the paragraph behind a line is of several lines that all begin like a sentence, or
    are all indented, as those of verse do."""
    paragraph = re.compile(r"\s*?\n((?:[^\S\n]*\S[^\n]*\n?)+)").search(text, at)
    lines = paragraph[1].splitlines() if paragraph else []
    capitals = all(re.match(r"\W*[A-Z]", line) for line in lines)
    return (len(lines) > 1 and capitals) or all(line[:2].isspace() for line in lines)


def _with_body(found: Sequence[Heading], text: str) -> tuple[Heading, ...]:
    """Those that text follows: the others are entries of a list of contents. Sections belong to
    the text of the chapter before them."""
    kept, end, end_named = [], len(text), len(text)
    for heading in reversed(found):
        named = _NUMBERED.match(heading.title) is not None
        body = (end_named if named else end) - heading.end
        two_lines = "\n" in text[heading.start : heading.end]  # entries of lists have one
        if body >= (BODY_NAMED if named and not two_lines else BODY):
            kept.append(heading)
        end = heading.start
        if named:
            end_named = heading.start
    return tuple(reversed(kept))


def _key(title: str) -> str:
    return re.sub(r"\W+", " ", title).strip().casefold()
