"""Attention over coded rows without decoding them: queries go into the basis once, outputs come
back through it once.

A coded key is k = mean + B c with c = (code + centre) * step, so that q.k is q.mean + (B'q * step)
.(code + centre); a sum of coded values is that of their codes, turned back by the same few numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.compression.codecs.base import Side
from engine.compression.codecs.layer_basis import basis_of
from engine.compression.columns import CodeLayout, centre


@dataclass(frozen=True, eq=False)
class CodeSpace:
    """The keys and values of a layer's coded rows. side: the layer's. layout: of two parts."""

    side: Side
    layout: CodeLayout

    def query(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Queries float32 [Hkv, Q, D] -> what they are worth per unpacked code [Hkv, Q, R], and the
        nats [Hkv, Q, 1] that every row has beside."""
        mean, basis = basis_of("k", self.side)
        scale = 1 / math.sqrt(q.shape[-1])
        used = self.layout.components
        steps = torch.bmm(q, widened(basis, used)) * scale
        steps *= widened(self.side["k_step"], used)[:, None]
        beside = torch.bmm(q, mean[:, :, None]) * scale
        beside += torch.bmm(steps, widened(centre(self.side["k_bits"]), used)[..., None])
        return steps * self.layout.lower[0].float()[:, None], beside

    def value(self, sums: Tensor, weight: Tensor) -> Tensor:
        """Weighted sums of unpacked codes of values [Hkv, Q, R] and the sums of the weights [Hkv,
        Q, 1] -> coefficients [Hkv, Q, D'] in the basis of the values, without the mean."""
        coefs = sums * self.layout.lower[1].float()[:, None]
        return _coefficients(coefs, weight, "v", self.side)


@dataclass(frozen=True, eq=False)
class SpanValues:
    """Coded values of span summaries; see `summaries.pack_values`."""

    side: Side
    layout: CodeLayout

    def value(self, sums: Tensor, weight: Tensor) -> Tensor:
        """As `CodeSpace.value`, of the codes of span values."""
        coefs = sums * self.layout.lower[0].float()[:, None]
        return _coefficients(coefs, weight, "value", self.side)


def _coefficients(coefs: Tensor, weight: Tensor, name: str, side: Side) -> Tensor:
    bits, step = side[f"{name}_bits"], side[f"{name}_step"]
    middle = centre(bits)[:, None]
    return (widened(coefs, bits.shape[-1]) + weight * middle) * step[:, None]


def from_basis(coefs: Tensor, weight: Tensor, side: Side) -> Tensor:
    """Coefficients [Hkv, Q, D'] of values and sums of weights [Hkv, Q, 1] -> [Hkv, Q, D]."""
    mean, basis = basis_of("v", side)
    return torch.bmm(widened(coefs, basis.shape[-1]), basis.mT) + weight * mean[:, None]


def widened(x: Tensor, size: int) -> Tensor:
    """The last dimension cut or filled with zeros to `size`."""
    have = x.shape[-1]
    return x[..., :size] if have >= size else torch.nn.functional.pad(x, (0, size - have))
