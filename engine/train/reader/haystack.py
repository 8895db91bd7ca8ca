"""The text around the facts: prose of real books and synthetic filler. No facts, no questions.

Books are kept as paragraphs; a passage is a run of them from a random place, each cut into
sentences. Whether lines are wrapped is decided later, when a document is written. Filler
looks like what reports, manuals, logs and tables hold, so that a reader does not take
prose for the only background there is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from engine.train.reader.names import syllables

if TYPE_CHECKING:
    from pathlib import Path
    from random import Random

HELD_OUT_BOOKS: Final = frozenset(
    (
        "shackleton-south",
        "kingsley-travels_in_west_africa",
        "chesterton-thursday",
        "milton-paradise",
    )
)
_PARAGRAPH: Final = re.compile(r"\n[ \t\r]*\n\s*")
_SPACE: Final = re.compile(r"\s+")
_END: Final = re.compile(r"[.!?][\"')\]_”’]*\s+(?=[\"'(\[_“‘A-Z0-9])")
_STRONG: Final = re.compile(r"(?:[;:]|--|—)\s*(?=[A-Za-z\"“'])")
_ABBREVIATION: Final = re.compile(
    r"(?:^|[\s(\"'“‘_-])(?:Mr|Mrs|Ms|Dr|St|No|Nos|Capt|Col|Gen|Lieut|Lt|Messrs|Rev|Hon|Prof|Fig|Vol|"
    r"Sergt|Maj|Esq|Jr|Sr|vs|viz|etc|lat|long|lbs|ft|in|Mme|Mlle|[A-Z])\.\s+$"
)
_LONG: Final = 240


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
    """Draws passages: paragraphs, each with its sentences and what stands between them."""

    def __init__(self, books: tuple[Book, ...]) -> None:
        self.books = books
        self._sizes = [book.size for book in books]

    def passage(
        self, size: int, rng: Random, prose_only: bool = False
    ) -> list[tuple[list[str], str | None]]:
        """`size` characters of paragraphs; a separator of None is the document's own."""
        if not prose_only and rng.random() < 0.12:
            return filler(size, rng)
        found: list[tuple[list[str], str | None]] = [(p, None) for p in self.prose(size, rng)]
        if rng.random() < 0.12 and size > 1500:
            extra = filler(size // 6, rng)
            at = rng.randint(0, len(found))
            # The passage keeps its length: what is added goes off the end.
            taken = sum(len(s) + 1 for p, _ in extra for s in p)
            while found and taken > 0:
                taken -= sum(len(s) + 1 for s in found.pop()[0])
            found[at:at] = extra
        return found

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
                kept: list[str] = []
                for one in sentences(book.paragraphs[at]):
                    # Verse and old prose have sentences of a page; the length asked for counts.
                    if taken >= run or len(one) > run - taken + 200:
                        break
                    kept.append(one)
                    taken += len(one) + 1
                if kept:
                    found.append(kept)
                at += 1
                if at == len(book.paragraphs) or taken >= run - 200:
                    break
            # A place that yields nothing still counts, or the search might not end.
            size -= max(taken, 50)
        return found


# --------------------------------------------------------------------------- filler

_VERBS: Final = ("started", "finished", "retried", "queued", "skipped", "loaded", "closed", "sent")
_NOUNS: Final = ("job", "task", "batch", "request", "block", "session", "frame", "packet", "page")
_PLAIN: Final = (
    "The {a} is {b}, and the {c} follows it.",
    "Each {a} has a {b} of its own.",
    "If the {a} fails, the {b} is tried again.",
    "See the section on {a}s for details.",
    "A {a} without a {b} is not allowed.",
    "The {a} must be set before the {b} is used.",
    "Figures for the {a} are rounded.",
    "No {a} was found in the {b}.",
    "This part describes the {a} and the {b}.",
    "Make sure that the {a} fits the {b}.",
    "The {a} may be left out.",
    "It is up to the {a} to check the {b}.",
    "The {a} shall not exceed the {b} of the {c}.",
    "All {a}s are checked by the {b}.",
)
_NOISE: Final = (
    "The grass is green.",
    "The sky is blue.",
    "The sun is yellow.",
    "Here we go.",
    "There and back again.",
)


def filler(size: int, rng: Random) -> list[tuple[list[str], str | None]]:
    """Paragraphs that state nothing anybody would ask for."""
    found: list[tuple[list[str], str | None]] = []
    while size > 0:
        kind = rng.choice((_log, _manual, _numbers, _settings, _noise, _code, _page, _list))
        lines, joint = kind(rng)
        found.append((lines, joint))
        size -= sum(len(line) + 1 for line in lines)
    return found


def _log(rng: Random) -> tuple[list[str], str | None]:
    day = f"20{rng.randint(10, 29)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"
    lines = []
    for _ in range(rng.randint(3, 10)):
        clock = f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}:{rng.randint(0, 59):02d}"
        level = rng.choice(("INFO", "DEBUG", "WARN", "INFO"))
        lines.append(
            f"{day} {clock} {level} {syllables(rng)}: {rng.choice(_VERBS)} "
            f"{rng.choice(_NOUNS)} {rng.randint(1, 9999)}"
        )
    return lines, "\n"


def _manual(rng: Random) -> tuple[list[str], str | None]:
    words = [syllables(rng) if rng.random() < 0.4 else rng.choice(_NOUNS) for _ in range(5)]
    lines = []
    for _ in range(rng.randint(3, 8)):
        a, b, c = rng.sample(words, 3)
        lines.append(rng.choice(_PLAIN).format(a=a, b=b, c=c))
    return lines, None


def _numbers(rng: Random) -> tuple[list[str], str | None]:
    columns = rng.randint(3, 6)
    bar = rng.choice((" | ", "\t", "  ", ","))
    return [
        bar.join(f"{rng.randint(0, 99999) / 100:.2f}" for _ in range(columns))
        for _ in range(rng.randint(3, 9))
    ], "\n"


def _settings(rng: Random) -> tuple[list[str], str | None]:
    mark = rng.choice((" = ", ": ", "="))
    return [
        f"{syllables(rng)}_{rng.choice(_NOUNS)}{mark}"
        f"{rng.choice(('true', 'false', 'auto', str(rng.randint(0, 512)), 'none'))}"
        for _ in range(rng.randint(3, 9))
    ], "\n"


def _noise(rng: Random) -> tuple[list[str], str | None]:
    return list(_NOISE) * rng.randint(1, 4), None


def _page(rng: Random) -> tuple[list[str], str | None]:
    number = rng.randint(2, 400)
    return [
        rng.choice(
            (
                f"{number}",
                f"Page {number}",
                f"- {number} -",
                f"[{number}]",
                f"Page {number} of {number + rng.randint(1, 90)}",
            )
        )
    ], None


def _list(rng: Random) -> tuple[list[str], str | None]:
    mark = rng.choice(("- {}", "* {}", "{n}. {}", "({n}) {}", "{n}) {}"))
    return [
        mark.format(f"{rng.choice(_VERBS)} {syllables(rng)} {rng.choice(_NOUNS)}", n=at + 1)
        for at in range(rng.randint(2, 8))
    ], "\n"


def _code(rng: Random) -> tuple[list[str], str | None]:
    name, arg, other = syllables(rng), syllables(rng), syllables(rng)
    return [
        f"def {name}({arg}, {other}={rng.randint(0, 9)}):",
        f"    if {arg} > {rng.randint(2, 99)}:",
        f"        return {arg} + {other}",
        f"    return {name}({arg} - 1)",
    ], "\n"


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
