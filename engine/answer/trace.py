"""The trace of an answer: its zoom decisions and what they moved, step by step.

It watches the memory's steps and changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from engine.attention.host_records import Traffic

if TYPE_CHECKING:
    from engine.attention.step import Step


@dataclass
class Trace:
    """What one answer zoomed into and moved, step by step; step 0 is the question itself.

    said: the text of every token, in order: the token that step s led to is said[s]. moves: per
    step and layer what came to the device and what was there already.
    """

    step: int = 0
    said: list[str] = field(default_factory=list)
    moves: list[dict[str, int]] = field(default_factory=list)
    _seen: list[tuple[int, int, Tensor, Tensor, Tensor, Tensor]] = field(default_factory=list)
    _traffic: dict[int, Traffic] = field(default_factory=dict)

    def record(self, step: Step) -> None:
        head, place = (index.cpu() for index in step.zoomed.nonzero().T)
        if len(head):
            score, weight = step.share.cpu()[head, place], _span_weights(step).cpu()[head, place]
            self._seen.append((self.step, step.layer, head, step.spans.cpu()[place], score, weight))
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

    def add_token(self, text: str) -> None:
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
            for step, layer, *found in self._seen
            for head, span, known, real in zip(*(part.tolist() for part in found), strict=True)
        ]


def _span_weights(step: Step) -> Tensor:
    """[Hkv, F]: the weight that the newest query gave to the tokens of each span, largest over the
    group."""
    place = torch.searchsorted(step.starts, step.tokens.long(), right=True) - 1
    known = place.clamp_min(0)
    inside = (step.tokens >= 0) & (place >= 0)
    inside &= step.tokens < step.starts[known] + step.lengths[known]
    weight = step.weight * inside[:, None]
    out = weight.new_zeros(*weight.shape[:-1], len(step.spans))
    return out.scatter_add_(-1, known[:, None].expand_as(weight), weight).amax(1)
