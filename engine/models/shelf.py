"""Lists, fetches and removes known models: `sekv models`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from engine.errors import ReaderError
from engine.models import aliases, cache, fetch
from engine.models.aliases import KnownModel
from engine.models.locate import locate
from engine.store import cache_folder
from engine.types import Progress

CACHE, PACKAGE, HUB = "cache", "package", "hub"
"""Where a model can be: converted in our cache, in an installed package, in the hub's cache."""


@dataclass(frozen=True)
class ModelRow:
    """A model of the table. here: where it is, "" for nowhere; bytes: what it takes there."""

    model: KnownModel
    here: str
    path: str
    bytes: int

    def to_json(self) -> dict[str, Any]:
        known = self.model
        return {
            "alias": known.alias,
            "default": known.default,
            "parameters": known.parameters,
            "licence": known.licence,
            "context": known.context,
            "window": known.window,
            "package": known.wheel.requirement,
            "hub": known.hub,
            "download_bytes": known.wheel.bytes,
            "here": self.here,
            "path": self.path,
            "bytes": self.bytes,
        }


@dataclass(frozen=True)
class Listing:
    """All known models, and the GGUF files of the user's that were converted."""

    models: tuple[ModelRow, ...]
    converted: tuple[cache.Entry, ...]
    cache: str

    def to_json(self) -> dict[str, Any]:
        return {
            "models": [row.to_json() for row in self.models],
            "converted": [
                {"name": entry.name, "from": entry.origin, "bytes": entry.bytes}
                for entry in self.converted
            ],
            "cache": self.cache,
        }


@dataclass(frozen=True)
class Pulled:
    """A model that is here now, and where."""

    model: str
    revision: str
    path: str
    bytes: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Removed:
    """What was removed. left: where the model still is, "" for nowhere."""

    model: str
    bytes: int
    left: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def listing() -> Listing:
    """What is known and what is here. Raises ReaderError when the cache cannot be read."""
    own = {cache.folder_of(known.wheel.member_sha256) for known in aliases.KNOWN}
    others = tuple(entry for entry in cache.entries() if entry.path not in own)
    return Listing(tuple(map(_row, aliases.KNOWN)), others, str(cache_folder.root()))


def pull(model: str, revision: str, progress: Progress) -> Pulled:
    """Make a model be here.

    Raises:
        ReaderError: no such model, or it cannot be fetched.
    """
    found = locate(model, revision=revision, progress=progress)
    return Pulled(found.name, found.revision, str(found.folder), cache.size(found.folder))


def remove(model: str, progress: Progress) -> Removed:
    """Free what the cache holds of a model.

    Args:
        model: an alias, or the name of a converted file.
    Raises:
        ReaderError: no such model, or it is not in the cache.
    """
    known = aliases.named(model)
    if known is None:
        entry = next((entry for entry in cache.entries() if entry.name == model), None)
        if entry is None:
            raise ReaderError(
                f"'{model[:100]}' is neither an alias nor a converted file in "
                f"{cache_folder.root()}; sekv models lists both"
            )
        return Removed(model, cache.remove(entry.path, progress), "")
    freed = cache.remove(cache.folder_of(known.wheel.member_sha256), progress)
    left = _row(known)
    if not freed:
        elsewhere = f"; it is in {left.path}, which sekv does not touch" if left.here else ""
        raise ReaderError(
            f"the cache holds nothing of {model}{elsewhere}; sekv models lists what is here"
        )
    return Removed(model, freed, left.path)


def _row(known: KnownModel) -> ModelRow:
    folder = cache.folder_of(known.wheel.member_sha256)
    if folder.is_dir():
        return ModelRow(known, CACHE, str(folder), cache.size(folder))
    package = fetch.installed(known.wheel)
    if package is not None:
        return ModelRow(known, PACKAGE, str(package), package.stat().st_size)
    snapshot = fetch.from_hub_cache(known.hub, "")
    if snapshot is not None:
        return ModelRow(known, HUB, str(snapshot), cache.size(snapshot))
    return ModelRow(known, "", "", 0)
