"""What is computed once of a layer's keys and values, for its codec, its router and its summaries.

Means, covariances and bases of the first window's rows, and what leaving out a component of them
costs; see `encode.prepare`, which lets the layers share their bits by it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.compression.codecs.layer_basis import FittedAxes, LayerAxes, LentBases, fit_axes
from engine.compression.query_statistics import QueryMoments


@dataclass(frozen=True)
class LayerStatistics:
    """The statistics of one layer.

    keys, values: their axes, those of keys weighted by queries where these are known.
    sketch_cost: [Hkv, D] what leaving out a component of the keys costs: squared nats of score
        where queries are known, else its share of the variance. Routers do without what an error
        is worth to a head: what one that now looks elsewhere will look for is not known.
    code_cost: [2 Hkv, D] the same of keys and then of values, times what it is worth to the head's
        output.
    code_price, sketch_price: what a bit of the codes and of the sketch must save, see
        `quantize.bit_price`; None where the layer spends the bits of all layers on its own.
    """

    keys: FittedAxes
    values: FittedAxes
    sketch_cost: Tensor
    code_cost: Tensor
    code_price: float | None = None
    sketch_price: float | None = None

    @classmethod
    def of(
        cls,
        k: Tensor,
        v: Tensor,
        queries: QueryMoments | None = None,
        lent: LentBases | None = None,
    ) -> LayerStatistics:
        """k, v: [Hkv, n, D] rows.  queries: what they meet.  lent: the model's own bases."""
        metrics = (None, None) if queries is None else (queries.moment, queries.outputs)
        others = (None, None) if lent is None else (lent.keys, lent.values)
        keys = fit_axes("k", k, metrics[0], others[0])
        values = fit_axes("v", v, metrics[1], others[1])
        of_values = _share(values.variance)
        if queries is None:
            of_keys = _share(keys.variance)
            return cls(keys, values, of_keys, torch.cat([of_keys, of_values]))
        of_keys = keys.variance / keys.variance.shape[-1]
        worth = of_keys * queries.score_worth[:, None], of_values * queries.value_worth[:, None]
        return cls(keys, values, of_keys, torch.cat(worth))

    @property
    def axes(self) -> LayerAxes:
        return LayerAxes(self.keys.axes, self.values.axes)


def _share(variance: Tensor) -> Tensor:
    """Of each component [Hkv, D] its share of the head's variance."""
    return variance / variance.sum(-1, keepdim=True).clamp_min(1e-30)
