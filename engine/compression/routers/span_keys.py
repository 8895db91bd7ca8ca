"""Routers of other systems, which score a whole span by a summary of its keys.

All follow the query; those that do not are in `question_blind`. None estimates a log-mass: their
scores rank spans, and spans that are not zoomed are hidden.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from engine.compression.params import LayerParams, needed
from engine.compression.routers.base import NOT_TOLD, RoutedRows, Unfitted
from engine.compression.span_tables import SpanTables


@dataclass(frozen=True)
class SpanKey(Unfitted):
    """The score of a span is that of its mean key, however long it is.

    Source: SentenceKV (arXiv 2504.00970), section 3.2.
    """

    key_names: ClassVar[tuple[str, ...]] = ("mean_key.s",)

    def build(
        self, k: Tensor, summary: Tensor, params: LayerParams, rows: RoutedRows = NOT_TOLD
    ) -> SpanTables:
        return SpanTables(keys=summary.half())

    def logmass(self, q: Tensor, tables: SpanTables, params: LayerParams, bounds: Tensor) -> Tensor:
        return torch.bmm(q, needed(tables.keys).float().mT) / math.sqrt(q.shape[-1])

    def device_share(self, size: int, span: float) -> float:
        return 0.5 / span


@dataclass(frozen=True)
class KeyBox(Unfitted):
    """The largest score that any key inside a span's box can have: per channel its least and
    greatest key.

    Source: SentKVCompress (OpenReview T0ii3nAxk4) keeps the box, as its reviews tell; the bound
    is that of Quest (arXiv 2406.10774), equation 1.
    """

    key_names: ClassVar[tuple[str, ...]] = ("low.s", "high.s")

    def build(
        self, k: Tensor, summary: Tensor, params: LayerParams, rows: RoutedRows = NOT_TOLD
    ) -> SpanTables:
        owner = rows.owner
        index = owner[None, :, None].expand_as(k)
        shape = (k.shape[0], summary.shape[1], k.shape[2])
        keys = k.float()
        low = keys.new_full(shape, torch.inf).scatter_reduce_(1, index, keys, "amin")
        high = keys.new_full(shape, -torch.inf).scatter_reduce_(1, index, keys, "amax")
        return SpanTables(keys=torch.stack([low, high], 2).half())

    def logmass(self, q: Tensor, tables: SpanTables, params: LayerParams, bounds: Tensor) -> Tensor:
        low, high = needed(tables.keys).float().unbind(2)
        up = torch.bmm(q.clamp_min(0), high.mT)
        down = torch.bmm(q.clamp_max(0), low.mT)
        return (up + down) / math.sqrt(q.shape[-1])

    def device_share(self, size: int, span: float) -> float:
        return 1.0 / span


@dataclass(frozen=True)
class PartMeans(Unfitted):
    """The best score among a fixed number of keys per span: the means of its equal parts.

    Spans of any length become `count` rows, so that scoring is one dense product; parts of a
    span with fewer tokens than rows repeat.
    Source: DynSplit-KV (arXiv 2602.03184) maps blocks of any length to a fixed format; which
    one is not public, this is our reading.
    """

    count: int = 4
    key_names: ClassVar[tuple[str, ...]] = ("parts.s",)

    def build(
        self, k: Tensor, summary: Tensor, params: LayerParams, rows: RoutedRows = NOT_TOLD
    ) -> SpanTables:
        owner = rows.owner
        lengths = torch.bincount(owner, minlength=summary.shape[1])
        starts = lengths.cumsum(0) - lengths
        part = torch.arange(self.count)
        first = starts[:, None] + part * lengths[:, None] // self.count
        last = starts[:, None] + -(-(part + 1) * lengths[:, None] // self.count)
        total = torch.cat([k.new_zeros(k.shape[0], 1, k.shape[2]), k.float().cumsum(1)], 1)
        means = (total[:, last] - total[:, first]) / (last - first)[..., None]
        return SpanTables(keys=means.half())

    def logmass(self, q: Tensor, tables: SpanTables, params: LayerParams, bounds: Tensor) -> Tensor:
        parts = needed(tables.keys).float()
        scores = torch.bmm(q, parts.flatten(1, 2).mT) / math.sqrt(q.shape[-1])
        return scores.reshape(*scores.shape[:2], *parts.shape[1:3]).amax(-1)

    def device_share(self, size: int, span: float) -> float:
        return 0.5 * self.count / span
