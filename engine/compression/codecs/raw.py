"""Rows as they are: the reference every codec is held against."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.compression.codecs.base import Records, RowCodec, Side, interleave
from engine.compression.codecs.layer_basis import LayerAxes
from engine.compression.statistics import LayerStatistics


@dataclass(frozen=True)
class Raw(RowCodec):
    """Rows as they are, in the model's own dtype. The reference every codec is held against."""

    def fit(self, k: Tensor, v: Tensor, statistics: LayerStatistics | None = None) -> Side:
        return {"rows": torch.empty(0, k.shape[-1], dtype=k.dtype)}

    def encode(
        self, k: Tensor, v: Tensor, bounds: Tensor, side: Side, axes: LayerAxes | None = None
    ) -> Records:
        rows = torch.cat([k, v], -1).contiguous().view(torch.uint8)
        return interleave(rows, bounds)

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
