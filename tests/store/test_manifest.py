"""The manifest: what was written comes back, and a hostile one is one line."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import StoreDamagedError, StoreError
from engine.store.container import checksum
from engine.store.manifest import (
    DEEPEST,
    DOCUMENT,
    FORMAT,
    SHARED,
    FileEntry,
    Manifest,
    ModelIdentity,
    SourceEntry,
    WindowEntry,
    device_file,
    from_bytes,
    from_json,
    host_file,
    states_file,
)

SUM = "0123456789abcdef0123456789abcdef"
FILE = FileEntry(4100, {"t": SUM}, SUM)

MANIFEST = Manifest(
    creator="sekv 0.1.0",
    model=ModelIdentity(
        id="toy/model",
        revision="",
        architecture="ToyForCausalLM",
        weights="aa" * 16,
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=8,
        rope={"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192},
        tokenizer="bb" * 16,
        transformers="5.17.0",
    ),
    method="sekv",
    settings={"alpha": 1.5, "nested": {"checksum": "0" * 32, "list": [1, None, True, "é"]}},
    dtype="bfloat16",
    prompt={"prefix": [1, 2, 3], "checksum": "0" * 32},
    tokens=30,
    tokenizer_engine="tokenizers",
    window_tokens=20,
    sources=(
        SourceEntry(
            "bücher/a.pdf",
            "pdf",
            "cc" * 32,
            70,
            (("i", 0), ("1", 0), ("2", 70)),
            ("note",),
            (1, 2, 3),
            printed=("", "5", "6"),
            imprint={"title": "Bücher"},
        ),
        SourceEntry("-", "stdin", "dd" * 32, 0),
    ),
    windows=(WindowEntry(0, 20, 4, 2), WindowEntry(20, 30, 0, 0)),
    files=dict.fromkeys(
        (DOCUMENT, SHARED, device_file(0), host_file(0), device_file(1), host_file(1)), FILE
    ),
)


PARTLY_READ = replace(
    MANIFEST,
    files={name: FILE for name in MANIFEST.files if "00001" not in name},
    unread=(1,),
)


def sealed(plain: dict[str, Any]) -> bytes:
    """The bytes a hostile program would write: any claims under a checksum that agrees."""
    blank = json.dumps({**plain, "checksum": "0" * 32}, indent=1).encode()
    line = b'\n "checksum": "%s"'
    return blank.replace(line % (b"0" * 32), line % checksum(blank).encode(), 1)


def refuses(data: bytes) -> str:
    with pytest.raises(StoreError) as caught:
        from_bytes(data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_manifest_comes_back_as_it_was() -> None:
    assert from_bytes(MANIFEST.to_bytes()) == MANIFEST
    assert from_json(MANIFEST.to_json()) == MANIFEST
    assert from_bytes(PARTLY_READ.to_bytes()) == PARTLY_READ


def test_only_a_partly_read_store_has_format_2() -> None:
    """A store that is whole stays as it ever was, for every reader of format 1."""
    whole, partly = (json.loads(each.to_bytes()) for each in (MANIFEST, PARTLY_READ))
    assert (whole["format"], "unread" in whole) == (1, False)
    assert (partly["format"], partly["unread"]) == (2, [1])
    assert (PARTLY_READ.read, PARTLY_READ.tokens_read) == ((0,), 20)
    whole["unread"] = [1]  # means nothing in format 1
    assert from_json(whole) == MANIFEST


def test_the_same_manifest_is_the_same_bytes_in_any_order_of_keys() -> None:
    turned = replace(
        MANIFEST,
        settings=dict(reversed(MANIFEST.settings.items())),
        files=dict(reversed(MANIFEST.files.items())),
    )
    assert turned.to_bytes() == MANIFEST.to_bytes()
    assert MANIFEST.to_bytes().isascii()


def test_spans_and_anchors_are_counted_over_windows() -> None:
    assert (MANIFEST.spans, MANIFEST.anchors) == (4, 2)


def test_the_checksum_is_what_the_format_says() -> None:
    """A stranger computes it: the file with the 32 digits of its own line set to zero."""
    data = MANIFEST.to_bytes()
    stated = json.loads(data)["checksum"].encode()
    line = b'\n "checksum": "%s"'
    assert data.count(line % stated) == 1
    assert checksum(data.replace(line % stated, line % (b"0" * 32))).encode() == stated


def test_every_single_changed_byte_is_noticed() -> None:
    data = bytearray(MANIFEST.to_bytes())
    for place in range(len(data)):
        for mask in (0x01, 0x20, 0x80):
            data[place] ^= mask
            refuses(bytes(data))
            data[place] ^= mask


@pytest.mark.parametrize("cut", [0, 1, 100, -1])
def test_a_cut_manifest_is_damaged(cut: int) -> None:
    """And says what to do, as every line about damage."""
    said = refuses(MANIFEST.to_bytes()[:cut])
    assert "damaged" in said
    assert said.endswith(StoreDamagedError.advice)


def test_keys_that_this_version_does_not_know_are_passed_over() -> None:
    plain = MANIFEST.to_json()
    plain["later"] = {"a": [1]}
    plain["model"]["later"] = 1
    plain["files"][DOCUMENT]["later"] = None
    assert from_bytes(sealed(plain)) == MANIFEST


def test_a_newer_format_says_so_before_anything_else_is_believed() -> None:
    message = refuses(json.dumps({"format": FORMAT + 1, "anything": []}).encode())
    assert f"format {FORMAT + 1}" in message
    assert "newer sekv" in message


def set_at(plain: Any, path: tuple[Any, ...], value: Any) -> None:
    for step in path[:-1]:
        plain = plain[step]
    plain[path[-1]] = value


HOSTILE: list[tuple[tuple[Any, ...], Any]] = [
    (("format",), True),
    (("format",), 0),
    (("format",), "1"),
    (("creator",), None),
    (("tokens",), -30),
    (("tokens",), 31),
    (("tokens",), 2**80),
    (("tokens",), 30.0),
    (("window_tokens",), True),
    (("settings",), [1]),
    (("prompt",), "1 2 3"),
    (("model",), []),
    (("model", "layers"), 0),
    (("model", "kv_heads"), -1),
    (("model", "weights"), "not hex"),
    (("model", "rope"), None),
    (("sources",), {}),
    (("sources", 0), None),
    (("sources", 0, "chars"), -1),
    (("sources", 0, "pages"), [["1", -1]]),
    (("sources", 0, "pages"), [["1", 71]]),
    (("sources", 0, "pages"), [["1", 5], ["2", 4]]),
    (("sources", 0, "pages"), [[1, 5]]),
    (("sources", 0, "pages"), [["1"]]),
    (("sources", 0, "pages"), ["ab"]),
    (("sources", 0, "notes"), [1]),
    (("sources", 0, "sheets"), [1, 2]),
    (("sources", 0, "sheets"), [1, 2, 0]),
    (("sources", 0, "sheets"), [1, 2, "3"]),
    (("sources", 0, "printed"), ["1", "2"]),
    (("sources", 0, "printed"), [1, 2, 3]),
    (("sources", 0, "imprint"), ["Anna"]),
    (("sources", 0, "imprint"), {"author": 7}),
    (("sources", 0, "sha256"), "../../x"),
    (("windows",), []),
    (("windows", 0, "start"), 1),
    (("windows", 0, "end"), 19),
    (("windows", 0, "end"), 0),
    (("windows", 0, "spans"), 21),
    (("windows", 0, "anchors"), -1),
    (("windows", 1, "start"), 21),
    (("windows", 1, "end"), 2**70),
    (("files",), []),
    (("files",), {}),
    (("files", "../../etc/passwd"), MANIFEST.to_json()["files"][DOCUMENT]),
    (("files", "/etc/passwd"), MANIFEST.to_json()["files"][DOCUMENT]),
    (("files", "windows/../x"), MANIFEST.to_json()["files"][DOCUMENT]),
    (("files", "windows/00002.host.safetensors"), MANIFEST.to_json()["files"][DOCUMENT]),
    (("files", DOCUMENT, "bytes"), -1),
    (("files", DOCUMENT, "bytes"), 1e9),
    (("files", DOCUMENT, "tensors"), {"t": "0"}),
    (("files", DOCUMENT, "tensors"), {"t": SUM.upper()}),
    (("files", DOCUMENT, "tensors"), [SUM]),
    (("files", DOCUMENT, "header"), SUM + "\n"),
    (("settings", "x"), float("nan")),
    (("settings", "x"), float("inf")),
]

STATES = FileEntry(100, {"0.conv.0": SUM}, SUM)
MIXED = replace(
    MANIFEST,
    model=replace(MANIFEST.model, layer_kinds=("linear_attention", "full_attention")),
    files=MANIFEST.files | {states_file(0): STATES, states_file(1): STATES},
)
HOSTILE_KINDS: list[tuple[tuple[Any, ...], Any]] = [
    (("format",), 1),
    (("model", "layer_kinds"), "full_attention"),
    (("model", "layer_kinds"), ["full_attention"]),
    (("model", "layer_kinds"), ["full_attention", "full_attention"]),
    (("model", "layer_kinds"), ["linear_attention", "sliding_attention"]),
    (("model", "layer_kinds"), ["full_attention", "mamba"]),
    (("model", "layer_kinds"), ["full_attention", ["hybrid"]]),
    (("model", "layer_kinds"), ["full_attention", "stateless"]),  # then nothing has a state
    (("model", "layers"), 3),
    (("files", "windows/00002.states.safetensors"), MANIFEST.to_json()["files"][DOCUMENT]),
]


def test_layers_of_other_kinds_come_back_and_make_the_format_2() -> None:
    assert from_bytes(MIXED.to_bytes()) == MIXED
    assert (MANIFEST.format, MIXED.format) == (1, 2)
    assert MIXED.model.memory_layers == (1,)
    assert MIXED.model.state_layers == (0,)
    assert MANIFEST.model.memory_layers == (0, 1)


def test_a_cache_of_other_rows_comes_back_and_makes_the_format_2() -> None:
    other = replace(MANIFEST, model=replace(MANIFEST.model, cached=9))
    assert from_bytes(other.to_bytes()) == other
    assert other.format == 2
    assert other.model.numbers_per_token == 2 * 9
    assert "cached" not in MANIFEST.to_json()["model"]


def test_the_length_that_keys_were_rotated_for_comes_back_and_makes_the_format_2(
    subtests: pytest.Subtests,
) -> None:
    long = replace(MANIFEST, context=4096)
    assert from_bytes(long.to_bytes()) == long
    assert (MANIFEST.context, long.format) == (0, 2)
    assert "context" not in MANIFEST.to_json()
    for path, value in ((("format",), 1), (("context",), 0), (("context",), 9.0)):
        with subtests.test(path=path, value=value):
            plain = copy.deepcopy(long.to_json())
            set_at(plain, path, value)
            refuses(sealed(plain))


def test_an_impossible_claim_about_layers_is_one_line(subtests: pytest.Subtests) -> None:
    for path, value in HOSTILE_KINDS:
        with subtests.test(path=path, value=value):
            plain = copy.deepcopy(MIXED.to_json())
            set_at(plain, path, value)
            refuses(sealed(plain))


HOSTILE_OF_PARTLY_READ: list[tuple[tuple[Any, ...], Any]] = [
    (("format",), 1),
    (("unread",), []),
    (("unread",), None),
    (("unread",), [2]),
    (("unread",), [-1]),
    (("unread",), [True]),
    (("unread",), [1.0]),
    (("unread",), [1, 1]),
    (("unread",), [0]),
    (("unread",), [0, 1]),
    (("unread",), [2**80]),
    (("windows", 1, "spans"), 1),
    (("windows", 1, "anchors"), 1),
    (("files", device_file(1)), MANIFEST.to_json()["files"][DOCUMENT]),
    (("files", device_file(0)), None),
]


def test_an_impossible_claim_of_a_partly_read_store_is_one_line(
    subtests: pytest.Subtests,
) -> None:
    for path, value in HOSTILE_OF_PARTLY_READ:
        with subtests.test(path=path, value=value):
            plain = copy.deepcopy(PARTLY_READ.to_json())
            set_at(plain, path, value)
            refuses(sealed(plain))
    unsorted = replace(MANIFEST, windows=(*MANIFEST.windows, WindowEntry(30, 31, 0, 0)), tokens=31)
    plain = replace(unsorted, files={DOCUMENT: FILE, SHARED: FILE}, unread=(2, 1)).to_json()
    refuses(sealed(plain))


def test_an_impossible_claim_is_one_line(subtests: pytest.Subtests) -> None:
    for path, value in HOSTILE:
        with subtests.test(path=path, value=value):
            plain = copy.deepcopy(MANIFEST.to_json())
            set_at(plain, path, value)
            refuses(sealed(plain))


REQUIRED = sorted(set(MANIFEST.to_json()) - {"checksum"})


def test_every_key_is_needed(subtests: pytest.Subtests) -> None:
    for key in REQUIRED:
        with subtests.test(key=key):
            plain = MANIFEST.to_json()
            del plain[key]
            refuses(sealed(plain))


def test_nesting_and_numbers_without_end_are_one_line() -> None:
    refuses(b"[" * 200_000)
    refuses(b'{"format": 1, "settings": ' + b'{"a":' * 900 + b"1" + b"}" * 900 + b"}")
    refuses(b'{"format": ' + b"9" * 10_000 + b"}")
    deep: dict[str, Any] = {}
    for _ in range(DEEPEST):
        deep = {"a": deep}
    refuses(sealed({**MANIFEST.to_json(), "settings": deep}))
    assert from_bytes(sealed({**MANIFEST.to_json(), "settings": deep["a"]})).settings == deep["a"]


def test_what_json_cannot_hold_is_not_written() -> None:
    for bad in ({"x": object()}, {"x": float("nan")}, {"x": {1, 2}}):
        with pytest.raises(StoreError, match="manifest"):
            replace(MANIFEST, settings=bad).to_bytes()
    with pytest.raises(StoreError, match="tokens"):
        replace(MANIFEST, tokens=-1).to_bytes()


def paths(plain: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a tree of JSON."""
    inner = plain.items() if isinstance(plain, dict) else enumerate(plain)
    found = [at] if at else []
    if isinstance(plain, dict | list):
        for key, value in inner:
            found += paths(value, (*at, key)) if isinstance(value, dict | list) else [(*at, key)]
    return found


PATHS = paths(MANIFEST.to_json())
JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 40),
        st.integers(),
        st.floats(),
        st.text(max_size=8),
        st.just(SUM),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


def keeps_every_promise(manifest: Manifest) -> bool:
    """What the rest of the program relies on without looking again."""
    chars = [source.chars for source in manifest.sources]
    ends = [window.end for window in manifest.windows]
    return (
        all(
            0 <= page[1] <= n
            for s, n in zip(manifest.sources, chars, strict=True)
            for page in s.pages
        )
        and ends == sorted(ends)
        and ends[-1] == manifest.tokens
        and all(window.start < window.end for window in manifest.windows)
        and all(not name.startswith("/") and ".." not in name for name in manifest.files)
        and all(entry.bytes >= 0 for entry in manifest.files.values())
        and min(manifest.model.layers, manifest.model.heads, manifest.model.kv_heads) > 0
    )


def survives(changes: list[tuple[tuple[Any, ...], Any]]) -> None:
    plain = copy.deepcopy(MANIFEST.to_json())
    for path, value in changes:
        try:
            set_at(plain, path, value)
        except (KeyError, IndexError, TypeError):
            continue
    try:
        manifest = from_bytes(sealed(plain))
    except StoreError as error:
        refused = str(error)
    else:
        assert keeps_every_promise(manifest)
        return
    assert "\n" not in refused


CHANGES = st.lists(st.tuples(st.sampled_from(PATHS), JSON), min_size=1, max_size=3)


@given(CHANGES)
def test_mutated_claims_are_refused_or_keep_every_promise(
    changes: list[tuple[tuple[Any, ...], Any]],
) -> None:
    survives(changes)


@pytest.mark.slow
@settings(max_examples=10_000)
@given(CHANGES)
def test_many_mutated_claims_are_refused_or_keep_every_promise(
    changes: list[tuple[tuple[Any, ...], Any]],
) -> None:
    survives(changes)


@given(st.binary(max_size=300))
def test_no_bytes_make_the_reader_of_manifests_stumble(data: bytes) -> None:
    refuses(data)


def test_manifest_and_container_need_neither_torch_nor_numpy() -> None:
    program = "import sys, engine.store.manifest, engine.store.container; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert not {"torch", "numpy", "safetensors"} & set(done.stdout.split())
