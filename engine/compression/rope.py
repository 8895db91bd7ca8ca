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
