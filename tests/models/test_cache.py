"""The cache of models: whole or not there, one process makes it, digests follow the bytes."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.errors import ReaderError
from engine.models import cache
from engine.models.checkpoint import weight_files, weights_fingerprint
from engine.store import cache_folder
from engine.types import Silent
from repository import ROOT, environment

SILENT = Silent()

MAKER = """
import sys
from pathlib import Path
from engine.errors import ReaderError
from engine.models import cache
from engine.types import Silent

class Told(Silent):
    def note(self, line):
        print("note", flush=True)

def fill(folder, lock):
    model = folder / "model"
    model.mkdir()
    (model / "half").write_bytes(b"x" * 1000)
    print("filling", flush=True)
    sys.stdin.read(1)
    (model / "rest").write_bytes(b"y" * 1000)

try:
    cache.make(cache.folder_of("ab" * 32), "a test", 0, fill, Told())
    print("made", flush=True)
except ReaderError as error:
    print(error, flush=True)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEKV_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Maker:
    """A process that makes a folder of the cache, and stops half-way until it is told to go on."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", MAKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment(),
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def makers() -> Iterator[list[Maker]]:
    started = [Maker(), Maker()]
    yield started
    for maker in started:
        maker.kill()
        for stream in (maker.process.stdin, maker.process.stdout):
            if stream is not None:
                stream.close()


def fill(folder: Path, lock: int) -> None:
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")


def names(place: Path) -> list[str]:
    return sorted(path.name for path in (place / "models").iterdir() if path.is_dir())


# ---------------------------------------------------------------------------- folders


def test_two_processes_at_once_make_one(place: Path, makers: list[Maker]) -> None:
    """The second waits, says so, and makes nothing."""
    said = {maker.line(): maker for maker in makers}
    assert set(said) == {"filling", "note"}
    assert names(place)[0].startswith(".gguf-abab")  # only the unfinished one
    said["filling"].go_on()
    assert [said["filling"].line(), said["note"].line()] == ["made", "made"]
    assert names(place) == [cache.folder_of("ab" * 32).name]


def test_killed_half_way_it_is_as_if_it_had_never_begun(place: Path, makers: list[Maker]) -> None:
    said = {maker.line(): maker for maker in makers}
    said["filling"].kill()
    assert said["note"].line() == "filling"  # the lock came back with the death
    said["note"].go_on()
    assert said["note"].line() == "made"
    assert names(place) == [cache.folder_of("ab" * 32).name]
    assert (cache.folder_of("ab" * 32) / "rest").stat().st_size == 1000


def test_a_finished_folder_is_not_made_again(place: Path) -> None:
    folder = cache.make(cache.folder_of("cd" * 32), "first", 0, fill, SILENT)

    def never(partial: Path, lock: int) -> None:
        raise AssertionError

    assert cache.make(folder, "second", 0, never, SILENT) == folder
    assert [(e.name, e.origin) for e in cache.entries()] == [(folder.name, "first")]


def test_what_fails_leaves_nothing(place: Path) -> None:
    def full(partial: Path, lock: int) -> None:
        fill(partial, lock)
        raise OSError(28, "No space left on device")

    with pytest.raises(ReaderError, match=r"No space left on device; .* SEKV_CACHE$") as caught:
        cache.make(cache.folder_of("cd" * 32), "a test", 0, full, SILENT)
    assert "\n" not in str(caught.value)
    assert names(place) == []


def test_no_room_is_said_before_anything_is_fetched(place: Path) -> None:
    with pytest.raises(ReaderError, match=r"MB free and a test needs 10,000,000,000,000 MB there"):
        cache.make(cache.folder_of("cd" * 32), "a test", 10**19, fill, SILENT)


@pytest.mark.parametrize("below", ["file", "/proc/nowhere"])
def test_a_cache_that_cannot_be_written_is_one_line(
    below: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SEKV_CACHE", str(tmp_path / below))
    with pytest.raises(ReaderError, match=r"^cannot keep models in .*SEKV_CACHE$") as caught:
        cache.make(cache.folder_of("cd" * 32), "a test", 0, fill, SILENT)
    assert "\n" not in str(caught.value)
    assert cache.remove(cache.folder_of("cd" * 32), SILENT) == 0


def test_removing_frees_the_bytes(place: Path) -> None:
    folder = cache.make(cache.folder_of("cd" * 32), "a test", 0, fill, SILENT)
    size = cache.size(folder)
    assert size > 0
    assert cache.remove(folder, SILENT) == size
    assert names(place) == []
    assert cache.remove(folder, SILENT) == 0


def test_the_cache_lies_where_the_system_keeps_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEKV_CACHE")
    assert cache_folder.root().name == "sekv"
    monkeypatch.setenv("SEKV_CACHE", "~/models")
    assert cache_folder.root() == Path.home() / "models"


# ---------------------------------------------------------------------------- digests


def test_a_digest_is_of_all_bytes_and_follows_them(place: Path, tmp_path: Path) -> None:
    file = tmp_path / "weights"
    for content in (b"", b"one", b"two", b"x" * 5_000_000, b"x" * 4_999_999 + b"y"):
        file.write_bytes(content)
        assert cache.sha256_of(file, SILENT) == hashlib.sha256(content).hexdigest()


def test_a_digest_is_remembered_until_the_file_changes(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by its time of modification alone, which anyone can set; and not while it is fresh."""
    file, other = tmp_path / "weights", tmp_path / "other"
    file.write_bytes(b"one")
    one = cache.sha256_of(file, SILENT)
    assert not (place / "digests").exists()  # it may change again within the clock's resolution
    monkeypatch.setattr(cache, "SETTLED_NS", 0)
    cache.sha256_of(file, SILENT)
    (kept,) = (place / "digests").iterdir()
    kept.write_text(kept.read_text().replace(one, "remembered"))
    assert cache.sha256_of(file, SILENT) == "remembered"
    assert cache.xxh3_of(file, SILENT) != "remembered"
    before = file.stat()
    other.write_bytes(b"two")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(file)
    assert cache.sha256_of(file, SILENT) == hashlib.sha256(b"two").hexdigest()


def test_a_damaged_memory_of_digests_is_not_believed(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "SETTLED_NS", 0)
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    digest = cache.xxh3_of(file, SILENT)
    (kept,) = (place / "digests").iterdir()
    for content in ("", "[]", '{"of": 1, "digest": "0"}', "\0"):
        kept.write_text(content)
        assert cache.xxh3_of(file, SILENT) == digest
    monkeypatch.setenv("SEKV_CACHE", str(file))  # not even a folder
    assert cache.xxh3_of(file, SILENT) == digest


# ---------------------------------------------------------------------------- fingerprints


def shards(folder: Path) -> Path:
    folder.mkdir()
    for name in ("model-00001-of-00002", "model-00002-of-00002"):
        (folder / f"{name}.safetensors").write_bytes(name.encode())
    (folder / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "model-00002-of-00002.safetensors",'
        ' "b": "model-00001-of-00002.safetensors", "c": "model-00001-of-00002.safetensors"}}'
    )
    return folder


def test_a_fingerprint_is_of_the_files_that_are_loaded(tmp_path: Path) -> None:
    """Those that the index names; no file beside them counts, and every byte of them does."""
    folder = shards(tmp_path / "model")
    assert [file.name[:11] for file in weight_files(folder)] == ["model-00001", "model-00002"]
    before = weights_fingerprint(folder, SILENT)
    (folder / "adapter.safetensors").write_bytes(b"more")
    (folder / "pytorch_model.bin").write_bytes(b"more")
    assert weights_fingerprint(folder, SILENT) == before
    shard = folder / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"3")
    changed = weights_fingerprint(folder, SILENT)
    assert changed != before
    (folder / "model.safetensors").write_bytes(b"one file goes before shards")
    assert weights_fingerprint(folder, SILENT) not in (before, changed)


@pytest.mark.parametrize(
    "index", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": "../b.safetensors"}}',
              '{"weight_map": {"a": 3}}', '{"weight_map": {"a": "gone.safetensors"}}']
)  # fmt: skip
def test_an_index_that_is_none_is_one_line(index: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ReaderError, match=r"index\.json (cannot be read|names gone)") as caught:
        weight_files(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_without_weights_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ReaderError, match="no weight files in"):
        weight_files(tmp_path)
