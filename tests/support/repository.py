"""Where the project and these helpers lie, for tests that start Python anew. Not a test itself."""

from __future__ import annotations

import os
from pathlib import Path

SUPPORT = Path(__file__).parent
ROOT = SUPPORT.parent.parent

COLLECTION = Path(os.environ.get("SEKV_TEST_DATA") or ROOT.parent / "shared" / "data")
"""Real documents, no part of the project; where the folder is missing, their tests are skipped."""


def environment(**changes: str) -> dict[str, str]:
    """What a new process inherits, so that it finds the project and these helpers."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(SUPPORT)]), **changes}
