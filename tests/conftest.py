"""Shared by all tests: a quiet environment, so that no test depends on whose machine it runs on."""

from __future__ import annotations

import os

import pytest

# Before any test imports transformers: a test never asks a hub for anything.
os.environ["HF_HUB_OFFLINE"] = "1"
# Before any test imports torch: on tiny models a second thread saves nothing, and on a busy machine
# the threads of one operation wait for each other, which makes the suite several times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SEKV_MODEL", "SEKV_DEBUG", "NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "100")
