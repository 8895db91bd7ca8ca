"""Products with packed codes on a CPU that unpack them in registers and never to memory.

numba compiles them and keeps what it compiled; import this file where it is installed (the extra
`cpu`). `products` says when, and does the same through torch elsewhere. They use one thread: a
layer takes less than waking another.

Arrays that the compiled ones share: data uint8 [width, N], columns of packed codes of which `count`
rows from `first` on are meant; column int32 [Hkv, R], the column of each component, and mask uint8
[Hkv, R], its bits in there, taken as they stand and not shifted, R a multiple of four.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from engine.compression.columns import CodeColumns
from engine.compression.products import Residuals

BLOCK = 512
"""Rows whose codes are unpacked at once, so that they stay in the nearest cache."""

_compiled = numba.njit(nogil=True, fastmath=True, cache=True, boundscheck=False)


def scores(codes: CodeColumns, part: int, q: Tensor) -> Tensor:
    """q . codes of every row, [Hkv, Q, n].  q: float32 [Hkv, Q, R]; see `CodeProducts.scores`."""
    column, mask = (x.numpy() for x in codes.layout.places(part))
    out = q.new_zeros(*q.shape[:2], len(codes))
    filled = torch.nn.functional.pad(q, (0, column.shape[1] - q.shape[2])).numpy()
    data, at = codes.data.numpy(), 0
    for first, last in codes.ranges:
        _add_scores(data, first, last - first, column, mask, filled, out.numpy(), at)
        at += last - first
    return out


def sums(codes: CodeColumns, part: int, weight: Tensor) -> Tensor:
    """Codes of all rows added up by weights float32 [Hkv, Q, n]: [Hkv, Q, R]."""
    column, mask = (x.numpy() for x in codes.layout.places(part))
    out = weight.new_zeros(*weight.shape[:2], codes.layout.components)
    data, weighed, at = codes.data.numpy(), weight.numpy(), 0
    for first, last in codes.ranges:
        _add_sums(data, first, last - first, column, mask, weighed, out.numpy(), at)
        at += last - first
    return out


def add_residual_scores(some: Residuals, q: Tensor, out: Tensor) -> None:
    """Add q . residuals to [Hkv, Q, n].  q: float32 [Hkv, Q, R]."""
    place, amount = some.place.numpy(), some.amount.float().numpy()
    _add_residual_scores(place, amount, some.shift, q.numpy(), out.numpy())


def add_residual_sums(some: Residuals, weight: Tensor, out: Tensor) -> None:
    """Add residuals to [Hkv, Q, R], weighed by float32 [Hkv, Q, n]."""
    place, amount = some.place.numpy(), some.amount.float().numpy()
    _add_residual_sums(place, amount, some.shift, weight.numpy(), out.numpy())


@_compiled
def _add_scores(
    data: Any, first: int, count: int, column: Any, mask: Any, q: Any, out: Any, at: int
) -> None:
    """Add q . codes to `out` [Hkv, Q, n] from its column `at` on.  q: float32 [Hkv, Q, R]."""
    heads, queries, size = q.shape
    a, b = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    c, d = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    for h in range(heads):
        for done in range(0, count, BLOCK):
            rows = min(BLOCK, count - done)
            low = first + done
            for r in range(0, size, 4):
                _unpack(data[column[h, r], low : low + rows], mask[h, r], a)
                _unpack(data[column[h, r + 1], low : low + rows], mask[h, r + 1], b)
                _unpack(data[column[h, r + 2], low : low + rows], mask[h, r + 2], c)
                _unpack(data[column[h, r + 3], low : low + rows], mask[h, r + 3], d)
                for g in range(queries):
                    qa, qb, qc, qd = q[h, g, r], q[h, g, r + 1], q[h, g, r + 2], q[h, g, r + 3]
                    part = out[h, g, at + done : at + done + rows]
                    for i in range(rows):
                        part[i] += qa * a[i] + qb * b[i] + qc * c[i] + qd * d[i]


@_compiled
def _add_sums(
    data: Any, first: int, count: int, column: Any, mask: Any, weight: Any, out: Any, at: int
) -> None:
    """Add codes to `out` [Hkv, Q, R], weighed by `weight` float32 [Hkv, Q, n] from its column `at`
    on."""
    heads, queries, size = out.shape
    a = np.empty(BLOCK, np.float32)
    for h in range(heads):
        for done in range(0, count, BLOCK):
            rows = min(BLOCK, count - done)
            low = first + done
            for r in range(size):
                _unpack(data[column[h, r], low : low + rows], mask[h, r], a)
                for g in range(queries):
                    each = weight[h, g, at + done : at + done + rows]
                    total = np.float32(0)
                    for i in range(rows):
                        total += each[i] * a[i]
                    out[h, g, r] += total


@_compiled
def _add_residual_scores(place: Any, amount: Any, shift: int, q: Any, out: Any) -> None:
    """Add q . residuals to `out` [Hkv, Q, n].

    Args:
        place, amount, shift: see `products.Residuals`.  q: float32 [Hkv, Q, R].
    """
    queries, size = q.shape[1:]
    for m in range(len(place)):
        head, component = divmod(place[m] >> shift, size)
        row = place[m] & ((1 << shift) - 1)
        for g in range(queries):
            out[head, g, row] += q[head, g, component] * amount[m]


@_compiled
def _add_residual_sums(place: Any, amount: Any, shift: int, weight: Any, out: Any) -> None:
    """Add residuals to `out` [Hkv, Q, R], weighed by `weight` float32 [Hkv, Q, n].

    place, amount, shift: see `products.Residuals`.
    """
    queries, size = out.shape[1:]
    for m in range(len(place)):
        head, component = divmod(place[m] >> shift, size)
        row = place[m] & ((1 << shift) - 1)
        for g in range(queries):
            out[head, g, component] += weight[head, g, row] * amount[m]


@_compiled
def _unpack(column: Any, mask: Any, out: Any) -> None:
    for i in range(len(column)):
        out[i] = np.float32(np.int32(column[i] & mask))
