"""The store: what was put comes back, lazily, to any number of readers."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

import toy_store as toy
from engine.errors import FormatError, StoreError
from engine.store.library import check_sources, compare_identity, list_stores
from engine.store.manifest import (
    DOCUMENT,
    FORMAT,
    NAME,
    SHARED,
    Manifest,
    SourceEntry,
    WindowEntry,
    device_file,
    host_file,
)
from engine.store.reader import Store
from engine.store.work import Places
from engine.store.writer import StoreWriter
from repository import ROOT

if TYPE_CHECKING:
    from engine.types import ModelIdentity

FLOATS = ("float32", "float32")
GOLDEN = Path(__file__).parent / "golden" / "format-1"
PARTLY_READ = Path(__file__).parent / "golden" / "format-2-partly-read"
"""A store of format 1 as bytes. It must open for ever; only a new format may write others."""
GOLDEN_STATES = GOLDEN.with_name("format-2-states")
"""The same of a model with layers of other kinds."""
GOLDEN_LATENT = GOLDEN.with_name("format-2-latents")
"""The same of a quantised model that caches latents and rotates keys by the length of a context."""
STORES = [(GOLDEN, toy.MODEL), (GOLDEN_STATES, toy.MIXED), (GOLDEN_LATENT, toy.LATENT)]


pytestmark = pytest.mark.usefixtures("instant_disk")


# -- what was put comes back


def test_everything_comes_back(store: Store) -> None:
    assert store.text(0) == toy.text(0, 2)
    for name, array in store.document().items():
        assert np.array_equal(array, toy.document(0, 2)[name])
    assert torch.equal(store.shared()["basis"], torch.zeros(2, 3))
    for window in range(2):
        states = [toy.chunk(0, window, index)["state"] for index in range(toy.CHUNKS)]
        device, host = toy.compress(states)
        for name, tensor in store.device(window).items():
            assert torch.equal(tensor, torch.from_numpy(device[name]))
        section = store.host(window)
        assert section.layers == (0, 1)
        for layer in section.layers:
            assert section.offsets(layer).tolist() == host[f"{layer}.offsets"].tolist()
            codes = section.read(layer, torch.arange(toy.SPANS))
            assert codes.tolist() == host[f"{layer}.codes"].tolist()
        section.close()
    assert store.verify() == []


def test_torch_tensors_of_any_dtype_and_layout_come_back(tmp_path: Path) -> None:
    """bfloat16, 8-bit floats, scalars, empty and strided tensors, on a device section."""
    tensors = {
        "bf16": torch.randn(3, 5).bfloat16().t(),
        "f8": torch.randn(7).to(torch.float8_e4m3fn),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.zeros(0, 4, dtype=torch.float16),
        "bool": torch.tensor([True, False, True]),
        "u64": torch.tensor([2**63 + 1], dtype=torch.uint64),
    }
    with StoreWriter.begin(tmp_path / "t.sekv", {}) as writer:
        writer.put_document(toy.document(0, 1))
        writer.put_shared(tensors)
        writer.put_window(0, tensors, {}, WindowEntry(0, toy.WINDOW, 0, 0))
        writer.publish(**toy.fields(0, 1))
    with Store.open(tmp_path / "t.sekv") as store:
        assert store.verify() == []
        for found in (store.shared(), store.device(0)):
            assert found.keys() == tensors.keys()
            for name, tensor in tensors.items():
                assert found[name].dtype == tensor.dtype
                assert found[name].shape == tensor.shape
                assert found[name].reshape(-1).view(torch.uint8).tolist() == (
                    tensor.contiguous().reshape(-1).view(torch.uint8).tolist()
                )
        assert store.host(0).layers == ()


def test_a_store_holds_the_files_the_format_names_and_safetensors_opens_them(store: Store) -> None:
    windows = [name(index) for index in range(2) for name in (device_file, host_file)]
    assert set(toy.tree(store.path)) == {NAME, DOCUMENT, SHARED, *windows}
    for name in store.manifest.files:
        with safe_open(store.path / name, "pt") as file:
            assert set(file.keys()) == set(store.manifest.files[name].tensors)
    with safe_open(store.path / host_file(1), "pt") as file:
        assert torch.equal(file.get_tensor("0.offsets"), store.host(1).offsets(0))


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    toy.ingest(tmp_path / "one.sekv")
    toy.ingest(tmp_path / "two.sekv")
    assert toy.tree(tmp_path / "one.sekv") == toy.tree(tmp_path / "two.sekv")


@pytest.mark.parametrize(("golden", "model"), STORES)
def test_golden_bytes_are_written_and_read(
    golden: Path, model: ModelIdentity, tmp_path: Path
) -> None:
    """A change that breaks this needs a new format version, not a new golden store."""
    toy.ingest(tmp_path / "toy.sekv", windows=1, model=model)
    assert toy.tree(tmp_path / "toy.sekv") == toy.tree(golden)
    assert toy.read_all(golden) == toy.read_all(tmp_path / "toy.sekv")
    with Store.open(golden) as store:
        assert store.verify() == []
        manifest = store.manifest
        assert manifest.format == (1 if model == toy.MODEL else 2)
        assert (manifest.model, manifest.context) == (model, toy.LONG if model.cached else 0)


def test_golden_bytes_of_a_partly_read_store_are_written_and_read(tmp_path: Path) -> None:
    """Three windows of which the second is not read; read, it is a store of format 1."""
    toy.ingest(tmp_path / "toy.sekv", windows=3, only=[0, 2])
    assert toy.tree(tmp_path / "toy.sekv") == toy.tree(PARTLY_READ)
    assert toy.read_all(PARTLY_READ) == toy.read_all(tmp_path / "toy.sekv")
    with Store.open(PARTLY_READ) as golden:
        manifest = golden.manifest
        assert golden.verify() == []
        for section in (golden.device, golden.host):
            assert "window 1 of 3 is not read yet" in toy.refuses(lambda: section(1))  # noqa: B023
    assert (manifest.format, manifest.read, manifest.unread) == (2, (0, 2), (1,))
    assert (manifest.tokens, manifest.tokens_read) == (3 * toy.WINDOW, 2 * toy.WINDOW)
    toy.append(tmp_path / "toy.sekv", windows=3)
    toy.ingest(tmp_path / "whole.sekv", windows=3)
    assert toy.tree(tmp_path / "toy.sekv") == toy.tree(tmp_path / "whole.sekv")
    assert toy.leftovers(tmp_path) == []


@pytest.mark.parametrize(("golden", "model"), STORES)
def test_the_reader_in_the_documentation_reads_the_golden_store(
    golden: Path, model: ModelIdentity, tmp_path: Path
) -> None:
    """docs/format.md promises that a stranger can write a reader; this one is a stranger's."""
    page = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")
    program = page.split("```python\n")[1].split("```")[0]
    store = tmp_path / "toy.sekv"
    shutil.copytree(golden, store)

    def read() -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-c", program, str(store)]
        return subprocess.run(line, capture_output=True, text=True, check=False)

    done = read()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("first token: 0 'à'")
    assert done.stdout.count("layer") == len(model.memory_layers) * toy.SPANS
    assert ("window 0 states" in done.stdout) == (golden == GOLDEN_STATES)
    for name, place in ((NAME, 30), (SHARED, 9), (DOCUMENT, 4200), (host_file(0), 4200)):
        toy.flip(store / name, place, 1)
        assert "damaged" in read().stderr
        toy.flip(store / name, place, 1)
    shutil.rmtree(store)
    shutil.copytree(PARTLY_READ, store)
    done = read()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("layer") == 2 * toy.LAYERS * toy.SPANS


def test_the_size_is_what_the_file_system_says(store: Store) -> None:
    names = [path for path in store.path.rglob("*") if path.is_file()]
    assert store.size() == sum(path.stat().st_size for path in names)
    entries = store.manifest.files.values()
    manifest = (store.path / NAME).stat().st_size
    assert store.size() == manifest + sum(entry.bytes for entry in entries)


def test_counters_say_what_was_written(tmp_path: Path) -> None:
    writer = StoreWriter.begin(tmp_path / "toy.sekv", toy.job(0, 1))
    toy.run(writer, 0, 1)
    with Store.open(tmp_path / "toy.sekv") as store:
        assert writer.bytes_written > store.size()
    assert writer.seconds > 0


# -- reading lazily


def bytes_read_by_process() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(lines[0].removeprefix("rchar: "))


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="no /proc/self/io")
def test_opening_reads_the_manifest_and_a_device_section_is_read_once(store: Store) -> None:
    store.device(0)  # whatever Python reads to get there
    before = bytes_read_by_process()
    overhead = bytes_read_by_process() - before
    before = bytes_read_by_process()
    with Store.open(store.path) as fresh:
        assert bytes_read_by_process() - before - overhead == (store.path / NAME).stat().st_size
        assert fresh.device_bytes_read == (store.path / NAME).stat().st_size
        opened = bytes_read_by_process()
        fresh.device(0)
        size = fresh.manifest.files[device_file(0)].bytes
        assert size <= bytes_read_by_process() - opened - overhead <= size + 8
        assert fresh.host_bytes_read == 0


@pytest.mark.parametrize("spans", [[0, 1, 2], [2, 0], [1], [2, 1, 0], [1, 1, 0, 1], []])
def test_records_come_in_the_order_asked_for(store: Store, spans: list[int]) -> None:
    _, host = toy.compress([toy.chunk(0, 1, index)["state"] for index in range(toy.CHUNKS)])
    codes, offsets = host["1.codes"], host["1.offsets"][:: toy.KV_HEADS]
    wanted = [codes[offsets[span] : offsets[span + 1]] for span in spans]
    section = store.host(1)
    read = section.read(1, torch.tensor(spans, dtype=torch.int32))
    assert read.dtype == torch.uint8
    assert read.tolist() == np.concatenate([np.zeros(0), *wanted]).tolist()
    assert section.fetched_bytes == read.numel()
    assert section.sizes(1).tolist() == np.diff(offsets).tolist()


class CountedReads:
    """os.preadv that counts its calls and sometimes reads less than asked, as systems may."""

    def __init__(self) -> None:
        self.calls = 0
        self.most = 1 << 40
        self.real = os.preadv

    def __call__(self, descriptor: int, buffers: list[memoryview], position: int) -> int:
        self.calls += 1
        first = buffers[0][: self.most]
        rest = [] if len(buffers[0]) > self.most else buffers[1:]
        return self.real(descriptor, [first, *rest], position)


def test_spans_side_by_side_are_one_read_and_short_reads_go_on(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = store.host(0)
    whole = section.read(0, np.arange(3))
    counted = CountedReads()
    monkeypatch.setattr(os, "preadv", counted)
    assert torch.equal(section.read(0, np.arange(3)), whole)
    assert counted.calls == 1
    turned = section.read(0, np.array([2, 1, 0]))
    assert counted.calls == 2
    section.read(0, np.array([0, 2]))
    assert counted.calls == 4
    counted.most = 7
    assert torch.equal(section.read(0, np.array([2, 1, 0])), turned)
    assert counted.calls > 6


def test_a_host_section_counts_what_it_reads(store: Store) -> None:
    section, other = store.host(0), store.host(1)
    opened = section.bytes_read
    section.read(0, np.array([1]))
    tables = sum(section.offsets(0).shape) * 8 + toy.SPANS * 8
    assert section.bytes_read - opened == tables + int(section.sizes(0)[1])
    section.read(0, np.array([1]))
    assert section.bytes_read - opened == tables + 2 * int(section.sizes(0)[1])
    assert store.host_bytes_read == section.bytes_read + other.bytes_read


def test_records_are_read_into_the_memory_given(store: Store) -> None:
    section = store.host(0)
    stage = torch.zeros(500, dtype=torch.uint8)
    read = section.read(0, np.array([2, 0]), out=stage)
    assert read.data_ptr() == stage.data_ptr()
    assert torch.equal(read, section.read(0, np.array([2, 0])))
    with pytest.raises(ValueError, match="do not fit"):
        section.read(0, np.array([0, 2]), out=torch.zeros(5, dtype=torch.uint8))


@pytest.mark.parametrize("spans", [[-1], [toy.SPANS], [0, 10**12]])
def test_a_span_that_does_not_exist_is_a_mistake_of_the_caller(
    store: Store, spans: list[int]
) -> None:
    with pytest.raises(ValueError, match="spans must lie"):
        store.host(0).read(0, np.array(spans))


def test_what_does_not_exist_is_one_line(store: Store) -> None:
    assert "no window 2" in toy.refuses(lambda: store.device(2))
    assert "no window -1" in toy.refuses(lambda: store.host(-1))
    assert "'7.codes'" in toy.refuses(lambda: store.host(0).read(7, np.arange(1)))
    assert "'text.1'" in toy.refuses(lambda: store.text(1))


def test_list_inspect_and_verify_need_no_torch(store: Store) -> None:
    program = (
        "import sys; from pathlib import Path; from engine.store.reader import Store; "
        "from engine.store.library import check_sources, list_stores\n"
        "path = Path(sys.argv[1]); s = Store.open(path); s.text(0); s.document()\n"
        "assert s.verify() == [] and list_stores(path.parent) and s.host(0).sizes(0).size\n"
        "assert check_sources(s.manifest, s.path)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(store.path)], check=True, cwd=ROOT
    )


# -- which store is it


def test_what_is_not_a_store_says_what_to_do(tmp_path: Path) -> None:
    assert "sekv ingest" in toy.refuses(lambda: Store.open(tmp_path / "none.sekv"))
    assert "not a store" in toy.refuses(lambda: Store.open(tmp_path))
    (tmp_path / "file.sekv").write_text("x")
    assert "not a store" in toy.refuses(lambda: Store.open(tmp_path / "file.sekv"))


def test_a_list_names_the_stores_that_are_being_made(tmp_path: Path) -> None:
    """Of one that is there and read further nothing is said; hidden folders are not looked into."""
    folder = tmp_path / "deep"
    (tmp_path / ".hidden" / ".a.sekv.work").mkdir(parents=True)
    folder.mkdir()
    toy.ingest(folder / "sound.sekv")
    Places(folder / "sound.sekv").work.mkdir()
    with StoreWriter.begin(folder / "new.sekv", toy.job(0, 2)) as writer:
        writer.put_document(toy.document(0, 2))
        made, other = list_stores(tmp_path)
        assert (made.path, other.problem) == (str(folder / "new.sekv"), "")
        assert f"another process (pid {os.getpid()}) is reading its document" in made.problem
    assert "interrupted" in list_stores(tmp_path)[0].problem


def test_an_unfinished_store_says_how_to_finish(tmp_path: Path) -> None:
    """Whether the one who reads its document is still there shows in the lock's file."""
    with StoreWriter.begin(tmp_path / "toy.sekv", toy.job(0, 2)) as writer:
        writer.put_document(toy.document(0, 2))
        message = toy.refuses(lambda: Store.open(tmp_path / "toy.sekv"))
        assert f"another process (pid {os.getpid()}) is reading its document" in message
    message = toy.refuses(lambda: Store.open(tmp_path / "toy.sekv"))
    assert "interrupted; sekv ingest or sekv ask of the document goes on" in message
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        dead.wait()
    Places(tmp_path / "toy.sekv").lock.write_text(f"{dead.pid}\n")
    assert "interrupted" in toy.refuses(lambda: Store.open(tmp_path / "toy.sekv"))


def test_a_newer_store_says_which_program_it_needs(store: Store) -> None:
    (store.path / NAME).write_text(json.dumps({"format": FORMAT + 1}))
    message = toy.refuses(lambda: Store.open(store.path))
    assert str(store.path) in message
    assert "newer sekv" in message
    with pytest.raises(FormatError):
        Store.open(store.path)


def test_stores_of_a_folder_are_listed_with_what_they_are(store: Store, tmp_path: Path) -> None:
    (tmp_path / "broken.sekv").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    with StoreWriter.begin(tmp_path / "unfinished.sekv", {}) as writer:
        writer.put_shared({})
        broken, sound, begun = list_stores(tmp_path)
        assert "is reading its document" in begun.problem
    assert "not a store" in broken.problem
    assert (sound.path, sound.tokens, sound.windows, sound.spans) == (str(store.path), 24, 2, 6)
    assert (sound.bytes, sound.model, sound.problem) == (store.size(), "toy/model", "")
    assert json.loads(json.dumps(sound.to_json()))["sources"] == ["toy.txt"]
    assert "cannot list" in toy.refuses(lambda: list_stores(tmp_path / "nowhere"))


def test_sources_that_changed_are_named(tmp_path: Path, store: Store) -> None:
    from hashlib import sha256

    same, other = tmp_path / "same.txt", tmp_path / "other.txt"
    same.write_text("as it was")
    other.write_text("no longer")
    digest = sha256(b"as it was").hexdigest()

    def told(sources: list[SourceEntry]) -> list[str]:
        manifest = dataclasses.replace(store.manifest, sources=tuple(sources))
        return check_sources(manifest, store.path)

    names = ("same.txt", "other.txt", "gone.txt", "-")
    known = [SourceEntry(name, "text", digest, 9, near=name) for name in names]
    changed, gone = told(known)
    assert changed.startswith(f"other.txt ({other}) is not what was read: it changed since, or")
    assert gone.startswith(f"gone.txt is no longer there ({tmp_path / 'gone.txt'})")
    whole = [SourceEntry(str(tmp_path / name), "text", digest, 9) for name in names[:3]]
    changed, gone = told(whole)
    assert changed.startswith(f"{other} changed since it was read")
    assert gone.startswith(f"{tmp_path / 'gone.txt'} is no longer there")
    old = [SourceEntry(name, "text", digest, 9) for name in names]
    assert told(old) == [
        f"{name} is not found beside the store; the store still holds its text"
        for name in ("other.txt", "gone.txt")
    ]


@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [
        ("weights", "ab" * 16, "abab"),
        ("tokenizer", "cd" * 16, "cdcd"),
        ("architecture", "OtherForCausalLM", "OtherForCausalLM"),
        ("kv_heads", 4, "2x4/4x8"),
        ("rope", {"rope_theta": 5e5}, "500000.0"),
        ("transformers", "6.0.1", "6"),
    ],
)
def test_another_model_is_refused_in_one_line_that_names_both(
    field: str, value: Any, shown: str
) -> None:
    changes: dict[str, Any] = {field: value, "id": "other/model"}
    line = compare_identity(toy.MODEL, dataclasses.replace(toy.MODEL, **changes), FLOATS)
    assert "\n" not in line
    assert "toy/model@main" in line
    assert "other/model" in line
    assert shown in line
    assert "ingest again" in line


def test_the_same_weights_under_another_name_are_the_same_model() -> None:
    moved = dataclasses.replace(toy.MODEL, id="/elsewhere", revision="", transformers="5.99")
    assert compare_identity(toy.MODEL, moved, FLOATS) == ""


def test_another_release_may_read_a_store_if_it_computes_the_same() -> None:
    """What was computed decides where both say it, and not the number of a release."""
    made = dataclasses.replace(toy.MODEL, behaviour=(3.0, 5.0, 0.5, 7.25))
    newer = dataclasses.replace(made, transformers="6.1.0", behaviour=(3.01, 5.0, 0.5, 7.25))
    assert compare_identity(made, newer, FLOATS) == ""
    for other in ((3.0, 5.0, 0.9, 7.25), (3.0, 5.0)):
        changed = dataclasses.replace(newer, behaviour=other)
        line = compare_identity(made, changed, FLOATS)
        assert "under transformers 5.17.0" in line
        assert "under transformers 6.1.0 computes something else" in line
        assert "use transformers 5.17.0, or ingest again" in line
        assert "\n" not in line
    rounded = dataclasses.replace(newer, behaviour=(3.1, 5.1, 0.6, 7.35))
    assert compare_identity(made, rounded, ("float32", "bfloat16")) == ""
    assert "something else" in compare_identity(made, rounded, FLOATS)
    assert "something else" in compare_identity(made, rounded, ("int4", "float32"))
    silent = dataclasses.replace(newer, behaviour=())
    assert "transformers 5" in compare_identity(made, silent, FLOATS)


# -- many readers


READER = """
import sys
from pathlib import Path
from engine.store.reader import Store
for _ in range(20):
    with Store.open(Path(sys.argv[1])) as store:
        assert store.verify() == [] and len(store.text(0)) == len(store.document()["ids"])
"""


def test_eight_readers_at_once_read_the_same(store: Store) -> None:
    expected = toy.read_all(store.path)
    with ThreadPoolExecutor(8) as pool:
        assert all(found == expected for found in pool.map(toy.read_all, [store.path] * 8))
    programs = [
        subprocess.Popen([sys.executable, "-W", "error", "-c", READER, str(store.path)], cwd=ROOT)
        for _ in range(4)
    ]
    assert [program.wait() for program in programs] == [0] * 4


def test_windows_beyond_what_a_process_may_open_are_read(tmp_path: Path) -> None:
    """A long document has more windows than a process may have files: few stay open at a time."""
    windows = 200
    with StoreWriter.begin(tmp_path / "long.sekv", {}) as writer:
        writer.put_document(toy.document(0, windows))
        writer.put_shared({})
        device, host = toy.compress(
            [toy.chunk(0, 0, index)["state"] for index in range(toy.CHUNKS)]
        )
        for window in range(windows):
            start = window * toy.WINDOW
            entry = WindowEntry(start, start + toy.WINDOW, toy.SPANS, 0)
            writer.put_window(window, device, host, entry)
        writer.publish(**toy.fields(0, windows))
    own = Path("/proc/self/fd")
    before = len(list(own.iterdir())) if own.exists() else 0
    with Store.open(tmp_path / "long.sekv") as store:
        sections = [store.host(window) for window in range(windows)]
        with ThreadPoolExecutor(8) as pool:
            reads = pool.map(lambda section: section.read(0, np.arange(3)).tolist(), sections * 3)
            assert all(read == host["0.codes"].tolist() for read in reads)
        if own.exists():
            assert len(list(own.iterdir())) - before < 150
    for section in sections:
        section.close()
    if own.exists():
        assert len(list(own.iterdir())) == before


def test_a_file_exchanged_under_an_open_store_is_not_read_on(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reopening what was closed for want of places must find the very same file."""
    monkeypatch.setattr("engine.store.folder.MOST_OPEN", 0)
    section = store.host(0)
    shutil.copy2(store.path / host_file(0), store.path / "copy")
    (store.path / "copy").rename(store.path / host_file(0))
    assert "changed while" in toy.refuses(lambda: section.read(0, np.arange(1)))


def test_one_host_section_serves_many_threads(store: Store) -> None:
    section = store.host(0)
    expected = [section.read(layer, np.array([2, 0])).tolist() for layer in (0, 1)]
    fresh = store.host(0)

    def read(index: int) -> bool:
        return fresh.read(index % 2, np.array([2, 0])).tolist() == expected[index % 2]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(200)))
    assert fresh.fetched_bytes == 100 * (len(expected[0]) + len(expected[1]))


def test_readers_see_whole_stores_while_one_is_replaced(tmp_path: Path) -> None:
    """Whoever opens gets all of the old store or all of the new one, or is told it was replaced."""
    path = tmp_path / "toy.sekv"
    toy.ingest(path, seed=0)
    expected = [toy.read_all(path)]
    toy.ingest(tmp_path / "next.sekv", seed=1)
    expected.append(toy.read_all(tmp_path / "next.sekv"))
    done = threading.Event()
    seen: list[Any] = []

    def read() -> None:
        while not done.is_set():
            try:
                seen.append(toy.read_all(path))
            except StoreError as error:
                seen.append(str(error))

    reader = threading.Thread(target=read)
    reader.start()
    for seed in (1, 0, 1, 0, 1):
        toy.ingest(path, seed=seed, overwrite=True)
    done.set()
    reader.join()
    assert seen
    for found in seen:
        assert found in expected or "open it again" in found or "is missing" in found


def test_publish_gives_the_manifest_that_open_reads(tmp_path: Path) -> None:
    written: Manifest = toy.ingest(tmp_path / "toy.sekv")
    with Store.open(tmp_path / "toy.sekv") as store:
        assert store.manifest == written
