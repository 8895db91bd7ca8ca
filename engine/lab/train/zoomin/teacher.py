"""Full attention of a frozen reader over a document: the targets a router learns from.

A document is read as `ingest` reads it; a block of further tokens then attends to all of it, one
block of keys after another, so that no more than one block of scores is ever held. All spans
lie before the block: no position sees what follows it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine.attention.memory_cache import Attends
from engine.attention.shared import Shared
from engine.compression.observation import Observe
from engine.compression.query_statistics import SPREAD, QueryMoments
from engine.compression.ranges import blocks_of_spans
from engine.compression.scores import NEG_INF, group_queries, span_logsumexp
from engine.compression.terms import PLAIN, Terms
from engine.models import chunked

if TYPE_CHECKING:
    from engine.models.reader import Reader

MOST_SCORES = 2**22
"""Scores of one KV head that are held at once."""

LEAST = 256
"""Keys of a block at least."""


@dataclass(frozen=True)
class TeacherReading:
    """A document as the reader read it.

    rows, prefix: per layer k, v [Hkv, N or P, D] on the layer's device. surprisal: [N] nats.
    pieces: the text of each token. asked: per layer what the document's own questions make of it,
    as `ingest` learns it; empty while training, which does not need it.
    """

    rows: list[tuple[Tensor, Tensor]]
    prefix: list[tuple[Tensor, Tensor]]
    surprisal: Tensor
    pieces: list[str]
    asked: list[QueryMoments]

    @property
    def tokens(self) -> int:
        return len(self.surprisal)

    @property
    def length(self) -> int:
        """Positions that prefix and document take."""
        return self.tokens + self.prefix[0][0].shape[1]


@dataclass
class TeacherQueries:
    """What one layer looked at while a block was read.

    queries: [Hkv, G, Q, D]. total: [Hkv, G, Q] log of everything a query gave its attention to.
    far: [Hkv, G, Q] share of it that went to document tokens at least `beyond` behind.
    """

    queries: Tensor
    total: Tensor
    far: Tensor


@dataclass(frozen=True)
class TeacherBlock:
    """A block under the teacher. layers: its queries in each. logp: [Q, V] log-probabilities.

    mined: int64 [M], the positions that look far back most.
    """

    ids: list[int]
    layers: list[TeacherQueries]
    logp: Tensor
    mined: Tensor


@dataclass
class _FullAttention:
    """Full attention over a document in one layer, which records the queries."""

    rows: tuple[Tensor, Tensor]
    prefix: tuple[Tensor, Tensor]
    beyond: int
    recorded: list[TeacherQueries] = field(default_factory=list)

    def attend(
        self,
        q: Tensor,
        live_k: Tensor,
        live_v: Tensor,
        seen: Tensor | None,
        terms: Terms = PLAIN,
    ) -> Tensor:
        terms.check_plain("training a router")
        k, v = self.rows
        heads, tokens, size = k.shape
        rows = q.shape[1]
        grouped = group_queries(q, heads)
        scale = 1 / math.sqrt(size)
        near = torch.bmm(grouped, live_k.float().mT) * scale
        if seen is not None:
            near = near.masked_fill(~seen.repeat(grouped.shape[1] // rows, 1), NEG_INF)
        before = torch.bmm(grouped, self.prefix[0].float().mT) * scale
        total = torch.logaddexp(near.logsumexp(-1), before.logsumexp(-1))
        far = torch.full_like(total, NEG_INF)
        parts = [(near, live_v), (before, self.prefix[1])]
        out = torch.zeros_like(grouped)
        for logits, values in parts:
            out += torch.bmm(torch.exp(logits - total[..., None]), values.float())
        step = max(LEAST, MOST_SCORES // grouped.shape[1])
        edges = sorted({*range(0, tokens, step), max(0, tokens - self.beyond), tokens})
        for first, last in pairwise(edges):
            scores = torch.bmm(grouped, k[:, first:last].float().mT) * scale
            mass = scores.logsumexp(-1)
            new = torch.logaddexp(total, mass)
            out *= torch.exp(total - new)[..., None]
            out += torch.bmm(torch.exp(scores - new[..., None]), v[:, first:last].float())
            total = new
            if last <= tokens - self.beyond:
                far = torch.logaddexp(far, mass)
        shape = (heads, -1, rows)
        self.recorded.append(
            TeacherQueries(
                grouped.reshape(*shape, size),
                total.reshape(shape),
                torch.exp(far - total).reshape(shape),
            )
        )
        return out.reshape(-1, rows, size)


def read(
    reader: Reader, document: list[int], *, ask: bool = False, chunk: int = 1024
) -> TeacherReading:
    """Read a document as ingest does; `ask` measures its query statistics too."""
    prefix = reader.prefix()
    observe = Observe(spread=SPREAD if ask else 0)
    chunks = list(reader.read_window(document, prefix, chunk, [], observe))
    # Copies: what inference mode made cannot take part in a gradient.
    rows = [
        (
            torch.cat([c.k[layer] for c in chunks], 1).clone(),
            torch.cat([c.v[layer] for c in chunks], 1).clone(),
        )
        for layer in range(reader.layers)
    ]
    surprisal = torch.cat([c.surprisal for c in chunks]).clone()
    pieces = [reader.tokenizer.decode([token]) for token in document]
    asked = reader.query_statistics(prefix, chunks)
    kept = [(k.clone(), v.clone()) for k, v in prefix]
    return TeacherReading(rows, kept, surprisal, pieces, asked)


@torch.no_grad()
def watch(
    reader: Reader, reading: TeacherReading, ids: list[int], beyond: int, share: float
) -> TeacherBlock:
    """Let the reader read on with the whole document in view.

    Args:
        beyond: tokens behind which attention counts as far.  share: of positions to mine.
    """
    memories = [
        _FullAttention(rows, prefix, beyond)
        for rows, prefix in zip(reading.rows, reading.prefix, strict=True)
    ]
    logp = forward(reader, reading, ids, memories).float().log_softmax(-1)
    queries = [memory.recorded[0] for memory in memories]
    far = torch.stack([each.far.mean((0, 1)).cpu() for each in queries]).mean(0)
    mined = far.topk(max(1, round(share * len(ids)))).indices.sort().values
    return TeacherBlock(ids, queries, logp, mined)


def forward(
    reader: Reader, reading: TeacherReading, ids: list[int], layers: Sequence[Attends]
) -> Tensor:
    """Logits [Q, V] of a block behind a document that `layers` stand for."""
    shared = Shared(torch.tensor([0, reading.tokens]), 1)
    cache = reader.cache_behind(layers, reading.length, shared)
    outputs = chunked.read(reader.model, ids, cache, None, logits_to_keep=0)
    return torch.cat([out.logits[0] for out in outputs])


def span_mass(q: Tensor, k: Tensor, bounds: Tensor) -> Tensor:
    """True log-mass of spans, in blocks of keys.

    Args:
        q: [Hkv, R, D].  k: [Hkv, n, D] of the spans' tokens.  bounds: [S + 1] their places.
    Returns:
        float32 [Hkv, R, S].
    """
    scale = 1 / math.sqrt(q.shape[-1])
    out = [q.new_zeros(*q.shape[:2], 0)]
    for first, last in blocks_of_spans(bounds, max(LEAST, MOST_SCORES // q.shape[1])):
        start, end = int(bounds[first]), int(bounds[last])
        scores = torch.bmm(q, k[:, start:end].float().mT) * scale
        out.append(span_logsumexp(scores, bounds[first : last + 1] - start))
    return torch.cat(out, -1)
