"""Shared by all tests: a quiet environment, so that no test depends on whose machine it runs on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.models.locate import Located
    from engine.models.reader import Reader

USERS_CACHE = os.environ.get("SEKV_CACHE", "")
# Before any test imports transformers: a test never asks a hub for anything.
os.environ["HF_HUB_OFFLINE"] = "1"
# Before any test imports torch: on tiny models a second thread saves nothing, and on a busy machine
# the threads of one operation wait for each other, which makes the suite several times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# An example may take as long as a busy machine takes.
settings.register_profile("sekv", deadline=None)
settings.load_profile("sekv")


@pytest.fixture(scope="session", autouse=True)
def models_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where this run keeps converted models and digests: never in the user's own cache."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEKV_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def smollm2(models_cache: Path) -> Located:
    """The default model, fetched and converted once into the user's own cache and linked into that
    of this run, so that every command finds it by its alias."""
    from engine.models import aliases, cache
    from engine.models.locate import locate

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SEKV_CACHE")
        if USERS_CACHE:
            patch.setenv("SEKV_CACHE", USERS_CACHE)
        patch.delenv("HF_HUB_OFFLINE")
        folder = locate(aliases.default().alias).folder
    link = cache.folder_of(aliases.default().wheel.member_sha256)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(folder)
    return locate(aliases.default().alias)


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("SEKV_") and name not in ("SEKV_CACHE", "SEKV_TEST_DATA"):
            monkeypatch.delenv(name)
    for name in ("NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SEKV_CONFIG", "/nonexistent/config.toml")  # nobody's own settings count
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/nonexistent")  # nobody's running server answers
    monkeypatch.setenv("COLUMNS", "100")


@pytest.fixture
def instant_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing waits for the disk: durability is the business of the crash tests."""
    from engine.store.disk import Disk

    monkeypatch.setattr(Disk, "sync", lambda *_: None)


# What follows is made once per process and shared: tests read it and leave it as it was. A module
# with wishes, or one that writes into a model's folder or a store, has a fixture of its own.


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random llama, as a folder."""
    from tiny_models import checkpoint

    return checkpoint("llama", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def reader(model: Path) -> Reader:
    """The model, loaded."""
    from engine.models.reader import load_reader

    return load_reader(str(model), device="cpu")


@pytest.fixture(scope="session")
def store(model: Path, reader: Reader, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of `tiny_books.TEXT` in one window, by the default method."""
    from tiny_books import read

    return read(tmp_path_factory.mktemp("store"), model, reader=reader)


@pytest.fixture(scope="session")
def many(model: Path, reader: Reader, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of `tiny_books.log(14)` in more windows than a question keeps."""
    from tiny_books import log, read

    return read(tmp_path_factory.mktemp("many"), model, log(14), reader=reader, window=80)
