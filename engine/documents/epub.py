"""EPUB 2 and 3: the chapters of the spine in reading order, named by the table of contents.

Images, fonts and styles are never opened. A chapter under DRM is recognised
and refused; obfuscated fonts, which the same file lists, do no harm.
"""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING
from urllib.parse import unquote, urldefrag

from engine.documents.archive import Archive, opened, xml
from engine.documents.html import TextBuilder, feed, markup_of, whole
from engine.documents.types import Extract, Page, imprint
from engine.errors import DocumentError

if TYPE_CHECKING:
    from lxml.etree import _Element

_CHAPTERS = frozenset({"application/xhtml+xml", "text/html", "text/x-oeb1-document"})
_NCX = "application/x-dtbncx+xml"
_OPS = "{http://www.idpf.org/2007/ops}type"
MAX_CHAPTERS = 10_000


def load_epub(raw: bytes) -> Extract:
    """Text of all chapters, with the entries of the table of contents as pages.

    Raises:
        DocumentError: no EPUB, damaged, encrypted, or beyond a limit; a predicate without subject.
    """
    with opened(raw) as archive:
        package = _package_path(archive)
        opf = xml(archive.read(package), package)
        folder = posixpath.dirname(package)
        items = {
            item.get("id", ""): item
            for item in opf.iterfind(".//{*}manifest/{*}item")
            if item.get("href")
        }
        paths = {key: _join(folder, item.get("href", "")) for key, item in items.items()}
        locked = _locked(archive)
        builder = TextBuilder()
        headings: list[Page] = []
        missing: list[str] = []
        notes: list[str] = []
        spine = opf.findall(".//{*}spine/{*}itemref")
        if len(spine) > MAX_CHAPTERS:
            raise DocumentError(f"lists more than {MAX_CHAPTERS:,} chapters; refused")
        read: set[str] = set()
        for reference in spine:
            key = reference.get("idref", "")
            item = items.get(key)
            if item is None or item.get("media-type") not in _CHAPTERS or key in read:
                continue
            read.add(key)  # a chapter listed twice is one chapter
            if "nav" in item.get("properties", "").split():
                continue  # a table of contents of links: its entries label the pages instead
            path = paths[key]
            if path in locked:
                raise DocumentError("is protected by DRM; sekv needs a copy without it")
            if path not in archive.names:
                missing.append(path)
                continue
            markup, remarks = markup_of(archive.read(path))
            notes.extend(f"{path}: {remark}" for remark in remarks)
            headings += feed(markup, builder, path)[0]
        builder.settle()
        contents = _contents(archive, opf, items, paths)
        said = imprint(
            title=_metadata(opf, "title")[:1],
            author=_metadata(opf, "creator"),
            publisher=_metadata(opf, "publisher"),
        )
    pages = [Page(label, builder.marks[to]) for label, to in contents if to in builder.marks]
    if missing:
        notes.insert(0, f"{len(missing)} listed chapters are missing ({missing[0]})")
    text = builder.text()
    named = [page for page in pages or headings if page.start < len(text)]
    return Extract(text, whole(named), tuple(notes), said)


def _metadata(opf: _Element, name: str) -> list[str]:
    """What the package says of the book under this name of Dublin Core."""
    found = opf.iterfind(f".//{{*}}metadata/{{http://purl.org/dc/elements/1.1/}}{name}")
    return ["".join(str(part) for part in element.itertext()) for element in found]


def _package_path(archive: Archive) -> str:
    """Where the package document is, as META-INF/container.xml says."""
    container = "META-INF/container.xml"
    root = xml(archive.read(container), container).find(".//{*}rootfile")
    path = root.get("full-path") if root is not None else None
    if not path:
        raise DocumentError("is damaged: its container names no package document")
    return unquote(path)


def _join(folder: str, href: str) -> str:
    return posixpath.normpath(posixpath.join(folder, unquote(href)))


def _locked(archive: Archive) -> frozenset[str]:
    """Members listed as encrypted. Fonts are usually only obfuscated; nobody reads those here."""
    name = "META-INF/encryption.xml"
    if name not in archive.names:
        return frozenset()
    references = xml(archive.read(name), name).iterfind(".//{*}CipherReference")
    return frozenset(_join("", reference.get("URI", "")) for reference in references)


def _contents(
    archive: Archive, opf: _Element, items: dict[str, _Element], paths: dict[str, str]
) -> list[tuple[str, str]]:
    """(label, "path" or "path#id") of each entry, from the EPUB 3 nav or the EPUB 2 NCX.

    A table of contents that is missing or damaged is no reason to refuse the
    book: it only names places, and headings can do that too.
    """
    spine = opf.find(".//{*}spine")
    listed = spine.get("toc", "") if spine is not None else ""
    nav = [key for key, item in items.items() if "nav" in item.get("properties", "").split()]
    ncx = [key for key, item in items.items() if item.get("media-type") == _NCX or key == listed]
    for key in nav + ncx:
        path = paths[key]
        if path not in archive.names:
            continue
        try:
            tree = xml(archive.read(path), path)
        except DocumentError:
            continue
        entries = _nav_entries(tree) if key in nav else _ncx_entries(tree)
        found = [(" ".join(label.split())[:200], *urldefrag(href)) for label, href in entries]
        contents = [
            (label, _join(posixpath.dirname(path), file) + (f"#{unquote(part)}" if part else ""))
            for label, file, part in found
            if label and file
        ]
        if contents:
            return contents
    return []


def _nav_entries(tree: _Element) -> list[tuple[str, str]]:
    navs = tree.findall(".//{*}nav")
    toc = [nav for nav in navs if "toc" in nav.get(_OPS, "").split()] or navs[:1]
    return [
        ("".join(str(part) for part in link.itertext()), link.get("href", ""))
        for nav in toc
        for link in nav.iterfind(".//{*}a")
    ]


def _ncx_entries(tree: _Element) -> list[tuple[str, str]]:
    entries = []
    for point in tree.iterfind(".//{*}navPoint"):
        label, content = point.find("{*}navLabel/{*}text"), point.find("{*}content")
        if label is not None and content is not None:
            entries.append((label.text or "", content.get("src", "")))
    return entries
