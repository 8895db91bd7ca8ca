"""What sources are called to people: as short as tells them apart."""

from __future__ import annotations

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
