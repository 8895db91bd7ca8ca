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
from typing import TYPE_CHECKING, Any

from engine.documents.glyphs import Mark, glyphs_of, in_reading_order, measured, with_marks
from engine.documents.layout import Line, RemovedLine, drop_running, join_words, joined, regular
from engine.documents.types import HEADERS_KEPT, MAX_CHARS, Extract, Page, imprint
from engine.errors import DocumentError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MAX_PAGES = 20_000
MAX_NOTES = 40
"""Most running lines that are named one by one."""

PAGE_SECONDS = 30
TOTAL_SECONDS = 900
MEMORY_BYTES = 4 * 2**30
_RESTARTS = 4
_WORKER = Path(__file__).with_name("pdf_worker.py")

Ranges = tuple[tuple[int, int], ...]


def merged(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Ranges of sheets in order, those that touch as one."""
    out: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if out and first <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(last, out[-1][1]))
        else:
            out.append((first, last))
    return tuple(out)


def chosen_sheets(selection: str, count: int, labels: Sequence[str] = ()) -> Ranges:
    """The sheets that "1-20,25", "ii-iv,A-1" or "#4-#9" name.

    Where the file has labels of its own, a name is a label; "#4" is always the
    fourth sheet. Without labels the pages are numbered as the sheets are.

    Args:
        count: sheets of the file.  labels: one for each of them, if they differ from 1, 2, ...
    Raises:
        DocumentError: malformed, backwards, no such page, or a label of several sheets; a
            predicate without a subject.
    """
    ranges = []
    for part in (part.strip() for part in selection.split(",")):
        sheets = re.fullmatch(r"#(\d{1,7})(?:\s*-\s*#?(\d{1,7}))?", part, re.ASCII)
        if sheets or not labels:
            numbers = sheets or re.fullmatch(r"(\d{1,7})(?:\s*-\s*(\d{1,7}))?", part, re.ASCII)
            first = int(numbers[1]) if numbers else 0
            last = int(numbers[2] or first) if numbers else 0
        else:
            first, last = _by_label(part, labels)
        if not 1 <= first <= last:
            why = "runs backwards" if 1 <= last < first else "is no page or range"
            raise DocumentError(
                f"cannot give pages {selection!r}: {part!r} {why}; write them as 1-20,25"
            )
        if last > count:
            pages = "page" if count == 1 else "pages"
            raise DocumentError(f"has {count} {pages}; --pages asks for page {last}")
        ranges.append((first, last))
    return merged(ranges)


def _by_label(part: str, labels: Sequence[str]) -> tuple[int, int]:
    """First and last sheet of one label, or of a range of them."""
    if found := _labelled(part, labels):
        return found, found
    for dash in re.finditer("-", part):
        first = _labelled(part[: dash.start()].strip(), labels)
        last = _labelled(part[dash.end() :].strip(), labels)
        if first and last:
            return first, last
    raise DocumentError(
        f"has no page {part!r}; its pages are called {_short(labels)}, and #1 to #{len(labels)}"
        " name its sheets"
    )


def _labelled(name: str, labels: Sequence[str]) -> int:
    """The sheet of a label, 0 for none: as it is written, or else in capitals or small letters."""
    same = [sheet for sheet, label in enumerate(labels, 1) if label == name]
    same = same or [
        sheet for sheet, label in enumerate(labels, 1) if label.casefold() == name.casefold()
    ]
    if len(same) > 1:
        sheets = " and ".join(f"#{sheet}" for sheet in same[:3])
        raise DocumentError(f"has several pages {name!r}; name the sheet: {sheets}")
    return same[0] if same else 0


def _short(labels: Sequence[str]) -> str:
    return ", ".join(labels) if len(labels) < 8 else f"{labels[0]}, {labels[1]} ... {labels[-1]}"


def name_pages(numbers: Sequence[int], thing: str = "page") -> str:
    """ "page 7" or "pages 4-6 and 9" for a sorted list; long lists are cut."""
    ranges = merged((number, number) for number in numbers)
    names = [str(first) if first == last else f"{first}-{last}" for first, last in ranges[:8]]
    if len(ranges) > 8:
        names.append(f"{len(numbers) - sum(b - a + 1 for a, b in ranges[:8])} more")
    listed = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    return f"{thing} {listed}" if len(numbers) == 1 else f"{thing}s {listed}"


@dataclass
class _Reading:
    """What a library has given so far; filled by `_read`. labels: empty if just 1, 2, ..."""

    count: int = 0
    labels: list[str] = field(default_factory=list)
    info: dict[str, str] = field(default_factory=dict)
    pages: dict[int, dict[str, Any]] = field(default_factory=dict)
    lost: list[int] = field(default_factory=list)
    refusal: tuple[str, str] | None = None
    unread_form: bool = False


def load_pdf(
    raw: bytes, *, pages: str = "", password: str | None = None, keep_headers: bool = False
) -> Extract:
    """Text of the selected pages (all of them for no selection), one `Page` each.

    Args:
        pages: as `chosen_sheets` has it.
        keep_headers: leave running headers, footers and page numbers where they are.
    Raises:
        DocumentError: no PDF, malformed, encrypted, no such page, no text at
            all, or beyond a limit; a predicate without a subject.
    """
    if b"%PDF-" not in raw[:1024]:
        raise DocumentError("is no PDF: it does not begin with %PDF")
    deadline = time.monotonic() + TOTAL_SECONDS
    notes = []
    reading = _chosen(raw, "pdfium", pages, password, deadline)
    if not reading.count:
        reading = _chosen(raw, "pypdf", pages, password, deadline)
        if not reading.count:
            raise DocumentError("is malformed: no page of it can be read; export it again as PDF")
        notes.append("PDFium could not open it; read with pypdf")
    elif reading.lost:
        lost = merged((sheet, sheet) for sheet in reading.lost)
        second = _read(raw, "pypdf", lost, password, deadline)
        mended = sorted(second.pages)
        reading.pages |= second.pages
        reading.lost = [sheet for sheet in reading.lost if sheet not in second.pages]
        if mended:
            notes.append(f"PDFium could not read {name_pages(mended)}; read with pypdf")
    return _extract(reading, notes, keep_headers=keep_headers)


def _chosen(
    raw: bytes, library: str, pages: str, password: str | None, deadline: float
) -> _Reading:
    """The selected pages as a library reads them; those that it cannot open have no count."""
    ranges: Ranges = ()
    if pages:
        known = _read(raw, library, None, password, deadline)
        _refuse(known, password)
        if not known.count:
            return known
        ranges = chosen_sheets(pages, known.count, known.labels)
    reading = _read(raw, library, ranges, password, deadline)
    _refuse(reading, password)
    return reading


def _refuse(reading: _Reading, password: str | None) -> None:
    """Raise for what no other library would do better."""
    kind, message = reading.refusal or ("", "")
    if kind == "password":
        if password:
            raise DocumentError("is encrypted and the password given does not open it")
        raise DocumentError("is encrypted; give its password with --password-stdin")
    if kind == "limit":
        raise DocumentError(f"{message}; select some with --pages")


def _extract(reading: _Reading, notes: list[str], *, keep_headers: bool) -> Extract:
    """Pages to one text, cleaned before any offset is taken."""
    sheets = sorted({*reading.pages, *reading.lost})
    # What is called 1, 2, ... is a page; beside labels of its own it is a sheet.
    thing = "sheet" if reading.labels else "page"
    pages = [_lines(reading.pages.get(sheet, {})) for sheet in sheets]
    blank = [not any(line.text.strip() for line in lines) for lines in pages]
    silent = [
        sheet
        for sheet, empty in zip(sheets, blank, strict=True)
        if empty and sheet not in reading.lost
    ]
    if all(blank):
        if reading.lost:
            raise DocumentError(f"is damaged: {name_pages(reading.lost, thing)} cannot be read")
        raise DocumentError(
            f"has no text layer on {name_pages(silent, thing)}; it needs OCR first (ocrmypdf, for"
            " one)"
        )
    if reading.lost:
        verb = "is" if len(reading.lost) == 1 else "are"
        notes.append(f"{name_pages(reading.lost, thing)} cannot be read and {verb} left out")
    if silent:
        verb = "has" if len(silent) == 1 else "have"
        notes.append(f"{name_pages(silent, thing)} {verb} no text layer")
    notes += _form_notes(reading, thing)
    labels = [reading.labels[sheet - 1] if reading.labels else "" for sheet in sheets]
    kept, removed, printed = drop_running(pages, sheets, labels)
    if keep_headers:
        notes.append(HEADERS_KEPT)
        kept = [[line.text for line in lines] for lines in pages]
    else:
        notes += _removal_notes(removed)
    cleaned = join_words([joined(lines) for lines in kept])
    garbled = [
        sheet
        for sheet, text in zip(sheets, cleaned, strict=True)
        if text.count("\ufffd") * 4 > len(text)
    ]
    if garbled:
        notes.append(
            f"{name_pages(garbled, thing)}: fonts without a character table, text is unreadable"
        )
    table, parts, length = [], [], 0
    for sheet, label, number, text in zip(sheets, labels, printed, cleaned, strict=True):
        label = label or str(sheet)
        table.append(
            Page(label, length, sheet, "" if number.casefold() == label.casefold() else number)
        )
        if text:
            parts.append(text + "\n")
            length += len(text) + 1
    said = imprint(**{name: [regular(value)] for name, value in reading.info.items()})
    return Extract("".join(parts), tuple(table), tuple(notes), said)


def _lines(page: dict[str, Any]) -> list[Line]:
    """The lines of one page, those at its edges with their places."""
    size = page.get("size", (0, 0))
    marks = [Mark(*mark) for mark in page.get("marks", ())]
    if "glyphs" in page:
        glyphs = with_marks([glyphs_of(line) for line in page["glyphs"]], marks)
        texts = in_reading_order(glyphs)
        return [
            Line(regular(text), measured(line, size))
            for text, line in zip(texts, glyphs, strict=True)
        ]
    lines = [Line(text) for text in regular(page.get("text", "")).split("\n")]
    for mark in marks:  # their places are not known
        text = f"{mark.label}: {mark.text}" if mark.label else mark.text
        lines += [Line(part) for part in regular(text).split("\n")]
    filled = [at for at, line in enumerate(lines) if line.text.strip()]
    if len(filled) == page.get("lines"):
        for outer, name in ((filled, "head"), (filled[::-1], "foot")):
            for at, line in zip(outer, page[name], strict=False):
                lines[at] = Line(lines[at].text, measured(glyphs_of(line), size))
    return lines


def _form_notes(reading: _Reading, thing: str) -> list[str]:
    """What there is beside the printed text, and whether it was read."""
    notes = []
    fields, remarks, hidden = [], [], []
    for sheet, page in sorted(reading.pages.items()):
        fields += [sheet for mark in page.get("marks", ()) if mark[5] is not None]
        remarks += [sheet for mark in page.get("marks", ()) if mark[5] is None]
        hidden += [sheet] * page.get("hidden", 0)
    for found, what, said in (
        (fields, "form field", "in the text"),
        (remarks, "free-text note", "in the text"),
        (hidden, "comment", "not in the text"),
    ):
        if found:
            things = f"1 {what} is" if len(found) == 1 else f"{len(found)} {what}s are"
            notes.append(f"{things} {said} ({name_pages(sorted(set(found)), thing)})")
    if reading.unread_form:
        notes.append("it is an XFA form; what it shows in Acrobat may be missing")
    return notes


def _removal_notes(removed: list[RemovedLine]) -> list[str]:
    """What was taken away, a line each; how to keep it is said once."""
    notes = []
    for line in sorted(removed, key=lambda line: -line.pages):
        pages = "1 page" if line.pages == 1 else f"{line.pages} pages"
        edge = "head" if line.top else "foot"
        if line.text:
            text = line.text if len(line.text) <= 80 else line.text[:79] + "…"
            notes.append(f"left out at the {edge} of {pages}, said once: {text}")
        else:
            notes.append(f"left out at the {edge} of {pages}: the page's own number")
    if len(notes) > MAX_NOTES:
        notes[MAX_NOTES:] = [f"left out: {len(notes) - MAX_NOTES} more running lines"]
    return [*notes, "--keep-headers keeps what was left out"] if notes else []


def _read(
    raw: bytes, library: str, ranges: Ranges | None, password: str | None, deadline: float
) -> _Reading:
    """All pages that `library` can read; a page that ends the process is stepped over.

    Args:
        ranges: () for all pages, None for none: only what the file says of them.
    """
    reading = _Reading()
    for _ in range(_RESTARTS):
        done = _run(reading, raw, library, ranges, password, deadline)
        if not reading.count or reading.refusal or ranges is None:
            return reading
        wanted = ranges or ((1, reading.count),)
        known = reading.pages.keys() | set(reading.lost)
        rest = [page for a, b in wanted for page in range(a, b + 1) if page not in known]
        if done or not rest:
            return reading
        reading.lost.append(rest[0])
        ranges = merged((sheet, sheet) for sheet in rest[1:])
        if not ranges:
            return reading
    reading.lost += [page for a, b in ranges or () for page in range(a, b + 1)]
    return reading


def _run(
    reading: _Reading, raw: bytes, library: str, ranges: Ranges | None, password: str | None,
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
            reading.info = event["info"]
            reading.labels = [
                " ".join(regular(label).split())[:50] or f"#{sheet}"
                for sheet, label in enumerate(event.get("labels", ()), 1)
            ]
        elif "form" in event:
            reading.unread_form = True
        elif "text" in event:
            reading.pages[event["page"]] = event
        elif "page" in event:
            reading.lost.append(event["page"])
        elif "error" in event and event["kind"] != "malformed":
            reading.refusal = (event["kind"], event["error"])
        done = done or "done" in event
    reading.lost.sort()
    return done
