"""For tests of the format alone, which need no model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import toy_store
from engine.store.reader import Store


@pytest.fixture
def store(tmp_path: Path, instant_disk: None) -> Iterator[Store]:
    """The toy store of two windows, open."""
    toy_store.ingest(tmp_path / "toy.sekv")
    with Store.open(tmp_path / "toy.sekv") as opened:
        yield opened
