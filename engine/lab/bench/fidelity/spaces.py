"""The space in which a layer's rows are coded: each KV head for itself, or some other view of them.

A space turns rows before a codec fits and codes them, and back when it has decoded; the codec knows
nothing of it. It spends no bits and holds nothing that a store would have to keep. The laboratory
compares spaces; stores code every head for itself, as attention has it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from engine.compression.query_statistics import QueryMoments
from engine.compression.rope import apply_rope, invert_rope

Known = QueryMoments | None
"""What is known of the queries that a layer's rows meet."""


class Space(Protocol):
    def enter(self, k: Tensor, v: Tensor, given: Known) -> tuple[Tensor, Tensor, Known]:
        """Rows [Hkv, n, D] and what is known of them (see `QueryMoments`) -> the same in here."""
        ...

    def leave(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Rows as they came out of `enter` -> k, v [Hkv, n, D]."""
        ...


@dataclass(frozen=True)
class BeforeRope:
    """Keys as they were before their position turned them, which fewer directions explain.

    cos, sin: [n, D] of the rows at hand; see `Reader.rotation`. When it is read a key must be
    turned again, at its own position.
    Source: ShadowKV (arXiv 2410.21465), section 3.1.
    """

    cos: Tensor
    sin: Tensor

    def enter(self, k: Tensor, v: Tensor, given: Known) -> tuple[Tensor, Tensor, Known]:
        return invert_rope(k.float(), self.cos, self.sin), v, self._turned(given)

    def leave(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return apply_rope(k, self.cos, self.sin), v

    def _turned(self, given: Known) -> Known:
        """The error of a key that was not turned yet meets queries turned back: their second
        moment is the mean of RT M R over positions R."""
        if given is None:
            return None
        some = slice(None, None, max(1, len(self.cos) // 64))
        cos, sin = self.cos[some], self.sin[some]
        one = torch.eye(cos.shape[-1])
        turns = apply_rope(
            one[:, None].expand(-1, len(cos), -1), cos, sin
        )  # [D, m, D], R's columns
        moment = torch.einsum("imd,hde,jme->hij", turns, given.moment, turns) / len(cos)
        return replace(given, moment=moment)


@dataclass(frozen=True)
class Together:
    """The rows of all KV heads of a token side by side: one basis for the layer.

    What heads have in common is coded once; a head can then only be read with all others.
    heads: Hkv.
    """

    heads: int

    def enter(self, k: Tensor, v: Tensor, given: Known) -> tuple[Tensor, Tensor, Known]:
        return _beside(k), _beside(v), self._weighed(v, given)

    def leave(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return self._apart(k), self._apart(v)

    def _apart(self, rows: Tensor) -> Tensor:
        return rows.reshape(rows.shape[1], self.heads, -1).transpose(0, 1)

    def _weighed(self, v: Tensor, given: Known) -> Known:
        """How much an error weighs differs between heads that now share a basis, so it goes into
        the metrics: of keys that of the queries, of values a number per head."""
        if given is None:
            return None
        heads, _, size = v.shape
        # The errors of a score and of a value are shares: of D components, of a head's spread.
        queries = given.moment * given.score_weight[:, None, None] * heads
        weight = given.value_weight / v.float().var(1, correction=0).sum(-1).clamp_min(1e-30)
        blocks = torch.eye(heads)[:, None, :, None] * queries[:, :, None]
        return QueryMoments(
            moment=blocks.reshape(1, heads * size, heads * size),
            score_weight=torch.ones(1),
            value_weight=given.value_weight.sum()[None],
            outputs=weight.repeat_interleave(size).diag()[None],
        )


def _beside(rows: Tensor) -> Tensor:
    """[Hkv, n, D] -> [1, n, Hkv * D]."""
    return rows.transpose(0, 1).flatten(1)[None]
