"""The text around the facts: prose of real books and synthetic filler. No facts, no questions.

Books are kept as paragraphs; a passage is a run of them from a random place, each cut into
sentences. Whether lines are wrapped is decided later, when a document is written.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path
    from random import Random

HELD_OUT_BOOKS: Final = frozenset(
    {
        "shackleton-south",
        "kingsley-travels_in_west_africa",
        "chesterton-thursday",
        "milton-paradise",
    }
)
_PARAGRAPH: Final = re.compile(r"\n[ \t\r]*\n\s*")
_SPACE: Final = re.compile(r"\s+")
_END: Final = re.compile(r"[.!?][\"')\]_”’]*\s+(?=[\"'(\[_“‘A-Z0-9])")
_ABBREVIATION: Final = re.compile(
    r"(?:^|[\s(\"'“‘])(?:Mr|Mrs|Ms|Dr|St|No|Nos|Capt|Col|Gen|Lieut|Lt|Messrs|Rev|Hon|Prof|Fig|Vol|"
    r"Sergt|Maj|Esq|Jr|Sr|vs|viz|etc|lat|long|lbs|ft|in|[A-Z])\.\s+$"
)


def sentences(paragraph: str) -> list[str]:
    """Cut a paragraph (whitespace already single) into sentences."""
    found: list[str] = []
    start = 0
    for match in _END.finditer(paragraph):
        if _ABBREVIATION.search(paragraph[max(start, match.start() - 8) : match.end()]):
            continue
        found.append(paragraph[start : match.end()].rstrip())
        start = match.end()
    if start < len(paragraph):
        found.append(paragraph[start:])
    return found


@dataclass(frozen=True)
class Book:
    """A text as paragraphs of single-spaced words."""

    name: str
    paragraphs: tuple[str, ...]
    size: int


def load_books(folder: Path, split: str) -> tuple[Book, ...]:
    """The .txt books of `folder` on one side of the split.

    Raises:
        ValueError: the folder has no book of that side.
    """
    held = split == "eval"
    found = []
    for path in sorted(folder.glob("*.txt")):
        if (path.stem in HELD_OUT_BOOKS) != held:
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        paragraphs = tuple(
            _SPACE.sub(" ", part).strip() for part in _PARAGRAPH.split(text) if part.strip()
        )
        if paragraphs:
            found.append(Book(path.stem, paragraphs, sum(map(len, paragraphs))))
    if not found:
        raise ValueError(f"no {split} books among the .txt files of {folder}")
    return tuple(found)


class Haystack:
    """Draws passages from books."""

    def __init__(self, books: tuple[Book, ...]) -> None:
        self.books = books
        self._sizes = [book.size for book in books]

    def prose(self, size: int, rng: Random) -> list[list[str]]:
        """Paragraphs of sentences, `size` characters in all, from one or a few places."""
        found: list[list[str]] = []
        while size > 0:
            book = rng.choices(self.books, self._sizes)[0]
            # Long documents change place now and then, so that no book is alike throughout.
            run = size if rng.random() < 0.7 else max(300, int(size * rng.random()))
            at = rng.randrange(len(book.paragraphs))
            taken = 0
            while taken < run:
                cut = sentences(book.paragraphs[at])
                kept: list[str] = []
                for one in cut:
                    if taken >= run:
                        break
                    kept.append(one)
                    taken += len(one) + 1
                found.append(kept)
                at += 1
                if at == len(book.paragraphs):
                    break
            size -= max(taken, 1)
        return found


def wrap(text: str, width: int) -> str:
    """Hard-wrap by turning spaces into line breaks; offsets stay what they were."""
    out: list[str] = []
    at = 0
    while True:
        end = text.find("\n", at, at + width + 1)
        if end < 0:
            if len(text) - at <= width:
                out.append(text[at:])
                return "\n".join(out)
            end = text.rfind(" ", at + 1, at + width + 1)
            if end < 0:
                end = text.find(" ", at + 1)
                newline = text.find("\n", at + 1)
                if newline >= 0 and (end < 0 or newline < end):
                    end = newline
                if end < 0:
                    out.append(text[at:])
                    return "\n".join(out)
        out.append(text[at:end])
        at = end + 1
