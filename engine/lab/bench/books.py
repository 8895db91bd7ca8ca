"""Books as paragraphs and sentences: the text that suites hide things in."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from engine.errors import DocumentError

if TYPE_CHECKING:
    from pathlib import Path

_PARAGRAPH: Final = re.compile(r"\n[ \t\r]*\n\s*")
_SPACE: Final = re.compile(r"\s+")
_END: Final = re.compile(r"[.!?][\"')\]_”’]*\s+(?=[\"'(\[_“‘A-Z0-9])")
_ABBREVIATION: Final = re.compile(
    r"(?:^|[\s(\"'“‘_-])(?:Mr|Mrs|Ms|Dr|St|No|Nos|Capt|Col|Gen|Lieut|Lt|Messrs|Rev|Hon|Prof|Fig|Vol|"
    r"Sergt|Maj|Esq|Jr|Sr|vs|viz|etc|lat|long|lbs|ft|in|Mme|Mlle|[A-Z])\.\s+$"
)


@dataclass(frozen=True)
class Book:
    """name: the file's stem. paragraphs: with single spaces, in order."""

    name: str
    paragraphs: tuple[str, ...]


def load_books(folder: Path) -> tuple[Book, ...]:
    """The .txt files of a folder, by name.

    Raises:
        DocumentError: there is no such folder, or no text in it.
    """
    if not folder.is_dir():
        raise DocumentError(f"there is no folder {folder}; name one of .txt books with --text")
    found = []
    for path in sorted(folder.glob("*.txt")):
        text = path.read_text(encoding="utf-8", errors="replace")
        parts = (_SPACE.sub(" ", part).strip() for part in _PARAGRAPH.split(text))
        paragraphs = tuple(part for part in parts if part)
        if paragraphs:
            found.append(Book(path.stem, paragraphs))
    if not found:
        raise DocumentError(f"{folder} holds no .txt books; name another folder with --text")
    return tuple(found)


def sentences(paragraph: str) -> list[str]:
    """Cut a paragraph with single spaces into sentences; abbreviations end none."""
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
