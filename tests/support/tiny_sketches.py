"""Sketches of made-up keys, as a fold makes them."""

from __future__ import annotations

import torch

from engine.compression.codecs.base import Side
from engine.compression.codecs.shared_basis import SharedBasis
from engine.compression.ranges import span_mean
from engine.compression.routers.sketch import Router

SIZE = 32


def sketched(router: Router, k: torch.Tensor, bounds: torch.Tensor) -> tuple[Side, Side]:
    """Device tensors and side information, as `encode` makes them."""
    side = SharedBasis(6).fit(k, k)
    side |= router.fit(k, side)
    keys = span_mean(k, torch.ones(k.shape[1]), bounds)
    return router.build(k, keys, side), side


def evenly(tokens: int, length: int) -> torch.Tensor:
    return torch.arange(0, tokens + 1, length)


def queries(seed: int, heads: int, count: int) -> torch.Tensor:
    return 2 * torch.randn(heads, count, SIZE, generator=torch.Generator().manual_seed(seed))
