"""Attention over exact rows, coded rows and span summaries in one softmax."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from engine.attention.index import SpanIndex
from engine.attention.resident import ResidentSpans
from engine.compression.code_space import from_basis, widened
from engine.compression.params import needed
from engine.compression.products import CodeProducts
from engine.compression.terms import PLAIN, Terms


def merge_resolutions(logits: list[Tensor], values: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Attend once over rows of mixed resolution: one softmax over all parts.

    Args:
        logits: parts [Hkv, Q, n_i] in float32 nats, scaled; -inf hides a row from a query.
        values: parts [Hkv, n_i, D].
    Returns:
        The output [Hkv, Q, D] in float32 and the weights of each part [Hkv, Q, n_i].
    Source: SeKV (arXiv 2606.31145), section 3.3. A row that stands for n tokens carries their
        log-mass as its logit; it is exact when the keys of the span agree.
    """
    top = logits[0].amax(-1, keepdim=True)
    for part in logits[1:]:
        if part.shape[-1]:
            top = torch.maximum(top, part.amax(-1, keepdim=True))
    top = top.clamp_min(torch.finfo(torch.float32).min)
    weights = [torch.exp(part - top) for part in logits]
    total = torch.stack([w.sum(-1, keepdim=True) for w in weights]).sum(0)
    total = total.clamp_min(1.0)  # its top row alone is one; less means that all are hidden
    weights = [w / total for w in weights]
    out = torch.zeros(
        *logits[0].shape[:2], values[0].shape[-1], dtype=torch.float32, device=top.device
    )
    for w, v in zip(weights, values, strict=True):
        if w.shape[-1]:
            out = torch.baddbmm(out, w, v.to(torch.float32))
    return out, weights


@dataclass(frozen=True, eq=False)
class QueryRows:
    """Query rows of a layer and the scores that are known of them, in nats.

    q: [Hkv, GQ, D] float32.  pinned: [Hkv, GQ, P] and live: [Hkv, GQ, n] with the exact rows.
    mass: [Hkv, GQ, F] of the summary rows, None where there are none. terms: of the softmax.
    sink: [Hkv, GQ, 1] of its sink, None where it has none.
    """

    q: Tensor
    pinned: Tensor
    live: Tensor
    mass: Tensor | None
    terms: Terms = PLAIN
    sink: Tensor | None = None

    def __len__(self) -> int:
        return int(self.q.shape[1])

    @property
    def columns(self) -> int:
        """Of live rows and summaries."""
        return int(self.live.shape[-1]) + (0 if self.mass is None else int(self.mass.shape[-1]))

    def pick(self, rows: Tensor) -> QueryRows:
        """Some of the rows, by number."""
        mass = None if self.mass is None else self.mass[:, rows]
        sink = None if self.sink is None else self.sink[:, rows]
        exact = self.pinned[:, rows], self.live[:, rows]
        return QueryRows(self.q[:, rows], *exact, mass, self.terms, sink)


@dataclass(frozen=True, eq=False)
class AttentionWeights:
    """Weights of one softmax, for every query head of a group.

    newest: [Hkv, G, n] of all slots for the newest query; total: the same, added up over the newest
    few. summary: [Hkv, G, F] of the summary rows for the newest query, None where there are none.
    """

    newest: Tensor
    total: Tensor
    summary: Tensor | None

    @classmethod
    def of(cls, weight: Tensor, summary: Tensor | None, rows: int, first: int) -> AttentionWeights:
        """From weights [Hkv, G * rows, n or F]; added up are the queries from `first` on."""
        each = weight.view(len(weight), -1, rows, weight.shape[-1])
        newest = slice(rows - 1, None, rows)
        total = each[:, :, first:].sum(2) if rows - first > 1 else each[:, :, -1]
        return cls(each[:, :, -1], total, None if summary is None else summary[:, newest])


@dataclass(frozen=True, eq=False)
class AttendedRows:
    """All rows that the queries of one forward attend to in one layer.

    slots: coded and exact rows of the document.  codes: products with the coded ones, see
    `ResidentSpans.products`.  index: the summary rows.  live_v: [Hkv, n, D] values of the question
    and the answer so far.
    """

    slots: ResidentSpans
    codes: CodeProducts | None
    index: SpanIndex
    live_v: Tensor

    def attend(self, queries: QueryRows) -> tuple[Tensor, Tensor, Tensor | None]:
        """One softmax over slots, live rows and summaries.

        Returns:
            The output [Hkv, GQ, D] and the weights of slots [Hkv, GQ, n] and of summaries
            [Hkv, GQ, F], None where there are none.
        """
        scores = self.slots.scores(queries.q, queries.pinned, self.codes, queries.terms)
        rest = [part for part in (queries.mass, queries.sink) if part is not None]
        weights = torch.cat([scores, queries.live, *rest], -1).softmax(-1)
        before, behind = scores.shape[-1], scores.shape[-1] + queries.live.shape[-1]
        weight, live = weights[..., :before], weights[..., before:behind]
        summary = None
        if queries.mass is not None:
            summary = weights[..., behind : behind + queries.mass.shape[-1]]
        out, coefs, total = self.slots.outputs(weight, self.codes)
        out = torch.baddbmm(out, live, self.live_v.float())
        if summary is not None:
            sums, space = self.index.value_sums(summary), self.index.space
            if space is None:
                out += sums
            else:
                more = summary.sum(-1, keepdim=True)
                sums = space.value(sums, more)
                coefs, total = (sums, more) if coefs is None else _added(coefs, sums, total, more)
        if coefs is not None:
            out += from_basis(coefs, total, needed(self.slots.params.values))
        return out, weight, summary

    def weights(self, queries: QueryRows, places: Tensor, at_once: int) -> AttentionWeights:
        """Weights of some query rows, of which no more than `at_once` are attended to at a time.

        places: int64 [G, n] of these rows, for every head of a group the newest last.
        """
        step = max(1, at_once // len(places))
        found = []
        for at in range(0, places.shape[1], step):
            some = places[:, at : at + step]
            _, weight, summary = self.attend(queries.pick(some.reshape(-1)))
            found.append(AttentionWeights.of(weight, summary, some.shape[1], 0))
        return replace(found[-1], total=torch.stack([each.total for each in found]).sum(0))


def _added(a: Tensor, b: Tensor, total: Tensor, more: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients of two kinds in one basis, and their weights, together."""
    size = max(a.shape[-1], b.shape[-1])
    return widened(a, size) + widened(b, size), total + more
