"""The tables of a host section: where each span's record lies and what it must sum to.

What it is: the one rule about `{layer}.codes`, `{layer}.offsets` and `{layer}.check`, for the side
that writes and the sides that read. What it is not: it reads and writes nothing. torch-free.
"""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING

import numpy as np

from engine.container import span_checksum
from engine.store.tensors import to_block

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy.typing as npt

    from engine.store.tensors import Array

PARTS = ("codes", "offsets", "check")

_NAME = re.compile(r"(0|[1-9][0-9]{0,5})\.(codes|offsets|check)")


def layers_of(names: Iterable[str]) -> dict[int, set[str]]:
    """Which of `PARTS` each layer has, by layer.

    Raises:
        ValueError: a name that a host section cannot hold.
    """
    layers: dict[int, set[str]] = {}
    for name in names:
        match = _NAME.fullmatch(name)
        if match is None:
            raise ValueError(f"a host section cannot hold {name[:80]!r}")
        layers.setdefault(int(match[1]), set()).add(match[2])
    return dict(sorted(layers.items()))


def table_fault(
    offsets: npt.NDArray[np.int64], sums: npt.NDArray[np.int64], code_bytes: int, spans: int
) -> str:
    """What is wrong with the tables of one layer, "" when nothing is.

    Args:
        offsets: [S*Hkv+1] bytes into the codes.  sums: [S] checksums of the records.
        code_bytes: length of the codes.  spans: S.
    """
    if sums.size != spans:
        return f"{sums.size} span checksums for {spans} spans"
    records, rest = divmod(offsets.size - 1, max(spans, 1))
    if rest or records < 0 or bool(records) != bool(spans):
        return f"{offsets.size} offsets for {spans} spans"
    if offsets[0] != 0 or offsets[-1] != code_bytes or bool((np.diff(offsets) < 0).any()):
        return "offsets that leave the codes"
    return ""


def span_bounds(offsets: npt.NDArray[np.int64], spans: int) -> npt.NDArray[np.int64]:
    """[S+1] where each span's record begins and the last ends, all KV heads of a span adjacent."""
    heads = (offsets.size - 1) // spans if spans else 1
    return offsets[::heads]


def with_span_checks(host: Mapping[str, Array], spans: int) -> dict[str, Array]:
    """Add `{layer}.check` to every layer of a host section: the xxh3_64 of each span's bytes.

    Args:
        host: `{layer}.codes` uint8 [bytes] and `{layer}.offsets` int64 [S*Hkv+1].
        spans: S.
    Raises:
        ValueError: names, dtypes, lengths or offsets that do not belong together.
    """
    result: dict[str, Array] = dict(host)
    for layer, parts in layers_of(host).items():
        if parts != {"codes", "offsets"}:
            raise ValueError(f"layer {layer}: give codes and offsets and nothing else")
        codes, offsets = to_block(host[f"{layer}.codes"]), to_block(host[f"{layer}.offsets"])
        if codes.dtype != "U8" or offsets.dtype != "I64" or len(codes.shape) != 1:
            raise ValueError(f"layer {layer}: codes must be uint8 [bytes], offsets int64")
        table = np.frombuffer(offsets.data, dtype="<i8")
        fault = table_fault(table, np.zeros(spans, dtype=np.int64), len(codes.data), spans)
        if fault:
            raise ValueError(f"layer {layer}: {fault}")
        bounds = span_bounds(table, spans).tolist()
        sums = [span_checksum(codes.data[start:end]) for start, end in itertools.pairwise(bounds)]
        result[f"{layer}.check"] = np.array(sums, dtype="<u8").view("<i8")
    return result
