"""PDF to text with page offsets: PDFium first, pypdf where PDFium cannot.

Extraction happens in a child process (`pdf_worker`) under limits of time and
memory, so that a malicious file costs its own pages and nothing else. PDFium
is many times faster, resolves ligatures and marks cut words; pypdf, in pure
Python, now and then opens a file that PDFium refuses. Nothing is rendered.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from engine.documents.layout import characters, drop_running, join_words
from engine.documents.types import MAX_CHARS, Extract, Page
from engine.errors import DocumentError

MAX_PAGES = 20_000
PAGE_SECONDS = 30
TOTAL_SECONDS = 900
MEMORY_BYTES = 4 * 2**30
_RESTARTS = 4
_WORKER = Path(__file__).with_name("pdf_worker.py")

Ranges = tuple[tuple[int, int], ...]


def parse_pages(selection: str) -> Ranges:
    """ "1-20,25" as sorted, merged ranges of page numbers, counted from 1.

    Raises:
        DocumentError: malformed, or a range that runs backwards.
    """
    ranges = []
    for part in selection.split(","):
        match = re.fullmatch(r"\s*(\d{1,7})\s*(?:-\s*(\d{1,7})\s*)?", part, re.ASCII)
        first = int(match.group(1)) if match else 0
        last = int(match.group(2) or first) if match else 0
        if not 1 <= first <= last:
            raise DocumentError(
                f"pages {selection!r}: {part.strip()!r} is no page or range; write them as 1-20,25"
            )
        ranges.append((first, last))
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return tuple(merged)


def name_pages(numbers: list[int]) -> str:
    """ "page 7" or "pages 4-6 and 9" for a sorted list; long lists are cut."""
    ranges = as_ranges(numbers)
    names = [str(first) if first == last else f"{first}-{last}" for first, last in ranges[:8]]
    if len(ranges) > 8:
        names.append(f"{len(numbers) - sum(b - a + 1 for a, b in ranges[:8])} more")
    listed = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    return ("page " if len(numbers) == 1 else "pages ") + listed


def as_ranges(numbers: list[int]) -> Ranges:
    """Sorted page numbers as ranges."""
    return parse_pages(",".join(map(str, numbers))) if numbers else ()


@dataclass
class _Reading:
    """What a library has given so far; filled by `_read`."""

    count: int = 0
    texts: dict[int, str] = field(default_factory=dict)
    lost: list[int] = field(default_factory=list)
    refusal: tuple[str, str] | None = None


def load_pdf(raw: bytes, *, pages: Ranges = (), password: str | None = None) -> Extract:
    """Text of the selected pages (all of them for no selection), one `Page` each.

    Raises:
        DocumentError: no PDF, malformed, encrypted, no such page, no text at
            all, or beyond a limit; a predicate without a subject.
    """
    if b"%PDF-" not in raw[:1024]:
        raise DocumentError("is no PDF: it does not begin with %PDF")
    deadline = time.monotonic() + TOTAL_SECONDS
    notes = []
    reading = _read(raw, "pdfium", pages, password, deadline)
    _refuse(reading, password)
    if not reading.count:
        reading = _read(raw, "pypdf", pages, password, deadline)
        _refuse(reading, password)
        if not reading.count:
            raise DocumentError("is malformed: no page of it can be read; export it again as PDF")
        notes.append("PDFium could not open it; read with pypdf")
    elif reading.lost:
        second = _read(raw, "pypdf", as_ranges(reading.lost), password, deadline)
        mended = sorted(second.texts)
        reading.texts |= second.texts
        reading.lost = [number for number in reading.lost if number not in second.texts]
        if mended:
            notes.append(f"PDFium could not read {name_pages(mended)}; read with pypdf")
    return _extract(reading, notes)


def _refuse(reading: _Reading, password: str | None) -> None:
    """Raise for what no other library would do better."""
    kind, message = reading.refusal or ("", "")
    if kind == "password":
        if password:
            raise DocumentError("is encrypted and the password given does not open it")
        raise DocumentError("is encrypted; give its password with --password-stdin")
    if kind == "limit":
        raise DocumentError(f"{message}; select some with --pages")
    if kind == "pages":
        raise DocumentError(message)


def _extract(reading: _Reading, notes: list[str]) -> Extract:
    """Page texts to one text, cleaned before any offset is taken."""
    numbers = sorted({*reading.texts, *reading.lost})
    raw = [characters(reading.texts.get(number, "")) for number in numbers]
    silent = [
        number
        for number, text in zip(numbers, raw, strict=True)
        if not text.strip() and number not in reading.lost
    ]
    if not any(text.strip() for text in raw):
        if reading.lost:
            raise DocumentError(f"is damaged: {name_pages(reading.lost)} cannot be read")
        raise DocumentError(
            f"has no text layer on {name_pages(silent)}; it needs OCR first (ocrmypdf, for one)"
        )
    if reading.lost:
        verb = "is" if len(reading.lost) == 1 else "are"
        notes.append(f"{name_pages(reading.lost)} cannot be read and {verb} left out")
    if silent:
        notes.append(f"{name_pages(silent)} {'has' if len(silent) == 1 else 'have'} no text layer")
    cleaned, removed = drop_running(join_words(raw))
    if removed:
        notes.append(f"{removed} running headers, footers and page numbers removed")
    garbled = [
        number
        for number, text in zip(numbers, cleaned, strict=True)
        if text.count("\ufffd") * 4 > len(text)
    ]
    if garbled:
        notes.append(f"{name_pages(garbled)}: fonts without a character table, text is unreadable")
    table, parts, length = [], [], 0
    for number, text in zip(numbers, cleaned, strict=True):
        table.append(Page(str(number), length))
        if text:
            parts.append(text + "\n")
            length += len(text) + 1
    return Extract("".join(parts), tuple(table), tuple(notes))


def _read(
    raw: bytes, library: str, ranges: Ranges, password: str | None, deadline: float
) -> _Reading:
    """All pages that `library` can read; a page that ends the process is stepped over."""
    reading = _Reading()
    for _ in range(_RESTARTS):
        done = _run(reading, raw, library, ranges, password, deadline)
        if not reading.count or reading.refusal:
            return reading
        wanted = ranges or ((1, reading.count),)
        if wanted[-1][1] > reading.count:
            pages = "page" if reading.count == 1 else "pages"
            message = f"has {reading.count} {pages}; --pages asks for page {wanted[-1][1]}"
            reading.refusal = ("pages", message)
            return reading
        known = reading.texts.keys() | set(reading.lost)
        rest = [page for a, b in wanted for page in range(a, b + 1) if page not in known]
        if done or not rest:
            return reading
        reading.lost.append(rest[0])
        ranges = as_ranges(rest[1:])
        if not ranges:
            return reading
    reading.lost += [page for a, b in ranges for page in range(a, b + 1)]
    return reading


def _run(
    reading: _Reading, raw: bytes, library: str, ranges: Ranges, password: str | None,
    deadline: float,
) -> bool:  # fmt: skip
    """One child process; adds what it said to `reading` and tells whether it got to its end."""
    request = {
        "library": library, "ranges": ranges, "password": password, "pages": MAX_PAGES,
        "seconds": PAGE_SECONDS, "memory": MEMORY_BYTES, "characters": MAX_CHARS,
    }  # fmt: skip
    # -P: a module that lies in the folder of the documents must not be imported.
    command = [sys.executable, "-P", str(_WORKER)]
    try:
        child = subprocess.run(
            command,
            input=json.dumps(request).encode() + b"\n" + raw,
            capture_output=True,
            timeout=max(1.0, deadline - time.monotonic()),
            check=False,
        )
        output = child.stdout
    except subprocess.TimeoutExpired as expired:
        output = expired.stdout or b""
    done = False
    for line in output.splitlines():
        try:
            event = json.loads(line)
        except ValueError:  # the process ended inside this line
            break
        if "count" in event:
            reading.count = event["count"]
        elif "text" in event:
            reading.texts[event["page"]] = event["text"]
        elif "page" in event:
            reading.lost.append(event["page"])
        elif "error" in event and event["kind"] != "malformed":
            reading.refusal = (event["kind"], event["error"])
        done = done or "done" in event
    reading.lost.sort()
    return done
