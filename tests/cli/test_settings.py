"""The settings file: what wins, what is refused, and that editing keeps what it does not change."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.types import AskOptions
from fake_engine import FakeEngine
from sekv_cli import settings as own
from sekv_cli.main import run


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEKV_CONFIG", str(tmp_path / "of/mine/config.toml"))
    return tmp_path / "of/mine/config.toml"


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def test_the_command_line_wins_then_the_environment_then_the_file(
    fake: FakeEngine, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what nobody says is the option's own default."""

    def budget(*arguments: str) -> str:
        assert run(["ask", "book.sekv", "Who?", *arguments]) == 0
        options: AskOptions = next(given[1] for name, given in fake.calls if name == "session")
        fake.calls.clear()
        return options.budget

    assert budget() == AskOptions().budget
    write(file, 'budget = "20%"\n')
    assert budget() == "20%"
    monkeypatch.setenv("SEKV_BUDGET", "40%")
    assert budget() == "40%"
    assert budget("--budget", "60%") == "60%"


def test_a_key_at_the_top_is_for_all_commands_and_a_table_for_one(
    fake: FakeEngine, file: Path
) -> None:
    """The model that reads documents is not the model of a store."""
    write(file, 'model = "some/model"\ndevice = "cpu"\n[ask]\nmax-new-tokens = 7\nfull = true\n')
    assert run(["ingest", "a.txt"]) == 0
    assert run(["ask", "book.sekv", "Who?"]) == 0
    ingest, session = fake.calls[0][1][2], fake.calls[1][1][1]
    assert (ingest.model, ingest.device) == ("some/model", "cpu")
    assert session == AskOptions(max_new_tokens=7, full=True, device="cpu")


def test_what_is_wrong_in_the_file_is_one_line_that_names_it(
    fake: FakeEngine,
    file: Path,
    capsys: pytest.CaptureFixture[str],
    subtests: pytest.Subtests,
) -> None:
    """And `sekv config path` and `sekv help` work, so that it can be mended."""
    for text, said in (
        ("colour = 1", "there is no setting 'colour'; known: model, device"),
        ("[asking]\nfull = true", "there is no setting 'asking'"),
        ("ask = 1", "there is no setting 'ask'"),
        ("[ask]\nfoo = 1", "sekv ask has no option 'foo'"),
        ("budget = ", "are no TOML"),
        ('budget = "ten"', "'--budget' (from the settings, see sekv config)"),
        ("[ask]\nseed = -1", "'--seed' (from the settings, see sekv config)"),
    ):
        with subtests.test(text=text):
            write(file, text)
            assert run(["ask", "book.sekv", "Who?"]) == 2
            error = capsys.readouterr().err
            assert said in error
            assert error.count("\n") == 1
            assert fake.calls == []
            assert run(["config", "path"]) == 0
            assert run(["help", "ask"]) == 0
            capsys.readouterr()


def test_a_wrong_variable_is_named(
    fake: FakeEngine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEKV_DEVICE", "gpu")
    assert run(["ask", "book.sekv", "Who?"]) == 2
    assert "'--device' (from SEKV_DEVICE): unknown device 'gpu'" in capsys.readouterr().err


def test_set_get_unset_and_show(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The folder is made; comments and the order of lines stay."""

    def done(*line: str) -> str:
        assert run(["config", *line]) == 0
        return capsys.readouterr().out

    assert done("path") == f"{file}\n"
    assert done() == ""
    done("set", "model", "some/model")
    done("set", "ask.max-new-tokens", "64")
    done("set", "offline", "true")
    file.write_text("# mine\n" + file.read_text().replace("64", "64  # short"))
    done("set", "ask.temperature", "0.5")
    done("set", "model", "other/model")
    assert file.read_text() == (
        '# mine\nmodel = "other/model"\noffline = true\n'
        "[ask]\nmax-new-tokens = 64  # short\ntemperature = 0.5\n"
    )
    assert done("get", "offline") == "true\n"
    assert done().splitlines()[0] == "model = other/model"
    assert json.loads(done("--json")) == {
        "path": str(file),
        "settings": {
            "model": "other/model",
            "offline": True,
            "ask.max-new-tokens": 64,
            "ask.temperature": 0.5,
        },
    }
    done("unset", "ask.max-new-tokens")
    assert "max-new-tokens" not in file.read_text()


def test_a_setting_that_its_option_would_refuse_is_not_written(
    file: Path, capsys: pytest.CaptureFixture[str], subtests: pytest.Subtests
) -> None:
    for key, value, said in (
        ("colour", "red", "there is no setting 'colour'"),
        ("ask.colour", "red", "there is no setting 'ask.colour'"),
        ("asking.full", "true", "there is no setting 'asking.full'"),
        ("budget", "ten", "budget: 'ten' is neither a share"),
        ("ask.max-new-tokens", "0", "ask.max-new-tokens: it is not a number from 1"),
        ("ask.full", "yes", "ask.full: 'yes' is neither true nor false"),
    ):
        with subtests.test(key=key):
            assert run(["config", "set", key, value]) == 2
            assert said in capsys.readouterr().err
            assert not file.exists()
    assert run(["config", "unset", "model"]) == 2
    assert "model is not set" in capsys.readouterr().err
    assert run(["config", "get", "model"]) == 2


def test_a_form_that_is_not_edited_is_left_as_it_is(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Inline tables and dotted keys are TOML, and nobody's file is broken for that."""
    text = "ask = { seed = 3 }\n"
    write(file, text)
    assert run(["config", "set", "ask.seed", "4"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert file.read_text() == text


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_any_text_comes_back_as_it_was_set(value: str, file: Path) -> None:
    """Quotes, backslashes and control characters are escaped as TOML wants them."""
    assert tomllib.loads(f"model = {own._toml(value)}")["model"] == value
