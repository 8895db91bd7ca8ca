"""Recognises a store by its place only: no numpy, no torch, no lock, nothing else checked.

A name that is no store is refused before anything heavy is imported.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from engine.errors import StoreMissingError
from engine.store.manifest import NAME
from engine.store.work import Places


def check_store(path: Path) -> None:
    """Whether a store can be at this path; whether it is sound shows when it is opened.

    Raises:
        StoreMissingError: there is none; says what is there instead.
    """
    try:
        if (path / NAME).is_file() or Places(Path(os.path.realpath(path))).old.exists():
            return
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else "no file has such a name"
        raise StoreMissingError(f"there is no store at {str(path)!a}: {reason}") from None
    raise not_a_store(path)


def not_a_store(path: Path) -> StoreMissingError:
    """Why a path without a manifest is no store."""
    places = Places(Path(os.path.realpath(path)))
    if not path.exists() and places.work.exists():
        return StoreMissingError(
            f"{path}: its ingest was interrupted; run the same command to finish it"
        )
    if not path.exists():
        return StoreMissingError(f"there is no store at {path}: make one with sekv ingest")
    return StoreMissingError(f"{path} is not a store (it has no {NAME})")


def source_paths(path: Path) -> list[str]:
    """The paths of a store's sources as its manifest has them; [] where it cannot be read."""
    try:
        sources = json.loads((path / NAME).read_bytes())["sources"]
        return [str(source["path"]) for source in sources]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return []
