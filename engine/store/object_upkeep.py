"""Removing stores from an object store, and what dead uploads left there. torch-free.

As with an upload the manifest decides: it goes first, so that no reader sees half a store.
"""

from __future__ import annotations

import time

from engine.object_storage import ObjectInfo, ObjectUrl, address, bucket
from engine.store.folders import CLAIMS
from engine.store.manifest import NAME
from engine.store.object_folder import BLOCKS, is_store, listing
from engine.store.upkeep import Leftover
from engine.types import LEASE


def remove_objects(url: ObjectUrl) -> int:
    """Remove all objects of a store, the manifest first. Returns their bytes.

    Raises:
        ObjectStorageError: the object store cannot be reached or refuses.
    """
    objects = listing(url)
    names = sorted(objects, key=lambda name: name != NAME)
    bucket(url).delete([objects[name].key for name in names])
    return sum(found.size for found in objects.values())


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
    remove_objects(url)
    return True


def _is_torn(key: str, group: list[ObjectInfo]) -> bool:
    """Whether objects below a key are blocks without a manifest."""
    names = {found.key.removeprefix(f"{key}/") for found in group}
    return NAME not in names and any(name.startswith(f"{BLOCKS}/") for name in names)


def _changed(found: ObjectInfo) -> float:
    return found.changed.timestamp()
