"""What is resident of every span in view whatever is zoomed: what a router scores, and the values
that stand for spans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from engine.attention.view import View
from engine.compression.code_space import SpanValues
from engine.compression.codecs.base import Side
from engine.compression.columns import CodeColumns, CodeLayout, Runs
from engine.compression.products import CodeProducts
from engine.compression.routers import two_level
from engine.compression.routers.sketch import Router, Sketch, has_kernel
from engine.compression.routers.span_zoom import Gated
from engine.compression.routers.two_level import Levels, Sketched

SKETCH, VALUE = "sketch.t", "value.s"


@dataclass(frozen=True, eq=False)
class SpanIndex:
    """Router tensors and values of spans.

    tensors: as the router built them, without what is held as columns: the sketch, where nothing
    else reads its rows, and values of few bits. spans, tokens: the ranges of them that are in view;
    None for all.
    """

    router: Router
    levels: Levels
    side: Side
    tensors: Side
    sketch: CodeColumns | None = None
    values: CodeColumns | None = None
    spans: Runs | None = None
    tokens: Runs | None = None

    @classmethod
    def of(cls, router: Router, levels: Levels, side: Side, tensors: Side) -> SpanIndex:
        """From device tensors as a store has them, ".t" with a row per token, ".s" per span."""
        tensors, sketch, values = dict(tensors), None, None
        rows, packed = tensors.get(SKETCH), tensors.get(VALUE)
        # The kernel and the span level read a sketch by rows.
        if rows is not None and "ball.s" not in tensors and not has_kernel(rows.device):
            layout = CodeLayout.of(side["sketch_bits"][None])
            sketch = CodeColumns.of_rows(tensors.pop(SKETCH), layout)
        if packed is not None and packed.dtype == torch.uint8:
            layout = CodeLayout.of(side["value_bits"][None])
            values = CodeColumns.of_rows(tensors.pop(VALUE), layout)
        return cls(router, levels, side, tensors, sketch, values)

    @property
    def names(self) -> set[str]:
        """What a router and a summariser have built, as a store names it."""
        found = set(self.tensors)
        found |= set() if self.sketch is None else {SKETCH}
        return found | (set() if self.values is None else {VALUE})

    @property
    def nbytes(self) -> int:
        """Bytes of all spans, in view or not."""
        columns = [part.nbytes for part in (self.sketch, self.values) if part is not None]
        return sum(columns) + sum(t.nbytes for t in self.tensors.values())

    def pick(self, spans: Runs | None, tokens: Runs | None) -> SpanIndex:
        """The same with only these ranges of spans, which have these ranges of tokens, in view."""
        sketch = self.sketch and replace(self.sketch, runs=tokens)
        values = self.values and replace(self.values, runs=spans)
        return replace(self, sketch=sketch, values=values, spans=spans, tokens=tokens)

    def followed_by(self, spans: int, tokens: int, more: Sequence[Side]) -> SpanIndex:
        """So many spans of it and their tokens, and the tensors of others as a store has them."""
        tensors = {
            name: torch.cat(
                [
                    t[:, : tokens if name.endswith(".t") else spans],
                    *(each[name].to(t.device) for each in more),
                ],
                1,
            )
            for name, t in self.tensors.items()
        }
        sketch, values = self.sketch, self.values
        if sketch is not None:
            sketch = sketch.followed_by(tokens, [each[SKETCH] for each in more])
        if values is not None:
            values = values.followed_by(spans, [each[VALUE] for each in more])
        return SpanIndex(self.router, self.levels, self.side, tensors, sketch, values)

    @cached_property
    def seen(self) -> Side:
        """The tensors of what is in view; under a focus made once, and no bytes of the document."""
        if self.spans is None or self.tokens is None:
            return self.tensors
        runs = {".s": self.spans, ".t": self.tokens}
        return {
            name: torch.cat([t[:, :0], *(t[:, a:b] for a, b in runs[name[-2:]])], 1)
            for name, t in self.tensors.items()
        }

    @cached_property
    def columns(self) -> CodeColumns | None:
        """The sketch in view as columns, unless it is scored by rows: on a device with a kernel for
        that, and of a whole document that has a span level."""
        rows = self.tensors.get(SKETCH)
        if rows is None or self.spans is None or has_kernel(rows.device):
            return self.sketch
        layout = CodeLayout.of(self.side["sketch_bits"][None])
        return CodeColumns.of_rows(self.seen[SKETCH], layout)

    def working_bytes(self, rows: int, view: View) -> int:
        """Bytes that scoring so many query rows of a head takes beside what is resident."""
        heads = len(self.side["sketch_bits"]) if "sketch_bits" in self.side else 1
        taken = 0 if self.spans is None else sum(t.nbytes for t in self.seen.values())
        if self.columns is not None:
            taken += CodeProducts(self.columns).working_bytes(rows)
            taken += 8 * heads * rows * view.tokens
        if self.values is not None:
            taken += CodeProducts(self.values).working_bytes(rows)
        return taken

    # -- scores --------------------------------------------------------------------

    def mass(self, q: Tensor, view: View) -> tuple[Tensor, Tensor | None]:
        """The router's log-mass [Hkv, R, F] of spans for queries [Hkv, R, D]; where the view is
        long, by tokens of the best spans alone, and which these are, bool [Hkv, F]."""
        router, bounds = self.router, view.bounds
        long = "ball.s" in self.tensors and view.tokens >= self.levels.beyond
        if long and isinstance(router, Sketched):
            return two_level.logmass(router, self.levels, q, self.seen, self.side, bounds)
        if isinstance(router, Sketch) and self.columns is not None:
            return router.column_masses(q, self.columns, self.side, bounds, view.owner), None
        return router.logmass(q, self.seen, self.side, bounds), None

    def wish(self, q: Tensor, view: View) -> Tensor | None:
        """What a router with thresholds of its own wants zoomed, [Hkv, F]; None of others."""
        if not isinstance(self.router, Gated):
            return None
        return self.router.wish(q, self.seen, self.side, view.bounds)

    # -- values --------------------------------------------------------------------

    @cached_property
    def space(self) -> SpanValues | None:
        """How values of few bits are turned back; None of those in sixteen."""
        return None if self.values is None else SpanValues(self.side, self.values.layout)

    def value_sums(self, weight: Tensor) -> Tensor:
        """Values of spans added up by weights [Hkv, Q, F]: codes [Hkv, Q, R] as they unpack, for
        `space`, or the values themselves [Hkv, Q, D]."""
        if self.values is not None:
            return CodeProducts(self.values).sums(0, weight)
        return torch.bmm(weight, self.seen[VALUE].float())
