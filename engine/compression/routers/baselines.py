"""Routers without training that are held against the sketch: a few keys for every span.

Each keeps rows of half-precision keys per span and turns them into a log-mass; none sees a token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from engine.compression.basis import span_svd
from engine.compression.params import LayerParams, needed
from engine.compression.ranges import padded_spans
from engine.compression.routers.base import NOT_TOLD, RoutedRows, Unfitted
from engine.compression.routers.span_keys import KeyBox
from engine.compression.span_tables import SpanTables


@dataclass(frozen=True)
class Box(KeyBox):
    """Least and greatest key per channel: an upper bound of every token's score.

    Source: Quest (arXiv 2406.10774), pages of 16; here with log n added, as for any summary.
    """

    key_names: ClassVar[tuple[str, ...]] = ("box.s",)

    def logmass(self, q: Tensor, tables: SpanTables, params: LayerParams, bounds: Tensor) -> Tensor:
        return super().logmass(q, tables, params, bounds) + bounds.diff().float().log()


@dataclass(frozen=True)
class Representatives(Unfitted):
    """`count` keys of a span's own tokens, far from each other; each stands for its share of them.

    Source: after InfLLM (arXiv 2402.04617), which takes the tokens of highest local attention; the
    farthest-first choice here needs no queries.
    """

    count: int = 2
    key_names: ClassVar[tuple[str, ...]] = ("representatives.s",)

    def build(
        self, k: Tensor, summary: Tensor, params: LayerParams, rows: RoutedRows = NOT_TOLD
    ) -> SpanTables:
        keys, inside = padded_spans(k, rows.owner)
        near = (keys - summary[:, :, None]).square().sum(-1).masked_fill(~inside, -1.0)
        chosen = []
        for _ in range(self.count):
            best = near.argmax(-1)[..., None, None].expand(-1, -1, 1, keys.shape[-1])
            chosen.append(keys.gather(2, best))
            distance = (keys - chosen[-1]).square().sum(-1)
            near = near.minimum(distance).masked_fill(~inside, -1.0)
        return SpanTables(keys=torch.cat(chosen, 2).half())

    def logmass(self, q: Tensor, tables: SpanTables, params: LayerParams, bounds: Tensor) -> Tensor:
        keys = needed(tables.keys).float()
        scores = torch.einsum("hqd,hscd->hqsc", q, keys) / math.sqrt(q.shape[-1])
        return scores.logsumexp(-1) + (bounds.diff().float() / self.count).log()

    def device_share(self, size: int, span: float) -> float:
        return self.count / 2 / span


@dataclass(frozen=True)
class SecondOrder(Unfitted):
    """Mean and principal directions of a span: log n + q.m + 1/2 q'Cq, as if keys were Gaussian."""

    directions: int = 1
    key_names: ClassVar[tuple[str, ...]] = ("second_order.s",)

    def build(
        self, k: Tensor, summary: Tensor, params: LayerParams, rows: RoutedRows = NOT_TOLD
    ) -> SpanTables:
        keys, inside = padded_spans(k, rows.owner)
        count = inside.sum(-1, keepdim=True)[..., None]
        centred = (keys - summary[:, :, None]).masked_fill(~inside[..., None], 0.0)
        _, _, w = span_svd(centred.flatten(0, 1))
        w = w[:, : self.directions]
        w = w.reshape(*keys.shape[:2], w.shape[1], keys.shape[-1]) / count.sqrt()
        return SpanTables(keys=torch.cat([summary[:, :, None], w], 2).half())

    def logmass(self, q: Tensor, tables: SpanTables, params: LayerParams, bounds: Tensor) -> Tensor:
        keys = needed(tables.keys).float()
        scores = torch.einsum("hqd,hscd->hqsc", q, keys) / math.sqrt(q.shape[-1])
        spread = scores[..., 1:].square().sum(-1) / 2
        return scores[..., 0] + spread + bounds.diff().float().log()

    def device_share(self, size: int, span: float) -> float:
        return (1 + self.directions) / 2 / span
