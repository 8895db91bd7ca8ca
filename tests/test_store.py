"""The store: what was put comes back, nothing damaged ever does, and one writer at a time."""

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
from engine.errors import StoreError
from engine.manifest import (
    DOCUMENT,
    NAME,
    SHARED,
    Manifest,
    SourceEntry,
    WindowEntry,
    device_file,
    from_bytes,
    host_file,
)
from engine.store import (
    Store,
    StoreWriter,
    check_sources,
    compare_identity,
    list_stores,
)
from engine.store.disk import Disk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden" / "format-1"
"""A store of format 1 as bytes. It must open for ever; only a new format may write others."""


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Durability is the business of the crash tests; here it would only be slow."""
    monkeypatch.setattr(Disk, "sync", lambda *_: None)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """The toy store of two windows, open."""
    toy.ingest(tmp_path / "toy.sekv")
    with Store.open(tmp_path / "toy.sekv") as opened:
        yield opened


def read_all(path: Path) -> dict[str, Any]:
    """Everything that a reader can get out of a store."""
    with Store.open(path) as store:
        found: dict[str, Any] = {"manifest": store.manifest, "text": store.text(0)}
        found |= {f"document {name}": array.tolist() for name, array in store.document().items()}
        found |= {f"shared {name}": tensor.tolist() for name, tensor in store.shared().items()}
        for window, entry in enumerate(store.manifest.windows):
            device = store.device(window)
            found |= {f"{window} {name}": tensor.tolist() for name, tensor in device.items()}
            host = store.host(window)
            for layer in host.layers:
                codes = host.read(layer, np.arange(entry.spans))
                found[f"{window} {layer}"] = codes.tolist(), host.offsets(layer).tolist()
            host.close()
        return found


def refuses(call: Callable[[], object]) -> str:
    with pytest.raises(StoreError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- what was put comes back


def test_everything_comes_back(store: Store) -> None:
    assert store.text(0) == toy.text(0, 2)
    for name, array in store.document().items():
        assert np.array_equal(array, toy.document(0, 2)[name])
    assert torch.equal(store.shared()["basis"], torch.zeros(2, 3))
    for window in range(2):
        states = [toy.chunk(0, window, index)["state"] for index in range(toy.CHUNKS)]
        device, host = toy.fold(states)
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


def test_golden_bytes_are_written_and_read(tmp_path: Path) -> None:
    """A change that breaks this needs a new format version, not a new golden store."""
    toy.ingest(tmp_path / "toy.sekv", windows=1)
    assert toy.tree(tmp_path / "toy.sekv") == toy.tree(GOLDEN)
    assert read_all(GOLDEN) == read_all(tmp_path / "toy.sekv")
    with Store.open(GOLDEN) as golden:
        assert golden.verify() == []


def test_the_reader_in_the_documentation_reads_the_golden_store(tmp_path: Path) -> None:
    """docs/format.md promises that a stranger can write a reader; this one is a stranger's."""
    page = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")
    program = page.split("```python\n")[1].split("```")[0]
    store = tmp_path / "toy.sekv"
    shutil.copytree(GOLDEN, store)

    def read() -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-c", program, str(store)]
        return subprocess.run(line, capture_output=True, text=True, check=False)

    done = read()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("first token: 0 'à'")
    assert done.stdout.count("layer") == toy.LAYERS * toy.SPANS
    for name, place in ((NAME, 30), (SHARED, 9), (DOCUMENT, 4200), (host_file(0), 4300)):
        flip(store / name, place, 1)
        assert "damaged" in read().stderr
        flip(store / name, place, 1)


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
    _, host = toy.fold([toy.chunk(0, 1, index)["state"] for index in range(toy.CHUNKS)])
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
    assert "no window 2" in refuses(lambda: store.device(2))
    assert "no window -1" in refuses(lambda: store.host(-1))
    assert "'7.codes'" in refuses(lambda: store.host(0).read(7, np.arange(1)))
    assert "'text.1'" in refuses(lambda: store.text(1))


def test_list_inspect_and_verify_need_no_torch(store: Store) -> None:
    program = (
        "import sys; from pathlib import Path; from engine.store import *\n"
        "path = Path(sys.argv[1]); s = Store.open(path); s.text(0); s.document()\n"
        "assert s.verify() == [] and list_stores(path.parent) and s.host(0).sizes(0).size\n"
        "assert check_sources(s.manifest)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(store.path)], check=True, cwd=ROOT
    )


# -- nothing damaged is ever used


def flip(path: Path, place: int, mask: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ mask]))


def use(path: Path, name: str) -> Any:
    """What a reader gets out of one file of the one-window store."""
    with Store.open(path) as store:
        if name == NAME:
            return store.manifest
        if name == DOCUMENT:
            return store.text(0), {k: v.tolist() for k, v in store.document().items()}
        if name == SHARED:
            return {k: v.tolist() for k, v in store.shared().items()}
        if name == device_file(0):
            return {k: v.tolist() for k, v in store.device(0).items()}
        section = store.host(0)
        try:
            return [section.read(layer, np.array([2, 0, 1])).tolist() for layer in section.layers]
        finally:
            section.close()


def padding(data: bytes) -> range:
    """Where the spaces are that fill a header up to the data."""
    if not data.endswith(b"}\n") and data[4095:4096] == b" ":
        return range(len(data[:4096].rstrip(b" ")), 4096)
    return range(0)


def check_flips(path: Path, stride: int) -> int:
    """Flip one byte at a time: verify names the file, no read gives anything, none is silent."""
    seen = 0
    for name, data in toy.tree(path).items():
        padded = padding(data)
        for place in range(len(data)):
            if place in padded and place % stride:
                continue
            flip(path / name, place, 1 << place % 8)
            try:
                with Store.open(path) as store:
                    found = store.verify()
            except StoreError as error:
                found = [str(error)]
            assert found, f"{name} byte {place}"
            assert all(name.split(".")[0] in line or "format" in line for line in found), found
            with pytest.raises(StoreError):
                use(path, name)
            flip(path / name, place, 1 << place % 8)
            seen += 1
    return seen


def test_every_flipped_byte_is_detected_and_never_used(tmp_path: Path) -> None:
    """Every byte of a small store, of the spaces that pad headers every 16th."""
    toy.ingest(tmp_path / "toy.sekv", windows=1)
    assert check_flips(tmp_path / "toy.sekv", stride=16) > 5000


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_flipped_byte_is_detected_padding_included(tmp_path: Path) -> None:
    toy.ingest(tmp_path / "toy.sekv", windows=1)
    path = tmp_path / "toy.sekv"
    assert check_flips(path, stride=1) == sum(len(data) for data in toy.tree(path).values())


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_thousand_flips_of_a_large_store_are_detected(tmp_path: Path) -> None:
    """Random bytes of a store of 16 MiB: verify finds each, and the span that holds it says so."""
    path = tmp_path / "large.sekv"
    spans, heads, layers = 400, 2, 2
    random = np.random.default_rng(0)
    host: dict[str, Any] = {}
    for layer in range(layers):
        cuts = np.concatenate(([0], np.cumsum(random.integers(5000, 15000, spans * heads))))
        host[f"{layer}.offsets"] = cuts.astype(np.int64)
        host[f"{layer}.codes"] = random.integers(0, 256, int(cuts[-1]), dtype=np.uint8)
    with StoreWriter.begin(path, {}) as writer:
        writer.put_document(toy.document(0, 40))
        writer.put_shared({})
        device = {"rows": random.standard_normal((400, 64)).astype(np.float32)}
        writer.put_window(0, device, host, WindowEntry(0, 480, spans, 0))
        writer.publish(**toy.fields(0, 40))
    files = {name: len(data) for name, data in toy.tree(path).items()}
    names = list(files)
    chances = np.array([files[name] for name in names]) / sum(files.values())
    missed = []
    for _ in range(10_000):
        name = names[int(random.choice(len(names), p=chances))]
        place = int(random.integers(files[name]))
        mask = 1 << int(random.integers(8))
        flip(path / name, place, mask)
        try:
            with Store.open(path) as store:
                found = store.verify()
        except StoreError as error:
            found = [str(error)]
        if not any(name.split(".")[0] in line for line in found):
            missed.append((name, place))
        flip(path / name, place, mask)
    assert missed == []


@pytest.mark.parametrize("keep", [0, 7, 8, 100, 4095, 4096, -1])
@pytest.mark.parametrize("name", [DOCUMENT, SHARED, device_file(1), host_file(0)])
def test_a_cut_file_is_one_line(store: Store, name: str, keep: int) -> None:
    data = (store.path / name).read_bytes()
    (store.path / name).write_bytes(data[:keep])
    found = store.verify()
    assert len(found) == 1
    assert name in found[0]
    refuses(lambda: read_all(store.path))


def test_a_grown_file_is_one_line(store: Store) -> None:
    for name in store.manifest.files:
        with (store.path / name).open("ab") as file:
            file.write(b"\0")
    assert len(store.verify()) == len(store.manifest.files)
    refuses(lambda: read_all(store.path))


def test_a_file_cut_while_it_is_open_is_one_line(store: Store) -> None:
    section = store.host(0)
    os.truncate(store.path / host_file(0), 4200)
    assert "cut short" in refuses(lambda: section.read(1, np.arange(3)))


def test_a_missing_file_is_one_line(store: Store) -> None:
    for name in store.manifest.files:
        moved = store.path / "moved"
        (store.path / name).rename(moved)
        assert any(line.startswith(f"{name} is missing") for line in store.verify())
        assert "is missing" in refuses(lambda: read_all(store.path))
        moved.rename(store.path / name)
    assert store.verify() == []


def test_files_swapped_between_two_stores_are_noticed(tmp_path: Path) -> None:
    """Same names, same sizes, same shapes, each file sound in itself: only the manifest knows."""
    one, two = tmp_path / "one.sekv", tmp_path / "two.sekv"
    toy.ingest(one, seed=1)
    toy.ingest(two, seed=2)
    for name in [*from_bytes((one / NAME).read_bytes()).files, NAME]:
        shutil.copy2(one / name, tmp_path / "kept")
        shutil.copy2(two / name, one / name)
        with Store.open(one) as store:
            assert any("damaged" in line or "manifest" in line for line in store.verify())
        refuses(lambda: read_all(one))
        shutil.copy2(tmp_path / "kept", one / name)
    assert read_all(one)


def test_windows_swapped_within_a_store_are_noticed(store: Store) -> None:
    for name in (device_file, host_file):
        first, second = store.path / name(0), store.path / name(1)
        data = first.read_bytes()
        first.write_bytes(second.read_bytes())
        second.write_bytes(data)
    assert len(store.verify()) > 3
    refuses(lambda: store.device(0))
    refuses(lambda: store.host(1).read(0, np.arange(1)))


def test_a_link_is_never_followed_even_to_the_right_bytes(store: Store, tmp_path: Path) -> None:
    for name in [*store.manifest.files, NAME, "windows"]:
        outside = tmp_path / "outside"
        (store.path / name).rename(outside)
        (store.path / name).symlink_to(outside)
        assert f"{name} is a symbolic link" in " ".join(store.verify())
        assert "symbolic link" in refuses(lambda: read_all(store.path))
        (store.path / name).unlink()
        outside.rename(store.path / name)
    assert store.verify() == []


def test_a_link_to_the_store_itself_is_fine(store: Store, tmp_path: Path) -> None:
    link = tmp_path / "link.sekv"
    link.symlink_to(store.path)
    assert read_all(link) == read_all(store.path)


def test_a_pipe_in_the_place_of_a_file_does_not_hang(store: Store) -> None:
    (store.path / SHARED).unlink()
    os.mkfifo(store.path / SHARED)
    assert "no plain file" in refuses(lambda: store.shared())
    assert "no plain file" in " ".join(store.verify())


def test_what_does_not_belong_is_reported(store: Store) -> None:
    (store.path / "windows" / "notes.txt").write_text("mine")
    (store.path / "deep").mkdir()
    (store.path / "deep" / "x").write_text("y")
    assert store.verify() == [
        "deep does not belong to the store",
        "deep/x does not belong to the store",
        "windows/notes.txt does not belong to the store",
    ]


def rewrite_host(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Write a host file and a manifest that agree in every checksum, as a hostile program can."""
    from engine import container
    from engine.manifest import FileEntry
    from engine.store.tensors import to_blocks

    manifest = from_bytes((path / NAME).read_bytes())
    with safe_open(path / host_file(0), "np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(tensors)
    blocks = to_blocks(tensors)
    encoded = container.encode(blocks)
    data = b"".join(bytes(piece) for piece in container.pieces(encoded, blocks))
    (path / host_file(0)).write_bytes(data)
    entry = FileEntry(encoded.size, encoded.tensors, encoded.header_checksum)
    files = {**manifest.files, host_file(0): entry}
    (path / NAME).write_bytes(dataclasses.replace(manifest, files=files).to_bytes())


HOSTILE_HOSTS: dict[str, Callable[[dict[str, Any]], None]] = {
    "negative offsets": lambda t: t["0.offsets"].__setitem__(1, -5),
    "offsets past the codes": lambda t: t["0.offsets"].__setitem__(-1, 10**15),
    "falling offsets": lambda t: t["0.offsets"].__setitem__(2, 60),
    "too few offsets": lambda t: t.update({"0.offsets": t["0.offsets"][:-1]}),
    "no offsets": lambda t: t.update({"0.offsets": np.zeros(0, np.int64)}),
    "offsets of floats": lambda t: t.update({"0.offsets": t["0.offsets"].astype(np.float64)}),
    "offsets in two dimensions": lambda t: t.update({"0.offsets": t["0.offsets"][:, None]}),
    "too few checksums": lambda t: t.update({"0.check": t["0.check"][:1]}),
    "wrong checksums": lambda t: t.update({"0.check": t["0.check"] + 1}),
    "codes of words": lambda t: t.update({"0.codes": t["0.codes"].astype(np.int16)}),
    "a layer without codes": lambda t: t.pop("0.codes"),
    "a name that is no layer": lambda t: t.update({"x.codes": t["0.codes"]}),
    "a layer the model has not": lambda t: t.update(
        {name.replace("0.", "9."): t[name] for name in list(t) if name.startswith("0.")}
    ),
}


@pytest.mark.parametrize("change", HOSTILE_HOSTS.values(), ids=HOSTILE_HOSTS.keys())
def test_a_hostile_host_section_is_one_line(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], request: pytest.FixtureRequest
) -> None:
    """Checksums agree, claims do not: refused by verify and by every read of that layer."""
    path = tmp_path / "toy.sekv"
    toy.ingest(path, windows=1)
    rewrite_host(path, change)
    with Store.open(path) as store:
        found = store.verify()
        assert found
        assert all("\n" not in line for line in found)
        if "model has not" not in request.node.name:
            refuses(lambda: store.host(0).read(0, np.arange(3)))


# -- which store is it


def test_what_is_not_a_store_says_what_to_do(tmp_path: Path) -> None:
    assert "sekv ingest" in refuses(lambda: Store.open(tmp_path / "none.sekv"))
    assert "not a store" in refuses(lambda: Store.open(tmp_path))
    (tmp_path / "file.sekv").write_text("x")
    assert "not a store" in refuses(lambda: Store.open(tmp_path / "file.sekv"))


def test_an_unfinished_store_says_how_to_finish(tmp_path: Path) -> None:
    with StoreWriter.begin(tmp_path / "toy.sekv", toy.job(0, 2)) as writer:
        writer.put_document(toy.document(0, 2))
    message = refuses(lambda: Store.open(tmp_path / "toy.sekv"))
    assert "interrupted" in message
    assert "same command" in message


def test_a_newer_store_says_which_program_it_needs(store: Store) -> None:
    (store.path / NAME).write_text(json.dumps({"format": 2}))
    message = refuses(lambda: Store.open(store.path))
    assert str(store.path) in message
    assert "newer sekv" in message


def test_stores_of_a_folder_are_listed_with_what_they_are(store: Store, tmp_path: Path) -> None:
    (tmp_path / "broken.sekv").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    with StoreWriter.begin(tmp_path / "unfinished.sekv", {}) as writer:
        writer.put_shared({})
        broken, sound = list_stores(tmp_path)
    assert "not a store" in broken.problem
    assert (sound.path, sound.tokens, sound.windows, sound.spans) == (str(store.path), 24, 2, 6)
    assert (sound.bytes, sound.model, sound.problem) == (store.size(), "toy/model", "")
    assert json.loads(json.dumps(sound.to_json()))["sources"] == ["toy.txt"]
    assert "cannot list" in refuses(lambda: list_stores(tmp_path / "nowhere"))


def test_sources_that_changed_are_named(tmp_path: Path, store: Store) -> None:
    from hashlib import sha256

    same, other = tmp_path / "same.txt", tmp_path / "other.txt"
    same.write_text("as it was")
    other.write_text("no longer")
    digest = sha256(b"as it was").hexdigest()
    sources = tuple(
        SourceEntry(name, "text", digest, 9) for name in ("same.txt", "other.txt", "gone.txt", "-")
    )
    manifest = dataclasses.replace(store.manifest, sources=sources)
    changed, gone = check_sources(manifest, tmp_path)
    assert changed.startswith("other.txt changed")
    assert gone.startswith("gone.txt is no longer there")
    absolute = dataclasses.replace(sources[0], path=str(same))
    assert check_sources(dataclasses.replace(store.manifest, sources=(absolute,))) == []


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
    line = compare_identity(toy.MODEL, dataclasses.replace(toy.MODEL, **changes))
    assert "\n" not in line
    assert "toy/model@main" in line
    assert "other/model" in line
    assert shown in line
    assert "ingest again" in line


def test_the_same_weights_under_another_name_are_the_same_model() -> None:
    moved = dataclasses.replace(toy.MODEL, id="/elsewhere", revision="", transformers="5.99")
    assert compare_identity(toy.MODEL, moved) == ""


# -- one writer at a time, and no half stores


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def test_nothing_is_left_beside_a_published_store(store: Store) -> None:
    assert leftovers(store.path.parent) == []


def test_an_existing_store_is_not_touched_without_overwrite(store: Store) -> None:
    before = toy.tree(store.path)
    message = refuses(lambda: toy.ingest(store.path, seed=1))
    assert "--overwrite" in message
    assert (toy.tree(store.path), leftovers(store.path.parent)) == (before, [])


def test_overwrite_keeps_the_old_store_until_the_new_one_is_complete(store: Store) -> None:
    before = toy.tree(store.path)
    with StoreWriter.begin(store.path, toy.job(1, 2), overwrite=True) as writer:
        writer.put_document(toy.document(1, 2))
        assert toy.tree(store.path) == before
    assert toy.tree(store.path) == before
    toy.ingest(store.path, seed=1, overwrite=True)
    assert Store.open(store.path).text(0) == toy.text(1, 2)
    assert leftovers(store.path.parent) == []


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch], ids=["folder", "file"])
def test_what_is_no_store_is_never_overwritten(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "mine")
    assert "no store" in refuses(lambda: toy.ingest(tmp_path / "mine", overwrite=True))
    assert "exists" in refuses(lambda: toy.ingest(tmp_path / "mine"))
    assert (tmp_path / "mine").exists()
    assert leftovers(tmp_path) == []


def test_a_name_taken_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "toy.sekv"
    with StoreWriter.begin(target, toy.job(0, 1)) as writer:
        writer.put_document(toy.document(0, 1))
        writer.put_shared({})
        writer.put_window(0, {}, {}, WindowEntry(0, toy.WINDOW, 0, 0))
        target.mkdir()
        (target / "precious").touch()
        assert "exists" in refuses(lambda: writer.publish(**toy.fields(0, 1)))
    assert toy.tree(target) == {"precious": b""}
    (target / "precious").unlink()
    target.rmdir()
    toy.ingest(target, windows=1)


def test_what_will_be_refused_is_refused_before_any_work(store: Store, tmp_path: Path) -> None:
    """`check` needs no job, and lets pass what only `begin` can judge."""
    StoreWriter.check(tmp_path / "new.sekv")
    StoreWriter.check(store.path, overwrite=True)
    assert "--overwrite" in refuses(lambda: StoreWriter.check(store.path))
    assert "no store" in refuses(lambda: StoreWriter.check(tmp_path, overwrite=True))
    assert "does not exist" in refuses(lambda: StoreWriter.check(tmp_path / "no" / "x.sekv"))
    (tmp_path / ".toy.sekv.done").mkdir()
    StoreWriter.check(store.path)
    assert "exists" in refuses(lambda: toy.ingest(store.path))
    assert leftovers(tmp_path) == []


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    assert "does not exist" in refuses(lambda: toy.ingest(tmp_path / "no" / "toy.sekv"))


def test_a_long_name_is_one_line(tmp_path: Path) -> None:
    refuses(lambda: toy.ingest(tmp_path / ("x" * 252 + ".sekv")))


def test_an_interrupted_run_is_resumed_and_computes_nothing_twice(tmp_path: Path) -> None:
    toy.ingest(tmp_path / "whole.sekv")
    computed: list[tuple[int, int]] = []

    def interrupt(window: int, chunk: int) -> None:
        computed.append((window, chunk))
        if len(computed) in (2, 5):
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            toy.ingest(tmp_path / "toy.sekv", told=interrupt)
        assert not (tmp_path / "toy.sekv").exists()
    toy.ingest(tmp_path / "toy.sekv", told=interrupt)
    assert toy.tree(tmp_path / "toy.sekv") == toy.tree(tmp_path / "whole.sekv")
    assert len(computed) == 2 * toy.CHUNKS + 2


def test_another_job_starts_afresh(tmp_path: Path) -> None:
    with StoreWriter.begin(tmp_path / "toy.sekv", toy.job(0, 2)) as writer:
        writer.put_chunk(0, 0, toy.chunk(0, 0, 0))
    with StoreWriter.begin(tmp_path / "toy.sekv", toy.job(1, 2)) as writer:
        assert writer.chunks(0) == []
    assert leftovers(tmp_path) == []


def test_a_run_that_did_nothing_or_is_aborted_leaves_nothing(tmp_path: Path) -> None:
    with StoreWriter.begin(tmp_path / "toy.sekv", {}):
        pass
    assert leftovers(tmp_path) == []
    writer = StoreWriter.begin(tmp_path / "toy.sekv", {})
    writer.put_shared({})
    writer.abort()
    assert leftovers(tmp_path) == []


def damage(path: Path, place: int) -> None:
    flip(path, place, 0x10)


def test_a_piece_damaged_between_two_runs_is_made_again(tmp_path: Path) -> None:
    """Chunks, windows and shared tensors are believed only after every byte was checked."""
    toy.ingest(tmp_path / "whole.sekv")
    target = tmp_path / "toy.sekv"
    work = tmp_path / ".toy.sekv.work"

    def interrupt(window: int, chunk: int) -> None:
        if (window, chunk) == (1, 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        toy.ingest(target, told=interrupt)
    damage(work / "store" / host_file(0), 4300)
    damage(work / "chunks" / "00001-000000.safetensors", 4100)
    computed: list[tuple[int, int]] = []
    toy.ingest(target, told=lambda window, chunk: computed.append((window, chunk)))
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
        assert "shared was never written" in refuses(publish)
        writer.put_shared({})
        assert "windows" in refuses(publish)
        writer.put_window(1, {}, {}, WindowEntry(12, 24, 0, 0))
        assert "window 0 was never written" in refuses(publish)
        writer.put_window(0, {}, {}, WindowEntry(0, 11, 0, 0))
        assert "windows[1]" in refuses(publish)
        writer.put_window(0, {}, {}, WindowEntry(0, 12, 0, 0))
        publish()
    with Store.open(tmp_path / "toy.sekv") as store:
        assert store.verify() == []


def test_a_store_that_contradicts_itself_is_not_published(tmp_path: Path) -> None:
    document = toy.document(0, 1)
    device, host = toy.fold([toy.chunk(0, 0, index)["state"] for index in range(toy.CHUNKS)])
    entry = WindowEntry(0, toy.WINDOW, toy.SPANS, 1)
    wrong: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("tokens", {"ids": document["ids"][:5]}, {}),
        ("leave their text", {"ends": document["ends"] + 1}, {}),
        ("does not exist", {"source": document["source"] + 1}, {}),
        ("characters", {"text.0": document["text.0"][2:]}, {}),
        ("UTF-8", {"text.0": np.full(20, 0xFF, dtype=np.uint8)}, {}),
        ("KV heads", {}, {"model": dataclasses.replace(toy.MODEL, kv_heads=1)}),
        ("of a model", {}, {"model": dataclasses.replace(toy.MODEL, layers=1)}),
    ]
    with StoreWriter.begin(tmp_path / "toy.sekv", {}) as writer:
        writer.put_shared({})
        writer.put_window(0, device, host, entry)
        for says, tables, fields in wrong:
            cut = {name: array[: len(tables.get("ids", array))] for name, array in document.items()}
            cut["text.0"] = document["text.0"]
            writer.put_document({**(cut if "ids" in tables else document), **tables})
            told = {**toy.fields(0, 1), **fields}
            assert says in refuses(lambda told=told: writer.publish(**told))  # type: ignore[misc]
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
from engine.store import StoreWriter
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
            message = refuses(lambda: toy.ingest(target))
            assert f"another process (pid {holder.pid}) is writing" in message
        toy.ingest(tmp_path / "other.sekv", windows=1)
        holder.kill()
    assert (tmp_path / ".toy.sekv.lock").exists()
    toy.ingest(target)
    assert leftovers(tmp_path) == []


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
    assert leftovers(tmp_path) == []


# -- append


def test_append_gives_the_store_that_one_ingest_would_have_given(tmp_path: Path) -> None:
    toy.ingest(tmp_path / "whole.sekv", windows=3)
    toy.ingest(tmp_path / "toy.sekv", windows=2)
    before = (tmp_path / "toy.sekv" / host_file(0)).stat()
    computed: list[tuple[int, int]] = []
    toy.append(tmp_path / "toy.sekv", told=lambda *at: computed.append(at))
    assert toy.tree(tmp_path / "toy.sekv") == toy.tree(tmp_path / "whole.sekv")
    assert {window for window, _ in computed} == {2}
    assert (tmp_path / "toy.sekv" / host_file(0)).stat().st_ino == before.st_ino
    assert leftovers(tmp_path) == []


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
    assert leftovers(tmp_path) == []


def test_append_refuses_what_it_cannot_continue(store: Store, tmp_path: Path) -> None:
    assert "no store" in refuses(lambda: toy.append(tmp_path / "none.sekv"))
    writer = StoreWriter.append(store.path, {})
    assert "shared" in refuses(lambda: writer.put_shared({}))
    writer.close()
    damage(store.path / host_file(1), 4200)
    assert "damaged" in refuses(lambda: toy.append(store.path))
    assert leftovers(tmp_path) == [".toy.sekv.work"]
    toy.ingest(store.path, overwrite=True)
    assert leftovers(tmp_path) == []


def test_an_interrupted_append_leaves_the_store_and_is_resumed(store: Store) -> None:
    before = toy.tree(store.path)
    computed: list[tuple[int, int]] = []

    def interrupt(window: int, chunk: int) -> None:
        computed.append((window, chunk))
        if len(computed) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        toy.append(store.path, told=interrupt)
    assert toy.tree(store.path) == before
    toy.append(store.path, told=interrupt)
    assert computed == [(2, 0), (2, 1), (2, 1), (2, 2)]
    assert "open it again" in refuses(lambda: store.text(0))
    with Store.open(store.path) as longer:
        assert longer.manifest.tokens == 36


# -- many readers


READER = """
import sys
from pathlib import Path
from engine.store import Store
for _ in range(20):
    with Store.open(Path(sys.argv[1])) as store:
        assert store.verify() == [] and len(store.text(0)) == len(store.document()["ids"])
"""


def test_eight_readers_at_once_read_the_same(store: Store) -> None:
    expected = read_all(store.path)
    with ThreadPoolExecutor(8) as pool:
        assert all(found == expected for found in pool.map(read_all, [store.path] * 8))
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
        device, host = toy.fold([toy.chunk(0, 0, index)["state"] for index in range(toy.CHUNKS)])
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
    assert "changed while" in refuses(lambda: section.read(0, np.arange(1)))


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
    expected = [read_all(path)]
    toy.ingest(tmp_path / "next.sekv", seed=1)
    expected.append(read_all(tmp_path / "next.sekv"))
    done = threading.Event()
    seen: list[Any] = []

    def read() -> None:
        while not done.is_set():
            try:
                seen.append(read_all(path))
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
