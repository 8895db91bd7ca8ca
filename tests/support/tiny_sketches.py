"""Sketches of made-up keys, as compression makes them."""

from __future__ import annotations

import torch

from engine.compression.codecs.shared_basis import SharedBasis
from engine.compression.params import LayerParams
from engine.compression.ranges import span_mean
from engine.compression.routers.base import Router
from engine.compression.span_tables import SpanTables

SIZE = 32


def sketched(
    router: Router, k: torch.Tensor, bounds: torch.Tensor
) -> tuple[SpanTables, LayerParams]:
    """Span tables and parameters, as `encode` makes them."""
    params = router.fit(k, SharedBasis(6).fit(k, k))
    keys = span_mean(k, torch.ones(k.shape[1]), bounds)
    return router.build(k, keys, params), params


def evenly(tokens: int, length: int) -> torch.Tensor:
    return torch.arange(0, tokens + 1, length)


def queries(seed: int, heads: int, count: int) -> torch.Tensor:
    return 2 * torch.randn(heads, count, SIZE, generator=torch.Generator().manual_seed(seed))
