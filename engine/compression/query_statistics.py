"""What questions will look for, before there is one: what queries make of keys and values.

The document asks itself. Pieces of it are put as questions and answered by themselves behind the
window that holds them; the queries of these rows tell in which directions the error of a key
shows, and how much the errors of a head matter. No real question is seen, so that a store serves
all alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from engine.compression.scores import NEG_INF, group_queries

PIECES, PIECE_TOKENS = 6, 16
"""How many pieces of a window are asked, and how long they are."""

FIRST = 4
"""First tokens that do not count: they draw attention whatever they say, and stay exact."""


class Probe(Protocol):
    """What is handed to the attention function of every layer to look on; it changes nothing."""

    def see(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> None:
        """One layer's call: q [H, n, D] scaled so that scores are q.k / sqrt(D), of the newest n
        tokens; k, v [Hkv, N, D] of all tokens so far."""
        ...


@dataclass(frozen=True)
class QueryMoments:
    """What queries make of a layer's keys and values.

    moment: E[q qT], float32 [Hkv, D, D].
    score_worth, value_worth: [Hkv] squared relative error of the head's output for one squared nat
        of error in every compressed token's score, and for errors of their values as large as
        their spread: to first order the output moves by sum p (v - o) ds + sum p dv.
    outputs: [Hkv, D, D] the same as `moment` for values, where heads do not count alike.
    """

    moment: Tensor
    score_worth: Tensor
    value_worth: Tensor
    outputs: Tensor | None = None


class QueryStatistics:
    """The probe that learns from a document which asks itself.

    before: tokens of the prompt before the document.
    """

    def __init__(self, layers: int, before: int):
        self._exact = before + FIRST
        self._seen: list[list[Tensor]] = [[] for _ in range(layers)]
        self._rows = [0] * layers

    def see(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> None:
        asked = q.shape[1]
        q, k, v = group_queries(q, len(k)), k.float(), v.float()
        scores = torch.bmm(q, k.mT) / math.sqrt(q.shape[-1])
        own = torch.ones(asked, asked, dtype=torch.bool, device=q.device).triu(1)
        scores[..., -asked:].masked_fill_(own.repeat(q.shape[1] // asked, 1), NEG_INF)
        p = scores.softmax(-1)
        out = torch.bmm(p, v)
        folded = slice(self._exact, k.shape[1] - asked)
        p, v = p[..., folded].square(), v[:, folded]
        # sum p^2 |v - o|^2, multiplied out
        apart = (torch.bmm(p, v.square().sum(-1, keepdim=True)))[..., 0]
        apart = apart - 2 * (out * torch.bmm(p, v)).sum(-1) + p.sum(-1) * out.square().sum(-1)
        spread = (v - v.mean(1, keepdim=True)).square().sum((1, 2)) / max(1, v.shape[1])
        sums = [
            torch.bmm(q.mT, q),
            apart.sum(-1),
            p.sum((1, 2)) * spread,
            out.square().sum((1, 2)),
        ]
        before = self._seen[layer] or [torch.zeros_like(x) for x in sums]
        self._seen[layer] = [x + y for x, y in zip(before, sums, strict=True)]
        self._rows[layer] += q.shape[1]

    def learnt(self) -> list[QueryMoments]:
        """What was learnt, per layer. Empty if nothing was asked."""
        if not all(self._rows):
            return []
        out = []
        for (moment, apart, spread, whole), rows in zip(self._seen, self._rows, strict=True):
            whole = whole.clamp_min(1e-30)
            out.append(
                QueryMoments(
                    (moment / rows).cpu(),
                    (apart / whole).clamp_min(1e-6).cpu(),
                    (spread / whole).clamp_min(1e-6).cpu(),
                )
            )
        return out


def pieces(ids: list[int]) -> list[list[int]]:
    """Stretches of a window's tokens, evenly spread."""
    count = max(1, min(PIECES, len(ids) // PIECE_TOKENS))
    step = len(ids) / count
    starts = [int((i + 0.5) * step - min(PIECE_TOKENS, step) / 2) for i in range(count)]
    return [ids[start : start + PIECE_TOKENS] for start in starts]
