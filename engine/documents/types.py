"""What a source becomes: text, a table of pages, and what was noticed on the way.

Nouns only. Nothing here opens a file or knows a format.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

MAX_SOURCE_BYTES = 512 * 2**20
"""Largest file that is read: beyond any book, small enough to hold in memory."""

MAX_CHARS = 64 * 2**20
"""Longest extracted text: about forty times War and Peace."""


HEADERS_KEPT = "running headers and page numbers are kept (--keep-headers)"
"""The note of a source that was read so; what is appended to its store is read so too."""


IMPRINT = ("title", "author", "publisher")
"""What an imprint has: no dates, which are as often the file's as the work's."""


def imprint(**values: Iterable[str | None]) -> dict[str, str]:
    """Of metadata what is said, by the names of `IMPRINT`: each value once, in one line."""
    said = {}
    for name in IMPRINT:
        lines = (" ".join((value or "").split()) for value in values.get(name, ()))
        said[name] = ", ".join(dict.fromkeys(line for line in lines if line))[:1000]
    return {name: value for name, value in said.items() if value}


@dataclass(frozen=True)
class Page:
    """A page of a PDF, or a chapter or section of anything else.

    label: what a citation calls it ("12", "Chapter 3"); "" where the source has no name for it.
    start: character offset into the source's text. A page ends where the next one starts;
        one without text starts where its successor does.
    sheet: which sheet of a PDF it is, counted from 1, whatever its label says; 0 elsewhere.
    printed: the number that is printed on it, where that is known and differs from its label.
    """

    label: str
    start: int
    sheet: int = 0
    printed: str = ""


@dataclass(frozen=True)
class Extract:
    """What a format gives back: the text, its pages, remarks of one line each, and its imprint (see
    `Source`)."""

    text: str
    pages: tuple[Page, ...] = ()
    notes: tuple[str, ...] = ()
    imprint: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """One file (or stdin) after reading.

    path: as the user gave it; "-" for stdin.
    kind: pdf, text, markdown, html, epub, docx or email.
    text: the extracted text. Every citation is an exact slice of it.
    pages: sorted by start, the first at 0; empty where the source has no such division.
    sha256: of the raw bytes that were read, in hexadecimal.
    notes: remarks of one line each, such as "pages 4-6 have no text layer".
    imprint: what the file says of itself beside its text, by the names of `IMPRINT`; of some
        files nothing, of others what a program filled in.
    """

    path: str
    kind: str
    text: str = field(repr=False)
    pages: tuple[Page, ...] = field(repr=False)
    sha256: str
    notes: tuple[str, ...] = ()
    imprint: Mapping[str, str] = field(default_factory=dict, repr=False)

    def page_at(self, offset: int) -> str:
        """The label of the page that holds the character at `offset`; "" without pages.

        Raises:
            ValueError: offset is negative or beyond the end of the text.
        """
        if not 0 <= offset <= len(self.text):
            raise ValueError(f"offset {offset} is outside 0..{len(self.text)}")
        index = bisect_right(self.pages, offset, key=lambda page: page.start) - 1
        return self.pages[index].label if index >= 0 else ""


@dataclass(frozen=True)
class Document:
    """What one `ingest` reads: its sources, in the order given."""

    sources: tuple[Source, ...]
