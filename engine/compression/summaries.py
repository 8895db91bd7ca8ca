"""Span summaries: one key and one value per KV head for a span that is not zoomed.

The key side of a summary belongs to the router; here are the weights of the mean and how the
values are kept on the device.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from engine.compression.layer_basis import Axes, fit_axes
from engine.compression.packing import Packing, pack_heads, split_heads
from engine.compression.params import LayerParams, Quantizer, needed
from engine.compression.quantize import allocate_bits, dequantize, fit_steps
from engine.compression.ranges import span_mean
from engine.compression.statistics import LayerStatistics


class Summariser(Protocol):
    def summarise(self, rows: Tensor, surprisal: Tensor, bounds: Tensor) -> Tensor:
        """rows [Hkv, n, D], surprisal [n], bounds [S + 1] -> [Hkv, S, D] float32."""
        ...

    @property
    def value_bits(self) -> float:
        """16: span values in half precision. Less: mean bits of their coefficients in the
        codec's value basis, given by variance."""
        ...


@dataclass(frozen=True)
class SurprisalMean:
    """The published summary: a mean weighted by each token's surprisal within its span.

    Source: SeKV (arXiv 2606.31145), section 3.2.
    """

    value_bits: float = 16

    def summarise(self, rows: Tensor, surprisal: Tensor, bounds: Tensor) -> Tensor:
        return span_mean(rows, surprisal, bounds)


@dataclass(frozen=True)
class Mean:
    """The plain mean of a span."""

    value_bits: float = 16

    def summarise(self, rows: Tensor, surprisal: Tensor, bounds: Tensor) -> Tensor:
        return span_mean(rows, torch.ones_like(surprisal), bounds)


def fit_values(
    values: Tensor, bits: float, params: LayerParams, statistics: LayerStatistics | None = None
) -> LayerParams:
    """The layer's parameters with what span values [Hkv, S, D] of the first window need.

    params: with the codec's basis of values, which is shared.  statistics: of the layer's rows.
    """
    if bits == 16:
        return params
    basis = params.values or fit_axes(values).basis
    axes = statistics.values.axes if statistics and params.values else Axes.of(basis)
    coefs = axes.coefficients(values)
    # Means vary less than tokens and not in the same order; the basis is the tokens'.
    variance = coefs.var(1, correction=0).cummin(-1).values
    given = allocate_bits(variance, bits)
    return replace(params, values=basis, summaries=Quantizer(given, fit_steps(coefs, given)))


def pack_values(
    values: Tensor, bits: float, params: LayerParams, axes: Axes | None = None
) -> Tensor:
    """Span values [Hkv, S, D] -> the table of `SpanTables.values`. axes: of the values, found again
    where not given."""
    if bits == 16:
        return values.half()
    quantizer = needed(params.summaries)
    coefs = (axes or Axes.of(needed(params.values))).coefficients(values, quantizer.used)
    return pack_heads(coefs, quantizer.bits, quantizer.step)


def unpack_values(packed: Tensor, params: LayerParams) -> Tensor:
    """The table of `SpanTables.values` -> span values [Hkv, S, D] float32."""
    if packed.dtype != torch.uint8:
        return packed.float()
    quantizer = needed(params.summaries)
    mean, basis = needed(params.values).unpacked()
    out = []
    rows = split_heads(packed, quantizer.bits)
    for head, (bits, step) in enumerate(zip(quantizer.bits, quantizer.step, strict=True)):
        codes = Packing.of(bits).unpack(rows[head])
        used = codes.shape[1]
        coefs = dequantize(codes, bits[:used], step[:used])
        out.append(torch.addmm(mean[head], coefs, basis[head, :, :used].T))
    return torch.stack(out)
