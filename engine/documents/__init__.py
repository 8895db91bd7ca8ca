"""Loads documents: every source format behind one `load`.

What a format looks like is in its own module; here a source is read once,
hashed, recognised, and handed to the loader of its kind. Heavy libraries are
imported by the loader that needs them, never by importing this package.
"""

from __future__ import annotations

import hashlib
import re
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, BinaryIO

from engine.documents.types import (
    MAX_CHARS,
    MAX_SOURCE_BYTES,
    Document,
    Extract,
    Page,
    Source,
)
from engine.errors import DocumentError
from engine.object_storage import address, bucket, is_url

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Document", "Page", "Source", "load"]

STDIN = "-"
_SURROGATE = re.compile("[\ud800-\udfff]")
_KINDS = {
    ".pdf": "pdf", ".txt": "text", ".text": "text", ".md": "markdown", ".markdown": "markdown",
    ".html": "html", ".htm": "html", ".xhtml": "html", ".epub": "epub", ".docx": "docx",
    ".eml": "email", ".mbox": "email", ".mht": "email", ".mhtml": "email",
}  # fmt: skip
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_KNOWN = "sekv reads PDF, text, Markdown, HTML, EPUB, DOCX and e-mail (.eml)"
# What is text to look at, and no text to read.
_MARKED_UP = {
    b"{\\rtf": "is RTF, whose marks are no text; save it as .docx, .txt or PDF first (Word and"
    " LibreOffice do)",
    b"%!PS": "is PostScript, a program and no text; convert it to PDF first (ps2pdf does)",
}


def is_named_as_document(path: str) -> bool:
    """Whether a file's ending is that of a format that can be read."""
    return PurePath(path).suffix.lower() in _KINDS


def load(
    paths: Sequence[str],
    *,
    pages: str | None = None,
    password: str | None = None,
    keep_headers: bool = False,
    stdin: BinaryIO | None = None,
) -> Document:
    """Read every source, in the order given.

    Args:
        paths: files or URLs of object stores; "-" is stdin, once.
        pages: pages of the PDFs among the sources, such as "1-20,25", as `chosen_sheets` has it;
            they keep their labels. None reads all.
        password: opens encrypted PDFs.
        keep_headers: leave running headers, footers and page numbers in the text of PDFs.
        stdin: read for "-"; the process's own by default.
    Raises:
        DocumentError: the first source that cannot be read, with its name and what to do.
        ObjectStorageError: the object store of one cannot be reached, or has none of that name.
    """
    if not paths:
        raise DocumentError("no source given; name a file, or - for stdin")
    if list(paths).count(STDIN) > 1:
        raise DocumentError("stdin (-) is given twice, but it can be read only once")
    if pages is not None and not all(part.strip() for part in pages.split(",")):
        raise DocumentError(f"pages {pages!r} name no page or range; write them as 1-20,25")
    sources = []
    for path in paths:
        raw = _read(path, stdin)
        kind = _kind(path, raw)
        pdf = {"pages": pages or "", "password": password, "keep_headers": keep_headers}
        sources.append(_source(path, kind, raw, pdf))
    if pages and all(source.kind != "pdf" for source in sources):
        raise DocumentError("--pages selects pages of a PDF, and none of the sources is one")
    return Document(tuple(sources))


def _read(path: str, stdin: BinaryIO | None) -> bytes:
    try:
        if path == STDIN:
            raw = (stdin or sys.stdin.buffer).read(MAX_SOURCE_BYTES + 1)
        elif is_url(path):
            raw = _fetched(path)
        else:
            if Path(path).is_dir():
                raise DocumentError(f"{path} is a directory; name the files in it")
            with Path(path).open("rb") as file:
                raw = file.read(MAX_SOURCE_BYTES + 1)
    except FileNotFoundError:
        raise DocumentError(f"{path} does not exist; check the name") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise DocumentError(f"{_name(path)} cannot be read: {reason}") from error
    if not raw:
        raise DocumentError(f"{_name(path)} is empty")
    if len(raw) > MAX_SOURCE_BYTES:
        limit = MAX_SOURCE_BYTES // 2**20
        raise DocumentError(f"{_name(path)} is larger than {limit} MiB; split it")
    return raw


def _fetched(url: str) -> bytes:
    """The bytes of an object, or of the file of a `file://` URL.

    Raises:
        ObjectStorageError: it cannot be had.
    """
    place = address(url)
    if isinstance(place, Path):
        return _read(str(place), None)
    return bucket(place).read_range(place.key, 0, MAX_SOURCE_BYTES + 1)


def _name(path: str) -> str:
    """How a message calls a source."""
    return "stdin" if path == STDIN else ascii(path) if "\0" in path else path


def _kind(path: str, raw: bytes) -> str:
    """The kind that the name promises; without a known ending, what the content looks like."""
    kind = "" if path == STDIN else _KINDS.get(PurePath(path).suffix.lower(), "")
    for start, what in _MARKED_UP.items():
        if raw.removeprefix(b"\xef\xbb\xbf").lstrip()[:8].startswith(start):
            raise DocumentError(f"{_name(path)} {what}")
    if kind:
        return kind
    if raw.startswith(b"%PDF-"):
        return "pdf"
    if raw.startswith(b"PK\x03\x04"):
        return _zipped(raw, _name(path))
    start = raw[:2048].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")) or (start[:1] == b"<" and b"<html" in start):
        return "html"
    from engine.documents.mail import looks_like_mail

    return "email" if looks_like_mail(raw) else "text"


def _zipped(raw: bytes, name: str) -> str:
    from engine.documents.archive import opened

    try:
        with opened(raw) as archive:
            if "META-INF/container.xml" in archive.names:
                return "epub"
            if "word/document.xml" in archive.names:
                return "docx"
    except DocumentError as error:
        raise DocumentError(f"{name} {error}") from error
    raise DocumentError(f"{name} is a zip archive, but no EPUB or DOCX; {_KNOWN}")


def _source(path: str, kind: str, raw: bytes, pdf_options: dict[str, Any]) -> Source:
    name = _name(path)
    try:
        extract = _extract(kind, raw, pdf_options)
    except DocumentError as error:
        raise DocumentError(f"{name} {error}{_hint(kind, raw, str(error))}") from error
    if not extract.text.strip():
        raise DocumentError(f"{name} holds no text; name a document that does")
    if len(extract.text) > MAX_CHARS:
        raise DocumentError(f"{name} holds more than {MAX_CHARS:,} characters of text; split it")
    digest = hashlib.sha256(raw).hexdigest()
    text, notes = _SURROGATE.sub("\ufffd", extract.text), extract.notes
    if text != extract.text:  # half a character, which nothing after this could write down
        notes = (*notes, "halves of characters that stood alone were replaced")
    pages = tuple(
        replace(page, label=_SURROGATE.sub("\ufffd", page.label)) for page in extract.pages
    )
    imprint = {name: _SURROGATE.sub("\ufffd", said) for name, said in extract.imprint.items()}
    return Source(path, kind, text, pages, digest, notes, imprint)


def _extract(kind: str, raw: bytes, pdf_options: dict[str, Any]) -> Extract:
    from engine.documents import docx, epub, html, mail, pdf, text

    loaders: dict[str, Callable[[bytes], Extract]] = {
        "pdf": partial(pdf.load_pdf, **pdf_options),
        "text": text.load_text,
        "markdown": text.load_markdown,
        "html": html.load_html,
        "epub": epub.load_epub,
        "docx": docx.load_docx,
        "email": mail.load_mail,
    }
    return loaders[kind](raw)


def _hint(kind: str, raw: bytes, said: str) -> str:
    """What to do about a source that its loader refused, where that did not say so: what it looks
    like, if that differs from its name."""
    if kind != "pdf" and raw.startswith(b"%PDF-"):
        return "; it looks like a PDF, name it .pdf"
    if raw.startswith(_OLE):
        return "; it looks like an old or encrypted Office file, save it as plain .docx"
    if kind in ("text", "markdown", "html", "email") and raw.startswith(b"PK\x03\x04"):
        return "; it looks like a zip archive, such as .epub or .docx"
    if kind == "text":
        return f"; {_KNOWN}"
    return "" if "; " in said else "; get it again, or save it anew"
