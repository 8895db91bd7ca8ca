"""The command line in front of a small engine that records what it is asked."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

import engine.answer
from engine import api
from fake_engine import EXCERPT, FakeEngine, fake_store


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeEngine:
    """In a folder with stores of the names that the tests use; nobody reads what is in them."""
    fake = FakeEngine()
    monkeypatch.chdir(tmp_path)
    for name in ("b.sekv", "book.sekv"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").touch()
    monkeypatch.delenv("HF_HUB_OFFLINE")  # a model that is named may be elsewhere
    for name in ("book.pdf", "locked.pdf", "a.txt", "b.pdf", "r.safetensors"):
        (tmp_path / name).touch()
    fake_store(monkeypatch)
    for use_case in ("plan", "ingest", "ingest_library", "open_document", "open_store"):
        monkeypatch.setattr(api, use_case, getattr(fake, use_case))
    looking = ModuleType("engine.answer.inspect")
    vars(looking).update(
        inspect=fake.inspect,
        text=fake.text,
        source_text=lambda opened, source: opened.text(source),
        excerpts=lambda store, spans: dict.fromkeys(spans, EXCERPT),
    )
    monkeypatch.setitem(sys.modules, looking.__name__, looking)
    monkeypatch.setattr(engine.answer, "inspect", looking, raising=False)
    return fake


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    def give(text: str) -> None:
        stream = io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8")
        monkeypatch.setattr(sys, "stdin", stream)

    return give
