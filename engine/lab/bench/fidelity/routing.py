"""Do routers find what attention weighs most? Recall of the true mass, head by head.

Every router keeps its own few bytes per token and ranks the same document's spans for the same
queries. Beside the mass found stands what an oracle finds that knows the true mass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.compression import encode
from engine.compression.choose_spans import choose
from engine.compression.methods import METHODS, Method
from engine.compression.params import LayerParams, needed
from engine.compression.ranges import span_ids
from engine.compression.routers import two_level
from engine.compression.routers.base import RoutedRows
from engine.compression.routers.baselines import Box, Representatives, SecondOrder
from engine.compression.routers.sketch import MeanKey, Sketch
from engine.compression.routers.two_level import Levels
from engine.compression.scores import NEG_INF, span_logsumexp
from engine.compression.span_tables import SpanTables
from engine.compression.spans import COMPRESSED, Fixed, Spans
from engine.compression.statistics import NOT_GIVEN
from engine.compression.summaries import SurprisalMean
from engine.lab.bench.bootstrap import interval
from engine.lab.bench.fidelity.subjects import AskedQuestion, Subject, scores_of

SHARES = (1, 2, 5, 10, 20)
"""Per cent of a window's tokens that a router may pick."""

COVERAGES = (80, 95)
"""Per cent of every row's attention that is asked to be exact."""


@dataclass(frozen=True)
class Contender:
    """weighted: keys are weighed by queries and layers share the bits. spans_first: tokens are
    scored in the best spans alone, see `two_level`."""

    recipe: Method
    weighted: bool = False
    spans_first: bool = False


def contenders() -> dict[str, Contender]:
    """Routers that take the bytes of one half-precision key for 16 tokens, and smaller sketches."""
    plain = replace(METHODS["sekv"], segmenter=Fixed(16))

    def spans(length: int, **changes: Any) -> Contender:
        return Contender(replace(plain, segmenter=Fixed(length), **changes))

    sketch = Sketch(bits=1.0)
    return {
        "mean key": spans(16, router=MeanKey()),
        "surprisal-weighted mean": spans(
            16, router=MeanKey(), summariser=SurprisalMean(plain.summariser.value_bits)
        ),
        "second order": spans(32, router=SecondOrder(1)),
        "box": spans(32, router=Box()),
        "2 representatives": spans(32, router=Representatives(2)),
        "4 representatives": spans(64, router=Representatives(4)),
        "sketch, 1 bit, by variance": spans(16, router=sketch),
        "sketch, 1 bit": Contender(replace(plain, router=sketch), weighted=True),
        "sketch, 0.5 bit": Contender(replace(plain, router=Sketch(bits=0.5)), weighted=True),
        "method sekv": Contender(METHODS["sekv"], weighted=True),
    }


def levels() -> dict[str, Contender]:
    """The default router as it is, and as it scores where a view is very long."""
    plain = Contender(METHODS["sekv"], weighted=True)
    shares = (0.125, 0.25, 0.5)
    return {
        "every token": plain,
        **{
            f"tokens of {share:.1%} of the spans": replace(
                plain, recipe=replace(plain.recipe, levels=Levels(0, share)), spans_first=True
            )
            for share in shares
        },
    }


@dataclass
class _Cells:
    """What was found, [questions][layers * Hkv]. of: the document each question belongs to."""

    found: dict[int, list[Tensor]] = field(default_factory=lambda: {p: [] for p in SHARES})
    best: dict[int, list[Tensor]] = field(default_factory=lambda: {p: [] for p in SHARES})
    rank: list[Tensor] = field(default_factory=list)
    error: list[Tensor] = field(default_factory=list)
    of: list[int] = field(default_factory=list)
    of_rank: list[int] = field(default_factory=list)
    covered: dict[int, list[Tensor]] = field(default_factory=lambda: {c: [] for c in COVERAGES})
    bytes_share: list[float] = field(default_factory=list)


class Routing:
    """Adds up documents; `report` says what came out."""

    def __init__(self, routers: Mapping[str, Contender] | None = None) -> None:
        self._routers = contenders() if routers is None else routers
        self._cells = {name: _Cells() for name in self._routers}
        self._documents = 0

    @torch.inference_mode()
    def add(self, subject: Subject) -> None:
        for name, contender in self._routers.items():
            self._add(self._cells[name], contender, subject)
        self._documents += 1

    def _add(self, cells: _Cells, contender: Contender, subject: Subject) -> None:
        recipe = contender.recipe
        spans = encode.segment(recipe, subject.surprisal, subject.pieces, last=True)
        given = encode.prepare(recipe, subject.rows, subject.learnt) if contender.weighted else []
        built, kept = [], 0
        for layer, (k, v) in enumerate(subject.rows):
            known = given[layer] if given else NOT_GIVEN
            params = encode.fit(recipe, k, v, subject.surprisal, spans, known)
            keys = recipe.summariser.summarise(k, subject.surprisal, spans.bounds)
            rows = RoutedRows(span_ids(spans.bounds))
            tables = recipe.router.build(k, keys, params, rows)
            if contender.spans_first:
                params = two_level.fit(tables, params, spans.bounds)
                tables = two_level.build(tables, params, spans.bounds)
                kept += needed(params.bounds).nbytes
            built.append((tables, params))
            kept += tables.nbytes
            if params.sketch is not None:
                kept += LayerParams(keys=params.keys).nbytes
                kept += params.sketch.bits.nbytes + params.sketch.step.nbytes
        full = sum(2 * (k.numel() + v.numel()) for k, v in subject.rows)
        cells.bytes_share.append(kept / full)
        for asked in subject.asked:
            ranked = [
                _RankedQuery.of(recipe, layer, subject, asked, spans, *built[layer])
                for layer in range(len(subject.rows))
            ]
            for p in SHARES:
                for into, ranks in ((cells.found, "scores"), (cells.best, "truth")):
                    into[p].append(torch.cat([each.found(p, ranks) for each in ranked]))
            for c in COVERAGES:
                cells.covered[c].append(torch.stack([each.covered(c) for each in ranked]).mean(0))
            cells.error.append(torch.cat([each.error() for each in ranked]))
            cells.of.append(self._documents)
            if asked.value:
                cells.rank.append(torch.cat([each.rank(asked.value) for each in ranked]))
                cells.of_rank.append(self._documents)

    def report(self) -> dict[str, Any]:
        """Per router: bytes over 16-bit keys and values, recall by share of tokens, ranks."""
        return {name: self._line(cells) for name, cells in self._cells.items() if cells.of}

    def _line(self, cells: _Cells) -> dict[str, Any]:
        shares = {}
        for p in SHARES:
            found, best = torch.stack(cells.found[p]), torch.stack(cells.best[p])
            shares[str(p)] = {
                "mean": float(found.mean()),
                "interval": interval(_by(cells.of, found.mean(1).tolist())),
                "percentile_5": float(np.quantile(found.numpy(), 0.05)),
                "oracle": float(best.mean()),
                # Where no span fits the share, nobody finds anything and nothing is missed.
                "of_oracle": float(found.mean() / best.mean()) if bool(best.any()) else 1.0,
                "heads": [round(x, 4) for x in found.mean(0).tolist()],
                "heads_percentile_5": [
                    round(x, 4) for x in np.quantile(found.numpy(), 0.05, axis=0).tolist()
                ],
            }
        line: dict[str, Any] = {
            "device_bytes": sum(cells.bytes_share) / len(cells.bytes_share),
            "logmass_error_nats": float(torch.stack(cells.error).mean()),
            "tokens_picked": shares,
            "coverage": {
                str(c): dict(
                    zip(
                        ("estimated", "true", "least_true", "tokens"),
                        torch.stack(found).mean(0).tolist(),
                        strict=True,
                    )
                )
                for c, found in cells.covered.items()
            },
        }
        if cells.rank:
            ranks = torch.stack(cells.rank).float()
            first = ranks.amin(1)
            line["answer_rank"] = {
                "questions": len(ranks),
                "best_head_median": float(first.median()),
                "best_head_percentile_95": float(np.quantile(first.numpy(), 0.95)),
                "first_by_some_head": float((first == 1).float().mean()),
                "interval": interval(_by(cells.of_rank, (first == 1).float().tolist())),
                "heads_median": ranks.median(0).values.tolist(),
            }
        return line


@dataclass(frozen=True)
class _RankedQuery:
    """One question in one layer. estimate, truth: shares of all attention, [Hkv, R, S], zero for
    spans that are always exact. scores: the estimate as spans are ranked by it."""

    estimate: Tensor
    scores: Tensor
    truth: Tensor
    bounds: Tensor

    @classmethod
    def of(
        cls,
        recipe: Method,
        layer: int,
        subject: Subject,
        asked: AskedQuestion,
        spans: Spans,
        tables: SpanTables,
        params: LayerParams,
    ) -> _RankedQuery:
        q = asked.queries[layer]
        scores = scores_of(q, subject.rows[layer][0])
        true = span_logsumexp(scores, spans.bounds)
        router, refined = recipe.router, torch.ones(1, dtype=torch.bool)
        if tables.means is not None:
            guess, chosen = two_level.logmass(recipe.levels, q, tables, params, spans.bounds)
            refined = chosen[:, None]
        else:
            guess = router.logmass(q, tables, params, spans.bounds)
        exact = spans.kind != COMPRESSED
        beside = torch.cat(
            [
                scores_of(q, subject.prefix[layer][0]),
                asked.live_scores(layer),
                true[..., exact],
            ],
            -1,
        ).logsumexp(-1, keepdim=True)
        shares = []
        for mass in (guess, true):
            coded = mass.masked_fill(exact, NEG_INF)
            total = torch.logaddexp(coded.logsumexp(-1, keepdim=True), beside)
            shares.append(torch.exp(coded - total))
        return cls(shares[0], two_level.ranked(shares[0], refined), shares[1], spans.bounds)

    def found(self, percent: float, ranks: str) -> Tensor:
        """Share of the compressed spans' true mass in the best `percent` of tokens, [Hkv]."""
        order = getattr(self, ranks).argsort(dim=-1, descending=True, stable=True)
        lengths = self.bounds.diff()
        fits = lengths[order].cumsum(-1) <= percent / 100 * int(self.bounds[-1])
        mass = (self.truth.gather(-1, order) * fits).sum((1, 2))
        return mass / self.truth.sum((1, 2)).clamp_min(1e-30)

    def covered(self, percent: float) -> Tensor:
        """What is exact when `percent` of every row's attention is asked for and nothing limits it:
        estimated, true, true of the row that has least, and the share of tokens zoomed, [4]."""
        share = self.estimate.amax(1)
        free = torch.zeros(1, *share.shape)
        zoomed = choose(share, free, free[..., 0], 1 - percent / 100, self.estimate)
        guess, true = (1 - (x * ~zoomed[:, None]).sum(-1) for x in (self.estimate, self.truth))
        tokens = (zoomed * self.bounds.diff()).sum(-1) / self.bounds[-1]
        least = true.amin(1)
        return torch.stack([x.mean() for x in (guess, true, least, tokens)])

    def rank(self, value: range) -> Tensor:
        """The place of the answer's best span by its share for any row, 1 the first, [Hkv]."""
        first, last = (
            int(torch.searchsorted(self.bounds, at, right=True)) - 1
            for at in (value.start, value.stop - 1)
        )
        share = self.scores.amax(1)
        best = share[:, first : last + 1].amax(-1, keepdim=True)
        return (share > best).sum(-1) + 1

    def error(self) -> Tensor:
        """How far the estimated log of the compressed spans' mass is from the truth, weighted by
        the true mass, in nats [Hkv]."""
        guess, true = (x.sum(-1).clamp_min(1e-30) for x in (self.estimate, self.truth))
        return ((guess.log() - true.log()).abs() * true).sum(-1) / true.sum(-1).clamp_min(1e-30)


def _by(owner: list[int], values: list[float]) -> list[list[float]]:
    """Values grouped by document."""
    groups: dict[int, list[float]] = {}
    for document, value in zip(owner, values, strict=True):
        groups.setdefault(document, []).append(value)
    return list(groups.values())
