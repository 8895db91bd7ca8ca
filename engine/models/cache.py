"""The user's cache of models: one finished folder per GGUF file, named by the file's hash.

A folder is made beside its final name and renamed last, under a lock, so that whatever has the
final name is whole and two processes make one. Nothing here is needed again once it is lost.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from engine.errors import ReaderError
from engine.store import cache_folder
from engine.types import Progress

CONVERSION = 1
"""Part of a folder's name: raised when the same file is converted to other bytes."""

PIECE = 1 << 22
"""Bytes read at a time while a file is hashed."""

LARGE = 1 << 28
"""Bytes of a file from which on hashing it is worth a progress bar."""

SETTLED_NS = 2_000_000_000
"""A file changed less long ago may change again within the clock's resolution: its digest is not
remembered. The same rule as that of git's index."""

ORIGIN = "origin.json"
"""In every converted folder: where it came from."""


def folder_of(sha256: str) -> Path:
    """Where the GGUF file of this hash lies converted, once it does."""
    return cache_folder.root() / "models" / f"gguf-{sha256[:32]}-{CONVERSION}"


@dataclass(frozen=True)
class Entry:
    """A converted file in the cache. origin: alias or path that it was made from."""

    name: str
    path: Path
    origin: str
    bytes: int


def entries() -> list[Entry]:
    """All finished folders, by name. Raises ReaderError when the cache cannot be read."""
    folder = cache_folder.root() / "models"
    try:
        found = sorted(path for path in folder.iterdir() if (path / ORIGIN).is_file())
        return [Entry(path.name, path, _origin(path), size(path)) for path in found]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _unusable(error) from None


def _origin(path: Path) -> str:
    try:
        record: Any = json.loads((path / ORIGIN).read_text(encoding="utf-8"))
        return str(record["from"])
    except (ValueError, KeyError, TypeError):
        return ""


def size(folder: Path) -> int:
    """Bytes of the files below a folder, links followed; what vanishes meanwhile counts nothing."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def remove(folder: Path, progress: Progress) -> int:
    """Remove a finished folder and say how many bytes that freed; 0 when there was none.

    Raises:
        ReaderError: the cache cannot be written.
    """
    if not folder.parent.is_dir():
        return 0
    with locked(folder, progress):
        freed = size(folder) if folder.is_dir() else 0
        try:
            if folder.is_dir():  # half a folder must never have the final name
                doomed = Path(tempfile.mkdtemp(prefix=_stem(folder), dir=folder.parent))
                folder.rename(doomed / folder.name)
                shutil.rmtree(doomed)
        except OSError as error:
            raise _unusable(error) from None
    return freed


def make(
    folder: Path,
    origin: str,
    needs: int,
    fill: Callable[[Path, int], None],
    progress: Progress,
) -> Path:
    """A finished folder: the one that is there, or one that `fill` makes now.

    Args:
        origin: what it is made from, for people.
        needs: bytes that it will take at most while it is made.
        fill: called with an empty folder, in which it makes `model`, and the descriptor of the
            lock; processes that it starts inherit that, so that the lock is held until the last
            of them has ended.
    Raises:
        ReaderError: the cache cannot be written or has no room. Whatever `fill` raises. Nothing
            half-made is left under any name that is ever read.
    """
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder.parent).free
    except OSError as error:
        raise _unusable(error) from None
    if free < needs:
        raise ReaderError(
            f"{cache_folder.root()} has {free / 1e6:,.0f} MB free and {origin} needs "
            f"{needs / 1e6:,.0f} MB there: free some, or name another folder with SEKV_CACHE"
        )
    with locked(folder, progress) as lock:
        if folder.is_dir():
            return folder
        for stale in folder.parent.glob(f"{_stem(folder)}*"):
            shutil.rmtree(stale, ignore_errors=True)
        try:
            partial = Path(tempfile.mkdtemp(prefix=_stem(folder), dir=folder.parent))
        except OSError as error:
            raise _unusable(error) from None
        try:
            fill(partial, lock)
            record = json.dumps({"from": origin}, ensure_ascii=False)
            (partial / "model" / ORIGIN).write_text(record + "\n", encoding="utf-8")
            for path in (*(partial / "model").iterdir(), partial / "model"):
                _sync(path)
            (partial / "model").rename(folder)
            _sync(folder.parent)
        except OSError as error:
            raise _unusable(error) from None
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


@contextmanager
def locked(folder: Path, progress: Progress) -> Iterator[int]:
    """Hold the lock of a folder of the cache; waits for whoever else makes or removes it.

    The kernel gives the lock back when its holder ends, however it ends. Yields its descriptor.
    """
    path = folder.parent / f".{folder.name}.lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise _unusable(error) from None
    try:
        try:
            _take(descriptor, progress)
        except OSError as error:
            raise _unusable(error) from None
        yield descriptor
    finally:
        os.close(descriptor)


def _take(descriptor: int, progress: Progress) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        progress.note(
            "another process has this model's folder, to fetch or convert it once; waiting, which "
            "may take minutes"
        )
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _stem(folder: Path) -> str:
    """How the names of unfinished folders begin."""
    return f".{folder.name}.partial-"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unusable(error: OSError) -> ReaderError:
    return ReaderError(
        f"cannot keep models in {cache_folder.root()}: {error.strerror or error}; "
        "name a folder that can be written with SEKV_CACHE"
    )


# ---------------------------------------------------------------------------- digests


def sha256_of(path: Path, progress: Progress) -> str:
    """SHA-256 of all bytes of a file, remembered as long as the file is unchanged."""
    return digest_of(path, hashlib.sha256, "sha256", progress)


def xxh3_of(path: Path, progress: Progress) -> str:
    """XXH3-128 of all bytes of a file, remembered as long as the file is unchanged."""
    return digest_of(path, xxhash.xxh3_128, "xxh3_128", progress)


def digest_of(path: Path, kind: Callable[[], Any], name: str, progress: Progress) -> str:
    """Digest of all bytes of a file.

    It is remembered in the cache by path, size, inode and times of the file; a cache that cannot
    be written costs the time of hashing again and nothing else.

    Raises:
        OSError: the file cannot be read.
    """
    path = path.resolve()
    found = path.stat()
    key = [str(path), found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, name]
    kept = (
        cache_folder.root()
        / "digests"
        / f"{xxhash.xxh3_64_hexdigest(json.dumps(key).encode())}.json"
    )
    with suppress(OSError, ValueError, KeyError, TypeError):
        record = json.loads(kept.read_text(encoding="utf-8"))
        if record["of"] == key:
            return str(record["digest"])
    state = kind()
    if found.st_size >= LARGE:
        progress.start(f"checking {path.name}", found.st_size, "bytes")
    with path.open("rb") as stream:
        while piece := stream.read(PIECE):
            state.update(piece)
            if found.st_size >= LARGE:
                progress.advance(len(piece))
    digest = str(state.hexdigest())
    if time.time_ns() - max(found.st_mtime_ns, found.st_ctime_ns) > SETTLED_NS:
        with suppress(OSError):
            kept.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=kept.parent, delete=False) as file:
                json.dump({"of": key, "digest": digest}, file)
            Path(file.name).replace(kept)
    return digest
