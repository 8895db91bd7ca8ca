"""Keeps every row uncompressed in sixteen bits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.compression.codecs.base import Records
from engine.compression.codecs.raw import Raw
from engine.compression.layer_basis import LayerAxes
from engine.compression.params import LayerParams, needed
from engine.compression.statistics import LayerStatistics


@dataclass(frozen=True)
class HalfRows(Raw):
    """Rows in 16 bits, as the published methods keep them; those of a float32 model are rounded.

    `Raw` keeps a float32 model's rows in 32 bits, which would halve a method's budget here.
    sparse: a record may be empty: the method has dropped the span.
    """

    sparse: bool = False

    def fit(self, k: Tensor, v: Tensor, statistics: LayerStatistics | None = None) -> LayerParams:
        return super().fit(_half(k), _half(v), statistics)

    def encode(
        self,
        k: Tensor,
        v: Tensor,
        bounds: Tensor,
        params: LayerParams,
        axes: LayerAxes | None = None,
    ) -> Records:
        return super().encode(_half(k), _half(v), bounds, params, axes)

    def fits(self, sizes: Tensor, lengths: Tensor, params: LayerParams) -> bool:
        if not self.sparse:
            return super().fits(sizes, lengths, params)
        row = needed(params.rows).row_bytes
        return bool(((sizes == row * lengths) | (sizes == 0)).all())


def _half(rows: Tensor) -> Tensor:
    return rows.half() if rows.dtype == torch.float32 else rows
