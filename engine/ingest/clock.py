"""Where the time of an ingest goes."""

from __future__ import annotations

import time


class Clock:
    """Seconds of named stages, one after another."""

    def __init__(self) -> None:
        self.started = self._last = time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._last = now - self._last, now
