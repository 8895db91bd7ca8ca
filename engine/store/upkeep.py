"""Removing and moving stores, and what dead runs left beside them. torch-free."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import StoreBusyError, StoreError, StoreExistsError
from engine.object_storage import Address, ObjectUrl, is_url
from engine.store.disk import Disk, put
from engine.store.folders import CATALOGUE, CLAIMS, WORK, is_library, looks_like_a_store, stamp
from engine.store.glance import check_store
from engine.store.manifest import NAME
from engine.store.reader import read_manifest, recover
from engine.store.transfer import Transfer, seen_from
from engine.store.upload import locked, uploads
from engine.store.work import Places, clear_work, disk_errors, published_journal
from engine.types import Silent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.types import Progress


def remove_store(path: Address) -> int:
    """Remove a store and what an unfinished run left beside it. Returns the bytes it took.

    It stops to be a store in one instant, however long removing takes. Of a symbolic link the store
    that it names is removed, and the link.

    Raises:
        StoreError: there is no store, a process is writing it, or the disk refuses.
        ObjectStorageError: its object store cannot be reached or refuses.
    """
    check_store(path)
    with locked(path) as places, disk_errors(str(path)):
        return _remove(path, places)


def move_store(path: Address, target: Address, progress: Progress | None = None) -> Address:
    """Give a store another name, folder, disk or object store; its sources are still found from
    there, but for files that a store in an object store is of.

    Args:
        target: a new name, or a folder or library that is there, into which it goes under its own
            name.
        progress: is told of what is copied.
    Returns:
        The store's new path or URL.
    Raises:
        StoreError: there is no store, the name is taken, a process is writing either, or the disk
            refuses. The store is then where it was; the same call goes on with what was begun.
        ObjectStorageError: an object store cannot be reached or refuses.
    """
    check_store(path)
    target = _place_for(path, target)
    if _is_same(path, target):
        raise StoreExistsError(f"{target} exists: choose another name")
    with locked(path) as old, locked(target) as new, disk_errors(str(target)):
        if old.work.exists():
            raise StoreError(f"an ingest into {path} is unfinished: run it again, or sekv gc")
        if isinstance(path, Path) and isinstance(target, Path) and _rename(old.target, new.target):
            return target
        transfer, before = Transfer(path, target, new), stamp(path)
        transfer.run(progress or Silent())
        if stamp(path) != before:
            raise StoreError(f"{path} was written meanwhile and stays; {target} is what it was")
        _remove(path, old)
        transfer.forget()
    return target


def _place_for(path: Address, target: Address) -> Address:
    """Where a store goes that is to go to a name, or into a folder or library."""
    if isinstance(target, ObjectUrl):
        within = not target.key or is_library(target)
    else:
        within = target.is_dir() and not (target / NAME).is_file()
    return target / path.name if within else target


def _is_same(path: Address, other: Address) -> bool:
    """Whether two names are of one place."""
    if isinstance(path, ObjectUrl) or isinstance(other, ObjectUrl):
        return path == other
    return os.path.realpath(path) == os.path.realpath(other)


def _rename(old: Path, new: Path) -> bool:
    """Give a store another name on its disk; False where that is on another one, or taken.

    Raises:
        OSError: the disk refuses.
    """
    if os.path.lexists(new):
        return False
    disk, moved = Disk(), _seen_from(old, new)
    try:
        disk.rename(old, new)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        return False
    if moved:
        put(new / NAME, moved)
    for folder in {old.parent, new.parent}:
        disk.sync_folder(folder)
    return True


def _remove(path: Address, places: Places) -> int:
    """Remove a store that is locked. Returns the bytes it took."""
    disk = Disk()
    freed = tree_bytes(places.work)
    disk.remove_tree(places.work)
    disk.remove_tree(places.done)
    if isinstance(path, ObjectUrl):
        from engine.store import object_upkeep

        return freed + object_upkeep.remove_objects(path)
    freed += tree_bytes(places.target)
    if places.target.exists():
        disk.rename(places.target, places.done)
        disk.sync_folder(places.target.parent)
        disk.remove_tree(places.done)
    if path.is_symlink():
        disk.unlink(path)
    return freed


def tidy(path: Path) -> None:
    """Take away what a run left beside a store that died once that was there; what an unfinished
    one would go on with stays, and so does all that a living process holds."""
    if not any(os.path.lexists(left) for left in Places(path).leftovers):
        return
    # What the disk refuses to let go of is for `sekv gc` to tell.
    with suppress(StoreError), locked(path) as places, disk_errors(str(path)):
        disk = Disk()
        disk.remove_tree(places.done)
        if published_journal(places, disk) is not None:
            clear_work(places, disk)


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
    moved = seen_from(manifest, old, new)
    return moved.to_bytes() if moved != manifest else b""


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
    """What dead runs left in a folder, at any depth, without what a living process holds; of an
    object store also what they left on this machine of any upload.

    Raises:
        ObjectStorageError: its object store cannot be reached or refuses.
    """
    if isinstance(folder, ObjectUrl):
        from engine.store import object_upkeep

        return [*object_upkeep.leftovers(folder), *leftovers(uploads())]
    now, found = time.time(), []
    for place, names in _hidden(folder):
        for name in names:
            path = place / name
            ending = path.suffix
            if name == CLAIMS:
                found += [Leftover(str(path), "remains", tree_bytes(path), now - _newest(path))]
            elif ending in (WORK, ".done", ".lock") and not _is_held(path):
                kind = "work" if ending == WORK else "remains"
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
            with locked(target) as places:
                if path.suffix == WORK:
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
