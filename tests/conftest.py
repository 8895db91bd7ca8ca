"""Shared by all tests: a quiet environment, so that no test depends on whose machine it runs on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.models import hf
    from engine.store.reader import Store

# Before any test imports transformers: a test never asks a hub for anything.
os.environ["HF_HUB_OFFLINE"] = "1"
# Before any test imports torch: on tiny models a second thread saves nothing, and on a busy machine
# the threads of one operation wait for each other, which makes the suite several times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SEKV_MODEL", "SEKV_DEBUG", "NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("SEKV_TOKEN", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/nonexistent")  # nobody's running server answers
    monkeypatch.setenv("COLUMNS", "100")


@pytest.fixture
def instant_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing waits for the disk: durability is the business of the crash tests."""
    from engine.store.disk import Disk

    monkeypatch.setattr(Disk, "sync", lambda *_: None)


@pytest.fixture
def store(tmp_path: Path, instant_disk: None) -> Iterator[Store]:
    """The toy store of two windows, open."""
    import toy_store
    from engine.store.reader import Store

    toy_store.ingest(tmp_path / "toy.sekv")
    with Store.open(tmp_path / "toy.sekv") as opened:
        yield opened


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random llama, as a folder; a module with wishes has a fixture of its own."""
    from tiny_models import checkpoint

    return checkpoint("llama", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def reader(model: Path) -> hf.Reader:
    """The model, loaded."""
    from engine.models import hf

    return hf.load(str(model), device="cpu")
