"""Commands on a library of real stores of a tiny model: ask, chat, list."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from datetime import datetime
from pathlib import Path

import pytest

from engine.models.reader import Reader
from json_schemas import valid
from sekv_cli.main import run
from tiny_books import log, read


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory, model: Path, reader: Reader) -> Path:
    folder = tmp_path_factory.mktemp("shelf")
    for name, text in (
        ("organ", "The organ in the church was paid for by a baker.\n" + log(2)),
        ("deep/comet", "A comet stood over the harbour for nine nights.\n" + log(2)),
    ):
        made = read(folder / "sources" / name, model, text, reader=reader)
        (folder / "library" / name).parent.mkdir(parents=True, exist_ok=True)
        made.rename(folder / "library" / f"{name}.sekv")
    return folder


@pytest.fixture
def library(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy in the current folder; the sources lie where the stores say, two folders away."""
    made = Path(shutil.copytree(shelf / "library", tmp_path / "library"))
    monkeypatch.chdir(tmp_path)
    return made


def test_a_question_that_no_document_answers_leaves_the_others_their_answers(
    library: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("questions.txt").write_text("Who paid for the organ?\nZeppelin?\nWho saw the comet?\n")
    line = ["ask", "library", "-f", "questions.txt", "--max-new-tokens", "4"]
    assert run([*line, "--json"]) == 2
    said = capsys.readouterr()
    answered = [json.loads(one)["question"] for one in said.out.splitlines()]
    assert answered == ["Who paid for the organ?", "Who saw the comet?"]
    message = json.loads(said.err.splitlines()[-1])["error"]["message"]
    assert message.startswith('not answered: "Zeppelin?": no document of ')
    assert run([*line, "--quiet"]) == 2
    assert "Zeppelin" in capsys.readouterr().err


def test_ask_names_document_and_store(library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    question = "Who paid for the organ?"
    assert run(["ask", "library", question, "--json", "--max-new-tokens", "4"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["store"] == "organ.sekv"
    assert answer["citations"][0]["store"] == "organ.sekv"
    assert answer["stats"]["documents"] >= 1
    assert run(["ask", "library", question, "--max-new-tokens", "4"]) == 0
    assert "[1] organ" in capsys.readouterr().out


def test_chat_shows_a_passage_in_its_place(
    library: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "Where did the comet stand?\n/cite 1\n/zoom\n/quit\n"
    stream = io.TextIOWrapper(io.BytesIO(said.encode()), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", stream)
    assert run(["chat", "library", "--max-new-tokens", "4"]) == 0
    shown = capsys.readouterr()
    assert "sekv:" not in shown.err
    assert "comet" in shown.out


def test_list_shows_what_lies_deep_and_a_single_store(
    library: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["list", "library", "--json"]) == 0
    stores = json.loads(capsys.readouterr().out)["stores"]
    assert [store["path"] for store in stores] == ["library/deep/comet.sekv", "library/organ.sekv"]
    assert run(["list", "library/organ.sekv", "--json"]) == 0
    (store,) = json.loads(capsys.readouterr().out)["stores"]
    assert store["path"] == "library/organ.sekv"
    assert run(["list", "library"]) == 0
    assert "deep/comet.sekv" in capsys.readouterr().out


def test_list_draws_folders_as_a_tree_and_tells_the_day(
    library: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (library / "deep" / "bad.sekv").mkdir()
    made = datetime(2026, 3, 4, 12).timestamp()
    os.utime(library / "organ.sekv" / "manifest.json", (made, made))
    assert run(["list", "library", "--tree"]) == 0
    root, deep, bad, comet, organ = capsys.readouterr().out.splitlines()
    assert root.startswith("library  (3 stores, ")
    assert deep.startswith("├── deep  (2 stores, ")
    assert bad.startswith("│   ├── bad.sekv  library/deep/bad.sekv")
    assert comet.startswith("│   └── comet.sekv  ")
    assert organ.startswith("└── organ.sekv  ")
    assert organ.endswith(", 2026-03-04")
    assert run(["list", "library"]) == 0
    assert "2026-03-04" in capsys.readouterr().out
    assert run(["list", "nothing", "--tree"]) == 2


def test_rm_takes_one_source_out_of_a_store(
    library: Path, capsys: pytest.CaptureFixture[str], model: Path
) -> None:
    Path("a.txt").write_text("The organ was paid for by a baker.\n" + log(3))
    Path("b.txt").write_text(log(2))
    assert run(["ingest", "a.txt", "-o", "two.sekv", "--model", str(model)]) == 0
    assert run(["ingest", "b.txt", "--append", "two.sekv"]) == 0
    capsys.readouterr()
    for line, words in (
        ("rm two.sekv --source c.txt", "it has a.txt, b.txt"),
        ("rm two.sekv library/organ.sekv --source b.txt", "name one"),
        ("rm library --source c.txt", "none of them has a source c.txt; sekv list library"),
        ("rm library --source log.txt", "in library/deep/comet.sekv, library/organ.sekv; name one"),
        ("rm . --source b.txt", "sekv rm two.sekv --source b.txt takes that document out"),
    ):
        assert run(line.split()) == 2
        assert words in capsys.readouterr().err
    assert run(["rm", "two.sekv", "--source", "b.txt", "--json"]) == 0
    done = valid("rm-source", capsys.readouterr().out)
    assert (done["removed"], done["sources"], done["unread"]) == ("b.txt", ["a.txt"], 0)
    for line, words in (
        ("rm two.sekv --source a.txt", "sekv rm two.sekv removes the store"),
        ("rm . --source a.txt", "sekv rm two.sekv takes that document out"),
    ):
        assert run(line.split()) == 2
        assert words in capsys.readouterr().err


def test_a_changed_source_is_spoken_of_once(
    library: Path, shelf: Path, capsys: pytest.CaptureFixture[str], model: Path
) -> None:
    Path("book.txt").write_text(log(2))
    assert run(["ingest", "book.txt", "--model", str(model)]) == 0
    Path("book.txt").write_text(log(3))
    capsys.readouterr()
    line = ["ask", "book.sekv", "How many whales?", "Which ship?", "--max-new-tokens", "2"]
    assert run(line) == 0
    assert capsys.readouterr().err.count("book.txt changed since") == 1
    assert run(["ingest", "book.txt", "--model", str(model), "--update"]) == 0
    capsys.readouterr()
    assert run(line) == 0
    assert "changed" not in capsys.readouterr().err


def test_rm_and_mv_keep_the_catalogue_true(
    library: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from engine.store.catalogue import Catalogue

    with Catalogue(library) as catalogue:
        catalogue.refresh()
    assert run(["mv", "library/organ.sekv", "library/deep", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"store": "library/deep/organ.sekv"}
    with Catalogue(library) as catalogue:
        assert [entry.name for entry in catalogue.entries()] == [
            "deep/comet.sekv",
            "deep/organ.sekv",
        ]
    assert run(["rm", "library/deep/organ.sekv", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["freed_bytes"] > 0
    with Catalogue(library) as catalogue:
        assert [entry.name for entry in catalogue.entries()] == ["deep/comet.sekv"]


def test_what_cannot_be_removed_or_moved_is_one_line(
    library: Path, capsys: pytest.CaptureFixture[str], subtests: pytest.Subtests
) -> None:
    (library / "photos").mkdir()
    for line, words in (
        ("rm library", "folder of stores"),
        ("rm library/photos", "not a store"),
        ("rm library/nothing.sekv", "no store"),
        ("rm library/organ", "did you mean library/organ.sekv?"),
        ("verify library/organ.pdf", "did you mean library/organ.sekv?"),
        ("mv library/nothing.sekv x", "no store"),
        ("mv library/organ.sekv library/deep/comet.sekv", "exists"),
        ("mv library/organ.sekv nowhere/x.sekv", "does not exist"),
        ("gc nowhere", "no folder"),
        ("gc --older-than nan", "nan is not a number of hours"),
    ):
        with subtests.test(line):
            assert run(line.split()) == 2
            said = capsys.readouterr().err
            assert words in said
            assert said.count("\n") == 1
    assert (library / "organ.sekv").is_dir()


def test_gc_keeps_what_can_be_gone_on_from_for_a_day(
    library: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (library / ".x.sekv.work").mkdir()
    (library / ".x.sekv.work" / "journal").write_text("x" * 100)
    (library / ".y.sekv.lock").touch()
    assert run(["gc", "library", "--json", "--dry-run"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [Path(each["path"]).name for each in said["removed"]] == [".y.sekv.lock"]
    assert [Path(each["path"]).name for each in said["kept"]] == [".x.sekv.work"]
    assert (library / ".y.sekv.lock").exists()
    assert run(["gc", "library"]) == 0
    assert "kept: " in capsys.readouterr().out
    assert run(["gc", "library", "--older-than", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["freed_bytes"] == 100
    assert [path.name for path in library.iterdir() if path.name.startswith(".")] == []
