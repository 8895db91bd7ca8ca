"""A CPU model holds 16-bit weights as they are, and computes what the float32 model computes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from engine.models import half_weights
from engine.models.half_weights import HalfEmbedding, HalfLinear, can_pack
from engine.models.load import stored_dtype
from engine.models.mapped_files import MappedFiles
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


def test_inputs_that_fill_no_block_are_kept_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same products to the order of sums, with and without a bias, of rows in any shape, of a
    tall matrix that is packed in parts."""
    monkeypatch.setattr(half_weights, "TALL", 64)
    monkeypatch.setattr(half_weights, "OUTPUTS", 32)
    torch.manual_seed(0)
    for inputs, bias, apart in ((576, False, 64), (576, True, 64), (512, True, 0), (900, True, 0)):
        linear = torch.nn.Linear(inputs, 80, bias=bias)
        with torch.no_grad():
            linear.weight.copy_(linear.weight.half())
        made = HalfLinear(linear)
        assert (0 if made._rest is None else len(made._rest)) == apart
        assert len(made._packed) == 3  # 32, 32 and 16 outputs
        for shape in ((3, inputs), (1, 3, inputs), (2, 1, inputs)):
            x = torch.randn(shape)
            with torch.inference_mode():
                torch.testing.assert_close(made(x), linear(x), atol=1e-5, rtol=1e-5)


def test_rows_of_an_embedding_stay_where_they_are() -> None:
    """Unless they must be converted."""
    rows = torch.randn(5, 4).half()
    for weight, copied in ((rows, False), (rows.bfloat16(), True)):
        made = HalfEmbedding(torch.nn.Embedding.from_pretrained(weight))
        assert (made.weight.data_ptr() != weight.data_ptr()) == copied
        assert torch.equal(made(torch.tensor([3, 0])), weight[[3, 0]].float())


@pytest.mark.skipif(sys.platform != "linux", reason="pages are given back on Linux")
def test_pages_of_a_file_are_given_back_and_read_again(tmp_path: Path) -> None:
    """Resident pages of the mapping fall, and the weight is what it was."""
    weight = torch.arange(1 << 20).half()
    save_file({"a": torch.zeros(3).half(), "w": weight}, tmp_path / "w.safetensors")
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        mapped = file.get_tensor("w")
        assert torch.equal(mapped, weight)
        before = resident(tmp_path)
        MappedFiles(tmp_path).forget(mapped)
        assert resident(tmp_path) <= before - mapped.nbytes // 1024 + 8
        assert torch.equal(mapped, weight)
    own = weight.clone()
    MappedFiles(tmp_path).forget(own)
    assert torch.equal(own, weight)


def resident(folder: Path) -> int:
    """KiB in memory of the files of a folder that are mapped."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    found, mine = 0, False
    for line in lines:
        if "-" in line.split()[0]:
            mine = str(folder) in line
        elif mine and line.startswith("Rss:"):
            found += int(line.split()[1])
    return found


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
