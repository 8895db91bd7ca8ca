"""From glyphs with their places on a page to lines in the order of reading.

Pure functions. PDF files say where glyphs stand, not what follows what. Three
things are put right here: what forms and notes show is set beside the words
that it belongs to; lines with right-to-left writing are turned from the order
of the eye (left to right) to the order of reading; and a line is measured, so
that `layout` can tell a running header from a heading.

The order of reading is found by undoing the Unicode Bidirectional Algorithm
(UAX #9) for what one line can hold: words of both directions, numbers with
their separators, and brackets, whose shape depends on the direction.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]")
_ARABIC = re.compile("[\u0600-\u08ff\ufb50-\ufdff\ufe70-\ufefc]")
_MIRROR = str.maketrans("()[]{}<>«»", ")(][}{><»«")
_OPEN, _CLOSE = "([{", ")]}"
# Runs that read from left to right in a line of the other direction, by class of sign.
_LTR_RUN = re.compile(r"T*(?:D(?:S?D)*)?L(?:[^R]*[LDT])?|T*D(?:S?D)*T*")
_RTL_RUN = re.compile(r"R(?:[^L]*R)?")


class Glyph(NamedTuple):
    """A sign, or several of one glyph, and its box in points from the lower left corner."""

    text: str
    left: float
    bottom: float
    right: float
    top: float


class Mark(NamedTuple):
    """What a form field or a free-text note shows. label: what the field is called; None for
    a note, which stands on lines of its own."""

    text: str
    left: float
    bottom: float
    right: float
    top: float
    label: str | None


@dataclass(frozen=True)
class Place:
    """Where a line stands, in parts of the width and the height of its page, from the left and
    from the top. first_gap, last_gap: the space after its first and before its last word."""

    left: float
    right: float
    top: float
    bottom: float
    first_gap: float
    last_gap: float


def glyphs_of(line: Iterable[Sequence[Any]]) -> list[Glyph]:
    """Glyphs as a page's process hands them over: [text, left, bottom, right, top]."""
    return [Glyph(*glyph[:5]) for glyph in line]


def measured(line: Sequence[Glyph], size: Sequence[float]) -> Place | None:
    """The place of a line on a page of this width and height; None without one."""
    seen = [glyph for glyph in line if glyph.text.strip()]
    if not seen or size[0] <= 0 or size[1] <= 0:
        return None
    words: list[list[Glyph]] = [[]]
    for glyph in line:
        if glyph.text.isspace():
            words.append([])
        else:
            words[-1].append(glyph)
    words = [word for word in words if word]
    left, right = min(glyph.left for glyph in seen), max(glyph.right for glyph in seen)
    bottom, top = min(glyph.bottom for glyph in seen), max(glyph.top for glyph in seen)
    if right <= left:
        return None
    first = words[1][0].left - words[0][-1].right if len(words) > 1 else 0.0
    last = words[-1][0].left - words[-2][-1].right if len(words) > 1 else 0.0
    width, height = size
    return Place(
        left / width, right / width, 1 - top / height, 1 - bottom / height,
        first / width, last / width,
    )  # fmt: skip


# ---------------------------------------------------------------- forms and notes


def with_marks(lines: Sequence[Sequence[Glyph]], marks: Iterable[Mark]) -> list[list[Glyph]]:
    """Lines of a page with what its forms and notes show, each at its place.

    What a field shows follows the words to its left, or stands before those to
    its right; where its row has no words it has a line of its own, with its
    label. A note has a line of its own.
    """
    out = [list(line) for line in lines]
    for mark in sorted(marks, key=lambda mark: (-mark.top, mark.left)):
        if mark.label is None or not _beside(out, mark):
            text = f"{mark.label}: {mark.text}" if mark.label else mark.text
            added = [
                [Glyph(part, mark.left, mark.bottom, mark.right, mark.top)]
                for part in text.splitlines()
                if part.strip()
            ]
            at = _line_below(out, mark)
            out[at:at] = added
    return out


def _beside(lines: list[list[Glyph]], mark: Mark) -> bool:
    """Put a mark into the line whose words are nearest in its row; False where there is none."""
    text = " ".join(mark.text.split())
    box = Glyph(text, mark.left, mark.bottom, mark.right, mark.top)
    before: tuple[float, int, int] | None = None  # (right side, line, glyph)
    after: tuple[float, int, int] | None = None  # (left side, line, glyph)
    for number, line in enumerate(lines):
        for place, glyph in enumerate(line):
            if glyph.text.isspace() or not _same_row(glyph, mark):
                continue
            if (glyph.left + glyph.right) / 2 < mark.left + 1:
                if before is None or glyph.right > before[0]:
                    before = (glyph.right, number, place)
            elif after is None or glyph.left < after[0]:
                after = (glyph.left, number, place)
    found = before or after
    if found is None:
        return False
    _, number, place = found
    line = lines[number]
    gap = Glyph(" ", mark.left, mark.bottom, mark.left, mark.top)
    if before is not None:
        line[place + 1 : place + 1] = [gap, box]
        place += 2
    else:
        line[place:place] = [box]
    if place + 1 < len(line) and not line[place + 1].text.isspace():
        line.insert(place + 1, gap._replace(left=mark.right, right=mark.right))
    return True


def _same_row(glyph: Glyph, mark: Mark) -> bool:
    """Whether a glyph stands in the row of a mark: the middle of one is within the other."""
    return (
        mark.bottom <= (glyph.bottom + glyph.top) / 2 <= mark.top
        or glyph.bottom <= (mark.bottom + mark.top) / 2 <= glyph.top
    )


def _line_below(lines: Sequence[Sequence[Glyph]], mark: Mark) -> int:
    """Where a line of its own goes: after the nearest line above it, first of all of one that
    stands over it."""
    best = (True, float("inf"), 1)
    for number, line in enumerate(lines):
        seen = [glyph for glyph in line if glyph.text.strip() and glyph.right > glyph.left]
        if not seen:
            continue
        height = sum(glyph.bottom + glyph.top for glyph in seen) / 2 / len(seen)
        above = height - mark.top + (mark.top - mark.bottom) / 2
        beside = max(g.right for g in seen) < mark.left or min(g.left for g in seen) > mark.right
        if above >= 0:
            best = min(best, (beside, above, -number))
    return 1 - best[2]


# ---------------------------------------------------------------- right to left


def in_reading_order(lines: Sequence[Sequence[Glyph]]) -> list[str]:
    """The text of each line; lines with right-to-left writing in the order of reading."""
    plain = ["".join(glyph.text for glyph in line) for line in lines]
    turned = [bool(RIGHT_TO_LEFT.search(text)) for text in plain]
    both = "".join(text for text, turn in zip(plain, turned, strict=True) if turn)
    mostly = _letters(both, "R") >= _letters(both, "L")
    made = [
        _logical(line, mostly=mostly) if turn else (text, text)
        for line, text, turn in zip(lines, plain, turned, strict=True)
    ]
    # Files name a bracket by its shape or by its meaning; whole pairs tell which.
    shapes = sum(_unpaired(shape) - _unpaired(mirrored) for shape, mirrored in made)
    return [mirrored if shapes >= 0 else shape for shape, mirrored in made]


def _letters(text: str, kind: str) -> int:
    return sum(_class(sign, arabic=False) == kind for sign in text)


def _logical(line: Sequence[Glyph], *, mostly: bool) -> tuple[str, str]:
    """A line in the order of reading, with its brackets as they are and mirrored."""
    seen = _visual(line)
    if not seen:
        text = "".join(glyph.text for glyph in line)
        return text, text
    signs = [glyph.text for glyph in seen]
    text = "".join(signs)
    arabic = bool(_ARABIC.search(text))
    classes = "".join(_class(sign, arabic=arabic) for sign in signs)
    right, left = classes.count("R"), classes.count("L")
    if right * 2 >= left if mostly else right > left:
        parts = _reversed(signs, classes)
    else:
        parts, end = [], 0
        for run in _RTL_RUN.finditer(classes):
            parts += [(sign, False) for sign in signs[end : run.start()]]
            parts += _reversed(signs[run.start() : run.end()], run.group())
            end = run.end()
        parts += [(sign, False) for sign in signs[end:]]
    shape = "".join(sign for sign, _ in parts)
    mirrored = "".join(sign.translate(_MIRROR) if turn else sign for sign, turn in parts)
    return re.sub(" {2,}", " ", shape).strip(), re.sub(" {2,}", " ", mirrored).strip()


def _reversed(signs: Sequence[str], classes: str) -> list[tuple[str, bool]]:
    """Signs from right to left, but the runs among them that read from left to right; each with
    whether brackets are mirrored there."""
    out: list[tuple[str, bool]] = []
    end = len(signs)
    for run in reversed(list(_LTR_RUN.finditer(classes))):
        out += [(sign, True) for sign in reversed(signs[run.end() : end])]
        out += [(sign, False) for sign in signs[run.start() : run.end()]]
        end = run.start()
    return out + [(sign, True) for sign in reversed(signs[:end])]


def _class(sign: str, *, arabic: bool) -> str:
    """R and L for letters, D digits, S what separates them, T what goes with a number, N else."""
    for part in sign:
        kind = unicodedata.bidirectional(part)
        if kind in ("R", "AL"):
            return "R"
        if kind == "L":
            return "L"
        if kind in ("EN", "AN"):
            return "D"
    if sign in ",.:/" or (sign in "-+" and not arabic):
        return "S"
    return "T" if not arabic and unicodedata.bidirectional(sign[0]) == "ET" else "N"


def _visual(line: Sequence[Glyph]) -> list[Glyph]:
    """Glyphs from left to right; accents with their letters, spaces where there is room.

    Empty where the glyphs have no places.
    """
    letters: list[Glyph] = []
    accents: list[Glyph] = []
    for glyph in line:
        if glyph.text.isspace() and glyph.right - glyph.left < 0.1:
            continue  # made up by the library, in an order that need not be that of the eye
        if unicodedata.combining(glyph.text[0]):
            accents.append(glyph)
        elif letters and letters[-1][1:] == glyph[1:]:  # one glyph for several letters
            letters[-1] = letters[-1]._replace(text=letters[-1].text + glyph.text)
        else:
            letters.append(glyph)
    if len(letters) > 1 and len({glyph.left for glyph in letters}) == 1:
        return []
    letters.sort(key=lambda glyph: glyph.left + glyph.right)
    for accent in accents:
        middle = (accent.left + accent.right) / 2
        near = min(
            range(len(letters)),
            key=lambda at: abs(letters[at].left + letters[at].right - 2 * middle),
            default=-1,
        )
        if near >= 0:
            letters[near] = letters[near]._replace(text=letters[near].text + accent.text)
    spaced: list[Glyph] = []
    for glyph in letters:
        if spaced and not spaced[-1].text.isspace() and not glyph.text.isspace():
            room = 0.25 * (glyph.top - glyph.bottom)
            if glyph.left - spaced[-1].right > room:
                spaced.append(glyph._replace(text=" "))
        spaced.append(glyph)
    return spaced


def _unpaired(text: str) -> int:
    """How many brackets of a line have no partner in the right order."""
    open_, missing = [], 0
    for sign in text:
        if sign in _OPEN:
            open_.append(sign)
        elif sign in _CLOSE:
            if open_ and _OPEN.index(open_[-1]) == _CLOSE.index(sign):
                open_.pop()
            else:
                missing += 1
    return missing + len(open_)
