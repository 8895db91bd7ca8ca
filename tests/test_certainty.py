"""How sure a quote must be: scores of its tokens, and the bar in a reader's configuration."""

from __future__ import annotations

import math
from typing import Any

import pytest

from engine.certainty import SCORES, Bar
from engine.errors import ReaderError


def test_scores_look_at_the_beginning_the_whole_and_the_worst() -> None:
    log_p = [-2.0, -0.5, -3.5]
    assert {name: score(log_p) for name, score in SCORES.items()} == {
        "first": -2.0,
        "mean": -2.0,
        "least": -3.5,
    }


def test_a_quote_passes_at_the_bar_and_fails_below_it() -> None:
    assert Bar("first", -1.0).holds([-1.0, -9.0])
    assert not Bar("least", -1.0).holds([-1.0, -9.0])
    assert Bar("mean", -1.0).holds([])
    assert Bar().holds([-1e9])


def test_a_bar_is_what_the_configuration_says() -> None:
    assert Bar.from_json({}) == Bar()
    assert Bar.from_json({"score": "least", "least": -2}) == Bar("least", -2.0)


@pytest.mark.parametrize(
    "record",
    [{"score": "mean"}, {"score": "no", "least": 0}, {"score": "mean", "least": math.nan}, [1]],
)
def test_what_is_no_bar_is_one_line(record: Any) -> None:
    with pytest.raises(ReaderError, match="sekv_certainty"):
        Bar.from_json(record)
