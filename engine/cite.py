"""From attention weights on tokens to passages a person can check.

A citation is an exact slice of a source's text: the sentences that hold most of the evidence.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from engine.quoting import SENTENCE_END, sentences
from engine.types import Citation

if TYPE_CHECKING:
    import numpy.typing as npt

    from engine.manifest import SourceEntry
    from engine.store import Store

MOST = 3
LEAST = 0.05
LONGEST = 400


@dataclass(frozen=True)
class Book:
    """The texts of a store with the characters of every token."""

    store: Store
    sources: tuple[SourceEntry, ...]
    starts: Tensor
    ends: Tensor
    source: Tensor
    _texts: dict[int, str] = field(default_factory=dict)

    def text(self, source: int) -> str:
        """A source's text, read from the store once."""
        if source not in self._texts:
            self._texts[source] = self.store.text(source)
        return self._texts[source]

    @classmethod
    def of(cls, store: Store, document: dict[str, np.ndarray[Any, Any]]) -> Book:
        starts, ends, source = (
            torch.from_numpy(document[name]).long() for name in ("starts", "ends", "source")
        )
        return cls(store, store.manifest.sources, starts, ends, source)

    def page_at(self, source: int, offset: int) -> str:
        """The label of the page or section a character stands on, "" where there is none."""
        pages = self.sources[source].pages
        index = bisect_right(pages, offset, key=lambda page: page[1]) - 1
        return pages[index][0] if index >= 0 else ""

    def locate(self, quote: str, weight: Tensor) -> tuple[int, int, int] | None:
        """Where a quote stands, white space aside: (source, start, end), or None.

        Of several places the one with the most evidence; weight: float [N].
        """
        if not quote.split():
            return None
        pattern = _spaced(quote)
        found = [
            (source, match.start(), match.end())
            for source in range(len(self.sources))
            for match in pattern.finditer(self.text(source))
        ]
        return max(found, key=lambda place: self._mass(weight, *place), default=None)

    def holding(self, place: tuple[int, int, int], value: str) -> tuple[int, int, int]:
        """A quoted passage, longer by what leads to its value if that stands beside it."""
        source, start, end = place
        low = max(0, start - LONGEST)
        near = self.text(source)[low : end + LONGEST]
        found = [(low + m.start(), low + m.end()) for m in _spaced(value).finditer(near)]
        joined = [(min(start, a), max(end, b)) for a, b in found]
        shortest = min(joined, key=lambda both: both[1] - both[0], default=(start, end))
        return source, *shortest

    @cached_property
    def sentences(self) -> npt.NDArray[np.int64]:
        """int64 [N]: the number of every token's sentence, counted through all sources."""
        parts, count = [], 0
        for source in range(len(self.sources)):
            ends = self.ends[self.source == source].numpy()
            parts.append(count + sentences(self.text(source), ends))
            count += 1 + int(parts[-1][-1] - count if len(ends) else 0)
        return np.concatenate(parts)

    def citations(
        self, weight: Tensor, quoted: tuple[int, int, int] | None = None
    ) -> tuple[Citation, ...]:
        """The sentences that hold most of the evidence, best first.

        Args:
            weight: float [N], evidence of every document token.
            quoted: a passage the answer quotes; its sentence comes first whatever its evidence.
        """
        total = float(weight.sum())
        places: list[tuple[int, int, int]] = []
        if quoted is not None:
            places.append(self._sentence(*quoted))
        if total > 0:
            for token in weight.topk(min(64, len(weight))).indices.tolist():
                start, end = int(self.starts[token]), int(self.ends[token])
                places.append(self._sentence(int(self.source[token]), start, end))
        masses = {place: self._mass(weight, *place) / max(total, 1e-30) for place in places}
        first = places[0] if quoted is not None else None
        ordered = sorted(masses, key=lambda place: (place != first, -masses[place]))
        return tuple(
            Citation(
                source=self.sources[source].path,
                page=self.page_at(source, start),
                start=start,
                end=end,
                text=self.text(source)[start:end],
                weight=round(masses[source, start, end], 4),
            )
            for source, start, end in ordered[:MOST]
            if (source, start, end) == first or masses[source, start, end] >= LEAST
        )

    def _mass(self, weight: Tensor, source: int, start: int, end: int) -> float:
        # A sentence's first token often begins with the space before it.
        inside = (self.source == source) & (self.ends > start) & (self.starts < end)
        return float(weight[inside].sum())

    def _sentence(self, source: int, start: int, end: int) -> tuple[int, int, int]:
        """The sentence around some characters, cut to LONGEST around them if it is longer."""
        text = self.text(source)
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


def _spaced(words: str) -> re.Pattern[str]:
    """Matches some words whatever white space stands between them."""
    return re.compile(r"\s+".join(map(re.escape, words.split())))


def _trim(text: str, start: int, end: int) -> tuple[int, int]:
    """The same stretch of a text without white space at its ends."""
    words = text[start:end].rstrip()
    return start + len(words) - len(words.lstrip()), start + len(words)
