"""How a query finds the spans it needs: the device's estimate of their attention mass, and the
choice of what to zoom under a budget.

A router keeps a little of every key on the device and turns a query into the log-mass of every
span; the same estimate is the logit of the summary row of a span that is not zoomed. It fetches
nothing: see `attention.residency`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from engine.compression.codecs.base import Side
from engine.compression.codecs.layer_basis import Axes, basis_of, sample, stores_basis
from engine.compression.columns import CodeColumns, centre
from engine.compression.packing import Packing, pack_heads, split_heads
from engine.compression.quantize import (
    GAUSS_MSE,
    bit_price,
    bits_at,
    fit_steps,
    float_codes,
    rounding_error,
)
from engine.compression.scores import column_span_masses, packed_span_masses
from engine.compression.statistics import LayerStatistics


@dataclass(frozen=True)
class RoutedRows:
    """What a router is told of a window's rows beside the keys.

    owner: [n] the span of every token.  observed: [H, w, D] queries of the window's last tokens,
    for routers that look at them.  axes: of the layer's keys, found again where not given.
    """

    owner: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    observed: Tensor = field(default_factory=lambda: torch.empty(0))
    axes: Axes | None = None


NOT_TOLD = RoutedRows()


class Router(Protocol):
    reads_summaries: ClassVar[bool]
    """Whether `build` reads the span keys; they are not made for a router that does not."""

    def fit(self, k: Tensor, side: Side, statistics: LayerStatistics | None = None) -> Side:
        """Side information of a layer from the first window's keys [Hkv, n, D].

        side: the codec's, whose basis may be shared, and what a trained router knows of the layer.
        statistics: of the layer's rows; computed where they are needed and not given.
        """
        ...

    def build(self, k: Tensor, summary: Tensor, side: Side, rows: RoutedRows = NOT_TOLD) -> Side:
        """Device tensors of a window from keys [Hkv, n, D] and span keys [Hkv, S, D], which are
        [Hkv, 0, D] for a router that reads none.

        side: the layer's.
        A name ending in ".t" holds a row per token, ".s" a row per span, along dimension 1.
        """
        ...

    def logmass(self, q: Tensor, device: Side, side: Side, bounds: Tensor) -> Tensor:
        """Estimated log of the sum of exp(q.k / sqrt(D)) over each span.

        q: float32 [Hkv, Q, D]; bounds [S + 1] -> [Hkv, Q, S] nats.
        """
        ...

    def shrink(self, device: Side, side: Side) -> tuple[Side, Side] | None:
        """The same estimate at fewer bytes, or None where it cannot shrink."""
        ...

    def device_share(self, size: int, span: float) -> float:
        """Expected bytes over those of 16-bit rows, for spans of about `span` tokens."""
        ...


class Unfitted:
    """A router that learns nothing of the document and cannot shrink."""

    reads_summaries: ClassVar[bool] = True

    def fit(self, k: Tensor, side: Side, statistics: LayerStatistics | None = None) -> Side:
        return {}

    def shrink(self, device: Side, side: Side) -> tuple[Side, Side] | None:
        return None


@dataclass(frozen=True)
class MeanKey(Unfitted):
    """The published router without training: the span's key and the log of its length.

    Source: SeKV (arXiv 2606.31145), section 3.3 with W = identity.
    """

    def build(self, k: Tensor, summary: Tensor, side: Side, rows: RoutedRows = NOT_TOLD) -> Side:
        return {"mean_key.s": summary.half()}

    def logmass(self, q: Tensor, device: Side, side: Side, bounds: Tensor) -> Tensor:
        keys = device["mean_key.s"].float()
        return torch.bmm(q, keys.mT) / math.sqrt(q.shape[-1]) + bounds.diff().float().log()

    def device_share(self, size: int, span: float) -> float:
        return 0.5 / span


MOST_MISSING = 1.0
"""Nats that a sketch adds at most for what it left out. Where more is missing, a span's mass is
that of its few best tokens, and these are the ones that rounding has spared."""


@dataclass(frozen=True)
class Sketch:
    """Our default: a few coefficients of every key in the shared basis, at a few bits each.

    Scores every token, sums exp by span. `bits` is the mean per component over all layers and
    heads, given by variance (reverse water-filling): at 1.0 it costs 1/32 of the 16-bit rows, as
    a mean key for 16 tokens does, and finds the token that a mean hides. What was left out is
    counted with its expected weight, E exp(s + e) = exp(s + var(e) / 2), so that masses of spans
    can be held against rows that are exact.
    """

    bits: float = 1.0
    reads_summaries: ClassVar[bool] = False

    def fit(self, k: Tensor, side: Side, statistics: LayerStatistics | None = None) -> Side:
        found = statistics or LayerStatistics.of(k, k)
        price = found.sketch_price
        if price is None:
            price = bit_price(found.sketch_cost, self.bits)
        bits = bits_at(found.sketch_cost, price)
        new = {} if stores_basis("k", side) else found.keys.stored
        coefs = found.keys.axes.coefficients(sample(k))
        step = fit_steps(coefs, bits)
        each = bits[:, None], step[:, None]
        wrong = rounding_error(coefs, float_codes(coefs, *each), *each)
        return {
            **new,
            "sketch_bits": bits,
            "sketch_step": step,
            "sketch_lost": wrong.square().mean(1),
        }

    def build(self, k: Tensor, summary: Tensor, side: Side, rows: RoutedRows = NOT_TOLD) -> Side:
        bits = side["sketch_bits"]
        axes = rows.axes or Axes.of("k", side)
        coefs = axes.coefficients(k, int((bits > 0).sum(-1).max()))
        return {"sketch.t": pack_heads(coefs, bits, side["sketch_step"])}

    def logmass(self, q: Tensor, device: Side, side: Side, bounds: Tensor) -> Tensor:
        packed, bits = device["sketch.t"], side["sketch_bits"]
        return span_masses(packed, bits, *self.turned(q, side), bounds)

    def column_masses(
        self, q: Tensor, codes: CodeColumns, side: Side, bounds: Tensor, owner: Tensor
    ) -> Tensor:
        """As `logmass`, of a sketch that is held as columns."""
        steps, shift = self.turned(q, side)
        used = codes.layout.components
        middle = centre(side["sketch_bits"])[..., None]
        shift = shift + torch.bmm(steps, middle[:, : steps.shape[-1]])
        return column_span_masses(
            codes, steps[..., :used] * codes.layout.lower[0].float()[:, None], shift, bounds, owner
        )

    def turned(self, q: Tensor, side: Side) -> tuple[Tensor, Tensor]:
        """See `two_level.Sketched`."""
        mean, basis = basis_of("k", side)
        scale = 1 / math.sqrt(q.shape[-1])
        turned = torch.bmm(q, basis) * scale
        shift = torch.bmm(q, mean[:, :, None]) * scale
        if "sketch_lost" in side:
            missing = torch.bmm(turned.square(), side["sketch_lost"][:, :, None]) / 2
            shift += missing.clamp_max(MOST_MISSING)
        return turned * side["sketch_step"][:, None], shift

    def shrink(self, device: Side, side: Side) -> tuple[Side, Side] | None:
        """Drop a byte of every row: of the head that loses least by it, the last of its narrowest
        components, which lie at the end of a row. The widest of a head stay."""
        bits, lost = side["sketch_bits"], side["sketch_lost"]
        droppable = []
        for head, row in enumerate(bits):
            used = int((row > 0).sum())
            width = int(row[used - 1]) if used else 0
            if used and width < int(row[0]):
                last = slice(used - 8 // width, used)
                more = float(lost[head, last].sum()) * (1 / GAUSS_MSE[width] - 1)
                droppable.append((more, -used, head, width, last))
        if not droppable:
            return None
        _, _, head, width, last = min(droppable, key=lambda each: each[:3])
        bits, lost = bits.clone(), lost.clone()
        bits[head, last] = 0
        lost[head, last] /= GAUSS_MSE[width]
        parts = split_heads(device["sketch.t"], side["sketch_bits"])
        left = [p[:, : Packing.of(row).row_bytes] for p, row in zip(parts, bits, strict=True)]
        packed = torch.cat(left, -1)[None]
        return {**device, "sketch.t": packed}, {**side, "sketch_bits": bits, "sketch_lost": lost}

    def device_share(self, size: int, span: float) -> float:
        return self.bits / 32


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
        from engine.compression import kernels

        return kernels.span_masses(packed, bits, q, shift, bounds)
    return packed_span_masses(packed, bits, q, shift, bounds)


def choose(
    share: Tensor, cost: Tensor, room: Tensor, uncovered: float, rows: Tensor | None = None
) -> Tensor:
    """The spans that each KV head zooms: by falling share until what is left is small or no room is
    left of what a span takes.

    Args:
        share: [Hkv, F] estimated share of attention that a span draws.
        cost: [C, Hkv, F] what a span takes of each of C kinds of room.  room: [C, Hkv].
        uncovered: what of any row's attention may stay unzoomed; 0 zooms all that fits.
        rows: [Hkv, R, F] the shares of each row, of which `share` is the largest; without, `share`
            is the only row.
    Returns:
        bool [Hkv, F].
    """
    order = share.argsort(dim=-1, descending=True, stable=True)
    taken = cost.gather(-1, order.expand_as(cost))
    fits = ((taken.cumsum(-1) <= room[..., None]) | (taken == 0)).all(0)
    if uncovered > 0:
        drawn = share[:, None] if rows is None else rows
        rising = order.flip(-1)[:, None]
        left = drawn.gather(-1, rising.expand_as(drawn)).cumsum(-1).amax(1).flip(-1)
        fits &= left > uncovered
    return torch.zeros_like(fits).scatter_(-1, order, fits)
