"""The trained router of SeKV: projected span summaries against a threshold per head.

It runs without the training code; `lab.train.zoomin` trains it, and `router_file` reads its
weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.compression.params import LayerParams, TrainedLayer, ZoomWeights, needed
from engine.compression.routers.sketch import MeanKey
from engine.compression.scores import NEG_INF
from engine.compression.span_tables import SpanTables
from engine.compression.statistics import NOT_GIVEN, Given
from engine.errors import StoreError

LARGEST = 1024
"""Query heads of a KV head at most."""


@dataclass(frozen=True)
class SpanZoom(MeanKey):
    """The published router: a span zooms where a projection of its summary passes a threshold.

    weights: fingerprint of the router file. group: G, query heads of a KV head; projections: of
    them with a W of their own, G or 1. rank: d'. What is not zoomed stands as with `MeanKey`.
    Source: SeKV (arXiv 2606.31145), section 3.3; W [Hkv, G or 1, d', D], tau [Hkv, G].
    """

    weights: str = ""
    group: int = 1
    projections: int = 1
    rank: int = 32
    gated: ClassVar[bool] = True

    def example(self, heads: int, size: int) -> TrainedLayer:
        _check(0 < self.group <= LARGEST and self.projections in (1, self.group))
        _check(0 < self.rank <= size)
        w = torch.ones(heads, self.projections, self.rank, size)
        return TrainedLayer(ZoomWeights(w, torch.ones(heads, self.group)))

    def fit(self, k: Tensor, params: LayerParams, given: Given = NOT_GIVEN) -> LayerParams:
        learnt = needed(given.trained.zoom)
        return replace(params, zoom=ZoomWeights(learnt.w.half(), learnt.tau.float()))

    def zoom_scores(
        self, q: Tensor, tables: SpanTables, params: LayerParams, bounds: Tensor
    ) -> Tensor:
        learnt, summary = needed(params.zoom), needed(tables.keys).float()
        by_head = q.reshape(len(q), learnt.tau.shape[1], -1, q.shape[-1])
        scores = zoom_logits(by_head, summary, learnt.w.float(), bounds.diff())
        wanted = scores > learnt.tau.logit(eps=1e-6)[..., None, None]
        # In float64: far from 0 the sigmoid of many spans is one and the same float32.
        return scores.masked_fill(~wanted, NEG_INF).amax((1, 2)).double().sigmoid()


def zoom_logits(q: Tensor, summary: Tensor, w: Tensor, lengths: Tensor) -> Tensor:
    """The logit of the published zoom score, before its threshold.

    Args:
        q: [Hkv, G, Q, D].  summary: [Hkv, S, D].  w: [Hkv, G or 1, d', D].  lengths: [S] tokens.
    Returns:
        [Hkv, G, Q, S]: (W q) . (W k / |W k|) / sqrt(d') + log n.
    Source: SeKV (arXiv 2606.31145), section 3.3.
    """
    keys = F.normalize(torch.matmul(summary[:, None], w.mT), dim=-1)
    scores = torch.matmul(torch.matmul(q, w.mT), keys.mT) / math.sqrt(w.shape[-2])
    return scores + lengths.to(scores).log()


def _check(possible: bool) -> None:
    if not possible:
        raise StoreError("the manifest's router has a shape that no model has: ingest again")
