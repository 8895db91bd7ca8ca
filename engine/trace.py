"""What was looked at: records of zoom decisions, and the evidence an answer was read from.

Both watch the memory's steps; neither changes anything.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from engine.memory import Step

COPY, GLANCE = 1.0, 0.02
"""Worth of attention to a token that is then said, and of any other attention."""


@dataclass
class Evidence:
    """Which document tokens the answer's tokens were read from.

    A head that looks at a token which is then generated reads from the document; its attention
    counts in full, all other attention a little. After the retrieval score of CompressKV
    (arXiv 2606.24467): sum over steps of the attention to tokens equal to the one produced.
    """

    ids: Tensor  # int64 [N] document tokens
    weight: Tensor = field(init=False)
    _pending: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.weight = torch.zeros(len(self.ids))

    def see(self, step: Step) -> None:
        for tokens, weight in zip(step.tokens, step.weight, strict=True):
            inside = tokens >= 0
            self._pending.append((tokens[inside].cpu(), weight[:, inside].sum(0).float().cpu()))

    def said(self, token: int) -> None:
        """The newest forward's rows led to this token."""
        for tokens, weight in self._pending:
            value = torch.where(self.ids[tokens] == token, COPY, GLANCE)
            self.weight.index_add_(0, tokens, weight * value)
        self._pending.clear()

    def forget(self) -> None:
        """Drop what was seen since the last token."""
        self._pending.clear()


@dataclass
class Trace:
    """Zoom decisions of one question, step by step; step 0 is the question itself."""

    step: int = 0
    zoom: list[dict[str, Any]] = field(default_factory=list)

    def see(self, step: Step) -> None:
        for head, spans in enumerate(step.zoomed):
            if not len(spans):
                continue
            place = torch.searchsorted(step.spans, spans)
            known = step.share[head][place]
            real = _span_weights(step, head, spans)
            for span, score, weight in zip(
                spans.tolist(), known.tolist(), real.tolist(), strict=True
            ):
                self.zoom.append(
                    {
                        "span": span,
                        "layer": step.layer,
                        "kv_head": head,
                        "step": self.step,
                        "score": round(score, 6),
                        "weight": round(weight, 6),
                    }
                )


def _span_weights(step: Step, head: int, spans: Tensor) -> Tensor:
    """The weight the newest query gave to each zoomed span's tokens, largest over the group."""
    owner = torch.repeat_interleave(
        torch.arange(len(spans), device=spans.device), step.lengths[head]
    )
    weights = step.weight[head][:, : len(owner)]
    out = torch.zeros(len(spans), weights.shape[0], device=weights.device)
    return out.index_add_(0, owner, weights.T).amax(1)
