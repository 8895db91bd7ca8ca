"""Whatever goes wrong ends in one line, an exit code and a code for scripts."""

from __future__ import annotations

import json
import os
import re
import sys

import pytest

from engine.errors import (
    DocumentError,
    FormatError,
    OptionError,
    SekvError,
    StoreDamagedError,
    StoreError,
)
from fake_engine import FakeEngine
from sekv_cli.endings import explain
from sekv_cli.main import run

BAD_LINES = [
    ("ask b.sekv Q --budget ten", "'ten' is neither a share"),
    ("ask b.sekv Q --budget 0%", "'0%' is neither a share"),
    (
        "ask b.sekv Q --budget 101%",
        "'--budget': '101%' is more than the whole document",
    ),
    ("ask b.sekv Q --seed 1.5", "'--seed': '1.5' is not a whole number."),
    ("ask b.sekv Q --temperature warm", "'--temperature': 'warm' is not a number."),
    ("ingest book.pdf --revision", "requires an argument. Try: sekv ingest --help"),
    ("ask b.pdf Q --window -1", "'--window': -1 is less than 0."),
    ("serve b.sekv --port 99999", "'--port': 99999 is not from 0 to 65535."),
    ("ask b.pdf Q --window x", "'--window': 'x' is not a whole number."),
    ("ask b.sekv Q --budget -5", "'-5' is neither a share"),
    ("ask b.sekv Q --budget 4.5", "'4.5' is neither a share"),
    ("ask b.sekv Q --coverage 0", "not above 0 and at most 1"),
    ("ask b.sekv Q --coverage nan", "not above 0 and at most 1"),
    ("ask b.sekv Q --top-p 1.5", "not above 0 and at most 1"),
    ("ask b.sekv Q --temperature -1", "-1 is neither 0 nor a number from"),
    ("ask b.sekv Q --temperature inf", "inf is neither 0 nor a number from"),
    ("ask b.sekv Q --temperature 1e-42", "1e-42 is neither 0 nor a number from"),
    ("ask b.sekv Q --max-new-tokens 0", "--max-new-tokens"),
    ("ask b.sekv Q --seed -1", "--seed"),
    ("ask b.sekv Q --device gpu", "unknown device 'gpu'; use auto, cpu, cuda or cuda:N"),
    ("ask b.sekv Q --dtype int8", "int8"),
    ("ask b.sekv", "there is no question"),
    ("ask b.sekv -f missing.txt", "missing.txt: No such file"),
    ("ask b.sekv Q --trace nowhere/trace.json", "existing folder"),
    ("ask", "STORE"),
    ("ingest", "SOURCE"),
    ("ingest a.txt --chunk-tokens 0", "--chunk-tokens"),
    ("ingest a.txt --window -1", "--window"),
    ("ingest - --password-stdin", "both a document and a password"),
    ("ingest - -", "named twice"),
    ("ask b.sekv Who? -f missing.txt", "missing.txt: No such file"),
    ("ask b.sekv Who? --seed -1", "2^64 - 1. Try: sekv ask --help"),
    ("ask b.sekv Who? --seed 18446744073709551616", "not a number from 0 to 2^64 - 1"),
    ("inspect b.sekv --text 5", "not START:END"),
    ("inspect b.sekv --text 9:3", "START below END"),
    ("inspect b.sekv --layer -1", "--layer"),
    ("inspect b.sekv --question Q --trace t.json", "exclude each other"),
    ("inspect b.sekv --trace missing.json", "there is no trace"),
    ("inspect b.sekv --html nowhere/page.html", "existing folder"),
    ("inspect b.sekv --html page.html --text 0:5", "leave --text out"),
    ("nonsense", "nonsense"),
    ("--nonsense", "--nonsense"),
]


def test_bad_input_is_one_clear_line(
    fake: FakeEngine, capsys: pytest.CaptureFixture[str], subtests: pytest.Subtests
) -> None:
    """Code 2, one line on stderr, nothing on stdout, and the engine was not troubled."""
    for line, said in BAD_LINES:
        with subtests.test(line=line):
            assert run(line.split()) == 2
            captured = capsys.readouterr()
            assert captured.out == ""
            assert captured.err.count("\n") == 1
            assert said in captured.err
            assert fake.calls == []


def test_an_empty_question_is_refused(fake: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is loaded for the questions beside it."""
    assert run(["ask", "b.sekv", "One?", "  "]) == 2
    assert capsys.readouterr().err == "sekv: the question is empty; type what you want to know\n"
    assert fake.calls == []


@pytest.mark.parametrize(
    ("failure", "code", "said"),
    [
        (StoreError("b.sekv is damaged; ingest it again"), 2, "b.sekv is damaged; ingest it again"),
        (DocumentError("two\nlines"), 2, "two lines"),
        (DocumentError("red\x1b[31m\0.pdf is empty"), 2, "red\\x1b[31m\\x00.pdf is empty"),
        (KeyboardInterrupt(), 130, "interrupted; run the same command to continue"),
        (OSError(28, "No space left on device", "b.sekv"), 2, "b.sekv: No space left on device"),
        (MemoryError(), 2, "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), 2, "out of memory"),
        (ValueError("no such\nthing"), 70, "defect in sekv: ValueError: no such thing (please"),
    ],
)
def test_every_ending_is_one_line_and_its_code(
    fake: FakeEngine,
    capsys: pytest.CaptureFixture[str],
    failure: BaseException,
    code: int,
    said: str,
) -> None:
    """No traceback reaches a user, and stdout stays clean for a script."""
    fake.failure = failure
    for line in (["ingest", "a.txt"], ["ask", "b.sekv", "Q?"], ["inspect", "b.sekv"]):
        assert run(line) == code
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith(f"sekv: {said}")
        assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (StoreError("b.sekv cannot be measured"), "store"),
        (StoreDamagedError("b.sekv is damaged"), "store_damaged"),
        (FormatError("a newer one"), "store_format"),
        (DocumentError("two\nlines"), "document"),
        (OptionError("top_p", "2 is too much"), "option"),
        (KeyboardInterrupt(), "interrupted"),
        (OSError(28, "No space left on device", "b.sekv"), "system"),
        (MemoryError(), "out_of_memory"),
        (ValueError("no such thing"), "defect"),
    ],
)
def test_scripts_are_told_what_went_wrong_by_a_code(
    fake: FakeEngine, capsys: pytest.CaptureFixture[str], failure: BaseException, code: str
) -> None:
    """With --json an error is one JSON object on stderr; its code stays when its words change."""
    fake.failure = failure
    assert run(["ask", "b.sekv", "Q?", "--json"]) != 0
    captured = capsys.readouterr()
    assert captured.out == ""
    printed = json.loads(captured.err)["error"]
    assert printed.keys() == {"code", "message"}
    assert printed["code"] == code
    assert printed["message"] == explain(failure).line


def test_a_question_that_looks_like_an_option_makes_no_json(
    fake: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.failure = StoreError("no")
    assert run(["ask", "b.sekv", "--", "--json"]) == 2
    assert capsys.readouterr().err == "sekv: no\n"


def test_every_error_has_a_code_of_its_own() -> None:
    def kinds(of: type[SekvError]) -> list[type[SekvError]]:
        return [of, *(kind for below in of.__subclasses__() for kind in kinds(below))]

    codes = [kind.code for kind in kinds(SekvError) if kind.__module__ == "engine.errors"]
    assert len(codes) == len(set(codes))
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", code) for code in codes)


def test_debug_shows_the_traceback(
    fake: FakeEngine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever reports a defect can see where it is."""
    monkeypatch.setenv("SEKV_DEBUG", "1")
    fake.failure = ValueError("no such thing")
    assert run(["inspect", "b.sekv"]) == 70
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    """`sekv` alone tells what there is; on stderr, for it is no result."""
    assert run([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Usage: sekv" in captured.err


def test_a_broken_pipe_is_quiet(fake: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """`sekv inspect book.sekv | head -3` ends like any other tool in a pipe."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert run(["inspect", "b.sekv"]) == 141
