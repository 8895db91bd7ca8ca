"""The default router, which scores a few low-bit coefficients of every key, and the mean key."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from typing import ClassVar

import torch
from torch import Tensor

from engine.compression.columns import CodeColumns, centre
from engine.compression.layer_basis import Axes, sample
from engine.compression.packing import Packing, pack_heads, split_heads
from engine.compression.params import LayerParams, SketchQuantizer, needed
from engine.compression.quantize import (
    GAUSS_MSE,
    bit_price,
    bits_at,
    fit_steps,
    float_codes,
    rounding_error,
)
from engine.compression.routers.base import NOT_TOLD, RoutedRows, Unfitted, Untrained
from engine.compression.scores import column_span_masses, packed_span_masses
from engine.compression.span_tables import SpanTables
from engine.compression.statistics import NOT_GIVEN, Given, LayerStatistics


@dataclass(frozen=True)
class MeanKey(Unfitted):
    """The published router without training: the span's key and the log of its length.

    Source: SeKV (arXiv 2606.31145), section 3.3 with W = identity.
    """

    key_names: ClassVar[tuple[str, ...]] = ("mean_key.s",)

    def build(
        self, k: Tensor, summary: Tensor, params: LayerParams, rows: RoutedRows = NOT_TOLD
    ) -> SpanTables:
        return SpanTables(keys=summary.half())

    def logmass(self, q: Tensor, tables: SpanTables, params: LayerParams, bounds: Tensor) -> Tensor:
        keys = needed(tables.keys).float()
        return torch.bmm(q, keys.mT) / math.sqrt(q.shape[-1]) + bounds.diff().float().log()

    def device_share(self, size: int, span: float) -> float:
        return 0.5 / span


MOST_MISSING = 1.0
"""Nats that a sketch adds at most for what it left out. Where more is missing, a span's mass is
that of its few best tokens, and these are the ones that rounding has spared."""


@dataclass(frozen=True)
class Sketch(Untrained):
    """Our default: a few coefficients of every key in the shared basis, at a few bits each.

    Scores every token, sums exp by span. `bits` is the mean per component over all layers and
    heads, given by variance (reverse water-filling): at 1.0 it costs 1/32 of the 16-bit rows, as
    a mean key for 16 tokens does, and finds the token that a mean hides. What was left out is
    counted with its expected weight, E exp(s + e) = exp(s + var(e) / 2), so that masses of spans
    can be held against rows that are exact.
    """

    bits: float = 1.0
    reads_summaries: ClassVar[bool] = False

    def fit(self, k: Tensor, params: LayerParams, given: Given = NOT_GIVEN) -> LayerParams:
        found = given.statistics or LayerStatistics.of(k, k)
        price = found.sketch_price
        if price is None:
            price = bit_price(found.sketch_cost, self.bits)
        bits = bits_at(found.sketch_cost, price)
        coefs = found.keys.axes.coefficients(sample(k))
        step = fit_steps(coefs, bits)
        each = bits[:, None], step[:, None]
        wrong = rounding_error(coefs, float_codes(coefs, *each), *each)
        quantizer = SketchQuantizer(bits, step, wrong.square().mean(1))
        return replace(params, keys=params.keys or found.keys.basis, sketch=quantizer)

    def build(
        self, k: Tensor, summary: Tensor, params: LayerParams, rows: RoutedRows = NOT_TOLD
    ) -> SpanTables:
        quantizer = needed(params.sketch)
        axes = rows.axes or Axes.of(needed(params.keys))
        coefs = axes.coefficients(k, quantizer.used)
        return SpanTables(sketch=pack_heads(coefs, quantizer.bits, quantizer.step))

    def logmass(self, q: Tensor, tables: SpanTables, params: LayerParams, bounds: Tensor) -> Tensor:
        bits = needed(params.sketch).bits
        return span_masses(needed(tables.sketch), bits, *projected_queries(q, params), bounds)

    def shrink(
        self, tables: SpanTables, params: LayerParams
    ) -> tuple[SpanTables, LayerParams] | None:
        """Drop a byte of every row: of the head that loses least by it, the last of its narrowest
        components, which lie at the end of a row. The widest of a head stay."""
        before, rows = needed(params.sketch), needed(tables.sketch)
        droppable = []
        for head, row in enumerate(before.bits):
            used = int((row > 0).sum())
            width = int(row[used - 1]) if used else 0
            if used and width < int(row[0]):
                last = slice(used - 8 // width, used)
                more = float(before.lost[head, last].sum()) * (1 / GAUSS_MSE[width] - 1)
                droppable.append((more, -used, head, width, last))
        if not droppable:
            return None
        _, _, head, width, last = min(droppable, key=lambda each: each[:3])
        bits, lost = before.bits.clone(), before.lost.clone()
        bits[head, last] = 0
        lost[head, last] /= GAUSS_MSE[width]
        parts = split_heads(rows, before.bits)
        left = [p[:, : Packing.of(row).row_bytes] for p, row in zip(parts, bits, strict=True)]
        after = replace(before, bits=bits, lost=lost)
        return replace(tables, sketch=torch.cat(left, -1)[None]), replace(params, sketch=after)

    def device_share(self, size: int, span: float) -> float:
        return self.bits / 32


def projected_queries(q: Tensor, params: LayerParams) -> tuple[Tensor, Tensor]:
    """Queries [Hkv, Q, D] in nats per step of a component of the sketch [Hkv, Q, R], and the nats
    [Hkv, Q, 1] that every token has beside."""
    quantizer = needed(params.sketch)
    mean, basis = needed(params.keys).unpacked()
    scale = 1 / math.sqrt(q.shape[-1])
    projected = torch.bmm(q, basis) * scale
    shift = torch.bmm(q, mean[:, :, None]) * scale
    missing = torch.bmm(projected.square(), quantizer.lost[:, :, None]) / 2
    shift += missing.clamp_max(MOST_MISSING)
    return projected * quantizer.step[:, None], shift


def column_masses(
    q: Tensor, codes: CodeColumns, params: LayerParams, bounds: Tensor, owner: Tensor
) -> Tensor:
    """As `Sketch.logmass`, of a sketch that is held as columns. owner: [N] the span of a token."""
    steps, shift = projected_queries(q, params)
    used = codes.layout.components
    middle = centre(needed(params.sketch).bits)[..., None]
    shift = shift + torch.bmm(steps, middle[:, : steps.shape[-1]])
    return column_span_masses(
        codes, steps[..., :used] * codes.layout.lower[0].float()[:, None], shift, bounds, owner
    )


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def has_kernel(device: torch.device) -> bool:
    """Whether packed rows are scored by a kernel of their own on this device."""
    return device.type == "cuda" and _has_triton()


def span_masses(packed: Tensor, bits: Tensor, q: Tensor, shift: Tensor, bounds: Tensor) -> Tensor:
    """`packed_span_masses`; on a CUDA device in one kernel where Triton is installed, as torch does
    on Linux. An error of the kernel is an error: there is no second way once it is chosen."""
    if has_kernel(packed.device):
        from engine.compression import gpu_sketch_kernel

        return gpu_sketch_kernel.span_masses(packed, bits, q, shift, bounds)
    return packed_span_masses(packed, bits, q, shift, bounds)
