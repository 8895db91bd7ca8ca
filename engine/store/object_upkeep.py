"""Removing and moving stores in an object store, and what dead uploads left. torch-free.

As with an upload the manifest decides: it goes first and comes last, so that no reader sees half a
store.
"""

from __future__ import annotations

import time
from contextlib import suppress

from engine.errors import StoreError, StoreExistsError
from engine.object_storage import ObjectInfo, ObjectUrl, address, bucket
from engine.store.disk import Disk
from engine.store.folders import CLAIMS, is_library
from engine.store.lock import Lock
from engine.store.manifest import NAME
from engine.store.object_folder import BLOCKS, check_store, is_store, listing, read_manifest
from engine.store.upkeep import Leftover, tree_bytes
from engine.store.upload import places_at
from engine.store.work import disk_errors
from engine.types import LEASE


def remove_store(url: ObjectUrl) -> int:
    """Remove a store, and what an unfinished upload left on this machine. Returns its bytes.

    Raises:
        StoreError: there is no store, or a process of this machine is writing it.
        ObjectStorageError: the object store cannot be reached or refuses.
    """
    check_store(url)
    places, disk = places_at(url), Disk()
    lock = Lock(places.lock, places.target)
    try:
        with disk_errors(str(places.work)):
            freed = tree_bytes(places.work)
            disk.remove_tree(places.work)
            disk.remove_tree(places.done)
        freed += _remove(url)
    finally:
        lock.release()
    with suppress(OSError):
        places.target.parent.rmdir()
    return freed


def move_store(url: ObjectUrl, target: ObjectUrl) -> ObjectUrl:
    """Give a store another key in its bucket, which copies it there.

    Args:
        target: a new name, or a library, into which it goes under its own name.
    Returns:
        The store's new URL.
    Raises:
        StoreError: there is no store, or the name is taken. The store is then where it was.
        ObjectStorageError: the object store cannot be reached or refuses.
    """
    check_store(url)
    if target.root != url.root:
        raise StoreError(f"{url} can be moved within {url.root} only; ingest it anew elsewhere")
    if not target.key or is_library(target):
        target = target / url.name
    if is_store(target):
        raise StoreExistsError(f"{target} exists: choose another name")
    there, manifest = bucket(url), read_manifest(url)[0]
    for name in listing(url):
        if name != NAME:
            there.copy(f"{url.key}/{name}", f"{target.key}/{name}")
    if there.replace(f"{target.key}/{NAME}", manifest, "") is None:
        raise StoreExistsError(f"{target} exists: choose another name")
    _remove(url)
    return target


def leftovers(folder: ObjectUrl) -> list[Leftover]:
    """Blocks of uploads that never came to a manifest, and claims that nobody renews.

    Whether another host is uploading them now shows by their age alone.

    Raises:
        ObjectStorageError: the object store cannot be reached or refuses.
    """
    groups: dict[str, list[ObjectInfo]] = {}
    for found in bucket(folder).objects(folder.key):
        store, middle, _ = found.key.rpartition(f"/{BLOCKS}/")
        above = found.key.rpartition("/")[0]
        groups.setdefault(store if middle else above, []).append(found)
    left = []
    for key, group in groups.items():
        url = ObjectUrl(folder.root, key)
        claims, age = url.name == CLAIMS, time.time() - max(map(_changed, group))
        if (claims and age > LEASE) or (not claims and _is_torn(key, group)):
            kind = "remains" if claims else "work"
            left.append(Leftover(str(url), kind, sum(found.size for found in group), age))
    return left


def clear(leftover: Leftover) -> bool:
    """Remove a leftover; False where its upload came to an end meanwhile.

    Raises:
        ObjectStorageError: the object store cannot be reached or refuses.
    """
    url = address(leftover.path)
    assert isinstance(url, ObjectUrl)
    if url.name != CLAIMS and is_store(url):
        return False
    _remove(url)
    return True


def _is_torn(key: str, group: list[ObjectInfo]) -> bool:
    """Whether objects below a key are blocks without a manifest."""
    names = {found.key.removeprefix(f"{key}/") for found in group}
    return NAME not in names and any(name.startswith(f"{BLOCKS}/") for name in names)


def _changed(found: ObjectInfo) -> float:
    return found.changed.timestamp()


def _remove(url: ObjectUrl) -> int:
    """Remove all objects of a store, the manifest first. Returns their bytes."""
    objects = listing(url)
    names = sorted(objects, key=lambda name: name != NAME)
    bucket(url).delete([objects[name].key for name in names])
    return sum(found.size for found in objects.values())
