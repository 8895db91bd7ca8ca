"""Pages, traces, histories and saved talks never replace a file that is not of sekv's making."""

from __future__ import annotations

import io
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

import toy_store
from engine.errors import OutputError
from sekv_cli import outputs
from sekv_cli.main import run

TEXT = b"# Minutes\n\nMarta Lund brings the keys.\n"
TRACE = json.dumps({"store": "a.sekv", "question": "Q", "zoom": []}) + "\n"
PAGE = '<!doctype html>\n<head>\n<meta charset="utf-8">\n<meta name="generator" content="sekv">\n'
HISTORY = "\n# 2026-01-31 12:00:00.000000\n+Who?\n"
OWN = {"page": PAGE, "trace": TRACE, "history": HISTORY}
CHECKS = {
    "page": outputs.check_page,
    "trace": outputs.check_trace,
    "history": outputs.check_history,
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instant_disk: None) -> Path:
    toy_store.ingest(tmp_path / "toy.sekv")
    (tmp_path / "minutes.md").write_bytes(TEXT)
    (tmp_path / "link.md").symlink_to("minutes.md")
    (tmp_path / "hard.md").hardlink_to(tmp_path / "minutes.md")
    (tmp_path / "books").mkdir()
    (tmp_path / "page.html").write_text("<!doctype html>\n<title>somebody's</title>\n")
    (tmp_path / "data.json").write_text('{"store": 1}\n')
    (tmp_path / "questions.txt").write_text("Who?\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


TAKEN = [
    "inspect toy.sekv --html minutes.md",
    "inspect toy.sekv --html link.md",
    "inspect toy.sekv --html hard.md",
    "inspect toy.sekv --html ./books/../minutes.md",
    "inspect toy.sekv --html page.html",
    "inspect toy.sekv --html toy.sekv/manifest.json",
    "inspect toy.sekv --html data.json --json",
    "ask toy.sekv Who? --trace minutes.md",
    "ask toy.sekv Who? --trace link.md",
    "ask toy.sekv Who? --trace data.json",
    "ask toy.sekv -f questions.txt --trace questions.txt",
    "ask toy.sekv Who? --trace toy.sekv/document.safetensors",
    "train --text books -o minutes.md",
    "train heads --text books -o minutes.md",
    "train heads --text books -o data.json",
    "chat toy.sekv --history minutes.md",
    "chat toy.sekv --history toy.sekv/manifest.json",
]


def test_a_file_of_somebody_else_s_is_never_overwritten(
    place: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    subtests: pytest.Subtests,
) -> None:
    """One line that says so, before anything is loaded; every byte is as it was."""
    before = toy_store.tree(place)
    for line in TAKEN:
        with subtests.test(line=line):
            monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
            assert run(line.split()) == 2
            captured = capsys.readouterr()
            assert captured.out == ""
            assert captured.err.count("\n") == 1
            assert "so it is not overwritten; name another file" in captured.err
            assert toy_store.tree(place) == before


@pytest.mark.parametrize("kind", OWN)
@pytest.mark.parametrize("other", OWN)
def test_only_a_file_of_the_same_kind_may_be_replaced(
    kind: str, other: str, tmp_path: Path
) -> None:
    """A page by a page, a trace by a trace."""
    file = tmp_path / "file"
    file.write_text(OWN[other])
    if kind == other:
        CHECKS[kind](file)
    else:
        with pytest.raises(OutputError, match=f"is no {kind} of sekv's"):
            CHECKS[kind](file)


@pytest.mark.parametrize("kind", OWN)
def test_what_holds_nothing_may_be_written(kind: str, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    for file in (None, empty, tmp_path / "new", Path(os.devnull)):
        CHECKS[kind](file)


@pytest.mark.parametrize("kind", OWN)
def test_what_can_be_no_file_is_one_line(kind: str, tmp_path: Path) -> None:
    for file in (tmp_path, tmp_path / "nowhere" / "file", Path("a\0b")):
        with pytest.raises(OutputError, match="name a"):
            CHECKS[kind](file)


def test_a_dash_is_no_file(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is stdin where something is read; written to it, a file of that name would surprise."""
    assert run(["inspect", "toy.sekv", "--html", "-"]) == 2
    assert run(["ask", "toy.sekv", "Who?", "--trace", "-"]) == 2
    assert capsys.readouterr().err.count("is no name of a file; name another") == 2
    assert not Path("-").exists()


def test_what_goes_into_a_pipe_goes_through_it() -> None:
    """As `--html /dev/stdout | less` does."""
    out, into = os.pipe()
    outputs.check_page(Path(f"/dev/fd/{into}"))
    outputs.write(Path(f"/dev/fd/{into}"), "text")
    os.close(into)
    assert os.read(out, 10) == b"text"
    os.close(out)


def test_a_saved_talk_is_always_a_new_file(tmp_path: Path) -> None:
    outputs.check_new(tmp_path / "talk.md")
    (tmp_path / "talk.md").write_text("# mine")
    with pytest.raises(OutputError, match="is there already"):
        outputs.check_new(tmp_path / "talk.md")


def test_what_inspect_writes_it_may_write_again() -> None:
    """The mark by which a page is known is in the page."""
    template = Path(outputs.__file__).parent / "page" / "page.html"
    assert outputs.PAGE_MARK in template.read_bytes()[:1000]


@pytest.mark.parametrize("link", [False, True])
def test_an_old_file_stays_whole_until_the_new_one_is(
    link: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk leaves what was there, and nothing beside it; a link stays a link."""
    real = tmp_path / "real"
    real.write_text("old")
    real.chmod(0o640)
    file = real
    if link:
        file = tmp_path / "link"
        file.symlink_to("real")
    own = Path.write_bytes

    def full(path: Path, data: Any) -> int:
        own(path, data[:3])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        with pytest.raises(OutputError, match=r"(real|link) cannot be written: No space"):
            outputs.write(file, "new text")
    assert real.read_text() == "old"
    outputs.write(file, "new text \ud800")
    assert real.read_text() == "new text ?"
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert file.is_symlink() == link
    assert {path.name for path in tmp_path.iterdir()} == {"real", *(["link"] if link else [])}


def test_a_device_is_written_as_it_is() -> None:
    outputs.write(Path(os.devnull), "text")
    assert not Path(os.devnull).is_file()
