"""How much of the attention that a document gets lies on tokens which a memory holds one by one.

What is hidden or stands as a summary is not found. The attention is that of the memory's own
queries with all keys of the full cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from engine.attention.resident import row_scores
from engine.compression.scores import group_queries
from engine.compression.terms import PLAIN, Terms
from engine.lab.bench.peers.held import HeldLayer

if TYPE_CHECKING:
    from engine.attention.layer import LayerMemory
    from engine.memory.open import Memory


@dataclass(frozen=True)
class Keys:
    """Keys of the full cache, by layer: the prompt's prefix and all document tokens.

    rows: [Hkv, P, D].  token: [P] the document token of each row, -1 for the prefix.
    """

    rows: list[Tensor]
    token: Tensor

    @classmethod
    def of(cls, memory: Memory) -> Self:
        """Of a memory of method `full`."""
        return cls([layer.pinned_k for layer in memory.layers], memory.layers[0].pinned_token)


class FoundMass:
    """A layer of a memory; attends as it does, and counts for every single query."""

    def __init__(self, layer: LayerMemory, k: Tensor, token: Tensor):
        self.layer, self._k, self._token = layer, k, token
        self._found, self._all = 0.0, 0.0

    @classmethod
    def of(cls, layers: Sequence[LayerMemory], keys: Keys) -> list[Self]:
        """Of all layers; none where it is not known which tokens a layer holds."""
        if any(held_tokens(layer, 1) is None for layer in layers):
            return []
        return [cls(layer, k, keys.token) for layer, k in zip(layers, keys.rows, strict=True)]

    @staticmethod
    def share(layers: Sequence[FoundMass]) -> float:
        """Of the attention on the document so far; nan of none."""
        whole = sum(layer._all for layer in layers)
        return sum(layer._found for layer in layers) / whole if whole else math.nan

    def attend(
        self,
        q: Tensor,
        live_k: Tensor,
        live_v: Tensor,
        seen: Tensor | None,
        terms: Terms = PLAIN,
    ) -> Tensor:
        """See `LayerMemory.attend`."""
        out = self.layer.attend(q, live_k, live_v, seen, terms)
        if q.shape[1] == 1:
            self._count(group_queries(q, len(self._k)), live_k)
        return out

    def _count(self, q: Tensor, live_k: Tensor) -> None:
        scores = torch.cat([row_scores(q, self._k), row_scores(q, live_k)], -1)
        of_document = self._token >= 0
        mass = scores.softmax(-1)[..., : len(self._token)][..., of_document]
        held = held_tokens(self.layer, int(self._token.max()) + 1)
        assert held is not None
        self._found += float((mass * held[:, None, self._token[of_document].long()]).sum())
        self._all += float(mass.sum())


def held_tokens(layer: LayerMemory, tokens: int) -> Tensor | None:
    """bool [Hkv, tokens]: document tokens that a layer attends to one by one now, None if that is
    not known."""
    if isinstance(layer, HeldLayer):
        seen = layer.held.seen
        return seen if seen is None or seen.shape[1] == tokens else seen[:, :tokens]
    held = torch.zeros(layer.heads, tokens + 1, dtype=torch.bool)
    places = layer.zoomed.tokens.long().cpu()
    places = torch.where((places >= 0) & (places < tokens), places, tokens)
    return held.scatter_(1, places, value=True)[:, :tokens]
