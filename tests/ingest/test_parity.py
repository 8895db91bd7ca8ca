"""No model is let in whose logits differ from its full cache's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.api import IngestOptions, check_model, ingest
from engine.errors import ReaderError
from engine.ingest import parity
from engine.models.reader import load_reader
from engine.types import Silent
from tiny_architectures import full_attention, save
from tiny_models import checkpoint


class Stages(Silent):
    """A Progress that remembers which stages began."""

    def __init__(self) -> None:
        self.begun: list[str] = []

    def start(self, stage: str, total: int, unit: str) -> None:
        self.begun.append(stage)

    @property
    def checks(self) -> int:
        return sum("logits" in stage for stage in self.begun)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEKV_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("kind", ["gemma2", "gpt_oss", "granite", "smollm3"])
def test_logits_behind_a_store_are_the_full_cache_s(kind: str, tmp_path: Path, cache: Path) -> None:
    """Soft-capped scores, attention sinks, scaled logits, layers without positions."""
    folder = save(full_attention(kind), tmp_path / "model")
    found = check_model(str(folder))
    assert found.passed
    assert found.difference <= found.tolerance == parity.EXACT
    assert found.surprisal_difference <= 1e-3  # it is kept to three places
    assert found.tokens > 600


def test_a_model_is_checked_when_it_first_reads(tmp_path: Path, cache: Path) -> None:
    model = checkpoint("llama", tmp_path / "model")
    source = tmp_path / "a.txt"
    source.write_text("The well is dry. " * 20)
    counts = []
    for name in ("one", "two"):
        seen = Stages()
        ingest(source, tmp_path / f"{name}.sekv", IngestOptions(model=str(model)), seen)
        counts.append(seen.checks)
    assert counts == [1, 0]


def test_a_model_that_computes_more_than_attention_is_refused(tmp_path: Path, cache: Path) -> None:
    """BERT as a decoder has a layer between its last hidden state and its output embeddings."""
    model = save(full_attention("bert"), tmp_path / "model")
    source = tmp_path / "a.txt"
    source.write_text("The well is dry. " * 20)
    for _ in range(2):  # found, and remembered
        with pytest.raises(ReaderError, match="scales its logits in a way that is not known"):
            ingest(source, tmp_path / "a.sekv", IngestOptions(model=str(model)))
    assert not (tmp_path / "a.sekv").exists()


def test_attention_that_changes_what_it_has_cached_is_refused_by_name(
    tmp_path: Path, cache: Path
) -> None:
    found = check_model(str(save(full_attention("diffllama"), tmp_path / "model")))
    assert not found.passed
    assert "DiffLlamaAttention changes keys or values after it has cached them" in found.reason
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["difference"] is None


def test_a_wrong_memory_does_not_pass(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check can fail: one value too large by a hundredth is enough."""
    from engine.attention.layer import LayerMemory

    right = LayerMemory.attend

    def wrong(self: LayerMemory, *args: Any) -> Any:
        return right(self, *args) * 1.01

    monkeypatch.setattr(LayerMemory, "attend", wrong)
    reader = load_reader(str(checkpoint("llama", tmp_path / "model")))
    found = parity.check(reader)
    assert not found.passed
    assert "only from a memory" in found.reason
    monkeypatch.setattr(LayerMemory, "attend", right)
    with pytest.raises(ReaderError, match="differs from its full cache"):
        parity.ensure(reader, Silent())


def test_outcomes_are_about_weights_releases_and_dtype(tmp_path: Path, cache: Path) -> None:
    model = str(checkpoint("llama", tmp_path / "model"))
    reader = load_reader(model)
    assert parity.known(reader) is None
    found = parity.check(reader)
    assert parity.known(reader) == found
    assert parity.known(load_reader(model, dtype="bfloat16")) is None
    kept = next((cache / "parity").iterdir())
    kept.write_text("{")
    assert parity.known(reader) is None


def test_large_logits_are_allowed_what_rounding_does(tmp_path: Path, cache: Path) -> None:
    """Of two thousand, float32 has no more than four digits behind the point."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint("llama", tmp_path / "model"))
    with torch.no_grad():
        model.lm_head.weight.mul_(1000)
    model.save_pretrained(tmp_path / "model")
    found = parity.measure(load_reader(str(tmp_path / "model"), device="cpu"))
    assert found.passed
    assert parity.EXACT < found.tolerance < 1e-5 * found.largest


def test_sixteen_bits_are_allowed_what_rounding_does(tmp_path: Path, cache: Path) -> None:
    model = str(checkpoint("llama", tmp_path / "model"))
    found = parity.check(load_reader(model, dtype="bfloat16"))
    assert found.passed
    assert found.difference <= found.tolerance < 0.05 * found.largest
