"""`sekv inspect`: what it hands to the engine and what it prints."""

from __future__ import annotations

import json
import re

import pytest

from fake_engine import FakeEngine
from sekv_cli.main import run


def test_inspect_shows_the_store_and_its_map(
    fake: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sources, model, method, bytes against the full cache, and one line per measure."""
    assert run(["inspect", "book.sekv"]) == 0
    shown = capsys.readouterr().out
    for part in (
        "book.pdf (2 pages, 1,600 characters)",
        "2 layers, 4 heads on 2 KV heads of 64",
        "400 in 2 windows of up to 200",
        "20 and 7 anchors",
        "10.0 %",
        "book.pdf changed since",
        "map, 4 tokens to a cell",
        "surprisal",
    ):
        assert part in shown
    assert "zoom" not in shown
    pages = next(line for line in shown.splitlines() if line.startswith("page"))
    assert pages.split() == ["page", "1", "2"]


def test_inspect_with_a_question_shows_what_was_zoomed(
    fake: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    """The answer and where it stands; spans with steps, heads, estimated and real weight and
    words; what every step fetched, as it was recorded; the map of heads."""
    assert run(["inspect", "book.sekv", "-q", "Which day?"]) == 0
    shown = capsys.readouterr().out
    assert fake.calls[0][1][1]["question"] == "Which day?"
    row = next(line.split() for line in shown.splitlines() if line.split()[:1] == ["7"])
    assert row[:7] == ["7", "1", "0-2", "0.0", "1.0", "0.250", "0.500"]
    assert "eve of St. George’s Day" in shown
    printed = " ".join(shown.split())
    assert "Which day? a b [1] p. 6, book.pdf" in printed
    assert "3 steps: 10 fetched and 10 reused (50.0 %), 2.0 kB moved" in printed
    assert "step says fetched reused moved 0 a 10 2 2.0 kB 1 0 4 0 B 2 b 0 4 0 B" in printed
    assert "layer 1" in shown
    assert "10.0 % of the spans" in shown


def test_inspect_text_marks_spans_and_anchors_without_colour(
    fake: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a pipe, bars part the spans and brackets hold the anchors."""
    assert run(["inspect", "book.sekv", "--text", "10:40", "--source", "2"]) == 0
    assert capsys.readouterr().out == "The eve of [St. George]|’s Day\n"
    assert fake.calls[-1] == ("text", (1, 10, 40))
    assert fake.calls[0][1][1]["text"] == (10, 40)


def test_inspect_text_paints_spans_on_a_terminal(
    fake: FakeEngine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With colour there is nothing between the words that the document does not say."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    assert run(["inspect", "book.sekv", "--text", "10:40"]) == 0
    shown = capsys.readouterr().out
    assert "\x1b[" in shown
    assert "|" not in shown
    assert "[St." not in shown


@pytest.mark.parametrize(
    ("environment", "codes"),
    [
        ({}, r"\x1b"),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, r"\x1b\[[0-9;]*\b(3|4|9|10)[0-7]"),
    ],
)
def test_a_pipe_gets_no_codes_and_no_color_no_colour(
    environment: dict[str, str],
    codes: str,
    fake: FakeEngine,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And what colour would say is said by bars and brackets."""
    monkeypatch.setenv("TERM", "xterm-256color")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for line in ("inspect book.sekv -q Who?", "ask book.sekv Who? --stats"):
        assert run(line.split()) == 0
        assert not re.search(codes, capsys.readouterr().out)
    assert run(["inspect", "book.sekv", "--text", "10:40"]) == 0
    assert "[St. George]|" in capsys.readouterr().out


def test_inspect_json_has_the_contract_s_keys(
    fake: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    """All spans and all decisions, on one line."""
    assert run(["inspect", "book.sekv", "-q", "Q?", "--layer", "1", "--head", "0", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert {"manifest", "spans", "zoom"} <= record.keys()
    assert record["spans"][0].keys() >= {"id", "start_token", "end_token", "start", "end", "page"}
    assert record["zoom"][0].keys() == {"span", "layer", "kv_head", "step", "score", "weight"}
    assert fake.calls[0][1][1]["layer"] == 1
    assert fake.calls[0][1][1]["head"] == 0


def test_everything_fits_40_columns(
    fake: FakeEngine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A phone or a split screen loses detail, not meaning, and never a line's end."""
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("LINES", "25")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TERM", "dumb")  # no codes between the letters that are counted
    for line in (
        "ingest book.pdf",
        "ingest book.pdf --dry-run",
        "ask book.sekv Who? --stats --no-stream",
        "inspect book.sekv -q Who?",
        "inspect book.sekv --text 10:40",
    ):
        assert run(line.split()) == 0
        shown = capsys.readouterr().out
        assert max(len(row) for row in shown.splitlines()) <= 40, shown
        assert "…" not in shown
