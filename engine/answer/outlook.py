"""What a question about the whole of a document sees, and what is said of it without the model.

Lists of contents and counts of pages, headings and words are facts of the store. What a document, a
page or a chapter is about is answered by the model from beginnings and from the passages that are
most central: it cannot see a whole at once. A fact asked of a part is searched within it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch

from engine.answer import whole
from engine.answer.citations import MOST, DocumentText
from engine.attention.view import Stretch
from engine.documents.outline import Heading
from engine.documents.words import content_words
from engine.memory.retrieval import PASSAGES_SEEN, Retrieval, joined
from engine.store.pages import named, pages
from engine.store.passages import PASSAGE
from engine.types import Citation

OPENING, PIECE = 384, 128
"""Tokens that are seen of the beginning of a document, and of each of its parts."""

PARTS_SEEN = 6
"""Parts whose beginnings and most central passages are seen, evenly over the document."""

CENTRAL_WORDS = 12
"""Most frequent words of a part, by which its most central passage is found."""

_LABELLED = {
    kind: rf"^[^\w\n]*((?:{label})\b[*_]*[ \t]*:[*_ \t]*\w[^\n]{{0,200}})"
    for kind, label in {
        whole.TITLE: "title|subject",
        whole.AUTHOR: "authors?|written by|from",
        whole.PUBLISHER: "publishers?|published by",
        whole.DATE: r"(?:\w+ )?(?:date|year)|published|first published|dated",
    }.items()
}
"""Lines of a first page that say by name what they give."""

_BYLINE = re.compile(r"^\W*(?:by|authors?|written\s+by|edited\s+by|editors?)\b", re.I | re.M)
"""A line of a first page that names people."""

_FILE_NAME = re.compile(r"\.\w{2,5}$|^microsoft \w+ - |- notepad$|^untitled|^document\d*$", re.I)
"""A title that a program filled in."""

_AT_THE_BEGINNING = frozenset({"first", "begins", "begin", "opens", "open", "starts", "start"})
_AT_THE_END = frozenset({"last", "ends", "end", "finally", "closes", "close"})

_NAMED_BY = {
    "page": ("label", "printed"),
    "printed page": ("printed", "label"),
    "sheet": ("sheet",),
}
"""By the kind of page that is asked for, the attributes of stored pages that can have its name."""

MOST_SEEN = 1024
"""Tokens that are seen of a page or a chapter; of a longer one its beginning and pieces of it."""

FRONT_CHARS = 3000
"""Characters of a text in which its title page is looked for."""

DESCRIBED = ("epub", "html")
"""Kinds of sources whose metadata is written by people, as a rule; in others often by programs."""

LISTED = 60
"""Headings that an answer lists."""

CANNOT_COUNT = (
    "That cannot be counted: it would need the whole document to be seen at once, and answers are "
    "made from passages. Pages, chapters and words can be counted, and how often “words in "
    "quotation marks” occur."
)

Place = tuple[int, int, int]
"""Source, and the characters [start, end) of its text."""


@dataclass(frozen=True)
class Said:
    """What is said without the model. counted: whether it is an answer, or says there is none."""

    text: str
    citations: tuple[Citation, ...] = ()
    counted: bool = True


class Outlook:
    """The outline of a document: its headings and pages, and where their tokens are."""

    def __init__(self, book: DocumentText, retrieval: Retrieval):
        self._book, self._retrieval = book, retrieval

    def said(self, question: str, kind: str) -> Said | None:
        """The answer that the outline gives by itself, None where the model is to answer.

        kind: of `whole.kind_of`.
        """
        part = whole.part_of(question)
        if part is not None and self.place_of(part) is None:
            return Said(self._no_such(part), counted=False)
        if kind == whole.CONTENTS:
            return self._contents()
        if kind == whole.HEADINGS:
            count = len(self.headings)
            return Said(f"There are {count} headings in it.", self._cite(self.headings[:3]))
        if kind == whole.PAGES:
            return self._pages()
        if kind == whole.WORDS:
            words = sum(len(re.findall(r"\S+", text)) for text in self._book.texts)
            chars = sum(map(len, self._book.texts))
            return Said(f"It has {words:,} words, {chars:,} characters.")
        if kind in whole.IMPRINT:
            return self._imprint(kind)
        return self._count(question) if kind == whole.COUNT else None

    def needed(self, question: str, kind: str) -> tuple[Stretch, ...] | None:
        """The tokens that must be read for a question about the whole or a named part; None where
        words choose. For the whole these are beginnings: what is most central is looked for in
        what is read."""
        part = whole.part_of(question)
        if part is not None:
            return self._seen_of(part, question)
        if kind in whole.IMPRINT:
            return self._front()
        return self._beginnings() if kind == whole.ABOUT else None

    def view(
        self, question: str, kind: str, unread: Collection[int] = ()
    ) -> tuple[Stretch, ...] | None:
        """The tokens that such a question is answered from. unread: windows nobody has read."""
        part = whole.part_of(question)
        if part is not None:
            return self._seen_of(part, question, unread)
        if kind in whole.IMPRINT:
            return self._front()
        if kind != whole.ABOUT:
            return None
        central = (self._central(part, unread) for part in self._parts)
        return joined([*self._beginnings(), *(one for found in central for one in found)])

    def _seen_of(
        self, named: whole.Part, question: str, unread: Collection[int] = ()
    ) -> tuple[Stretch, ...] | None:
        """Of a part what a fact is read from, or else pieces of it."""
        place = self.place_of(named)
        if place is None:
            return None
        part, words = self._tokens(place), whole.topic_of(question)
        first, end = part
        if not words:
            return _pieces(part)
        if len(self._retrieval.windows) == 1 or end - first <= PASSAGES_SEEN * PASSAGE:
            return (part,)
        best = self._retrieval.best_in(part, [words], unread=unread)
        if not best:
            return _pieces(part)
        beginning = [(first, first + PASSAGE)] if _AT_THE_BEGINNING & set(words) else []
        ending = [(end - PASSAGE, end)] if _AT_THE_END & set(words) else []
        return joined([*beginning, *best, *ending])

    @cached_property
    def _parts(self) -> tuple[Stretch, ...]:
        """The document in parts that begin behind headings, or of one length where it has none."""
        length, texts = len(self._book.source), self._book.texts
        firsts = [self._tokens((s, h.end, len(texts[s])))[0] for s, h in self.headings]
        if not firsts:
            firsts = [i * length // PARTS_SEEN for i in range(PARTS_SEEN)]
        if len(firsts) > PARTS_SEEN:
            firsts = [firsts[i * len(firsts) // PARTS_SEEN] for i in range(PARTS_SEEN)]
        ends = [*firsts[1:], length]
        return tuple((a, b) for a, b in zip(firsts, ends, strict=True) if a < b)

    def _beginnings(self) -> tuple[Stretch, ...]:
        """The beginning of the document, and of each part that has a heading."""
        parts = self._parts if self.headings else ()
        pieces = [(first, min(first + PIECE, end)) for first, end in parts]
        return joined([(0, min(OPENING, len(self._book.source))), *pieces])

    def _front(self) -> tuple[Stretch, ...]:
        """The first pages of the first sources, where a document says what it is."""
        count = min(len(self._book.sources), PARTS_SEEN)
        firsts = torch.searchsorted(self._book.source, torch.arange(count + 1)).tolist()
        size = max(OPENING // count, PIECE)
        return joined([(a, min(a + size, b)) for a, b in pairwise(firsts) if a < b])

    def _central(self, part: Stretch, unread: Collection[int]) -> tuple[Stretch, ...]:
        """The passage that is best for the part's own most frequent words: those that are
        rare elsewhere count most."""
        words = (word for word in content_words(self._book.text_of(part)) if len(word) > 2)
        frequent = [word for word, _ in Counter(words).most_common(CENTRAL_WORDS)]
        return self._retrieval.best_in(part, [frequent], 1, unread)

    def place_of(self, part: whole.Part) -> Place | None:
        """The characters of a page, chapter or section; None where there is none of that name."""
        return self._page(part) if part.kind in whole.PAGE_KINDS else self._headed(part)

    @property
    def headings(self) -> tuple[tuple[int, Heading], ...]:
        """All headings with their sources, in order."""
        return tuple(
            (source, heading)
            for source, found in enumerate(self._book.headings)
            for heading in found
        )

    def _page(self, part: whole.Part) -> Place | None:
        """The page of that label, or else the one that prints that number; a sheet by its place."""
        for by in _NAMED_BY[part.kind]:
            for source, entry in enumerate(self._book.sources):
                every = pages(entry)
                for page in named(every, part.number, (by,)):
                    return source, every[page].start, every[page].end
        return None

    def _headed(self, part: whole.Part) -> Place | None:
        wanted, kind = _numeral(part.number), part.kind
        named = [
            index
            for index, (_, heading) in enumerate(self.headings)
            if _numeral(heading.number) == wanted
        ]
        # "3. Struggle for Existence" may be chapter 3 too, but a heading that says so is better.
        own = [i for i in named if self.headings[i][1].title.casefold().startswith(kind.split()[0])]
        for index in own or named:
            source, heading = self.headings[index]
            return source, heading.start, self._end_of(index, source, heading)
        return None

    def _end_of(self, index: int, source: int, heading: Heading) -> int:
        """Where a section ends: at the next heading that is not one of its own subsections."""
        for other, following in self.headings[index + 1 :]:
            below = following.number.startswith(f"{heading.number}.")
            same = bool(following.number) or not heading.number
            if other == source and same and not below:
                return following.start
        return len(self._book.texts[source])

    def _tokens(self, place: Place) -> Stretch:
        """The document tokens that begin in some characters."""
        source, start, end = place
        edges = torch.searchsorted(self._book.source, torch.tensor([source, source + 1]))
        first, last = edges.tolist()
        inside = torch.searchsorted(
            self._book.starts[first:last].contiguous(), torch.tensor([start, end])
        )
        a, b = (inside + first).tolist()
        return a, max(b, min(a + 1, last))

    def _contents(self) -> Said:
        titles = [heading.title for _, heading in self.headings]
        if not titles:
            return Said("No headings are marked in it, and no line looks like one.", counted=False)
        more = f"\n... and {len(titles) - LISTED} more" if len(titles) > LISTED else ""
        return Said("\n".join(titles[:LISTED]) + more, self._cite(self.headings[:3]))

    def _pages(self) -> Said:
        counts = [len(entry.pages) for entry in self._book.sources if entry.kind == "pdf"]
        if counts:
            return Said(f"It has {sum(counts):,} pages.")
        words = sum(len(re.findall(r"\S+", text)) for text in self._book.texts)
        return Said(f"It has no pages; it has {words:,} words.")

    def _imprint(self, kind: str) -> Said | None:
        """What first pages or files say of themselves: a line such as "Author: ...", else metadata;
        None where one has nothing to rely on."""
        lines, places = [], []
        for source, entry in enumerate(self._book.sources):
            front = self._book.texts[source][:FRONT_CHARS]
            found = re.search(_LABELLED[kind], front, re.I | re.M) if kind in _LABELLED else None
            said = re.sub(r"[*_]{2,}", "", " ".join(found[1].split())) if found else ""
            if not found and (described := entry.imprint.get(kind, "")):
                words = r"\W+".join(map(re.escape, re.findall(r"\w+", described)))
                found = re.search(rf"\b({words})\b", front, re.IGNORECASE) if words else None
                names = re.sub(r";(?=\S)", "; ", described)
                said = f"{kind.capitalize()}: {names}"
                if not found:
                    said += " (in the file's own description)"
                    if entry.kind not in DESCRIBED and not _trusted(kind, described, front):
                        return None
            if not said:
                return None
            lines.append(f"{entry.path}: {said}" if len(self._book.sources) > 1 else said)
            if found:
                places.append((source, *found.span(1)))
        cited = tuple(self._book.citation(place, 1 / len(places)) for place in places)
        return Said("\n".join(lines), cited[:MOST])

    def _count(self, question: str) -> Said:
        quoted = re.search(r"[\"“'‘]([^\"”'’]{1,80})[\"”'’]", question)
        if quoted is None:
            return Said(CANNOT_COUNT, counted=False)
        pattern = re.compile(rf"(?<!\w){re.escape(quoted[1])}(?!\w)", re.IGNORECASE)
        times = sum(len(pattern.findall(text)) for text in self._book.texts)
        return Said(f"“{quoted[1]}” occurs {times:,} time{'s' * (times != 1)} in it.")

    def _no_such(self, part: whole.Part) -> str:
        labels = [label for entry in self._book.sources for label, _ in entry.pages if label]
        if part.kind in whole.PAGE_KINDS and labels:
            return (
                f"There is no {part.kind} {part.number}; the pages are {labels[0]} to {labels[-1]}."
            )
        return f"No {part.kind} {part.number} is found among the headings and pages."

    def _cite(self, found: Sequence[tuple[int, Heading]]) -> tuple[Citation, ...]:
        book = self._book
        return tuple(
            book.citation((source, heading.start, heading.end), 1 / len(found))
            for source, heading in found
        )


def _trusted(kind: str, said: str, front: str) -> bool:
    """Whether metadata may be said that the first page does not confirm: a title that is no name of
    a file, an author where that page names nobody."""
    if kind == whole.TITLE:
        return not _FILE_NAME.search(said)
    return kind == whole.AUTHOR and not _BYLINE.search(front)


def _pieces(part: Stretch) -> tuple[Stretch, ...]:
    """All of a part that is short; of a longer one its beginning and pieces evenly over it."""
    first, end = part
    if end - first <= MOST_SEEN:
        return (part,)
    count = (MOST_SEEN - OPENING) // PIECE
    step = (end - first - OPENING) // count
    pieces = [
        (first + OPENING + i * step, first + OPENING + i * step + PIECE) for i in range(count)
    ]
    return joined([(first, first + OPENING), *pieces])


def _numeral(number: str) -> str:
    """A number as figures: "IV" and "four" are "4"; "4.2" stays as it is."""
    values = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100}
    text = number.upper()
    if text and set(text) <= set(values):
        places = [values[letter] for letter in text]
        behind = [*places[1:], 0]
        return str(sum(-a if a < b else a for a, b in zip(places, behind, strict=True)))
    words = ["ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE", "TEN"]
    return str(words.index(text) + 1) if text in words else text
