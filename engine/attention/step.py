"""What one layer's attention did in one forward, for traces and citations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from engine.attention.host_records import Traffic


@dataclass(frozen=True)
class Step:
    """What one layer did in one forward, for traces and citations.

    spans: [F] the document's spans in view.  starts, lengths: [F] their tokens in the document.
    share: [Hkv, F] the router's estimate of their share of attention, zeros where it was not run.
    zoomed: bool [Hkv, F], False where everything is zoomed without a choice.
    summary: [Hkv, G, F] weight of each summary row for the newest query.
    tokens: int32 [Hkv, n] the document token of every resident row, negative for none.
    weight: [Hkv, G, n] of those rows for the newest query.  total: the same, added up over the
        newest `Shared.question_tokens` queries of the forward.
    traffic: what moved for this layer since the question began.
    """

    layer: int
    spans: Tensor
    starts: Tensor
    lengths: Tensor
    share: Tensor
    zoomed: Tensor
    summary: Tensor
    tokens: Tensor
    weight: Tensor
    total: Tensor
    traffic: Traffic = field(default_factory=Traffic)


class Watcher(Protocol):
    def record(self, step: Step) -> None: ...
