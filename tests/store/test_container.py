"""The container: any safetensors tool reads it, and nothing hostile gets through it."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import StoreError
from engine.store import container
from engine.store.container import Block, Header
from engine.store.tensors import to_block, to_blocks, to_numpy, to_torch

if TYPE_CHECKING:
    from pathlib import Path

DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.int16,
    torch.uint16,
    torch.float16,
    torch.bfloat16,
    torch.int32,
    torch.uint32,
    torch.float32,
    torch.int64,
    torch.uint64,
    torch.float64,
]


def file_bytes(tensors: dict[str, Any]) -> bytes:
    blocks = to_blocks(tensors)
    return b"".join(bytes(piece) for piece in container.pieces(container.encode(blocks), blocks))


def with_header(entries: object, data: bytes = b"") -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


def test_safetensors_reads_every_dtype_that_we_write(tmp_path: Path) -> None:
    """The files are safetensors files for the whole world, not only for us."""
    tensors = {
        f"t{i}": torch.arange(i + 1).remainder(2).to(dtype).reshape(1, i + 1)
        for i, dtype in enumerate(DTYPES)
    }
    path = tmp_path / "all.safetensors"
    path.write_bytes(file_bytes(tensors))
    read = safetensors.torch.load_file(path)
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert read[name].view(torch.uint8).tolist() == tensor.view(torch.uint8).tolist()


def test_our_parser_finds_what_safetensors_writes() -> None:
    """A header by the library itself, metadata and all, means the same to us."""
    tensors = {"b": torch.arange(6, dtype=torch.int32).reshape(2, 3), "a": torch.ones(3).bfloat16()}
    data = safetensors.torch.save(tensors, metadata={"who": "somebody"})
    header = container.parse(data, len(data))
    for name, info in header.tensors.items():
        part = torch.frombuffer(bytearray(data[info.start : info.end]), dtype=torch.uint8)
        assert torch.equal(to_torch(part, info), tensors[name])


def test_data_starts_at_a_page_and_every_tensor_is_aligned_to_its_items() -> None:
    data = file_bytes(
        {"a": np.zeros(3, np.uint8), "b": np.zeros(5, np.int64), "c": np.ones((), np.float16)}
    )
    header = container.parse(data, len(data))
    assert header.data_start % container.ALIGNMENT == 0
    assert list(header.tensors) == ["b", "c", "a"]
    for info in header.tensors.values():
        assert info.start % container.ITEM_BYTES[info.dtype] == 0


def test_the_order_in_which_tensors_are_given_does_not_change_a_byte() -> None:
    one, two = np.arange(4), np.ones(3, np.float32)
    assert file_bytes({"x": one, "y": two}) == file_bytes({"y": two, "x": one})


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (1, 1)])
def test_scalars_and_empty_tensors_come_back(shape: tuple[int, ...]) -> None:
    tensor = torch.zeros(shape, dtype=torch.bfloat16)
    data = file_bytes({"t": tensor, "other": np.ones(2)})
    info = container.parse(data, len(data)).tensors["t"]
    back = to_torch(
        torch.frombuffer(bytearray(data), dtype=torch.uint8)[info.start : info.end], info
    )
    assert torch.equal(back, tensor)
    assert "t" in safetensors.torch.load(data)


def test_a_file_without_tensors_is_a_file() -> None:
    data = file_bytes({})
    assert container.parse(data, len(data)).tensors == {}
    assert safetensors.torch.load(data) == {}


def test_strided_and_grad_tensors_are_written_as_their_values() -> None:
    base = torch.arange(12, dtype=torch.float32).reshape(3, 4).requires_grad_()
    assert bytes(to_block(base.t()).data) == base.detach().t().contiguous().numpy().tobytes()
    array = np.arange(6).reshape(2, 3).T
    assert bytes(to_block(array).data) == array.tobytes()
    big_endian = np.arange(3, dtype=">i4")
    assert bytes(to_block(big_endian).data) == big_endian.astype("<i4").tobytes()


@pytest.mark.parametrize("array", [torch.zeros(2, dtype=torch.complex64), np.zeros(2, "U3")])
def test_a_dtype_no_store_can_hold_is_refused(array: Any) -> None:
    with pytest.raises(ValueError, match="cannot hold"):
        to_block(array)


def test_numpy_cannot_view_bfloat16_and_says_so() -> None:
    block = to_block(torch.zeros(2, dtype=torch.bfloat16))
    info = container.TensorInfo(block.dtype, block.shape, 0, 4)
    with pytest.raises(ValueError, match="BF16"):
        to_numpy(np.zeros(4, np.uint8), info)


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("", Block("U8", (1,), b"x")),
        ("__metadata__", Block("U8", (1,), b"x")),
        ("t", Block("U8", (2,), b"x")),
        ("t", Block("I32", (1,), b"x")),
    ],
)
def test_blocks_that_cannot_be_are_not_written(name: str, block: Block) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        container.encode({name: block})


def entry(dtype: Any = "U8", shape: Any = (4,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


HOSTILE = {
    "too short": b"\x00\x00",
    "header past the end": struct.pack("<Q", 1000) + b"{}",
    "header length of 2**64 - 1": struct.pack("<Q", 2**64 - 1) + b"{}",
    "not JSON": with_header(b"{"),
    "not UTF-8": with_header(b"\xff\xfe"),
    "a list": with_header([]),
    "deeply nested": with_header(b"[" * 100_000),
    "an endless number": with_header(b'{"t":' + b"9" * 5000 + b"}"),
    "a name twice": with_header(
        b'{"t":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},'
        b'"t":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
    ),
    "entry not a table": with_header({"t": 3}),
    "unknown dtype": with_header({"t": entry(dtype="C64")}, bytes(4)),
    "dtype of another type": with_header({"t": entry(dtype=["U8"])}, bytes(4)),
    "negative side": with_header({"t": entry(shape=[-4])}, bytes(4)),
    "two negative sides": with_header({"t": entry(shape=[-2, -2])}, bytes(4)),
    "huge side": with_header({"t": entry(shape=[2**63])}, bytes(4)),
    "fractional side": with_header({"t": entry(shape=[4.0])}, bytes(4)),
    "true as a side": with_header({"t": entry(shape=[True], offsets=[0, 1])}, bytes(1)),
    "many sides": with_header({"t": entry(shape=[4] + [1] * 50)}, bytes(4)),
    "no shape": with_header({"t": {"dtype": "U8", "data_offsets": [0, 4]}}, bytes(4)),
    "negative offsets": with_header({"t": entry(offsets=[-4, 0])}, bytes(4)),
    "falling offsets": with_header({"t": entry(shape=[0], offsets=[4, 0])}, bytes(4)),
    "three offsets": with_header({"t": entry(offsets=[0, 4, 4])}, bytes(4)),
    "size against shape": with_header({"t": entry(shape=[3])}, bytes(4)),
    "hole": with_header({"t": entry(offsets=[2, 6])}, bytes(6)),
    "overlap": with_header({"t": entry(), "u": entry(offsets=[2, 6])}, bytes(6)),
    "data missing": with_header({"t": entry()}, bytes(3)),
    "data left over": with_header({"t": entry()}, bytes(5)),
    "items not aligned": with_header(
        {"t": entry(shape=[1], offsets=[0, 1]), "u": entry("I64", [1], [1, 9])}, bytes(9)
    ),
}


def test_a_hostile_header_is_one_line(subtests: pytest.Subtests) -> None:
    for what, data in HOSTILE.items():
        with subtests.test(what):
            with pytest.raises(StoreError) as caught:
                container.parse(data, len(data))
            assert "\n" not in str(caught.value)


def parse_or_refuse(data: bytes) -> Header | None:
    try:
        return container.parse(data, len(data))
    except StoreError:
        return None


@given(st.binary(max_size=200))
def test_no_bytes_make_the_parser_stumble(data: bytes) -> None:
    parse_or_refuse(data)


SIDES = st.one_of(st.integers(-2, 5), st.integers(), st.booleans(), st.none(), st.floats())
JSON = st.recursive(
    st.one_of(SIDES, st.text(max_size=5), st.sampled_from(list(container.ITEM_BYTES))),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__", "t"]), inner
        ),
    ),
    max_leaves=12,
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.one_of(st.sampled_from(list(container.ITEM_BYTES)), JSON),
        "shape": st.one_of(st.lists(st.integers(0, 3), max_size=3), JSON),
        "data_offsets": st.one_of(st.lists(st.integers(0, 16), min_size=2, max_size=2), JSON),
    }
)


@given(st.one_of(JSON, st.dictionaries(st.text(max_size=3), ENTRY)), st.binary(max_size=20))
def test_whatever_json_says_tensors_lie_within_the_file(entries: Any, rest: bytes) -> None:
    """Accepted means: every tensor inside the data, in order, touching, aligned, of its size."""
    data = with_header(entries, rest)
    header = parse_or_refuse(data)
    if header is None:
        return
    position = header.data_start
    for info in header.tensors.values():
        assert info.start == position
        assert (info.start - header.data_start) % container.ITEM_BYTES[info.dtype] == 0
        assert info.bytes == container.item_count(info.shape) * container.ITEM_BYTES[info.dtype]
        position = info.end
    assert position == len(data)
