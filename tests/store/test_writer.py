"""One writer at a time, no half stores, and what an interrupted run leaves is used."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import toy_store as toy
from engine.errors import StoreError
from engine.store.disk import Disk
from engine.store.manifest import NAME, WindowEntry, host_file
from engine.store.reader import Store
from engine.store.writer import StoreWriter
from repository import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable


pytestmark = pytest.mark.usefixtures("instant_disk")


def test_nothing_is_left_beside_a_published_store(store: Store) -> None:
    assert toy.leftovers(store.path.parent) == []


def test_an_existing_store_is_not_touched_without_overwrite(store: Store) -> None:
    before = toy.tree(store.path)
    message = toy.refuses(lambda: toy.ingest(store.path, seed=1))
    assert "--overwrite" in message
    assert (toy.tree(store.path), toy.leftovers(store.path.parent)) == (before, [])


def test_overwrite_keeps_the_old_store_until_the_new_one_is_complete(store: Store) -> None:
    before = toy.tree(store.path)
    with StoreWriter.begin(store.path, toy.job(1, 2), overwrite=True) as writer:
        writer.put_document(toy.document(1, 2))
        assert toy.tree(store.path) == before
    assert toy.tree(store.path) == before
    toy.ingest(store.path, seed=1, overwrite=True)
    assert Store.open(store.path).text(0) == toy.text(1, 2)
    assert toy.leftovers(store.path.parent) == []


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch], ids=["folder", "file"])
def test_what_is_no_store_is_never_overwritten(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "mine")
    assert "no store" in toy.refuses(lambda: toy.ingest(tmp_path / "mine", overwrite=True))
    assert "exists" in toy.refuses(lambda: toy.ingest(tmp_path / "mine"))
    assert (tmp_path / "mine").exists()
    assert toy.leftovers(tmp_path) == []


def test_a_name_taken_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "toy.sekv"
    with StoreWriter.begin(target, toy.job(0, 1)) as writer:
        writer.put_document(toy.document(0, 1))
        writer.put_shared({})
        writer.put_window(0, {}, {}, WindowEntry(0, toy.WINDOW, 0, 0))
        target.mkdir()
        (target / "precious").touch()
        assert "exists" in toy.refuses(lambda: writer.publish(**toy.fields(0, 1)))
    assert toy.tree(target) == {"precious": b""}
    (target / "precious").unlink()
    target.rmdir()
    toy.ingest(target, windows=1)


def test_what_will_be_refused_is_refused_before_any_work(store: Store, tmp_path: Path) -> None:
    """`check` needs no job, and lets pass what only `begin` can judge."""
    StoreWriter.check(tmp_path / "new.sekv")
    StoreWriter.check(store.path, overwrite=True)
    assert "--overwrite" in toy.refuses(lambda: StoreWriter.check(store.path))
    assert "no store" in toy.refuses(lambda: StoreWriter.check(tmp_path, overwrite=True))
    assert "does not exist" in toy.refuses(lambda: StoreWriter.check(tmp_path / "no" / "x.sekv"))
    (tmp_path / ".toy.sekv.done").mkdir()
    StoreWriter.check(store.path)
    assert "exists" in toy.refuses(lambda: toy.ingest(store.path))
    assert toy.leftovers(tmp_path) == []


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    assert "does not exist" in toy.refuses(lambda: toy.ingest(tmp_path / "no" / "toy.sekv"))


def test_a_long_name_is_one_line(tmp_path: Path) -> None:
    toy.refuses(lambda: toy.ingest(tmp_path / ("x" * 252 + ".sekv")))


def test_an_interrupted_run_is_resumed_and_computes_nothing_twice(tmp_path: Path) -> None:
    toy.ingest(tmp_path / "whole.sekv")
    computed: list[tuple[int, int]] = []

    def interrupt(window: int, chunk: int) -> None:
        computed.append((window, chunk))
        if len(computed) in (2, 5):
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            toy.ingest(tmp_path / "toy.sekv", on_chunk=interrupt)
        assert not (tmp_path / "toy.sekv").exists()
    toy.ingest(tmp_path / "toy.sekv", on_chunk=interrupt)
    assert toy.tree(tmp_path / "toy.sekv") == toy.tree(tmp_path / "whole.sekv")
    assert len(computed) == 2 * toy.CHUNKS + 2


def test_another_job_starts_afresh(tmp_path: Path) -> None:
    with StoreWriter.begin(tmp_path / "toy.sekv", toy.job(0, 2)) as writer:
        writer.put_chunk(0, 0, toy.chunk(0, 0, 0))
    with StoreWriter.begin(tmp_path / "toy.sekv", toy.job(1, 2)) as writer:
        assert writer.chunks(0) == []
    assert toy.leftovers(tmp_path) == []


def test_a_run_that_did_nothing_leaves_nothing(tmp_path: Path) -> None:
    with StoreWriter.begin(tmp_path / "toy.sekv", {}):
        pass
    assert toy.leftovers(tmp_path) == []


def test_a_piece_damaged_between_two_runs_is_made_again(tmp_path: Path) -> None:
    """Chunks, windows and shared tensors are believed only after every byte was checked."""
    toy.ingest(tmp_path / "whole.sekv")
    target = tmp_path / "toy.sekv"
    work = tmp_path / ".toy.sekv.work"

    def interrupt(window: int, chunk: int) -> None:
        if (window, chunk) == (1, 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        toy.ingest(target, on_chunk=interrupt)
    toy.flip(work / "store" / host_file(0), 4300, 0x10)
    toy.flip(work / "chunks" / "00001-000000.safetensors", 4100, 0x10)
    computed: list[tuple[int, int]] = []
    toy.ingest(target, on_chunk=lambda window, chunk: computed.append((window, chunk)))
    assert computed == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert toy.tree(target) == toy.tree(tmp_path / "whole.sekv")


def test_a_journal_with_a_torn_end_keeps_what_came_before(tmp_path: Path) -> None:
    target, journal = tmp_path / "toy.sekv", tmp_path / ".toy.sekv.work" / "journal"
    with StoreWriter.begin(target, toy.job(0, 2)) as writer:
        writer.put_chunk(0, 0, toy.chunk(0, 0, 0))
        writer.put_chunk(0, 1, toy.chunk(0, 0, 1))
    whole = journal.read_bytes()
    for cut in (1, 40, len(whole.splitlines(keepends=True)[1]) - 1):
        journal.write_bytes(whole[:-cut])
        with StoreWriter.begin(target, toy.job(0, 2)) as writer:
            assert len(writer.chunks(0)) == 1
            writer.put_chunk(0, 1, toy.chunk(0, 0, 1))
        assert journal.read_bytes() == whole


def test_chunks_after_a_gap_are_not_given(tmp_path: Path) -> None:
    with StoreWriter.begin(tmp_path / "toy.sekv", {}) as writer:
        writer.put_chunk(0, 0, {"x": torch.ones(2)})
        writer.put_chunk(0, 2, {"x": torch.ones(2)})
        writer.put_chunk(10, 0, {"x": torch.zeros(1)})
        assert len(writer.chunks(0)) == 1
        assert len(writer.chunks(10)) == 1
        assert writer.chunks(1) == []


def test_what_is_kept_of_the_newest_chunk_goes_with_the_next_one(tmp_path: Path) -> None:
    chunks = tmp_path / ".toy.sekv.work" / "chunks"
    with StoreWriter.begin(tmp_path / "toy.sekv", {}) as writer:
        for number in range(3):
            own = {"state": torch.full((2,), float(number))}
            writer.put_chunk(0, number, {"x": torch.ones(2)}, own)
    assert [path for path in toy.tree(chunks) if "newest" in path] == [
        "00000-000002.newest.safetensors"
    ]
    with StoreWriter.begin(tmp_path / "toy.sekv", {}) as writer:
        found = writer.chunks(0)
        assert [sorted(tensors) for tensors in found] == [["x"], ["x"], ["state", "x"]]
        assert found[-1]["state"].tolist() == [2.0, 2.0]
    toy.flip(chunks / "00000-000002.newest.safetensors", 4100, 0x10)
    with StoreWriter.begin(tmp_path / "toy.sekv", {}) as writer:
        assert [sorted(tensors) for tensors in writer.chunks(0)] == [["x"]] * 3
        writer.put_chunk(0, 2, {"x": torch.ones(2)}, own)
        writer.put_window(0, {}, {}, WindowEntry(0, 5, 0, 0))
    assert toy.tree(chunks) == {}


def test_chunks_go_when_their_window_is_written(tmp_path: Path) -> None:
    with StoreWriter.begin(tmp_path / "toy.sekv", {}) as writer:
        for window in (1, 11):
            writer.put_chunk(window, 0, {"x": torch.ones(2)})
        writer.put_window(1, {}, {}, WindowEntry(0, 5, 0, 0))
        assert [len(writer.chunks(window)) for window in (1, 11)] == [0, 1]
    assert list(toy.tree(tmp_path / ".toy.sekv.work" / "chunks")) == ["00011-000000.safetensors"]


def test_a_store_with_a_hole_is_not_published(tmp_path: Path) -> None:
    with StoreWriter.begin(tmp_path / "toy.sekv", {}) as writer:
        writer.put_document(toy.document(0, 2))
        publish = lambda: writer.publish(**toy.fields(0, 2))  # noqa: E731
        assert "shared was never written" in toy.refuses(publish)
        writer.put_shared({})
        assert "windows" in toy.refuses(publish)
        writer.put_window(1, {}, {}, WindowEntry(12, 24, 0, 0))
        assert "window 0 was never written" in toy.refuses(publish)
        writer.put_window(0, {}, {}, WindowEntry(0, 11, 0, 0))
        assert "windows[1]" in toy.refuses(publish)
        writer.put_window(0, {}, {}, WindowEntry(0, 12, 0, 0))
        publish()
    with Store.open(tmp_path / "toy.sekv") as store:
        assert store.verify() == []


def test_a_store_that_contradicts_itself_is_not_published(tmp_path: Path) -> None:
    document = toy.document(0, 1)
    device, host = toy.compress([toy.chunk(0, 0, index)["state"] for index in range(toy.CHUNKS)])
    entry = WindowEntry(0, toy.WINDOW, toy.SPANS, 1)
    wrong: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("tokens", {"ids": document["ids"][:5]}, {}),
        ("leave their text", {"ends": document["ends"] + 1}, {}),
        ("does not exist", {"source": document["source"] + 1}, {}),
        ("characters", {"text.0": document["text.0"][2:]}, {}),
        ("UTF-8", {"text.0": np.full(20, 0xFF, dtype=np.uint8)}, {}),
        ("KV heads", {}, {"model": dataclasses.replace(toy.MODEL, kv_heads=1)}),
        ("none with full attention", {}, {"model": dataclasses.replace(toy.MODEL, layers=1)}),
    ]
    with StoreWriter.begin(tmp_path / "toy.sekv", {}) as writer:
        writer.put_shared({})
        writer.put_window(0, device, host, entry)
        for says, tables, fields in wrong:
            cut = {name: array[: len(tables.get("ids", array))] for name, array in document.items()}
            cut["text.0"] = document["text.0"]
            writer.put_document({**(cut if "ids" in tables else document), **tables})
            claimed = {**toy.fields(0, 1), **fields}
            assert says in toy.refuses(lambda claimed=claimed: writer.publish(**claimed))  # type: ignore[misc]
        writer.put_document(document)
        writer.publish(**toy.fields(0, 1))


@pytest.mark.parametrize(
    "host",
    [
        {"0.codes": np.zeros(4, np.uint8)},
        {"0.codes": np.zeros(4, np.uint8), "0.offsets": np.array([0, 4])[:1]},
        {"0.codes": np.zeros(4, np.uint8), "0.offsets": np.array([0, 2, 3])},
        {"0.codes": np.zeros(4, np.uint8), "0.offsets": np.array([1, 2, 4])},
        {"0.codes": np.zeros(4, np.uint8), "0.offsets": np.array([0, 5, 4])},
        {"0.codes": np.zeros(4, np.uint8), "0.offsets": np.array([0, 2, 4], dtype=np.int32)},
        {"0.codes": np.zeros(4, np.int8), "0.offsets": np.array([0, 2, 4])},
        {"x.codes": np.zeros(4, np.uint8), "x.offsets": np.array([0, 2, 4])},
        {"rows": np.zeros(4)},
    ],
)
def test_a_host_section_that_does_not_fit_is_not_written(
    tmp_path: Path, host: dict[str, Any]
) -> None:
    with StoreWriter.begin(tmp_path / "toy.sekv", {}) as writer:
        with pytest.raises(ValueError, match=r"\w"):
            writer.put_window(0, {}, host, WindowEntry(0, 9, 2, 0))
        assert not writer.window_done(0)


def test_a_document_without_its_tables_is_not_written(tmp_path: Path) -> None:
    document = toy.document(0, 1)
    with StoreWriter.begin(tmp_path / "toy.sekv", {}) as writer:
        for name in ("ids", "starts", "ends", "source"):
            for wrong in ({}, {name: document[name][1:]}):
                rest = {key: value for key, value in document.items() if key != name}
                with pytest.raises(ValueError, match="needs ids"):
                    writer.put_document({**rest, **wrong})


HOLDER = """
import sys
from pathlib import Path
from engine.store.writer import StoreWriter
with StoreWriter.begin(Path(sys.argv[1]), {"holder": 1}) as writer:
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_writer_is_told_who_is_writing(tmp_path: Path) -> None:
    """Two processes, one target: the second says so and stops; a dead owner is no owner."""
    target = tmp_path / "toy.sekv"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(target)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        for _ in range(2):
            message = toy.refuses(lambda: toy.ingest(target))
            assert f"another process (pid {holder.pid}) is writing" in message
        toy.ingest(tmp_path / "other.sekv", windows=1)
        holder.kill()
    assert (tmp_path / ".toy.sekv.lock").exists()
    toy.ingest(target)
    assert toy.leftovers(tmp_path) == []


def test_many_writers_at_once_make_one_sound_store(tmp_path: Path) -> None:
    """Threads race for one target: whoever comes second is told; the store is whole."""
    target = tmp_path / "toy.sekv"
    barrier = threading.Barrier(6)

    def race(_: int) -> str:
        barrier.wait()
        try:
            toy.ingest(target)
        except StoreError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(race, range(6)))
    assert results.count("") == 1
    assert all("is writing" in line or "exists" in line for line in results if line)
    assert toy.tree(target).keys() == {NAME, *Store.open(target).manifest.files}
    assert toy.leftovers(tmp_path) == []


# -- append


def test_append_gives_the_store_that_one_ingest_would_have_given(tmp_path: Path) -> None:
    toy.ingest(tmp_path / "whole.sekv", windows=3)
    toy.ingest(tmp_path / "toy.sekv", windows=2)
    before = (tmp_path / "toy.sekv" / host_file(0)).stat()
    computed: list[tuple[int, int]] = []
    toy.append(tmp_path / "toy.sekv", on_chunk=lambda *at: computed.append(at))
    assert toy.tree(tmp_path / "toy.sekv") == toy.tree(tmp_path / "whole.sekv")
    assert {window for window, _ in computed} == {2}
    assert (tmp_path / "toy.sekv" / host_file(0)).stat().st_ino == before.st_ino
    assert toy.leftovers(tmp_path) == []


class NoLinks(Disk):
    """A file system that can neither link nor exchange."""

    def link(self, old: Path, new: Path) -> None:
        self.copy(old, new)

    def exchange(self, one: Path, other: Path) -> bool:
        return False


def test_append_and_overwrite_work_where_links_and_exchange_do_not(tmp_path: Path) -> None:
    toy.ingest(tmp_path / "whole.sekv", windows=3)
    toy.ingest(tmp_path / "toy.sekv", windows=2)
    toy.append(tmp_path / "toy.sekv", disk=NoLinks())
    assert toy.tree(tmp_path / "toy.sekv") == toy.tree(tmp_path / "whole.sekv")
    toy.ingest(tmp_path / "toy.sekv", seed=4, overwrite=True, disk=NoLinks())
    assert Store.open(tmp_path / "toy.sekv").text(0) == toy.text(4, 2)
    assert toy.leftovers(tmp_path) == []


def test_append_refuses_what_it_cannot_continue(store: Store, tmp_path: Path) -> None:
    assert "no store" in toy.refuses(lambda: toy.append(tmp_path / "none.sekv"))
    writer = StoreWriter.append(store.path, {})
    assert "shared" in toy.refuses(lambda: writer.put_shared({}))
    writer.close()
    toy.flip(store.path / host_file(1), 4200, 0x10)
    assert "damaged" in toy.refuses(lambda: toy.append(store.path))
    assert toy.leftovers(tmp_path) == [".toy.sekv.work"]
    toy.ingest(store.path, overwrite=True)
    assert toy.leftovers(tmp_path) == []


def test_an_interrupted_append_leaves_the_store_and_is_resumed(store: Store) -> None:
    before = toy.tree(store.path)
    computed: list[tuple[int, int]] = []

    def interrupt(window: int, chunk: int) -> None:
        computed.append((window, chunk))
        if len(computed) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        toy.append(store.path, on_chunk=interrupt)
    assert toy.tree(store.path) == before
    toy.append(store.path, on_chunk=interrupt)
    assert computed == [(2, 0), (2, 1), (2, 1), (2, 2)]
    assert "open it again" in toy.refuses(lambda: store.text(0))
    with Store.open(store.path) as longer:
        assert longer.manifest.tokens == 36
