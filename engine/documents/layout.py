"""From the lines of printed pages to running text: hyphens and running headers.

Pure functions on the text of pages. Both steps are conservative: a hyphen is
dropped only where the document itself speaks for the joined word, a header
only where its repetition and its numbering prove it, and what a header says
stays where it stands first. They run before offsets exist, so that citations
are exact slices of what remains.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

BROKEN = "\ufffe"
"""Stands where a word was cut at the end of a line (PDFium's own sign for it)."""

_LIGATURES = {"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "st", "ﬆ": "st"}
# A control character or lone surrogate in a PDF's text is a glyph without a
# meaning, such as a bracket's upper half; saying so beats inventing a line end.
_UNMAPPED = dict.fromkeys((*range(9), *range(11, 32), *range(127, 160)), "�")
_UNMAPPED |= dict.fromkeys((*range(55296, 57344), 65535), "�")
_UNMAPPED |= {2: BROKEN, 0xAD: ""}
_TRANSLATION = _UNMAPPED | {ord(sign): letters for sign, letters in _LIGATURES.items()}

_WORD = re.compile(r"[^\W\d_]+(?:[-’'][^\W\d_]+)*")
_LETTERS = re.compile(r"[^\W\d_]+")
_ADDRESS = re.compile(r"[/@\\\d]")
_LETTER = re.compile(r"[^\W\d_]")
_LINE_HYPHEN = re.compile(r"(?<=[^\W\d_])[-\u2010]\n(?=[^\W\d_])")
# A number that is a word of its own: "12", "- 12 -", "Page 12 of 90", "xii"; no date, no "3.1".
_NUMBER = re.compile(
    r"^(?:page )?(?:\W )?\W?(\d{1,5}|[ivxlc]{1,9})[^\w\s]?(?= |$)"
    r"|(?<= )\W?(\d{1,5}|[ivxlc]{1,9})[^\w\s]?(?: \W)?$",
    re.IGNORECASE,
)
_ROMAN = {"i": 1, "v": 5, "x": 10, "l": 50, "c": 100}

EDGE = 3
"""Lines at the head and at the foot of a page that are looked at."""


def characters(text: str) -> str:
    """The characters of one page as they come from a PDF library, made regular.

    Lines end in "\\n" and carry no trailing spaces; ligatures are letters;
    signs without a meaning are U+FFFD; cut words carry `BROKEN`.
    """
    text = text.replace("\r\n", "\n").translate(_TRANSLATION)
    text = _LINE_HYPHEN.sub(BROKEN, text)
    lines = "\n".join(line.rstrip() for line in text.split("\n")).strip("\n")
    return re.sub("\n{3,}", "\n\n", lines)


def join_words(pages: Sequence[str]) -> list[str]:
    """Mend the words that were cut at line ends, each as the rest of the document writes it.

    The joined and the hyphenated spelling are counted in all pages. Where
    neither occurs, two halves that are words of their own keep the hyphen
    ("decision-making"), others are joined ("maxi-mize"); before a capital or a
    digit, and inside addresses, the hyphen stays.
    """
    if not any(BROKEN in page for page in pages):
        return list(pages)
    known: Counter[str] = Counter()
    for page in pages:
        parts = page.split(BROKEN)
        for at, part in enumerate(parts):
            words = _WORD.findall(part.lower())
            # Halves of cut words are no witnesses.
            known.update(words[at > 0 and part[:1].isalpha() :])
            if at + 1 < len(parts) and part[-1:].isalpha():
                known[words[-1]] -= 1

    return [_mend(page, known) for page in pages]


def _mend(page: str, known: Counter[str]) -> str:
    """One page with each `BROKEN` resolved to a hyphen or to nothing."""
    first, *rest = page.split(BROKEN)
    mended = [first]
    for part in rest:
        before = "".join(mended[-3:])[-64:]  # a word may be cut twice
        word = "" if before[-1:].isspace() else (before.split() or [""])[-1]
        right = _LETTERS.match(part)
        mended.append("-" if _hyphenated(word, right.group() if right else "", known) else "")
        mended.append(part)
    return "".join(mended)


def _hyphenated(word: str, right: str, known: Counter[str]) -> bool:
    """Whether what ends in `word` and goes on with `right` is written with a hyphen."""
    letters = list(_LETTERS.finditer(word))
    left = letters[-1].group() if letters and letters[-1].end() == len(word) else ""
    before = word[: len(word) - len(left)]
    if not left or not right or not right[0].islower() or _ADDRESS.search(before):
        return True
    if left.isupper():  # an abbreviation: no word goes on in small letters
        return True
    joined, compound = (left + right).lower(), f"{left}-{right}".lower()
    if known[joined] or known[compound]:
        return known[compound] > known[joined]
    both = known[left.lower()] and known[right.lower()]
    return bool(both) and (min(len(left), len(right)) > 2 or before.endswith("-"))


@dataclass(frozen=True)
class _Edge:
    """A line near the edge of a page, and the number that it begins or ends with."""

    page: int
    line: int
    text: str
    words: str  # the text without its number
    number: int  # 0 for none


def drop_running(pages: Sequence[str]) -> tuple[list[str], int]:
    """Take page numbers and running headers and footers away.

    A lone number goes when it counts with the pages at the same edge. A line
    with words goes when the same words stand at that edge of at least three
    pages, and either its number counts with the pages or the whole line repeats
    on a third of them; its first occurrence stays.

    Returns:
        The pages, and how many lines were taken away.
    """
    lines = [page.split("\n") for page in pages]
    gone: set[tuple[int, int]] = set()
    sides = [
        [edge for page, text in enumerate(lines) for edge in _edges(page, text, top)]
        for top in (True, False)
    ]
    counting = _counting([*sides[0], *sides[1]], len(pages))
    for edges in sides:
        gone |= _running(edges, counting, len(pages))
    kept = [
        "\n".join(line for at, line in enumerate(text) if (page, at) not in gone).strip("\n")
        for page, text in enumerate(lines)
    ]
    return kept, len(gone)


def _counting(edges: Sequence[_Edge], pages: int) -> set[int]:
    """Differences between printed number and position that are a numbering of pages.

    A book has few of them, one for each numbering, and each holds without
    great gaps; figures of a table that agree with the pages by chance do not.
    """
    support: dict[int, set[int]] = defaultdict(set)
    for edge in edges:
        if edge.number:
            support[edge.number - edge.page].add(edge.page)
    enough = max(3, min(10, pages // 10))
    return {
        shift
        for shift, on in support.items()
        if len(on) >= enough and 2 * len(on) >= max(on) - min(on) + 1
    }


def _running(edges: Sequence[_Edge], counting: set[int], pages: int) -> set[tuple[int, int]]:
    """Which of the lines at one edge are running ones."""
    numbered: dict[str, list[_Edge]] = defaultdict(list)
    plain: dict[str, list[_Edge]] = defaultdict(list)
    for edge in edges:
        counts = bool(edge.number) and edge.number - edge.page in counting
        if counts:
            numbered[edge.words].append(edge)
        else:
            plain[edge.text].append(edge)
    found = [(edge.page, edge.line) for edge in numbered.pop("", [])]
    for group in numbered.values():
        if len({edge.page for edge in group}) >= 3:
            found += [(edge.page, edge.line) for edge in group[1:]]
    for group in plain.values():
        on = len({edge.page for edge in group})
        # Without a letter it may as well be the figures of a table.
        if on >= 3 and on * 3 >= pages and _LETTER.search(group[0].text):
            found += [(edge.page, edge.line) for edge in group[1:]]
    return set(found)


def _edges(page: int, lines: Sequence[str], top: bool) -> list[_Edge]:
    """The outer lines of a page, from the edge inwards; a page of few lines has fewer."""
    filled = [at for at, line in enumerate(lines) if line.strip()]
    outer = filled[:EDGE] if top else filled[: -EDGE - 1 : -1]
    edges = []
    for at in outer:
        line = " ".join(lines[at].split())
        match = _NUMBER.search(line)
        number = _value(match.group(1) or match.group(2)) if match else 0
        words = (line[: match.start()] + line[match.end() :]) if match and number else line
        words = words.strip(" .|-–—").casefold()
        edges.append(_Edge(page, at, line.casefold(), words, number))
    return edges


def _value(digits: str) -> int:
    """What an Arabic or Roman number says; 0 for letters that only look Roman."""
    if digits.isdecimal():
        return int(digits)
    values = [_ROMAN[letter] for letter in digits.lower()]
    total = sum(-a if a < b else a for a, b in zip(values, [*values[1:], 0], strict=True))
    return total if _roman(total) == digits.lower() else 0


def _roman(number: int) -> str:
    steps = ((100, "c"), (90, "xc"), (50, "l"), (40, "xl"), (10, "x"), (9, "ix"), (5, "v"),
             (4, "iv"), (1, "i"))  # fmt: skip
    letters = ""
    for value, sign in steps:
        count, number = divmod(number, value)
        letters += sign * count
    return letters
