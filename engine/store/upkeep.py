"""Removing and moving stores, and what dead runs left beside them. torch-free."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import StoreBusyError, StoreError, StoreExistsError
from engine.object_storage import Address, ObjectUrl, is_url
from engine.store.disk import Disk, put
from engine.store.folders import CATALOGUE, CLAIMS, looks_like_a_store
from engine.store.glance import check_store
from engine.store.lock import Lock
from engine.store.manifest import NAME
from engine.store.reader import read_manifest, recover
from engine.store.work import Places, clear_work, disk_errors, places_of

if TYPE_CHECKING:
    from collections.abc import Iterator


def remove_store(path: Address) -> int:
    """Remove a store and what an unfinished run left beside it. Returns the bytes it took.

    It stops to be a store in one instant, however long removing takes. Of a symbolic link the store
    that it names is removed, and the link.

    Raises:
        StoreError: there is no store, a process is writing it, or the disk refuses.
        ObjectStorageError: its object store cannot be reached or refuses.
    """
    if isinstance(path, ObjectUrl):
        from engine.store import object_upkeep

        return object_upkeep.remove_store(path)
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


def move_store(path: Address, target: Address) -> Address:
    """Give a store another name or folder; its sources are still found from there.

    Args:
        target: a new name, or a folder that is there, into which it goes under its own name. In
            an object store a name in the same bucket, or a library in it.
    Returns:
        The store's new path or URL.
    Raises:
        StoreError: there is no store, the name is taken, a process is writing either, or the disk
            refuses. The store is then where it was.
        ObjectStorageError: its object store cannot be reached or refuses.
    """
    if isinstance(path, ObjectUrl) and isinstance(target, ObjectUrl):
        from engine.store import object_upkeep

        return object_upkeep.move_store(path, target)
    if isinstance(path, ObjectUrl) or isinstance(target, ObjectUrl):
        raise StoreError(f"{path} cannot be moved between a disk and an object store; ingest again")
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


def libraries_of(path: Address) -> list[Path]:
    """The folders above a store that have a catalogue, which has to hear of what happens to it.

    Catalogues of an object store are on other machines too, and hear of it when they are used.
    """
    if isinstance(path, ObjectUrl):
        return []
    return [above for above in path.absolute().parents if (above / CATALOGUE).is_file()]


def tree_bytes(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; 0 where there is nothing."""
    files = (Path(place) / name for place, _, names in os.walk(path) for name in names)
    own = path.lstat().st_size if path.is_file() else 0
    return own + sum(file.lstat().st_size for file in files)


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


@dataclass(frozen=True)
class Leftover:
    """What a dead run left.

    kind: "work", which the same ingest would go on from; "remains", of no use to anybody. age_s:
    seconds since it last changed.
    """

    path: str
    kind: str
    bytes: int
    age_s: float


def leftovers(folder: Address) -> list[Leftover]:
    """What dead runs left in a folder, at any depth, without what a living process holds.

    Raises:
        ObjectStorageError: its object store cannot be reached or refuses.
    """
    if isinstance(folder, ObjectUrl):
        from engine.store import object_upkeep

        return object_upkeep.leftovers(folder)
    now, found = time.time(), []
    for place, names in _hidden(folder):
        for name in names:
            path = place / name
            ending = path.suffix
            if name == CLAIMS:
                found += [Leftover(str(path), "remains", tree_bytes(path), now - _newest(path))]
            elif ending in (".work", ".done", ".lock") and not _is_held(path):
                kind = "work" if ending == ".work" else "remains"
                found.append(Leftover(str(path), kind, tree_bytes(path), now - _newest(path)))
    return found


def clear(leftover: Leftover) -> bool:
    """Remove a leftover; False where a process has come to need it meanwhile.

    A replacement that died between its two renames is finished first, so that no store is lost.

    Raises:
        StoreError: the disk refuses.
        ObjectStorageError: its object store cannot be reached or refuses.
    """
    if is_url(leftover.path):
        from engine.store import object_upkeep

        return object_upkeep.clear(leftover)
    path = Path(leftover.path)
    disk = Disk()
    with disk_errors(leftover.path):
        if path.name == CLAIMS:
            disk.remove_tree(path)
            return True
        target = path.with_name(path.name[1:].removesuffix(path.suffix))
        recover(target)
        try:
            with _locked(target) as places:
                if path.suffix == ".work":
                    clear_work(places, disk)
                elif path.suffix == ".done":
                    disk.remove_tree(places.done)
        except StoreBusyError:
            return False
    return True


def _hidden(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Every folder that may hold stores, with its hidden names."""
    for place, folders, files in os.walk(folder):
        hidden = sorted(name for name in [*folders, *files] if name.startswith("."))
        folders[:] = [name for name in folders if not name.startswith(".")]
        folders[:] = [name for name in folders if not looks_like_a_store(Path(place) / name)]
        yield Path(place), hidden


def _is_held(path: Path) -> bool:
    """Whether a living process has the lock of the store that a leftover belongs to."""
    target = path.with_name(path.name[1:].removesuffix(path.suffix))
    lock = target.with_name(f".{target.name}.lock")
    if not lock.exists():
        return False
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _newest(path: Path) -> float:
    """When a path or anything below it last changed, in seconds since the epoch."""
    files = (Path(place) / name for place, _, names in os.walk(path) for name in names)
    return max([path.lstat().st_mtime, *(file.lstat().st_mtime for file in files)])
