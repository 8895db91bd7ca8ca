"""Query statistics of a layer: the second moment of queries that the document itself yields.

Queries of tokens spread over the first window are kept while it is read. They tell in which
directions the error of a key shows, and how much the errors of a head matter; see
`codecs.shared_basis`. No question is seen, so that a store serves all alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from engine.compression.scores import NEG_INF, group_queries
from engine.compression.terms import PLAIN, Terms

SPREAD = 256
"""Tokens of a window whose queries are kept: all of them give the moment of the queries."""

WEIGHED = 64
"""Of how many of these the attention is measured, for how much an error weighs in a head."""

FIRST = 4
"""First tokens that do not count: they draw attention whatever they say, and stay exact."""

NEAR = 32
"""Tokens before a query that do not count: a question stands behind the document, so that what it
looks at next to itself is its own words."""

BLOCK = 16
"""Tokens whose attention is computed at once."""


class Probe(Protocol):
    """What is handed to the attention function of every layer to look on; it changes nothing."""

    def observe(self, layer: int, q: Tensor, k: Tensor, v: Tensor, terms: Terms = PLAIN) -> None:
        """One layer's call: q [H, n, D] scaled so that scores are q.k / sqrt(D), of the newest n
        tokens; k, v [Hkv, N, D] of all tokens so far."""
        ...


@dataclass(frozen=True)
class QueryMoments:
    """What queries make of a layer's keys and values.

    moment: E[q qT], float32 [Hkv, D, D].
    score_weight, value_weight: [Hkv] squared relative error of the head's output for one squared
        nat of error in every compressed token's score, and for errors of their values as large as
        their spread: to first order the output moves by sum p (v - o) ds + sum p dv.
    outputs: [Hkv, D, D] the same as `moment` for values, where heads do not count alike.
    """

    moment: Tensor
    score_weight: Tensor
    value_weight: Tensor
    outputs: Tensor | None = None


def spread_places(tokens: int, count: int = SPREAD) -> list[int]:
    """Positions of at most `count` of a window's tokens, evenly spread, ascending."""
    count = min(tokens, count)
    return [(2 * i + 1) * tokens // (2 * count) for i in range(count)]


def query_moments(
    q: Tensor,
    places: list[int],
    rows: tuple[Tensor, Tensor],
    before: tuple[Tensor, Tensor],
    terms: Terms = PLAIN,
) -> QueryMoments:
    """The moments of one layer.

    Args:
        q: [H, m, D] scaled queries of the tokens at `places`, ascending positions of the window.
        rows: k, v [Hkv, n, D] of the window.  before: of the prompt in front of it.
        terms: of the layer's softmax; the slope of a cap is left out.
    """
    grouped = group_queries(q, len(rows[0]))
    moment = torch.bmm(grouped.mT, grouped) / grouped.shape[1]
    k, v = (x.float() for x in rows)
    power = v.square().sum(-1, keepdim=True)
    spread = power.mean((1, 2)) - v.mean(1).square().sum(-1)
    some = range(0, len(places), max(1, len(places) // WEIGHED))
    near = min(NEAR, k.shape[1] // 4)
    sums = torch.zeros(3, len(k))
    for start in range(0, len(some), BLOCK):
        picked = list(some[start : start + BLOCK])
        own = torch.tensor([places[i] for i in picked])
        end = int(own[-1]) + 1
        seen = k[:, :end], v[:, :end], power[:, :end]
        sums += _attended(q[:, picked], own, seen, before, near, terms)
    whole = sums[2].clamp_min(1e-30)
    return QueryMoments(
        moment,
        (sums[0] / whole).clamp_min(1e-6),
        (sums[1] * spread.clamp_min(0) / whole).clamp_min(1e-6),
    )


def _attended(
    q: Tensor,
    own: Tensor,
    rows: tuple[Tensor, Tensor, Tensor],
    before: tuple[Tensor, Tensor],
    near: int,
    terms: Terms,
) -> Tensor:
    """Sums over some queries, [3, Hkv]: of p^2 |v - o|^2 and of p^2 over the compressed tokens that
    each sees, and of |o|^2.

    q: [H, m, D].  own: [m] their positions.  rows: k, v and |v|^2 [Hkv, n, 1] up to the last of
    them.
    """
    (k, v, power), (k_before, v_before) = rows, before
    grouped = group_queries(q, len(k)) / math.sqrt(q.shape[-1])
    scores = torch.cat([torch.bmm(grouped, x.float().mT) for x in (k_before, k)], -1)
    far, group = k_before.shape[1], len(q) // len(k)
    p = terms.softmax(_hidden(terms.capped(scores), own, group, far, NEG_INF), len(own))
    out = torch.bmm(p[..., :far], v_before.float()).baddbmm_(p[..., far:], v)
    p = _hidden(p.square_(), own - near, group, far, 0.0)[..., far:]
    p[..., :FIRST] = 0.0
    # sum p^2 |v - o|^2, multiplied out
    moved = torch.bmm(p, power)[..., 0]
    moved = moved - 2 * (out * torch.bmm(p, v)).sum(-1) + p.sum(-1) * out.square().sum(-1)
    return torch.stack([moved.sum(-1), p.sum((1, 2)), out.square().sum((1, 2))])


def _hidden(rows: Tensor, last: Tensor, group: int, far: int, value: float) -> Tensor:
    """Put a value in place of all behind the last token that counts for a query, and return them.

    rows: [Hkv, group * m, far + n], written to; the window begins at column `far`.  last: [m]
    positions of the window, ascending.
    """
    first = max(0, int(last[0]) + 1)  # what lies before counts for all of them
    columns = torch.arange(first, rows.shape[-1] - far)
    rows[..., far + first :].masked_fill_((columns > last[:, None]).repeat(group, 1), value)
    return rows
