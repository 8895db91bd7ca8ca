"""What stands for a span that is not zoomed: one key and one value per KV head.

The key side of a summary belongs to the router; here are the weights of the mean and how the
values are kept on the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from engine.compression.codecs.base import Side
from engine.compression.codecs.layer_basis import Axes, basis_of, fit_axes, stores_basis
from engine.compression.packing import Packing, pack_heads, split_heads
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
    values: Tensor, bits: float, side: Side, statistics: LayerStatistics | None = None
) -> Side:
    """Side information for span values [Hkv, S, D] of the first window.

    side: the codec's, whose basis is shared where it has one.  statistics: of the layer's rows.
    """
    if bits == 16:
        return {}
    new = {} if stores_basis("v", side) else fit_axes("v", values).stored
    axes = statistics.values.axes if statistics and not new else Axes.of("v", {**side, **new})
    coefs = axes.coefficients(values)
    # Means vary less than tokens and not in the same order; the basis is the tokens'.
    variance = coefs.var(1, correction=0).cummin(-1).values
    given = allocate_bits(variance, bits)
    return {**new, "value_bits": given, "value_step": fit_steps(coefs, given)}


def pack_values(values: Tensor, bits: float, side: Side, axes: Axes | None = None) -> Side:
    """Span values [Hkv, S, D] as device tensors. axes: of `side`, found again where not given."""
    if bits == 16:
        return {"value.s": values.half()}
    given = side["value_bits"]
    used = int((given > 0).sum(-1).max())
    coefs = (axes or Axes.of("v", side)).coefficients(values, used)
    return {"value.s": pack_heads(coefs, given, side["value_step"])}


def unpack_values(device: Side, side: Side) -> Tensor:
    """Device tensors -> span values [Hkv, S, D] float32."""
    packed = device["value.s"]
    if packed.dtype != torch.uint8:
        return packed.float()
    mean, basis = basis_of("v", side)
    out = []
    rows = split_heads(packed, side["value_bits"])
    for head, (bits, step) in enumerate(zip(side["value_bits"], side["value_step"], strict=True)):
        codes = Packing.of(bits).unpack(rows[head])
        used = codes.shape[1]
        coefs = dequantize(codes, bits[:used], step[:used])
        out.append(torch.addmm(mean[head], coefs, basis[head, :, :used].T))
    return torch.stack(out)
