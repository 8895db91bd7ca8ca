"""How sure a look-up reader is of its quote, and the bar below which it says "not stated".

A reader that is held to the document always finds something to quote. How likely it held those
tokens itself, before it was held to anything, tells an answer from a guess. The bar is measured
on questions with and without an answer: `sekv calibrate`. Torch-free.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from engine.errors import ReaderError

SCORES: Final[dict[str, Callable[[Sequence[float]], float]]] = {
    "first": lambda log_p: log_p[0],
    "mean": lambda log_p: sum(log_p) / len(log_p),
    "least": min,
}
"""Of the log-probabilities of a quote's tokens: where it begins, on average, where it is worst."""


@dataclass(frozen=True)
class Bar:
    """score: a name of `SCORES`. least: nats that a quote must reach; -inf lets every one pass."""

    score: str = "mean"
    least: float = -math.inf

    def holds(self, log_p: Sequence[float]) -> bool:
        """Whether a quote may be given. log_p: nats of its tokens in order, none if unknown."""
        return not log_p or SCORES[self.score](log_p) >= self.least

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Bar:
        """As a reader's configuration has it; {} is no bar.

        Raises:
            ReaderError: it is none.
        """
        try:
            bar = cls(str(record["score"]), float(record["least"])) if record else NO_BAR
        except (KeyError, TypeError, ValueError):
            raise ReaderError(f"the reader's sekv_certainty is no bar: {record}") from None
        if bar.score not in SCORES or math.isnan(bar.least):
            raise ReaderError(f"the reader's sekv_certainty is no bar: {record}")
        return bar


NO_BAR: Final = Bar()
