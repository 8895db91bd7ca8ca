"""A window's keys and values become what the store keeps: prefill + recipe -> tensors.

Pure tensor work: no files, no model. `fit` learns a layer's side information from the first
window; `compress_layer` turns any window's rows into device tensors and host records.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from engine.compression import summaries
from engine.compression.codecs.base import Records, Side
from engine.compression.codecs.layer_basis import (
    LayerAxes,
    LentBases,
    document_bytes,
    of_document,
)
from engine.compression.codecs.shared_basis import SharedBasis
from engine.compression.methods import Method
from engine.compression.quantize import bit_price, expected_error
from engine.compression.query_statistics import QueryMoments
from engine.compression.ranges import gather_ranges, span_ids
from engine.compression.routers.sketch import RoutedRows, Sketch
from engine.compression.spans import COMPRESSED, Spans, pin_ends
from engine.compression.statistics import LayerStatistics
from engine.compression.text_spans import Delimiters
from engine.errors import StoreError


@dataclass(frozen=True)
class CompressedLayer:
    """One layer of one window. device: tensors by name; records: the spans' codes.

    "error.s" uint8 [Hkv, S] says in 1/255 what the codes lost; it is for people.
    """

    device: Side
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


@dataclass(frozen=True)
class Given:
    """What is known of a layer beside its rows when it is fitted.

    statistics: of the first window's rows, the prices of a bit among them; without, they are
        computed and the layer spends the bits of all layers on its own.
    trained: what a trained router knows of it, by name.  calibrated: what was measured of the
        model beforehand and is kept with the store, by name.
    """

    statistics: LayerStatistics | None = None
    trained: Side = field(default_factory=dict)
    calibrated: Side = field(default_factory=dict)


NOT_GIVEN = Given()


def prepare(
    recipe: Method,
    layers: Iterable[tuple[Tensor, Tensor]],
    learnt: Sequence[QueryMoments],
    trained: Sequence[Side] = (),
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
        known = trained[index] if trained else {}
        rows = k[:, _body(recipe, k)], v[:, _body(recipe, k)]
        own.add(LayerStatistics.of(*rows, queries), of_document(known))
        if lends:
            borrowed.add(LayerStatistics.of(*rows, queries, LentBases.of(known)), known)
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
        self._trained: list[Side] = []

    def add(self, statistics: LayerStatistics, trained: Side) -> None:
        """The next layer's statistics, and what a trained router knows of it."""
        self._layers.append(statistics)
        self._trained.append(trained)
        for fitted in (statistics.keys, statistics.values):
            self.bases += document_bytes(fitted.stored) - 2 * fitted.axes.mean.numel()

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
) -> Side:
    """Side information of a layer, shared by all windows, as tensors by name.

    Args:
        k, v: [Hkv, n, D] of the first window.  given: as `prepare` has it, with what was calibrated
            for this layer.
    """
    if recipe.whole:
        return recipe.codec.fit(k, v)
    rows = k[:, _body(recipe, k)], v[:, _body(recipe, k)]
    statistics = given.statistics
    if statistics is None and recipe.fits_bases:
        statistics = LayerStatistics.of(*rows, lent=LentBases.of(given.trained))
    side = {**given.calibrated, **recipe.codec.fit(*rows, statistics)}
    side |= recipe.router.fit(rows[0], {**given.trained, **side}, statistics)
    if recipe.selector.hides:
        return side
    values = recipe.summariser.summarise(v, surprisal, spans.bounds)
    return side | summaries.fit_values(values, recipe.summariser.value_bits, side, statistics)


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
    side: Side,
    queries: Tensor | None = None,
) -> CompressedLayer:
    """Device tensors and host records of one layer of one window.

    k, v: [Hkv, n, D]. side: the layer's, and what a trained router knows of it. queries:
    [H, w, D] of its last tokens, for routers that observe them.
    """
    if recipe.whole:
        return CompressedLayer({}, recipe.codec.encode(k, v, spans.bounds, side))
    axes = LayerAxes.of(side)
    records = recipe.codec.encode(k, v, spans.bounds, side, axes)
    keys = k[:, :0]
    if recipe.router.reads_summaries:
        keys = recipe.summariser.summarise(k, surprisal, spans.bounds)
    rows = RoutedRows(span_ids(spans.bounds), axes=axes.keys if axes else None)
    if queries is not None:
        rows = replace(rows, observed=queries)
    device = recipe.router.build(k, keys, side, rows)
    if not recipe.selector.hides:
        values = recipe.summariser.summarise(v, surprisal, spans.bounds)
        bits = recipe.summariser.value_bits
        device |= summaries.pack_values(values, bits, side, axes.values if axes else None)
    kept = pinned_tokens(spans.bounds, spans.kind)
    dtype = row_dtype(recipe, k.dtype)
    device["pinned_k"] = k[:, kept].to(dtype).contiguous()
    device["pinned_v"] = v[:, kept].to(dtype).contiguous()
    if records.errors.numel():
        device["error.s"] = (records.errors.clamp(0, 1) * 255).round().to(torch.uint8)
    if recipe.keep < 1:
        records = _drop(recipe.keep, records, device["rank.s"], spans, side)
    return CompressedLayer(device, records)


def _drop(keep: float, records: Records, rank: Tensor, spans: Spans, side: Side) -> Records:
    """The records of each KV head's best ranked spans; the others become empty, for good.

    Pinned spans stay; `keep` is the share of tokens left, pinned ones included, times the layer's
    own where layers have shares.
    """
    lengths = spans.bounds.diff()
    most = min(1.0, keep * float(side.get("layer_share", torch.ones(1))[0])) * int(lengths.sum())
    worth = rank.masked_fill(spans.kind != COMPRESSED, torch.inf)
    order = worth.argsort(dim=-1, descending=True, stable=True)
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


def by_layer(tensors: Side, layers: int) -> list[Side]:
    """Tensors `{layer}.{name}` by layer.

    Raises:
        StoreError: one belongs to no layer.
    """
    found: list[Side] = [{} for _ in range(layers)]
    for name, tensor in tensors.items():
        match = re.fullmatch(r"(\d{1,6})\.(.+)", name, re.ASCII)
        if match is None or int(match[1]) >= layers:
            raise StoreError(f"the store holds {name[:80]!r}, which no layer has: ingest again")
        found[int(match[1])][match[2]] = tensor
    return found


def sides_of(shared: Side, layers: int) -> list[Side]:
    """Each layer's side information out of a store's shared tensors, the prefix left out."""
    return [
        {name: tensor for name, tensor in side.items() if not name.startswith("prefix_")}
        for side in by_layer(shared, layers)
    ]
