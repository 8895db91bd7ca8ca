"""Parts of remote files that were fetched already, on the local disk up to a limit.

`blocks/KEY/START-END` in the cache folder holds the bytes [START, END) of one file and behind them
their xxh3_64; KEY is that of the file's content, so that nothing here ever grows stale. A part
appears whole or not at all, and any number of processes may use one cache. Where it grows beyond
its limit, what was not used for longest goes first.
"""

from __future__ import annotations

import os
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import ObjectStorageError
from engine.store import cache_folder
from engine.store.container import span_checksum

if TYPE_CHECKING:
    from collections.abc import Iterator

LIMIT = "SEKV_OBJECT_CACHE"
"""The variable that names the limit in gigabytes; 0 keeps nothing."""

DEFAULT_LIMIT = 4e9
"""Bytes."""

_SUM = 8
_KEPT = 0.9
"""Part of the limit that stays full when it is reached, so that it is not reached again at once."""


class BlockCache:
    """The cache of one folder. limit: most bytes of all parts together."""

    def __init__(self, folder: Path, limit: float) -> None:
        self.folder, self.limit = folder, limit
        self._lock = threading.Lock()
        self._room = 0.0
        self._checked: set[Path] = set()

    @classmethod
    def of_user(cls) -> BlockCache:
        """The one in the user's cache folder, under the limit of the environment.

        Raises:
            ObjectStorageError: the limit is no number.
        """
        named = os.environ.get(LIMIT, "")
        try:
            limit = float(named) * 1e9 if named else DEFAULT_LIMIT
        except ValueError:
            limit = -1.0
        if not 0 <= limit < float("inf"):
            raise ObjectStorageError(f"{LIMIT}={named} is no number of gigabytes, such as 4 or 0.5")
        return cls(cache_folder.root() / "blocks", limit)

    def parts(self, key: str) -> list[tuple[int, int]]:
        """Which parts of a file are here: [start, end) by start. Some may overlap."""
        try:
            names = [path.name for path in (self.folder / key).iterdir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._unusable(error) from None
        return sorted(part for name in names if (part := _part(name)) is not None)

    def read(self, key: str, part: tuple[int, int], start: int, end: int) -> bytes | None:
        """Bytes [start, end) of a file from a part that has them; None where it went meanwhile.

        A part that its checksum does not fit is removed.
        """
        path = self._path(key, part)
        size = part[1] - part[0]
        try:
            with path.open("rb") as file:
                if path not in self._checked:
                    data = file.read(size + _SUM)
                    if len(data) != size + _SUM or data[size:] != _sum(data[:size]):
                        path.unlink(missing_ok=True)
                        return None
                    self._checked.add(path)
                file.seek(start - part[0])
                found = file.read(end - start)
            os.utime(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unusable(error) from None
        return found

    def keep(self, key: str, start: int, data: bytes) -> None:
        """Keep the bytes of a file from `start` on, as far as the limit allows.

        Raises:
            ObjectStorageError: the disk refuses.
        """
        if len(data) > self.limit:
            return
        path = self._path(key, (start, start + len(data)))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, partial = tempfile.mkstemp(dir=path.parent)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(data)
                    file.write(_sum(data))
                Path(partial).replace(path)
            except BaseException:
                Path(partial).unlink(missing_ok=True)
                raise
        except OSError as error:
            raise self._unusable(error) from None
        with self._lock:
            self._room -= len(data)
            if self._room < 0:
                self._make_room()

    def drop(self, key: str) -> None:
        """Remove all parts of a file."""
        for part in self.parts(key):
            self._path(key, part).unlink(missing_ok=True)

    def _make_room(self) -> None:
        """Remove what was not used for longest, if there is too much."""
        found = sorted(self._all())
        total = sum(size for _, size, _ in found)
        if total > self.limit:
            for _, size, path in found:
                path.unlink(missing_ok=True)
                total -= size
                if total <= self.limit * _KEPT:
                    break
        # How much may be added before it is worth looking again; other processes add too.
        self._room = max((self.limit - total) / 4, self.limit * (1 - _KEPT) / 4)

    def _all(self) -> Iterator[tuple[int, int, Path]]:
        """When each part was last used, its bytes, its path."""
        for path in self.folder.glob("*/*"):
            with suppress(FileNotFoundError):
                found = path.stat()
                yield found.st_mtime_ns, found.st_size, path

    def _path(self, key: str, part: tuple[int, int]) -> Path:
        return self.folder / key / f"{part[0]}-{part[1]}"

    def _unusable(self, error: OSError) -> ObjectStorageError:
        return ObjectStorageError(
            f"the cache {self.folder} cannot be used: {error.strerror}; free some space, name "
            f"another folder with SEKV_CACHE, or keep nothing with {LIMIT}=0"
        )


def _part(name: str) -> tuple[int, int] | None:
    """What the name of a file in the cache says; None of one that is still written."""
    start, dash, end = name.partition("-")
    return (int(start), int(end)) if dash and start.isdigit() and end.isdigit() else None


def _sum(data: bytes) -> bytes:
    return span_checksum(data).to_bytes(_SUM, "big")
