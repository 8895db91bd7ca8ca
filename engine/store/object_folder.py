"""A store in an object store: the same interface as a folder on disk, read by ranges.

`NAME/manifest.json` is the manifest. A file of the store is the object `NAME/blocks/KEY`, where KEY
follows from what the manifest says of the file (`block_key`), or lies under its own name, where
another program copied a folder there. Ranges that lie close together are one request; requests
run in parallel; what came is kept in the cache of blocks.
"""

from __future__ import annotations

import json
import threading
from bisect import bisect_right
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from engine.errors import (
    ObjectMissingError,
    ObjectStorageError,
    StoreDamagedError,
    StoreError,
    StoreMissingError,
)
from engine.object_storage import ObjectInfo, ObjectUrl, bucket
from engine.store.block_cache import BlockCache
from engine.store.container import checksum
from engine.store.manifest import MAX_BYTES, NAME

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from engine.store.folder import Runs
    from engine.store.manifest import FileEntry

BLOCKS = "blocks"
"""Where the files of a store are, below its name."""

GRAIN = 16 << 10
"""Requests begin and end at multiples of this many bytes: what is next to what was asked for is
asked for next, and a header is read in two steps."""

GAP = 64 << 10
"""Ranges that lie closer are fetched with what is between them: a request costs more than that."""

MOST = 4 << 20
"""Bytes of one request; more are several, in parallel."""

THREADS = 16
"""Requests at the same time."""

Range = tuple[int, int]


def block_key(entry: FileEntry) -> str:
    """The name of a file's object: the xxh3_128 of its entry in the manifest.

    The entry has the checksums of all of the file's bytes, so that other bytes have another name:
    an object is never written anew, and a file that two versions of a store share is one object.
    """
    text = json.dumps(asdict(entry), sort_keys=True, separators=(",", ":"))
    return checksum(text.encode("ascii"))


@dataclass
class _Counts:
    bytes: int = 0
    requests: int = 0


class ObjectFolder:
    """The files of the store at a URL, as they were when it was opened."""

    def __init__(self, url: ObjectUrl, cache: BlockCache | None = None) -> None:
        """Read the manifest.

        Raises:
            StoreMissingError: there is none; says whether an upload was never finished.
            ObjectStorageError: the object store cannot be reached or refuses.
        """
        self.url = url
        self._bucket = bucket(url)
        self._cache = cache or BlockCache.of_user()
        self._counts, self._lock = _Counts(), threading.Lock()
        self._holders = 1
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="sekv-objects")
        try:
            self._manifest, self.tag = read_manifest(url)
        except BaseException:
            self._pool.shutdown()
            raise
        self._count(len(self._manifest))

    def hold(self) -> None:
        with self._lock:
            self._holders += 1

    def release(self) -> None:
        with self._lock:
            self._holders -= 1
            last = self._holders == 0
        if last:
            self._pool.shutdown(wait=False)

    def again(self) -> ObjectFolder:
        """The same store, read anew: nothing is taken from the cache."""
        return ObjectFolder(self.url, BlockCache(self._cache.folder, 0))

    def read_manifest(self) -> bytes:
        return self._manifest

    def size_of(self, name: str, entry: FileEntry) -> int:
        return self._object(name, entry).size

    def read(self, name: str, entry: FileEntry, runs: Runs, count: Callable[[int], None]) -> None:
        places = [(at, at + sum(map(len, buffers))) for buffers, at in runs]
        found = self._object(name, entry)
        if any(end > found.size for _, end in places):
            raise StoreDamagedError(f"{name} is cut short")
        pieces = self._gather(found, block_key(entry), places)
        starts = [start for start, _ in pieces]
        for buffers, position in runs:
            at = position
            for buffer in buffers:
                filled = 0
                while filled < len(buffer):
                    start, data = pieces[bisect_right(starts, at) - 1]
                    part = data[at - start : at - start + len(buffer) - filled]
                    buffer[filled : filled + len(part)] = part
                    filled += len(part)
                    at += len(part)
            count(at - position)

    def fetch_ahead(self, files: Iterable[tuple[str, FileEntry, int]]) -> None:
        """Fetch what is not in the cache, all files at the same time."""
        if not self._cache.limit:
            return
        wanted = []
        for name, entry, size in files:
            found, key = self._object(name, entry), block_key(entry)
            missing = _missing([(0, min(size, found.size))], self._cache.parts(key), found.size)
            wanted += [(found, key, part) for part in missing]
        for _ in self._pool.map(lambda part: self._fetch(*part), wanted):
            pass

    def forget(self, entry: FileEntry) -> None:
        self._cache.drop(block_key(entry))

    def total_bytes(self) -> int:
        return sum(found.size for found in self._listing.values())

    def strangers(self, known: set[str]) -> Iterator[str]:
        """Blocks that no manifest names are left out: another may be uploading them now."""
        for name in sorted(self._listing):
            if name not in known and not name.startswith(f"{BLOCKS}/"):
                yield f"{name[:200]} does not belong to the store"

    def was_replaced(self) -> bool:
        return self._bucket.head(f"{self.url.key}/{NAME}").tag != self.tag

    @property
    def received(self) -> tuple[int, int]:
        return self._counts.bytes, self._counts.requests

    @cached_property
    def _listing(self) -> dict[str, ObjectInfo]:
        self._count(0)
        return listing(self.url)

    def _object(self, name: str, entry: FileEntry) -> ObjectInfo:
        """The object that has the bytes of a file.

        Raises:
            StoreError: there is none.
        """
        found = object_of(self._listing, name, entry)
        if found is None:
            raise StoreDamagedError(f"{name} is missing")
        return found

    def _gather(
        self, found: ObjectInfo, key: str, wanted: list[Range]
    ) -> list[tuple[int, memoryview]]:
        """Pieces of a file, by their start, that together have all that is wanted."""
        parts = self._cache.parts(key) if self._cache.limit else []
        pieces = []
        for start, end in _needed(wanted, parts):
            part = next(p for p in parts if p[0] <= start and end <= p[1])
            data = self._cache.read(key, part, start, end)
            if data is not None:
                pieces.append((start, data))
        have = [(start, start + len(data)) for start, data in pieces]
        missing = _missing(wanted, have, found.size)
        pieces += self._pool.map(lambda part: self._fetch(found, key, part), missing)
        return _apart(pieces)

    def _fetch(self, found: ObjectInfo, key: str, part: Range) -> tuple[int, bytes]:
        """Get bytes [start, end) of an object, and keep them."""
        start, end = part
        try:
            data = self._bucket.read_range(found.key, start, end)
        except ObjectMissingError:
            raise StoreError("it was replaced while it was open: open it again") from None
        self._count(len(data))
        if len(data) != end - start:
            raise StoreDamagedError(f"{found.key} is cut short")
        self._cache.keep(key, start, data)
        return start, data

    def _count(self, size: int) -> None:
        with self._lock:
            self._counts.bytes += size
            self._counts.requests += 1


def read_manifest(url: ObjectUrl) -> tuple[bytes, str]:
    """The manifest of the store at a URL and its tag.

    Raises:
        StoreMissingError: there is none; says whether an upload was never finished.
    """
    try:
        data, found = bucket(url).read(f"{url.key}/{NAME}")
    except ObjectMissingError:
        raise not_a_store(url) from None
    return data[: MAX_BYTES + 1], found.tag


def not_a_store(url: ObjectUrl) -> StoreMissingError:
    """Why there is no manifest at a URL."""
    try:
        begun = next(bucket(url).objects(f"{url.key}/{BLOCKS}"), None) is not None
    except ObjectMissingError:
        begun = False
    if begun:
        return StoreMissingError(
            f"{url}: its upload was interrupted; run the same command to finish it"
        )
    return StoreMissingError(f"there is no store at {url}: make one with sekv ingest")


def check_store(url: ObjectUrl) -> None:
    """Whether there is a store at a URL, with one request.

    Raises:
        StoreMissingError: there is none.
        ObjectStorageError: the object store cannot be reached or refuses.
    """
    if not url.key:
        raise ObjectStorageError(f"{url} names a bucket; name the store in it")
    if not is_store(url):
        raise not_a_store(url)


def is_store(url: ObjectUrl) -> bool:
    """Whether a store is at a URL; one request."""
    try:
        bucket(url).head(f"{url.key}/{NAME}")
    except ObjectMissingError:
        return False
    return True


def listing(url: ObjectUrl) -> dict[str, ObjectInfo]:
    """The objects of a store by their names below it."""
    return dict(bucket(url).below(url.key))


def object_of(there: dict[str, ObjectInfo], name: str, entry: FileEntry) -> ObjectInfo | None:
    """The object that has the bytes of a file, of those that are listed."""
    return there.get(f"{BLOCKS}/{block_key(entry)}") or there.get(name)


def _needed(wanted: list[Range], parts: list[Range]) -> Iterator[Range]:
    """Which ranges of cached parts to read: what is wanted, cut where parts end; no byte twice."""
    for start, end in _merged(wanted, 0):
        at = start
        for first, last in parts:
            if first <= at < last:
                yield at, min(end, last)
                at = min(end, last)
            elif at < first < end:
                yield first, min(end, last)
                at = min(end, last)
            if at >= end:
                break


def _missing(wanted: list[Range], have: list[Range], size: int) -> list[Range]:
    """What to request of a file of `size` bytes to have all that is wanted: aligned, joined where
    the gap is small, cut where it is long."""
    holes = []
    covered = _merged(have, 0)
    for start, end in _merged(wanted, 0):
        at = start
        for first, last in covered:
            if last <= at or first >= end:
                continue
            if first > at:
                holes.append((at, first))
            at = last
        if at < end:
            holes.append((at, end))
    aligned = [
        (start // GRAIN * GRAIN, min(size, -(-end // GRAIN) * GRAIN)) for start, end in holes
    ]
    return [
        (at, min(at + MOST, end))
        for start, end in _merged(aligned, GAP)
        for at in range(start, end, MOST)
    ]


def _apart(pieces: list[tuple[int, bytes]]) -> list[tuple[int, memoryview]]:
    """Pieces by their start, each cut where those before it end: no two have the same byte."""
    cut, reached = [], 0
    for start, data in sorted(pieces, key=lambda piece: (piece[0], -len(piece[1]))):
        end = start + len(data)
        if end > reached:
            first = max(start, reached)
            cut.append((first, memoryview(data)[first - start :]))
            reached = end
    return cut


def _merged(ranges: list[Range], gap: int) -> list[Range]:
    """Ranges by their start, those joined that overlap or lie at most `gap` bytes apart."""
    joined: list[Range] = []
    for start, end in sorted(part for part in ranges if part[0] < part[1]):
        if joined and start <= joined[-1][1] + gap:
            joined[-1] = joined[-1][0], max(joined[-1][1], end)
        else:
            joined.append((start, end))
    return joined
