"""From attention weights on tokens to passages a person can check.

A citation is an exact slice of a source's text: the sentences that hold most of the evidence.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from engine.quoting import SENTENCE_END, Told
from engine.types import Citation

if TYPE_CHECKING:
    import numpy.typing as npt

    from engine.manifest import SourceEntry
    from engine.store import Store

MOST = 3
LEAST = 0.05
LONGEST = 400
JOINED = 0.5
"""Least share of its neighbour's evidence that a sentence needs to stand in one passage with it."""


Place = tuple[int, int, int]
"""Source, and the characters [start, end) of its text."""


@dataclass(frozen=True)
class Book:
    """The texts of a store with the characters of every token."""

    sources: tuple[SourceEntry, ...]
    texts: tuple[str, ...]
    starts: Tensor
    ends: Tensor
    source: Tensor

    @classmethod
    def of(cls, store: Store, document: dict[str, np.ndarray[Any, Any]]) -> Book:
        """The book of a store, its texts read now: a fault in them must not come after an answer.

        Raises:
            StoreError: a text is damaged, or the store keeps none of a source.
        """
        starts, ends, owner = (
            torch.from_numpy(document[name]).long() for name in ("starts", "ends", "source")
        )
        return cls(store.manifest.sources, store.texts(), starts, ends, owner)

    def page_at(self, source: int, offset: int) -> str:
        """The label of the page or section a character stands on, "" where there is none."""
        index = self._index(source, offset)
        return self.sources[source].pages[index][0] if index >= 0 else ""

    def pages(self, source: int, start: int, end: int) -> str:
        """The page of some characters; "12-13" of those that stand on two pages with numbers."""
        first, last = self.page_at(source, start), self.page_at(source, max(start, end - 1))
        numbers = (first + last).isdigit()
        labels = bool(self.sources[source].sheets) and "-" not in first + last
        return f"{first}-{last}" if first != last and (numbers or labels) else first

    def sheets(self, source: int, start: int, end: int) -> str:
        """The sheet of some characters of a PDF, "12-13" of those on two; "" elsewhere."""
        pages = self._index(source, start), self._index(source, max(start, end - 1))
        if pages[0] < 0:
            return ""
        first, last = (self.sources[source].sheet(page) for page in pages)
        return (str(first) if first == last else f"{first}-{last}") if first else ""

    def _index(self, source: int, offset: int) -> int:
        """Which page a character stands on; -1 without pages."""
        return bisect_right(self.sources[source].pages, offset, key=lambda page: page[1]) - 1

    def locate(self, quote: str, weight: Tensor) -> Place | None:
        """Where a quote stands, white space aside: (source, start, end), or None.

        Of several places the one with the most evidence; weight: float [N].
        """
        if not quote.split():
            return None
        pattern = re.compile(r"\s+".join(map(re.escape, quote.split())))
        found = [
            (source, match.start(), match.end())
            for source in range(len(self.sources))
            for match in pattern.finditer(self.texts[source])
        ]
        return max(found, key=lambda place: self._mass(weight, *place), default=None)

    def told(self, ids: npt.NDArray[np.int64]) -> Told:
        """The document as a guide sees it; ids: its tokens, of all sources."""
        parts, count = [], 0
        for source in range(len(self.sources)):
            mine = (self.source == source).numpy()
            part = Told.of(self.texts[source], ids[mine], self.ends.numpy()[mine])
            parts.append(replace(part, sentence=count + part.sentence))
            count += 1 + int(part.sentence[-1] if len(part.sentence) else 0)
        return Told.join(parts)

    def citations(self, weight: Tensor, quoted: Place | None = None) -> tuple[Citation, ...]:
        """The passages that hold most of the evidence, best first.

        A passage is a sentence, or several side by side that hold about as much.

        Args:
            weight: float [N], evidence of every document token.
            quoted: a passage the answer quotes; its sentence comes first whatever its evidence.
        """
        total = max(float(weight.sum()), 1e-30)
        first = [self._sentence(*quoted)] if quoted is not None else []
        found: set[Place] = set()
        for token in weight.topk(min(64, len(weight))).indices.tolist():
            if weight[token] > 0:
                start, end = int(self.starts[token]), int(self.ends[token])
                found.add(self._sentence(int(self.source[token]), start, end))
        masses = {place: self._mass(weight, *place) / total for place in [*first, *found]}
        kept = [
            place
            for place in found
            if masses[place] >= LEAST and not any(_overlap(place, other) for other in first)
        ]
        passages = self._join(sorted(kept), masses)
        for place in passages:
            masses[place] = self._mass(weight, *place) / total
        passages.sort(key=lambda place: -masses[place])
        return tuple(
            Citation(
                source=self.sources[source].path,
                page=self.pages(source, start, end),
                start=start,
                end=end,
                text=self.texts[source][start:end],
                weight=round(masses[source, start, end], 4),
                sheet=self.sheets(source, start, end),
            )
            for source, start, end in [*first, *passages][:MOST]
        )

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
        first, last = low, high
        for found in SENTENCE_END.finditer(text, low, high):
            if found.end() <= start:
                first = found.end()
            elif found.end() >= end:
                last = found.end()
                break
        if last - first > LONGEST:
            first, last = max(first, start - LONGEST // 2), min(last, end + LONGEST // 2)
        return source, *_trim(text, first, last)


def _overlap(one: Place, other: Place) -> bool:
    return one[0] == other[0] and one[1] < other[2] and other[1] < one[2]


def _trim(text: str, start: int, end: int) -> tuple[int, int]:
    """The same stretch of a text without white space at its ends."""
    words = text[start:end].rstrip()
    return start + len(words) - len(words.lstrip()), start + len(words)
