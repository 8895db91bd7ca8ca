"""Rotary position embedding applied to keys and taken back."""

from __future__ import annotations

import torch
from torch import Tensor


def apply_rope(rows: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of rows [..., n, D] by tables [n, D], as RoPE's own are laid out.

    Source: RoFormer (arXiv 2104.09864), component i paired with i + D / 2 as Llama pairs them.
    """
    first, second = rows.chunk(2, -1)
    return rows * cos + torch.cat([-second, first], -1) * sin


def invert_rope(rows: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """What `apply_rope` rotated; tables may be scaled alike, as YaRN's are."""
    return apply_rope(rows, cos, -sin) / (cos.square() + sin.square())


def shift(rows: Tensor, by: int, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotated rows [..., D] as they would be `by` positions later, or earlier where it is negative.

    cos, sin: [m, D] of positions 0 .. m - 1, m > |by|; tables may be scaled, as YaRN's are. A query
    that is turned back by as much sees the rows that were not turned: k(p + d) . q = k(p) . q(-d).
    Source: RoFormer (arXiv 2104.09864), section 3.2: a score depends on the distance alone.
    """
    cos, sin = cos[abs(by)], sin[abs(by)]
    size = (cos.square() + sin.square()).sqrt()
    return apply_rope(rows, cos / size, (sin if by >= 0 else -sin) / size)
