"""Nothing damaged is ever used: flipped, cut, swapped, linked, hostile, each is one line."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import toy_store as toy
from engine.errors import StoreError
from engine.store.manifest import (
    DOCUMENT,
    NAME,
    SHARED,
    WindowEntry,
    device_file,
    from_bytes,
    host_file,
    states_file,
)
from engine.store.reader import Store
from engine.store.writer import StoreWriter

if TYPE_CHECKING:
    from collections.abc import Callable


pytestmark = pytest.mark.usefixtures("instant_disk")


def use(store: Store, name: str) -> object:
    """What a reader gets out of one file of the one-window store."""
    if name == DOCUMENT:
        return store.text(0) and store.document()
    if name == SHARED:
        return store.shared()
    if name == device_file(0):
        return store.device(0)
    if name == states_file(0):
        return store.states(0)
    section = store.host(0)
    try:
        return [section.read(layer, np.array([2, 0, 1])) for layer in section.layers]
    finally:
        section.close()


def padding(data: bytes) -> range:
    """Where the spaces are that fill a header up to the data."""
    if not data.endswith(b"}\n") and data[4095:4096] == b" ":
        return range(len(data[:4096].rstrip(b" ")), 4096)
    return range(0)


def check_flips(path: Path, stride: int, every: int = 1, ending: str = "") -> int:
    """Flip one byte at a time of the files with this ending: verify names the file, no read gives
    anything, none is silent.

    stride: which of the spaces that pad headers; every: which of the other bytes.
    """
    seen = 0
    for name, data in toy.tree(path).items():
        if not name.endswith(ending):
            continue
        padded = padding(data)
        for place in range(len(data)):
            if place % (stride if place in padded else every):
                continue
            toy.flip(path / name, place, 1 << place % 8)
            if name == NAME:
                found = [toy.refuses(lambda: Store.open(path))]
            else:
                with Store.open(path) as store:
                    found = store.verify()
                    toy.refuses(lambda: use(store, name))  # noqa: B023
            assert found, f"{name} byte {place}"
            assert all(name.split(".")[0] in line or "format" in line for line in found), found
            toy.flip(path / name, place, 1 << place % 8)
            seen += 1
    return seen


def test_every_flipped_byte_is_detected_and_never_used(tmp_path: Path) -> None:
    """Of a small store every fifth byte, so that each of a number's comes by turns, and of the
    spaces that pad headers every 64th. All of them are flipped by the next but one, by name."""
    toy.ingest(tmp_path / "toy.sekv", windows=1)
    assert check_flips(tmp_path / "toy.sekv", stride=64, every=5) > 900


def test_every_flipped_byte_of_states_is_detected_and_never_used(tmp_path: Path) -> None:
    toy.ingest(tmp_path / "toy.sekv", windows=1, model=toy.MIXED)
    assert check_flips(tmp_path / "toy.sekv", stride=64, every=5, ending=states_file(0)) > 160


def test_states_of_other_layers_than_the_manifest_says_are_not_published(
    tmp_path: Path, subtests: pytest.Subtests
) -> None:
    kinds = toy.MIXED.layer_kinds
    for wrong in (("hybrid", "hybrid"), ("full_attention", "hybrid"), ("stateless", "hybrid")):
        states = [toy.chunk(0, 0, index)["state"] for index in range(toy.CHUNKS)]
        model = replace(toy.MIXED, layer_kinds=wrong)
        with subtests.test(wrong=wrong):
            writer = StoreWriter.begin(tmp_path / "toy.sekv", {"wrong": wrong})
            device, host = toy.compress(states, model)
            kept = toy.layer_states(states, replace(model, layer_kinds=kinds))
            if wrong[0] == "hybrid":
                kept = {name: t for name, t in kept.items() if name.startswith("1.")}
            with writer:
                writer.put_document(toy.document(0, 1))
                writer.put_shared({})
                entry = WindowEntry(0, toy.WINDOW, toy.SPANS, 1)
                writer.put_window(0, device, host, entry, kept)
                publish = lambda: writer.publish(**toy.fields(0, 1, model))  # noqa: B023, E731
                assert "the state of layer '0' is" in toy.refuses(publish)


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
        toy.flip(path / name, place, mask)
        try:
            with Store.open(path) as store:
                found = store.verify()
        except StoreError as error:
            found = [str(error)]
        if not any(name.split(".")[0] in line for line in found):
            missed.append((name, place))
        toy.flip(path / name, place, mask)
    assert missed == []


def test_a_cut_file_is_one_line(store: Store, subtests: pytest.Subtests) -> None:
    for name in (DOCUMENT, SHARED, device_file(1), host_file(0)):
        data = (store.path / name).read_bytes()
        for keep in (0, 7, 8, 100, 4095, 4096, -1):
            with subtests.test(name=name, keep=keep):
                (store.path / name).write_bytes(data[:keep])
                found = store.verify()
                assert len(found) == 1
                assert name in found[0]
                toy.refuses(lambda: toy.read_all(store.path))
        (store.path / name).write_bytes(data)


def test_a_grown_file_is_one_line(store: Store) -> None:
    for name in store.manifest.files:
        with (store.path / name).open("ab") as file:
            file.write(b"\0")
    assert len(store.verify()) == len(store.manifest.files)
    toy.refuses(lambda: toy.read_all(store.path))


def test_a_file_cut_while_it_is_open_is_one_line(store: Store) -> None:
    section = store.host(0)
    os.truncate(store.path / host_file(0), 4200)
    assert "cut short" in toy.refuses(lambda: section.read(1, np.arange(3)))


def test_a_missing_file_is_one_line(store: Store) -> None:
    for name in store.manifest.files:
        moved = store.path / "moved"
        (store.path / name).rename(moved)
        assert any(line.startswith(f"{name} is missing") for line in store.verify())
        assert "is missing" in toy.refuses(lambda: toy.read_all(store.path))
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
        toy.refuses(lambda: toy.read_all(one))
        shutil.copy2(tmp_path / "kept", one / name)
    assert toy.read_all(one)


def test_windows_swapped_within_a_store_are_noticed(store: Store) -> None:
    for name in (device_file, host_file):
        first, second = store.path / name(0), store.path / name(1)
        data = first.read_bytes()
        first.write_bytes(second.read_bytes())
        second.write_bytes(data)
    assert len(store.verify()) > 3
    toy.refuses(lambda: store.device(0))
    toy.refuses(lambda: store.host(1).read(0, np.arange(1)))


def test_a_link_is_never_followed_even_to_the_right_bytes(store: Store, tmp_path: Path) -> None:
    for name in [*store.manifest.files, NAME, "windows"]:
        outside = tmp_path / "outside"
        (store.path / name).rename(outside)
        (store.path / name).symlink_to(outside)
        assert f"{name} is a symbolic link" in " ".join(store.verify())
        assert "symbolic link" in toy.refuses(lambda: toy.read_all(store.path))
        (store.path / name).unlink()
        outside.rename(store.path / name)
    assert store.verify() == []


def test_a_link_to_the_store_itself_is_fine(store: Store, tmp_path: Path) -> None:
    link = tmp_path / "link.sekv"
    link.symlink_to(store.path)
    assert toy.read_all(link) == toy.read_all(store.path)


def test_a_pipe_in_the_place_of_a_file_does_not_hang(store: Store) -> None:
    (store.path / SHARED).unlink()
    os.mkfifo(store.path / SHARED)
    assert "no plain file" in toy.refuses(lambda: store.shared())
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


def test_a_hostile_host_section_is_one_line(tmp_path: Path, subtests: pytest.Subtests) -> None:
    """Checksums agree, claims do not: refused by verify and by every read of that layer."""
    for what, change in HOSTILE_HOSTS.items():
        path = tmp_path / f"{what}.sekv"
        toy.ingest(path, windows=1)
        toy.rewrite(path, host_file(0), change)
        with subtests.test(what), Store.open(path) as store:
            found = store.verify()
            assert found
            assert all("\n" not in line for line in found)
            if what != "a layer the model has not":
                toy.refuses(lambda: store.host(0).read(0, np.arange(3)))
