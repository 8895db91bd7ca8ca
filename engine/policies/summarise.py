"""What stands for a span that is not zoomed: one key and one value per KV head.

The key side of a summary belongs to the router; here are the weights of the mean and how the
values are kept on the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from engine import ops
from engine.policies.codec import Side


class Summariser(Protocol):
    def summarise(self, rows: Tensor, surprisal: Tensor, bounds: Tensor) -> Tensor:
        """rows [Hkv, n, D], surprisal [n], bounds [S + 1] -> [Hkv, S, D] float32."""
        ...

    @property
    def value_bits(self) -> int:
        """16: span values in half precision. 4: coefficients in the codec's value basis."""
        ...


@dataclass(frozen=True)
class SurprisalMean:
    """The published summary: a mean weighted by each token's surprisal within its span.

    Source: SeKV (arXiv 2606.31145), section 3.2.
    """

    value_bits: int = 16

    def summarise(self, rows: Tensor, surprisal: Tensor, bounds: Tensor) -> Tensor:
        return ops.span_mean(rows, surprisal, bounds)


@dataclass(frozen=True)
class Mean:
    """The plain mean of a span."""

    value_bits: int = 16

    def summarise(self, rows: Tensor, surprisal: Tensor, bounds: Tensor) -> Tensor:
        return ops.span_mean(rows, torch.ones_like(surprisal), bounds)


def fit_values(values: Tensor, bits: int, side: Side) -> Side:
    """Side information for span values [Hkv, S, D] of the first window."""
    if bits == 16:
        return {}
    coefs = torch.bmm(values - side["v_mean"].float()[:, None], side["v_basis"].float())
    four = torch.full((values.shape[-1],), 4, dtype=torch.uint8)
    return {"value_step": torch.stack([ops.fit_steps(c, four) for c in coefs])}


def pack_values(values: Tensor, bits: int, side: Side) -> Side:
    """Span values [Hkv, S, D] as device tensors."""
    if bits == 16:
        return {"value.s": values.half()}
    coefs = torch.bmm(values - side["v_mean"].float()[:, None], side["v_basis"].float())
    size = values.shape[-1]
    codes, _ = ops.quantise(
        coefs, torch.full((size,), 4, dtype=torch.uint8), side["value_step"][:, None]
    )
    return {"value.s": ops.Packing((0, size, 0, 0)).pack(codes)}


def unpack_values(device: Side, side: Side) -> Tensor:
    """Device tensors -> span values [Hkv, S, D] float32."""
    packed = device["value.s"]
    if packed.dtype != torch.uint8:
        return packed.float()
    step = side["value_step"]
    codes = ops.Packing((0, step.shape[-1], 0, 0)).unpack(packed).float()
    coefs = (codes - 7.5) * step[:, None]
    return torch.baddbmm(side["v_mean"].float()[:, None], coefs, side["v_basis"].float().mT)
