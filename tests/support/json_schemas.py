"""Whether what a command printed keeps to its schema in docs/schemas."""

from __future__ import annotations

import json
from typing import Any

import jsonschema

from repository import ROOT


def valid(name: str, printed: str | dict[str, Any]) -> dict[str, Any]:
    """The object that was printed, which has every key of the schema and no other."""
    schema = json.loads((ROOT / "docs/schemas" / f"{name}.json").read_text(encoding="utf-8"))
    record: dict[str, Any] = json.loads(printed) if isinstance(printed, str) else printed
    jsonschema.Draft202012Validator(schema).validate(record)
    return record
