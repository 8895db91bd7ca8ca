"""`sekv bench`: what cannot be measured is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from sekv_cli.main import run


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("bench --suite nonsense", "fidelity"),
        ("bench", "--questions and --documents"),
        ("bench --suite efficiency", "name their folder: --text"),
        ("bench --suite efficiency --text nowhere", "there is no folder nowhere"),
        ("bench --suite efficiency --text docs", "holds no .txt books"),
        ("bench --questions nowhere --documents docs", "cannot read questions from nowhere"),
        (
            "bench --suite fidelity --questions q.jsonl --documents docs --length 5k",
            "'5k' is no list",
        ),
    ],
)
def test_what_cannot_be_measured_is_one_clear_line(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    line: str,
    said: str,
) -> None:
    """An unknown suite names the known ones; a missing book is not a defect."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "q.jsonl").touch()
    assert run(line.split()) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1
