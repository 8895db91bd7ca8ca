"""The help: groups of commands, parts of options, what repeats, and what a typing mistake meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from sekv_cli import commands
from sekv_cli.main import run


def shown(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert run(line.split()) == 0
    return capsys.readouterr().out


def test_the_help_names_every_command_in_one_of_three_groups(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each on one line at 80 columns, and nothing is cut."""
    monkeypatch.setenv("COLUMNS", "80")
    lines = shown("--help", capsys).splitlines()
    heads = [line for line in lines if line in ("Read and ask:", "Keep:", "Measure and train:")]
    assert heads == ["Read and ask:", "Keep:", "Measure and train:"]
    for entry in commands.ENTRIES:
        line = next(line for line in lines if line.split()[:1] == [entry.name])
        assert line.endswith(entry.summary)
        assert len(line) <= 80


def test_help_of_a_command_is_what_its_own_help_says(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("ask", "models", "models pull", "train heads", ""):
        assert shown(f"help {name}", capsys) == shown(f"{name} --help", capsys)


def test_the_usage_line_shows_what_repeats_and_what_may_be_left_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, usage in (
        ("ingest", "sekv ingest [SOURCE...] [OPTIONS]"),
        ("list", "sekv list [DIR] [OPTIONS]"),
        ("serve", "sekv serve [STORE...] [OPTIONS]"),
        ("models", "sekv models [OPTIONS] [COMMAND ...]"),
    ):
        assert shown(f"{name} --help", capsys).splitlines()[0] == f"Usage: {usage}"


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_no_help_is_wider_than_its_terminal(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor than 100 columns. Only lines to be copied may be longer: they keep their shape."""
    monkeypatch.setenv("COLUMNS", str(columns))
    for name in ("", *(entry.name for entry in commands.ENTRIES)):
        for line in shown(f"help {name}", capsys).splitlines():
            assert len(line) <= min(columns, 100) or " sekv " in line or "http" in line, line


def test_a_typing_mistake_is_told_what_was_meant(
    capsys: pytest.CaptureFixture[str], subtests: pytest.Subtests
) -> None:
    """With one mark at the end of each sentence."""
    for line, said in (
        ("aks", "There is no command 'aks'. Did you mean ask? Try: sekv --help"),
        ("inspct", "There is no command 'inspct'. Did you mean inspect? Try: sekv --help"),
        ("zzz", "There is no command 'zzz'. Try: sekv --help"),
        ("models pul x", "There is no command 'pul'. Did you mean pull? Try: sekv models --help"),
        ("help inspct", "There is no command 'inspct'. Did you mean inspect? Try: sekv --help"),
        ("help ask x", "sekv ask has no command 'x'. Try: sekv ask --help"),
        ("ask --bugdet 5", "No such option: --bugdet. Did you mean --budget? Try: sekv ask --help"),
    ):
        with subtests.test(line=line):
            assert run(line.split()) == 2
            assert capsys.readouterr().err == f"sekv: {said}\n"


def test_who_names_a_document_and_no_command_is_told_how_to_ask(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["book.pdf", "Who?"]) == 2
    assert "To ask it" not in capsys.readouterr().err
    (tmp_path / "book.pdf").touch()
    assert run(["book.pdf", "Who?"]) == 2
    assert "To ask it: sekv ask book.pdf 'Who ...?'" in capsys.readouterr().err
