"""Sketches scored on a GPU in one kernel: packed rows in, the log-mass of spans out.

Written in Triton, which torch brings along for CUDA; import this file there alone. The reference
is `scores.packed_span_masses`, which computes the same on any device; `routers.sketch` says which
is used when.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.compression.packing import code_places

LANES = 32
"""Spans that one program scores side by side."""

MOST_ROWS = 64
"""Query rows of one program at most."""

LEAST = 16
"""A product on tensor cores has at least so many rows and terms."""


def span_masses(packed: Tensor, bits: Tensor, q: Tensor, shift: Tensor, bounds: Tensor) -> Tensor:
    """The log of the sum of exp(q . codes) over each span, with no score of a token in memory.

    Args:
        packed: uint8 [1, N, width], as `packing.pack_heads` gives it, on a CUDA device.
        bits: uint8 [Hkv, R].  q: float32 [Hkv, Q, R].
        shift: [Hkv, Q, 1].
        bounds: int64 [S + 1], no empty span.
    Returns:
        float32 [Hkv, Q, S]. Each span has a maximum of its own, so that none is lost however
        little it weighs; `packed_span_masses` gives -inf where it cannot matter.
    """
    heads, rows, components = q.shape
    spans = len(bounds) - 1
    out = q.new_empty(heads, rows, spans)
    if not out.numel():
        return out
    middle = torch.where(bits > 0, 0.5 - torch.pow(2.0, bits.float() - 1), 0.0)
    shift = shift + torch.bmm(q, middle[..., None])
    tile = min(MOST_ROWS, max(LEAST, triton.next_power_of_2(rows)))
    grid = (triton.cdiv(spans, LANES), heads, triton.cdiv(rows, tile))
    _kernel[grid](
        packed.contiguous(),
        code_places(bits),
        q.contiguous(),
        shift.contiguous(),
        bounds.contiguous(),
        out,
        spans,
        rows,
        packed.shape[-1],
        components,
        TERMS=max(LEAST, triton.next_power_of_2(components)),
        TILE=tile,
        SPANS=LANES,
    )
    return out


def _span_masses(
    packed: tl.tensor,
    places: tl.tensor,
    queries: tl.tensor,
    shift: tl.tensor,
    bounds: tl.tensor,
    out: tl.tensor,
    spans: tl.tensor,
    rows: tl.tensor,
    width: tl.tensor,
    components: tl.tensor,
    TERMS: tl.constexpr,
    TILE: tl.constexpr,
    SPANS: tl.constexpr,
) -> None:
    """A program has `SPANS` spans of a head and `TILE` query rows. Each lane walks over the tokens
    of its span, so that a span's sum stays in its lane and nothing is padded in memory."""
    head = tl.program_id(1)
    span = tl.program_id(0) * SPANS + tl.arange(0, SPANS)
    row = tl.program_id(2) * TILE + tl.arange(0, TILE)
    term = tl.arange(0, TERMS)
    # Where each component's code lies in a row of bytes: which byte, how far up, under which mask.
    known = term < components
    place = places + head * 3 * components + term
    byte = tl.load(place, mask=known, other=0)
    up = tl.load(place + components, mask=known, other=0)
    mask = tl.load(place + 2 * components, mask=known, other=0)
    asked = (row[:, None] < rows) & known[None, :]
    at = (head * rows + row[:, None]) * components + term[None, :]
    query = tl.load(queries + at, mask=asked, other=0.0)
    beside = tl.load(shift + head * rows + row, mask=row < rows, other=0.0)
    inside = span < spans
    first = tl.load(bounds + span, mask=inside, other=0)
    length = tl.load(bounds + span + 1, mask=inside, other=0) - first
    top = tl.full((TILE, SPANS), float("-inf"), tl.float32)
    mass = tl.zeros((TILE, SPANS), tl.float32)
    for step in range(0, tl.max(length, 0).to(tl.int32)):
        live = step < length
        line = packed + (first + step)[:, None] * width + byte[None, :]
        held = tl.load(line, mask=live[:, None] & known[None, :], other=0).to(tl.int32)
        codes = ((held >> up[None, :]) & mask[None, :]).to(tl.float32)
        score = tl.dot(query, tl.trans(codes), input_precision="ieee")
        higher = tl.where(live[None, :], tl.maximum(top, score), top)
        gained = tl.where(live[None, :], tl.exp(score - higher), 0.0)
        mass = tl.where(live[None, :], mass * tl.exp(top - higher) + gained, mass)
        top = higher
    to = (head * rows + row[:, None]).to(tl.int64) * spans + span[None, :]
    tl.store(
        out + to, top + tl.log(mass) + beside[:, None], mask=(row[:, None] < rows) & inside[None, :]
    )


_kernel: Any = triton.jit(_span_masses)
