"""Folders of stores by their places only: nothing is opened, nothing heavy is imported."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard

from engine.object_storage import Address
from engine.store.manifest import NAME as MANIFEST

CLAIMS = ".sekv-claims"
"""The folder of a library's claims, see `ingest.claims`."""

CATALOGUE = ".sekv-library.sqlite"
"""The file of a library's catalogue, in the library."""


def is_library(path: Address) -> TypeGuard[Path]:
    """Whether a folder is no store itself and holds stores or a catalogue."""
    if not isinstance(path, Path):
        return False
    try:
        if not path.is_dir() or (path / MANIFEST).is_file():
            return False
        return (path / CATALOGUE).is_file() or next(stores_below(path), None) is not None
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return False


def stamp(path: Path) -> str:
    """What changes when a store of a name becomes another; "" where there is no manifest."""
    try:
        found = (path / MANIFEST).stat()
    except OSError:
        return ""
    return f"{found.st_ino} {found.st_mtime_ns} {found.st_size}"


def stores_below(folder: Path) -> Iterator[Path]:
    """The stores of a folder at any depth, in order of their names; hidden folders have none.

    Links to folders are not followed. A folder that cannot be listed has none.
    """
    for place, folders, _ in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found = [name for name in folders if looks_like_a_store(Path(place) / name)]
        folders[:] = [name for name in folders if name not in found]
        yield from (Path(place) / name for name in found)


def looks_like_a_store(path: Path) -> bool:
    """Whether a path is a store, sound or not, by its name and its manifest."""
    if not path.is_dir() or path.name.startswith("."):
        return False
    return path.suffix == ".sekv" or (path / MANIFEST).is_file()
