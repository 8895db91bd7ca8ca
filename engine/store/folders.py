"""Folders of stores by their places only: nothing is opened, nothing heavy is imported.

What begins with the same key in an object store is a folder too; it is listed whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from engine.errors import ObjectMissingError
from engine.object_storage import Address, ObjectInfo, ObjectUrl, bucket
from engine.store.manifest import NAME as MANIFEST

CLAIMS = ".sekv-claims"
"""The folder of a library's claims, see `ingest.claims`."""

CATALOGUE = ".sekv-library.sqlite"
"""The file of a library's catalogue, in the library."""


def is_library(path: Address) -> bool:
    """Whether a folder is no store itself and holds stores or a catalogue.

    A URL that ends in `.sekv` is a store's, and no request is made.

    Raises:
        ObjectStorageError: its object store cannot be reached or refuses.
    """
    if isinstance(path, ObjectUrl):
        if path.name.endswith(".sekv"):
            return False
        name, _ = next(_manifests(path), ("", None))
        return name != ""
    try:
        if not path.is_dir() or (path / MANIFEST).is_file():
            return False
        return (path / CATALOGUE).is_file() or next(stores_below(path), None) is not None
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return False


def stamp(path: Address) -> str:
    """What changes when a store of a name becomes another; "" where there is no manifest.

    Raises:
        ObjectStorageError: its object store cannot be reached or refuses.
    """
    if isinstance(path, ObjectUrl):
        try:
            return _tag(bucket(path).head(f"{path.key}/{MANIFEST}"))
        except ObjectMissingError:
            return ""
    try:
        found = (path / MANIFEST).stat()
    except OSError:
        return ""
    return f"{found.st_ino} {found.st_mtime_ns} {found.st_size}"


def stamps(library: Address) -> dict[str, str]:
    """The stamp of every store of a library, by its name below it, with slashes.

    Raises:
        ObjectStorageError: its object store cannot be reached or refuses.
    """
    if isinstance(library, ObjectUrl):
        return {name: _tag(found) for name, found in _manifests(library) if name}
    return {
        path.relative_to(library).as_posix(): now
        for path in stores_below(library)
        if (now := stamp(path))
    }


def _manifests(folder: ObjectUrl) -> Iterator[tuple[str, ObjectInfo]]:
    """The manifests that begin with a key: the name of the store below it, "" of its own."""
    for below, found in bucket(folder).below(folder.key):
        name, _, last = below.rpartition("/")
        if last == MANIFEST and not any(step.startswith(".") for step in name.split("/")):
            yield name, found


def _tag(found: ObjectInfo) -> str:
    return f"{found.tag} {found.size}"


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
