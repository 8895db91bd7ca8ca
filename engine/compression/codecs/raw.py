"""Rows as they are: the reference every codec is held against."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.compression.codecs.base import Records, RowCodec, interleave
from engine.compression.layer_basis import LayerAxes
from engine.compression.params import LayerParams, RowFormat, needed
from engine.compression.statistics import LayerStatistics


@dataclass(frozen=True)
class Raw(RowCodec):
    """Rows as they are, in the model's own dtype. The reference every codec is held against."""

    def fit(self, k: Tensor, v: Tensor, statistics: LayerStatistics | None = None) -> LayerParams:
        return LayerParams(rows=RowFormat(k.shape[-1], k.dtype))

    def encode(
        self,
        k: Tensor,
        v: Tensor,
        bounds: Tensor,
        params: LayerParams,
        axes: LayerAxes | None = None,
    ) -> Records:
        rows = torch.cat([k, v], -1).contiguous().view(torch.uint8)
        return interleave(rows, bounds)

    def decode(
        self, head: int, payload: Tensor, offsets: Tensor, lengths: Tensor, params: LayerParams
    ) -> tuple[Tensor, Tensor]:
        form = needed(params.rows)
        rows = payload.view(needed(form.dtype)).reshape(-1, 2, form.size)
        return rows[:, 0].float(), rows[:, 1].float()

    def fits(self, sizes: Tensor, lengths: Tensor, params: LayerParams) -> bool:
        return bool((sizes == needed(params.rows).row_bytes * lengths).all())

    def host_share(self, size: int, span: float) -> float:
        return 1.0
