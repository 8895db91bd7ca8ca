"""Quantised checkpoints: weights that transformers loads through a quantizer of its own.

Their `config.json` has a `quantization_config`. The library's quantizer decides what becomes of
them: bitsandbytes stays packed, on a CPU too; FP8 is unpacked where no GPU computes in it, and
compressed-tensors always, when it is loaded.
"""

from __future__ import annotations

import copy
from importlib.util import find_spec
from typing import Any

import torch
import transformers
from torch import nn
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from engine.errors import ReaderError

PACKAGES = {
    "awq": "gptqmodel",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "gptq": "gptqmodel",
    "hqq": "hqq",
    "quanto": "optimum-quanto",
    "torchao": "torchao",
}
"""What has to be installed for the methods that most checkpoints use, by the names of PyPI."""

MODULES = {"compressed-tensors": "compressed_tensors", "optimum-quanto": "optimum"}
"""What is imported of a package whose name is no module's."""


def loading_options(config: Any) -> dict[str, Any]:
    """Keywords of `from_pretrained`. compressed-tensors unpacks weights when a model is first
    called, and prefill calls it without its head; so they are unpacked on loading."""
    settings = _settings(config)
    if _method(settings) != "compressed-tensors":
        return {}
    config = copy.deepcopy(config)
    config.quantization_config = {**settings, "dequantize": True}
    return {"config": config}


FLOATS = {torch.float32, torch.float16, torch.bfloat16}


def widen_rest(model: nn.Module) -> None:
    """Have float32 in all modules without packed weights. The quantizer leaves there what the
    checkpoint has, beside float32 where it has unpacked weights."""
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if all(weight.dtype in FLOATS for weight in own):
            for weight in own:
                weight.data = weight.data.float()


def quantization(config: Any) -> str:
    """How the weights of a checkpoint are quantised, as its configuration says it: the method, and
    bits or format where it names them; "" where they are not."""
    settings = _settings(config)
    method = _method(settings)
    bits = settings.get("bits") or settings.get("w_bit")
    for packed in (4, 8):
        bits = packed if settings.get(f"load_in_{packed}bit") else bits
    detail = f"{bits}-bit" if bits else str(settings.get("format") or "")
    return f"{method} {detail}".strip()


def check_quantization(config: Any) -> None:
    """Refuse, in one line, weights that cannot be loaded here.

    Raises:
        ReaderError: transformers does not know the method, or a package is missing.
    """
    settings = _settings(config)
    if not settings:
        return
    method, name = _method(settings), config.get_text_config().model_type
    variants = {method, f"{method}_4bit", f"{method}_8bit"}
    if not variants & AUTO_QUANTIZATION_CONFIG_MAPPING.keys():
        raise ReaderError(
            f"{name}: its weights are quantised by {method or 'a method that is not named'}, which "
            f"transformers {transformers.__version__} does not load; use another checkpoint"
        )
    package = PACKAGES.get(method, "")
    if package and find_spec(MODULES.get(package, package)) is None:
        raise ReaderError(
            f"{name}: its weights are quantised by {quantization(config)}, which needs the package "
            f"{package}: pip install {package}"
        )


def _settings(config: Any) -> dict[str, Any]:
    """The configuration of the quantizer; of a wrapper, perhaps that of the text model."""
    for one in (config, config.get_text_config()):
        found = getattr(one, "quantization_config", None)
        if found:
            return dict(found) if isinstance(found, dict) else dict(found.to_dict())
    return {}


def _method(settings: dict[str, Any]) -> str:
    method = settings.get("quant_method") or ""
    if not method and (settings.get("load_in_4bit") or settings.get("load_in_8bit")):
        return "bitsandbytes"  # older checkpoints do not name it
    return str(getattr(method, "value", method))
