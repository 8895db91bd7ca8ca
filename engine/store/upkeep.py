"""Removing and moving stores, and what dead runs left beside them. torch-free."""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import StoreError, StoreExistsError
from engine.store.disk import Disk, put
from engine.store.glance import check_store
from engine.store.lock import Lock
from engine.store.manifest import NAME
from engine.store.reader import read_manifest
from engine.store.work import Places, disk_errors, places_of

if TYPE_CHECKING:
    from collections.abc import Iterator


def remove_store(path: Path) -> int:
    """Remove a store and what an unfinished run left beside it. Returns the bytes it took.

    It stops to be a store in one instant, however long removing takes. Of a symbolic link the store
    that it names is removed, and the link.

    Raises:
        StoreError: there is no store, a process is writing it, or the disk refuses.
    """
    check_store(path)
    disk = Disk()
    with _locked(path) as places, disk_errors(str(path)):
        freed = tree_bytes(places.target) + tree_bytes(places.work)
        disk.remove_tree(places.work)
        disk.remove_tree(places.done)
        if places.target.exists():
            disk.rename(places.target, places.done)
            disk.sync_folder(places.target.parent)
            disk.remove_tree(places.done)
        if path.is_symlink():
            disk.unlink(path)
    return freed


def move_store(path: Path, target: Path) -> Path:
    """Give a store another name or folder; its sources are still found from there.

    Args:
        target: a new name, or a folder that is there, into which it goes under its own name.
    Returns:
        The store's new path.
    Raises:
        StoreError: there is no store, the name is taken, a process is writing either, or the disk
            refuses. The store is then where it was.
    """
    check_store(path)
    if target.is_dir() and not (target / NAME).is_file():
        target = target / path.name
    if os.path.lexists(target):
        raise StoreExistsError(f"{target} exists: choose another name")
    disk = Disk()
    with _locked(path) as old, _locked(target) as new, disk_errors(str(target)):
        if old.work.exists():
            raise StoreError(f"an ingest into {path} is unfinished: run it again, or sekv gc")
        moved = _seen_from(old.target, new.target)
        try:
            disk.rename(old.target, new.target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            disk.remove_tree(new.done)
            shutil.copytree(old.target, new.done)
            disk.rename(new.done, new.target)
            disk.remove_tree(old.target)
        if moved:
            put(new.target / NAME, moved)
        for folder in {old.target.parent, new.target.parent}:
            disk.sync_folder(folder)
    return target


def tree_bytes(path: Path) -> int:
    """Bytes of all files below a path; 0 where there is nothing."""
    files = (Path(place) / name for place, _, names in os.walk(path) for name in names)
    return sum(file.lstat().st_size for file in files)


def _seen_from(old: Path, new: Path) -> bytes:
    """The manifest of a store that says where its sources lie from its new place; b"" where it is
    the same, or cannot be read."""
    try:
        manifest = read_manifest(old)
    except StoreError:
        return b""
    sources = tuple(
        replace(source, near=os.path.relpath(old.parent / source.near, new.parent))
        if source.near
        else source
        for source in manifest.sources
    )
    return replace(manifest, sources=sources).to_bytes() if sources != manifest.sources else b""


@contextmanager
def _locked(path: Path) -> Iterator[Places]:
    """The places of a store that nobody else writes meanwhile."""
    places = places_of(path)
    lock = Lock(places.lock, places.target)
    try:
        yield places
    finally:
        lock.release()
