"""Products with packed codes on a GPU that unpack them in registers and never to memory.

Written in Triton, which torch brings along for CUDA; import this file there alone. `products` says
when, and does the same through torch elsewhere; `cpu_kernels` is this for a CPU.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from engine.compression.columns import CodeColumns
from engine.compression.products import Residuals

ROWS, TERMS, LEAST = 64, 32, 16
"""Rows of codes and components that a program multiplies at once; least rows of a product on tensor
cores."""

SPLITS = 16
"""Programs at most that share the rows of a sum."""


def scores(codes: CodeColumns, part: int, q: Tensor) -> Tensor:
    """q . codes of every row, [Hkv, Q, n].  q: float32 [Hkv, Q, R]; see `CodeProducts.scores`."""
    heads, queries, components = q.shape
    out = q.new_empty(heads, queries, len(codes))
    column, mask = codes.layout.places(part)
    tile, at = _tile(queries), 0
    for first, last in codes.ranges:
        count = last - first
        if count:
            _scores_kernel[(triton.cdiv(count, ROWS), heads, triton.cdiv(queries, tile))](
                codes.data, column, mask, q, out, first, count, codes.data.shape[1],
                queries, components, column.shape[1], at, out.shape[2],
                TILE=tile, LINES=ROWS, PARTS=TERMS,
            )  # fmt: skip
        at += count
    return out


def sums(codes: CodeColumns, part: int, weight: Tensor) -> Tensor:
    """Codes of all rows added up by weights float32 [Hkv, Q, n]: [Hkv, Q, R]."""
    heads, queries, rows = weight.shape
    components = codes.layout.components
    column, mask = codes.layout.places(part)
    out = weight.new_zeros(heads, queries, components)
    tile, at = _tile(queries), 0
    for first, last in codes.ranges:
        count = last - first
        if count:
            splits = min(SPLITS, triton.cdiv(count, ROWS))
            each = triton.cdiv(triton.cdiv(count, ROWS), splits) * ROWS
            shares = weight.new_empty(splits, heads, queries, components)
            grid = (triton.cdiv(components, TERMS), heads * triton.cdiv(queries, tile), splits)
            _sums_kernel[grid](
                codes.data, column, mask, weight, shares, first, count,
                codes.data.shape[1], heads, queries, components, column.shape[1], at, rows, each,
                TILE=tile, LINES=ROWS, PARTS=TERMS,
            )  # fmt: skip
            out += shares.sum(0)
        at += count
    return out


def add_residual_scores(some: Residuals, q: Tensor, out: Tensor) -> None:
    """Add q . residuals to [Hkv, Q, n].  q: float32 [Hkv, Q, R]."""
    heads, _, rows = out.shape
    size = q.shape[2]
    share = q.mT.reshape(heads * size, -1)[some.index] * some.amount.float()[:, None]
    place = some.index // size * rows + some.row
    found = share.new_zeros(heads * rows, share.shape[1]).index_add_(0, place, share)
    out += found.view(heads, rows, -1).mT


def add_residual_sums(some: Residuals, weight: Tensor, out: Tensor) -> None:
    """Add residuals to [Hkv, Q, R], weighed by float32 [Hkv, Q, n]."""
    heads, _, size = out.shape
    rows = weight.shape[2]
    place = some.index // size * rows + some.row
    share = weight.mT.reshape(heads * rows, -1)[place] * some.amount.float()[:, None]
    found = share.new_zeros(heads * size, share.shape[1]).index_add_(0, some.index, share)
    out += found.view(heads, size, -1).mT


def _tile(queries: int) -> int:
    """Query rows of one program."""
    return int(min(64, max(LEAST, triton.next_power_of_2(queries))))


def _scores(
    data: tl.tensor,
    column: tl.tensor,
    mask: tl.tensor,
    q: tl.tensor,
    out: tl.tensor,
    first: tl.tensor,
    count: tl.tensor,
    stride: tl.tensor,
    queries: tl.tensor,
    components: tl.tensor,
    size: tl.tensor,
    at: tl.tensor,
    width: tl.tensor,
    TILE: tl.constexpr,
    LINES: tl.constexpr,
    PARTS: tl.constexpr,
) -> None:
    """A program has `LINES` rows of codes of a head and `TILE` query rows."""
    head = tl.program_id(1)
    line = tl.program_id(0) * LINES + tl.arange(0, LINES)
    row = tl.program_id(2) * TILE + tl.arange(0, TILE)
    here, asked = line < count, row < queries
    found = tl.zeros((TILE, LINES), tl.float32)
    for begin in range(0, components, PARTS):
        term = begin + tl.arange(0, PARTS)
        known = term < components
        bits = tl.load(mask + head * size + term, mask=known, other=0).to(tl.int32)
        place = tl.load(column + head * size + term, mask=known, other=0).to(tl.int64) * stride
        inside = known[:, None] & here[None, :]
        held = tl.load(data + place[:, None] + (first + line)[None, :], mask=inside, other=0)
        codes = (held.to(tl.int32) & bits[:, None]).to(tl.float32)
        from_q = q + (head * queries + row[:, None]) * components + term[None, :]
        query = tl.load(from_q, mask=asked[:, None] & known[None, :], other=0.0)
        found += tl.dot(query, codes, input_precision="ieee")
    to = (head * queries + row[:, None]).to(tl.int64) * width + at + line[None, :]
    tl.store(out + to, found, mask=asked[:, None] & here[None, :])


def _sums(
    data: tl.tensor,
    column: tl.tensor,
    mask: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    first: tl.tensor,
    count: tl.tensor,
    stride: tl.tensor,
    heads: tl.tensor,
    queries: tl.tensor,
    components: tl.tensor,
    size: tl.tensor,
    at: tl.tensor,
    width: tl.tensor,
    each: tl.tensor,
    TILE: tl.constexpr,
    LINES: tl.constexpr,
    PARTS: tl.constexpr,
) -> None:
    """A program has `PARTS` components of a head, `TILE` query rows and `each` rows of codes."""
    head = tl.program_id(1) % heads
    row = tl.program_id(1) // heads * TILE + tl.arange(0, TILE)
    term = tl.program_id(0) * PARTS + tl.arange(0, PARTS)
    known, asked = term < components, row < queries
    bits = tl.load(mask + head * size + term, mask=known, other=0).to(tl.int32)
    place = tl.load(column + head * size + term, mask=known, other=0).to(tl.int64) * stride
    found = tl.zeros((TILE, PARTS), tl.float32)
    for step in range(0, each, LINES):
        line = tl.program_id(2) * each + step + tl.arange(0, LINES)
        here = line < count
        inside = known[:, None] & here[None, :]
        held = tl.load(data + place[:, None] + (first + line)[None, :], mask=inside, other=0)
        codes = (held.to(tl.int32) & bits[:, None]).to(tl.float32)
        of = weight + (head * queries + row[:, None]).to(tl.int64) * width + at + line[None, :]
        share = tl.load(of, mask=asked[:, None] & here[None, :], other=0.0)
        found += tl.dot(share, tl.trans(codes), input_precision="ieee")
    split = tl.program_id(2) * heads + head
    to = (split * queries + row[:, None]) * components + term[None, :]
    tl.store(out + to, found, mask=asked[:, None] & known[None, :])


_scores_kernel: Any = triton.jit(_scores)
_sums_kernel: Any = triton.jit(_sums)
