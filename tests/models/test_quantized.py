"""Quantised checkpoints: loaded by the library's own quantizers, named in the store, or refused.

bitsandbytes and compressed-tensors are tested where they are installed (`sekv[quantized]`); FP8
needs no package.
"""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from engine.api import check_model
from engine.errors import ReaderError
from engine.ingest.run import plan
from engine.models import quantized
from engine.models.load import check_supported, load_config
from engine.models.reader import load_reader
from engine.store.reader import Store
from engine.types import IngestOptions, Silent
from tiny_books import QUESTION, log, read, session
from tiny_models import checkpoint

BLOCK = 16
"""Rows and columns of a weight that share a scale, in FP8 and in compressed-tensors."""


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In the 16 bits that checkpoints are published in."""
    folder = checkpoint("llama", tmp_path_factory.mktemp("plain") / "model")
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def with_settings(model: Path, folder: Path, settings: dict[str, Any]) -> Path:
    """A copy of a checkpoint whose configuration says that it is quantised."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    return folder


def in_fp8(model: Path, folder: Path) -> Path:
    """FP8 with a scale for every block, as DeepSeek-V3 is published."""
    settings = {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]}
    with_settings(model, folder, settings)
    tensors = load_file(folder / "model.safetensors")
    for name, weight in list(tensors.items()):
        if "_proj" in name:
            rows, columns = weight.shape
            blocks = weight.float().view(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK)
            scale = blocks.abs().amax((1, 3)) / torch.finfo(torch.float8_e4m3fn).max
            codes = (blocks / scale[:, None, :, None]).view(rows, columns)
            tensors[name] = codes.to(torch.float8_e4m3fn)
            tensors[name.replace("weight", "weight_scale_inv")] = scale
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def in_bitsandbytes(model: Path, folder: Path, bits: int) -> Path:
    how = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    loaded = AutoModelForCausalLM.from_pretrained(
        model, quantization_config=how, dtype="auto", device_map="cpu"
    )
    shutil.copytree(model, folder)
    loaded.save_pretrained(folder)
    return folder


def in_compressed_tensors(model: Path, folder: Path) -> Path:
    """Four bits with a scale for every group, packed."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        apply_quantization_config,
    )

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
    weights = QuantizationArgs(num_bits=4, strategy="group", group_size=BLOCK)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    config = QuantizationConfig(
        config_groups={"all": scheme},
        ignore=["lm_head"],
        format="pack-quantized",
        quantization_status="frozen",
    )
    apply_quantization_config(loaded, config)
    for module in loaded.modules():
        if hasattr(module, "weight_scale"):
            groups = module.weight.data.unflatten(1, (-1, BLOCK))
            module.weight_scale.data = groups.abs().amax(-1) / 7
    compressor = ModelCompressor.from_pretrained_model(loaded)
    compressor.compress_model(loaded)
    shutil.copytree(model, folder)
    loaded.save_pretrained(folder)
    compressor.update_config(str(folder))
    return folder


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed")


MADE = {
    "fp8": in_fp8,
    "bitsandbytes 4-bit": lambda model, folder: in_bitsandbytes(model, folder, 4),
    "bitsandbytes 8-bit": lambda model, folder: in_bitsandbytes(model, folder, 8),
    "compressed-tensors pack-quantized": in_compressed_tensors,
}
SERVED = [
    "fp8",
    pytest.param("bitsandbytes 4-bit", marks=needs("bitsandbytes")),
    pytest.param("compressed-tensors pack-quantized", marks=needs("compressed_tensors")),
]


@pytest.mark.parametrize("how", SERVED)
def test_a_quantised_checkpoint_answers_as_its_own_full_cache(
    how: str, plain: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """From a store that names the quantisation; its weights are not those of the plain model."""
    model = MADE[how](plain, tmp_path / "model")
    found = check_model(str(model))
    assert found.passed, found.reason
    reader = load_reader(str(model), device="cpu")
    assert reader.dtype == torch.float32
    own, other = reader.behaviour(), load_reader(str(plain), device="cpu").behaviour()
    assert own != other
    store = read(tmp_path / "store", model, log(4), reader=reader)
    with Store.open(store) as opened:
        assert opened.manifest.model.quantized == how
    with session(store, reader) as asked:
        assert asked.ask(QUESTION).usage.answer_tokens
    assert not [said for said in caplog.records if said.name.startswith("bitsandbytes")]


@needs("bitsandbytes")
def test_products_that_round_what_they_multiply_are_refused(plain: Path, tmp_path: Path) -> None:
    """bitsandbytes multiplies 8-bit weights with 8-bit numbers: the library's own two attention
    functions differ with it as well."""
    found = check_model(str(MADE["bitsandbytes 8-bit"](plain, tmp_path / "model")))
    assert not found.passed
    assert "bitsandbytes 8-bit round what they are multiplied with" in found.reason


REFUSED = {
    "nonsense": ({"quant_method": "nonsense", "bits": 2}, "by nonsense, which transformers"),
    "no method": ({"bits": 4}, "by a method that is not named"),
    "no package": ({"quant_method": "gptq", "bits": 4}, "by gptq 4-bit, .*pip install gptqmodel"),
    "no package, older": ({"load_in_8bit": True}, "by bitsandbytes 8-bit, .*install bitsandbytes"),
}


@pytest.mark.parametrize("why", sorted(REFUSED))
def test_what_cannot_be_loaded_is_refused_before_any_weight(
    why: str, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantized, "find_spec", lambda module: None)
    settings, match = REFUSED[why]
    model = with_settings(plain, tmp_path / "model", settings)
    (model / "model.safetensors").unlink()
    with pytest.raises(ReaderError, match=match) as caught:
        check_supported(load_config(model))
    assert "\n" not in str(caught.value)
    source = tmp_path / "log.txt"
    source.write_text(log(2))
    with pytest.raises(ReaderError, match=match):
        plan([str(source)], IngestOptions(model=str(model)), Silent())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("method", ["vptq", "spqr"])
def test_what_needs_a_gpu_or_a_rarer_package_says_so(
    method: str, plain: Path, tmp_path: Path
) -> None:
    model = with_settings(plain, tmp_path / "model", {"quant_method": method})
    with pytest.raises(ReaderError, match=r"GPU is required|requires|install") as caught:
        load_reader(str(model), device="cpu")
    assert "\n" not in str(caught.value)


def test_a_checkpoint_that_is_not_quantised_names_nothing(plain: Path) -> None:
    assert quantized.quantization(load_config(plain)) == ""
