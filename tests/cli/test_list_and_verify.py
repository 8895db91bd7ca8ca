"""`sekv list` and `sekv verify`: what they print about stores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.errors import FormatError, StoreError
from fake_engine import FakeStore, fake_store
from sekv_cli.main import run


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder with one sound store and one unreadable one, behind the real `list`."""
    from engine.store import library

    found = [
        library.StoreSummary(
            "lib/book.sekv",
            "reader",
            "sekv",
            300_000,
            147,
            20_000,
            2 * 10**8,
            ("a/book.pdf",),
            changed="2026-11-20T12:00:00+00:00",
        ),
        library.StoreSummary("lib/bad.sekv", "", "", 0, 0, 0, 0, (), "lib/bad.sekv: is damaged"),
    ]
    monkeypatch.setattr(library, "list_stores", lambda folder: found if folder == tmp_path else [])
    return tmp_path


def test_list_names_what_each_store_holds(
    library: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One row per store; one that cannot be read is named with its reason, not left out."""
    assert run(["list", str(library)]) == 0
    shown = capsys.readouterr().out
    row = next(line.split() for line in shown.splitlines() if line.startswith("book.sekv"))
    assert row == ["book.sekv", "reader", "300,000", "200.0", "MB", "2026-11-20", "book.pdf"]
    assert "lib/bad.sekv: is damaged" in shown
    assert run(["list", str(library), "--json"]) == 0
    records = json.loads(capsys.readouterr().out)["stores"]
    assert [record["path"] for record in records] == ["lib/book.sekv", "lib/bad.sekv"]


def test_an_empty_folder_says_so(library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Silence could mean anything."""
    assert run(["list"]) == 0
    assert capsys.readouterr().out == "no stores in .\n"


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[FakeStore]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b.sekv").mkdir()
    (tmp_path / "b.sekv" / "manifest.json").touch()
    return fake_store(monkeypatch)


def test_a_sound_store_passes(checked: type[FakeStore], capsys: pytest.CaptureFixture[str]) -> None:
    """Code 0; a source that changed since is told, and is no damage."""
    assert run(["verify", "b.sekv"]) == 0
    assert capsys.readouterr().out == "b.sekv is sound\n  book.pdf changed since\n"


def test_a_damaged_store_fails_with_the_list(
    checked: type[FakeStore], capsys: pytest.CaptureFixture[str]
) -> None:
    """Code 1 and every damage, for people and for scripts."""
    checked.damaged = ["windows/0 is cut", "a stranger"]
    assert run(["verify", "b.sekv"]) == 1
    assert capsys.readouterr().out.splitlines()[:3] == [
        "b.sekv is damaged",
        "  windows/0 is cut",
        "  a stranger",
    ]
    assert run(["verify", "b.sekv", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {
        "store": "b.sekv",
        "ok": False,
        "bytes": 4096,
        "windows": 2,
        "windows_read": 2,
        "tokens_read": 400,
        "damaged": ["windows/0 is cut", "a stranger"],
        "sources": ["book.pdf changed since"],
    }


def test_a_store_that_cannot_be_opened_is_damaged_and_no_store_is_bad_input(
    checked: type[FakeStore], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A broken manifest is a failed check; a wrong path is a wrong path."""
    checked.failure = StoreError("the manifest is damaged")
    assert run(["verify", str(tmp_path)]) == 2
    assert "is not a store" in capsys.readouterr().err
    assert run(["verify", "b.sekv"]) == 1
    assert "the manifest is damaged" in capsys.readouterr().out
    checked.failure = FormatError("open it with a newer sekv")
    assert run(["verify", "b.sekv"]) == 2
    assert capsys.readouterr().err == "sekv: open it with a newer sekv\n"
