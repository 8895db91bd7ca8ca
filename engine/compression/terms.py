"""What the softmax of a layer has beside scores: a cap on them, and a sink."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.errors import ReaderError


@dataclass(frozen=True, eq=False)
class Terms:
    """The terms of one layer's softmax.

    cap: nats that no score goes beyond, each score s being cap * tanh(s / cap); None for no cap.
    sinks: [H] the logit of one more column of each head, which has no value; None for no such.
    Source: Gemma 2 (arXiv 2408.00118), section 2; gpt-oss (arXiv 2508.10925), section 2.
    """

    cap: float | None = None
    sinks: Tensor | None = None

    def capped(self, scores: Tensor) -> Tensor:
        """Scores in nats under the cap; to be masked afterwards, as the cap makes -inf finite."""
        return scores if self.cap is None else torch.tanh(scores / self.cap) * self.cap

    def capped_mass(self, mass: Tensor, lengths: Tensor) -> Tensor:
        """Estimated log-masses [Hkv, Q, S] of spans of so many tokens [S] under the cap.

        The cap is on the level that n tokens of one score would have, mass - log n: exact where the
        scores of a span agree, and else too high by at most log n times the cap's slope there.
        """
        if self.cap is None:
            return mass
        beside = lengths.to(mass).log()
        return self.capped(mass - beside) + beside

    def sink_column(self, kv_heads: int, rows: int) -> Tensor | None:
        """The sink's logits as a column of grouped queries, float32 [Hkv, G * rows, 1]."""
        if self.sinks is None:
            return None
        grouped = self.sinks.detach().float().reshape(kv_heads, -1, 1)
        return grouped.repeat_interleave(rows, 1)

    def softmax(self, scores: Tensor, rows: int) -> Tensor:
        """The weights of capped scores [Hkv, G * rows, n]; with a sink they add up to less than
        one."""
        sink = self.sink_column(len(scores), rows)
        if sink is None:
            return scores.softmax(-1)
        return torch.cat([scores, sink], -1).softmax(-1)[..., :-1]

    def check_plain(self, what: str) -> None:
        """Raises ReaderError of `what`, which computes a softmax of scores alone."""
        if self.cap is not None or self.sinks is not None:
            raise ReaderError(f"{what} knows neither attention sinks nor soft-capped scores")


PLAIN = Terms()
"""A softmax of scores and nothing else."""
