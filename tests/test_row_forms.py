"""Models that cache something else than keys and values of one width answer as their full cache.

As in test_exactness: always through a store that was written, closed and opened again.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.answer.session import Session
from engine.attention.row_form import Expansion, cached_rows, memory_rows
from engine.compression import methods as recipes
from engine.errors import ReaderError
from engine.models import evidence_heads
from engine.models.reader import load_reader
from engine.types import AskOptions, Silent
from exact_methods import EXACT
from exactness import from_memory, truth
from tiny_architectures import configuration, save
from tiny_books import read

LATENT = {"deepseek_v2": 32, "deepseek_v3": 32, "glm4_moe_lite": 32, "minicpm3": 32}
"""Models with multi-head latent attention, and the width of a memory's row: latent and rotated key.
Their values are narrower than their keys."""

OTHERS = {"mimo_v2_flash": 16, "minimax_m2": 16, "gemma4_text": 32}
"""Values narrower than keys; the same width; layers with full attention have wider heads."""


@pytest.mark.parametrize("kind", [*LATENT, *OTHERS])
def test_everything_zoomed_at_full_rank_equals_the_full_cache(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(recipes.METHODS, "exact", EXACT["sekv"])
    monkeypatch.setattr(evidence_heads, "ensure", lambda reader: None)
    model = save(configuration(kind), tmp_path / "model")
    reader = load_reader(str(model), device="cpu")
    store = read(tmp_path / "store", model, reader=reader, method="exact", chunk_tokens=100)
    options = AskOptions(budget="10000%", coverage=1.0, model=str(model))
    with Session(store, options, Silent(), reader) as asked:
        found = asked.store.manifest.model
        assert found.head_dim == (LATENT | OTHERS)[kind]
        if kind in LATENT:
            assert (found.kv_heads, found.cached, asked.store.manifest.format) == (1, 32, 2)
        ids, logits = from_memory(asked, 8)
        for layer in asked.memory.layers:
            assert all(len(z) == len(layer.view.spans) > 3 for z in layer.zoomed.spans)
        true_ids, true_logits = truth(asked, model, 8)
    assert torch.equal(ids, true_ids)
    torch.testing.assert_close(logits, true_logits, atol=1e-4, rtol=0)


def test_what_is_cached_comes_back_from_rows(subtests: pytest.Subtests) -> None:
    for latent, (first, second), width in ((True, (24, 8), 32), (False, (24, 8), 24),
                                           (False, (8, 24), 24), (False, (8, 8), 8)):  # fmt: skip
        with subtests.test(latent=latent, first=first, second=second):
            cached = torch.randn(1, 2, 5, first), torch.randn(1, 2, 5, second)
            rows = memory_rows(*cached, latent=latent)
            assert [row.shape for row in rows] == [(1, 2, 5, width)] * 2
            again = cached_rows(*rows, cached, latent=latent)
            assert all(torch.equal(a, b) for a, b in zip(again, cached, strict=True))


class _Affine(torch.nn.Module):
    """Adds a bias to what it makes of latents."""

    kv_lora_rank, qk_rope_head_dim = 4, 2

    def __init__(self) -> None:
        super().__init__()
        self.make = torch.nn.Linear(4, 6)

    def expand_kv(self, latent: torch.Tensor, rotated: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.cat([self.make(latent), rotated], -1), self.make(latent)


def test_a_layer_that_is_not_linear_in_its_latents_is_refused() -> None:
    with pytest.raises(ReaderError, match="otherwise than by a product"):
        Expansion(_Affine())
