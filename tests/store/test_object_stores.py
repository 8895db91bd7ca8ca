"""Stores in object storage: written blocks first, read by ranges, the same as on disk."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import toy_store
from engine.errors import (
    ObjectStorageError,
    StoreDamagedError,
    StoreExistsError,
    StoreMissingError,
)
from engine.object_storage import ObjectUrl, address, bucket
from engine.store import block_cache, glance, object_folder, upkeep
from engine.store.block_cache import BlockCache
from engine.store.library import list_stores
from engine.store.manifest import NAME, from_bytes
from engine.store.object_folder import BLOCKS, GAP, GRAIN, MOST
from engine.store.reader import Store, read_manifest
from engine.store.upload import Upload, staging, uploads
from engine.store.writer import StoreWriter

NAMES_OF_SECRETS = ("secret", "AKIA", "X-Amz-Signature")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instant_disk: None) -> None:
    monkeypatch.setenv("SEKV_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def url() -> ObjectUrl:
    """A name that no other test has: `memory://` lasts as long as the process."""
    found = address(f"memory:///{uuid.uuid4().hex}/toy.sekv")
    assert isinstance(found, ObjectUrl)
    return found


def names(url: ObjectUrl) -> set[str]:
    return set(object_folder.listing(url))


class Interrupted(Exception):
    """In place of a killed process."""


def interrupt_uploads(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Let every upload of a file from a number on fail."""
    whole, count = object_folder.bucket(ObjectUrl("memory://", "")).__class__.upload, [0]

    def upload(self: Any, key: str, file: Path) -> str:
        if count[0] >= after:
            raise Interrupted
        count[0] += 1
        return whole(self, key, file)

    monkeypatch.setattr("engine.object_storage.Bucket.upload", upload)


def test_a_store_in_an_object_store_is_the_one_on_disk(url: ObjectUrl, tmp_path: Path) -> None:
    toy_store.ingest(url)
    toy_store.ingest(tmp_path / "toy.sekv")
    assert toy_store.read_all(url) == toy_store.read_all(tmp_path / "toy.sekv")
    with Store.open(url) as store:
        assert store.verify() == []
        assert store.size() == sum(
            file.stat().st_size for file in (tmp_path / "toy.sekv").rglob("*") if file.is_file()
        )
    assert not staging(url).parent.joinpath(f".{url.name}.work").exists()


def test_a_folder_that_another_program_copied_there_is_a_store(
    url: ObjectUrl, tmp_path: Path
) -> None:
    local = tmp_path / "toy.sekv"
    toy_store.ingest(local)
    for name in toy_store.tree(local):
        bucket(url).upload(f"{url.key}/{name}", local / name)
    assert toy_store.read_all(url) == toy_store.read_all(local)


def test_what_was_fetched_is_not_fetched_again(url: ObjectUrl) -> None:
    toy_store.ingest(url)
    with Store.open(url) as store:
        store.fetch_ahead()
        toy_store.read_all(url)
    with Store.open(url) as store:
        for window in (0, 1):
            store.device(window)
            store.host(window).read(0, np.arange(toy_store.SPANS))
        store.document()
        received, requests = store.received
    assert (received, requests) == (store.manifest_bytes, 2)  # the manifest, and a listing


def test_the_cache_keeps_to_its_limit_and_drops_what_was_not_used_for_longest(
    tmp_path: Path,
) -> None:
    cache = BlockCache(tmp_path / "blocks", 10_000)
    for number in range(40):
        cache.keep("key", number * 1000, bytes([number]) * 1000)
        if cache.read("key", (0, 1000), 0, 5) is None and number > 5:
            pytest.fail("what was used last went first")
    kept = sum(file.stat().st_size for file in (tmp_path / "blocks").rglob("*") if file.is_file())
    assert kept <= 10_000 * 1.25 + 40 * 8
    assert cache.read("key", (0, 1000), 998, 1000) == b"\0\0"


def test_a_damaged_part_of_the_cache_is_fetched_again(url: ObjectUrl, tmp_path: Path) -> None:
    toy_store.ingest(url)
    before = toy_store.read_all(url)
    parts = list((tmp_path / "cache" / "blocks").glob("*/*"))
    assert parts
    for part in parts:
        toy_store.flip(part, part.stat().st_size // 2, 1)
    assert toy_store.read_all(url) == before


def test_without_a_cache_everything_is_fetched_and_nothing_kept(
    url: ObjectUrl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(block_cache.LIMIT, "0")
    toy_store.ingest(url)
    toy_store.read_all(url)
    assert not list((tmp_path / "cache").rglob("blocks/*"))
    monkeypatch.setenv(block_cache.LIMIT, "much")
    with pytest.raises(ObjectStorageError, match="no number of gigabytes"):
        Store.open(url)


def test_a_torn_upload_is_seen_and_completed(
    url: ObjectUrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    for done in range(6):
        with monkeypatch.context() as patch:
            interrupt_uploads(patch, min(done, 1))  # one more each time
            with pytest.raises(Interrupted):
                toy_store.ingest(url)
        with pytest.raises(StoreMissingError, match="interrupted" if done else "no store"):
            Store.open(url)
        with pytest.raises(StoreMissingError):
            glance.check_store(url)
    chunks: list[tuple[int, int]] = []
    toy_store.ingest(url, on_chunk=lambda *which: chunks.append(which))
    assert chunks == []  # all was read before the first upload
    assert len([name for name in names(url) if name.startswith(BLOCKS)]) == 6
    with Store.open(url) as store:
        assert store.verify() == []


def test_what_a_dead_upload_left_on_this_machine_is_a_leftover(
    url: ObjectUrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_uploads(patch, 1)
        with pytest.raises(Interrupted):
            toy_store.ingest(url)
    found = upkeep.leftovers(address(f"{url.root}/{url.key.split('/')[0]}"))
    assert [(each.path, each.kind) for each in found] == [
        (str(url), "work"),
        (str(staging(url).with_name(".toy.sekv.work")), "work"),
    ]
    assert all(map(upkeep.clear, found))
    assert not list(uploads().iterdir())
    assert not names(url)


def test_a_store_is_replaced_only_when_all_is_there(
    url: ObjectUrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy_store.ingest(url, seed=0)
    before = toy_store.read_all(url)
    with pytest.raises(StoreExistsError, match="--overwrite"):
        toy_store.ingest(url, seed=1)
    with monkeypatch.context() as patch:
        interrupt_uploads(patch, 3)
        with pytest.raises(Interrupted):
            toy_store.ingest(url, seed=1, overwrite=True)
    assert toy_store.read_all(url) == before
    toy_store.ingest(url, seed=1, overwrite=True)
    assert toy_store.read_all(url) != before
    with Store.open(url) as store:
        assert store.verify() == []
    assert len(names(url)) == 7  # of the old store nothing is left


def test_of_two_that_write_one_store_the_second_says_so(url: ObjectUrl) -> None:
    for overwrite in (False, True):
        with StoreWriter.begin(url, toy_store.job(9, 2), overwrite=overwrite) as writer:
            first = Upload(url)
            writer._upload = first
            rival = bucket(url)
            manifest = b"another" if not overwrite else b"a third"
            assert rival.replace(f"{url.key}/{NAME}", manifest, first.tag)
            with pytest.raises(Exception, match="another command wrote"):
                toy_store.run(writer, 9, 2)
        assert rival.read(f"{url.key}/{NAME}")[0] == manifest


def test_a_run_that_died_after_the_manifest_is_found_done(
    url: ObjectUrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:

        def died(self: Upload, manifest: Any) -> None:
            raise Interrupted

        patch.setattr(Upload, "_remove_unused", died)
        with pytest.raises(Interrupted):
            toy_store.ingest(url)
    toy_store.ingest(url)
    with Store.open(url) as store:
        assert store.verify() == []
    assert not staging(url).parent.joinpath(f".{url.name}.work").exists()


def test_appending_sends_only_what_is_new(
    url: ObjectUrl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy_store.ingest(url, windows=2)
    before = names(url)
    sent: list[str] = []
    whole = bucket(url).__class__.upload

    def upload(self: Any, key: str, file: Path) -> str:
        sent.append(file.name)
        return whole(self, key, file)

    monkeypatch.setattr("engine.object_storage.Bucket.upload", upload)
    toy_store.append(url, windows=3)
    assert sorted(sent) == [
        "00002.device.safetensors",
        "00002.host.safetensors",
        "document.safetensors",
    ]
    assert len(before - names(url)) == 1  # the shorter document went
    local = tmp_path / "toy.sekv"
    toy_store.ingest(local, windows=3)
    assert toy_store.read_all(url) == toy_store.read_all(local)


def test_nothing_is_appended_to_a_store_that_lacks_a_file(url: ObjectUrl) -> None:
    toy_store.ingest(url)
    lost = sorted(name for name in names(url) if name.startswith(BLOCKS))[0]
    bucket(url).delete([f"{url.key}/{lost}"])
    before = names(url)
    with pytest.raises(Exception, match="missing"):
        toy_store.append(url)
    assert names(url) == before
    with Store.open(url) as store:
        assert len(store.verify()) == 1


def test_a_damaged_object_is_found_and_never_used(url: ObjectUrl) -> None:
    toy_store.ingest(url)
    place = bucket(url)
    for name in sorted(names(url) - {NAME}):
        data, found = place.read(f"{url.key}/{name}")
        for wrong in (data[:-1], data[: len(data) // 2] + b"\xff" + data[len(data) // 2 + 1 :]):
            if wrong == data:
                continue
            assert place.replace(f"{url.key}/{name}", wrong, place.head(found.key).tag)
            with Store.open(url) as store:
                assert store.verify() != []
        with pytest.raises(StoreDamagedError):
            toy_store.read_all(url)
        assert place.replace(f"{url.key}/{name}", data, place.head(found.key).tag)
    assert toy_store.read_all(url)


def test_a_store_that_was_replaced_while_it_was_open_says_so(url: ObjectUrl) -> None:
    toy_store.ingest(url, seed=0)
    with Store.open(url) as store:
        toy_store.ingest(url, seed=1, overwrite=True)
        with pytest.raises(Exception, match="replaced"):
            store.device(0)


def test_stores_of_a_bucket_are_listed(url: ObjectUrl) -> None:
    toy_store.ingest(url)
    above = ObjectUrl(url.root, url.key.rpartition("/")[0])
    (found,) = list_stores(above)
    assert (found.path, found.tokens, found.problem) == (str(url), 24, "")
    assert list_stores(url) == [found]
    assert read_manifest(url) == from_bytes(glance.manifest_bytes(url))


def test_names_mean_paths_or_objects_and_never_hold_secrets() -> None:
    assert address("book.sekv") == Path("book.sekv")
    assert address("file:///a/b%20c.sekv") == Path("/a/b c.sekv")
    assert address("s3://bucket/a/book.sekv/") == ObjectUrl("s3://bucket", "a/book.sekv")
    refused = (
        "s3://AKIA:secret@bucket/book.sekv",
        "s3://bucket/book.sekv?X-Amz-Signature=secret",
        "s3://bucket/book.sekv#secret",
        "s3:///book.sekv",
        "s3://bucket//book.sekv",
        "s3://bucket/../book.sekv",
        "file://host/book.sekv",
        "ftp://host/book.sekv",
        "https://host/book.sekv",
        "s3://[bucket/book.sekv",
    )
    for name in refused:
        with pytest.raises(ObjectStorageError) as caught:
            address(name)
        assert "\n" not in str(caught.value)
        assert not any(word in str(caught.value) for word in NAMES_OF_SECRETS)


@given(
    st.lists(st.tuples(st.integers(0, 3 * GAP), st.integers(1, 2 * GAP)), max_size=8),
    st.lists(st.tuples(st.integers(0, 3 * GAP), st.integers(1, 2 * GAP)), max_size=8),
)
def test_what_is_here_and_what_is_fetched_has_every_byte_once(
    wanted: list[tuple[int, int]], have: list[tuple[int, int]]
) -> None:
    """Whatever is wanted and whatever is here: nothing is missing and nothing doubled."""
    ranges = [(start, start + size) for start, size in wanted]
    parts = sorted((start, start + size) for start, size in have)
    size = 5 * GAP
    content = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8).tobytes()
    kept = list(object_folder._needed(ranges, parts))
    missing = object_folder._missing(ranges, kept, size)
    assert all(end - start <= MOST and start % GRAIN == 0 for start, end in missing)
    assert sum(end - start for start, end in kept) <= size
    pieces = object_folder._apart([(start, content[start:end]) for start, end in kept + missing])
    at = -1
    for start, data in pieces:
        assert start >= at
        assert bytes(data) == content[start : start + len(data)]
        at = start + len(data)
    covered = {byte for start, data in pieces for byte in (start, start + len(data) - 1)}
    assert all(
        start in covered or any(s <= start < s + len(d) for s, d in pieces) for start, _ in ranges
    )
    assert all(any(s <= end - 1 < s + len(d) for s, d in pieces) for _, end in ranges)
