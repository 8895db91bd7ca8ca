"""`sekv ask`: what it hands to the engine and what it prints."""

from __future__ import annotations

import gzip
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.types import (
    AskOptions,
    Citation,
    IngestOptions,
)
from fake_engine import FakeEngine
from sekv_cli.main import run


def test_ask_defaults_are_the_engine_s_own(fake: FakeEngine) -> None:
    """Two places state defaults, for the help and for callers of the engine; they agree."""
    assert run(["ask", "book.sekv", "Who?"]) == 0
    assert fake.calls[0] == ("session", (Path("book.sekv"), AskOptions()))


def test_ask_hands_every_option_to_the_engine(fake: FakeEngine, tmp_path: Path) -> None:
    """What the user says is what the engine hears."""
    trace = tmp_path / "trace.json"
    line = (
        "ask book.sekv Who? --budget 4096 --coverage 0.5 --full --max-new-tokens 7 "
        "--temperature 0.5 --top-p 0.9 --seed 3 --device cpu --dtype float32 --model some/model "
        f"--router r.safetensors --trace {trace}"
    )
    assert run(line.split()) == 0
    assert fake.calls[0][1][1] == AskOptions(
        budget="4096",
        coverage=0.5,
        full=True,
        max_new_tokens=7,
        temperature=0.5,
        top_p=0.9,
        seed=3,
        device="cpu",
        dtype="float32",
        model="some/model",
        router="r.safetensors",
        trace=True,
    )


def test_a_document_without_a_store_is_asked_as_it_is_to_be_read(
    fake: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its store is named as `ingest` names it, or by -o; SEKV_MODEL counts as for `ingest`."""
    monkeypatch.setenv("SEKV_MODEL", "named")
    assert run(["ask", "locked.pdf", "Who?", "--no-read"]) == 0
    line = "ask locked.pdf Who? -o here.sekv --pages 1-3 --window 512 --chunk-tokens 64"
    assert run([*line.split(), "--method", "full", "--model", "smollm2", "--device", "cpu"]) == 0
    first, second = (given for name, given in fake.calls if name == "document")
    source, options = Path("locked.pdf"), AskOptions(read=False)
    assert first == (source, Path("locked.sekv"), options, IngestOptions(model="named"))
    assert second[:2] == (source, Path("here.sekv"))
    assert second[3] == IngestOptions(
        model="smollm2", device="cpu", pages="1-3", window=512, chunk_tokens=64, method="full"
    )


def test_the_answer_comes_before_its_citations(
    fake: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    """Answer, how far it is supported, then page, source and the quoted words on one line."""
    assert run(["ask", "book.sekv", "Which day?"]) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines() == [
        "St. George’s Day",
        "(the passage may support it: 1.00 of 1)",
        "",
        "  [1] p. 6, book.pdf",
        "      “the eve of St. George’s Day”",
    ]


def test_no_stream_prints_the_same(fake: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    """Streaming changes when the answer is seen, not what is seen."""
    assert run(["ask", "book.sekv", "Which day?"]) == 0
    streamed = capsys.readouterr().out
    assert run(["ask", "book.sekv", "Which day?", "--no-stream"]) == 0
    assert capsys.readouterr().out == streamed


def test_streaming_writes_each_piece_as_it_is_made(
    fake: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first word is on the screen before the last is known."""
    seen: list[str] = []

    class Screen(io.StringIO):
        def flush(self) -> None:
            seen.append(self.getvalue())

    monkeypatch.setattr(sys, "stdout", Screen())
    assert run(["ask", "book.sekv", "Which day?"]) == 0
    assert seen[:3] == ["St. ", "St. George’s ", "St. George’s Day"]


def test_ask_json_is_one_object_per_question_and_line(
    fake: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    """The contract's keys, nothing else on stdout, and one session for all questions."""
    assert run(["ask", "book.sekv", "One?", "Two?", "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["question"] for record in records] == ["One?", "Two?"]
    assert {"question", "answer", "citations", "usage", "memory", "timing"} <= records[0].keys()
    assert records[0]["usage"]["recomputed_document_tokens"] == 0
    assert records[0]["citations"][0]["text"] == "the eve of\nSt. George’s Day"
    assert fake.sessions == 1
    assert fake.calls[-1] == ("closed", None)


def test_questions_come_from_the_line_then_the_file_then_stdin(
    fake: FakeEngine, tmp_path: Path, stdin: Callable[[str], None]
) -> None:
    """Blank lines are no questions; a byte order mark is no part of one."""
    file = tmp_path / "questions.txt"
    file.write_bytes("\ufeffTwo?\r\n\r\n  Three?  \r\n".encode())
    stdin("Four?\n\nFive?")
    assert run(["ask", "book.sekv", "One?", "-f", str(file)]) == 0
    assert run(["ask", "book.sekv", "-"]) == 0
    asked = [given for name, given in fake.calls if name == "ask"]
    assert asked == ["One?", "Two?", "Three?", "Four?", "Five?"]


def test_several_questions_are_shown_above_their_answers(
    fake: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    """With one question the user knows it; with two they need to be told apart."""
    assert run(["ask", "book.sekv", "One?", "Two?"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[lines.index("One?") + 1] == "St. George’s Day"
    assert lines[lines.index("Two?") + 1] == "St. George’s Day"


STATS = """\
  read again   0 of the document's 300,000 tokens
  memory       100.0 MB for the document, 10.0 % of its full cache's 1.0 GB
  first token  after 0.25 s; before it 1.00 s to load libraries, model and store
  speed        40.0 tokens/s, 6 tokens
  windows      147 of 147 seen
"""


def test_stats_are_five_lines_and_all_that_was_counted_if_that_is_wanted(
    fake: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["ask", "book.sekv", "Which day?", "--stats"]) == 0
    short = capsys.readouterr().out
    assert short.endswith(f"\n\n{STATS}")
    assert run(["ask", "book.sekv", "Which day?", "--stats=full"]) == 0
    full = capsys.readouterr().out.partition("\n\n  read again")[2]
    assert [line.split("  ")[1] for line in full.splitlines()[5:]] == [
        "question",
        "working memory",
        "device peak",
        "budget",
        "zoom",
        "time",
        "windows",
    ]
    assert "40 of 20,000 spans" in full
    assert "first token 0.25 s, 40.0 tokens/s" in full


def test_a_pipe_gets_every_quotation_whole_on_one_line(
    fake: FakeEngine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that grep finds it; a terminal shows the beginning, folded to its width."""
    monkeypatch.setenv("COLUMNS", "40")
    words = " ".join(f"word{number}" for number in range(200))
    fake.citations = (Citation("book.pdf", "6", 10, 34, words, 0.8),)
    assert run(["ask", "book.sekv", "Which day?", "--stats"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"      “{words}”" in lines
    assert [line for line in lines if line.rstrip() != line] == []
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    assert run(["ask", "book.sekv", "Which day?"]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 40
    assert "…”" in shown
    assert "word199" not in shown


@pytest.mark.parametrize("name", ["trace.json", "trace.json.gz"])
def test_a_trace_is_one_object_per_question(name: str, fake: FakeEngine, tmp_path: Path) -> None:
    """One question makes a plain JSON file, which `inspect --trace` reads; decisions stand in
    columns, and a file whose name ends with .gz is compressed."""

    def written() -> list[dict[str, Any]]:
        raw = trace.read_bytes()
        text = gzip.decompress(raw) if name.endswith(".gz") else raw
        return [json.loads(line) for line in text.splitlines()]

    trace = tmp_path / name
    assert run(["ask", "book.sekv", "One?", "--trace", str(trace)]) == 0
    columns = {key: [] for key in ("span", "layer", "kv_head", "step", "score", "weight")}
    assert written() == [{"store": "book.sekv", "question": "One?", "zoom": columns}]
    assert run(["ask", "book.sekv", "One?", "Two?", "--trace", str(trace)]) == 0
    assert [record["question"] for record in written()] == ["One?", "Two?"]


def test_a_large_trace_says_so_and_how_to_have_it_smaller(
    fake: FakeEngine,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sekv_cli.ask.LARGE", 10)
    assert run(["ask", "book.sekv", "One?", "--trace", "t.json"]) == 0
    assert "t.json has 1" in capsys.readouterr().err
    assert run(["ask", "book.sekv", "One?", "--trace", "t.json.gz"]) == 0
    assert capsys.readouterr().err == ""


def test_a_document_cannot_drive_the_terminal(
    fake: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    """Escape sequences and markup in a document are shown, never obeyed; JSON keeps them exact."""
    hostile = "\x1b]0;owned\x07 [bold]x[/bold] \u202eabc"
    fake.citations = (Citation("a\x1b[2J.pdf", "1", 0, len(hostile), hostile, 1.0),)
    assert run(["ask", "book.sekv", "Q?"]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert "[bold]x[/bold]" in shown
    assert run(["ask", "book.sekv", "Q?", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["citations"][0]["text"] == hostile
