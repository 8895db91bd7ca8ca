"""The published zoom-in: the same choice as in `sketch`, with what a router has learnt.

A projection of span summaries with a threshold per head. It runs without the training code; how it
learns is in `train.zoomin`, and the file it comes from is `router`'s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.compression.codecs.base import Side
from engine.compression.routers.sketch import MeanKey
from engine.compression.scores import NEG_INF
from engine.compression.statistics import LayerStatistics
from engine.errors import StoreError

LARGEST = 1024
"""Query heads of a KV head at most."""


@runtime_checkable
class Gated(Protocol):
    """A router that decides by a score of its own and not by its estimate of the mass."""

    def wish(self, q: Tensor, device: Side, side: Side, bounds: Tensor) -> Tensor:
        """How much each span wants to be zoomed, [Hkv, S] in [0, 1]; at 0 it never is.

        q: float32 [Hkv, G * Q, D], its rows by query head first.
        """
        ...


@runtime_checkable
class Learnt(Protocol):
    """A router that is given what it has learnt while a document is folded."""

    @property
    def weights(self) -> str:
        """Fingerprint of the router file."""
        ...

    def example(self, heads: int, size: int) -> Side:
        """Made-up tensors of a layer in the shapes of the learnt ones.

        Raises:
            StoreError: no model has such shapes.
        """
        ...


@dataclass(frozen=True)
class SpanZoom(MeanKey):
    """The published router: a span zooms where a projection of its summary passes a threshold.

    weights: fingerprint of the router file. group: G, query heads of a KV head; projections: of
    them with a W of their own, G or 1. rank: d'. What is not zoomed stands as with `MeanKey`.
    Source: SeKV (arXiv 2606.31145), section 3.3; W [Hkv, G or 1, d', D], tau [Hkv, G].
    """

    weights: str
    group: int = 1
    projections: int = 1
    rank: int = 32

    def example(self, heads: int, size: int) -> Side:
        _check(0 < self.group <= LARGEST and self.projections in (1, self.group))
        _check(0 < self.rank <= size)
        return {
            "zoom_w": torch.ones(heads, self.projections, self.rank, size),
            "zoom_tau": torch.ones(heads, self.group),
        }

    def fit(self, k: Tensor, side: Side, statistics: LayerStatistics | None = None) -> Side:
        return {"zoom_w": side["zoom_w"].half(), "zoom_tau": side["zoom_tau"].float()}

    def wish(self, q: Tensor, device: Side, side: Side, bounds: Tensor) -> Tensor:
        heads, _, size = q.shape
        tau = side["zoom_tau"]
        scores = zoom_scores(
            q.reshape(heads, tau.shape[1], -1, size),
            device["mean_key.s"].float(),
            side["zoom_w"].float(),
            bounds.diff(),
        )
        wanted = scores > tau.logit(eps=1e-6)[..., None, None]
        # In float64: far from 0 the sigmoid of many spans is one and the same float32.
        return scores.masked_fill(~wanted, NEG_INF).amax((1, 2)).double().sigmoid()


def zoom_scores(q: Tensor, summary: Tensor, w: Tensor, lengths: Tensor) -> Tensor:
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
