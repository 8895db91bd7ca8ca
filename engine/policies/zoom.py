"""The trained zoom-in: the same choices as in `select`, with what a router has learnt.

`SpanZoom` is the published form, a projection of span summaries with a threshold per head;
`LearnedSketch` is ours, a projection of every token's key that needs fewer components than the
document's own basis. Both run without the training code; how they learn is in
`train.zoomin`, and the file they come from is `router`'s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from engine import ops
from engine.errors import StoreError
from engine.policies.codec import Side, pack_basis, sample
from engine.policies.select import MeanKey, Sketch, span_masses

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

    def fit(self, k: Tensor, side: Side) -> Side:
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
        return scores.masked_fill(~wanted, ops.NEVER).amax((1, 2)).double().sigmoid()


@dataclass(frozen=True)
class LearnedSketch:
    """A sketch of every key in learnt directions, at a few bits each.

    weights: fingerprint of the router file. bits: mean per component of the head, as `Sketch`
    counts them. components: R, most that are kept. Keys and queries have projections of their
    own, [Hkv, R, D] each: what matters is the error of their product, not that of the key. Mean
    and steps follow the document.
    """

    weights: str
    bits: float
    components: int = 24

    def example(self, heads: int, size: int) -> Side:
        _check(0 < self.components <= max(8, size))
        rows = torch.ones(heads, self.components, size)
        bits = torch.ones(heads, self.components, dtype=torch.uint8)
        return {"zoom_key": rows, "zoom_query": rows, "zoom_bits": bits}

    def fit(self, k: Tensor, side: Side) -> Side:
        mean = k.float().mean(1)
        new = pack_basis("zoom", mean, side["zoom_query"].mT)
        coefs = _coefficients(sample(k), new["zoom_mean"], side["zoom_key"])
        bits = side["zoom_bits"]
        return {**new, "sketch_bits": bits, "sketch_step": ops.fit_steps(coefs, bits)}

    def price(self, spread: Tensor) -> float:
        return math.inf  # bits are learnt

    def build(self, k: Tensor, summary: Tensor, side: Side) -> Side:
        coefs = _coefficients(k, side["zoom_mean"], side["zoom_key"])
        return {"sketch.t": ops.pack_heads(coefs, side["sketch_bits"], side["sketch_step"])}

    def logmass(self, q: Tensor, device: Side, side: Side, bounds: Tensor) -> Tensor:
        return span_masses(device["sketch.t"], side["sketch_bits"], *self.turned(q, side), bounds)

    def turned(self, q: Tensor, side: Side) -> tuple[Tensor, Tensor]:
        """As a sketch whose basis is that of the queries."""
        own = {f"k_{part}": side[f"zoom_{part}"] for part in ("mean", "basis", "scale")}
        return Sketch().turned(q, {**side, **own})

    def shrink(self, device: Side, side: Side) -> tuple[Side, Side] | None:
        """As a sketch; what it leaves out is not made up for, since masses were learnt without."""
        lost = torch.zeros_like(side["sketch_step"])
        return Sketch().shrink(device, {"sketch_lost": lost, **side})

    def device_share(self, size: int, span: float) -> float:
        return self.bits / 32


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


def _coefficients(k: Tensor, mean: Tensor, key: Tensor) -> Tensor:
    """Keys [Hkv, n, D] in learnt directions [Hkv, R, D] -> [Hkv, n, R]."""
    return torch.bmm(k.float() - mean.float()[:, None], key.mT)
