"""The bar of a quote's certainty: where it is put, what it refuses and what it loses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from engine.bench.support import Asked, ask_all, bars, markdown, report, write
from engine.calibration import Heads
from engine.certainty import SCORES, Bar
from engine.errors import SekvError
from engine.prompt import Prompt
from engine.readers import hf
from engine.store.disk import Disk
from engine.types import Silent
from tiny_models import checkpoint


def asked(stated: bool, right: bool, score: float, **more: bool) -> Asked:
    scores = {name: score if name == "first" else -1.0 for name in SCORES}
    flags = {"refused": False, "cited": right, "read": False, **more}
    return Asked(stated=stated, right=right, scores=scores, **flags)


SURE = [asked(True, True, -0.01 * i) for i in range(100)]
GUESSED = [asked(False, False, -0.5 - 0.01 * i) for i in range(100)]


def test_the_bar_loses_no_more_than_allowed_and_refuses_the_rest() -> None:
    """Two of a hundred right answers may go: the bar is the third lowest score."""
    found = bars(SURE + GUESSED, 0.02)["first"]
    assert found["least"] == pytest.approx(-0.97)
    assert found["lost"] == 0.02
    assert found["refused"] == 0.52
    assert bars(SURE + GUESSED, 0.0)["first"]["lost"] == 0


def test_a_score_that_tells_nothing_refuses_nothing() -> None:
    found = bars(SURE + GUESSED, 0.02)["mean"]
    assert (found["least"], found["lost"], found["refused"]) == (-1.0, 0.0, 0.0)


def test_the_report_takes_the_best_score_and_counts_passages() -> None:
    """Questions that are answered wrongly count neither as right nor as without answer."""
    wrong = [asked(True, False, -9.0)] * 5
    own = [asked(False, False, -9.0, refused=True)] * 100
    told = report([*SURE, *GUESSED, *own, *wrong], 0.02)
    assert (told["questions"], told["right"], told["without_answer"]) == (305, 100, 200)
    assert told["refused_by_itself"] == 0.5
    assert told["bars"]["first"]["refused"] == 0.76
    assert (told["cited"], told["read"]) == (1.0, 0.0)
    assert Bar.from_json(told["best"]).score == "first"
    json.dumps(told)
    assert "| first (best) | -0.970 | 76.0 (" in markdown(told)


def test_too_little_to_measure_on_is_one_line() -> None:
    with pytest.raises(SekvError, match="0 right answers and 100 questions without one"):
        report(GUESSED, 0.02)


def test_the_bar_reaches_a_look_up_reader_and_changes_no_identity(tmp_path: Path) -> None:
    """Other models have no quote that it could be put to."""
    folder = checkpoint("llama", tmp_path / "model")
    before = hf.load(str(folder), device="cpu")
    write(folder, {"score": "least", "least": -2.5})
    after = hf.load(str(folder), device="cpu")
    assert after.identity == before.identity
    bar = Bar.from_json(hf.load_config(str(folder)).sekv_certainty)
    assert bar == Bar("least", -2.5)
    assert Prompt.of(hf.load_tokenizer(str(hf.BUILTIN)), bar=bar).bar == bar
    with pytest.raises(SekvError, match="no look-up reader"):
        ask_all(after, str(folder), [], 1, "20%", Silent())


def test_a_crash_while_writing_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader without its configuration could not be loaded again."""
    config, heads = tmp_path / "config.json", tmp_path / "heads.json"
    config.write_text('{"model_type": "llama"}')
    measured = Heads("tiny", "ff", [[0]], [[1.0]], [1.0], {})
    measured.save(heads)
    before = config.read_bytes(), heads.read_bytes()

    def full_disk(*_: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(Disk, "sync", full_disk)
        with pytest.raises(OSError, match="no space"):
            write(tmp_path, {"score": "least", "least": -1.0})
        with pytest.raises(OSError, match="no space"):
            replace(measured, model="other").save(heads)
    assert (config.read_bytes(), heads.read_bytes()) == before
    write(tmp_path, {"score": "least", "least": -1.0})
    assert json.loads(config.read_text())["sekv_certainty"]["least"] == -1.0
