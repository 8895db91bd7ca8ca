"""The router protocol: estimates each span's attention mass from a little of every key.

A router keeps tables on the device and turns a query into the log-mass of every span; the same
estimate is the logit of the summary row of a span that is not zoomed. It fetches nothing: see
`attention.host_records`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from engine.compression.layer_basis import Axes
from engine.compression.params import LayerParams, TrainedLayer
from engine.compression.span_tables import SpanTables
from engine.compression.statistics import NOT_GIVEN, Given


@dataclass(frozen=True)
class RoutedRows:
    """What a router is told of a window's rows beside the keys.

    owner: [n] the span of every token.  observed: [H, w, D] queries of the window's last tokens,
    for routers that look at them.  axes: of the layer's keys, found again where not given.
    """

    owner: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    observed: Tensor = field(default_factory=lambda: torch.empty(0))
    axes: Axes | None = None


NOT_TOLD = RoutedRows()


class Router(Protocol):
    key_names: ClassVar[tuple[str, ...]]
    """What a store calls `SpanTables.keys`: all of them, or each of several by itself."""

    gated: ClassVar[bool]
    """Whether what is zoomed is decided by `zoom_scores` and not by the estimated mass."""

    reads_summaries: ClassVar[bool]
    """Whether `build` reads the span keys; they are not made for a router that does not."""

    def fit(self, k: Tensor, params: LayerParams, given: Given = NOT_GIVEN) -> LayerParams:
        """The layer's parameters with the router's, from the first window's keys [Hkv, n, D].

        params: the codec's, whose basis may be shared.  given: statistics of the layer's rows,
        computed where they are needed and not given, and what a trained router knows of it.
        """
        ...

    def build(
        self, k: Tensor, summary: Tensor, params: LayerParams, rows: RoutedRows = NOT_TOLD
    ) -> SpanTables:
        """The tables of a window from keys [Hkv, n, D] and span keys [Hkv, S, D], which are
        [Hkv, 0, D] for a router that reads none."""
        ...

    def logmass(self, q: Tensor, tables: SpanTables, params: LayerParams, bounds: Tensor) -> Tensor:
        """Estimated log of the sum of exp(q.k / sqrt(D)) over each span.

        q: float32 [Hkv, Q, D]; bounds [S + 1] -> [Hkv, Q, S] nats.
        """
        ...

    def shrink(
        self, tables: SpanTables, params: LayerParams
    ) -> tuple[SpanTables, LayerParams] | None:
        """The same estimate at fewer bytes, or None where it cannot shrink."""
        ...

    def zoom_scores(
        self, q: Tensor, tables: SpanTables, params: LayerParams, bounds: Tensor
    ) -> Tensor:
        """Of a gated router: how much each span should be zoomed, [Hkv, S] in [0, 1]; one at 0
        never is.

        q: float32 [Hkv, G * Q, D], its rows by query head first.
        """
        ...

    @property
    def weights(self) -> str:
        """Fingerprint of the file with what the router has learnt; "" of one without training."""
        ...

    def example(self, heads: int, size: int) -> TrainedLayer:
        """Made-up weights of a layer in the shapes of the learnt ones.

        Raises:
            StoreError: no model has such shapes.
        """
        ...

    def device_share(self, size: int, span: float) -> float:
        """Expected bytes over those of 16-bit rows, for spans of about `span` tokens."""
        ...


class Untrained:
    """What routers share that decide only by their estimate and have learnt nothing beforehand."""

    key_names: ClassVar[tuple[str, ...]] = ()
    gated: ClassVar[bool] = False

    def zoom_scores(
        self, q: Tensor, tables: SpanTables, params: LayerParams, bounds: Tensor
    ) -> Tensor:
        raise TypeError(f"{type(self).__name__} has no thresholds")

    @property
    def weights(self) -> str:
        return ""

    def example(self, heads: int, size: int) -> TrainedLayer:
        return TrainedLayer()


class Unfitted(Untrained):
    """A router that also learns nothing of the document and cannot shrink."""

    reads_summaries: ClassVar[bool] = True

    def fit(self, k: Tensor, params: LayerParams, given: Given = NOT_GIVEN) -> LayerParams:
        return params

    def shrink(
        self, tables: SpanTables, params: LayerParams
    ) -> tuple[SpanTables, LayerParams] | None:
        return None
