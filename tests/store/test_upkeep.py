"""Stores are removed and moved whole, and only what nobody needs is cleared away."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path

import pytest

import toy_store
from engine.errors import StoreBusyError, StoreDamagedError, StoreExistsError, StoreMissingError
from engine.store.disk import Disk
from engine.store.folders import CLAIMS
from engine.store.library import check_sources
from engine.store.lock import Lock
from engine.store.manifest import NAME
from engine.store.reader import Store
from engine.store.upkeep import clear, leftovers, libraries_of, move_store, remove_store
from engine.store.work import Places
from killed_steps import Steps
from toy_store import read_all, tree

pytestmark = pytest.mark.usefixtures("instant_disk")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    toy_store.ingest(tmp_path / "a.sekv")
    return tmp_path / "a.sekv"


class DeadError(BaseException):
    """The end of a process."""


def unfinished(target: Path) -> None:
    """An ingest that died in its second window."""

    def die(window: int, chunk: int) -> None:
        if window:
            raise DeadError

    with pytest.raises(DeadError):
        toy_store.ingest(target, on_chunk=die)


def test_a_removed_store_leaves_nothing(store: Path) -> None:
    size = sum(len(data) for data in tree(store).values())
    assert remove_store(store) == size
    assert list(store.parent.iterdir()) == []
    with pytest.raises(StoreMissingError):
        remove_store(store)


def test_a_folder_that_is_no_store_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(StoreMissingError, match="not a store"):
        remove_store(tmp_path / "photos")
    assert (tmp_path / "photos").is_dir()


def test_a_store_that_is_being_written_is_neither_removed_nor_moved(store: Path) -> None:
    places = Places(store)
    lock = Lock(places.lock, store)
    try:
        with pytest.raises(StoreBusyError):
            remove_store(store)
        with pytest.raises(StoreBusyError):
            move_store(store, store.with_name("b.sekv"))
    finally:
        lock.release()
    assert store.is_dir()


def test_a_moved_store_is_the_same_and_finds_its_sources(tmp_path: Path, model: Path) -> None:
    from tiny_books import read

    (tmp_path / "x").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        store = read(Path("books"), model)
        (tmp_path / "deep" / "er").mkdir(parents=True)
        before = read_tensors(store)
        moved = move_store(store, Path("deep/er"))
        assert moved == Path("deep/er/log.sekv")
        assert not store.exists()
        with Store.open(moved) as opened:
            assert opened.verify() == []
            assert check_sources(opened.manifest, moved) == []
        assert read_tensors(moved) == before
        with pytest.raises(StoreExistsError):
            move_store(moved, moved)


def read_tensors(store: Path) -> dict[str, bytes]:
    return {name: data for name, data in tree(store).items() if name != "manifest.json"}


@pytest.fixture
def another_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No store gets from its name to that of another by a rename."""
    real = Disk.rename

    def rename(self: Disk, old: Path, new: Path) -> None:
        if old.suffix == new.suffix == ".sekv":
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        real(self, old, new)

    monkeypatch.setattr(Disk, "rename", rename)


@pytest.mark.usefixtures("another_disk")
def test_a_store_moves_to_another_disk_as_a_copy(store: Path) -> None:
    before = read_all(store)
    moved = move_store(store, store.with_name("b.sekv"))
    assert read_all(moved) == before
    assert [path.name for path in store.parent.iterdir()] == ["b.sekv"]


@pytest.mark.usefixtures("another_disk")
def test_a_move_to_another_disk_that_is_killed_loses_nothing_and_goes_on(store: Path) -> None:
    """Killed before every second thing that it does to the disk."""
    before, other, killed = read_all(store), store.with_name("b.sekv"), 0
    while True:
        child = os.fork()
        if child == 0:
            steps = Steps()
            steps.last = 1 + 2 * killed
            move_store(store, other)
            os._exit(0)
        if os.waitpid(child, 0)[1] != signal.SIGKILL:
            break
        killed += 1
        there = [path for path in (store, other) if (path / NAME).exists()]
        assert there
        assert all(read_all(path) == before for path in there)
        if store in there:
            move_store(store, other)
        for leftover in leftovers(store.parent):
            assert clear(leftover)
        assert read_all(other) == before
        assert [path.name for path in store.parent.iterdir()] == ["b.sekv"]
        other.rename(store)
    assert killed > 15


@pytest.mark.usefixtures("another_disk")
def test_a_damaged_store_stays_on_its_disk(store: Path) -> None:
    device = store / "windows" / "00000.device.safetensors"
    toy_store.flip(device, device.stat().st_size - 1, 1)
    before = tree(store)
    with pytest.raises(StoreDamagedError, match="is damaged, so it stays"):
        move_store(store, store.with_name("b.sekv"))
    assert tree(store) == before
    assert not store.with_name("b.sekv").exists()


def test_a_catalogue_above_a_store_is_found(tmp_path: Path, store: Path) -> None:
    assert libraries_of(store) == []
    (tmp_path / ".sekv-library.sqlite").touch()
    assert libraries_of(store) == [tmp_path]


def test_leftovers_are_what_dead_runs_left(tmp_path: Path, store: Path) -> None:
    unfinished(tmp_path / "b.sekv")
    (tmp_path / ".c.sekv.lock").touch()
    (tmp_path / ".d.sekv.done").mkdir()
    (tmp_path / CLAIMS).mkdir()
    (tmp_path / ".profile").touch()
    before = tree(store)
    found = {Path(each.path).name: each.kind for each in leftovers(tmp_path)}
    assert found == {
        ".b.sekv.work": "work",
        ".c.sekv.lock": "remains",
        ".d.sekv.done": "remains",
        CLAIMS: "remains",
    }
    for each in leftovers(tmp_path):
        assert clear(each)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".profile", "a.sekv"]
    assert tree(store) == before


def test_what_a_living_process_holds_is_no_leftover(tmp_path: Path) -> None:
    unfinished(tmp_path / "b.sekv")
    (before,) = leftovers(tmp_path)
    lock = Lock(tmp_path / ".b.sekv.lock", tmp_path / "b.sekv")
    try:
        assert leftovers(tmp_path) == []
        assert not clear(before)
        assert (tmp_path / ".b.sekv.work").is_dir()
    finally:
        lock.release()


def test_the_age_of_a_leftover_is_that_of_its_newest_file(tmp_path: Path) -> None:
    unfinished(tmp_path / "b.sekv")
    for path in (tmp_path / ".b.sekv.work").rglob("*"):
        os.utime(path, (0, 0))
    os.utime(tmp_path / ".b.sekv.work", (time.time() - 5000,) * 2)
    (found,) = leftovers(tmp_path)
    assert 4900 < found.age_s < 5100


def test_a_replacement_that_died_between_its_renames_is_finished_and_not_cleared(
    tmp_path: Path, store: Path
) -> None:
    places = Places(store)
    before = read_all(store)
    places.work.mkdir()
    store.rename(places.old)
    for each in leftovers(tmp_path):
        clear(each)
    assert read_all(store) == before
