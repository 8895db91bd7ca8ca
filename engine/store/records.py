"""The tables of a window: its spans, where each span's record lies and what it must sum to.

The one rule about `bounds`, `kind` and `surprisal` of a device section and about `{layer}.codes`,
`{layer}.offsets` and `{layer}.check` of a host section, for the side that writes and the sides that
read. torch-free.
"""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING

import numpy as np

from engine.store.container import span_checksum
from engine.store.tensors import to_block

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    import numpy.typing as npt

    from engine.store.tensors import Array

PARTS = ("codes", "offsets", "check")
SPAN_TABLE = ("bounds", "kind", "surprisal")

_KINDS = 3

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


def span_table_fault(tables: Mapping[str, npt.NDArray[Any]], tokens: int, spans: int) -> str:
    """What is wrong with the span table of a window, "" when nothing is.

    Args:
        tables: `bounds` int32 or int64 [S+1], `kind` uint8 [S], `surprisal` floats [n] by name.
        tokens: n.  spans: S.
    """
    missing = [name for name in SPAN_TABLE if name not in tables]
    if missing:
        return f"no span table ({missing[0]!r} is missing)"
    bounds, kind, surprisal = (tables[name] for name in SPAN_TABLE)
    if bounds.dtype not in (np.int32, np.int64) or bounds.shape != (spans + 1,):
        return f"span bounds {bounds.dtype} {list(bounds.shape)} for {spans} spans"
    if bounds[0] != 0 or bounds[-1] != tokens or bool((np.diff(bounds.astype(np.int64)) < 1).any()):
        return f"span bounds that do not cut {tokens} tokens"
    if kind.dtype != np.uint8 or kind.shape != (spans,) or bool((kind >= _KINDS).any()):
        return f"kinds of spans that are none of {_KINDS}, one per span"
    if surprisal.dtype.kind != "f" or surprisal.shape != (tokens,):
        return f"surprisal {surprisal.dtype} {list(surprisal.shape)} for {tokens} tokens"
    return "" if bool(np.isfinite(surprisal).all()) else "surprisal that is no number"


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
