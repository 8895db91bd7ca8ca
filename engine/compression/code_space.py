"""Attention over coded rows without decoding them: queries go into the basis once, outputs come
back through it once.

A coded key is k = mean + B c with c = (code + centre) * step, so that q.k is q.mean + (B'q * step)
.(code + centre); a sum of coded values is that of their codes, projected back by the same
numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from engine.compression.columns import CodeLayout, centre
from engine.compression.params import Basis, Codes, Quantizer


@dataclass(frozen=True, eq=False)
class CodeSpace:
    """The keys and values of a layer's coded rows. keys: their basis. layout: of two parts."""

    keys: Basis
    codes: Codes
    layout: CodeLayout

    def query(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Queries float32 [Hkv, Q, D] -> nats per unpacked code [Hkv, Q, R], and the
        nats [Hkv, Q, 1] that every row has beside."""
        mean, basis = self.keys.unpacked()
        q = q / math.sqrt(q.shape[-1])
        lowered, middle = self._of_keys
        projected = torch.bmm(q, widened(basis, self.layout.components))
        return projected * lowered, torch.bmm(q, mean[:, :, None]) + torch.bmm(projected, middle)

    @cached_property
    def _of_keys(self) -> tuple[Tensor, Tensor]:
        """The step of each unpacked code [Hkv, 1, R], and its middle in nats [Hkv, R, 1]."""
        lowered, middle = _steps(self.codes.keys, self.layout.lower[0])
        return lowered, middle.mT

    def value(self, sums: Tensor, weight: Tensor) -> Tensor:
        """Weighted sums of unpacked codes of values [Hkv, Q, R] and the sums of the weights [Hkv,
        Q, 1] -> coefficients [Hkv, Q, D'] in the basis of the values, without the mean."""
        lowered, middle = self._of_values
        return torch.addcmul(weight * middle, sums, lowered)

    @cached_property
    def _of_values(self) -> tuple[Tensor, Tensor]:
        return _steps(self.codes.values, self.layout.lower[1])


@dataclass(frozen=True, eq=False)
class SpanValues:
    """Coded values of span summaries; see `summaries.pack_values`."""

    quantizer: Quantizer
    layout: CodeLayout

    def value(self, sums: Tensor, weight: Tensor) -> Tensor:
        """As `CodeSpace.value`, of the codes of span values."""
        lowered, middle = self._steps
        return torch.addcmul(weight * middle, sums, lowered)

    @cached_property
    def _steps(self) -> tuple[Tensor, Tensor]:
        return _steps(self.quantizer, self.layout.lower[0])


def _steps(quantizer: Quantizer, lower: Tensor) -> tuple[Tensor, Tensor]:
    """The step of each unpacked code and its middle, [Hkv, 1, R]."""
    used = lower.shape[-1]
    step = widened(quantizer.step.float(), used)
    middle = widened(centre(quantizer.bits), used) * step
    return (step * lower.float())[:, None], middle[:, None]


def from_basis(coefs: Tensor, weight: Tensor, values: Basis) -> Tensor:
    """Coefficients [Hkv, Q, D'] of values and sums of weights [Hkv, Q, 1] -> [Hkv, Q, D]."""
    mean, basis = values.unpacked()
    return torch.bmm(widened(coefs, basis.shape[-1]), basis.mT) + weight * mean[:, None]


def widened(x: Tensor, size: int) -> Tensor:
    """The last dimension cut or filled with zeros to `size`."""
    have = x.shape[-1]
    return x[..., :size] if have >= size else torch.nn.functional.pad(x, (0, size - have))
