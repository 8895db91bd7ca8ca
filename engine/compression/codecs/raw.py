"""Rows as they are: the reference every codec is held against."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.compression.codecs.base import NOTHING, Records, Side, Unallocated, interleave


@dataclass(frozen=True)
class Raw(Unallocated):
    """Rows as they are, in the model's own dtype. The reference every codec is held against."""

    def fit(self, k: Tensor, v: Tensor, given: Side = NOTHING) -> Side:
        return {"rows": torch.empty(0, k.shape[-1], dtype=k.dtype)}

    def encode(self, k: Tensor, v: Tensor, bounds: Tensor, side: Side) -> Records:
        rows = torch.cat([k, v], -1).contiguous().view(torch.uint8)
        return interleave(list(rows), bounds)

    def decode(
        self, head: int, payload: Tensor, offsets: Tensor, lengths: Tensor, side: Side
    ) -> tuple[Tensor, Tensor]:
        size, dtype = side["rows"].shape[-1], side["rows"].dtype
        rows = payload.view(dtype).reshape(-1, 2, size)
        return rows[:, 0].float(), rows[:, 1].float()

    def fits(self, sizes: Tensor, lengths: Tensor, side: Side) -> bool:
        row = 2 * side["rows"].shape[-1] * side["rows"].element_size()
        return bool((sizes == row * lengths).all())

    def host_share(self, size: int, span: float) -> float:
        return 1.0
