"""A layer that attends through the router while it learns, and how far that is from the teacher.

The forward is what `attention.layer.LayerMemory` does, with gradients: choices are made hard and
passed on soft (straight through).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from engine.attention.view import View
from engine.compression.basis import span_svd
from engine.compression.codecs.rank_gates import RANK, rank_gates
from engine.compression.encode import pinned_tokens, segment
from engine.compression.methods import Method
from engine.compression.ranges import span_ids
from engine.compression.routers.trained_spans import zoom_logits
from engine.compression.scores import NEG_INF, group_queries
from engine.compression.spans import COMPRESSED, Spans
from engine.compression.terms import PLAIN, Terms
from engine.lab.train.zoomin.forms import SpanForm
from engine.lab.train.zoomin.teacher import TeacherQueries, TeacherReading, span_mass

SOFTNESS = 0.1
"""Width of the sigmoid through which a threshold's gradient passes, as published."""

COVERED = 0.9
"""rho of the paper: the spans to zoom are the fewest that draw this share of the attention."""

RECOMPUTED = 2**24
"""Scores of a layer and block from which on they are not kept for the gradient."""


@dataclass(frozen=True)
class StudentDocument:
    """One layer of a document as a recipe compresses it. All tensors on the layer's device.

    exact_k, exact_v: [Hkv, P, D] prefix and pinned tokens. k, v: [Hkv, n, D] of compressed tokens,
    by span; bounds [S + 1], lengths [S] and ids [n] say which. summary_k, summary_v: [Hkv, S, D].
    """

    exact_k: Tensor
    exact_v: Tensor
    k: Tensor
    v: Tensor
    bounds: Tensor
    lengths: Tensor
    ids: Tensor
    summary_k: Tensor
    summary_v: Tensor


def fitted(recipe: Method, tokens: int) -> Method:
    """The recipe with a local window that leaves a short document something to compress."""
    return replace(recipe, local=min(recipe.local, tokens // 4))


def cut(recipe: Method, reading: TeacherReading) -> Spans:
    """The spans of a document under a recipe."""
    return segment(recipe, reading.surprisal, reading.pieces, last=True)


def compressed_layer(
    recipe: Method, reading: TeacherReading, spans: Spans, layer: int
) -> StudentDocument | None:
    """Compress one layer; None where every token stays exact."""
    (k, v), (prefix_k, prefix_v) = reading.rows[layer], reading.prefix[layer]
    view = View.of(
        torch.nonzero(spans.kind == COMPRESSED)[:, 0],
        spans.bounds,
        torch.zeros(len(spans.kind), dtype=torch.int64),
    )
    if not len(view.spans):
        return None
    everything = View.of(torch.arange(len(spans.kind)), spans.bounds, torch.zeros(len(spans.kind)))
    _, rows = everything.pick(spans.kind == COMPRESSED)
    pinned = pinned_tokens(spans.bounds, spans.kind)
    weights = reading.surprisal[rows]
    bounds = view.bounds
    k_rows, v_rows = k[:, rows].float(), v[:, rows].float()
    place = k.device
    return StudentDocument(
        torch.cat([prefix_k, k[:, pinned]], 1).float(),
        torch.cat([prefix_v, v[:, pinned]], 1).float(),
        k_rows,
        v_rows,
        bounds.to(place),
        view.lengths.to(place),
        span_ids(bounds).to(place),
        recipe.summariser.summarise(k_rows, weights.to(place), bounds.to(place)),
        recipe.summariser.summarise(v_rows, weights.to(place), bounds.to(place)),
    )


class SpanLayer:
    """The published form: a span is a summary row or, where its gate opens, its rebuilt rows.

    Source: SeKV (arXiv 2606.31145), sections 3.3 and 3.4.
    """

    def __init__(self, form: SpanForm, layer: int, document: StudentDocument):
        self.form, self.layer, self.document = form, layer, document
        self._spent: Tensor | None = None
        self._factors = [_factors(x, document) for x in (document.k, document.v)]

    def attend(
        self,
        q: Tensor,
        live_k: Tensor,
        live_v: Tensor,
        seen: Tensor | None,
        terms: Terms = PLAIN,
    ) -> Tensor:
        terms.check_plain("training a router")
        with torch.autocast(q.device.type, enabled=False):  # a bias of log n needs float32
            made = _lean(self._attend, self.document, q, live_k, live_v, seen)
        out, self._spent = made
        return out

    def _attend(
        self, q: Tensor, live_k: Tensor, live_v: Tensor, seen: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        f = self.document
        heads, _, size = f.k.shape
        rows = q.shape[1]
        grouped = group_queries(q, heads)
        scale = 1 / math.sqrt(size)
        learnt = self.form.zoom(self.layer)
        by_head = grouped.reshape(heads, -1, rows, size)
        scores = zoom_logits(by_head, f.summary_k, learnt.w.to(f.k), f.lengths)
        zoom = straight_through(scores.sigmoid(), learnt.tau.to(f.k)[..., None, None])
        opened = zoom.reshape(heads, -1, len(f.lengths))
        rebuilt_k, rebuilt_v = (self._rebuilt(i) for i in (0, 1))
        near = torch.bmm(grouped, live_k.float().mT) * scale
        if seen is not None:
            near = near.masked_fill(~seen.repeat(grouped.shape[1] // rows, 1), NEG_INF)
        exact = torch.bmm(grouped, f.exact_k.mT) * scale
        coarse = torch.bmm(grouped, f.summary_k.mT) * scale + f.lengths.to(grouped).log()
        fine = torch.bmm(grouped, rebuilt_k.mT) * scale
        out = gated_mix(
            [
                (exact, None, f.exact_v),
                (near, None, live_v.float()),
                (coarse, 1 - opened, f.summary_v),
                (fine, opened[..., f.ids], rebuilt_v),
            ]
        )
        return out.reshape(-1, rows, size), zoom.mean()

    def _rebuilt(self, which: int) -> Tensor:
        """All compressed rows from their gated factors, [Hkv, n, D]."""
        f = self.document
        heads, tokens, size = f.k.shape
        out = f.k.new_zeros(heads, tokens, size)
        for index, u, w, energy, context in self._factors[which]:
            gates = rank_gates(energy, context, self.form.rank_gates)
            rows = torch.bmm(u * gates[:, None], w)
            flat = rows.reshape(heads, -1, size)
            out = out.index_copy(1, index, flat)
        return out

    def losses(self, target: TeacherQueries, mined: Tensor) -> dict[str, Tensor]:
        f = self.document
        q = target.queries[:, :, mined.to(f.k.device)]
        heads, _, _, size = q.shape
        w = self.form.zoom(self.layer).w.to(f.k)
        scores = zoom_logits(q, f.summary_k, w, f.lengths)
        mass = span_mass(q.reshape(heads, -1, size), f.k, f.bounds)
        wanted = to_zoom(mass.reshape(scores.shape))
        zoom = F.binary_cross_entropy_with_logits(
            scores, wanted, pos_weight=scores.new_tensor(10.0)
        )
        lost = [
            ((1 - gates).square() * energy).sum(-1) / energy.sum(-1).clamp_min(1e-12)
            for gates, energy in self._gates()
        ]
        return {"zoom": zoom, "reconstruction": torch.cat(lost).mean()}

    def costs(self) -> dict[str, Tensor]:
        """Shares of spans opened and of directions kept: the published counts, made to mean the
        same for documents of any length."""
        assert self._spent is not None
        kept = torch.cat([gates.mean(-1) for gates, _ in self._gates()]).mean()
        return {"budget": self._spent + 0.1 * kept}

    def _gates(self) -> list[tuple[Tensor, Tensor]]:
        """Gates [B, m] and energy [B, m] of all spans, of K and of V, by length."""
        network = self.form.rank_gates
        return [
            (rank_gates(energy, context, network), energy)
            for factors in self._factors
            for _, _, _, energy, context in factors
        ]


def _lean(
    attend: Callable[[Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]],
    document: StudentDocument,
    q: Tensor,
    *rest: Any,
) -> tuple[Tensor, Tensor]:
    """Attend, and where its scores are many compute them again for the gradient, not keep them."""
    if q.shape[0] * q.shape[1] * document.k.shape[1] < RECOMPUTED:
        return attend(q, *rest)
    out, spent = checkpoint(attend, q, *rest, use_reentrant=False, preserve_rng_state=False)
    return out, spent


def straight_through(alpha: Tensor, tau: Tensor) -> Tensor:
    """1 where alpha > tau, else 0, with the gradient of sigmoid((alpha - tau) / 0.1)."""
    soft = ((alpha - tau) / SOFTNESS).sigmoid()
    return (alpha > tau).to(soft) + soft - soft.detach()


def to_zoom(mass: Tensor) -> Tensor:
    """1 for the fewest spans that together draw rho of the spans' attention, else 0.

    mass: [..., S] log-mass. Source: SeKV (arXiv 2606.31145), section 3.4.
    """
    share, order = mass.softmax(-1).sort(-1, descending=True)
    needed = (share.cumsum(-1) - share < COVERED).to(mass)
    return torch.zeros_like(mass).scatter(-1, order, needed)


def gated_mix(parts: list[tuple[Tensor, Tensor | None, Tensor]]) -> Tensor:
    """One softmax whose exponentials carry gates: a gate of 0 hides a row exactly.

    The published code adds the gate's logarithm to the score, whose gradient vanishes where the
    gate is closed; a factor has a gradient on both sides.

    Args:
        parts: logits [Hkv, R, n], gates alike or None for open, values [Hkv, n, D].
    Returns:
        [Hkv, R, D].
    """
    tops = [logits.detach().amax(-1) for logits, _, _ in parts if logits.shape[-1]]
    top = torch.stack(tops).amax(0)[..., None]
    total, out = torch.zeros_like(top), torch.zeros(())
    for logits, gate, values in parts:
        weights = torch.exp(logits - top)
        weights = weights if gate is None else weights * gate
        total = total + weights.sum(-1, keepdim=True)
        out = out.to(weights) + torch.bmm(weights, values)
    return out / total.clamp_min(1e-30)


def _factors(
    x: Tensor, document: StudentDocument
) -> list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
    """The truncated SVD of every span, spans of one length together.

    x: [Hkv, n, D] -> per length: the rows' places [M * length], u [B, length, m], w [B, m, D],
    energy [B, m] and mean [B, D], B = Hkv * M by head first.
    """
    out = []
    for length in torch.unique(document.lengths).tolist():
        starts = document.bounds[:-1][document.lengths == length]
        index = (starts[:, None] + torch.arange(length, device=starts.device)).reshape(-1)
        rows = x[:, index].reshape(-1, length, x.shape[-1])
        u, energy, w = span_svd(rows)
        kept = min(RANK, energy.shape[-1])
        mean = rows.mean(1)
        out.append((index, u[..., :kept], w[:, :kept], energy[:, :kept], mean))
    return out
