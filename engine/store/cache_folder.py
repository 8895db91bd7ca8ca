"""The folder for what can be had again: converted models, parts of stores that are far away."""

from __future__ import annotations

import os
from pathlib import Path


def root() -> Path:
    """The cache folder: SEKV_CACHE, else the user's cache folder of this system."""
    named = os.environ.get("SEKV_CACHE", "")
    if named.startswith("~/"):
        return Path(named).expanduser()
    if named:
        return Path(named).absolute()
    import platformdirs

    return Path(platformdirs.user_cache_dir("sekv"))
