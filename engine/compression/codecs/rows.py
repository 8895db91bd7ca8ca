"""Baseline codecs: every row is quantized by itself, with nothing shared between rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.compression.codecs.base import Records, RowCodec, interleave
from engine.compression.layer_basis import LayerAxes
from engine.compression.params import LayerParams, RowFormat, needed
from engine.compression.statistics import LayerStatistics


@dataclass(frozen=True)
class Rows(RowCodec):
    """Each row as a float16 scale and its values in `bits` (8, 4 or 2), symmetric about zero."""

    bits: int = 8

    def fit(self, k: Tensor, v: Tensor, statistics: LayerStatistics | None = None) -> LayerParams:
        return LayerParams(rows=RowFormat(k.shape[-1]))

    def encode(
        self,
        k: Tensor,
        v: Tensor,
        bounds: Tensor,
        params: LayerParams,
        axes: LayerAxes | None = None,
    ) -> Records:
        return interleave(torch.cat([self._pack(k), self._pack(v)], -1), bounds)

    def decode(
        self, head: int, payload: Tensor, offsets: Tensor, lengths: Tensor, params: LayerParams
    ) -> tuple[Tensor, Tensor]:
        size = needed(params.rows).size
        rows = payload.reshape(-1, 2, 2 + size * self.bits // 8)
        return self._unpack(rows[:, 0], size), self._unpack(rows[:, 1], size)

    def fits(self, sizes: Tensor, lengths: Tensor, params: LayerParams) -> bool:
        row = 2 * (2 + needed(params.rows).size * self.bits // 8)
        return bool((sizes == row * lengths).all())

    def host_share(self, size: int, span: float) -> float:
        return (self.bits + 16 / size) / 16

    def _pack(self, x: Tensor) -> Tensor:
        """[..., D] -> uint8 [..., 2 + D * bits / 8]; byte j holds values j, j + m, j + 2m ..."""
        top = 2 ** (self.bits - 1)
        scale = (x.abs().amax(-1, keepdim=True).float() / (top - 0.5)).clamp(1e-7, 65000).half()
        codes = (x / scale.float() + top).floor().clamp(0, 2 * top - 1).to(torch.uint8)
        out = torch.zeros_like(codes[..., : x.shape[-1] * self.bits // 8])
        for place, piece in enumerate(codes.chunk(8 // self.bits, -1)):
            out |= piece << (place * self.bits)
        return torch.cat([scale.view(torch.uint8), out], -1)

    def _unpack(self, rows: Tensor, size: int) -> Tensor:
        scale = rows[:, :2].contiguous().view(torch.float16).float()
        top = 2 ** (self.bits - 1)
        parts = [
            (rows[:, 2:] >> (place * self.bits)) & (2 * top - 1) for place in range(8 // self.bits)
        ]
        values: Tensor = torch.cat(parts, -1)[:, :size].float() + 0.5 - top
        return values * scale
