"""HTML to text with its block structure kept: paragraphs, lines, table cells.

An event parser fills a `TextBuilder`; no tree is built, so neither size nor
nesting costs memory. Styles and scripts are dropped, nothing is fetched. The
same builder serves EPUB, whose chapters are XHTML.
"""

from __future__ import annotations

import re
from html import escape
from typing import TYPE_CHECKING

from engine.documents.text import decode
from engine.documents.types import IMPRINT, MAX_CHARS, Extract, Page, imprint
from engine.errors import DocumentError

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_DEPTH = 2_000
"""Deepest nesting of elements. Closing tags search the open ones: without a limit, quadratic."""

_DROPPED = frozenset({"script", "style", "template", "noscript", "svg", "head", "iframe"})
_PARAGRAPHS = {
    *("address", "article", "aside", "blockquote", "body", "center", "details", "dialog", "div"),
    *("dl", "fieldset", "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5"),
    *("h6", "header", "hr", "main", "nav", "ol", "p", "pre", "section", "ul"),
}
_LINES = frozenset({"br", "dd", "dt", "li", "caption", "option", "summary", "legend"})
_TABLES = {"table": "\n\n", "tr": "\n"}
_CELLS = frozenset({"td", "th"})
_HEADINGS = frozenset({"h1", "h2", "h3"})
# What hides all that follows if it is not closed.
_SWALLOWS = re.compile(
    r"<!--|<!\[CDATA\[|<(script|style|title|textarea|iframe|noscript|template)(?![\w-])[^<>]*>",
    re.I,
)
_BLOCK = re.compile(
    r"<(?:/?(?:head|body)|address|article|blockquote|div|dl|h[1-6]|main|ol|p|pre|section|table|ul)"
    r"(?![\w-])",
    re.I,
)
_METADATA = {
    **dict.fromkeys(("author", "dc.creator", "dcterms.creator", "citation_author"), "author"),
    **dict.fromkeys(
        ("publisher", "dc.publisher", "dcterms.publisher", "og:site_name"), "publisher"
    ),
}
"""Names of `meta` elements that belong to an imprint."""

_MOST_SPAN = 200
_BREAKS_OUT = _PARAGRAPHS | {"table", "tr", "td", "th", "li", "dd", "dt", "br", "head", "img"}
"""Tags that end a drawing in which they stand, as the HTML standard has it."""

_SPACES = re.compile("[ \t\n\r\f]+")
# A line end of the file between two ideographs or kana, which are written without spaces.
_INSIDE_WORD = re.compile(
    "(?<=[\u3000-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uff00-\uffef])[ \t\r]*\n\\s*"
    "(?=[\u3000-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uff00-\uffef])"
)
_CHARSET = re.compile(
    rb"""<(?:meta\s[^>]*?charset|\?xml\s[^>]*?encoding)\s*=\s*["']?\s*([\w.:-]+)""", re.I
)


class TextBuilder:
    """Text put together from words and breaks, with the offsets of what was marked.

    Breaks are held back until the next word, so a run of them counts once and a
    mark stands exactly on the first character of what it names.
    """

    def __init__(self) -> None:
        self.length = 0
        self._parts: list[str] = []
        self._lines = ""  # the break to come: line ends, then tabs
        self._tabs = 0
        self._row_begun = False  # words since the last row or table began or ended
        self._cell_begun = True  # words since the last cell began
        self._space = False
        self._waiting: list[str] = []
        self.marks: dict[str, int] = {}

    def add(self, words: str, *, exact: bool = False) -> None:
        """Append words; spaces collapse as a browser would, unless `exact`."""
        words = words.replace("\xad", "").replace("\xa0", " ")
        if not exact:
            words = _SPACES.sub(" ", _INSIDE_WORD.sub("", words))
            leading, trailing = words.startswith(" "), words.endswith(" ")
            words = words.strip(" ")
            if not words:
                self._space = self._space or leading
                return
            if (leading or self._space) and not self._lines and not self._tabs and self.length:
                words = " " + words
            self._space = trailing
        else:
            if not self.length or self._lines:
                words = words.lstrip("\n")
            if not words:
                return
        if self.length:
            self._append(self._lines + "\t" * self._tabs)
        self._lines, self._tabs = "", 0
        self._row_begun = self._cell_begun = True
        self.settle()
        self._append(words)

    def separate(self, text: str) -> None:
        """Ask for a break before the next words: "\n\n" outweighs "\n"; at the very
        beginning of a table cell neither breaks its row."""
        self._space = False
        if len(text) > len(self._lines) and self._cell_begun:
            self._lines = text

    def row(self, text: str) -> None:
        """Begin or end a row of a table, or the table itself."""
        if self._row_begun:
            self._lines = ""  # what a paragraph in the last cell asked for
        self._tabs, self._row_begun, self._cell_begun = 0, False, True
        self.separate(text)

    def cell(self, *, first: bool) -> None:
        """Begin a cell: all but the first of a row ask for a tab."""
        self._space = self._cell_begun = False
        if self._row_begun:
            self._lines = ""
        self._tabs += not first

    def mark(self, name: str) -> None:
        """Remember where the next words start; the first use of a name counts."""
        self._waiting.append(name)

    def settle(self) -> None:
        """Give the waiting marks the place of whatever comes next."""
        for name in self._waiting:
            self.marks.setdefault(name, self.length)
        self._waiting.clear()

    def text(self) -> str:
        """Everything so far."""
        return "".join(self._parts)

    def _append(self, part: str) -> None:
        self._parts.append(part)
        self.length += len(part)
        if self.length > MAX_CHARS:
            raise DocumentError(f"holds more than {MAX_CHARS:,} characters of text; split it")


class _Columns:
    """Which columns of a table a row has reached, so that cells over several rows or columns
    leave what follows in its own column."""

    def __init__(self) -> None:
        self._column = 0
        self._waiting = 0  # columns that the last cell covers beside its first
        self._rows: dict[int, int] = {}  # column -> rows that a cell above still covers

    def row(self) -> None:
        for column, rows in self._rows.items():  # no cell came after those that cover the last row
            if column >= self._column and rows:
                self._rows[column] = rows - 1
        self._column = 0

    def cell(self, attributes: Mapping[str, str]) -> list[bool]:
        """Begin a cell: for each column that begins with it, whether it is the row's first."""
        first = self._column
        while self._rows.get(self._column, 0) > 0:
            self._rows[self._column] -= 1
            self._column += 1
        mine = self._column
        rows = _span(attributes, "rowspan")
        for _ in range(_span(attributes, "colspan")):
            self._rows[self._column] = rows - 1
            self._column += 1
        # The empty columns of a wide cell come before the cell after it.
        begun = range(first, mine + 1)
        waiting, self._waiting = self._waiting if first else 0, self._column - mine - 1
        return [False] * waiting + [column == 0 for column in begun]


def _span(attributes: Mapping[str, str], name: str) -> int:
    value = attributes.get(name, "").strip()
    return min(max(int(value), 1), _MOST_SPAN) if value.isdecimal() else 1


class _Events:
    """What the parser calls. Marks ids as "#id" and collects the headings."""

    def __init__(self, builder: TextBuilder, prefix: str) -> None:
        self._builder = builder
        self._prefix = prefix
        self._dropped: list[str] = []  # open elements whose text is none
        self._exact = 0
        self._depth = 0
        self._tables = [_Columns()]  # open tables; the first is for rows outside any
        self._heading: list[str] | None = None
        self.headings: list[Page] = []
        self.said: dict[str, list[str]] = {name: [] for name in IMPRINT}
        self._titled = False  # inside the element that names the document

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        self._depth += 1
        self._titled = tag == "title" and self._dropped == ["head"]
        if tag == "meta":
            known = attributes.get("name") or attributes.get("property") or ""
            if says := _METADATA.get(known.lower()):
                self.said[says].append(attributes.get("content", ""))
        if self._depth > MAX_DEPTH:
            raise DocumentError(
                f"nests its elements more than {MAX_DEPTH:,} deep; it is no document"
            )
        name = attributes.get("id") or attributes.get("name", "")
        if name:
            self._builder.mark(f"{self._prefix}#{name}")
        if tag in _BREAKS_OUT:
            self._end_drawing()
        if tag in _DROPPED:
            self._dropped.append(tag)
        self._breaks(tag)
        if tag == "table":
            self._tables.append(_Columns())
        elif tag == "tr":
            self._tables[-1].row()
        elif tag in _CELLS:
            for first in self._tables[-1].cell(attributes):
                self._builder.cell(first=first)
        elif tag == "pre":
            self._exact += 1
        elif tag in _HEADINGS and not self._dropped:
            self._heading = []
            self._builder.mark(f"{self._prefix}#heading {len(self.headings)}")

    def end(self, tag: str) -> None:
        self._depth -= 1
        self._titled = False
        if tag in _BREAKS_OUT:  # it began before the drawing
            self._end_drawing()
        if tag in self._dropped:
            del self._dropped[len(self._dropped) - 1 - self._dropped[::-1].index(tag)]
        if tag != "br":
            self._breaks(tag)
        if tag == "table" and len(self._tables) > 1:
            self._tables.pop()
        if tag == "pre":
            self._exact -= 1
        elif tag in _HEADINGS and self._heading is not None:
            label = " ".join("".join(self._heading).split())
            mark = f"{self._prefix}#heading {len(self.headings)}"
            if label and mark in self._builder.marks:
                self.headings.append(Page(label[:200], self._builder.marks[mark]))
            self._heading = None

    def data(self, words: str) -> None:
        if self._titled:
            self.said["title"].append(words)
        if self._dropped:
            return
        if self._heading is not None:
            self._heading.append(words.replace("\xad", ""))
        self._builder.add(words, exact=self._exact > 0)

    def _end_drawing(self) -> None:
        while self._dropped and self._dropped[-1] == "svg":
            self._dropped.pop()

    def comment(self, words: str) -> None:
        """Comments are no text."""

    def close(self) -> None:
        """The parser asks for a result; the builder has it."""

    def _breaks(self, tag: str) -> None:
        if tag in _TABLES:
            self._builder.row(_TABLES[tag])
        elif tag in _PARAGRAPHS:
            self._builder.separate("\n\n")
        elif tag in _LINES:
            self._builder.separate("\n")
        if tag == "br" and self._heading is not None:
            self._heading.append(" ")


def feed(markup: str, builder: TextBuilder, prefix: str = "") -> tuple[list[Page], dict[str, str]]:
    """Read one HTML document into `builder`; its headings (h1-h3) and imprint come back.

    Args:
        prefix: put before the marks of this document, so that several can share a builder.
    Raises:
        DocumentError: nested too deep, or too much text; a predicate without a subject.
    """
    from lxml import etree

    events = _Events(builder, prefix)
    builder.mark(prefix)
    builder.separate("\n\n")
    # Bytes with a fixed encoding: the parser would obey a declaration that no longer holds.
    parser = etree.HTMLParser(target=events, encoding="utf-8")
    data = markup.encode("utf-8", errors="replace")
    try:
        for start in range(0, len(data), 2**16):
            parser.feed(data[start : start + 2**16])
        parser.close()
    except etree.XMLSyntaxError:  # no element at all: what was read stands, perhaps nothing
        pass
    builder.separate("\n\n")
    said = {**events.said, "title": ["".join(events.said["title"])]}
    return events.headings, imprint(**said)


def markup_of(raw: bytes, charset: str = "") -> tuple[str, tuple[str, ...]]:
    """HTML or XHTML bytes as characters, by mark, UTF-8, what came with them, or their own
    declaration; what would swallow the rest of the text is closed."""
    declared = _CHARSET.search(raw[:4096])
    own = declared.group(1).decode("ascii", errors="replace") if declared else ""
    markup, notes = decode(raw, charset or own)
    markup, ended = _closed(markup)
    return markup, (*notes, *ended)


def _closed(markup: str) -> tuple[str, tuple[str, ...]]:
    """Markup in which nothing that is left out swallows what follows.

    Elements that XHTML writes empty (`<script/>`) are closed, CDATA becomes text, and what has no
    end ends where the next block begins.
    """
    parts: list[str] = []
    ended: list[str] = []
    endless: set[str] = set()  # what has no end from some place on has none further on
    at = 0
    while match := _SWALLOWS.search(markup, at):
        start, opened = match.span()
        parts.append(markup[at:start])
        name = (match.group(1) or match.group()).lower()
        if name.endswith("[cdata[") or name == "<!--":
            mark = "]]>" if name != "<!--" else "-->"
            end = -1 if name in endless else markup.find(mark, opened)
            if end >= 0 and mark == "]]>":
                parts.append(escape(markup[opened:end], quote=False))
            if end < 0:
                endless.add(name)
                ended.append("comment" if mark == "-->" else "CDATA section")
            at = end + len(mark) if end >= 0 else opened
            continue
        if match.group().endswith("/>"):
            parts.append(f"{match.group()[:-2]}></{name}>")
            at = opened
            continue
        close = re.compile(f"</{name}(?![\\w-])", re.I)
        found = None if name in endless else close.search(markup, opened)
        parts.append(match.group())
        if found:
            at = found.start()
            parts.append(markup[opened:at])
        else:
            endless.add(name)
            ended.append(f"<{name}>")
            after = _BLOCK.search(markup, opened)
            at = after.start() if after else len(markup)
            parts.append(f"</{name}>")
        # Its end tag is no beginning of anything: go on behind it.
        stop = markup.find(">", at) + 1 if found else at
        parts.append(markup[at:stop] if found else "")
        at = max(at, stop)
    parts.append(markup[at:])
    said = {what: ended.count(what) for what in dict.fromkeys(ended)}
    notes = tuple(
        f"a {what} without an end was ended at the next block"
        + (f" ({count} times)" if count > 1 else "")
        for what, count in said.items()
    )
    return "".join(parts), notes


def load_html(raw: bytes, charset: str = "") -> Extract:
    """One HTML file: text in blocks, sections from its headings of the first three levels.

    Args:
        charset: the encoding that came with it, as in the head of an e-mail; "" if none did.
    """
    markup, notes = markup_of(raw, charset)
    builder = TextBuilder()
    pages, said = feed(markup, builder)
    return Extract(builder.text(), whole(pages), notes, said)


def whole(pages: list[Page]) -> tuple[Page, ...]:
    """A page table that starts at 0: of pages on one spot the last, innermost one stays."""
    by_start = {page.start: page for page in sorted(pages, key=lambda page: page.start)}
    if by_start and 0 not in by_start:
        return (Page("", 0), *by_start.values())
    return tuple(by_start.values())
