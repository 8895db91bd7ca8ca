"""The catalogue of a library follows its stores, whatever happens to them or to it."""

from __future__ import annotations

import contextlib
import random
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

import toy_store
from engine.errors import LibraryError, SekvError
from engine.store import catalogue, passages
from engine.store.catalogue import Catalogue
from engine.store.folders import is_library, stores_below
from repository import ROOT, environment
from toy_store import flip

pytestmark = pytest.mark.usefixtures("instant_disk")


def named(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in stores_below(folder)]


def words(name: str) -> list[str]:
    """The one word of a toy's first window."""
    return [toy_store.text({"a": 0, "b": 1, "c": 2}[name], 1)]


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Two toys, one of them in a folder."""
    (tmp_path / "deep" / "er").mkdir(parents=True)
    toy_store.ingest(tmp_path / "a.sekv", seed=0)
    toy_store.ingest(tmp_path / "deep" / "er" / "b.sekv", seed=1)
    return tmp_path


def refreshed(folder: Path) -> dict[str, str]:
    with Catalogue(folder) as open_catalogue:
        open_catalogue.refresh()
        return {entry.name: entry.problem for entry in open_catalogue.entries()}


def found(folder: Path, name: str) -> list[str]:
    with Catalogue(folder) as open_catalogue:
        open_catalogue.refresh()
        return [passage.store for passage in open_catalogue.find(words(name), 10)]


def test_a_python_without_full_text_search_is_told_of_in_one_line(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passages, "TOKENIZE", "tokenize='none'")
    with pytest.raises(SekvError, match=r"FTS5 .*no such tokenizer"):
        refreshed(library)


def test_a_library_is_a_folder_with_stores_at_any_depth(library: Path) -> None:
    assert named(library) == ["a.sekv", "deep/er/b.sekv"]
    assert is_library(library)
    assert is_library(library / "deep")
    assert not is_library(library / "a.sekv")
    assert not is_library(library / "nothing")


def test_words_find_the_store_and_the_tokens_that_have_them(library: Path) -> None:
    with Catalogue(library) as open_catalogue:
        open_catalogue.refresh()
        (passage,) = open_catalogue.find(words("b"), 10)
        assert (passage.store, passage.first, passage.end) == ("deep/er/b.sekv", 0, 12)
        assert passage.score > 0
        assert open_catalogue.find(["absent"], 10) == []
        assert open_catalogue.find([], 10) == []


def test_it_follows_what_happens_to_stores(library: Path) -> None:
    """Added, replaced, moved and removed behind its back."""
    assert found(library, "c") == []
    toy_store.ingest(library / "c.sekv", seed=2)
    assert found(library, "c") == ["c.sekv"]
    (library / "c.sekv").rename(library / "deep" / "moved.sekv")
    assert found(library, "c") == ["deep/moved.sekv"]
    toy_store.ingest(library / "a.sekv", seed=2, overwrite=True)
    assert found(library, "c") == ["a.sekv", "deep/moved.sekv"]
    assert found(library, "a") == []
    shutil.rmtree(library / "deep")
    assert refreshed(library) == {"a.sekv": ""}


def test_nothing_is_read_again_that_is_as_it_was(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refreshed(library)
    monkeypatch.setattr(catalogue, "Store", None)
    assert refreshed(library) == {"a.sekv": "", "deep/er/b.sekv": ""}


def test_the_words_of_a_store_that_is_read_further_are_not_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unread() -> int:
        with Catalogue(tmp_path) as open_catalogue:
            open_catalogue.refresh()
            (entry,) = open_catalogue.entries()
            assert [passage.store for passage in open_catalogue.find(words("a"), 10)] == ["a.sekv"]
            return entry.unread

    toy_store.ingest(tmp_path / "a.sekv", only=[0])
    assert unread() == 1
    with monkeypatch.context() as patch:
        patch.setattr(catalogue, "_passages", None)
        toy_store.append(tmp_path / "a.sekv", windows=2)
        assert unread() == 0
    toy_store.append(tmp_path / "a.sekv", windows=3)  # of a longer text
    with monkeypatch.context() as patch:
        patch.setattr(catalogue, "_passages", None)
        with pytest.raises(TypeError):
            unread()
    assert unread() == 0


def test_entries_are_read_again_when_any_process_changed_them(library: Path) -> None:
    with Catalogue(library) as mine:
        mine.refresh()
        before = mine.entries()
        assert mine.entries() is before
        shutil.rmtree(library / "deep")
        refreshed(library)
        assert [entry.name for entry in mine.entries()] == ["a.sekv"]


def test_a_long_look_is_not_made_again_soon_where_that_may_be_spared(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, looks, takes = [0.0], [0], [0.0]
    look = catalogue.stamps

    def slow(folder: Path) -> dict[str, str]:
        looks[0] += 1
        now[0] += takes[0]
        return look(folder)

    monkeypatch.setattr(catalogue, "stamps", slow)
    monkeypatch.setattr(catalogue.time, "monotonic", lambda: now[0])
    for takes[0], passed, again in ((0.01, 0.0, True), (2.0, 19.0, False), (2.0, 21.0, True)):
        with Catalogue(library) as opened:
            opened.refresh(sparing=True)
            now[0] += passed
            before = looks[0]
            opened.refresh(sparing=True)
            assert (looks[0] > before) == again
            opened.refresh()
            assert looks[0] == before + again + 1


def test_a_store_that_cannot_be_read_says_why_and_the_others_are_found(library: Path) -> None:
    flip(library / "a.sekv" / "manifest.json", 40, 1)
    problems = refreshed(library)
    assert "damaged" in problems["a.sekv"]
    assert problems["deep/er/b.sekv"] == ""
    assert found(library, "b") == ["deep/er/b.sekv"]


@pytest.mark.parametrize("kind", ["text", "cut", "empty", "older"])
def test_a_catalogue_that_is_no_more_is_made_anew(library: Path, kind: str) -> None:
    refreshed(library)
    file = library / catalogue.NAME
    if kind == "text":
        file.write_text("this is no database at all" * 300)
    elif kind == "cut":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif kind == "empty":
        file.write_bytes(b"")
    else:
        with sqlite3.connect(file) as database:
            database.execute("PRAGMA user_version = 99")
    assert found(library, "b") == ["deep/er/b.sekv"]
    assert refreshed(library) == {"a.sekv": "", "deep/er/b.sekv": ""}


def test_flipped_bytes_of_a_catalogue_never_end_in_a_defect(library: Path) -> None:
    """Whatever byte is wrong, there is an answer or one line."""
    refreshed(library)
    file = library / catalogue.NAME
    whole, chance = file.read_bytes(), random.Random(3)
    for _ in range(40):
        file.write_bytes(whole)
        for _ in range(20):
            flip(file, chance.randrange(len(whole)), 1 << chance.randrange(8))
        with contextlib.suppress(LibraryError):
            found(library, "b")


def test_a_folder_that_takes_no_file_is_one_line(library: Path) -> None:
    (library / catalogue.NAME).mkdir()
    with pytest.raises(LibraryError, match="cannot be written"):
        Catalogue(library)


def test_what_was_noted_of_a_file_holds_for_its_size_and_time(library: Path) -> None:
    with Catalogue(library) as open_catalogue:
        open_catalogue.note("/x/book.pdf", 5, 7, "ab")
        assert open_catalogue.sha256("/x/book.pdf", 5, 7) == "ab"
        assert open_catalogue.sha256("/x/book.pdf", 5, 8) == ""
        assert open_catalogue.sha256("/x/book.pdf", 6, 7) == ""
        open_catalogue.note("/x/book.pdf", 6, 8, "cd")
        assert open_catalogue.sha256("/x/book.pdf", 5, 7) == ""


REFRESH = """
import sys
from pathlib import Path
from engine.store.catalogue import Catalogue
with Catalogue(Path(sys.argv[1])) as catalogue:
    catalogue.refresh()
    print(len(catalogue.entries()))
"""


def test_four_processes_at_once_make_one_catalogue(tmp_path: Path) -> None:
    for number in range(12):
        toy_store.ingest(tmp_path / f"{number}.sekv", seed=number)
    command = [sys.executable, "-c", REFRESH, str(tmp_path)]
    running = [
        subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    assert [process.communicate()[0].strip() for process in running] == ["12"] * 4
    with sqlite3.connect(tmp_path / catalogue.NAME) as database:
        assert database.execute("SELECT count(*) FROM stores").fetchone() == (12,)
        assert database.execute("SELECT count(*) FROM places").fetchone() == (24,)
        assert database.execute("SELECT count(*) FROM passages").fetchone() == (24,)
