"""Text of PDF pages, extracted in a process of its own. Run as a script, never imported.

A PDF is a program written by a stranger: it can crash a C++ parser, loop for
ever or ask for all memory. Here that ends this process, not the ingest. One
request comes in on stdin (a line of JSON, then the bytes of the file); one
line of JSON per event goes out on stdout:

    {"count": 318, "labels": [...]}      pages of the file; their labels where it has any
    {"form": "xfa"}                      the file is a form of a kind that is not read
    {"page": 12, "text": "...", ...}     text as the library gives it, and what `_give` adds
    {"page": 13, "error": "..."}         this page cannot be read
    {"error": "...", "kind": "password"} nothing can be read: password, malformed or limit
    {"done": true}                       nothing was lost on the way

Places on a page are in points from its lower left corner as it is shown. Only
the standard library and the PDF library asked for are imported.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import logging
import re
import signal
import sys
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class _Refused(Exception):
    """The file as a whole cannot be read; args are (kind, message)."""


def _say(event: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    # A page that kills this process must not take those before it along.
    sys.stdout.flush()


def _give(number: int, text: str, request: dict[str, Any], **more: Any) -> None:
    """Hand a page over.

    Args:
        more: what is known beyond the text. size: width and height. lines: how many are not
            blank; head, foot: glyphs of the outermost of them, from the edge inwards. glyphs: the
            lines of the whole page, in the place of `text`, where it is not the order of reading.
            marks: [text, left, bottom, right, top, label] of what forms and notes show; the label
            is null for a note.
            hidden: how many comments the page has that are not in the text.
    """
    request["characters"] -= len(text)
    if request["characters"] < 0:
        raise _Refused("limit", f"holds too much text (page {number} is one too many)")
    _say({"page": number, "text": text, **more})


def _bound(seconds: int, memory: int) -> Callable[[], None]:
    """Cap the memory of this process; returns what restarts the time limit of one page.

    An alarm without a handler ends the process even inside native code, where
    no Python handler would run.
    """
    try:
        import resource
    except ImportError:  # no such limits on this system; the parent's own still hold
        return lambda: None
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    # Not every system lets a process cap its own address space; the clock still holds there.
    with contextlib.suppress(ValueError, OSError):
        if hard == resource.RLIM_INFINITY or hard > memory:
            resource.setrlimit(resource.RLIMIT_AS, (memory, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)

    def restart() -> None:
        signal.setitimer(signal.ITIMER_REAL, seconds)

    return restart


def _chosen(
    count: int, labels: list[str], info: dict[str, str], request: dict[str, Any]
) -> Iterable[int]:
    """Say what the file has; the sheets to read. info: its own title and author."""
    plain = all(label in ("", str(sheet)) for sheet, label in enumerate(labels, 1))
    _say({"count": count, "info": info} | ({} if plain else {"labels": labels}))
    ranges = request["ranges"]
    if ranges is None:
        return ()
    if not ranges:
        ranges = [[1, count]]
    if max(last for _, last in ranges) > count:
        return ()  # the parent has the count and says so
    if sum(last - first + 1 for first, last in ranges) > request["pages"]:
        raise _Refused(
            "limit", f"has {count:,} pages; at most {request['pages']:,} are read at once"
        )
    return (page for first, last in ranges for page in range(first, last + 1))


EDGE = 4
"""Lines at the head and at the foot of a page whose places are told."""

_RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]")
_TEXT = 1  # FPDF_PAGEOBJ_TEXT
_FREE_TEXT, _WIDGET, _LINK, _POPUP = 3, 20, 2, 16  # FPDF_ANNOT_*
_HIDDEN = 2 | 32  # the annotation flags Hidden and NoView
_CHECK, _RADIO, _COMBO, _LIST, _FIELD = 2, 3, 4, 5, 6  # FPDF_FORMFIELD_*
_PASSWORD, _PUSH = 1 << 13, 1 << 16
MAX_OBJECTS = 20_000
MAX_MARKS = 5_000

Glyph = list[Any]  # [text, left, bottom, right, top]


class _Page:
    """One page of PDFium: its text and where the text stands."""

    def __init__(self, raw: Any, page: Any, form: Any) -> None:
        self._raw = raw
        self._page = page
        self._form = form
        self.size: tuple[float, float] = page.get_size()
        self._rotation = page.get_rotation()
        self._box: tuple[float, float, float, float] = page.get_bbox()
        self._broaden()
        self._text = page.get_textpage()

    def _broaden(self) -> None:
        """Give a breadth to text that has none; else PDFium leaves it out.

        A font that is neither in the file nor on this machine has no outlines to measure by: its
        lone signs ("男" in a cell) and its lines set sideways have none. A stroke has a breadth.
        """
        raw = self._raw
        sides = [ctypes.c_float() for _ in range(4)]
        for at in range(min(raw.FPDFPage_CountObjects(self._page), MAX_OBJECTS)):
            item = raw.FPDFPage_GetObject(self._page, at)
            raw.FPDFPageObj_GetBounds(item, *sides)
            if sides[0].value != sides[2].value or raw.FPDFPageObj_GetType(item) != _TEXT:
                continue
            if not raw.FPDFFont_GetIsEmbedded(raw.FPDFTextObj_GetFont(item)):
                raw.FPDFTextObj_SetTextRenderMode(item, raw.FPDF_TEXTRENDERMODE_STROKE)
                raw.FPDFPageObj_Transform(item, 1, 0, 0, 1, 0, 0)  # measures anew

    def measured(self) -> dict[str, Any]:
        """Text and everything else that `_give` takes."""
        text = self._text.get_text_range()
        measured: dict[str, Any] = {"size": [round(side, 2) for side in self.size]}
        marks, hidden = self._marks()
        if hidden:
            measured["hidden"] = hidden
        if marks:
            measured["marks"] = marks
        beyond = self._beyond_plane()
        sideways = self._sideways(text)
        if marks or beyond or sideways or _RIGHT_TO_LEFT.search(text):
            lines = self._lines(0, self._text.count_chars(), sideways)
            measured["glyphs"] = _with_signs(lines, beyond)
            if sideways:
                measured["glyphs"] = self._turned(measured["glyphs"], sideways)
            return {"text": text, **measured}
        lines_of_text = [match.span() for match in re.finditer(r"[^\r\n]+", text)]
        filled = [(a, b) for a, b in lines_of_text if not text[a:b].isspace()]
        measured["lines"] = len(filled)
        outer = {"head": filled[:EDGE], "foot": filled[: -EDGE - 1 : -1]}
        return {"text": text, **measured, **{k: self._measured(v) for k, v in outer.items()}}

    def _measured(self, spans: list[tuple[int, int]]) -> list[list[Glyph]]:
        index = self._raw.FPDFText_GetCharIndexFromTextIndex
        lines = []
        for start, end in spans:
            first, last = index(self._text, start), index(self._text, end - 1)
            lines.append(
                [glyph for line in self._lines(first, last + 1, {}) for glyph in line]
                if 0 <= first <= last
                else []
            )
        return lines

    def _lines(self, start: int, end: int, sideways: dict[int, int]) -> list[list[Glyph]]:
        """Glyphs of the characters [start, end), a list for each line; with `sideways`, each
        glyph ends in the angle at which it is set."""
        raw, text = self._raw, self._text
        box = raw.FS_RECTF()
        lines: list[list[Glyph]] = [[]]
        high = 0
        for at in range(start, end):
            code = raw.FPDFText_GetUnicode(text, at)
            if code == 10:
                lines.append([])
            if code in (0, 10, 13):
                continue
            if 0xD800 <= code < 0xDC00:
                high = code
                continue
            if high and 0xDC00 <= code < 0xE000:
                code = 0x10000 + ((high - 0xD800) << 10) + code - 0xDC00
            high = 0
            raw.FPDFText_GetLooseCharBox(text, at, box)
            place = self._shown(box.left, box.bottom, box.right, box.top)
            glyph = [chr(code), *place]
            if sideways:
                glyph.append(self._angle(at))
            lines[-1].append(glyph)
        return lines

    def _shown(self, left: float, bottom: float, right: float, top: float) -> list[float]:
        """A box of the page's own space as it is shown."""
        x, y = self._box[:2]
        width, height = self.size
        left, bottom, right, top = left - x, bottom - y, right - x, top - y
        if self._rotation == 90:
            left, bottom, right, top = bottom, height - right, top, height - left
        elif self._rotation == 180:
            left, bottom, right, top = width - right, height - top, width - left, height - bottom
        elif self._rotation == 270:
            left, bottom, right, top = width - top, left, width - bottom, right
        return [round(side, 2) for side in (left, bottom, right, top)]

    def _angle(self, at: int) -> int:
        """By how much the page must be turned for a character to stand upright, 0 as it is."""
        turn = 360 - round(self._raw.FPDFText_GetCharAngle(self._text, at) * 57.29578 / 90) * 90
        return int(turn - self._rotation) % 360

    def _sideways(self, text: str) -> dict[int, int]:
        """Angle -> how many lines are set at it; empty unless one angle has two lines."""
        index = self._raw.FPDFText_GetCharIndexFromTextIndex
        found: dict[int, int] = {}
        for match in re.finditer(r"[^\r\n]+", text):
            words = match.group()
            at = match.start() + len(words) - len(words.lstrip())
            if words.isspace() or (char := index(self._text, at)) < 0:
                continue
            if angle := self._angle(char):
                found[angle] = found.get(angle, 0) + 1
        return {angle: count for angle, count in found.items() if count > 1}

    def _turned(self, lines: list[list[Glyph]], sideways: dict[int, int]) -> list[list[Glyph]]:
        """What is set sideways is read with the page turned, and stands where its first line
        stood."""
        upright = self._rotation
        out = [line for line in lines if _most(line) not in sideways]
        for angle in sideways:
            self._page.set_rotation((upright + angle) % 360)
            self._text.close()
            self._text = self._page.get_textpage()
            self._rotation, before = (upright + angle) % 360, self.size
            self.size = self._page.get_size()
            found = self._lines(0, self._text.count_chars(), sideways)
            mine = [line for line in found if line and _most(line) == 0]
            self._rotation, self.size = upright, before
            kept = sum(
                _most(line) not in sideways
                for line in lines[: [_most(line) for line in lines].index(angle)]
            )
            # Their places are of the turned page, and say nothing beside the others.
            block = [[[glyph[0], 0, 0, 0, 0] for glyph in line] for line in mine]
            out[kept:kept] = block
        self._page.set_rotation(upright)
        return [[glyph[:5] for glyph in line] for line in out]

    def _beyond_plane(self) -> list[Glyph]:
        """Signs beyond the basic plane (emoji) that the file gives as the meaning of a glyph
        (ActualText); PDFium drops them."""
        raw = self._raw
        found: dict[int, Glyph] = {}
        for at in range(min(raw.FPDFPage_CountObjects(self._page), MAX_OBJECTS)):
            item = raw.FPDFPage_GetObject(self._page, at)
            for number in range(raw.FPDFPageObj_CountMarks(item)):
                mark = raw.FPDFPageObj_GetMark(item, number)
                text = _actual_text(raw, mark)
                if not text or max(text) <= "\uffff":
                    continue
                sides = [ctypes.c_float() for _ in range(4)]
                raw.FPDFPageObj_GetBounds(item, *sides)
                place = self._shown(*(side.value for side in sides))
                known = found.setdefault(ctypes.addressof(mark.contents), [text, *place])
                known[1:] = [
                    *(min(a, b) for a, b in zip(known[1:3], place[:2], strict=True)),
                    *(max(a, b) for a, b in zip(known[3:], place[2:], strict=True)),
                ]
        return list(found.values())

    def _marks(self) -> tuple[list[list[Any]], int]:
        """What form fields and free-text notes show, and how many other comments there are."""
        raw = self._raw
        marks, hidden = [], 0
        for at in range(min(raw.FPDFPage_GetAnnotCount(self._page), MAX_MARKS)):
            annotation = raw.FPDFPage_GetAnnot(self._page, at)
            if not annotation:
                continue
            kind = raw.FPDFAnnot_GetSubtype(annotation)
            said, label = "", None
            if raw.FPDFAnnot_GetFlags(annotation) & _HIDDEN:
                pass
            elif kind == _WIDGET:
                said, label = (self._field if self._form else self._orphan)(annotation)
            elif kind == _FREE_TEXT:
                said = _string(raw.FPDFAnnot_GetStringValue, annotation, b"Contents")
            elif kind not in (_WIDGET, _LINK, _POPUP):
                hidden += bool(_string(raw.FPDFAnnot_GetStringValue, annotation, b"Contents"))
            if said.strip():
                box = raw.FS_RECTF()
                raw.FPDFAnnot_GetRect(annotation, box)
                sides = self._shown(box.left, box.bottom, box.right, box.top)
                marks.append([said.strip(), *sides, label])
            raw.FPDFPage_CloseAnnot(annotation)
        return marks, hidden

    def _orphan(self, annotation: Any) -> tuple[str, str]:
        """The same of a field whose form was lost, as where files were joined; it shows still."""
        said = {
            key: _string(self._raw.FPDFAnnot_GetStringValue, annotation, key.encode())
            for key in ("FT", "T", "TU", "V", "AS")
        }
        if said["FT"] == "Btn" and said["AS"]:
            said["V"] = "[ ]" if said["AS"] == "Off" else "[x]"
        return said["V"], said["TU"] or said["T"]

    def _field(self, annotation: Any) -> tuple[str, str]:
        """What a form field shows, and what it is called."""
        raw, form = self._raw, self._form
        kind = raw.FPDFAnnot_GetFormFieldType(form, annotation)
        label = _string(raw.FPDFAnnot_GetFormFieldAlternateName, form, annotation)
        label = label or _string(raw.FPDFAnnot_GetFormFieldName, form, annotation)
        if kind in (_CHECK, _RADIO):
            ticked = raw.FPDFAnnot_IsChecked(form, annotation)
            return ("[x]" if ticked else "[ ]") if kind == _CHECK else (
                "(x)" if ticked else "( )"
            ), label
        if kind not in (_COMBO, _LIST, _FIELD):
            return "", ""
        if raw.FPDFAnnot_GetFormFieldFlags(form, annotation) & _PASSWORD and kind == _FIELD:
            return "", ""
        options = min(max(raw.FPDFAnnot_GetOptionCount(form, annotation), 0), MAX_MARKS)
        chosen = [
            _string(raw.FPDFAnnot_GetOptionLabel, form, annotation, option)
            for option in range(options)
            if raw.FPDFAnnot_IsOptionSelected(form, annotation, option)
        ]
        value = ", ".join(chosen) or _string(raw.FPDFAnnot_GetFormFieldValue, form, annotation)
        return value, label


def _string(call: Callable[..., int], *arguments: Any) -> str:
    """A text that PDFium gives in UTF-16 into a buffer; "" for none."""
    size = call(*arguments, None, 0)
    if size <= 2:
        return ""
    buffer = (ctypes.c_ushort * (size // 2 + 1))()
    call(*arguments, buffer, size)
    return bytes(buffer)[: size - 2].decode("utf-16-le", errors="replace")


def _actual_text(raw: Any, mark: Any) -> str:
    size = ctypes.c_ulong()
    key = b"ActualText"
    if not raw.FPDFPageObjMark_GetParamBlobValue(mark, key, None, 0, size) or size.value < 6:
        return ""
    blob = (ctypes.c_ubyte * size.value)()
    raw.FPDFPageObjMark_GetParamBlobValue(mark, key, blob, size.value, size)
    data = bytes(blob)
    if data.startswith(b"\xfe\xff"):
        return data[2:].decode("utf-16-be", errors="replace")
    return data[3:].decode("utf-8", "replace") if data.startswith(b"\xef\xbb\xbf") else ""


def _with_signs(lines: list[list[Glyph]], signs: list[Glyph]) -> list[list[Glyph]]:
    """Put signs where their glyphs stand, in the place of what PDFium left of them."""
    for sign in signs:
        best = None
        for line in lines:
            low = min((glyph[2] for glyph in line), default=0)
            high = max((glyph[4] for glyph in line), default=0)
            if line and low <= (sign[2] + sign[4]) / 2 <= high:
                best = line
        if best is None:
            lines.append(best := [])
        tail = best[0][5:] if best else []
        best[:] = [g for g in best if not sign[1] - 0.5 <= (g[1] + g[3]) / 2 <= sign[3] + 0.5]
        at = sum((glyph[1] + glyph[3]) / 2 < sign[1] for glyph in best)
        room = (sign[4] - sign[2]) / 5
        after = best[at] if at < len(best) else None
        best.insert(at, [*sign, *tail])
        if after and not after[0].isspace() and after[1] - sign[3] > room:
            best.insert(at + 1, [" ", sign[3], *sign[2:], *tail])
        if at and not best[at - 1][0].isspace() and sign[1] - best[at - 1][3] > room:
            best.insert(at, [" ", sign[1], sign[2], sign[1], sign[4], *tail])
    return lines


def _most(line: list[Glyph]) -> int:
    """The angle at which most glyphs of a line are set."""
    angles = [glyph[5] for glyph in line if len(glyph) > 5 and not glyph[0].isspace()]
    return max(set(angles), key=angles.count) if angles else 0


def _pdfium(data: bytes, request: dict[str, Any], restart: Callable[[], None]) -> None:
    import pypdfium2
    import pypdfium2.raw as raw

    try:
        pdf = pypdfium2.PdfDocument(data, password=request["password"])
    except pypdfium2.PdfiumError as error:
        locked = getattr(error, "err_code", 0) == 4  # FPDF_ERR_PASSWORD
        raise _Refused("password" if locked else "malformed", str(error)) from error
    count = len(pdf)
    labels = [
        _string(raw.FPDF_GetPageLabel, pdf, sheet) for sheet in range(min(count, request["pages"]))
    ]
    kind = pdf.get_formtype()
    form = None
    if kind:
        pdf.init_forms()
        form = pdf.formenv
    if kind > 1:
        _say({"form": "xfa"})
    info = {
        name.lower(): _string(raw.FPDF_GetMetaText, pdf, name.encode())
        for name in ("Title", "Author")
    }
    for number in _chosen(count, labels, info, request):
        restart()
        try:
            page = pdf[number - 1]
            read = _Page(raw, page, form)
            measured = read.measured()
            _give(number, measured.pop("text"), request, **measured)
            page.close()
        except pypdfium2.PdfiumError as error:
            _say({"page": number, "error": str(error)})


def _pypdf(data: bytes, request: dict[str, Any], restart: Callable[[], None]) -> None:
    import pypdf

    # On damaged files pypdf raises whatever its pure Python meets (KeyError, TypeError,
    # RecursionError ...); each means the same here, and this process holds nothing to spoil.
    broken = (
        pypdf.errors.PyPdfError, ArithmeticError, AssertionError, AttributeError, LookupError,
        NotImplementedError, OSError, RecursionError, TypeError, ValueError,
    )  # fmt: skip
    try:
        pdf = pypdf.PdfReader(io.BytesIO(data))
        if pdf.is_encrypted and not pdf.decrypt(request["password"] or ""):
            raise _Refused("password", "wrong password")
        count = len(pdf.pages)
        labels = pdf.page_labels if "/PageLabels" in pdf.root_object else []
        about: Any = pdf.metadata or {}
        info = {name[1:].lower(): str(about.get(name, "")) for name in ("/Title", "/Author")}
    except pypdf.errors.DependencyError as error:
        raise _Refused("malformed", f"unsupported encryption: {error}") from error
    except broken as error:
        raise _Refused("malformed", str(error)) from error
    for number in _chosen(count, labels, info, request):
        restart()
        try:
            page = pdf.pages[number - 1]
            text = page.extract_text()
            _give(number, text, request, marks=_annotated(page))
        except broken as error:
            _say({"page": number, "error": str(error)})


def _annotated(page: Any) -> list[list[Any]]:
    """Marks as `_give` has them, by pypdf, without places."""
    marks: list[list[Any]] = []
    for reference in list(page.get("/Annots") or ())[:MAX_MARKS]:
        item = reference.get_object()
        if int(item.get("/F", 0)) & _HIDDEN:
            continue
        if item.get("/Subtype") == "/FreeText":
            marks.append([str(item.get("/Contents", "")), 0, 0, 0, 0, None])
        if item.get("/Subtype") != "/Widget":
            continue
        field, values = item, dict[str, Any]()
        for _ in range(32):  # a field's values may stand at the group that it is of
            for key in ("/FT", "/Ff", "/V", "/T", "/TU"):
                values.setdefault(key, field.get(key))
            if values["/FT"] is not None or "/Parent" not in field:
                break
            field = field["/Parent"].get_object()
        kind, flags = values["/FT"], int(values["/Ff"] or 0)
        value = values["/V"]
        if kind == "/Btn" and not flags & _PUSH:
            ticked = item.get("/AS", "/Off") != "/Off"
            value = "[x]" if ticked else "[ ]"
        elif kind not in ("/Tx", "/Ch") or (kind == "/Tx" and flags & _PASSWORD):
            value = None
        elif isinstance(value, list):
            value = ", ".join(map(str, value))
        if value is not None:
            marks.append([str(value), 0, 0, 0, 0, str(values["/TU"] or values["/T"] or "")])
    return [mark for mark in marks if mark[0].strip()]


def main() -> None:
    """Serve one request and exit; the exit status is not a message."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    request = json.loads(sys.stdin.buffer.readline())
    data = sys.stdin.buffer.read()
    restart = _bound(request["seconds"], request["memory"])
    restart()
    try:
        {"pdfium": _pdfium, "pypdf": _pypdf}[request["library"]](data, request, restart)
    except _Refused as refused:
        kind, message = refused.args
        _say({"error": message, "kind": kind})
    except MemoryError:
        _say({"error": "out of memory", "kind": "limit"})
        return
    _say({"done": True})


if __name__ == "__main__":
    main()
