"""The span index of a layer: the sketch that a router scores, and the values of summary rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from engine.attention.view import View
from engine.compression.code_space import SpanValues
from engine.compression.columns import CodeColumns, CodeLayout, Runs
from engine.compression.params import LayerParams, needed
from engine.compression.products import CodeProducts
from engine.compression.routers import two_level
from engine.compression.routers.base import Router
from engine.compression.routers.sketch import column_masses, has_kernel
from engine.compression.routers.two_level import Levels
from engine.compression.span_tables import SpanTables


@dataclass(frozen=True, eq=False)
class SpanIndex:
    """Router tables and values of spans.

    tables: as the router built them, without what is held as columns: the sketch, where nothing
    else reads its rows, and values of few bits. spans, tokens: the ranges of them that are in view;
    None for all.
    """

    router: Router
    levels: Levels
    params: LayerParams
    tables: SpanTables
    sketch: CodeColumns | None = None
    values: CodeColumns | None = None
    spans: Runs | None = None
    tokens: Runs | None = None

    @classmethod
    def of(
        cls, router: Router, levels: Levels, params: LayerParams, tables: SpanTables
    ) -> SpanIndex:
        """From tables as a store has them."""
        sketch = values = None
        rows, packed = tables.sketch, tables.values
        # The kernel and the span level read a sketch by rows.
        if rows is not None and tables.means is None and not has_kernel(rows.device):
            sketch = CodeColumns.of_rows(rows, CodeLayout.of(needed(params.sketch).bits[None]))
            tables = replace(tables, sketch=None)
        if packed is not None and packed.dtype == torch.uint8:
            values = CodeColumns.of_rows(packed, CodeLayout.of(needed(params.summaries).bits[None]))
            tables = replace(tables, values=None)
        return cls(router, levels, params, tables, sketch, values)

    @property
    def has_span_level(self) -> bool:
        """Whether spans can be scored before their tokens; see `two_level`."""
        return self.tables.means is not None

    @cached_property
    def nbytes(self) -> int:
        """Bytes of all spans, in view or not."""
        columns = [part.nbytes for part in (self.sketch, self.values) if part is not None]
        return sum(columns) + self.tables.nbytes

    @property
    def sketch_bytes(self) -> int:
        """Those of `nbytes` that are sketches, of tokens and of spans; the others are summaries."""
        tables = (self.tables.sketch, self.tables.means, self.tables.radii)
        return sum(part.nbytes for part in (self.sketch, *tables) if part is not None)

    def pick(self, spans: Runs | None, tokens: Runs | None) -> SpanIndex:
        """The same with only these ranges of spans, which have these ranges of tokens, in view."""
        sketch = self.sketch and replace(self.sketch, runs=tokens)
        values = self.values and replace(self.values, runs=spans)
        return replace(self, sketch=sketch, values=values, spans=spans, tokens=tokens)

    def followed_by(self, spans: int, tokens: int, more: Sequence[SpanTables]) -> SpanIndex:
        """So many spans of it and their tokens, and the tables of others as a store has them."""
        own = self.tables.changed(lambda table: table[:, :tokens], lambda table: table[:, :spans])
        tables = SpanTables.joined([own, *more])
        sketch, values = self.sketch, self.values
        if sketch is not None:
            sketch = sketch.followed_by(tokens, [needed(each.sketch) for each in more])
        if values is not None:
            values = values.followed_by(spans, [needed(each.values) for each in more])
        return SpanIndex(self.router, self.levels, self.params, tables, sketch, values)

    @cached_property
    def seen(self) -> SpanTables:
        """The tables of what is in view; under a focus made once, and no bytes of the document."""
        if self.spans is None or self.tokens is None:
            return self.tables
        spans, tokens = self.spans, self.tokens
        return self.tables.changed(
            lambda table: _ranges(table, tokens), lambda table: _ranges(table, spans)
        )

    @cached_property
    def columns(self) -> CodeColumns | None:
        """The sketch in view as columns, unless it is scored by rows: on a device with a kernel for
        that, and of a whole document that has a span level."""
        rows = self.tables.sketch
        if rows is None or self.spans is None or has_kernel(rows.device):
            return self.sketch
        layout = CodeLayout.of(needed(self.params.sketch).bits[None])
        return CodeColumns.of_rows(needed(self.seen.sketch), layout)

    def working_bytes(self, rows: int, view: View) -> int:
        """Bytes that scoring so many query rows of a head takes beside what is resident."""
        heads = 1 if self.params.sketch is None else len(self.params.sketch.bits)
        taken = 0 if self.spans is None else self.seen.nbytes
        if self.columns is not None:
            taken += CodeProducts(self.columns).working_bytes(rows)
            taken += 8 * heads * rows * view.tokens
        if self.values is not None:
            taken += CodeProducts(self.values).working_bytes(rows)
        return taken

    # -- scores --------------------------------------------------------------------

    def mass(self, q: Tensor, view: View) -> tuple[Tensor, Tensor | None]:
        """The router's log-mass [Hkv, GQ, F] of spans for queries [Hkv, GQ, D]; where the view is
        long, by tokens of the best spans only, and which these are, bool [Hkv, F]."""
        if self.has_span_level and view.tokens >= self.levels.beyond:
            return two_level.logmass(self.levels, q, self.seen, self.params, view.bounds)
        if self.columns is not None:
            owner = view.owner
            return column_masses(q, self.columns, self.params, view.bounds, owner), None
        return self.router.logmass(q, self.seen, self.params, view.bounds), None

    def zoom_scores(self, q: Tensor, view: View) -> Tensor:
        """What a gated router would have zoomed, [Hkv, F]; see `Router.zoom_scores`."""
        return self.router.zoom_scores(q, self.seen, self.params, view.bounds)

    # -- values --------------------------------------------------------------------

    @cached_property
    def space(self) -> SpanValues | None:
        """How values of few bits are projected back; None of those in sixteen."""
        if self.values is None:
            return None
        return SpanValues(needed(self.params.summaries), self.values.layout)

    def value_sums(self, weight: Tensor) -> Tensor:
        """Values of spans added up by weights [Hkv, Q, F]: codes [Hkv, Q, R] as they unpack, for
        `space`, or the values themselves [Hkv, Q, D]."""
        if self.values is not None:
            return CodeProducts(self.values).sums(0, weight)
        return torch.bmm(weight, needed(self.seen.values).float())


def _ranges(table: Tensor, ranges: Runs) -> Tensor:
    """Ranges of rows along dimension 1, one after another."""
    return torch.cat([table[:, :0], *(table[:, first:last] for first, last in ranges)], 1)
