"""Two-level routing: spans are scored first, then the tokens of the best spans only.

A span is bounded by a ball in code space: the mean of its tokens' codes in few bits, how far they
lie from it at most, and how far on average. The first radius bounds every token's score (no needle
can hide behind the mean), the second makes the log-mass of a span nearly right; tokens are scored
where the one or the other is largest. Nothing of this is stored: it follows from the sketch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from engine.compression.packing import Packing, pack_heads, split_heads
from engine.compression.params import BoundQuantizer, LayerParams, needed
from engine.compression.quantize import dequantize, fit_steps
from engine.compression.ranges import blocks_of_spans, gather_ranges, span_ids, span_mean
from engine.compression.routers.sketch import projected_queries, span_masses
from engine.compression.scores import CACHED, NEG_INF, packed_scores
from engine.compression.span_tables import SpanTables

BY_BOUND = 4
"""One in so many of the spans whose tokens are scored is chosen by its bound, the others by their
estimated share of attention: a bound is loose, and an estimate may miss what stands alone."""

SAMPLE = 1 << 14
"""Tokens from which steps and weights are fitted; the bound holds for whatever they are."""

UNREFINED = 1e-12
"""What a share counts for where only the span level says it; see `ranked`."""

UNPACKED = 1 << 13
"""Tokens that are unpacked at once."""


@dataclass(frozen=True)
class Levels:
    """When it pays. beyond: tokens in view from which spans are scored first. refine: share of
    spans whose tokens are scored then."""

    beyond: int = 1 << 17
    refine: float = 0.5


def fit(tables: SpanTables, params: LayerParams, bounds: Tensor) -> LayerParams:
    """The layer's parameters with those of the span level of a sketch. bounds: [S + 1]."""
    bits = needed(params.sketch).bits
    lengths = bounds.diff()
    some = torch.arange(0, len(lengths), max(1, int(bounds[-1]) // SAMPLE), device=bounds.device)
    rows = gather_ranges(bounds[:-1][some], lengths[some])
    local = torch.cat([lengths.new_zeros(1), lengths[some].cumsum(0)])
    coefs = _coefs(needed(tables.sketch)[:, rows], bits)
    mean = span_mean(coefs, torch.ones_like(rows), local)
    spread = (coefs - mean[:, span_ids(local)]).square().mean(1)
    packed = torch.where(bits == 1, 2, bits)  # a mean of signs has more than two levels
    used = bits > 0
    weight = torch.where(used, 1 / spread.clamp_min(1e-6), 0.0)
    return replace(params, bounds=BoundQuantizer(packed, fit_steps(mean, packed), weight))


def build(tables: SpanTables, params: LayerParams, bounds: Tensor) -> SpanTables:
    """The tables with those of the span level; `params` as `fit` completes it."""
    sketch, bits, coarse = needed(tables.sketch), needed(params.sketch).bits, needed(params.bounds)
    components = (bits > 0).sum(-1).clamp_min(1)[:, None]
    rows, radii = [], []
    for first, last in blocks_of_spans(bounds, UNPACKED):
        local = bounds[first : last + 1] - bounds[first]
        coefs = _coefs(sketch[:, bounds[first] : bounds[last]], bits)
        mean = span_mean(coefs, coefs.new_ones(coefs.shape[1]), local)
        packed = pack_heads(mean, coarse.bits, coarse.step)
        kept = _coefs(packed, coarse.bits) * coarse.step[:, None]
        owner = span_ids(local)
        away = torch.bmm((coefs - kept[:, owner]).square(), coarse.weight[..., None])[..., 0]
        most = away.new_zeros(len(away), last - first)
        most = most.scatter_reduce(1, owner.expand_as(away), away, "amax")
        total = torch.zeros_like(most).index_add_(1, owner, away)
        usual = total / local.diff() / components
        # Rounded up, so that the bound stays one.
        radii.append(torch.stack([most, usual], -1).sqrt().mul(1 + 2**-10).half())
        rows.append(packed)
    return replace(tables, means=torch.cat(rows, 1), radii=torch.cat(radii, 1))


def expected_bytes(params: LayerParams, spans: int) -> int:
    """What `fit` and `build` add for so many spans; nothing to what has no sketch."""
    if not spans or params.sketch is None:
        return 0
    bits = params.sketch.bits
    row = int(torch.where(bits == 1, 2, bits).sum()) // 8
    return spans * (row + 4 * len(bits)) + bits.numel() * 9


def span_level(
    q: Tensor, shift: Tensor, tables: SpanTables, params: LayerParams, bounds: Tensor
) -> tuple[Tensor, Tensor]:
    """Each span's log-mass, estimated from its mean and radii only, and its upper bound.

    Args:
        q [Hkv, Q, R], shift [Hkv, Q, 1]: see `projected_queries`.  bounds: [S + 1].
    Returns:
        estimate, bound: [Hkv, Q, S] nats, estimate <= bound, of the sketched scores. The estimate
        is the second-order one of a span whose codes spread alike in all directions, the bound
        is by Cauchy and Schwarz.
    """
    coarse, means, radii = needed(params.bounds), needed(tables.means), needed(tables.radii)
    weight = coarse.weight
    inverse = torch.where(weight > 0, 1 / weight, 0.0)
    power = torch.bmm(q.square(), inverse[..., None])
    reach, half = power.sqrt(), power / 2
    q = q * coarse.step[:, None]
    spans = len(bounds) - 1
    estimate, bound = (q.new_empty(*q.shape[:2], spans) for _ in range(2))
    for here in _pieces(q, spans):
        centre = packed_scores(means[:, here], coarse.bits, q).add_(shift)
        centre.add_(bounds[here.start : here.stop + 1].diff().float().log())
        most, usual = radii[:, None, here].float().unbind(-1)
        torch.add(centre, reach * most, out=bound[..., here])
        torch.minimum(centre + half * usual.square(), bound[..., here], out=estimate[..., here])
    return estimate, bound


def _pieces(q: Tensor, spans: int) -> Iterator[slice]:
    """Spans that are worked on at once for queries [Hkv, Q, R]."""
    step = max(256, CACHED // max(1, q.shape[0] * q.shape[1]))
    for start in range(0, spans, step):
        yield slice(start, min(start + step, spans))


def logmass(
    levels: Levels,
    q: Tensor,
    tables: SpanTables,
    params: LayerParams,
    bounds: Tensor,
) -> tuple[Tensor, Tensor]:
    """As `Router.logmass`, by tokens inside the best spans only.

    Returns:
        [Hkv, Q, S] nats, and bool [Hkv, S]: the spans whose tokens were scored, the same for all
        rows of a head. Of the others it is the span level's estimate, less what it was too much
        for those that were scored, and never more than their bound.
    """
    moved, shift = projected_queries(q, params)
    mass, bound = span_level(moved, shift, tables, params, bounds)
    spans = mass.shape[-1]
    count = min(spans, max(1, math.ceil(levels.refine * spans)))
    total = mass.logsumexp(-1, keepdim=True)
    by_mass, by_bound = (
        torch.cat([(x[..., here] - total).amax(1) for here in _pieces(q, spans)], -1)
        for x in (mass, bound)
    )
    refined = torch.zeros_like(by_mass, dtype=torch.bool)
    for rank, few in ((by_mass, count - count // BY_BOUND), (by_bound, count // BY_BOUND)):
        best = rank.masked_fill(refined, NEG_INF).topk(few, -1).indices
        refined.scatter_(-1, best, True)
    bits = needed(params.sketch).bits
    parts = split_heads(needed(tables.sketch), bits)
    for head, part in enumerate(parts):
        ids = torch.nonzero(refined[head])[:, 0]
        lengths = bounds[ids + 1] - bounds[ids]
        rows = part.index_select(0, gather_ranges(bounds[ids], lengths))
        one = slice(head, head + 1)
        local = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        exact = span_masses(rows[None], bits[one], moved[one], shift[one], local)
        # Spans that were scored both ways tell how far bounds overrate for this row.
        rated = torch.where(exact.isfinite(), exact - mass[one, :, ids], 0.0).mean(-1, keepdim=True)
        mass[one] = torch.minimum(mass[one].add_(rated), bound[one])
        mass[one, :, ids] = exact
    return mass, refined


def ranked(share: Tensor, refined: Tensor) -> Tensor:
    """Shares of attention [Hkv, ..., S] as they are ranked: what was refined bool [Hkv, ..., S]
    comes first, in order, and then the rest, which is still there to be missed."""
    return torch.where(refined, share, share * UNREFINED)


def _coefs(packed: Tensor, bits: Tensor) -> Tensor:
    """Packed rows [1, n, width] in steps, float32 [Hkv, n, R], zero where there are no bits."""
    out = torch.zeros(len(bits), packed.shape[1], bits.shape[1], device=packed.device)
    for head, part in enumerate(split_heads(packed, bits)):
        codes = Packing.of(bits[head]).unpack(part)
        used = codes.shape[1]
        one = torch.ones(used, device=codes.device)
        out[head, :, :used] = dequantize(codes, bits[head, :used], one)
    return out
