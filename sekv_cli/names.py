"""What sources and their pages are called to people: sources as short as tells them apart."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePath


def shortest(paths: Iterable[str]) -> dict[str, str]:
    """By path the fewest of its last parts that no other path ends with.

    "y2023/minutes.md" and "y2024/minutes.md" are called so; "books/dracula.pdf" beside them is
    called "dracula.pdf".
    """
    parts = {path: PurePath(path).parts for path in paths}
    names = {}
    for path, mine in parts.items():
        others = [other for other in parts.values() if other != mine]
        size = 1
        while size < len(mine) and any(other[-size:] == mine[-size:] for other in others):
            size += 1
        names[path] = str(PurePath(*mine[-size:])) if mine else path
    return names


def listed(paths: Iterable[str]) -> str:
    """The names of a store's sources in one line; one that is there several times says so."""
    every = list(paths)
    named = shortest(every)
    return ", ".join(
        f"{name} ({every.count(path)} times)" if every.count(path) > 1 else name
        for path, name in named.items()
    )


def page(label: str, sheet: str = "", printed: str = "") -> str:
    """A page as people read it: "p. 12", "pp. 12-13"; a section by its heading; "" for none.

    Where its number in the file or the one printed on it is another than its label, both are said:
    "p. ii (sheet 2)", "p. 12 (printed 7)".

    Args:
        label, sheet, printed: as a `Citation` has them.
    """
    several = bool(re.fullmatch(r"\d+\s*[-–]\s*\d+", label)) or "-" in sheet
    called = (
        f"{'pp.' if several else 'p.'} {label}" if sheet or several or label.isdigit() else label
    )
    in_file = f"{'sheets' if several else 'sheet'} {sheet}"
    also = [in_file] if sheet and label != sheet else []
    if label.startswith("#"):  # a page without a label among others with one
        called, also = in_file, []
    if printed:
        also.append(f"printed {printed}")
    return f"{called} ({', '.join(also)})" if also else called
