"""One source of several goes; what had nothing to do with it stays byte for byte."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import uuid
from pathlib import Path

import pytest

from engine.errors import DocumentError
from engine.ingest.on_demand import read_windows
from engine.ingest.removal import remove_source
from engine.ingest.run import append, ingest
from engine.models.reader import Reader
from engine.object_storage import Bucket, ObjectUrl, bucket
from engine.store import upkeep
from engine.store.reader import Store, read_manifest
from engine.store.upkeep import move_store
from engine.types import IngestOptions, Removal, Silent
from killed_steps import Steps
from tiny_books import log, session
from toy_store import leftovers, read_all, tree

pytestmark = pytest.mark.usefixtures("instant_disk")

TEXTS = {
    "organ.txt": "The organ in the church was paid for by a baker.\n" + log(8),
    "comet.txt": "A comet stood over the harbour for nine nights.\n" + log(7),
    "bridge.txt": "The bridge was built by two sisters from Delft.\n" + log(9),
}


class Shelf:
    """Stores of three documents, in windows of 160 tokens: read together, or one after another."""

    def __init__(self, folder: Path, model: Path, reader: Reader) -> None:
        self.folder, self.reader = folder, reader
        self.options = IngestOptions(model=str(model), window=160)
        for name, text in TEXTS.items():
            (folder / name).write_text(text)

    def paths(self, *names: str) -> list[str]:
        return [str(self.folder / name) for name in names or TEXTS]

    def together(self, *names: str, store: str = "s.sekv") -> Path:
        target = self.folder / store
        ingest(self.paths(*names), target, self.options, Silent(), None, self.reader)
        return target

    def appended(self) -> Path:
        target = self.together("organ.txt")
        for path in self.paths("comet.txt", "bridge.txt"):
            append([path], target, self.options, Silent(), None, self.reader)
        return target

    def remove(self, store: Path, name: str) -> Removal:
        return remove_source(store, name, Silent(), self.reader)


@pytest.fixture
def shelf(tmp_path: Path, model: Path, reader: Reader) -> Shelf:
    return Shelf(tmp_path, model, reader)


def windows(store: Path) -> list[bytes]:
    """The bytes of every window, in order."""
    files = tree(store)
    return [files[name] for name in sorted(files) if name.startswith("windows/")]


@pytest.mark.parametrize("name", TEXTS)
def test_of_sources_that_share_no_window_nothing_is_read_again(shelf: Shelf, name: str) -> None:
    """The first, the middle and the last one; the store is then sound, and holds nothing of it."""
    store = shelf.appended()
    before = windows(store)
    first = read_manifest(store)
    done = shelf.remove(store, name)
    assert (done.unread, done.read) == (0, 0)
    assert [Path(path).name for path in done.sources] == [each for each in TEXTS if each != name]
    assert set(windows(store)) < set(before)
    after = read_manifest(store)
    assert after.tokens == first.tokens - len(TEXTS[name])  # a byte a token
    assert [window.start for window in after.windows[1:]] == [w.end for w in after.windows[:-1]]
    with Store.open(store) as opened:
        assert list(opened.texts()) == [text for each, text in TEXTS.items() if each != name]
        assert opened.verify() == []
    assert not any(TEXTS[name][:30].encode() in data for data in tree(store).values())
    assert leftovers(store.parent) == []


def test_windows_that_were_shared_are_read_by_questions_that_need_them(shelf: Shelf) -> None:
    store = shelf.together()
    before = windows(store)
    done = shelf.remove(store, "comet.txt")
    after = read_manifest(store)
    assert 0 < done.unread == after.tokens - after.tokens_read < done.tokens
    assert set(windows(store)) < set(before)
    read_windows(store, after.unread, shelf.reader, Silent())
    assert not read_manifest(store).unread
    with session(store, shelf.reader) as asked:
        answer = asked.ask("Who built the bridge?")
        best = asked.store.manifest.windows[answer.retrieval[0].window]
        assert "bridge was built" in asked.book.text_of((best.start, best.end))


def test_what_remains_is_read_by_an_ingest_of_the_other_sources(shelf: Shelf) -> None:
    """Windows that stayed are cut as they were, where that ingest would cut elsewhere."""
    store = shelf.together()
    shelf.remove(store, "comet.txt")
    assert read_manifest(store).unread
    kept = set(windows(store))
    shelf.together("organ.txt", "bridge.txt")
    assert not read_manifest(store).unread
    assert kept < set(windows(store))
    with Store.open(store) as opened:
        assert opened.verify() == []


def test_where_no_window_can_stay_all_is_read_to_the_bytes_of_an_ingest(shelf: Shelf) -> None:
    shelf.options = dataclasses.replace(shelf.options, window=900)
    alone = tree(shelf.together("organ.txt", "comet.txt", store="alone.sekv"))
    store = shelf.together("organ.txt", "bridge.txt", "comet.txt")
    kept = {window.end - window.start for window in read_manifest(store).windows}
    assert max(kept) > len(TEXTS["comet.txt"])
    done = shelf.remove(store, "bridge.txt")
    assert done.read == done.tokens
    assert tree(store) == alone


class InObjects:
    """The shelf's store in an object store of this process, brought there in some way."""

    def __init__(self, shelf: Shelf, how: str) -> None:
        self.url = ObjectUrl("memory://", f"{uuid.uuid4().hex}/s.sekv")
        store = shelf.appended()
        if how == "moved":
            move_store(store, self.url)
            return
        for name in tree(store):  # as another program copies it
            bucket(self.url).upload(f"{self.url.key}/{name}", store / name)
        shutil.rmtree(store)

    def objects(self) -> dict[str, bytes]:
        there = bucket(self.url)
        return {name: there.read(found.key)[0] for name, found in there.below(self.url.key)}


@pytest.mark.parametrize("how", ["moved", "copied"])
@pytest.mark.parametrize("name", TEXTS)
def test_a_store_in_an_object_store_loses_a_source_as_one_on_a_disk(
    shelf: Shelf, name: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upload that fails leaves it as it was; after one that does not nothing of it is left."""
    monkeypatch.setenv("SEKV_CACHE", str(shelf.folder / "cache"))
    far = InObjects(shelf, how)
    near = shelf.appended()
    shelf.remove(near, name)
    before = read_all(far.url)
    with monkeypatch.context() as patch:
        patch.setattr(Bucket, "upload", None)
        with pytest.raises(TypeError):
            remove_source(far.url, name, Silent(), shelf.reader)
    assert read_all(far.url) == before
    done = remove_source(far.url, name, Silent(), shelf.reader)
    assert (done.store, done.unread, done.read) == (str(far.url), 0, 0)
    assert read_all(far.url) == read_all(near)
    with Store.open(far.url) as opened:
        assert opened.verify() == []
    assert not any(TEXTS[name][:30].encode() in data for data in far.objects().values())
    assert len(far.objects()) == 1 + len(read_manifest(far.url).files)


def test_what_cannot_be_removed_is_one_line_and_changes_nothing(
    shelf: Shelf, subtests: pytest.Subtests
) -> None:
    store = shelf.appended()
    before = tree(store)
    for name, words in (
        ("nothing.txt", "has no source nothing.txt"),
        ("omet.txt", "has no source"),
    ):
        with subtests.test(name), pytest.raises(DocumentError, match=words) as caught:
            shelf.remove(store, name)
        assert "\n" not in str(caught.value)
    assert tree(store) == before
    shelf.remove(store, "comet.txt")
    shelf.remove(store, str(shelf.folder / "organ.txt"))
    with pytest.raises(DocumentError, match="the only source"):
        shelf.remove(store, "bridge.txt")


def test_a_killed_removal_leaves_the_store_with_or_without_the_source(shelf: Shelf) -> None:
    """Killed before every third thing that it does to the disk; run again, it ends the same."""
    store, copy = shelf.appended(), shelf.folder / "copy.sekv"
    shutil.copytree(store, copy)
    whole, killed = tree(store), 0
    shelf.remove(store, "comet.txt")
    smaller = tree(store)
    for at in range(1, 100, 3):
        shutil.rmtree(store)
        shutil.copytree(copy, store)
        child = os.fork()
        if child == 0:
            steps = Steps()
            steps.last = at
            shelf.remove(store, "comet.txt")
            os._exit(0)
        if os.waitpid(child, 0)[1] != signal.SIGKILL:
            break
        killed += 1
        if not store.exists() or tree(store) != smaller:
            assert tree(store) == whole
            shelf.remove(store, "comet.txt")
        for leftover in upkeep.leftovers(store.parent):
            assert upkeep.clear(leftover)
        assert tree(store) == smaller
        assert leftovers(store.parent) == []
    assert killed >= 5
    assert tree(store) == smaller
