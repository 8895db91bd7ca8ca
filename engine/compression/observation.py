"""Observes a prefill: the queries of a window, and how far back its attention reaches.

A probe is handed to the attention function of every layer. It changes nothing; a forward
without one costs nothing. What it observed is used by spans, routers and bases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine.compression.scores import NEG_INF, group_queries
from engine.compression.terms import PLAIN, Terms

BLOCK = 64  # query rows whose attention is alive at once


@dataclass(frozen=True)
class Observe:
    """What a method wants to know.

    rows: queries of so many last tokens of a window, in every layer. reach: how much attention
    each token gives to itself and the so many tokens before it, less one. spread: queries of so
    many tokens, evenly spread over a window, in every layer; see `query_statistics`.
    """

    rows: int = 0
    reach: int = 0
    spread: int = 0

    def covers(self, other: Observe) -> bool:
        """Whether what the other asks for can be had from what this one does."""
        spread = other.spread in (0, self.spread)
        return self.rows >= other.rows and self.reach >= other.reach and spread


@dataclass
class ObservingProbe:
    """The probe of one chunk. layers: numbers of those that it looks at. before: tokens of the
    prompt before the document. picked: rows of the chunk whose queries are kept beside its last
    ones.

    queries: per layer [H, min(rows, n), D]. spread: per layer [H, len(picked), D]. near: float32
    [n, reach], averaged over heads and over two layers of the middle third, the layers that look
    at meaning rather than form.
    """

    wanted: Observe
    layers: Sequence[int]
    before: int
    picked: list[int] = field(default_factory=list)
    queries: list[Tensor] = field(default_factory=list)
    spread: list[Tensor] = field(default_factory=list)
    near: Tensor | None = None

    @property
    def sampled(self) -> tuple[int, ...]:
        """The layers whose attention is measured."""
        third = len(self.layers) // 3
        places = {third, max(third, 2 * len(self.layers) // 3 - 1)}
        return tuple(self.layers[place] for place in sorted(places))

    def observe(self, layer: int, q: Tensor, k: Tensor, v: Tensor, terms: Terms = PLAIN) -> None:
        if layer not in self.layers:
            return
        if self.wanted.rows:
            # A copy: a view would keep the queries of the whole chunk.
            self.queries.append(q[:, -self.wanted.rows :].detach().clone().cpu())
        if self.wanted.spread:
            self.spread.append(q[:, self.picked].detach().cpu())
        if self.wanted.reach and layer in self.sampled:
            near = nearness(q, k[:, self.before :], self.wanted.reach, terms).cpu() / len(
                self.sampled
            )
            self.near = near if self.near is None else self.near + near


def nearness(q: Tensor, k: Tensor, reach: int, terms: Terms = PLAIN) -> Tensor:
    """Shares of attention by distance.

    Args:
        q: [H, n, D] of the last n tokens.  k: [Hkv, N, D].
    Returns:
        float32 [n, reach]: entry (i, j) is the share of its attention that token N - n + i gives
        to itself and the j tokens before it, averaged over heads.
    """
    total, n = k.shape[1], q.shape[1]
    out = torch.zeros(n, reach, device=q.device)
    places = torch.arange(total, device=q.device)
    for start in range(0, n, BLOCK):
        rows = torch.arange(start, min(n, start + BLOCK), device=q.device)
        own = total - n + rows
        scores = torch.bmm(group_queries(q[:, rows], len(k)), k.float().mT) / math.sqrt(q.shape[-1])
        hidden = (places > own[:, None]).repeat(len(q) // len(k), 1)
        share = terms.softmax(terms.capped(scores).masked_fill(hidden, NEG_INF), len(rows))
        share = share.reshape(len(q), len(rows), total).mean(0)
        back = own[:, None] - torch.arange(reach, device=q.device)
        taken = share.gather(1, back.clamp_min(0)).masked_fill(back < 0, 0)
        out[rows] = taken.cumsum(-1)
    return out
