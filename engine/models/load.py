"""Loads a checkpoint folder of transformers: configuration, tokenizer, weights, or why not.

Everything here takes a local folder; what is not here is found or fetched by `locate` before.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from engine.attention.layer_states import layer_kinds
from engine.errors import ReaderError
from engine.models.half_weights import pack_weights
from engine.models.mapped_files import MappedFiles
from engine.types import DEVICES, FULL, HYBRID, unknown_device

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

CALLED_BY = "ALL_ATTENTION_FUNCTIONS"
"""What the code of a model imports that calls registered attention functions. Whether it does call
them shows when the model is loaded."""


def load_config(folder: Path) -> Any:
    """The model's configuration. Raises ReaderError with one line."""
    with loading(str(folder)):
        return AutoConfig.from_pretrained(folder, local_files_only=True)


def load_tokenizer(folder: Path) -> Any:
    """The model's tokenizer. Raises ReaderError with one line."""
    with loading(str(folder)):
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def load_weights(
    folder: Path, dtype: torch.dtype, placement: dict[str, Any], *, pack: bool = False
) -> Any:
    """The model itself, ready to answer and not to be trained.

    placement: `attn_implementation` and `device_map` as transformers takes them. pack: hold 16-bit
    weights of a CPU model as they are, see `half_weights`; it still computes in float32.

    Raises:
        ReaderError: with one line.
    """
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    with loading(str(folder)):
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=stored_dtype(folder) if pack else dtype,
            local_files_only=True,
            **placement,
        )
        if pack:
            pack_weights(model, MappedFiles(folder).forget)
    model.eval()  # type: ignore[no-untyped-call]
    return model


def stored_dtype(folder: Path) -> torch.dtype:
    """float16 or bfloat16 where all weights of a checkpoint are, else float32, which holds any."""
    found = set()
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as weights:
            found |= {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
    kinds = {"F16": torch.float16, "BF16": torch.bfloat16}
    return kinds.get(found.pop(), torch.float32) if len(found) == 1 else torch.float32


def check_supported(config: Any) -> None:
    """Refuse, in one line, models whose attention the memory cannot stand in for."""
    text = config.get_text_config()
    name = text.model_type
    model = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if model is None or not hasattr(sys.modules[model.__module__], CALLED_BY):
        raise ReaderError(
            f"{name}: not a causal model that calls registered attention functions; the memory "
            "would be silently bypassed"
        )
    kinds = layer_kinds(config)
    if kinds and not {FULL, HYBRID} & set(kinds):
        raise ReaderError(
            f"{name}: no layer has full attention ({', '.join(sorted(set(kinds)))}), so that a "
            "memory of the document would be looked at by none"
        )
    rope = getattr(text, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") in ("dynamic", "longrope"):
        raise ReaderError(
            f"{name}: RoPE of type {rope['rope_type']} changes with the length read so far, so "
            "keys stored once would be wrong; use a checkpoint with default, linear, llama3 or "
            "yarn scaling"
        )


def pick_device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(DEVICES, device):
        raise ReaderError(unknown_device(device))
    place = torch.device(device)
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise ReaderError(
            f"no device '{device}' here ({torch.cuda.device_count()} CUDA devices seen); "
            "use --device cpu"
        )
    return place


def pick_dtype(dtype: str, device: torch.device, config: Any) -> torch.dtype:
    """auto: the checkpoint's own on a GPU, float32 on a CPU."""
    if dtype == "auto":
        own = getattr(config, "dtype", None)
        return own if device.type == "cuda" and own is not None else torch.float32
    if dtype not in DTYPES:
        raise ReaderError(f"unknown dtype '{dtype}'; use auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]


@contextmanager
def loading(name: str) -> Iterator[None]:
    """Whatever the libraries meet in a model's files becomes one line: they check none of them,
    so that a file of the wrong shape ends in any error of Python's."""
    try:
        yield
    except (
        OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, SafetensorError,
    ) as error:  # fmt: skip
        raise _cannot_load(name, error) from error
    except Exception as error:
        if type(error) is Exception:  # tokenizers has no error of its own
            raise _cannot_load(name, error) from error
        raise


def _cannot_load(name: str, error: Exception) -> ReaderError:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ReaderError(f"cannot load model '{name}': {first[:200]}")
