"""DOCX: paragraphs, headings and tables of a Word document, in reading order.

A stream of XML events from three members (document, footnotes, endnotes);
pictures, headers and footers are never opened. Deleted text of tracked changes
is left out, inserted text is in. Numbers that Word computes for lists and
headings are not in the file, so they are not in the text.
"""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING

from engine.documents.archive import Archive, opened, xml
from engine.documents.html import whole
from engine.documents.types import MAX_CHARS, Extract, Page
from engine.errors import DocumentError

if TYPE_CHECKING:
    from collections.abc import Mapping

# What is in the file twice (Fallback), or was before a tracked change.
_SKIPPED = frozenset({"Fallback", "moveFrom", "del", "pPrChange"})
_SIGNS = {"tab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}
MAX_DEPTH = 1_000
MAX_COLUMNS = 200


class _Events:
    """What the XML parser calls. Paragraphs end up in `blocks`, tables as one block each.

    A stack of open containers: the body holds blocks; a table cell holds the
    paragraphs of that cell until its row is closed and becomes one line.
    """

    def __init__(self, styles: Mapping[str, int]) -> None:
        self._styles = styles
        self._open: list[str] = []  # local names of the open elements
        self._skipped = 0
        self._paragraphs: list[list[str]] = []  # open paragraphs; text boxes nest
        self._levels: list[int] = []  # heading level of each open paragraph, 0 for none
        self._cells: list[list[str]] = []  # paragraphs of each open cell
        self._spans: list[int] = []  # columns that each open cell covers
        # Cells of each open row, None for a column that a cell before it covers.
        self._rows: list[list[str | None]] = []
        self._tables: list[list[str]] = []  # rows of each open table
        self.length = 0
        self.blocks: list[tuple[str, int]] = []  # (text, heading level or 0)

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        name = tag.rpartition("}")[2]
        parent = self._open[-1] if self._open else ""
        self._open.append(name)
        if len(self._open) > MAX_DEPTH:
            raise DocumentError(f"nests its elements more than {MAX_DEPTH:,} deep; refused")
        if name in _SKIPPED:
            self._skipped += 1
        elif name == "p":
            self._paragraphs.append([])
            self._levels.append(0)
        elif name in _SIGNS and parent == "r":  # a tab stop of a paragraph's layout is no tab
            self._write(_SIGNS[name])
        elif name == "pStyle" and self._levels and not self._skipped:
            self._levels[-1] = self._styles.get(_value(attributes), 0)
        elif name == "outlineLvl" and self._levels and not self._skipped:
            self._levels[-1] = _level(_value(attributes))
        elif name == "tbl":
            self._tables.append([])
        elif name == "tr" and self._tables:
            self._rows.append([])
        elif name == "tc" and self._rows:
            self._cells.append([])
            self._spans.append(1)
        elif name == "gridSpan" and self._spans:
            self._spans[-1] = _count(attributes)
        elif name == "gridBefore" and self._rows:
            self._rows[-1] += [None] * _count(attributes)

    def end(self, tag: str) -> None:
        name = self._open.pop()
        if name in _SKIPPED:
            self._skipped -= 1
        elif name == "p":
            text = "".join(self._paragraphs.pop()).replace("\xa0", " ").strip(" \n")
            self._put(text, self._levels.pop())
        elif name == "tc" and self._cells:
            cell = self._cells.pop()
            self._rows[-1].append("\n".join(part for part in cell if part))
            self._rows[-1] += [None] * (self._spans.pop() - 1)
        elif name == "tr" and self._rows:
            columns = self._rows.pop()
            cells = [cell for cell in columns if cell is not None]
            if len(cells) > 1:
                cells = [cell or "" for cell in columns]
            if len(cells) > 1:  # a row is a line; a table of one cell is a frame round its text
                cells = [" ".join(cell.split()) for cell in cells]
            if any(cells):
                self._tables[-1].append("\t".join(cells))
        elif name == "tbl":
            self._put("\n".join(self._tables.pop()), 0)

    def data(self, words: str) -> None:
        if self._open[-1] == "t":
            self._write(words)

    def doctype(self, name: str, public: str | None, system: str | None) -> None:
        raise DocumentError("declares an XML document type, which no Word document does; refused")

    def close(self) -> None:
        """The parser asks for a result; `blocks` is it."""

    def _write(self, text: str) -> None:
        if self._skipped or not self._paragraphs:
            return
        self.length += len(text)
        if self.length > MAX_CHARS:
            raise DocumentError(f"holds more than {MAX_CHARS:,} characters of text; split it")
        self._paragraphs[-1].append(text)

    def _put(self, text: str, level: int) -> None:
        """A finished paragraph or table goes to the cell that it is in, or to the body."""
        if self._cells:
            self._cells[-1].append(text)
        elif text:
            self.blocks.append((text, level))


def _value(attributes: Mapping[str, str]) -> str:
    """The w:val of an element, in the transitional or the strict namespace."""
    for key, text in attributes.items():
        if key.endswith("}val"):
            return text
    return ""


def _count(attributes: Mapping[str, str]) -> int:
    """How many columns of a table an element counts, at least one."""
    value = _value(attributes)
    return min(max(int(value), 1), MAX_COLUMNS) if value.isdecimal() else 1


def _level(outline: str) -> int:
    """Heading level 1-9 of an outline level 0-8; 0 for body text."""
    return int(outline) + 1 if outline.isdecimal() and int(outline) < 9 else 0


def _styles(archive: Archive, path: str) -> dict[str, int]:
    """Heading level per style id, inherited along basedOn. Damaged styles only cost sections."""
    if path not in archive.names:
        return {}
    try:
        root = xml(archive.read(path), path)
    except DocumentError:
        return {}
    own: dict[str, int] = {}
    parents: dict[str, str] = {}
    for style in root.iterfind("{*}style[{*}name]"):
        key = next((text for name, text in style.items() if name.endswith("}styleId")), "")
        found = {child.tag.rpartition("}")[2]: _value(child.attrib) for child in style.iter("{*}*")}
        words = found.get("name", "").lower().split()
        if words[:1] == ["heading"] and len(words) == 2 and words[1].isdecimal():
            own[key] = int(words[1])
        elif words == ["title"]:
            own[key] = 1
        elif "outlineLvl" in found:
            own[key] = _level(found["outlineLvl"])
        parents[key] = found.get("basedOn", "")
    levels = dict(own)
    for key in parents:
        ancestor, steps = key, 0
        while ancestor not in own and ancestor in parents and steps < 20:
            ancestor, steps = parents[ancestor], steps + 1
        levels[key] = own.get(ancestor, 0)
    return levels


def _blocks(data: bytes, styles: Mapping[str, int], name: str) -> list[tuple[str, int]]:
    from lxml import etree

    events = _Events(styles)
    parser = etree.XMLParser(
        target=events, resolve_entities=False, load_dtd=False, no_network=True, huge_tree=False
    )
    try:
        for start in range(0, len(data), 2**16):
            parser.feed(data[start : start + 2**16])
        parser.close()
    except etree.XMLSyntaxError as error:
        raise DocumentError(f"is damaged: {name} inside it is not valid XML") from error
    return events.blocks


def load_docx(raw: bytes) -> Extract:
    """Text of the body, then foot- and endnotes; headings of the first three levels as pages.

    Raises:
        DocumentError: no DOCX, damaged, or beyond a limit; a predicate without subject.
    """
    with opened(raw) as archive:
        body = _body_path(archive)
        folder = posixpath.dirname(body)
        styles = _styles(archive, posixpath.join(folder, "styles.xml"))
        blocks = _blocks(archive.read(body), styles, body)
        for member, label in (("footnotes.xml", "Footnotes"), ("endnotes.xml", "Endnotes")):
            path = posixpath.join(folder, member)
            notes = _blocks(archive.read(path), {}, path) if path in archive.names else []
            if notes:
                blocks += [(label, 1), *notes]
    pages, parts, length = [], [], 0
    for text, level in blocks:
        if 1 <= level <= 3:
            pages.append(Page(" ".join(text.split())[:200], length))
        parts.append(text)
        length += len(text) + 2
    return Extract("\n\n".join(parts), whole(pages))


def _body_path(archive: Archive) -> str:
    """The member that holds the document, as the package relations say."""
    rels = "_rels/.rels"
    if rels in archive.names:
        for relation in xml(archive.read(rels), rels).iterfind("{*}Relationship"):
            if relation.get("Type", "").endswith("/officeDocument"):
                target: str = relation.get("Target", "")
                return posixpath.normpath(target.lstrip("/"))
    return "word/document.xml"
