"""The answers of a run on disk as they are given, so that an interrupted run goes on."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engine.errors import SekvError
from engine.store import disk

if TYPE_CHECKING:
    from pathlib import Path

ANSWERS = "answers.jsonl"


@dataclass
class Log:
    """The answers so far, one JSON object a line, the run's settings first."""

    path: Path
    entries: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, head: dict[str, Any]) -> Log:
        """What an earlier run of the same settings left, or nothing.

        Rows of other methods stay, so that methods and peers can be added to a run; rows that
        failed are tried again.

        Raises:
            SekvError: the folder holds another run's answers, or something else under that name.
        """
        folder.mkdir(parents=True, exist_ok=True)
        log = cls(folder / ANSWERS)
        whole = ""
        try:
            if log.path.exists():
                # Killed while writing, a run leaves half a line behind.
                whole, _, _ = log.path.read_text(encoding="utf-8").rpartition("\n")
            found = [json.loads(line) for line in whole.split("\n") if line]
        except ValueError:
            raise SekvError(
                f"{log.path} holds no answers of a run; name a new folder with --out or remove it"
            ) from None
        head = json.loads(json.dumps(head))
        if found:
            head = _joined(found[0], head, log.path)
        for entry in found[1:]:
            if "why" not in entry:
                log.entries[entry["key"], entry["row"]] = entry
        lines = [head, *log.entries.values()]
        disk.put(log.path, "".join(_line_of(line) for line in lines).encode())
        return log

    def put(self, entry: dict[str, Any]) -> None:
        self.entries[entry["key"], entry["row"]] = entry
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line_of(entry))


def _line_of(entry: dict[str, Any]) -> str:
    return json.dumps(entry, ensure_ascii=False) + "\n"


def _joined(before: dict[str, Any], head: dict[str, Any], path: Path) -> dict[str, Any]:
    """The settings of a run that goes on, with the methods of both.

    Raises:
        SekvError: they differ in anything else, or in what a method is.
    """
    joined, other = {}, []
    for name, value in head.items():
        if name in ("recipes", "peers"):
            old = before.get(name, {})
            other += [method for method in value if old.get(method, value[method]) != value[method]]
            joined[name] = {**old, **value}
        else:
            other += [name] if before.get(name) != value else []
            joined[name] = value
    if other:
        raise SekvError(
            f"{path} holds a run with another {', '.join(other)}; name a new folder with --out or "
            "remove it"
        )
    return joined
