"""From attention weights on tokens to passages a person can check.

A citation is an exact slice of a source's text: the sentences that hold most of the evidence. What
a sentence shares with the words of question and answer is a second vote.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from engine.answer.overlap import overlap, rarities, stems
from engine.documents.line_ends import breaks
from engine.documents.outline import Heading, headings
from engine.types import Citation

if TYPE_CHECKING:
    from engine.store.manifest import SourceEntry
    from engine.store.reader import Store

MOST = 3
LEAST = 0.05
LONGEST = 400
WORDS = 0.5
"""What all words of question and answer count in a sentence, beside all attention, which counts 1;
chosen on the natural questions (docs/results.md)."""

CANDIDATES = 64
"""Tokens with the most attention, whose sentences may be cited."""

JOINED = 0.5
"""Least share of its neighbour's evidence that a sentence needs to stand in one passage with it."""


SENTENCE_END = re.compile(
    r"""(?:(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)(?<!\bSt)(?<!\bProf)(?<!\b[A-Z])"""
    r"""(?<!\bCHAPTER [IVXLC]{2})(?<!\bCHAPTER [IVXLC]{3})(?<!\bCHAPTER [IVXLC]{4})\.|[!?…])"""
    r"""["'”’)\]]*\s+(?=["'“‘(\[]?[A-Z0-9À-ÞЁ-Я])|[。！？]["'”’」』）]*|\n\s*\n"""
)
"""Where a sentence ends, its closing quotation marks and the white space behind it included."""

_CLAUSE = re.compile(r"\n|[;:]\s")
_SPACE = re.compile(r"\s")
_CONTENTS = re.compile(r"(?:\.\s?){4,}\s*\d{1,4}$")
"""The end of a line of a list of contents: dots that lead to a page."""

_ENDS = ".!?…\"'”’)"

Place = tuple[int, int, int]
"""Source, and the characters [start, end) of its text."""


@dataclass(frozen=True)
class DocumentText:
    """The texts of a store with the characters of every token."""

    sources: tuple[SourceEntry, ...]
    texts: tuple[str, ...]
    starts: Tensor
    ends: Tensor
    source: Tensor

    @classmethod
    def of(cls, store: Store, document: dict[str, np.ndarray[Any, Any]]) -> DocumentText:
        """The book of a store, its texts read now: a fault in them must not come after an answer.

        Raises:
            StoreError: a text is damaged, or the store keeps none of a source.
        """
        starts, ends, owner = (
            torch.from_numpy(document[name]).long() for name in ("starts", "ends", "source")
        )
        return cls(store.manifest.sources, store.texts(), starts, ends, owner)

    def text_of(self, stretch: tuple[int, int]) -> str:
        """The text of document tokens [first, end); a line break between two sources."""
        first, end = stretch
        changes = self.source[first:end].diff().nonzero()[:, 0] + first + 1
        return "\n".join(
            self.texts[int(self.source[a])][int(self.starts[a]) : int(self.ends[b - 1])]
            for a, b in pairwise([first, *changes.tolist(), end])
        )

    def page_at(self, source: int, offset: int) -> str:
        """The label of the page or section a character stands on, "" where there is none."""
        index = self._index(source, offset)
        return self.sources[source].pages[index][0] if index >= 0 else ""

    def pages(self, source: int, start: int, end: int) -> str:
        """The page of some characters; "12-13" of those that stand on two pages with numbers."""
        first, last = self.page_at(source, start), self.page_at(source, max(start, end - 1))
        numbers = (first + last).isdigit()
        labels = bool(self.sources[source].sheets) and "-" not in first + last
        return _range(first, last) if numbers or labels else first

    def sheets(self, source: int, start: int, end: int) -> str:
        """The sheet of some characters of a PDF, "12-13" of those on two; "" elsewhere."""
        pages = self._index(source, start), self._index(source, max(start, end - 1))
        if pages[0] < 0:
            return ""
        first, last = (self.sources[source].sheet(page) for page in pages)
        return _range(str(first), str(last)) if first else ""

    def printed(self, source: int, start: int, end: int) -> str:
        """The number printed on the page of some characters, "7-8" of those on two; "" where it is
        the page's label, or not known."""
        numbers = self.sources[source].printed
        if not numbers:
            return ""
        first, last = (
            numbers[self._index(source, place)] for place in (start, max(start, end - 1))
        )
        return _range(first, last) if first and last else ""

    def _index(self, source: int, offset: int) -> int:
        """Which page a character stands on; -1 without pages."""
        return bisect_right(self.sources[source].pages, offset, key=lambda page: page[1]) - 1

    def rare(self, wanted: Iterable[str]) -> dict[str, float]:
        """How much each stem of a question or answer tells in these texts."""
        return rarities(wanted, self._lowered)

    def citations(
        self,
        weight: Tensor,
        words: Mapping[str, float] | None = None,
        said: Collection[str] | None = None,
    ) -> tuple[Citation, ...]:
        """The passages that hold most of the evidence, best first.

        A passage is a sentence, or several side by side that hold about as much. A heading or a
        line of a list of contents states nothing, so that it is one only where nothing else is, or
        where it has a word that the answer adds.

        Args:
            weight: float [N], attention to every document token as evidence has it.
            words: stems of question and answer and what each tells, see `rare`; {} and None leave
                attention to decide.
            said: stems that the answer adds to the question; None: headings are passages too.
        """
        total = max(float(weight.sum()), 1e-30)
        found: set[Place] = set()
        for token in weight.topk(min(CANDIDATES, len(weight))).indices.tolist():
            if weight[token] > 0:
                start, end = int(self.starts[token]), int(self.ends[token])
                found.add(self._sentence(int(self.source[token]), start, end))
        scores = {place: self._score(weight, total, words, place) for place in found}
        kept = [place for place in found if scores[place] >= LEAST]
        if said is not None:
            kept = [place for place in kept if self._states(place, said)] or kept
        passages = self._join(sorted(kept), scores)
        for place in passages:
            scores[place] = self._score(weight, total, words, place)
        passages.sort(key=lambda place: -scores[place])
        return tuple(self.citation(place, scores[place]) for place in passages[:MOST])

    def citation(self, place: Place, weight: float) -> Citation:
        """A passage with its source and page."""
        source, start, end = place
        return Citation(
            source=self.sources[source].path,
            page=self.pages(source, start, end),
            start=start,
            end=end,
            text=self.texts[source][start:end],
            weight=round(weight, 4),
            sheet=self.sheets(source, start, end),
            printed=self.printed(source, start, end),
        )

    def sentences(self, stretch: tuple[int, int]) -> list[Place]:
        """The sentences that have any of the document tokens [first, end), in order, each once."""
        rows = zip(
            *(column[slice(*stretch)].tolist() for column in (self.source, self.starts, self.ends)),
            strict=True,
        )
        return list(dict.fromkeys(self._sentence(*row) for row in rows))

    def amount(self, weight: Tensor, citation: Citation) -> float:
        """How much of the weight [N] of tokens lies on a passage."""
        source = next(i for i, entry in enumerate(self.sources) if entry.path == citation.source)
        return self._mass(weight, source, citation.start, citation.end)

    @cached_property
    def _lowered(self) -> str:
        return "\n".join(self.texts).lower()

    def _score(
        self, weight: Tensor, total: float, words: Mapping[str, float] | None, place: Place
    ) -> float:
        """Share of the evidence that a passage holds, 0 to 1: attention, and words where given."""
        source, start, end = place
        mass = self._mass(weight, *place) / total
        if not words:
            return mass
        return (mass + WORDS * overlap(words, self.texts[source][start:end])) / (1 + WORDS)

    def _states(self, place: Place, said: Collection[str]) -> bool:
        """Whether a sentence may state an answer that adds these stems: it is no heading or line of
        contents, or it has one of them."""
        source, start, end = place
        text = self.texts[source][start:end]
        at = bisect_right(self.headings[source], start, key=lambda heading: heading.start) - 1
        heading = at >= 0 and end <= self.headings[source][at].end
        return not (heading or _CONTENTS.search(text)) or not stems(text).isdisjoint(said)

    def _join(self, places: list[Place], masses: dict[Place, float]) -> list[Place]:
        """Sentences side by side become one passage where both matter and it stays readable.

        Args:
            places: in order.
        """
        joined: list[Place] = []
        last = 0.0
        for place in places:
            source, start, end = place
            mass = masses[place]
            if joined and joined[-1][0] == source:
                _, begin, upto = joined[-1]
                beside = start <= upto or not self.texts[source][upto:start].strip()
                beside = beside and not self._parted(source, upto, (start, end))
                alike = min(mass, last) >= JOINED * max(mass, last)
                if start < upto or (beside and alike and end - begin <= LONGEST):
                    joined[-1] = (source, begin, max(upto, end))
                    last = mass
                    continue
            joined.append(place)
            last = mass
        return joined

    def _mass(self, weight: Tensor, source: int, start: int, end: int) -> float:
        # A sentence's first token often begins with the space before it.
        inside = (self.source == source) & (self.ends > start) & (self.starts < end)
        return float(weight[inside].sum())

    def _sentence(self, source: int, start: int, end: int) -> Place:
        """The sentence around some characters, cut to LONGEST around them if it is longer."""
        text = self.texts[source]
        low, high = max(0, start - LONGEST), min(len(text), end + LONGEST)
        start, end = _trim(text, start, end)
        if start == end:  # white space belongs to the sentence before it
            _, end = _trim(text, low, start)
            start = max(low, end - 1)
        ends = [found.end() for found in SENTENCE_END.finditer(text, low, high)]
        edges = {*ends, *breaks(text, low, high), *self._edges(source, low, high)}
        first = max((edge for edge in edges if edge <= start), default=low)
        last = min((edge for edge in edges if edge >= end), default=high)
        if last - first > LONGEST or (first == low > 0) or (last == high < len(text)):
            first = _cut(text, max(first, start - LONGEST // 2), start)
            last = _cut(text, end, min(last, end + LONGEST // 2), backwards=True)
        return source, *_trim(text, first, last)

    def _parted(self, source: int, upto: int, following: tuple[int, int]) -> bool:
        """Whether a heading or an item ends at `upto` or begins behind it, so that what follows is
        no part of the same passage. Cells and lines of a title page end no sentence and may be."""
        text, (start, end) = self.texts[source], following
        if self._edges(source, upto - 1, start + 1):
            return True
        ends = any(text[at - 1] in _ENDS for at in (upto, end))
        return ends and bool(breaks(text, upto - 1, start + 1))

    def _edges(self, source: int, low: int, high: int) -> list[int]:
        """Where headings begin and end within [low, high) of a text."""
        edges = self._heading_edges[source]
        return edges[bisect_right(edges, low) : bisect_right(edges, high - 1)]

    @cached_property
    def _heading_edges(self) -> list[list[int]]:
        return [
            sorted({edge for heading in found for edge in (heading.start, heading.end)})
            for found in self.headings
        ]

    @cached_property
    def headings(self) -> tuple[tuple[Heading, ...], ...]:
        """The headings of every source, in order."""
        return tuple(
            headings(text, entry.pages, entry.kind)
            for entry, text in zip(self.sources, self.texts, strict=True)
        )


def _cut(text: str, low: int, high: int, *, backwards: bool = False) -> int:
    """Where a long sentence is cut between two places: at the outermost end of a line or clause,
    else at a word; only where there is no white space within a word.

    backwards: it is the end that is cut, so that the outermost place is the last one.
    """
    outer = high if backwards else low
    if outer in (0, len(text)):
        return outer
    for places in (_CLAUSE, _SPACE):
        found = [match.end() for match in places.finditer(text, max(low - 1, 0), high)]
        found = [place for place in found if low <= place <= high]
        if found:
            return found[-1] if backwards else found[0]
    return outer


def _range(first: str, last: str) -> str:
    """What one page is called, or two: "7", "7-8"."""
    return first if first == last else f"{first}-{last}"


def _trim(text: str, start: int, end: int) -> tuple[int, int]:
    """The same stretch of a text without white space at its ends."""
    words = text[start:end].rstrip()
    return start + len(words) - len(words.lstrip()), start + len(words)
