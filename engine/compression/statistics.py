"""Statistics of a layer's keys and values, computed once for its codec, router and summaries.

Means, covariances and bases of the first window's rows, and what leaving out a component of them
costs; see `encode.prepare`, which lets the layers share their bits by it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine.compression.layer_basis import FittedAxes, LayerAxes, fit_axes
from engine.compression.params import LayerCalibration, ModelBases, TrainedLayer
from engine.compression.query_statistics import QueryMoments


@dataclass(frozen=True)
class LayerStatistics:
    """The statistics of one layer.

    keys, values: their axes, those of keys weighted by queries where these are known.
    sketch_cost: [Hkv, D] what leaving out a component of the keys costs: squared nats of score
        where queries are known, else its share of the variance. Routers do without how much
        an error weighs in a head: what one that now attends elsewhere will seek is not known.
    code_cost: [2 Hkv, D] the same of keys and then of values, times how much it weighs in the
        head's output.
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
        model: ModelBases | None = None,
    ) -> LayerStatistics:
        """k, v: [Hkv, n, D] rows.  queries: what they meet.  model: its own bases."""
        metrics = (None, None) if queries is None else (queries.moment, queries.outputs)
        others = (None, None) if model is None else (model.keys, model.values)
        keys = fit_axes(k, metrics[0], others[0])
        values = fit_axes(v, metrics[1], others[1])
        of_values = _share(values.variance)
        if queries is None:
            of_keys = _share(keys.variance)
            return cls(keys, values, of_keys, torch.cat([of_keys, of_values]))
        of_keys = keys.variance / keys.variance.shape[-1]
        costs = of_keys * queries.score_weight[:, None], of_values * queries.value_weight[:, None]
        return cls(keys, values, of_keys, torch.cat(costs))

    @property
    def axes(self) -> LayerAxes:
        return LayerAxes(self.keys.axes, self.values.axes)


@dataclass(frozen=True)
class Given:
    """What is known of a layer beside its rows when its parameters are fitted.

    statistics: of the first window's rows, the prices of a bit among them; without, they are
        computed and the layer spends the bits of all layers on its own.
    """

    statistics: LayerStatistics | None = None
    trained: TrainedLayer = field(default_factory=TrainedLayer)
    calibrated: LayerCalibration | None = None


NOT_GIVEN = Given()


def _share(variance: Tensor) -> Tensor:
    """Of each component [Hkv, D] its share of the head's variance."""
    return variance / variance.sum(-1, keepdim=True).clamp_min(1e-30)
