"""From the lines of printed pages to running text: hyphens and running headers.

Pure functions on the lines of pages. Both steps are conservative: a hyphen is
dropped only where the document itself speaks for the joined word, a header
only where its place, its repetition and its numbering prove it, and what a
header says stays where it stands first. They run before offsets exist, so
that citations are exact slices of what remains.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from engine.documents.glyphs import Place

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
_NUMERAL = r"\d{1,5}|[ivxlc]{1,9}"
# "12", "- 12 -", "Page 12 of 90", "12 | Page", "xii": a line that says nothing but the page.
_OWN = re.compile(
    r"[\s\-–—.|·•*~()\[\]]*"
    r"(?:(?:page|pg|pag|pág|página|pagina|seite|blatt|side|sida|strana|strona|stránka|стр|страница"
    rf"|sayfa|oldal|p|s)\b\.?\s*)?({_NUMERAL})"
    r"(?:\s*(?:of|/|von|de|di|sur|av|af|van|z|ze|из|od|\|)\s*(\d{1,5}))?(?:\s*\|?\s*page)?"
    r"[\s\-–—.|·•*~()\[\]]*|第\s*(\d{1,5})\s*[页頁](?:\s*[/共]\s*共?\s*\d{1,5}\s*[页頁]?)?",
    re.IGNORECASE,
)
_WHOLE_NUMERAL = re.compile(rf"[\-–—.|·•]*({_NUMERAL})[\-–—.|·•]*", re.IGNORECASE)
# "Status: approved": what a form says of one page, however many pages say the same; an address
# and a time of day are none.
_ANSWER = re.compile(r"[^:：=]{1,40}(?:(?<!\d):(?!//)|[：=])\s*\S")
# How a heading is numbered, and rarely a page: "IV", "3.", "(3)".
_HEADING = re.compile(rf"[IVXLC]+\.?|(?:{_NUMERAL})[.)]|\((?:{_NUMERAL})\)")
_LABEL = re.compile(r"(?:[:#№]|\bno\.?|\bnr\.?|\bnum\.?|\bnumber)$", re.IGNORECASE)
_ROMAN = {"i": 1, "v": 5, "x": 10, "l": 50, "c": 100}

_PRESENTED = re.compile("[\ufb1d-\ufb4f\ufb50-\ufdef\ufe70-\ufefc]")
"""Letters of Hebrew and Arabic in the shape that they have in a word."""

EDGE = 3
"""Lines at the head and at the foot of a page that are looked at."""

_IN_PLACE = 0.012
"""Part of the page's height by which a running line may move from page to page."""

_APART = 1.3
"""Lines to the next one, counted in the usual distance of lines, that set a header apart."""

_FLUSH_GAP = 0.08
"""Part of the page's width that parts the page's number from the words of its header."""


@dataclass(frozen=True)
class Line:
    """A line of a page. place: where it stands; None where the library does not say."""

    text: str
    place: Place | None = None


@dataclass(frozen=True)
class RemovedLine:
    """What was taken away. text: of a running line, "" for the pages' own numbers; pages: on
    how many; top: at the head of the pages or at their foot."""

    text: str
    pages: int
    top: bool


def regular(text: str) -> str:
    """The characters of one page as they come from a PDF library, made regular.

    Lines end in "\\n" and carry no trailing spaces; ligatures and the shapes of Arabic letters
    are letters; signs without a meaning are U+FFFD.
    """
    text = text.replace("\r\n", "\n").translate(_TRANSLATION)
    text = _PRESENTED.sub(lambda sign: unicodedata.normalize("NFKC", sign.group()), text)
    return "\n".join(line.rstrip() for line in text.split("\n"))


def joined(lines: Iterable[str]) -> str:
    """The lines of one page as one text, cut words marked with `BROKEN`."""
    text = _LINE_HYPHEN.sub(BROKEN, "\n".join(lines)).strip("\n")
    return re.sub("\n{3,}", "\n\n", text)


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
    """A line near the edge of a page.

    page, line: which; top: at the head. text: in small letters. numeral, number, key: what it
    counts the page by, that as a number, and which numbering that is a member of: the difference to
    the sheet, or "label" where it is the page's own label; 0 for none. own: it says nothing but the
    number; words: what else it says. heading: it is a number as headings have it.
    """

    page: int
    line: int
    top: bool
    text: str
    place: Place | None
    numeral: str = ""
    number: int = 0
    key: int | str = 0
    own: bool = False
    words: str = ""
    heading: bool = False


def drop_running(
    pages: Sequence[Sequence[Line]], sheets: Sequence[int] = (), labels: Sequence[str] = ()
) -> tuple[list[list[str]], list[RemovedLine], list[str]]:
    """Take page numbers and running headers and footers away.

    A line may go only if it stands at the edge of its page, with no other line
    beyond it but such as go too, apart from the text, at the same height as on
    the other pages, and if it carries nothing of its own, which is one of:

    - the page's own number, alone or as "Page 3 of 90", that counts with the
      sheets or is the page's label, on at least three pages;
    - words and, set apart at the outer margin, that number; on three pages of
      at least eight that count so;
    - the same text on four fifths of all pages, or of all left or right ones,
      whose others have nothing in its place: where "APPROVED" is "REFUSED" on
      one page of ten, it says something of each.

    A line with words stays where it stands first. A line whose place is not
    known goes only if it is the page's own number, at the foot.

    Args:
        pages: the lines of each page.
        sheets: which sheet each page is; 1, 2, ... if empty. labels: what the file calls them.
    Returns:
        The lines that are left of each page, what was taken away, and the number that is printed
        on each page: "" where none is known.
    """
    sheets = sheets or range(1, len(pages) + 1)
    labels = labels or [""] * len(pages)
    sides = [
        [
            _counted(edge, _row_of(edge, lines), sheets[page], labels[page])
            for page, lines in enumerate(pages)
            for edge in _edges(page, lines, top)
        ]
        for top in (True, False)
    ]
    numbering = _numberings([*sides[0], *sides[1]], len(pages))
    footed = {edge.page for edge in sides[1] if edge.own and edge.key in numbering}
    filled = {
        page: sheets[page]
        for page, lines in enumerate(pages)
        if any(line.text.strip() for line in lines)
    }
    gone: set[tuple[int, int]] = set()
    removed: list[RemovedLine] = []
    counting: list[_Edge] = []
    for edges in sides:
        groups = _groups(edges, numbering, footed, filled)
        running = {(edge.page, edge.line) for group in groups.values() for edge in group}
        loose = _apart(edges, pages, running)
        for name, group in groups.items():
            going = [edge for edge in group if (edge.page, edge.line) in loose]
            first = group[0]
            if not name.startswith("text "):
                counting += going
            if name:  # what it says is said once
                going = [edge for edge in going if edge is not first]
            going = [edge for edge in going if (edge.page, edge.line) not in gone]
            if going:
                text = " ".join(pages[first.page][first.line].text.split()) if name else ""
                removed.append(RemovedLine(text, len({edge.page for edge in going}), first.top))
                gone |= {(edge.page, edge.line) for edge in going}
    kept = [
        [line.text for at, line in enumerate(lines) if (page, at) not in gone]
        for page, lines in enumerate(pages)
    ]
    return kept, removed, _printed(counting, numbering, pages, sheets)


def _printed(
    counting: Sequence[_Edge],
    numbering: Mapping[int | str, int],
    pages: Sequence[Sequence[Line]],
    sheets: Sequence[int],
) -> list[str]:
    """The number of each page as it is printed. One that prints none, as where a chapter begins,
    has the number that its neighbours leave it, where those count alike.

    counting: lines that count their pages; of several on a page the numbering of most pages holds.
    """
    on: dict[int, _Edge] = {}
    for edge in sorted(counting, key=lambda edge: numbering[edge.key]):
        on[edge.page] = edge
    printed = [""] * len(pages)
    for page, edge in on.items():
        printed[page] = _as_printed(edge.numeral, pages[page][edge.line].text)
    for before, after in pairwise(sorted(on)):
        key, roman = on[before].key, not printed[before].isdigit()
        if key == on[after].key and key != "label" and roman != printed[after].isdigit():
            for page in range(before + 1, after):
                number = sheets[page] + int(key)
                printed[page] = _roman(number) if roman else str(number)
    return printed


def _as_printed(numeral: str, line: str) -> str:
    """A numeral in the letters that its line has it in, small or large."""
    return numeral.upper() if re.search(rf"\b{numeral.upper()}\b", line) else numeral


def _edges(page: int, lines: Sequence[Line], top: bool) -> list[_Edge]:
    """The outer lines of a page, from the edge inwards; a page of few lines has fewer."""
    filled = [at for at, line in enumerate(lines) if line.text.strip()]
    outer = filled[:EDGE] if top else filled[: -EDGE - 1 : -1]
    return [
        _Edge(
            page,
            at,
            top,
            " ".join(lines[at].text.split()).casefold(),
            lines[at].place,
            heading=bool(_HEADING.fullmatch(lines[at].text.strip(" -–—"))),
        )
        for at in outer
    ]


def _row_of(edge: _Edge, lines: Sequence[Line]) -> str:
    """What else stands on the height of a line, as lines of their own; "" for nothing."""
    here = edge.place
    if here is None:
        return ""
    middle = (here.top + here.bottom) / 2
    others = (line for at, line in enumerate(lines) if at != edge.line and line.place)
    return " ".join(
        o.text.strip() for o in others if o.place and o.place.top <= middle <= o.place.bottom
    )


def _counted(edge: _Edge, row: str, sheet: int, label: str) -> _Edge:
    """A line with the number by which it may count its page; row: what else stands beside it."""
    whole = _OWN.fullmatch(edge.text)
    if whole and whole.group(2) and _value(whole.group(1)) > int(whole.group(2)):
        return edge  # "13/1" is a date, no page of so many
    if whole and row:
        numeral, words, own = whole.group(1) or whole.group(3), row.casefold(), False
        outside = edge.place and (edge.place.right > 0.7 or edge.place.left < 0.3)
        if not outside or _LABEL.search(words):
            return edge
    elif whole:
        numeral = whole.group(1) or whole.group(3)
        own, words = True, ""
        if edge.heading and edge.top and numeral != label.casefold():
            return edge
    else:
        numeral, words = _set_apart(edge)
        own = False
    number = _value(numeral) if numeral else 0
    if not number:
        return edge
    known = numeral == label.casefold() or number == _value(label.casefold())
    key = "label" if label and known else number - sheet
    return replace(edge, numeral=numeral, number=number, key=key, own=own, words=words)


def _set_apart(edge: _Edge) -> tuple[str, str]:
    """The numeral that stands at the outer margin, apart from the words of its line; or ""."""
    place, words = edge.place, edge.text.split(" ")
    if place is None or len(words) < 2:
        return "", ""
    for at, gap, outside in (
        (-1, place.last_gap, place.right > 0.7),
        (0, place.first_gap, place.left < 0.3),
    ):
        numeral = _WHOLE_NUMERAL.fullmatch(words[at])
        rest = " ".join(words[:-1] if at else words[1:])
        if numeral and outside and gap >= _FLUSH_GAP and _LETTER.search(rest):
            return ("", "") if _LABEL.search(rest) else (numeral.group(1), rest)
    return "", ""


def _numberings(edges: Sequence[_Edge], pages: int) -> dict[int | str, int]:
    """Differences between printed number and sheet that number the pages, and on how many.

    A book has few of them, one for each numbering, and each holds without
    great gaps; figures of a table that agree with the pages by chance do not.
    Numbers ahead of the sheets (an offprint's) must do so for long, and years
    and uppercase numerals, which also stand over what they count, never do.
    """
    support: dict[int | str, dict[int, int]] = defaultdict(dict)
    for edge in edges:
        if edge.number:
            support[edge.key][edge.page] = edge.number
    enough = max(3, min(10, pages // 10))
    return {
        key: len(on)
        for key, on in support.items()
        if len(on) >= (max(8, enough) if key != "label" and int(key) > 0 else enough)
        and 2 * len(on) >= max(on) - min(on) + 1
        and (key == "label" or not all(1000 <= number < 2200 for number in on.values()))
    }


def _groups(
    edges: Sequence[_Edge],
    numbering: Mapping[int | str, int],
    footed: set[int],
    filled: Mapping[int, int],
) -> dict[str, list[_Edge]]:
    """Lines at one edge that carry nothing of their own, by what they say; "" for numbers.

    footed: pages with a number of their own at the foot; one more at the head counts other
    things. filled: sheets of the pages with text.
    """
    alone: list[_Edge] = []
    numbered: dict[str, list[_Edge]] = defaultdict(list)
    same: dict[str, list[_Edge]] = defaultdict(list)
    for edge in edges:
        counts = bool(edge.number) and edge.key in numbering
        if counts and edge.own:
            if not (edge.top and edge.page in footed) and (edge.place or not edge.top):
                alone.append(edge)
        elif counts and edge.page not in footed and numbering[edge.key] >= 8:
            numbered[edge.words].append(edge)
        elif edge.place and _LETTER.search(edge.text) and not _ANSWER.match(edge.text):
            same[edge.text].append(edge)
    found = {"": group} if (group := _in_place(alone, least=2)) else {}
    for words, group in numbered.items():
        group = _in_place(group, least=3)
        if group:
            found[f"number {words}"] = group
    for text, group in same.items():
        group = _in_place(group, least=3)
        if group and _everywhere(group, edges, filled):
            found[f"text {text}"] = group
    return found


def _in_place(group: Sequence[_Edge], least: int) -> list[_Edge]:
    """Lines of a group that stand at one height on `least` pages or more."""
    kept = []
    for edge in group:
        near = {other.page for other in group if edge.place is None or _level(edge, other)}
        if len(near) >= least:
            kept.append(edge)
    return kept


def _level(edge: _Edge, other: _Edge) -> bool:
    """Whether two lines stand at one height of their pages."""
    if edge.place is None or other.place is None:
        return False
    return abs(other.place.top - edge.place.top) <= _IN_PLACE


def _everywhere(group: Sequence[_Edge], edges: Sequence[_Edge], filled: Mapping[int, int]) -> bool:
    """Whether lines of one text are on four fifths of all pages with text, or of all left or all
    right ones, and nothing else stands in their place on the others of these."""
    on = {edge.page for edge in group}
    others = {edge.page for edge in edges if edge.page not in on and _level(group[0], edge)}
    for some in (
        set(filled),
        {page for page, sheet in filled.items() if sheet % 2},
        {page for page, sheet in filled.items() if not sheet % 2},
    ):
        if on <= some and len(on) * 5 >= len(some) * 4 and not others & some:
            return True
    return False


def _apart(
    edges: Sequence[_Edge], pages: Sequence[Sequence[Line]], running: set[tuple[int, int]]
) -> set[tuple[int, int]]:
    """Which running lines have only such lines beyond them, and are set apart from the text."""
    by_page: dict[int, list[_Edge]] = defaultdict(list)
    for edge in edges:
        by_page[edge.page].append(edge)
    found: set[tuple[int, int]] = set()
    for page, outer in by_page.items():
        lines = [line.place for line in pages[page] if line.text.strip()]
        usual = _usual_distance(lines)
        inwards = lines if outer[0].top else lines[::-1]
        block: list[tuple[int, int]] = []
        for depth, edge in enumerate(outer):
            if (page, edge.line) not in running:
                break
            block.append((page, edge.line))
            here, there = inwards[depth], inwards[depth + 1] if depth + 1 < len(inwards) else None
            alone = edge.own and (here is None or depth + 1 == len(inwards))
            if alone or (here and there and abs(there.top - here.top) >= _APART * usual):
                found.update(block)
    return found


def _usual_distance(places: Sequence[Place | None]) -> float:
    """The least distance of two lines of a page, those on one height aside; 0 if unknown."""
    return min(
        (
            below.top - above.top
            for above, below in pairwise(places)
            if above and below and below.top - above.top > 0.7 * (above.bottom - above.top)
        ),
        default=0.0,
    )


def _value(digits: str) -> int:
    """What an Arabic or Roman number says; 0 for anything else."""
    if digits.isdecimal():
        return int(digits)
    if not digits or not set(digits) <= _ROMAN.keys():
        return 0
    values = [_ROMAN[letter] for letter in digits]
    total = sum(-a if a < b else a for a, b in zip(values, [*values[1:], 0], strict=True))
    return total if _roman(total) == digits else 0


def _roman(number: int) -> str:
    steps = ((100, "c"), (90, "xc"), (50, "l"), (40, "xl"), (10, "x"), (9, "ix"), (5, "v"),
             (4, "iv"), (1, "i"))  # fmt: skip
    letters = ""
    for value, sign in steps:
        count, number = divmod(number, value)
        letters += sign * count
    return letters
