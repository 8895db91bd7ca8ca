"""How a query finds the spans it needs: the device's estimate of their attention mass, and the
choice of what to zoom under a budget.

A router keeps a little of every key on the device and turns a query into the log-mass of every
span; the same estimate is the logit of the summary row of a span that is not zoomed. It fetches
nothing: see `tiers`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from engine import ops
from engine.policies.codec import Side


class Router(Protocol):
    def fit(self, k: Tensor, side: Side) -> Side:
        """Side information of a layer from the first window's keys [Hkv, n, D]; `side` holds the
        codec's, whose basis may be shared."""
        ...

    def build(self, k: Tensor, summary: Tensor, side: Side) -> Side:
        """Device tensors of a window from keys [Hkv, n, D] and span keys [Hkv, S, D].

        A name ending in ".t" holds a row per token, ".s" a row per span, along dimension 1.
        """
        ...

    def logmass(self, q: Tensor, device: Side, side: Side, bounds: Tensor) -> Tensor:
        """Estimated log of the sum of exp(q.k / sqrt(D)) over each span.

        q: float32 [Hkv, Q, D]; bounds [S + 1] -> [Hkv, Q, S] nats.
        """
        ...

    def shrink(self, device: Side, side: Side) -> tuple[Side, Side] | None:
        """The same estimate at fewer bytes, or None where it cannot shrink."""
        ...

    def device_share(self, size: int, span: float) -> float:
        """Expected bytes over those of 16-bit rows, for spans of about `span` tokens."""
        ...


@dataclass(frozen=True)
class MeanKey:
    """The published router without training: the span's key and the log of its length.

    Source: SeKV (arXiv 2606.31145), section 3.3 with W = identity.
    """

    def fit(self, k: Tensor, side: Side) -> Side:
        return {}

    def build(self, k: Tensor, summary: Tensor, side: Side) -> Side:
        return {"mean_key.s": summary.half()}

    def logmass(self, q: Tensor, device: Side, side: Side, bounds: Tensor) -> Tensor:
        keys = device["mean_key.s"].float()
        return torch.bmm(q, keys.mT) / math.sqrt(q.shape[-1]) + bounds.diff().float().log()

    def shrink(self, device: Side, side: Side) -> tuple[Side, Side] | None:
        return None

    def device_share(self, size: int, span: float) -> float:
        return 0.5 / span


@dataclass(frozen=True)
class Sketch:
    """Our default: the leading coefficients of every key at 4 bits, in the shared basis.

    Scores every token, sums exp by span. `share` of the head size is kept: 32 of 64 components
    cost 1/16 of the 16-bit rows, as much as one mean key and value for 16 tokens, and find the
    token that a mean hides.
    """

    share: float = 0.5

    def fit(self, k: Tensor, side: Side) -> Side:
        if "k_basis" in side:
            mean, basis = side["k_mean"], side["k_basis"]
            new: Side = {}
        else:
            mean, basis, _ = ops.covariance_basis(k)
            mean, basis = mean.half(), basis.half()
            new = {"k_mean": mean, "k_basis": basis}
        rank = 2 * max(1, round(self.share * k.shape[-1] / 2))
        coefs = torch.bmm(k.float() - mean.float()[:, None], basis[:, :, :rank].float())
        four = torch.full((rank,), 4, dtype=torch.uint8)
        steps = torch.stack([ops.fit_steps(c[:8192], four) for c in coefs])
        return {**new, "sketch_step": steps}

    def build(self, k: Tensor, summary: Tensor, side: Side) -> Side:
        step = side["sketch_step"]
        rank = step.shape[-1]
        basis = side["k_basis"][:, :, :rank].float()
        coefs = torch.bmm(k.float() - side["k_mean"].float()[:, None], basis)
        four = torch.full((rank,), 4, dtype=torch.uint8)
        codes, _ = ops.quantise(coefs, four, step[:, None])
        return {"sketch.t": ops.Packing((0, rank, 0, 0)).pack(codes)}

    def logmass(self, q: Tensor, device: Side, side: Side, bounds: Tensor) -> Tensor:
        packed, step = device["sketch.t"], side["sketch_step"]
        rank = step.shape[-1]
        basis = side["k_basis"][:, :, :rank].float()
        scale = 1 / math.sqrt(q.shape[-1])
        turned = torch.bmm(q, basis) * (step[:, None] * scale)
        shift = torch.bmm(q, side["k_mean"].float()[:, :, None]) * scale
        shift = shift - 7.5 * turned.sum(-1, keepdim=True)
        low, high = turned.chunk(2, -1)
        out = []
        for first, last in _stretches(bounds, max(256, 2**22 // max(1, q.shape[1]))):
            start, end = int(bounds[first]), int(bounds[last])
            codes = packed[:, start:end]
            scores = torch.bmm(low, (codes & 15).float().mT)
            scores = torch.baddbmm(scores, high, (codes >> 4).float().mT) + shift
            out.append(ops.span_logsumexp(scores, bounds[first : last + 1] - start))
        return torch.cat(out, -1)

    def shrink(self, device: Side, side: Side) -> tuple[Side, Side] | None:
        rank = side["sketch_step"].shape[-1]
        if rank <= 4:
            return None
        less = 2 * max(1, rank // 4)
        codes = ops.Packing((0, rank, 0, 0)).unpack(device["sketch.t"])[..., :less]
        packed = ops.Packing((0, less, 0, 0)).pack(codes.contiguous())
        steps = side["sketch_step"][:, :less].contiguous()
        return {**device, "sketch.t": packed}, {**side, "sketch_step": steps}

    def device_share(self, size: int, span: float) -> float:
        return self.share / 8


def _stretches(bounds: Tensor, tokens: int) -> list[tuple[int, int]]:
    """Runs of spans (first, last + 1) of at most about `tokens` tokens, at least one span each."""
    edges = bounds.tolist()
    runs, first = [], 0
    for i in range(1, len(edges)):
        if edges[i] - edges[first] >= tokens or i == len(edges) - 1:
            runs.append((first, i))
            first = i
    return runs


def choose(share: Tensor, cost: Tensor, room: float, uncovered: float) -> Tensor:
    """The spans to zoom: by falling share until what is left is small or the room is full.

    Args:
        share: [Hkv, F] estimated share of attention that a span draws.
        cost: [Hkv, F] bytes of a span on the device.  room: bytes to spend per KV head.
        uncovered: the sum of shares that may stay unzoomed; 0 zooms all that fits.
    Returns:
        bool [Hkv, F].
    """
    sorted_share, order = torch.sort(share, dim=-1, descending=True)
    wanted = cost.gather(-1, order).cumsum(-1) <= room
    if uncovered > 0:
        left = sorted_share.flip(-1).cumsum(-1).flip(-1)
        wanted &= left > uncovered
    return torch.zeros_like(share, dtype=torch.bool).scatter_(-1, order, wanted)
