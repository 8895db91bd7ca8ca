"""q.K and weights.V, computed on packed low-bit codes.

For a few query rows a kernel unpacks the codes in registers: on a CPU by numba (the extra `cpu`),
on a GPU by Triton. Without such a kernel, and for many rows, torch unpacks them once to memory.
The results differ only in the order of sums.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from engine.compression.columns import CodeColumns

FEW = 24
"""Query rows of a KV head for which unpacking in registers is the quicker way."""


COMPILERS = {"cpu": ("cpu_kernels", "numba"), "cuda": ("gpu_kernels", "triton")}
"""By kind of device: the module of kernels, and what compiles them."""


@cache
def has_kernels(kind: str) -> bool:
    """Whether codes can be unpacked in registers on a kind of device."""
    return kind in COMPILERS and find_spec(COMPILERS[kind][1]) is not None


def in_registers(device: torch.device, queries: int) -> bool:
    """Whether products with so many query rows of a head never unpack codes to memory."""
    return queries <= FEW and has_kernels(device.type)


def _kernels(device: torch.device, queries: int) -> Any:
    """The module to multiply so many query rows with, None for torch alone."""
    if not in_registers(device, queries):
        return None
    return import_module(f"engine.compression.{COMPILERS[device.type][0]}")


@dataclass(frozen=True, eq=False)
class Residuals:
    """Sparse corrections to codes with a large rounding error, of the keys or of the values.

    place: int32 [M], int64 where a layer is too large for it, each (head * R + component) << shift
    | row. amount: float16 [M], in codes as they unpack. shift: how many low bits of `place` hold
    the row.
    """

    place: Tensor
    amount: Tensor
    shift: int

    @classmethod
    def none(cls, heads: int, components: int, rows: int, device: torch.device) -> Residuals:
        """Of codes [heads, components, rows]."""
        shift = max(rows - 1, 0).bit_length()
        fits = (heads * components) << shift < 1 << 31
        kind = torch.int32 if fits else torch.int64
        place = torch.zeros(0, dtype=kind, device=device)
        return cls(place, torch.zeros(0, dtype=torch.float16, device=device), shift)

    @property
    def index(self) -> Tensor:
        """int64 [M], head * R + component."""
        return (self.place >> self.shift).long()

    @property
    def row(self) -> Tensor:
        """int64 [M]."""
        return (self.place & ((1 << self.shift) - 1)).long()

    def appended(self, index: Tensor, row: Tensor, amount: Tensor) -> Residuals:
        place = torch.cat([self.place, ((index << self.shift) | row).to(self.place)])
        return Residuals(place, torch.cat([self.amount, amount.half()]), self.shift)

    def masked(self, kept: Tensor) -> Residuals:
        """Those where bool [M] holds."""
        return Residuals(self.place[kept], self.amount[kept], self.shift)

    def add_to(self, codes: Tensor) -> None:
        """Add them to codes [Hkv, R, n]."""
        codes.view(-1).index_add_(0, self.index * codes.shape[-1] + self.row, self.amount.float())


@dataclass(frozen=True, eq=False)
class CodeProducts:
    """Products with the codes of n rows. It lives for one forward, so that unpacking is cached.

    codes: of one or more parts, such as keys and values.  residuals: of each part, or empty.
    """

    codes: CodeColumns
    residuals: tuple[Residuals, ...] = ()

    def scores(self, part: int, q: Tensor) -> Tensor:
        """q . codes of every row [Hkv, Q, n].  q: float32 [Hkv, Q, R], already
        multiplied by `CodeLayout.lower`."""
        kernels = _kernels(self.codes.data.device, q.shape[1])
        if kernels is None:
            return torch.bmm(q, self._unpacked(part))
        q = q.contiguous()
        out: Tensor = kernels.scores(self.codes, part, q)
        if self.residuals:
            kernels.add_residual_scores(self.residuals[part], q, out)
        return out

    def sums(self, part: int, weight: Tensor) -> Tensor:
        """weight . codes over all rows, [Hkv, Q, R].  weight: float32 [Hkv, Q, n]."""
        kernels = _kernels(self.codes.data.device, weight.shape[1])
        if kernels is None:
            return torch.bmm(weight, self._unpacked(part).mT)
        weight = weight.contiguous()  # once: a layer's weights are a part of its softmax
        out: Tensor = kernels.sums(self.codes, part, weight)
        if self.residuals:
            kernels.add_residual_sums(self.residuals[part], weight, out)
        return out

    def working_bytes(self, queries: int) -> int:
        """Bytes that products with so many query rows of a head take beside these codes."""
        if in_registers(self.codes.data.device, queries):
            return 0
        return self.codes.layout.working_bytes(len(self.codes))

    def _unpacked(self, part: int) -> Tensor:
        """float32 [Hkv, R, n]."""
        heads = self.codes.layout.lower.shape[1]
        return self._all_unpacked[part * heads : (part + 1) * heads]

    @cached_property
    def _all_unpacked(self) -> Tensor:
        codes = self.codes.unpack()
        for part, some in enumerate(self.residuals):
            some.add_to(codes.view(len(self.residuals), -1, *codes.shape[1:])[part])
        return codes
