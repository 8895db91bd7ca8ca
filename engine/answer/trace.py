"""What was looked at: records of zoom decisions, and the evidence an answer was read from.

Both watch the memory's steps; neither changes anything.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from engine.attention.residency import Traffic
from engine.compression.ranges import gather_ranges

if TYPE_CHECKING:
    from engine.attention.layer import Step

COPY, GLANCE = 1.0, 0.02
"""Worth of attention to a token that is then said, and the least worth of any other attention."""

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

    heads: float [L, H] or None. bounds: int64 [S + 1] tokens of the document's spans; with them the
    attention to a span that stands as a summary counts for all its tokens alike. weight: float [N].
    asked: what of it is the question's. early: what of it lay before the answer had EARLY tokens.
    rows: tokens said so far.
    """

    ids: Tensor  # int64 [N] document tokens
    heads: Tensor | None = None
    bounds: Tensor | None = None
    weight: Tensor = field(init=False)
    asked: Tensor = field(init=False)
    early: Tensor = field(init=False)
    rows: int = 0
    _pending: list[tuple[int, int, Tensor, Tensor]] = field(default_factory=list)
    _copied: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    _looked: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.weight = torch.zeros(len(self.ids))
        self.asked = torch.zeros(len(self.ids))
        self.early = torch.zeros(len(self.ids))

    def see(self, step: Step) -> None:
        if self.heads is not None:
            self._see_measured(step, self.heads[step.layer].view(len(step.tokens), -1))
            return
        for head, (tokens, weight) in enumerate(zip(step.tokens, step.weight, strict=True)):
            inside = tokens >= 0
            tokens, weight = tokens[inside].cpu(), weight[..., inside].float().cpu()
            self._pending.append((step.layer, head, tokens, weight))

    def _see_measured(self, step: Step, worth: Tensor) -> None:
        """worth: [Hkv, G]."""
        if not worth.any():
            return
        for head, tokens in enumerate(step.tokens):
            if worth[head].any():
                inside = tokens >= 0
                weight = step.total[head][..., inside].float().cpu()
                weight = (weight * worth[head][:, None]).sum(0, keepdim=True)
                self._pending.append((step.layer, head, tokens[inside].cpu(), weight))
        if self.bounds is not None and len(step.spans):
            spread = (step.summary.float().cpu() * worth[..., None]).sum((0, 1))
            starts, spans = self.bounds, step.spans.cpu()
            lengths = starts[spans + 1] - starts[spans]
            tokens = gather_ranges(starts[spans], lengths)
            each = torch.repeat_interleave(spread / lengths.clamp_min(1), lengths)
            self._pending.append((step.layer, -1, tokens, each[None]))

    def said(self, token: int) -> None:
        """The newest rows of the newest forward led to this token."""
        for layer, head, tokens, weight in self._pending:
            if self.heads is None:
                weight = weight * self._worth(layer, head, tokens, weight, token)
            self.weight.index_add_(0, tokens, weight.sum(0))
        self._pending.clear()
        if not self.rows:
            self.asked.copy_(self.weight)
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
        told = self.early if self.rows > EARLY else self.weight
        rows = min(self.rows, EARLY) - 1
        return (told - self.asked) / (self.heads.sum().clamp_min(1e-9) * rows)

    def _worth(self, layer: int, head: int, tokens: Tensor, weight: Tensor, said: int) -> Tensor:
        """What attention [G, n] on document tokens [n] counts that led to a token."""
        copies = self.ids[tokens] == said
        place = (layer, head)
        none = torch.zeros(len(weight))
        self._copied[place] = self._copied.get(place, none) + weight[:, copies].sum(1)
        self._looked[place] = self._looked.get(place, none) + weight.sum(1)
        retrieval = self._copied[place] / self._looked[place].clamp_min(1e-12)
        return torch.where(copies, COPY, retrieval.clamp_min(GLANCE)[:, None])

    def forget(self) -> None:
        """Drop what was seen since the last token."""
        self._pending.clear()


@dataclass
class Trace:
    """What one answer zoomed into and moved, step by step; step 0 is the question itself.

    said: the text of every token, in order: the token that step s led to is said[s]. moves: per
    step and layer what came to the device and what was there already.
    """

    step: int = 0
    said: list[str] = field(default_factory=list)
    moves: list[dict[str, int]] = field(default_factory=list)
    _seen: list[tuple[int, int, int, Tensor, Tensor, Tensor]] = field(default_factory=list)
    _traffic: dict[int, Traffic] = field(default_factory=dict)

    def see(self, step: Step) -> None:
        for head, spans in enumerate(step.zoomed):
            if not len(spans):
                continue
            score = step.share[head][torch.searchsorted(step.spans, spans)].cpu()
            weight = _span_weights(step, head, spans).cpu()
            self._seen.append((self.step, step.layer, head, spans.cpu(), score, weight))
        before, now = self._traffic.get(step.layer, Traffic()), step.traffic
        self._traffic[step.layer] = now
        self.moves.append(
            {
                "layer": step.layer,
                "step": self.step,
                "fetched_bytes": now.fetched_bytes - before.fetched_bytes,
                "fetched_spans": now.fetched_spans - before.fetched_spans,
                "reused_spans": now.reused_spans - before.reused_spans,
            }
        )

    def tell(self, text: str) -> None:
        """The newest step led to a token of this text."""
        self.said.append(text)
        self.step += 1

    @property
    def zoom(self) -> list[dict[str, Any]]:
        """Every decision as JSON values: the estimated share of attention and the real one."""
        return [
            {
                "span": span,
                "layer": layer,
                "kv_head": head,
                "step": step,
                "score": round(known, 6),
                "weight": round(real, 6),
            }
            for step, layer, head, spans, score, weight in self._seen
            for span, known, real in zip(
                spans.tolist(), score.tolist(), weight.tolist(), strict=True
            )
        ]


def _span_weights(step: Step, head: int, spans: Tensor) -> Tensor:
    """[spans]: the weight that the newest query gave to a zoomed span's tokens, largest over the
    group."""
    owner = torch.repeat_interleave(
        torch.arange(len(spans), device=spans.device), step.lengths[head]
    )
    weights = step.weight[head][..., : len(owner)]
    out = weights.new_zeros(*weights.shape[:-1], len(spans))
    return out.index_add_(-1, owner, weights).amax(0)
