"""Rows in eight bits with a scale of their own."""

from __future__ import annotations

import torch
from torch import Tensor


def to_eight_bits(x: Tensor) -> Tensor:
    """Rows [..., m] -> bytes [..., 2 + m]: a float16 scale and int8 values."""
    scale = (x.abs().amax(-1, keepdim=True) / 127).clamp(1e-7, 65000).half()
    values = (x / scale.float()).round().clamp(-127, 127).to(torch.int8)
    return torch.cat([scale.view(torch.uint8), values.view(torch.uint8)], -1)


def from_eight_bits(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Bytes [n, 2, 2 + D] of k and v as `to_eight_bits` gives them -> k, v [n, D]."""
    scale = rows[..., :2].contiguous().view(torch.float16).float()
    values = rows[..., 2:].contiguous().view(torch.int8).float() * scale
    return values[:, 0], values[:, 1]


def _scaled(payload: Tensor, at: Tensor, widths: Tensor, most: int, live: Tensor) -> Tensor:
    """Scaled int8 rows at bytes `at` [M, R], each widths[m] long -> float32 [M, R, most]."""
    place = torch.where(live, at, 0)
    scale = payload[place[..., None] + torch.arange(2, device=at.device)]
    scale = scale.contiguous().view(torch.float16).float()
    across = torch.arange(most, device=at.device)
    inside = live[..., None] & (across < widths[:, None, None])
    values = payload[torch.where(inside, place[..., None] + 2 + across, 0)].view(torch.int8)
    return torch.where(inside, values.float() * scale, 0.0)


def _floats(payload: Tensor, at: Tensor, widths: Tensor, most: int, live: Tensor) -> Tensor:
    """float32 rows at bytes `at` [M, R], each widths[m] values long -> [M, R, most]."""
    across = torch.arange(4 * most, device=at.device)
    inside = live[..., None] & (across < 4 * widths[:, None, None])
    values = payload[torch.where(inside, at[..., None] + across, 0)]
    return torch.where(inside, values, 0).contiguous().view(torch.float32)
