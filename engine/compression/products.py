"""Products of queries and of weights with packed codes.

On a CPU with numba (the extra `cpu`) a few query rows are multiplied with codes that are unpacked
in registers; many rows, other devices and other installations unpack them once through torch. Both
give the same up to the order of sums.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from importlib.util import find_spec

import torch
from torch import Tensor

from engine.compression.columns import CodeColumns

FEW = 24
"""Query rows of a KV head for which unpacking in registers is the quicker way."""


@cache
def has_kernels() -> bool:
    """Whether numba is there to compile `cpu_kernels`."""
    return find_spec("numba") is not None


def in_registers(device: torch.device, queries: int) -> bool:
    """Whether products with so many query rows of a head never unpack codes to memory."""
    return device.type == "cpu" and queries <= FEW and has_kernels()


@dataclass(frozen=True, eq=False)
class Residuals:
    """What some codes of one part have beside them. place: int32 [M], each (head * R + component)
    << shift | row; amount: float16 [M], in codes as they unpack. shift: bits that a row needs."""

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

    def and_more(self, index: Tensor, row: Tensor, amount: Tensor) -> Residuals:
        place = torch.cat([self.place, ((index << self.shift) | row).to(self.place)])
        return Residuals(place, torch.cat([self.amount, amount.half()]), self.shift)

    def where(self, kept: Tensor) -> Residuals:
        """Those where bool [M] holds."""
        return Residuals(self.place[kept], self.amount[kept], self.shift)

    def add_to(self, codes: Tensor) -> None:
        """Add them to codes [Hkv, R, n]."""
        codes.view(-1).index_add_(0, self.index * codes.shape[-1] + self.row, self.amount.float())


@dataclass(frozen=True, eq=False)
class CodeProducts:
    """Products with the codes of n rows, of one forward: many query rows unpack them once.

    codes: of P parts, such as keys and values.  residuals: of each part; none for none.
    """

    codes: CodeColumns
    residuals: tuple[Residuals, ...] = ()

    def scores(self, part: int, q: Tensor) -> Tensor:
        """q . codes of every row [Hkv, Q, n].  q: float32 [Hkv, Q, R], per code as it unpacks."""
        if not in_registers(self.codes.data.device, q.shape[1]):
            return torch.bmm(q, self._unpacked(part))
        from engine.compression import cpu_kernels

        (column, mask), data = self.codes.layout.places(part), self.codes.data.numpy()
        out = q.new_zeros(*q.shape[:2], len(self.codes))
        padded = torch.nn.functional.pad(q, (0, column.shape[-1] - q.shape[-1])).numpy()
        at = 0
        for first, last in self.codes.ranges:
            cpu_kernels.add_scores(data, first, last - first, column, mask, padded, out.numpy(), at)
            at += last - first
        for some in self.residuals[part : part + 1]:
            place, amount = some.place.numpy(), some.amount.float().numpy()
            cpu_kernels.add_residual_scores(place, amount, some.shift, q.numpy(), out.numpy())
        return out

    def sums(self, part: int, weight: Tensor) -> Tensor:
        """Codes of all rows added up by weights float32 [Hkv, Q, n]: [Hkv, Q, R]."""
        if not in_registers(self.codes.data.device, weight.shape[1]):
            return torch.bmm(weight, self._unpacked(part).mT)
        from engine.compression import cpu_kernels

        (column, mask), data = self.codes.layout.places(part), self.codes.data.numpy()
        out = weight.new_zeros(*weight.shape[:2], self.codes.layout.components)
        weighed, at = weight.contiguous().numpy(), 0
        for first, last in self.codes.ranges:
            cpu_kernels.add_sums(data, first, last - first, column, mask, weighed, out.numpy(), at)
            at += last - first
        for some in self.residuals[part : part + 1]:
            place, amount = some.place.numpy(), some.amount.float().numpy()
            cpu_kernels.add_residual_sums(place, amount, some.shift, weighed, out.numpy())
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
