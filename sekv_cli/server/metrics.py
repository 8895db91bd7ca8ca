"""What a server counts, in the text format that Prometheus reads.

Source of the format: the exposition formats of prometheus.io, version 0.0.4.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping

from engine.types import Answer

TYPE = "text/plain; version=0.0.4; charset=utf-8"

FIRST_TOKEN = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0)
"""Bounds in seconds."""

SPEED = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0)
"""Bounds in tokens a second."""


class _Histogram:
    """How often a number was at most each of some bounds."""

    def __init__(self, name: str, text: str, bounds: tuple[float, ...]) -> None:
        self._name, self._text, self._bounds = name, text, bounds
        self._counts = [0] * len(bounds)
        self._all, self._sum = 0, 0.0

    def observe(self, value: float) -> None:
        self._all += 1
        self._sum += value
        for index, bound in enumerate(self._bounds):
            self._counts[index] += value <= bound

    def lines(self) -> Iterable[str]:
        yield from _head(self._name, self._text, "histogram")
        for bound, count in zip(self._bounds, self._counts, strict=True):
            yield f'{self._name}_bucket{{le="{bound:g}"}} {count}'
        yield f'{self._name}_bucket{{le="+Inf"}} {self._all}'
        yield f"{self._name}_sum {self._sum:.6f}"
        yield f"{self._name}_count {self._all}"


class Metrics:
    """Counters of one server; safe for several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._questions: Counter[str] = Counter()
        self._tokens = 0
        self._first = _Histogram(
            "sekv_first_token_seconds",
            "From a question's arrival to the first token of its answer.",
            FIRST_TOKEN,
        )
        self._speed = _Histogram(
            "sekv_tokens_per_second", "Tokens of an answer a second, after the first.", SPEED
        )

    def answered(self, answer: Answer, waited: float) -> None:
        """A question was answered. waited: seconds until its turn came."""
        with self._lock:
            self._questions["answered" if answer.supported else "not_stated"] += 1
            self._tokens += answer.usage.answer_tokens
            self._first.observe(waited + answer.timing["first_token_s"])
            if answer.usage.answer_tokens > 1:
                self._speed.observe(answer.timing["tokens_per_s"])

    def failed(self, outcome: str) -> None:
        """A question was not answered: it was "refused", "stopped" or it "failed"."""
        with self._lock:
            self._questions[outcome] += 1

    def text(self, now: Mapping[str, float]) -> str:
        """The whole page. now: what is so at this moment, by the names of `NOW`."""
        with self._lock:
            lines = [*_head("sekv_questions_total", "Questions by what became of them.", "counter")]
            for outcome in ("answered", "not_stated", "refused", "stopped", "failed"):
                count = self._questions[outcome]
                lines.append(f'sekv_questions_total{{outcome="{outcome}"}} {count}')
            lines += _head("sekv_answer_tokens_total", "Tokens of all answers.", "counter")
            lines.append(f"sekv_answer_tokens_total {self._tokens}")
            lines += [*self._first.lines(), *self._speed.lines()]
        for name, (text, kind) in NOW.items():
            lines += [*_head(name, text, kind), f"{name} {now[name]:.0f}"]
        return "\n".join(lines) + "\n"


NOW = {
    "sekv_waiting_questions": ("Questions that are asked and not yet answered.", "gauge"),
    "sekv_open_stores": ("Stores that are open.", "gauge"),
    "sekv_resident_bytes": ("Bytes that open stores take, models not counted.", "gauge"),
    "sekv_store_hits_total": ("Questions whose store was open.", "counter"),
    "sekv_store_misses_total": ("Questions whose store had to be opened.", "counter"),
}
"""What is counted elsewhere: its text and kind by its name."""


def _head(name: str, text: str, kind: str) -> Iterable[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
