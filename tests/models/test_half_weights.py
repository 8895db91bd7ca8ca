"""A CPU model holds 16-bit weights as they are, and computes what the float32 model computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.models.half_weights import HalfEmbedding, HalfLinear, can_pack
from engine.models.load import stored_dtype
from engine.models.reader import Reader, load_reader
from tiny_models import checkpoint

pytestmark = pytest.mark.skipif(not can_pack(), reason="torch has no float16 products here")


def stored(folder: Path, dtype: torch.dtype, **changes: object) -> Path:
    """A checkpoint whose weights are stored in `dtype`."""
    checkpoint("qwen2", folder, **changes)  # its projections have a bias
    AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).save_pretrained(folder)
    return folder


def packed(reader: Reader) -> set[str]:
    kinds = (HalfLinear, HalfEmbedding)
    return {name for name, module in reader.model.named_modules() if isinstance(module, kinds)}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tied", [False, True])
def test_sixteen_bits_give_the_logits_of_float32(
    tmp_path: Path, dtype: torch.dtype, tied: bool
) -> None:
    folder = stored(tmp_path / "m", dtype, tie_word_embeddings=tied)
    assert stored_dtype(folder) == dtype
    reader = load_reader(str(folder), device="cpu")
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert reader.dtype == torch.float32
    assert len(packed(reader)) == 3 * 7 + 2
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        found, wanted = reader.model(ids).logits, plain(ids).logits
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_weights_that_need_float32_stay_so(tmp_path: Path) -> None:
    folder = checkpoint("llama", tmp_path / "m")
    assert stored_dtype(folder) == torch.float32
    assert not packed(load_reader(str(folder), device="cpu"))


def test_gradients_and_other_dtypes_have_plain_weights(tmp_path: Path) -> None:
    folder = stored(tmp_path / "m", torch.float16)
    assert not packed(load_reader(str(folder), device="cpu", gradients=True))
    assert not packed(load_reader(str(folder), device="cpu", dtype="bfloat16"))


def test_surprisal_is_that_of_the_plain_model(tmp_path: Path) -> None:
    folder = stored(tmp_path / "m", torch.float16)
    ids = list(range(3, 120))
    read = []
    for gradients in (False, True):
        reader = load_reader(str(folder), device="cpu", gradients=gradients)
        chunks = reader.read_window(ids, reader.prefix(), 64, [])
        read.append(torch.cat([chunk.surprisal for chunk in chunks]))
    torch.testing.assert_close(read[0], read[1], atol=1e-4, rtol=1e-4)
