"""How far an ingest of many documents has come, and how fast it goes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from engine.ingest import tally
from engine.ingest.tally import Tally


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds, which pass when a test says so."""
    now = [0.0]
    monkeypatch.setattr(tally, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_what_an_earlier_run_read_counts_as_done_and_not_as_pace(clock: list[float]) -> None:
    run = Tally({0: 1000, 1: 1000}, done=0, failed=0)
    run.begin(0, 400)
    run.resume(0, 200)
    assert (run.status().share, run.status().left_s) == (0.25, None)
    clock[0] = 10
    run.advance(0, 100)
    now = run.status()
    assert (now.share, now.tokens_per_s) == (0.375, 10)
    assert now.left_s == pytest.approx(50)  # an eighth of all in ten seconds, five are left
    run.begin(0, 400)  # it begins again, as by another process
    run.advance(0, 100)
    assert run.status().left_s == pytest.approx(70)
