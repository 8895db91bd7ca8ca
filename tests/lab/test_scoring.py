"""The timing of a long sketch counts what it says it counts."""

from __future__ import annotations

from engine.lab.bench.scoring import measure


def test_needles_are_found_and_bytes_counted() -> None:
    report = measure(4000, (0.25,))
    assert 3000 < report["tokens"] < 5000
    assert report["spans"] == 501
    assert 0 < report["level_bytes"] < report["sketch_bytes"]
    assert report["needles_first"]["1.0"] >= 0.9
    assert report["needles_first"]["0.25"] >= 0.8 * report["needles_first"]["1.0"]
    assert set(report["score_s"]) == {"2", "64"}
    assert all(x > 0 for line in report["score_s"].values() for x in line.values())
