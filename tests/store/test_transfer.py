"""Stores move between a disk and object stores: whole at one place at least, at every moment."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import toy_store
from engine import object_storage
from engine.errors import StoreDamagedError, StoreError, StoreExistsError
from engine.object_storage import Address, Bucket, ObjectUrl, bucket
from engine.store import transfer, upkeep
from engine.store.manifest import NAME, SourceEntry
from engine.store.object_folder import BLOCKS, listing
from engine.store.reader import Store, read_manifest
from engine.store.transfer import seen_from
from engine.store.upkeep import move_store
from toy_store import read_all

Places = dict[str, Any]

WAYS = [
    ("disk", "bucket"),
    ("bucket", "disk"),
    ("bucket", "same bucket"),
    ("bucket", "other bucket"),
]


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instant_disk: None) -> Places:
    """A name in each kind of place; two object stores that last as long as the test."""
    monkeypatch.setenv("SEKV_CACHE", str(tmp_path / "cache"))
    kept: dict[str, Bucket] = {}
    made = object_storage.bucket_of

    def bucket_of(root: str) -> Bucket:
        return kept.setdefault(root, made.__wrapped__("memory://"))

    monkeypatch.setattr(object_storage, "bucket_of", bucket_of)
    one, key = f"s3://{uuid.uuid4().hex}", "books/toy.sekv"
    (tmp_path / "books").mkdir()
    return {
        "disk": tmp_path / "books" / "toy.sekv",
        "bucket": ObjectUrl(one, key),
        "same bucket": ObjectUrl(one, "books/other.sekv"),
        "other bucket": ObjectUrl("s3://another", key),
    }


def exists(place: Address) -> bool:
    try:
        read_manifest(place)
    except StoreError:
        return False
    return True


def contents(place: Address) -> dict[str, Any]:
    return {name: value for name, value in read_all(place).items() if name != "manifest"}


@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_a_store_moves_and_nothing_of_it_stays(
    places: Places, way: tuple[str, str], tmp_path: Path
) -> None:
    old, new = (places[name] for name in way)
    toy_store.ingest(old)
    before = contents(old)
    assert move_store(old, new) == new
    assert contents(new) == before
    with Store.open(new) as store:
        assert store.verify() == []
    assert not exists(old)
    if isinstance(old, ObjectUrl):
        assert listing(old) == {}
    assert list((tmp_path / "books").iterdir()) == ([new] if isinstance(new, Path) else [])
    assert list((tmp_path / "cache" / "uploads").iterdir()) == []
    with pytest.raises(StoreError, match="no store"):
        move_store(old, new)


class Interrupted(BaseException):
    """The end of a process."""


def interrupting(patch: pytest.MonkeyPatch, after: int) -> None:
    """End the process before the step of this number: a file that is brought, a manifest put, an
    object or a store removed."""
    done = [0]

    def stepwise(call: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **more: Any) -> Any:
            if done[0] == after:
                raise Interrupted
            done[0] += 1
            return call(*args, **more)

        return step

    for name in ("upload", "copy", "replace", "delete"):
        patch.setattr(Bucket, name, stepwise(getattr(Bucket, name)))
    patch.setattr(transfer.Disk, "write_file", stepwise(transfer.Disk.write_file))
    patch.setattr(upkeep, "_remove", stepwise(upkeep._remove))
    patch.setattr(transfer, "clear_work", stepwise(transfer.clear_work))


@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_a_move_that_dies_anywhere_loses_nothing_and_the_same_move_ends_it(
    places: Places, way: tuple[str, str], tmp_path: Path
) -> None:
    old, new = (places[name] for name in way)
    died, whole = 0, False
    while not whole:
        toy_store.ingest(old)
        before = contents(old)
        with pytest.MonkeyPatch.context() as patch:
            interrupting(patch, died)
            try:
                move_store(old, new)
                whole = True
            except Interrupted:
                died += 1
        there = [place for place in (old, new) if exists(place)]
        assert there
        assert all(contents(place) == before for place in there)
        if old in there:
            move_store(old, new)
        assert contents(new) == before
        assert not exists(old)
        upkeep.remove_store(new)
    assert died >= 8


@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_what_is_there_already_stays(places: Places, way: tuple[str, str]) -> None:
    """Another store, and one that is the same but was not put there by this move."""
    old, new = (places[name] for name in way)
    toy_store.ingest(old)
    for seed in (1, 0):
        toy_store.ingest(new, seed=seed, overwrite=exists(new))
        before = contents(old), contents(new)
        with pytest.raises(StoreExistsError, match="choose another name"):
            move_store(old, new)
        assert (contents(old), contents(new)) == before
    with pytest.raises(StoreExistsError, match="choose another name"):
        move_store(old, old)


def test_a_store_that_is_written_while_it_moves_stays(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another host, whose store is not removed."""
    old, new = places["bucket"], places["disk"]
    toy_store.ingest(old)
    run, key = transfer.Transfer.run, f"{old.key}/{NAME}"

    def rival(self: transfer.Transfer, progress: Any) -> None:
        run(self, progress)
        assert bucket(old).replace(key, b"another manifest", bucket(old).head(key).tag)

    monkeypatch.setattr(transfer.Transfer, "run", rival)
    with pytest.raises(StoreError, match="was written meanwhile and stays"):
        move_store(old, new)
    assert bucket(old).read(key)[0] == b"another manifest"
    assert exists(new)


def test_a_damaged_object_stays_where_it_is(places: Places) -> None:
    old, new = places["bucket"], places["disk"]
    toy_store.ingest(old)
    name = next(name for name in listing(old) if name.startswith(BLOCKS))
    key = f"{old.key}/{name}"
    data, found = bucket(old).read(key)
    assert bucket(old).replace(key, data[:-1] + bytes([data[-1] ^ 1]), found.tag)
    with pytest.raises(StoreDamagedError, match="is damaged, so it stays"):
        move_store(old, new)
    assert exists(old)
    assert not exists(new)


def test_a_library_and_a_whole_bucket_take_a_store_under_its_name(places: Places) -> None:
    toy_store.ingest(places["disk"])
    toy_store.ingest(places["same bucket"], seed=1)
    library = ObjectUrl(places["same bucket"].root, "books")
    assert move_store(places["disk"], library) == places["bucket"]
    whole = ObjectUrl("s3://another", "")
    assert move_store(places["bucket"], whole) == ObjectUrl("s3://another", "toy.sekv")


def test_a_store_says_where_its_sources_lie_from_its_new_place(places: Places) -> None:
    toy_store.ingest(places["disk"])
    manifest = read_manifest(places["disk"])
    source = SourceEntry("log.txt", "text", "cc" * 32, 4, (), near="../log.txt")
    manifest = replace(manifest, sources=(source,))

    def near(old: Address, new: Address) -> str:
        return seen_from(manifest, old, new).sources[0].near

    assert near(places["disk"], places["disk"].parent / "deep" / "toy.sekv") == "../../log.txt"
    assert near(places["disk"], places["bucket"]) == ""
    assert near(places["bucket"], places["disk"]) == "../log.txt"
