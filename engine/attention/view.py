"""Views: which spans of a document a layer attends to, and the turns that follow the document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from engine.compression.codecs.base import Records
from engine.compression.columns import Runs
from engine.compression.ranges import gather_ranges, span_ids
from engine.compression.span_tables import SpanTables

Stretch = tuple[int, int]
"""Document tokens [first, end)."""


@dataclass(frozen=True, eq=False)
class View:
    """Spans that are summaries or zoomed, in document order.

    spans: int64 [F] document spans. lengths: [F] tokens. bounds: [F + 1] their places in tensors
    that hold only these spans. window: [F]. starts: [F] the document token each begins at.
    """

    spans: Tensor
    lengths: Tensor
    bounds: Tensor
    window: Tensor
    starts: Tensor

    @classmethod
    def of(
        cls, spans: Tensor, bounds: Tensor, window: Tensor, starts: Tensor | None = None
    ) -> View:
        """From document spans; of all spans, bounds: the sums of their lengths [S + 1], window [S].

        starts: [S] the document token each begins at; None where all windows are read, since
        `bounds` says it then.
        """
        lengths = (bounds[spans + 1] - bounds[spans]).long()
        first = bounds if starts is None else starts
        return cls(spans, lengths, _sums(lengths), window[spans], first[spans].long())

    @cached_property
    def tokens(self) -> int:
        """Of all spans together."""
        return int(self.bounds[-1])

    @cached_property
    def owner(self) -> Tensor:
        """int64 [tokens]: the span of every token, as a place in this view."""
        return span_ids(self.bounds)

    def of_tokens(self, tokens: Tensor) -> Tensor:
        """The span of document tokens as a place in this view; F where none has them."""
        count = len(self.spans)
        if not count:
            return torch.zeros_like(tokens, dtype=torch.int64)
        found = torch.searchsorted(self.starts, tokens.long().contiguous(), right=True) - 1
        place = found.clamp_min(0)
        inside = (found >= 0) & (tokens < self.starts[place] + self.lengths[place])
        return torch.where(inside, place, count)

    def pick(self, keep: Tensor) -> tuple[View, Tensor]:
        """The part where `keep` bool [F] holds, and the token rows it has in this view."""
        lengths = self.lengths[keep]
        rows = gather_ranges(self.bounds[:-1][keep], lengths)
        part = View(self.spans[keep], lengths, _sums(lengths), self.window[keep], self.starts[keep])
        return part, rows

    def runs(self, stretches: Sequence[Stretch]) -> tuple[Runs, Runs]:
        """The places of the spans that have tokens in some stretches of the document (ascending,
        none in another), as ranges of spans and of tokens."""
        edges = self.starts.new_tensor(stretches).reshape(-1, 2)
        first = torch.searchsorted(self.starts + self.lengths, edges[:, 0].contiguous(), right=True)
        end = torch.searchsorted(self.starts, edges[:, 1].contiguous())
        first[1:] = torch.maximum(first[1:], end[:-1])  # a span of two stretches is seen once
        end = torch.maximum(first, end)
        tokens = zip(self.bounds[first].tolist(), self.bounds[end].tolist(), strict=True)
        return tuple(zip(first.tolist(), end.tolist(), strict=True)), tuple(tokens)

    def within(self, runs: Runs) -> Tensor:
        """bool [F]: which spans lie in ranges of them."""
        inside = torch.zeros(len(self.spans), dtype=torch.bool, device=self.spans.device)
        for first, end in runs:
            inside[first:end] = True
        return inside

    def to(self, device: torch.device) -> View:
        """The same on a device."""
        parts = (self.spans, self.lengths, self.bounds, self.window, self.starts)
        return View(*(part.to(device) for part in parts))


def _sums(lengths: Tensor) -> Tensor:
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


def no_spans(device: torch.device) -> View:
    """A view of nothing."""
    none = torch.empty(0, dtype=torch.int64, device=device)
    return View(none, none, none.new_zeros(1), none, none)


@dataclass(frozen=True, eq=False)
class Segment:
    """One layer of a turn of a conversation that was read behind the document and compressed.

    bounds: int64 [S + 1] tokens, from 0. compressed: bool [S] spans that may zoom; the others are
    exact. rows: k, v [Hkv, P, D] of the exact ones. tables: router and summaries of the compressed.
    records: of all S.
    """

    bounds: Tensor
    compressed: Tensor
    rows: tuple[Tensor, Tensor]
    tables: SpanTables
    records: Records

    @property
    def device_bytes(self) -> int:
        """Bytes that are resident while nothing of it is zoomed."""
        rows = 4 * self.rows[0].shape[1]  # their tokens
        return rows + sum(t.nbytes for t in self.rows) + self.tables.nbytes

    @property
    def nbytes(self) -> int:
        """Bytes of everything, wherever it is."""
        return self.device_bytes + self.records.payload.nbytes + self.records.offsets.nbytes
