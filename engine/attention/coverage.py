"""Coverage: how much of the attention of a question and its answer was exact."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Coverage:
    """How much of the attention was exact: pinned, live or zoomed rows, and not summaries.

    What a summary row weighs is the router's estimate, so this is one too. Means are over the
    rows and query heads of all steps; least: of the KV head that had most in summaries.
    """

    summaries: dict[int, Tensor] = field(default_factory=dict)
    rows: dict[int, int] = field(default_factory=dict)

    def note(self, layer: int, weight: Tensor) -> None:
        """weight: [Hkv, GQ, F] of a layer's summary rows."""
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
