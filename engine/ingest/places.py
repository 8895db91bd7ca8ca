"""Where the sources of stores lie, in files or in object stores, and what shows of them unread."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from engine.errors import DocumentError, ObjectMissingError
from engine.object_storage import Address, ObjectUrl, address, bucket, is_url
from engine.store.library import place_of


@dataclass(frozen=True)
class Glimpse:
    """What a source looks like without being read. changed: in nanoseconds since the epoch, by the
    clock of whoever keeps it."""

    size: int
    changed: int


def look(source: str) -> Glimpse:
    """Look at a file, or at an object.

    Raises:
        DocumentError: it is not there, is no file, or is empty.
        ObjectStorageError: its object store cannot be reached or refuses.
    """
    place = address(source)
    if isinstance(place, ObjectUrl):
        there = bucket(place).head(place.key)
        seen = Glimpse(there.size, int(there.changed.timestamp() * 1e9))
    else:
        try:
            found = place.stat()
        except OSError as error:
            raise DocumentError(f"cannot be read: {error.strerror}") from None
        if not stat.S_ISREG(found.st_mode):
            raise DocumentError("is no file")
        seen = Glimpse(found.st_size, found.st_mtime_ns)
    if not seen.size:
        raise DocumentError("is empty")
    return seen


def lies_at(path: str, near: str, store: Address) -> Address:
    """Where a source of a store lies, see `place_of`. Beside a store in an object store lie no
    files: there the path counts as it was given."""
    if is_url(path) or isinstance(store, ObjectUrl):
        return address(path)
    return place_of(path, near, store)


def is_same(place: Address, other: Address) -> bool:
    """Whether two names are of one file, or of one object."""
    if isinstance(place, ObjectUrl) or isinstance(other, ObjectUrl):
        return place == other
    return place.exists() and place.samefile(other)


def is_there(place: Address) -> bool:
    """Whether something is at a path or a URL.

    Raises:
        ObjectStorageError: its object store cannot be reached or refuses.
    """
    if isinstance(place, Path):
        return os.path.lexists(place)
    try:
        bucket(place).head(place.key)
    except ObjectMissingError:
        return False
    return True
