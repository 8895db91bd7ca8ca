"""A document read once more behind itself: what its tokens look at then.

Whoever repeats a text looks at all of it, as questions will that nobody knows yet. Methods that
choose what to keep without a question learn from it.
Source: KVzip (arXiv 2505.23416), section 3, which ranks what it keeps by these queries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine.compression.observation import Observe
from engine.compression.query_statistics import SPREAD, QueryMoments
from engine.compression.scores import group_queries
from engine.compression.terms import PLAIN, Terms
from engine.lab.bench.peers.held import PeerError
from engine.lab.bench.read_once import ReadOnce

if TYPE_CHECKING:
    from engine.answer.session import Session
    from engine.models.reader import Reader

ASK = "\n\nRepeat the document word for word:\n\n"
"""What stands before the repetition."""

REPEATED = 512
"""Tokens of the repetition whose queries are kept, evenly spread."""

CHUNK = 1024
"""Tokens of one forward, as many as ingest reads at once."""

BLOCK = 128
"""Tokens of the repetition whose attention is computed at once."""


@dataclass(frozen=True)
class Reread:
    """One window, N tokens.

    queries: per layer float32 [Hkv, G * R, D] of R tokens of the repetition. most, typical: per
    layer [Hkv, N] the share of their attention that a token gets: at most, and its root mean
    square. learnt: of the first reading, see `Reader.query_statistics`. surprisal: [N] nats.
    """

    queries: list[Tensor]
    most: list[Tensor]
    typical: list[Tensor]
    learnt: list[QueryMoments]
    surprisal: Tensor


def reread(session: Session) -> Reread:
    """Of a session's document, once for all who ask where the reader remembers.

    Raises:
        PeerError: the document has several windows, or does not fit the model's positions twice.
    """
    if session.memory.shared.windows > 1:
        raise PeerError("it holds documents of one window alone")
    reader, ids = session.reader, session.ids.tolist()
    if isinstance(reader, ReadOnce):
        return reader.kept(("reread", *ids), lambda: _reread(reader, ids))
    return _reread(reader, ids)


@torch.inference_mode()
def _reread(reader: Reader, ids: list[int]) -> Reread:
    ask: list[int] = reader.tokenizer.encode(ASK, add_special_tokens=False)
    before = len(reader.prompt.prefix)
    if before + 2 * len(ids) + len(ask) > reader.max_positions:
        raise PeerError(
            f"the document has {len(ids)} tokens, and read twice they do not fit the "
            f"{reader.max_positions} positions of the model"
        )
    prefix = reader.prefix()
    chunks = list(reader.read_window(ids, prefix, CHUNK, [], Observe(spread=SPREAD)))
    seen = _Repetition(before, len(ids), len(ask))
    reader.look_on(ids, prefix, chunks, [[*ask, *ids]], seen)
    return Reread(
        seen.queries,
        seen.most,
        seen.typical,
        reader.query_statistics(prefix, chunks),
        torch.cat([chunk.surprisal for chunk in chunks]),
    )


@dataclass
class _Repetition:
    """The probe of the second reading: document tokens at `before` .. `before + tokens`, then the
    `ask` and the repetition."""

    before: int
    tokens: int
    ask: int
    queries: list[Tensor] = field(default_factory=list)
    most: list[Tensor] = field(default_factory=list)
    typical: list[Tensor] = field(default_factory=list)

    def observe(self, layer: int, q: Tensor, k: Tensor, v: Tensor, terms: Terms = PLAIN) -> None:
        terms.check_plain("the comparison with peers")
        step = max(1, self.tokens // REPEATED)
        rows = torch.arange(self.ask + step // 2, q.shape[1], step, device=q.device)
        heads, end = len(k), self.before + self.tokens
        most = k.new_zeros(heads, self.tokens, dtype=torch.float32)
        squares = torch.zeros_like(most)
        columns = torch.arange(k.shape[1], device=k.device)
        group = len(q) // heads
        for some in torch.split(rows, BLOCK):
            scores = group_queries(q[:, some], heads) @ k.float().mT / math.sqrt(q.shape[-1])
            late = (columns > end + some[:, None]).repeat(group, 1)
            share = scores.masked_fill_(late, -math.inf).softmax(-1)[..., self.before : end]
            most = torch.maximum(most, share.amax(1))
            squares += share.square().sum(1)
        self.queries.append(group_queries(q[:, rows], heads).float().cpu())
        self.most.append(most.cpu())
        self.typical.append((squares / (group * len(rows))).sqrt().cpu())
