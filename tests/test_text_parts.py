"""Multimodal checkpoints are used for text alone, and answer as the whole of them does.

As in test_exactness: always through a store that was written, closed and opened again.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.answer.session import Session
from engine.attention.layer_states import nbytes
from engine.compression import methods as recipes
from engine.errors import ReaderError
from engine.models import evidence_heads
from engine.models.expected_states import state_bytes
from engine.models.load import check_supported, load_config
from engine.models.reader import load_reader
from engine.types import AskOptions, Silent
from exact_methods import EXACT
from exactness import QUESTION, from_memory, truth
from tiny_architectures import configuration, save
from tiny_books import read

WRAPPERS = ("mistral3", "gemma3", "gemma4", "qwen3_vl", "qwen3_5")
MORE = ("llama4", "llava", "minicpmv4_6")


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(recipes.METHODS, "exact", EXACT["sekv"])
    monkeypatch.setattr(evidence_heads, "ensure", lambda reader: None)  # half of the time


@pytest.mark.parametrize(
    "kind", [*WRAPPERS, *(pytest.param(kind, marks=pytest.mark.slow) for kind in MORE)]
)
def test_everything_zoomed_at_full_rank_equals_the_whole_wrapper(kind: str, tmp_path: Path) -> None:
    """Asked twice: what a model keeps of one question in itself does not change the next."""
    model = save(configuration(kind), tmp_path / "model")
    reader = load_reader(str(model), device="cpu")
    store = read(tmp_path / "store", model, reader=reader, method="exact", chunk_tokens=100)
    options = AskOptions(budget="10000%", coverage=1.0, model=str(model), max_new_tokens=2)
    with Session(store, options, Silent(), reader) as asked:
        true_ids, true_logits = truth(asked, model, 8)
        asked.ask(QUESTION)
        ids, logits = from_memory(asked, 8)
        for layer in asked.memory.layers:
            assert all(len(z) == len(layer.view.spans) > 3 for z in layer.zoomed.spans)
    assert torch.equal(ids, true_ids)
    torch.testing.assert_close(logits, true_logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["gemma3", "qwen3_5"])
def test_bytes_of_states_are_foreseen(kind: str, tmp_path: Path) -> None:
    """Of one token, from the configuration of the whole wrapper."""
    reader = load_reader(str(save(configuration(kind), tmp_path)), device="cpu")
    expected = state_bytes(load_config(tmp_path), 1, torch.float32)
    assert expected == nbytes(reader.example_states) > 0


@pytest.mark.parametrize("kind", ["mistral3", "qwen3_vl", "qwen3_5"])
def test_encoders_are_not_loaded(
    kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nor is anything said of weights that are there and not used."""
    folder = save(configuration(kind), tmp_path)
    capfd.readouterr()
    reader = load_reader(str(folder), device="cpu")
    names = dict(reader.model.named_parameters())
    assert any("layers.3" in name for name in names)
    assert not [name for name in names if "vision" in name or "visual" in name]
    stored = load_file(folder / "model.safetensors")
    assert [name for name in stored if "vision" in name or "visual" in name]
    assert capfd.readouterr().err == ""


def _without(folder: Path, part: str) -> int:
    """Take the weights whose names have this part out of a checkpoint; how many."""
    file = folder / "model.safetensors"
    stored = load_file(file)
    kept = {name: weight for name, weight in stored.items() if part not in name}
    save_file(kept, file, metadata={"format": "pt"})
    return len(stored) - len(kept)


@pytest.mark.parametrize("kind", ["llama", "mistral3", "qwen3_5"])
def test_a_checkpoint_that_lacks_weights_is_refused(kind: str, tmp_path: Path) -> None:
    """The library would make them up at random."""
    folder = save(configuration(kind), tmp_path)
    missing = _without(folder, "layers.3.mlp.")
    with pytest.raises(ReaderError, match=rf"lacks {missing} of the model's weights") as caught:
        load_reader(str(folder), device="cpu")
    assert "\n" not in str(caught.value)
    assert "layers.3.mlp" in str(caught.value)


def test_a_head_tied_to_the_embeddings_is_not_missed(tmp_path: Path) -> None:
    folder = save(configuration("qwen2", tie_word_embeddings=True), tmp_path)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    load_reader(str(folder), device="cpu")


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("bart", "an encoder reads its text"),
        ("blt", "no layers of one decoder"),
        ("minimax", r"a cache of its own alone \(MiniMaxCache\)"),
        ("qwen2_5_omni", "only holds other models together"),
    ],
)
def test_what_a_configuration_tells_is_refused_before_any_weight(kind: str, why: str) -> None:
    with pytest.raises(ReaderError, match=why) as caught:
        check_supported(configuration(kind))
    assert "\n" not in str(caught.value)


def test_an_attention_that_layers_share_is_refused(tmp_path: Path) -> None:
    """It does not say for which layer it is called."""
    folder = save(configuration("zamba"), tmp_path)
    with pytest.raises(ReaderError, match="one attention that several layers share"):
        load_reader(str(folder), device="cpu")
