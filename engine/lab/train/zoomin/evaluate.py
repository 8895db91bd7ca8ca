"""Does a trained router find what the untrained one of the same device bytes misses?

Held-out documents, the routers as `ask` runs them, and the reader's true attention. No training.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine.attention.view import View
from engine.compression import encode
from engine.compression.codecs.shared_basis import SharedBasis
from engine.compression.methods import METHODS, Method, with_router
from engine.compression.params import LayerParams, TrainedLayer
from engine.compression.routers.sketch import Sketch
from engine.compression.span_tables import SpanTables
from engine.compression.spans import COMPRESSED, Spans
from engine.compression.statistics import Given
from engine.lab.train.zoomin.student import cut, fitted
from engine.lab.train.zoomin.teacher import TeacherBlock, TeacherQueries, TeacherReading, span_mass

if TYPE_CHECKING:
    from engine.compression.routers.router_file import TrainedRouter

ZOOMED = 0.05
"""Share of a document's tokens that a ranking may zoom."""

BITS = 0.5
"""Of the untrained sketch: about what a budget of a twentieth leaves of the default."""


@torch.no_grad()
def found(
    trained: TrainedRouter,
    documents: Iterable[tuple[TeacherReading, list[TeacherBlock]]],
) -> dict[str, dict[str, float]]:
    """Share of the attention on compressed spans that lies in the twentieth of tokens ranked first.

    Attention of all documents, layers, heads and mined positions is added up, so that a head which
    hardly looks at the document hardly counts.

    Returns:
        by method "untrained", "trained" and "oracle"; methods for which nothing was learnt are
        left out.
    """
    sums: dict[str, dict[str, float]] = {}
    for reading, blocks in documents:
        for method in ("sekv-paper", "sekv"):
            plain = fitted(METHODS[method], reading.tokens)
            if isinstance(plain.router, Sketch):
                plain = replace(plain, router=Sketch(BITS))
            else:
                plain = replace(plain, codec=SharedBasis(8))  # of no matter here, and quick
            routed = with_router(plain, trained)
            spans = cut(plain, reading)
            if routed == plain or not bool((spans.kind == COMPRESSED).any()):
                continue
            rows = [(k.cpu().float(), v.cpu().float()) for k, v in reading.rows]
            untrained = _ranks(plain, rows, reading, spans, [])
            same = _ranks(routed, rows, reading, spans, trained.layers)
            spare = sum(rank.bytes for rank in untrained) - sum(rank.bytes for rank in same)
            if isinstance(routed.router, Sketch) and spare > 0:
                bits = BITS + 8 * spare / sum(k.numel() for k, _ in rows)
                more = replace(routed, router=Sketch(bits))
                same = _ranks(more, rows, reading, spans, trained.layers)
            for layer, pair in enumerate(zip(untrained, same, strict=True)):
                ranks = dict(zip(("untrained", "trained"), pair, strict=True))
                for block in blocks:
                    row = _shares(ranks, block.layers[layer], block.mined)
                    table = sums.setdefault(method, dict.fromkeys(row, 0.0))
                    for name, value in row.items():
                        table[name] += value
    return {
        method: {name: value / row["all"] for name, value in row.items() if name != "all"}
        for method, row in sums.items()
    }


def _ranks(
    recipe: Method,
    rows: list[tuple[Tensor, Tensor]],
    reading: TeacherReading,
    spans: Spans,
    trained: list[TrainedLayer],
) -> list[_Ranks]:
    """Every layer of a document, as `ingest` compresses it."""
    known = encode.prepare(recipe, rows, reading.asked, trained, reading.tokens)
    return [
        _Ranks.of(recipe, given, row, reading, spans)
        for given, row in zip(known, rows, strict=True)
    ]


class _Ranks:
    """One layer of a document under one router: how it ranks the compressed spans."""

    def __init__(
        self,
        recipe: Method,
        tables: SpanTables,
        params: LayerParams,
        k: Tensor,
        view: View,
        tokens: int,
    ):
        """tables: of the view's spans.  k: [Hkv, n, D] their keys.  tokens: of the document."""
        self.recipe, self.tables, self.params = recipe, tables, params
        self.k, self.view, self.tokens = k, view, tokens

    @property
    def bytes(self) -> int:
        """On a device, of everything but exact rows."""
        return self.tables.nbytes + self.params.nbytes

    @classmethod
    def of(
        cls,
        recipe: Method,
        known: Given,
        row: tuple[Tensor, Tensor],
        reading: TeacherReading,
        spans: Spans,
    ) -> _Ranks:
        k, v = row
        params = encode.fit(recipe, k, v, reading.surprisal, spans, known)
        made = encode.compress_layer(recipe, k, v, reading.surprisal, spans, params)
        one = torch.zeros(len(spans.kind), dtype=torch.int64)
        everything = View.of(torch.arange(len(spans.kind)), spans.bounds, one)
        compressed = spans.kind == COMPRESSED
        view, rows = everything.pick(compressed)
        tables = made.device.tables.pick(rows, compressed)
        return cls(recipe, tables, params, k[:, rows], view, reading.tokens)

    def scores(self, target: TeacherQueries, mined: Tensor) -> Tensor:
        """[Hkv, M, S], higher first, of the mined positions."""
        q = target.queries[:, :, mined].cpu()
        router, bounds = self.recipe.router, self.view.bounds
        heads, group, count, size = q.shape
        if router.gated:
            by_row = (q[:, :, row] for row in range(count))
            found = [router.zoom_scores(each, self.tables, self.params, bounds) for each in by_row]
            return torch.stack(found, 1)
        mass = router.logmass(q.reshape(heads, -1, size), self.tables, self.params, bounds)
        total = target.total[:, :, mined].cpu()
        return (mass.reshape(heads, group, count, -1) - total[..., None]).amax(1)


def _shares(ranks: dict[str, _Ranks], target: TeacherQueries, mined: Tensor) -> dict[str, float]:
    """The attention that each ranking finds, that the true mass would, and all of it, added up."""
    first = ranks["trained"]
    q = target.queries[:, :, mined].cpu()
    heads, group, count, size = q.shape
    mass = span_mass(q.reshape(heads, -1, size), first.k, first.view.bounds)
    mass = mass.reshape(heads, group, count, -1)
    weight = mass - target.total[:, :, mined].cpu()[..., None]
    share = weight.exp().sum(1)
    scores = {name: rank.scores(target, mined) for name, rank in ranks.items()}
    scores["oracle"] = weight.amax(1)
    room = ZOOMED * first.tokens
    out = {"all": float(share.sum())}
    for name, score in scores.items():
        order = score.sort(dim=-1, descending=True, stable=True).indices
        fits = first.view.lengths[order].cumsum(-1) <= room
        out[name] = float((share.gather(-1, order) * fits).sum())
    return out
