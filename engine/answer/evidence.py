"""Evidence: the attention on document tokens behind a question and its answer.

It watches the memory's steps and changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine.compression.ranges import gather_ranges

if TYPE_CHECKING:
    from engine.attention.step import Step

COPY, GLANCE = 1.0, 0.02
"""Weight of attention to a token that is then generated, and the least weight of any other."""

EARLY = 24
"""Tokens of an answer that its support is judged by, so that how long it rambles on counts for
nothing."""


@dataclass
class Evidence:
    """Which document tokens a question and its answer's tokens were read from.

    With weights of the model's heads (`models.evidence_heads`) it is their attention, each head's
    as far as it looks at evidence, of the question's rows and of the answer's.

    Without, heads are believed by what they do in this answer: attention to a token that is then
    generated counts in full, a head's other attention by the share of it that was copied so far,
    and a little in any case. After the retrieval score of CompressKV (arXiv 2606.24467): sum over
    steps of the attention to tokens equal to the one produced.

    The attention to a span that stands as a summary counts for all its tokens alike.

    heads: float [L, H] or None. weight: float [N].
    of_question: what of it is the question's. early: what of it lay before the answer had EARLY
    tokens. rows: tokens generated so far.
    """

    ids: Tensor  # int64 [N] document tokens
    heads: Tensor | None = None
    weight: Tensor = field(init=False)
    of_question: Tensor = field(init=False)
    early: Tensor = field(init=False)
    rows: int = 0
    _pending: list[Step] = field(default_factory=list)
    _copied: dict[int, Tensor] = field(default_factory=dict)
    _attended: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.weight = torch.zeros(len(self.ids))
        self.of_question = torch.zeros(len(self.ids))
        self.early = torch.zeros(len(self.ids))

    def record(self, step: Step) -> None:
        if self.heads is None or self.heads[step.layer].any():
            self._pending.append(step)

    def add_token(self, token: int) -> None:
        """The newest rows of the newest forward led to this token."""
        for step in self._pending:
            if self.heads is None:
                self._count_copied(step, token)
            else:
                self._count_measured(step, self.heads[step.layer])
        self._pending.clear()
        if not self.rows:
            self.of_question.copy_(self.weight)
        self.rows += 1
        if self.rows == EARLY:
            self.early.copy_(self.weight)

    @property
    def answered(self) -> Tensor:
        """[N]: how much of the attention of the heads that look at evidence each token had while
        the first words of the answer were said, on average over their rows; 0 where nobody
        measured heads."""
        if self.heads is None or self.rows < 2:
            return torch.zeros_like(self.weight)
        until = self.early if self.rows > EARLY else self.weight
        rows = min(self.rows, EARLY) - 1
        return (until - self.of_question) / (self.heads.sum().clamp_min(1e-9) * rows)

    def _count_measured(self, step: Step, heads: Tensor) -> None:
        """Add the attention to rows and summaries of a layer's heads of this importance [H]."""
        tokens, weight = step.tokens.cpu().long(), step.total.float().cpu()
        heads = heads.view(len(tokens), -1)
        evidence = (weight * heads[..., None]).sum(1) * (tokens >= 0)
        self.weight.index_add_(0, tokens.clamp_min(0).flatten(), evidence.flatten())
        spread = (step.summary.float().cpu() * heads[..., None]).sum((0, 1))
        if spread.any():
            starts, lengths = step.starts.cpu().long(), step.lengths.cpu().long()
            each = torch.repeat_interleave(spread / lengths.clamp_min(1), lengths)
            self.weight.index_add_(0, gather_ranges(starts, lengths), each)

    def _count_copied(self, step: Step, said: int) -> None:
        """Add the attention of one layer's heads before a token was generated."""
        layer, tokens = step.layer, step.tokens.cpu().long()
        inside = tokens >= 0
        weight = step.weight.cpu() * inside[:, None]  # [Hkv, G, n]
        tokens = tokens.clamp_min(0)
        copies = inside & (self.ids[tokens] == said)
        copied = torch.bmm(weight, copies[..., None].to(weight))  # [Hkv, G, 1]
        self._copied[layer] = self._copied.get(layer, 0.0) + copied
        self._attended[layer] = self._attended.get(layer, 0.0) + weight.sum(-1, keepdim=True)
        retrieval = self._copied[layer] / self._attended[layer].clamp_min(1e-12)
        heads = retrieval.clamp_min(GLANCE)
        evidence = torch.bmm(heads.mT, weight)[:, 0]  # of all heads of a group, [Hkv, n]
        more = torch.bmm((COPY - heads).mT, weight)[:, 0]
        evidence += torch.where(copies, more, 0.0)
        self.weight.index_add_(0, tokens.flatten(), evidence.flatten())

    def forget(self) -> None:
        """Drop what was seen since the last token."""
        self._pending.clear()
