"""The pages and sections of a stored source, by the names that citations give them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING

from engine.errors import DocumentError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.store.manifest import SourceEntry


@dataclass(frozen=True)
class StoredPage:
    """Characters [start, end) of a source's text. label: as citations name it; sheet: of a PDF,
    counted from 1, else 0; printed: the number printed on it, where known and not the label."""

    label: str
    start: int
    end: int
    sheet: int = 0
    printed: str = ""


def pages(source: SourceEntry) -> tuple[StoredPage, ...]:
    """All pages of a source in order, which together are its text; one without a name where the
    source has no such division."""
    starts = [start for _, start in source.pages] or [0]
    ends = [*starts[1:], source.chars]
    labels = [label for label, _ in source.pages] or [""]
    printed = source.printed or [""] * len(starts)
    return tuple(
        StoredPage(label, start, end, source.sheet(index) if source.pages else 0, number)
        for index, (label, start, end, number) in enumerate(
            zip(labels, starts, ends, printed, strict=True)
        )
    )


def select(source: SourceEntry, selection: str) -> tuple[StoredPage, ...]:
    """The pages that "3", "3-5,9", "ii-iv" or "#4" names, in the order of the text.

    A name is a page's label, or what is printed on it where no label is that, or a heading where
    the source has sections; "#4" is the fourth sheet of a PDF. Of pages with the same label all are
    meant; a range runs from the first page of its first name to the last of its second.

    Raises:
        DocumentError: there is no page of such a name.
    """
    every = pages(source)
    chosen: set[int] = set()
    for part in [selection] if _called(every, selection) else selection.split(","):
        chosen.update(_part(source, every, part.strip()))
    return tuple(every[index] for index in sorted(chosen))


def named(
    every: Sequence[StoredPage], name: str, by: Sequence[str] = ("label", "printed")
) -> list[int]:
    """Which pages have this name; small and capital letters differ only where both are names.

    Args:
        by: attributes of pages: the first by which a page has the name decides.
    """
    for attribute in by:
        names = [str(getattr(page, attribute)) for page in every]
        for form in (str, str.casefold):
            found = [index for index, own in enumerate(names) if name and form(own) == form(name)]
            if found:
                return found
    return []


def find_source(sources: Sequence[SourceEntry], name: str) -> int:
    """Which source is meant: by its number from 1, its path, or the end of it, such as "book.pdf".

    Raises:
        DocumentError: none, or several.
    """
    if name.isdecimal() and 1 <= int(name) <= len(sources):
        return int(name) - 1
    wanted = PurePath(name).parts
    found = [
        index
        for index, source in enumerate(sources)
        if source.path == name or (wanted and PurePath(source.path).parts[-len(wanted) :] == wanted)
    ]
    if len(found) != 1:
        known = ", ".join(f"{number} is {s.path}" for number, s in enumerate(sources[:20], 1))
        problem = "several sources are" if found else "there is no source"
        raise DocumentError(f"{problem} {name}; name one by its number: {known}")
    return found[0]


def _part(source: SourceEntry, every: Sequence[StoredPage], part: str) -> Sequence[int]:
    """The pages of one name or range."""
    exact = _called(every, part)
    if exact:
        return exact
    for dash in re.finditer("-", part):
        first = _called(every, part[: dash.start()].strip())
        last = _called(every, part[dash.end() :].strip())
        if first and last and first[0] <= last[-1]:
            return range(first[0], last[-1] + 1)
    ends = f"its first is {every[0].label!r}, its last {every[-1].label!r}"
    where = ends if every[0].label else "it has none"
    raise DocumentError(f"{source.path} has no page {part!r}; {where}")


def _called(every: Sequence[StoredPage], name: str) -> list[int]:
    """The pages of a name in a selection, where "#4" is the fourth sheet."""
    sheet = re.fullmatch(r"#0*([1-9]\d{0,6})", name, re.ASCII)
    return named(every, sheet[1], ("sheet",)) if sheet else named(every, name)
