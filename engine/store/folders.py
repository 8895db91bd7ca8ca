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

WORK = ".work"
"""Ending of the hidden folder beside a store in which it is made, see `store.work`."""

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
    return _stamp_of(str(path))


def stamps(library: Address) -> dict[str, str]:
    """The stamp of every store of a library, by its name below it, with slashes.

    Raises:
        ObjectStorageError: its object store cannot be reached or refuses.
    """
    if isinstance(library, ObjectUrl):
        return {name: _tag(found) for name, found in _manifests(library) if name}
    return {
        name: now for name in _names_below(str(library)) if (now := _stamp_of(f"{library}/{name}"))
    }


def _stamp_of(store: str) -> str:
    """`stamp` of a store on a disk."""
    try:
        found = os.stat(f"{store}/{MANIFEST}")  # noqa: PTH116
    except OSError:
        return ""
    return f"{found.st_ino} {found.st_mtime_ns} {found.st_size}"


def _manifests(folder: ObjectUrl) -> Iterator[tuple[str, ObjectInfo]]:
    """The manifests that begin with a key: the name of the store below it, "" of its own."""
    for below, found in bucket(folder).below(folder.key):
        name, _, last = below.rpartition("/")
        if last == MANIFEST and not any(step.startswith(".") for step in name.split("/")):
            yield name, found


def _tag(found: ObjectInfo) -> str:
    return f"{found.tag} {found.size}"


def begun_below(folder: Path) -> Iterator[Path]:
    """Where stores below a folder are to appear that a process is making, or was when it ended."""
    for place, folders, _ in os.walk(folder):
        for name in folders:
            target = Path(place) / name.removeprefix(".").removesuffix(WORK)
            if name.startswith(".") and name.endswith(WORK) and not target.exists():
                yield target
        folders[:] = [name for name in folders if not name.startswith(".")]


def stores_below(folder: Path) -> Iterator[Path]:
    """The stores of a folder at any depth, in order of their names; hidden folders have none.

    Links to folders are not followed. A folder that cannot be listed has none.
    """
    return (folder / name for name in _names_below(str(folder)))


def _names_below(folder: str, above: str = "") -> Iterator[str]:
    """What `stores_below` finds, by name, which begins with `above`.

    A question to a library looks at all of its stores, so no `Path` is made of any.
    """
    try:
        with os.scandir(folder) as entries:
            below = sorted((entry.name, entry.is_symlink()) for entry in entries if _is_open(entry))
    except OSError:
        return
    others = []
    for name, is_link in below:
        if _is_store_by_looks(f"{folder}/{name}"):
            yield above + name
        elif not is_link:
            others.append(name)
    for name in others:
        yield from _names_below(f"{folder}/{name}", f"{above}{name}/")


def _is_open(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder, or a link to one, and not hidden."""
    try:
        return not entry.name.startswith(".") and entry.is_dir()
    except OSError:
        return False


def looks_like_a_store(path: Path) -> bool:
    """Whether a path is a store, sound or not, by its name and its manifest."""
    return path.is_dir() and not path.name.startswith(".") and _is_store_by_looks(str(path))


def _is_store_by_looks(folder: str) -> bool:
    return folder.endswith(".sekv") or os.path.isfile(f"{folder}/{MANIFEST}")  # noqa: PTH113
