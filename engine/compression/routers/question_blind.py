"""Question-blind routers: rankings that are made at prefill and follow no question.

The published methods take the last tokens of a prompt that ends in the question as observers.
A store knows no question, so the observers are the last tokens of each window of the document.
A ranking is a log-share of attention per token; it is read once and never lies on the device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.compression.params import LayerParams, needed
from engine.compression.routers.base import NOT_TOLD, RoutedRows, Unfitted
from engine.compression.scores import NEG_INF, group_queries
from engine.compression.span_tables import SpanTables
from engine.compression.statistics import NOT_GIVEN, Given

LEAST = 1e-12  # a share of attention that cannot be told from none


@dataclass(frozen=True)
class Recency(Unfitted):
    """The later the better.

    Source: StreamingLLM (arXiv 2309.17453): the first tokens, which are pinned, and the last.
    """

    def build(
        self, k: Tensor, summary: Tensor, params: LayerParams, rows: RoutedRows = NOT_TOLD
    ) -> SpanTables:
        return SpanTables()

    def logmass(self, q: Tensor, tables: SpanTables, params: LayerParams, bounds: Tensor) -> Tensor:
        place = (bounds[1:].float() / bounds[-1]).log()
        return place.expand(*q.shape[:2], -1)

    def device_share(self, size: int, span: float) -> float:
        return 0.5 / size


@dataclass(frozen=True)
class Observed(Unfitted):
    """The attention that the last `rows` tokens give, pooled over `kernel` neighbours, by KV head.

    Source: SnapKV (arXiv 2404.14469), section 4; the mean over the query heads of a group as in
    the common implementation for grouped attention.
    """

    rows: int = 32
    kernel: int = 5

    def build(
        self, k: Tensor, summary: Tensor, params: LayerParams, rows: RoutedRows = NOT_TOLD
    ) -> SpanTables:
        share = observed_attention(rows.observed, k)
        share = _pooled(share.reshape(len(k), -1, k.shape[1]).mean(1), self.kernel)
        return SpanTables(ranks=_by_span(share, rows.owner, summary.shape[1]))

    def logmass(self, q: Tensor, tables: SpanTables, params: LayerParams, bounds: Tensor) -> Tensor:
        return needed(tables.ranks).to(q.device)[:, None].expand(-1, q.shape[1], -1)

    def device_share(self, size: int, span: float) -> float:
        return 1.0 / size


@dataclass(frozen=True)
class RetrievalHeads(Observed):
    """The same, by the layer's semantic retrieval heads alone and for all KV heads alike.

    Which heads these are is calibrated per model beforehand (`sekv train heads`).
    Source: CompressKV (arXiv 2606.24467), section 3.
    """

    rows: int = 8

    def fit(self, k: Tensor, params: LayerParams, given: Given = NOT_GIVEN) -> LayerParams:
        return replace(params, calibration=needed(given.calibrated))

    def build(
        self, k: Tensor, summary: Tensor, params: LayerParams, rows: RoutedRows = NOT_TOLD
    ) -> SpanTables:
        heads = needed(params.calibration).heads.long()
        group = rows.observed.shape[0] // len(k)
        share = observed_attention(rows.observed[heads], k[heads // group])
        share = _pooled(share.mean(0, keepdim=True), self.kernel)
        ranks = _by_span(share, rows.owner, summary.shape[1])
        return SpanTables(ranks=ranks.expand(len(k), -1).contiguous())


def layer_budgets(shares: list[float], rows: int, least: int = 32, most: float = 3.0) -> list[int]:
    """Rows of each layer by its share of error: together exactly `rows` times the layers.

    Args:
        shares: [L], positive, of any scale.  rows: of a layer on average.
        least: rows every layer has, or a half of the average where that is fewer.
        most: no layer has more than so many times the average.
    Source: CompressKV (arXiv 2606.24467), section 3.3 and its code: a base of 32, the rest in
        proportion, clipped, and what rounding leaves given out in the order of the shares.
    """
    layers, total = len(shares), rows * len(shares)
    least = min(least, rows // 2)
    ceiling = max(rows, int(most * rows))
    given = [least + round(share / sum(shares) * (total - least * layers)) for share in shares]
    given = [min(ceiling, max(least, number)) for number in given]
    order = sorted(range(layers), key=lambda layer: -shares[layer])
    step = 1 if sum(given) < total else -1
    while sum(given) != total:
        for layer in order if step > 0 else reversed(order):
            if sum(given) != total and least <= given[layer] + step <= ceiling:
                given[layer] += step
    return given


def observed_attention(q: Tensor, k: Tensor) -> Tensor:
    """Mean attention of the last rows of a window to each of its tokens.

    Args:
        q: [H, w, D] scaled queries of the last w tokens.  k: [Hkv, n, D].
    Returns:
        [H, n] float32; the prompt before the document is left out of the softmax.
    """
    rows, n = q.shape[1], k.shape[1]
    grouped = group_queries(q, len(k))
    scores = torch.bmm(grouped, k.float().mT) / math.sqrt(q.shape[-1])
    seen = torch.ones(rows, n, dtype=torch.bool).tril(n - rows).repeat(len(q) // len(k), 1)
    share = scores.masked_fill(~seen, NEG_INF).softmax(-1)
    return share.reshape(len(q), rows, n).mean(1)


def _pooled(share: Tensor, kernel: int) -> Tensor:
    return F.avg_pool1d(share[:, None], kernel, 1, kernel // 2)[:, 0]


def _by_span(share: Tensor, owner: Tensor, spans: int) -> Tensor:
    """Log of each span's share, float32 [.., S]."""
    total = torch.zeros(len(share), spans).index_add_(1, owner, share)
    return total.clamp_min(LEAST).log()
