"""The trace of an answer: zoom decisions and what they moved, step by step."""

from __future__ import annotations

import json
from dataclasses import replace

from engine.answer import replay
from engine.answer.trace import Trace
from engine.attention.host_records import Traffic
from tiny_steps import step


def test_a_trace_tells_estimate_and_real_weight_of_every_zoomed_span() -> None:
    """Tokens of a span add up; of the query heads of a group the largest counts; rows that are
    not of zoomed spans are none of them."""
    trace = Trace()
    seen = step(
        [[100, 101, 300, -1, 0], [0, -1, -1, -1, -1]],
        [[[0.1, 0.2, 0.3, 0.0, 0.4], [0.0, 0.05, 0.5, 0.0, 0.4]], [[0.7] * 5, [0.7] * 5]],
        zoomed=[[10, 30], []],
        layer=4,
    )
    trace.record(seen)
    trace.add_token(" whale")
    trace.record(seen)
    first = [
        {"span": 10, "layer": 4, "kv_head": 0, "step": 0, "score": 0.5, "weight": 0.3},
        {"span": 30, "layer": 4, "kv_head": 0, "step": 0, "score": 0.2, "weight": 0.5},
    ]
    assert json.loads(json.dumps(trace.zoom)) == [*first, *({**e, "step": 1} for e in first)]


def test_a_trace_tells_what_moved_since_the_step_before() -> None:
    """Traffic is counted from the question on, per layer; a trace has the difference."""
    trace = Trace()
    for fetched, reused in ((100, 0), (100, 3), (160, 5)):
        for layer in (0, 1):
            moved = Traffic(fetched + layer, fetched // 20, reused)
            trace.record(replace(step([[0]], [[[1.0]]], layer=layer), traffic=moved))
        trace.add_token("x")
    moves = [tuple(move.values()) for move in trace.moves]
    assert list(trace.moves[0]) == [
        "layer",
        "step",
        "fetched_bytes",
        "fetched_spans",
        "reused_spans",
    ]
    assert moves == [
        (0, 0, 100, 5, 0),
        (1, 0, 101, 5, 0),
        (0, 1, 0, 0, 3),
        (1, 1, 0, 0, 3),
        (0, 2, 60, 3, 2),
        (1, 2, 60, 3, 2),
    ]
    assert trace.said == ["x", "x", "x"]


def test_nothing_zoomed_is_nothing_traced() -> None:
    trace = Trace()
    trace.record(step([[0, 1]], [[[0.5, 0.5], [0.5, 0.5]]]))
    assert trace.zoom == []


def test_a_line_of_a_trace_file_holds_the_decisions_that_were_recorded() -> None:
    """In columns, with four digits of every share."""
    zoom = [
        {"span": 7, "layer": 1, "kv_head": 0, "step": 2, "score": 0.123456, "weight": 1e-9},
        {"span": 8, "layer": 0, "kv_head": 2, "step": 3, "score": 1.0, "weight": 0.5},
    ]
    packed = json.loads(replay.line({"store": "b.sekv", "zoom": zoom}))
    assert packed["store"] == "b.sekv"
    zoom[0]["score"] = 0.1235
    assert list(replay._entries(packed["zoom"])) == zoom == list(replay._entries(zoom))
