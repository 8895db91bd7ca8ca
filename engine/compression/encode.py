"""Compresses a window: from the keys and values of a prefill to the tensors that a store keeps.

Pure tensor work: no files, no model. `fit` finds a layer's parameters from the first window's rows;
`compress_layer` turns any window's rows into span tables for a device and records for a host.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from engine.compression import summaries
from engine.compression.codecs.base import Records
from engine.compression.codecs.shared_basis import SharedBasis
from engine.compression.layer_basis import LayerAxes
from engine.compression.methods import Method
from engine.compression.params import LayerParams, TrainedLayer, needed
from engine.compression.quantize import bit_price, expected_error
from engine.compression.query_statistics import QueryMoments
from engine.compression.ranges import gather_ranges, span_ids
from engine.compression.routers.base import RoutedRows
from engine.compression.routers.sketch import Sketch
from engine.compression.span_tables import DeviceLayer, SpanTables
from engine.compression.spans import COMPRESSED, Spans, pin_ends
from engine.compression.statistics import NOT_GIVEN, Given, LayerStatistics
from engine.compression.text_spans import Delimiters


@dataclass(frozen=True)
class CompressedLayer:
    """One layer of one window. records: the codes of its spans."""

    device: DeviceLayer
    records: Records


def segment(
    recipe: Method,
    surprisal: Tensor,
    pieces: list[str],
    *,
    last: bool,
    near: Tensor | None = None,
) -> Spans:
    """Cut a window and pin its ends; only the document's last window has a local window.

    near: [n, reach], see `observe`, for segmenters that look at attention.
    """
    if isinstance(recipe.segmenter, Delimiters):
        spans = recipe.segmenter.cut(surprisal, pieces, near)
    else:
        spans = recipe.segmenter.cut(surprisal, pieces)
    return pin_ends(spans, recipe.sinks, recipe.local if last else 0)


def prepare(
    recipe: Method,
    layers: Iterable[tuple[Tensor, Tensor]],
    learnt: Sequence[QueryMoments],
    trained: Sequence[TrainedLayer] = (),
    tokens: int = 0,
) -> list[Given]:
    """What one layer's `fit` must know of the others: layers share the bits of codes and sketches.

    Args:
        layers: k, v [Hkv, n, D] of the first window, layer after layer.
        learnt: per layer what queries make of it; empty for methods that do not ask.
        trained: per layer what a router brings.  tokens: of the whole document.
    Returns:
        per layer its statistics with the prices of a bit. The model's own bases are used where the
        document loses less by them; see `_Plan.loss`.
    """
    if not recipe.fits_bases:
        return [Given(trained=known) for known in trained] or [NOT_GIVEN for _ in layers]
    lends = isinstance(recipe.codec, SharedBasis) and bool(recipe.codec.model and trained)
    own, borrowed = _Plan(recipe), _Plan(recipe)
    for index, (k, v) in enumerate(layers):
        queries = learnt[index] if learnt else None
        known = trained[index] if trained else TrainedLayer()
        rows = k[:, _body(recipe, k)], v[:, _body(recipe, k)]
        own.add(LayerStatistics.of(*rows, queries), replace(known, bases=None))
        if lends:
            borrowed.add(LayerStatistics.of(*rows, queries, known.bases), known)
    if lends and borrowed.loss(own.bases, tokens) < own.loss(0, tokens):
        return borrowed.given()
    return own.given()


class _Plan:
    """The components of all layers under one choice of bases, among which bits are shared out."""

    def __init__(self, recipe: Method):
        codec, router = recipe.codec, recipe.router
        self.code_bits = codec.bits if isinstance(codec, SharedBasis) and codec.bits < 32 else 0.0
        self.sketch_bits = router.bits if isinstance(router, Sketch) else 0.0
        self.bases = 0  # bytes that the document pays for bases
        self._layers: list[LayerStatistics] = []
        self._trained: list[TrainedLayer] = []

    def add(self, statistics: LayerStatistics, trained: TrainedLayer) -> None:
        """The next layer's statistics, and what a trained router knows of it."""
        self._layers.append(statistics)
        self._trained.append(trained)
        bases = LayerParams(keys=statistics.keys.basis, values=statistics.values.basis)
        means = statistics.keys.axes.mean.numel() + statistics.values.axes.mean.numel()
        self.bases += bases.nbytes - 2 * means

    def given(self) -> list[Given]:
        codes, sketches = self._costs()
        code_price = bit_price(codes, self.code_bits) if self.code_bits else None
        sketch_price = bit_price(sketches, self.sketch_bits) if self.sketch_bits else None
        return [
            Given(replace(each, code_price=code_price, sketch_price=sketch_price), known)
            for each, known in zip(self._layers, self._trained, strict=True)
        ]

    def loss(self, spare: int, tokens: int) -> float:
        """What the code and the sketch of a document lose, multiplied, at equal bytes in all.

        spare: bytes that other bases would have cost; the rows of the document have them instead.
        """
        lost = 1.0
        for rows, bits in zip(self._costs(), (self.code_bits, self.sketch_bits), strict=True):
            if bits:
                more = min(8.0, bits + 8 * spare / max(1, tokens * rows.numel()))
                lost *= expected_error(rows, more)
        return lost

    def _costs(self) -> tuple[Tensor, Tensor]:
        """What leaving out a component of the codes and of the sketch costs, of all layers."""
        return (
            torch.cat([each.code_cost for each in self._layers]),
            torch.cat([each.sketch_cost for each in self._layers]),
        )


def fit(
    recipe: Method,
    k: Tensor,
    v: Tensor,
    surprisal: Tensor,
    spans: Spans,
    given: Given = NOT_GIVEN,
) -> LayerParams:
    """The parameters of a layer, which all windows share.

    Args:
        k, v: [Hkv, n, D] of the first window.  given: as `prepare` has it, with what was calibrated
            for this layer.
    """
    if recipe.whole:
        return recipe.codec.fit(k, v)
    rows = k[:, _body(recipe, k)], v[:, _body(recipe, k)]
    statistics = given.statistics
    if statistics is None and recipe.fits_bases:
        statistics = LayerStatistics.of(*rows, model=given.trained.bases)
        given = replace(given, statistics=statistics)
    params = replace(recipe.codec.fit(*rows, statistics), gates=given.trained.gates)
    params = recipe.router.fit(rows[0], params, given)
    if recipe.selector.hides:
        return params
    values = recipe.summariser.summarise(v, surprisal, spans.bounds)
    return summaries.fit_values(values, recipe.summariser.value_bits, params, statistics)


def _body(recipe: Method, k: Tensor) -> slice:
    """All rows but the sinks, which have outlying norms and stay exact: they must not stretch
    basis and steps."""
    return slice(min(recipe.sinks, k.shape[1] - 1), None)


def compress_layer(
    recipe: Method,
    k: Tensor,
    v: Tensor,
    surprisal: Tensor,
    spans: Spans,
    params: LayerParams,
    queries: Tensor | None = None,
) -> CompressedLayer:
    """Span tables and records of one layer of one window.

    k, v: [Hkv, n, D]. params: the layer's. queries: [H, w, D] of its last tokens, for routers that
    observe them.
    """
    if recipe.whole:
        return CompressedLayer(DeviceLayer(), recipe.codec.encode(k, v, spans.bounds, params))
    axes = LayerAxes.of(params)
    records = recipe.codec.encode(k, v, spans.bounds, params, axes)
    tables, exact = device_tables(recipe, k, v, surprisal, spans, params, axes, queries)
    errors = None
    if records.errors.numel():
        errors = (records.errors.clamp(0, 1) * 255).round().to(torch.uint8)
    if recipe.keep < 1:
        share = 1.0 if params.calibration is None else float(params.calibration.share[0])
        records = _drop(recipe.keep * share, records, needed(tables.ranks), spans)
    return CompressedLayer(DeviceLayer(tables, exact, errors), records)


def device_tables(
    recipe: Method,
    k: Tensor,
    v: Tensor,
    surprisal: Tensor,
    spans: Spans,
    params: LayerParams,
    axes: LayerAxes | None,
    queries: Tensor | None,
) -> tuple[SpanTables, tuple[Tensor, Tensor]]:
    """What a device holds of the spans of a layer: router and summaries, and the exact rows.

    k, v, surprisal, spans, params, queries: as `compress_layer` has them.  axes: of `params`.
    """
    keys = k[:, :0]
    if recipe.router.reads_summaries:
        keys = recipe.summariser.summarise(k, surprisal, spans.bounds)
    rows = RoutedRows(span_ids(spans.bounds), axes=axes.keys if axes else None)
    if queries is not None:
        rows = replace(rows, observed=queries)
    tables = recipe.router.build(k, keys, params, rows)
    if not recipe.selector.hides:
        values = recipe.summariser.summarise(v, surprisal, spans.bounds)
        bits = recipe.summariser.value_bits
        packed = summaries.pack_values(values, bits, params, axes.values if axes else None)
        tables = replace(tables, values=packed)
    kept, dtype = pinned_tokens(spans.bounds, spans.kind), row_dtype(recipe, k.dtype)
    return tables, (k[:, kept].to(dtype).contiguous(), v[:, kept].to(dtype).contiguous())


def _drop(keep: float, records: Records, ranks: Tensor, spans: Spans) -> Records:
    """The records of each KV head's best ranked spans; the others become empty, for good.

    Pinned spans stay; `keep` is the share of tokens left, pinned ones included.
    """
    lengths = spans.bounds.diff()
    most = min(1.0, keep) * int(lengths.sum())
    ranks = ranks.masked_fill(spans.kind != COMPRESSED, torch.inf)
    order = ranks.argsort(dim=-1, descending=True, stable=True)
    fits = lengths[order].cumsum(-1) <= most
    kept = torch.zeros_like(fits).scatter_(-1, order, fits).T.reshape(-1)
    sizes = records.offsets.diff()
    payload = records.payload[gather_ranges(records.offsets[:-1][kept], sizes[kept])]
    left = torch.where(kept, sizes, 0)
    return Records(payload, torch.cat([left.new_zeros(1), left.cumsum(0)]))


def pinned_tokens(bounds: Tensor, kind: Tensor) -> Tensor:
    """Token positions of all spans that stay exact, ascending."""
    keep = kind != COMPRESSED
    return gather_ranges(bounds[:-1][keep].long(), bounds.diff()[keep].long())


def row_dtype(recipe: Method, model: torch.dtype) -> torch.dtype:
    """How exact rows are kept: 16 bits, or the model's own dtype where the recipe is exact."""
    return torch.float16 if recipe.half_rows and model == torch.float32 else model
