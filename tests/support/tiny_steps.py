"""A step of two query heads per KV head, for tests of what watches steps. Not a test."""

from __future__ import annotations

import torch

from engine.attention.step import Step


def step(
    tokens: list[list[int]],
    weight: list[list[list[float]]],
    zoomed: list[list[int]] | None = None,
    layer: int = 0,
) -> Step:
    """A step of `len(tokens)` KV heads and one row; spans 10, 20 and 30 could zoom, which begin at
    tokens 100, 200 and 300 and have ten each."""
    heads, spans = len(tokens), torch.tensor([10, 20, 30])
    share = torch.tensor([[0.5, 0.3, 0.2]]).expand(heads, -1)
    held = [torch.isin(spans, torch.tensor(z, dtype=torch.int64)) for z in zoomed or [[]] * heads]
    return Step(
        layer=layer,
        spans=spans,
        starts=10 * spans,
        lengths=torch.full((3,), 10),
        share=share,
        zoomed=torch.stack(held),
        summary=torch.zeros(heads, 2, 3),
        tokens=torch.tensor(tokens, dtype=torch.int32),
        weight=torch.tensor(weight),
        total=torch.tensor(weight) * 2,
    )
