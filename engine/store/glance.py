"""Recognises a store by its place only: no numpy, no torch, no lock, nothing else checked.

A name that is no store is refused before anything heavy is imported.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from engine.documents import is_named_as_document
from engine.errors import StoreMissingError
from engine.object_storage import Address, ObjectUrl
from engine.store.lock import writer_of
from engine.store.manifest import NAME
from engine.store.work import Places


def check_store(path: Address) -> None:
    """Whether a store can be at this path or URL; whether it is sound shows when it is opened.

    Raises:
        StoreMissingError: there is none; says what is there instead.
        ObjectStorageError: its object store cannot be reached or refuses.
    """
    if isinstance(path, ObjectUrl):
        from engine.store import object_folder

        object_folder.check_store(path)
        return
    try:
        if not is_store(path):
            raise not_a_store(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else "no file has such a name"
        raise StoreMissingError(f"there is no store at {str(path)!a}: {reason}") from None


def is_store(path: Address) -> bool:
    """Whether a store is at this path or URL, or one that is being replaced.

    Raises:
        OSError, ValueError: no file can have such a name.
        ObjectStorageError: its object store cannot be reached or refuses.
    """
    if isinstance(path, ObjectUrl):
        from engine.store import object_folder

        return object_folder.is_store(path)
    return (path / NAME).is_file() or Places(Path(os.path.realpath(path))).old.exists()


def not_a_store(path: Path) -> StoreMissingError:
    """Why a path without a manifest is no store."""
    places = Places(Path(os.path.realpath(path)))
    if not path.exists() and places.work.exists():
        writer = writer_of(places.lock)
        if writer:
            return StoreMissingError(
                f"{path} is not there yet: another process (pid {writer}) is reading its document"
            )
        return StoreMissingError(
            f"{path}: the reading of its document was interrupted; sekv ingest or sekv ask of the "
            "document goes on with it"
        )
    if not path.exists():
        near = path.parent / f"{path.stem}.sekv"
        if near != path and (near / NAME).is_file():
            return StoreMissingError(f"there is no store at {path}; did you mean {near}?")
        if is_named_as_document(str(path)):
            return StoreMissingError(
                f"there is neither a document {path} nor a store of it; check the name"
            )
        return StoreMissingError(f"there is no store at {path}: make one with sekv ingest")
    if path.is_file():
        return StoreMissingError(f"{path} is not a store; sekv ingest {path} makes one of it")
    return StoreMissingError(
        f"{path} is not a store (it has no {NAME}); sekv list {path} shows those in it"
    )


def fingerprint(store: Address) -> str:
    """Which store is under this name now: SHA-256 of its manifest, which has every file's checksum.

    Raises:
        StoreError: there is none.
    """
    try:
        return hashlib.sha256(manifest_bytes(store)).hexdigest()
    except OSError:
        raise StoreMissingError(
            f"there is no store at {store}: make one with sekv ingest"
        ) from None


def changed_sources(path: Address) -> list[str]:
    """One line for each source of a store that lies where it was read and changed since.

    Of a store in an object store none: that would take a look at another place for each.

    A source is read only if it is younger than the store; one that is gone is not spoken of, for
    the store keeps its text.
    """
    if isinstance(path, ObjectUrl):
        return []
    try:
        made = (path / NAME).stat().st_mtime_ns
        sources = json.loads((path / NAME).read_bytes())["sources"]
        beside = Path(os.path.realpath(path)).parent
        return [
            f"{source['path']} changed since {path} was made; sekv ingest --update reads it anew"
            for source in sources
            if source["sha256"] and source["path"] != "-"
            if _is_other(beside / (source.get("near") or source["path"]), made, source["sha256"])
        ]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return []  # whoever opens the store says what is wrong with it


def _is_other(file: Path, made: int, sha256: str) -> bool:
    """Whether a file is there, younger than a store, and not what was read."""
    if not file.is_file() or file.stat().st_mtime_ns <= made:
        return False
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest() != sha256


def manifest_bytes(path: Address) -> bytes:
    """The manifest of a store as it is now, unchecked.

    Raises:
        OSError: there is none on this disk.
        StoreMissingError, ObjectStorageError: there is none at this URL, or it cannot be had.
    """
    if isinstance(path, ObjectUrl):
        from engine.store import object_folder

        return object_folder.read_manifest(path)[0]
    return (path / NAME).read_bytes()


def source_paths(path: Address) -> list[str]:
    """The paths of a store's sources as its manifest has them; [] where it cannot be read."""
    try:
        sources = json.loads(manifest_bytes(path))["sources"]
        return [str(source["path"]) for source in sources]
    except (StoreMissingError, OSError, ValueError, LookupError, TypeError, RecursionError):
        return []
