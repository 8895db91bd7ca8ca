"""The file format of tensors: safetensors, written and parsed by ourselves.

The bytes of one `.safetensors` file as `docs/format.md` narrows them (data section 4 KiB aligned,
largest item first, one checksum per tensor and one for the header), and a strict parser that
believes nothing it reads. Opens no file; torch-free. Any safetensors tool opens what it writes.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

import xxhash

from engine.errors import StoreDamagedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Bytes = bytes | bytearray | memoryview
"""Bytes in any form whose length is their number."""

ALIGNMENT = 4096
"""The data section starts at a multiple of this many bytes, so that direct reads are possible."""

PREFIX = 8
"""Bytes before the header: its length, unsigned, little-endian."""

MAX_HEADER = 100_000_000
"""Longest header accepted, the limit of the safetensors library itself."""

ITEM_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "I64": 8,
    "U64": 8,
    "F64": 8,
}
"""Bytes per item of every dtype a store may hold, under its safetensors name."""


def checksum(data: Bytes) -> str:
    """The xxh3_128 of `data` as 32 lower-case hex digits."""
    return xxhash.xxh3_128_hexdigest(data)


def span_checksum(data: Bytes) -> int:
    """The xxh3_64 of `data`, unsigned."""
    return xxhash.xxh3_64_intdigest(data)


@dataclass(frozen=True)
class Block:
    """One tensor to be written. data: its items, row-major and little-endian."""

    dtype: str
    shape: tuple[int, ...]
    data: Bytes


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies. start/end: bytes from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def bytes(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class Header:
    """What a parsed header says. tensors: in the order of their bytes; data_start in bytes."""

    tensors: dict[str, TensorInfo]
    data_start: int
    data_end: int


@dataclass(frozen=True)
class Encoded:
    """One file ready to be written: `header`, then the data of `order`, nothing between."""

    header: bytes
    order: tuple[str, ...]
    size: int
    tensors: dict[str, str]
    header_checksum: str


def encode(blocks: Mapping[str, Block]) -> Encoded:
    """Lay out one file and take its checksums.

    The order is by item size, largest first, then by name: every tensor is then aligned to its
    own items without holes, which the format forbids. The same blocks give the same bytes.

    Raises:
        ValueError: a block's bytes do not fit its dtype and shape, or its name is not allowed.
    """
    order = tuple(sorted(blocks, key=lambda name: (-ITEM_BYTES[blocks[name].dtype], name)))
    entries: dict[str, Any] = {}
    sums: dict[str, str] = {}
    position = 0
    for name in order:
        block = blocks[name]
        size = len(block.data)
        if not name or name == "__metadata__":
            raise ValueError(f"a tensor cannot be named {name!r}")
        if size != item_count(block.shape) * ITEM_BYTES[block.dtype]:
            raise ValueError(f"{name}: {size} bytes do not fit {block.dtype} {block.shape}")
        entries[name] = {
            "dtype": block.dtype,
            "shape": list(block.shape),
            "data_offsets": [position, position + size],
        }
        sums[name] = checksum(block.data)
        position += size
    text = json.dumps(entries, separators=(",", ":")).encode("ascii")
    if PREFIX + len(text) + ALIGNMENT > MAX_HEADER:
        raise ValueError(f"{len(blocks)} tensors are too many for one file")
    text += b" " * (-(PREFIX + len(text)) % ALIGNMENT)
    header = struct.pack("<Q", len(text)) + text
    return Encoded(header, order, len(header) + position, sums, checksum(header))


def pieces(encoded: Encoded, blocks: Mapping[str, Block]) -> Iterator[Bytes]:
    """The bytes of the file in order: the header, then each tensor."""
    yield encoded.header
    for name in encoded.order:
        yield blocks[name].data


def item_count(shape: tuple[int, ...]) -> int:
    """Items of a tensor of this shape; 1 for a scalar."""
    count = 1
    for side in shape:
        count *= side
    return count


def header_length(prefix: Bytes, file_bytes: int) -> int:
    """Bytes of the header including its 8-byte prefix, from those first 8 bytes.

    Raises:
        StoreError: the file is too short to hold it, or it is over the limit.
    """
    if len(prefix) < PREFIX:
        raise StoreDamagedError("is too short to be a safetensors file")
    (length,) = struct.unpack("<Q", prefix[:PREFIX])
    if length > min(MAX_HEADER, file_bytes - PREFIX):
        raise StoreDamagedError("has a damaged header (its length runs past the file)")
    return PREFIX + int(length)


def parse(header: Bytes, file_bytes: int) -> Header:
    """Parse the whole header, prefix included, of a file of `file_bytes` bytes.

    Raises:
        StoreError: anything the format forbids: bad JSON, unknown dtypes, negative or huge
            shapes, overlaps, holes, bytes missing or left over. The message starts with a verb,
            for the caller to put the file's name before it.
    """
    start = header_length(header, file_bytes)
    try:
        entries = json.loads(bytes(header[PREFIX:start]), object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        raise StoreDamagedError(
            "has a damaged header (not the JSON of a safetensors file)"
        ) from None
    if not isinstance(entries, dict):
        raise StoreDamagedError("has a damaged header (not a table of tensors)")
    entries.pop("__metadata__", None)
    found = {name: _tensor(name, entry, start) for name, entry in entries.items()}
    ordered = dict(sorted(found.items(), key=lambda item: (item[1].start, item[1].end)))
    position = start
    for name, info in ordered.items():
        if info.start != position:
            raise StoreDamagedError(f"has a damaged header (hole or overlap before {name[:80]!r})")
        if (info.start - start) % ITEM_BYTES[info.dtype]:
            raise StoreDamagedError(
                f"has a header of another program ({name[:80]!r} is not aligned)"
            )
        position = info.end
    if position != file_bytes:
        raise StoreDamagedError(f"holds {file_bytes} bytes where its header says {position}")
    return Header(ordered, start, position)


def _tensor(name: str, entry: object, data_start: int) -> TensorInfo:
    wrong = StoreDamagedError(f"has a damaged header (entry of {name[:80]!r})")
    if not isinstance(entry, dict):
        raise wrong
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise wrong
    if not _is_counts(shape) or len(shape) > 8 or not _is_counts(offsets) or len(offsets) != 2:
        raise wrong
    begin, end = offsets
    if end - begin != item_count(tuple(shape)) * ITEM_BYTES[dtype]:
        raise wrong
    return TensorInfo(dtype, tuple(shape), data_start + begin, data_start + end)


def _is_counts(value: object) -> TypeGuard[list[int]]:
    """A list of integers that can be sizes of something on this earth; True is no integer."""
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**60 for n in value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name stands twice")
    return table
