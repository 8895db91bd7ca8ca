"""How every suite writes what it measured: one JSON, one table, its charts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NO_CHARTS: Mapping[str, str] = {}


def save(
    report: dict[str, Any], table: str, folder: Path, charts: Mapping[str, str] = NO_CHARTS
) -> None:
    """Write results.json, table.md and charts (SVG by file name) into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "results.json": json.dumps(report, indent=1) + "\n",
        "table.md": table,
        **charts,
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
