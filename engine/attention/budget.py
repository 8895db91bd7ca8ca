"""Each layer's share of a budget, and coverage: how much of the attention was exact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Limits:
    """cap: device bytes per layer, everything counted; see `allot` for what others leave of theirs.
    coverage: share of the estimated attention to have exact. full: everything is zoomed, whatever
    it takes."""

    cap: float
    coverage: float
    full: bool = False


def allot(caps: Sequence[float], least: Sequence[float], most: Sequence[float]) -> list[float]:
    """What each layer may hold when those that need less than their share leave the rest to others.

    Every layer keeps the smaller of its share and its need, whatever the others hold; the rest goes
    to those that need more, in proportion to what they lack. It follows from shares and needs
    alone, so that no layer can lose at one step what it was given at another.

    Args:
        caps: bytes, the share of each layer.  least: bytes that a layer takes whatever happens;
        where that is more than its share, all others give in proportion to what they have.
        most: bytes with which a layer has all it can use.
    Returns:
        bytes for each layer, their sum at most that of `caps` where what all take at least is.
    """
    own = [max(low, min(cap, high)) for cap, low, high in zip(caps, least, most, strict=True)]
    left = sum(caps) - sum(own)
    ends = most if left >= 0 else least
    ways = [abs(end - mine) for end, mine in zip(ends, own, strict=True)]
    total = sum(ways)
    part = min(1.0, abs(left) / total) if total > 0 else 0.0
    return [
        mine + part * (end - mine) if way > 0 else mine
        for mine, end, way in zip(own, ends, ways, strict=True)
    ]


@dataclass
class Coverage:
    """How much of the attention was exact: pinned, live or zoomed rows, and not summaries.

    What a summary row weighs is the router's estimate, so this is one too. Means are over the
    rows and query heads of all steps; least: of the KV head that had most in summaries.
    """

    summaries: dict[int, Tensor] = field(default_factory=dict)
    rows: dict[int, int] = field(default_factory=dict)

    def note(self, layer: int, weight: Tensor) -> None:
        """weight: [Hkv, R, F] of a layer's summary rows."""
        self.summaries[layer] = self.summaries.get(layer, 0.0) + weight.sum((1, 2))
        self.rows[layer] = self.rows.get(layer, 0) + weight.shape[1]

    def copy(self) -> Coverage:
        return Coverage(dict(self.summaries), dict(self.rows))

    def since(self, before: Coverage) -> Coverage:
        """What was noted after `before` was copied."""
        new = [layer for layer in self.rows if self.rows[layer] > before.rows.get(layer, 0)]
        return Coverage(
            {layer: self.summaries[layer] - before.summaries.get(layer, 0.0) for layer in new},
            {layer: self.rows[layer] - before.rows.get(layer, 0) for layer in new},
        )

    @property
    def _heads(self) -> Tensor:
        means = [self.summaries[layer].cpu() / self.rows[layer] for layer in self.summaries]
        return torch.cat(means) if means else torch.zeros(1)

    @property
    def mean(self) -> float:
        return 1 - float(self._heads.mean())

    @property
    def least(self) -> float:
        return 1 - float(self._heads.max())
