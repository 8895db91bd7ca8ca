"""Widens the budget for a decoding step whose next token is uncertain, and retries the step.

A step is unsure where the two likeliest next tokens are nearly as likely as each other, or where
less of its attention was exact than was asked for; only a wider budget can help either. Nothing of
the first try stays but the time it took and the bytes it fetched.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field

from torch import Tensor

from engine.attention.coverage import Coverage
from engine.attention.shared import Shared
from engine.attention.step import Step, Watcher
from engine.compression.selectors import Choice, Selector

MARGIN = 1.0
"""Nats by which the likeliest next token must lead for a step to be sure of it."""

NOTHING = 1e-6
"""Share of the attention on summaries below which there is nothing to gain."""


def can_retry(selector: Selector) -> bool:
    """Whether a method takes what it may have at every step, and gives it back at the next."""
    return selector.by_share


@dataclass
class Retry:
    """The steps of one answer.

    factor: budgets that an unsure step may take. coverage: as asked for. steps: how many were done
    again. again: whether one is being done again now.
    """

    shared: Shared
    factor: float
    coverage: float
    steps: int = 0
    again: bool = False
    _before: Coverage = field(default_factory=Coverage)
    _choices: list[Choice] = field(default_factory=list)
    _seen: list[Step] = field(default_factory=list)
    _watchers: list[Watcher] = field(default_factory=list)

    def begin(self) -> None:
        """Remember what a step changes before it does."""
        self._before = self.shared.coverage.copy()
        self._choices = [copy(layer.choice) for layer in self.shared.layers]
        self._seen.clear()
        self._watchers = list(self.shared.watchers)
        self.shared.watchers[:] = [self] if self._watchers else []

    def record(self, step: Step) -> None:
        """Watch in place of the watchers, who are told when the step stands."""
        self._seen.append(step)

    def unsure(self, logits: Tensor) -> bool:
        """Whether the step that gave these logits [V] of the next token is to be done again."""
        covered = self.shared.coverage.since(self._before).least
        if covered > 1 - NOTHING:
            return False
        first, second = logits.float().topk(2).values.tolist()
        return first - second < MARGIN or (self.coverage < 1 and covered < self.coverage)

    @contextmanager
    def wider(self) -> Iterator[None]:
        """Take the step back and do it again in here."""
        self.shared.coverage = self._before.copy()
        for layer, choice in zip(self.shared.layers, self._choices, strict=True):
            layer.choice = copy(choice)
        self._seen.clear()
        self.shared.width, self.again = self.factor, True
        self.steps += 1
        try:
            yield
        finally:
            self.shared.width, self.again = 1.0, False

    def commit(self) -> None:
        """The step stands: tell the watchers."""
        self.shared.watchers[:] = self._watchers
        for step in self._seen:
            for watcher in self._watchers:
                watcher.record(step)
