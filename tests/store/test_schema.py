"""Checksums that are right and tensors that are wrong: one line before anything computes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import toy_store as toy
from engine.answer import inspect
from engine.compression import methods as recipes
from engine.compression.spans import Entropy
from engine.errors import SekvError, StoreError
from engine.models.reader import Reader, load_reader
from engine.store.manifest import (
    DOCUMENT,
    NAME,
    SHARED,
    device_file,
    from_bytes,
    from_json,
    host_file,
)
from engine.store.reader import Store
from engine.store.records import span_table_fault, with_span_checks
from engine.store.schema import Schema, recipe_of
from engine.types import AskOptions, Silent
from tiny_books import QUESTION, read, session
from tiny_models import checkpoint

PAPER = replace(
    recipes.METHODS["sekv-paper"], name="paper", segmenter=Entropy(shortest=4), local=16
)
METHODS = ("sekv", "paper", "full")

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def stores(reader: Reader, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same log in three windows, by our method, by the published one, and in full."""
    place = tmp_path_factory.mktemp("stores")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(recipes.METHODS, "paper", PAPER)
        return {
            method: read(
                place / method, Path(reader.identity.id), reader=reader, method=method, window=200
            )
            for method in METHODS
        }


def copy(store: Path, folder: Path) -> Path:
    shutil.copytree(store, folder / "copy.sekv")
    return folder / "copy.sekv"


def one_line(call: Callable[[], object]) -> str:
    with pytest.raises(SekvError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def answer(store: Path, reader: Reader, **options: Any) -> None:
    with session(store, reader, max_new_tokens=2, **options) as opened:
        opened.ask(QUESTION)


def look(store: Path) -> None:
    inspect.inspect(store, options=AskOptions(), progress=Silent())


# ---------------------------------------------------------------------------- every tensor


def twisted(tensor: torch.Tensor) -> dict[str, torch.Tensor | None]:
    """Ways in which a tensor is not what it was."""
    other = torch.int16 if tensor.dtype != torch.int16 else torch.float32
    ways: dict[str, torch.Tensor | None] = {
        "missing": None,
        "of another dtype": tensor.to(other),
        "of one dimension more": tensor[None],
        "longer": torch.cat([tensor, tensor.new_zeros(1, *tensor.shape[1:])]),
    }
    if tensor.dim() > 1:
        ways["wider"] = torch.cat([tensor, tensor[..., :1]], -1)
    if tensor.is_floating_point() and tensor.numel():
        ways["no number"] = tensor.clone().index_put_(
            tuple(torch.tensor([0]) for _ in tensor.shape), torch.tensor(float("nan")).to(tensor)
        )
    return ways


@pytest.mark.parametrize("method", METHODS)
def test_every_tensor_must_look_as_its_recipe_makes_it(
    method: str, stores: dict[str, Path]
) -> None:
    """Missing, of another dtype, shape or number of rows, or NaN: each tensor, each refused."""
    with Store.open(stores[method]) as store:
        shared = store.shared()
        sections = [store.device(window) for window in range(len(store.manifest.windows))]
        schema = Schema.of(store.manifest, recipe_of(store.manifest))
    schema.check_shared(shared)
    schema.check_windows(shared, sections)
    for name, tensor in shared.items():
        for way, wrong in twisted(tensor).items():
            broken = {key: t for key, t in shared.items() if key != name}
            if wrong is not None:
                broken[name] = wrong
            with pytest.raises(StoreError) as caught:
                schema.check_shared(broken)
            assert name.split(".", 1)[1] in str(caught.value), way
    for name, tensor in sections[1].items():
        for way, wrong in twisted(tensor).items():
            section = {key: t for key, t in sections[1].items() if key != name}
            if wrong is not None:
                section[name] = wrong
            with pytest.raises(StoreError) as caught:
                schema.check_windows(shared, [sections[0], section, *sections[2:]])
            assert device_file(1) in str(caught.value), way


@pytest.mark.parametrize("name", ["9.k_mean", "k_mean", "-1.k_mean", "x.k_mean", "0.more"])
def test_a_tensor_that_no_layer_has_is_refused(name: str, stores: dict[str, Path]) -> None:
    with Store.open(stores["sekv"]) as store:
        shared = store.shared() | {name: torch.zeros(1)}
        schema = Schema.of(store.manifest, recipe_of(store.manifest))
    assert name.removeprefix("0.") in one_line(lambda: schema.check_shared(shared))


@pytest.mark.parametrize("bits", [[3] * 16, [4, 8] * 8, [1] * 16 + [0], [4] + [0] * 15, [255] * 16])
def test_widths_that_fill_no_bytes_are_refused(bits: list[int], stores: dict[str, Path]) -> None:
    with Store.open(stores["sekv"]) as store:
        shared = store.shared()
        schema = Schema.of(store.manifest, recipe_of(store.manifest))
    shared["1.k_bits"] = torch.tensor([bits, bits], dtype=torch.uint8)
    assert "k_bits" in one_line(lambda: schema.check_shared(shared))


# ---------------------------------------------------------------------------- whole stores


def put(name: str, make: Callable[[Any], Any]) -> Change:
    return lambda tensors: tensors.update({name: make(tensors[name])})


def at(name: str, place: Any, value: Any) -> Change:
    """The tensor with another value at one place; arrays from files are read-only."""

    def change(tensors: dict[str, Any]) -> None:
        tensors[name] = tensors[name].copy()
        tensors[name][place] = value

    return change


def moved_record(tensors: dict[str, Any]) -> None:
    """A byte of every first head's record counts to the next one; all sums agree."""
    moved = tensors["0.offsets"].copy()
    moved[1::2] += 1
    tensors["0.offsets"] = moved
    _sum_up(tensors)


def one_record_less(tensors: dict[str, Any]) -> None:
    codes, offsets = tensors["1.codes"], tensors["1.offsets"]
    tensors["1.codes"] = codes[: offsets[-2]]
    at("1.offsets", -1, offsets[-2])(tensors)
    _sum_up(tensors)


def wild_marks(tensors: dict[str, Any]) -> None:
    """Ranks no record holds, in every record of a layer."""
    codes, offsets = tensors["0.codes"].copy(), tensors["0.offsets"]
    for start in offsets[:-1]:
        codes[start : start + 4] = np.array([32000, -9], dtype="<i2").view(np.uint8)
    tensors["0.codes"] = codes
    _sum_up(tensors)


def _sum_up(tensors: dict[str, Any]) -> None:
    spans = len(tensors["0.check"])
    plain = {name: t for name, t in tensors.items() if not name.endswith(".check")}
    tensors |= with_span_checks(plain, spans)


HOSTILE: dict[str, tuple[str, str, Change]] = {
    "bounds that fall": ("sekv", device_file(0), at("bounds", 2, 1)),
    "bounds past the end": ("sekv", device_file(1), at("bounds", -1, 10**6)),
    "a kind that is none": ("sekv", device_file(0), at("kind", 1, 9)),
    "surprise that is no number": ("sekv", device_file(0), at("surprisal", 4, np.nan)),
    "no span table": ("sekv", device_file(0), lambda t: t.pop("kind")),
    "a sketch of fewer tokens": ("sekv", device_file(0), put("0.sketch.t", lambda a: a[:, :-1])),
    "a pinned row too many": (
        "sekv",
        device_file(0),
        put("1.pinned_k", lambda a: np.concatenate([a, a], 1)),
    ),
    "a mean key that is no number": ("paper", device_file(0), at("2.mean_key.s", 0, np.inf)),
    "a basis of words": ("sekv", SHARED, put("0.k_basis", lambda a: a.astype(np.int64))),
    "a prefix of two tokens": (
        "sekv",
        SHARED,
        put("0.prefix_k", lambda a: np.concatenate([a, a], 1)),
    ),
    "a head of a thousand": ("paper", SHARED, put("1.size", lambda a: a * 1000)),
    "a record that reaches into the next": ("sekv", host_file(0), moved_record),
    "a raw record that does": ("full", host_file(0), moved_record),
    "a low-rank record that does": ("paper", host_file(0), moved_record),
    "a record that is empty": ("paper", host_file(0), one_record_less),
    "ranks that no record holds": ("paper", host_file(0), wild_marks),
    "a layer without records": (
        "sekv",
        host_file(2),
        lambda t: [t.pop(f"2.{part}") for part in ("codes", "offsets", "check")],
    ),
    "tokens the model has not": ("sekv", DOCUMENT, at("ids", 3, 10**6)),
    "tokens below none": ("sekv", DOCUMENT, at("ids", 3, -1)),
    "tokens outside the text": ("sekv", DOCUMENT, at("ends", -1, 10**6)),
    "places of no integers": ("sekv", DOCUMENT, put("starts", lambda a: a.astype(np.float32))),
    "a source that is not there": ("sekv", DOCUMENT, at("source", 0, 7)),
    "half a text": ("sekv", DOCUMENT, put("text.0", lambda a: a[:30])),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_store_is_one_line(
    what: str, stores: dict[str, Path], reader: Reader, tmp_path: Path
) -> None:
    """Opened, asked in full and looked at: an error of one line, or nothing was amiss."""
    method, name, change = HOSTILE[what]
    store = copy(stores[method], tmp_path)
    toy.rewrite(store, name, change)
    said = one_line(lambda: answer(store, reader, full=True))
    if name != host_file(0):
        assert str(store) in said or "records" in said or "holds no" in said
    if method == "sekv" and what != "half a text":  # the citations alone need the text
        one_line(lambda: answer(store, reader))
    try:
        look(store)
    except SekvError as error:
        assert "\n" not in str(error)  # noqa: PT017


def manifests() -> dict[str, Callable[[dict[str, Any]], object]]:
    return {
        "a prompt of other words": lambda m: m["prompt"].update(prefix=[1, 2, 3]),
        "a prompt of none": lambda m: m["prompt"].pop("prefix"),
        "a prefix that is no list": lambda m: m["prompt"].update(prefix="abc"),
        "a dtype that is none": lambda m: m.update(dtype="int8"),
        "settings of nothing": lambda m: m.update(settings={}),
        "a codec that is no table": lambda m: m["settings"].update(codec=7),
        "bits that are words": lambda m: m["settings"]["codec"].update(bits="many"),
    }


@pytest.mark.parametrize("what", manifests())
def test_a_hostile_manifest_is_one_line(
    what: str, stores: dict[str, Path], reader: Reader, tmp_path: Path
) -> None:
    store = copy(stores["sekv"], tmp_path)
    plain = from_bytes((store / NAME).read_bytes()).to_json()
    manifests()[what](plain)
    (store / NAME).write_bytes(from_json(plain).to_bytes())
    one_line(lambda: answer(store, reader))
    try:
        look(store)
    except SekvError as error:
        assert "\n" not in str(error)  # noqa: PT017


def test_a_table_of_spans_says_what_is_wrong_with_it() -> None:
    good = {
        "bounds": np.array([0, 2, 5], dtype=np.int32),
        "kind": np.array([0, 2], dtype=np.uint8),
        "surprisal": np.ones(5, dtype=np.float16),
    }
    assert span_table_fault(good, 5, 2) == ""
    for name, wrong, said in (
        ("bounds", np.array([0, 5], dtype=np.int32), "for 2 spans"),
        ("bounds", np.array([0, 2, 6], dtype=np.int32), "do not cut 5 tokens"),
        ("bounds", np.array([1, 2, 5], dtype=np.int32), "do not cut 5 tokens"),
        ("bounds", np.array([0, 0, 5], dtype=np.int32), "do not cut 5 tokens"),
        ("bounds", np.array([0.0, 2, 5]), "float64"),
        ("kind", np.array([0, 3], dtype=np.uint8), "none of 3"),
        ("kind", np.array([0, 1], dtype=np.int64), "none of 3"),
        ("surprisal", np.ones(4, dtype=np.float16), "for 5 tokens"),
        ("surprisal", np.array([1, 1, np.inf, 1, 1]), "no number"),
    ):
        assert said in span_table_fault({**good, name: wrong}, 5, 2)
    assert "'kind' is missing" in span_table_fault({"bounds": good["bounds"]}, 5, 2)


def test_verify_checks_the_span_table(stores: dict[str, Path], tmp_path: Path) -> None:
    store = copy(stores["sekv"], tmp_path)
    toy.rewrite(store, device_file(1), at("bounds", 1, 0))
    with Store.open(store) as opened:
        (line,) = opened.verify()
    assert line.startswith(f"{device_file(1)} has span bounds")


def test_a_model_whose_numbers_no_store_can_hold_is_refused(reader: Reader, tmp_path: Path) -> None:
    """Overflow while reading is told at once, and not by the store that came of it."""
    model = checkpoint("llama", tmp_path / "model")
    broken = load_reader(str(model), device="cpu")
    with torch.no_grad():
        broken.model.model.layers[1].self_attn.v_proj.weight.mul_(1e8)
    said = one_line(lambda: read(tmp_path / "store", model, reader=broken))
    assert "layer 1 are no numbers" in said
    assert not (tmp_path / "store" / "log.sekv").exists()


def test_settings_are_json(stores: dict[str, Path]) -> None:
    """What `recipe_of` reads back is what was written, for every method."""
    for method, path in stores.items():
        with Store.open(path) as store:
            again = recipe_of(store.manifest).settings()
            assert again == json.loads(json.dumps(store.manifest.settings)), method
