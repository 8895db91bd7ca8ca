"""`sekv ingest --dry-run` says beforehand, within a tenth, what an ingest will take."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.api import IngestOptions, ingest, plan
from engine.models.locate import Located
from repository import ROOT

BOOK = ROOT / "docs/sample/dracula.pdf"


@pytest.mark.slow
@pytest.mark.parametrize("pages", ["1-3", "1-9"])
def test_sizes_are_right_within_a_tenth(pages: str, smollm2: Located, tmp_path: Path) -> None:
    """A chapter and a part of one, by the default model and method."""
    options = IngestOptions(pages=pages, model=smollm2.name)
    said = plan(BOOK, options)
    made = ingest(BOOK, tmp_path / "book.sekv", options)
    assert said.tokens == made.tokens
    assert said.full_kv_bytes == made.full_kv_bytes
    assert said.estimated_store_bytes == pytest.approx(made.store_bytes, rel=0.1)
    parts = tmp_path / "book.sekv"
    device = [*parts.glob("windows/*.device.safetensors"), parts / "shared.safetensors"]
    held = sum(file.stat().st_size for file in device)
    assert said.estimated_device_bytes == pytest.approx(held, rel=0.1)


@pytest.mark.parametrize(
    ("pages", "tokens", "store_bytes", "device_bytes"),
    [("1-3", 1831, 12_003_220, None), ("1-9", 6387, 37_354_184, 7_982_973)],
)
def test_sizes_that_were_measured_are_said(
    pages: str, tokens: int, store_bytes: int, device_bytes: int | None, smollm2: Located
) -> None:
    """Of stores that were made from these pages on 2026-11-29; nothing is read here."""
    said = plan(BOOK, IngestOptions(pages=pages, model=smollm2.name))
    assert said.tokens == tokens
    assert said.estimated_store_bytes == pytest.approx(store_bytes, rel=0.1)
    if device_bytes is not None:
        assert said.estimated_device_bytes == pytest.approx(device_bytes, rel=0.1)
