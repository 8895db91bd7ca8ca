"""docs/schemas/*.json: what every `--json` prints, as JSON Schema, made from the reports' types.

`python -m sekv_cli.schemas docs/schemas` writes them. They say what is there; whoever reads a
result should let further keys pass, for later versions add some.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from engine import types
from engine.ingest.parity import Parity
from engine.models import aliases, shelf
from engine.store import library, upkeep

DIALECT = "https://json-schema.org/draft/2020-12/schema"
PLAIN = {str: "string", bool: "boolean", int: "integer", float: "number", NoneType: "null"}


def of(kind: Any) -> dict[str, Any]:
    """The schema of a type: a dataclass with all its fields, or what they are made of.

    Raises:
        TypeError: it has no form in JSON.
    """
    if kind in PLAIN:
        return {"type": PLAIN[kind]}
    if kind is Any:
        return {}
    if is_dataclass(kind) and isinstance(kind, type):
        hints = get_type_hints(kind)
        return record({field.name: of(hints[field.name]) for field in fields(kind)})
    origin, inner = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return {"anyOf": [of(part) for part in inner]}
    if origin in (tuple, list):
        return {"type": "array", "items": of(inner[0])}
    if origin in (dict, Mapping):
        return {"type": "object", "additionalProperties": of(inner[1])}
    raise TypeError(f"{kind} has no form in JSON")


def record(properties: Mapping[str, Any], *, closed: bool = True) -> dict[str, Any]:
    """An object with these keys, all there. closed: and no others."""
    made: dict[str, Any] = {"type": "object", "properties": dict(properties)}
    made["required"] = list(properties)
    return {**made, "additionalProperties": False} if closed else made


def listing(item: Any) -> dict[str, Any]:
    return {"type": "array", "items": item}


def measured() -> dict[str, Any]:
    """What a suite of `sekv bench` reports: its head, settings and rows. What a row holds is the
    suite's own, and named there."""
    text, number, seconds = of(str), of(int), of(float)
    left_out = listing(record({"what": text, "why": text}))
    anything: dict[str, Any] = {"type": "object"}
    rows, head = listing(anything), {"format": text, "model": text, "setting": anything}
    made_by = {"creator": text, "suite": text, "weights": text, "dtype": text, "device": text}
    compared = record(
        {**head, **made_by, "seed": number, "items": number, "rows": rows, "skipped": left_out},
        closed=False,
    )
    suites = {
        "niah, ruler, multi, longbench, infinitebench or qa": compared,
        "several of them": record({"suites": {"type": "object", "additionalProperties": compared}}),
        "fidelity": record(
            {
                **head,
                "documents": number,
                "full": anything,
                "methods": anything,
                "skipped": of(dict[str, str]),
            },
            closed=False,
        ),
        "efficiency": record({**head, "skipped": left_out, "lengths": rows}, closed=False),
        "positions": record(
            {"suite": {"const": "positions"}, "questions": number, "rows": of(dict[str, Any])}
            | {"model": text, "weights": text}
        ),
        "retrieval": record(
            {"suite": {"const": "retrieval"}, "questions": number, "longest_tokens": number}
            | {"index_s": seconds, "question_s": seconds, "recall": rows, "library": anything}
        ),
        "library": record(
            {"suite": {"const": "library"}, "model": text, "weights": text, "documents": number}
            | {"questions": number, "setting": anything, "rows": of(dict[str, Any])}
            | {"points": of(dict[str, float])}
        ),
        "support": record(
            {"suite": {"const": "support"}, "setting": anything, "questions": number}
            | {"answerable": number, "right": number, "evidence": anything, "curve": rows}
            | {"area": of(float), "alone": of(dict[str, float]), "model": text}
            | {"calibration": of(dict[str, float] | None)}
        ),
    }
    return {"anyOf": [{"title": name, **schema} for name, schema in suites.items()]}


def schemas() -> dict[str, dict[str, Any]]:
    """Every output by the name of its file, without its ending."""
    text, number, flag = of(str), of(int), of(bool)
    row = of(aliases.KnownModel)["properties"]
    model_row = {key: row[key] for key in ("alias", "default", "parameters", "licence", "context")}
    model_row |= {"window": number, "package": text, "hub": text, "download_bytes": number}
    model_row |= {"here": text, "path": text, "bytes": number}
    converted = record({"name": text, "from": text, "bytes": number})
    page = record(
        {
            "page": text,
            "sheet": text,
            "printed": text,
            "start": number,
            "end": number,
            "text": text,
        }
    )
    setting = {"type": ["string", "number", "boolean", "array"]}
    trained = {"router": text, "parameters": number, "share": of(float), "steps": number}
    heads = {"heads": text, "model": text, "layers": number}
    return {
        "ask": of(types.Answer),
        "bench": measured(),
        "config": record(
            {
                "path": text,
                "settings": {"type": "object", "additionalProperties": setting},
            }
        ),
        "error": record({"error": record({"code": text, "message": text})}),
        "gc": record(
            {
                "removed": listing(of(upkeep.Leftover)),
                "kept": listing(of(upkeep.Leftover)),
                "sockets": of(list[str]),
                "freed_bytes": number,
                "dry_run": flag,
            }
        ),
        "ingest": of(types.IngestReport),
        "ingest-dry-run": record({**of(types.Plan)["properties"], "dry_run": flag}),
        "ingest-library": of(types.LibraryReport),
        "inspect": of(types.InspectReport),
        "list": record({"stores": listing(of(library.StoreSummary))}),
        "models": record(
            {"models": listing(record(model_row)), "converted": listing(converted), "cache": text}
        ),
        "models-check": record(
            {
                name: {"type": ["number", "null"]} if kind == of(float) else kind
                for name, kind in of(Parity)["properties"].items()
            }
        ),
        "models-pull": of(shelf.Pulled),
        "models-rm": of(shelf.Removed),
        "mv": record({"store": text}),
        "rm": record({"removed": of(list[str]), "freed_bytes": number}),
        "rm-source": of(types.Removal),
        "serve": record({"url": text, "pid": number, "stores": of(list[str]), "socket": text}),
        "text": record({"source": text, "chars": number, "pages": listing(page)}),
        "train": record(trained, closed=False),
        "train-heads": record(heads, closed=False),
        "verify": record(
            {
                "store": text,
                "ok": flag,
                "bytes": number,
                "windows": number,
                "windows_read": number,
                "tokens_read": number,
                "damaged": of(list[str]),
                "sources": of(list[str]),
            }
        ),
    }


def page(name: str, schema: Mapping[str, Any]) -> str:
    """The file of one schema."""
    words = name.replace("-", " ")
    title = "An error of any command" if name == "error" else f"sekv {words} --json"
    return json.dumps({"$schema": DIALECT, "title": title, **schema}, indent=1) + "\n"


def write(folder: Path) -> None:
    """Write all of them, and remove those that are none any more."""
    folder.mkdir(parents=True, exist_ok=True)
    made = {f"{name}.json": page(name, schema) for name, schema in schemas().items()}
    for old in folder.glob("*.json"):
        if old.name not in made:
            old.unlink()
    for name, text in made.items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
