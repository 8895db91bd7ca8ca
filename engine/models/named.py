"""What a model's name can mean, and whether there can be such a model: a glance before the work.

Nothing is imported that loads models, no network is asked and no file is read.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from engine.errors import ReaderError
from engine.models import aliases

KINDS = "a model is an alias (sekv models), a hub id such as ORG/NAME, a folder or a .gguf file"


def check(name: str, *, offline: bool = False) -> None:
    """Whether a model of that name can be at hand; whether it is sound shows when it is loaded.

    Args:
        name: an alias, hub id, folder or GGUF file; "" is for others to decide.
        offline: no network is to be used, as HF_HUB_OFFLINE also says.
    Raises:
        ReaderError: no model can have such a name, there is no such folder or file, or it is not
            here and is not to be fetched.
    """
    if name and aliases.named(name) is None:
        check_name(name)
        if not is_path(name) and not _in_hub_cache(name):
            check_fetched(name, offline=offline)


def check_name(name: str) -> None:
    """Whether a model can have such a name; a folder or file has to be there.

    Raises:
        ReaderError: it cannot, or it is not.
    """
    if is_path(name):
        check_there(name)
    elif not is_repository(name):
        raise ReaderError(f"there is no model '{name[:100]}': {KINDS}")


def check_fetched(repository: str, *, offline: bool) -> None:
    """Whether a model that is not here may be fetched from the hub under this name.

    Raises:
        ReaderError: it may not, or it is a mistyped alias.
    """
    if "/" not in repository:
        known = ", ".join(known.alias for known in aliases.KNOWN)
        raise ReaderError(
            f"there is no model '{repository}'; known by alias: {known}; a model of the hub is "
            "named ORG/NAME, one of your own by its folder or .gguf file"
        )
    if offline or is_offline():
        raise ReaderError(
            f"the hub's model {repository} is not here and the network is not to be used; "
            "run without --offline and HF_HUB_OFFLINE, or name a folder with --model"
        )


def check_there(name: str) -> None:
    """Whether a file, or a folder with a configuration, is at this path.

    Raises:
        ReaderError: there is not.
    """
    try:
        place = Path(name).expanduser()
        there, empty = place.exists(), place.is_dir() and not (place / "config.json").exists()
    except (OSError, ValueError, RuntimeError):  # no name of a file, or nobody's home
        there, empty = False, False
    if empty:
        raise ReaderError(f"{name[:200]} is no model of transformers: it has no config.json")
    if not there:
        kind = "file" if name.endswith(".gguf") else "folder"
        raise ReaderError(f"there is no such {kind}: {name[:200]}")


def is_offline() -> bool:
    """Whether the environment forbids the network, as the hub's own library understands it."""
    said = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return said.upper() in ("1", "ON", "YES", "TRUE")


def is_path(name: str) -> bool:
    """Whether a name means a place here and not a model elsewhere."""
    if name.startswith(("/", "./", "../", "~")) or name in (".", "..") or name.endswith(".gguf"):
        return True
    try:
        return bool(name) and ("\\" in name or Path(name).exists())
    except (OSError, ValueError):  # too long for a name, or no name at all
        return False


def is_repository(name: str) -> bool:
    """Whether the hub could have a model of that name; it takes up to 96 characters."""
    shape = r"[\w-][\w.-]*(/[\w-][\w.-]*)?"
    return len(name) <= 96 and re.fullmatch(shape, name, re.ASCII) is not None


def _in_hub_cache(repository: str) -> bool:
    """Whether the hub's own cache has a folder of that repository; where it lies as the hub's
    library documents it."""
    home = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("HF_HOME", f"{home}/huggingface")
    cache = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    folder = Path(cache or f"{home}/hub", f"models--{repository.replace('/', '--')}")
    return Path(os.path.expandvars(folder)).expanduser().is_dir()
