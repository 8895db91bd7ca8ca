"""Reads back a recorded answer, a line of `ask --trace`, and checks it against its store.

Torch-free. `trace` records it.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from engine.errors import SekvError
from engine.store.manifest import Manifest
from engine.types import Citation, Move, Recorded, WindowRead, ZoomView

ZOOM = {"span": int, "layer": int, "kv_head": int, "step": int, "score": float, "weight": float}
MOVE = dict.fromkeys(("layer", "step", "fetched_bytes", "fetched_spans", "reused_spans"), int)
CITATION = {"source": str, "page": str, "start": int, "end": int, "text": str, "weight": float}


PACKED = ".gz"
"""Ending of a trace file that is compressed."""


def line(trace: Mapping[str, Any]) -> str:
    """A recorded answer as a line of a trace file: decisions in columns, shares to four digits.

    An answer makes a decision for every head and step and span in use; written out one by one they
    take five times as much.
    """
    columns: dict[str, list[Any]] = {name: [] for name in ZOOM}
    for entry in trace["zoom"]:
        for name, column in columns.items():
            value = entry[name]
            column.append(float(f"{value:.4g}") if isinstance(value, float) else value)
    return json.dumps({**trace, "zoom": columns}, separators=(",", ":"))


def read(path: Path, manifest: Manifest) -> Recorded:
    """The last question of a trace file.

    Raises:
        SekvError: not a trace, or one of another store.
    """
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == PACKED else raw).decode("utf-8")
        return parse(json.loads(text.rstrip().rpartition("\n")[2]), manifest)
    except KeyError as error:
        raise SekvError(f"{path} is not a trace of `sekv ask --trace`: it has no {error}") from None
    except _Foreign as error:
        raise SekvError(f"{path} is a trace of another store: {error}") from None
    except (
        OSError,
        EOFError,
        zlib.error,
        ValueError,
        LookupError,
        TypeError,
        ArithmeticError,
        RecursionError,
    ) as error:
        raise SekvError(f"{path} is not a trace of `sekv ask --trace` ({error})") from None


def parse(trace: Mapping[str, Any], manifest: Manifest) -> Recorded:
    """One recorded answer from its JSON values.

    Raises:
        ValueError, LookupError, TypeError, ArithmeticError: not a trace, or one of another store.
    """
    recorded = Recorded(
        question=str(trace["question"]),
        answer=str(trace["answer"]),
        remark=str(trace.get("remark", "")),
        said=tuple(str(piece) for piece in trace["said"]),
        citations=tuple(
            Citation(
                **_typed(entry, CITATION),
                sheet=str(entry.get("sheet", "")),
                printed=str(entry.get("printed", "")),
            )
            for entry in trace["citations"]
        ),
        moves=tuple(Move(**_typed(entry, MOVE)) for entry in trace["moves"]),
        zoom=tuple(ZoomView(**_typed(entry, ZOOM)) for entry in _entries(trace["zoom"])),
        retrieval=tuple(_window(entry) for entry in trace.get("retrieval", ())),
        resident={str(kind): int(size) for kind, size in dict(trace.get("resident", {})).items()},
    )
    sources = [source.sha256 for source in manifest.sources]
    if (trace["weights"], trace["sources"]) != (manifest.model.weights, sources):
        raise _Foreign("its sources or model differ")
    if trace.get("spans", manifest.spans) != manifest.spans:
        raise _Foreign("more of the document was read since, and its spans have other numbers")
    layers, heads = manifest.model.layers, manifest.model.kv_heads
    if any(not 0 <= z.span < manifest.spans for z in recorded.zoom):
        raise _Foreign("it names spans this one lacks")
    if any(not 0 <= each.window < len(manifest.windows) for each in recorded.retrieval):
        raise _Foreign("it names windows this one lacks")
    if any(not (0 <= z.layer < layers and 0 <= z.kv_head < heads) for z in recorded.zoom):
        raise _Foreign("it names layers or heads this one lacks")
    if any(not 0 <= z.step <= len(recorded.said) for z in recorded.zoom):
        raise ValueError("it names steps of which nothing was said")
    return recorded


def _entries(zoom: Any) -> Iterable[Mapping[str, Any]]:
    """Decisions one by one, from columns or as they were recorded."""
    if not isinstance(zoom, Mapping):
        return list(zoom)
    return [
        dict(zip(ZOOM, values, strict=True))
        for values in zip(*(zoom[name] for name in ZOOM), strict=True)
    ]


class _Foreign(ValueError):
    """A trace, but of another store."""


def _window(entry: Mapping[str, Any]) -> WindowRead:
    lexical, attention = (
        None if entry[name] is None else float(entry[name]) for name in ("lexical", "attention")
    )
    read_now = bool(entry.get("read_now"))
    return WindowRead(int(entry["window"]), str(entry["page"]), lexical, attention, read_now)


def _typed(entry: Mapping[str, Any], kinds: Mapping[str, type]) -> dict[str, Any]:
    return {name: kind(entry[name]) for name, kind in kinds.items()}
