"""Scores of queries against keys, whole or packed, and their sums over spans."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.compression.columns import CodeColumns
from engine.compression.packing import Packing, split_heads
from engine.compression.products import CodeProducts
from engine.compression.ranges import blocks_of_spans, span_ids

NEG_INF = float("-inf")


CACHED = 1 << 18
"""Numbers of an array that are worked on at once where there are very many: a cache holds them."""


def group_queries(q: Tensor, kv_heads: int) -> Tensor:
    """Queries [H, Q, D] as float32 rows of their KV head [Hkv, G * Q, D]."""
    return q.to(torch.float32).reshape(kv_heads, -1, q.shape[-1])


def span_logsumexp(scores: Tensor, bounds: Tensor, owner: Tensor | None = None) -> Tensor:
    """Log-mass of each span: log of the sum of exp(score) over its tokens.

    Args:
        scores: [Hkv, Q, N] nats.  bounds: [S + 1], no empty span.  owner: `span_ids` of it, where
            they are known.
    Returns:
        [Hkv, Q, S]. Spans more than about 87 nats under the row's best come out as -inf: their
        share of the softmax is below what float32 can add.
    """
    owner = span_ids(bounds) if owner is None else owner
    top = scores.amax(-1, keepdim=True)
    mass = torch.zeros(*scores.shape[:2], len(bounds) - 1, device=scores.device)
    mass.scatter_add_(-1, owner.expand_as(scores), torch.exp(scores - top))
    return mass.log_().add_(top)


AT_ONCE = 1 << 15, 1 << 22
"""Tokens of a sketch that are unpacked at once, and scores that are held at once."""


def column_span_masses(
    codes: CodeColumns, q: Tensor, shift: Tensor, bounds: Tensor, owner: Tensor | None = None
) -> Tensor:
    """Log-mass of each span of rows that are held as columns of few bits.

    Args:
        codes: of N rows.  q: float32 [Hkv, Q, R] nats per unpacked code.  shift: [Hkv, Q, 1] nats
        that every token of a head has beside.  bounds: [S + 1] from 0 to N.  owner: `span_ids`.
    Returns:
        [Hkv, Q, S], see `span_logsumexp`.
    """
    tokens, rows = len(codes), max(1, q.shape[0] * q.shape[1])
    if tokens <= AT_ONCE[0] and tokens * rows <= AT_ONCE[1]:
        return span_logsumexp(CodeProducts(codes).scores(0, q), bounds, owner).add_(shift)
    out = [q.new_zeros(*q.shape[:2], 0)]
    for first, last in blocks_of_spans(bounds, min(AT_ONCE[0], max(256, AT_ONCE[1] // rows))):
        start, end = int(bounds[first]), int(bounds[last])
        scores = CodeProducts(codes.some(start, end)).scores(0, q)
        out.append(span_logsumexp(scores, bounds[first : last + 1] - start).add_(shift))
    return torch.cat(out, -1)


def packed_span_masses(
    packed: Tensor, bits: Tensor, q: Tensor, shift: Tensor, bounds: Tensor
) -> Tensor:
    """Log-mass of each span of rows that are held in few bits, stretch by stretch.

    Args:
        packed: uint8 [1, N, width], see `pack_heads`.  bits: uint8 [Hkv, R].
        q: float32 [Hkv, Q, R] nats per step of a component.  shift: [Hkv, Q, 1] nats that every
            token of a head has beside.  bounds: [S + 1].
    Returns:
        [Hkv, Q, S], see `span_logsumexp`.
    """
    out = [q.new_zeros(*q.shape[:2], 0)]
    for first, last in blocks_of_spans(bounds, max(256, 2**22 // max(1, q.shape[1]))):
        start, end = int(bounds[first]), int(bounds[last])
        scores = packed_scores(packed[:, start:end], bits, q) + shift
        out.append(span_logsumexp(scores, bounds[first : last + 1] - start))
    return torch.cat(out, -1)


def packed_scores(packed: Tensor, bits: Tensor, q: Tensor) -> Tensor:
    """The products of queries with rows that are held in few bits, [Hkv, Q, n].

    Args:
        packed: uint8 [1, n, width], see `pack_heads`.  bits: uint8 [Hkv, R].
        q: float32 [Hkv, Q, R], per step of a component.
    """
    out = q.new_empty(*q.shape[:2], packed.shape[1])
    rows = split_heads(packed, bits)
    for head, each in enumerate(bits):
        packing = Packing.of(each)
        used = packing.components
        middle = 0.5 - torch.pow(2.0, each[:used].float() - 1)
        beside = (q[head, :, :used] * middle).sum(-1, keepdim=True)
        lowered = q[head].clone()
        lowered[:, :used] *= q.new_tensor(packing.powers)
        step = max(256, CACHED // max(1, used))
        for start in range(0, packed.shape[1], step):
            codes = packing.raised(rows[head][start : start + step])
            products = lowered[:, :used] @ codes.T
            torch.add(products, beside, out=out[head, :, start : start + step])
    return out
