"""Loads a checkpoint folder of transformers: configuration, tokenizer, weights, or why not.

Everything here takes a local folder; what is not here is found or fetched by `locate` before.
"""

from __future__ import annotations

import ctypes
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.cache_utils import Cache
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from engine.attention.layer_states import layer_kinds
from engine.attention.rope_length import context_for
from engine.errors import ReaderError
from engine.models.half_weights import pack_weights
from engine.models.mapped_files import MappedFiles
from engine.models.quantized import check_quantization, quantization, widen_rest
from engine.models.text_part import by_part, class_of, is_wrapper, without_encoders
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
    """The model itself, ready to answer and not to be trained; of a multimodal one the part that
    reads text.

    placement: `attn_implementation`, `device_map` and the like as transformers takes them. pack:
    hold 16-bit weights of a CPU model as they are, see `half_weights`; it still computes in
    float32.

    Raises:
        ReaderError: with one line.
    """
    maker: Any = AutoModelForCausalLM
    config = load_config(folder)
    if is_wrapper(config):
        maker = without_encoders(class_of(config))
        ours = placement["attn_implementation"]
        placement = {**placement, "config": config, "attn_implementation": by_part(config, ours)}
    with loading(str(folder)), _quietly():
        model, found = maker.from_pretrained(
            folder,
            dtype=stored_dtype(folder) if pack else dtype,
            local_files_only=True,
            output_loading_info=True,
            **placement,
        )
        check_complete(str(folder), found)
        if quantization(config):
            logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it remarks on each product
            if dtype == torch.float32:
                widen_rest(model)
        if pack:
            pack_weights(model, MappedFiles(folder).forget)
    model.eval()
    _give_back_freed()
    return model


def _give_back_freed() -> None:
    """Return to the system what loading has freed, the tokenizer's too; glibc would keep it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the library's progress bars and its report of weights that were not asked for."""
    said: Any = transformers.utils.logging
    before = said.get_verbosity()
    said.disable_progress_bar()
    said.set_verbosity_error()
    try:
        yield
    finally:
        said.set_verbosity(before)


def check_complete(name: str, found: dict[str, Any]) -> None:
    """Refuse a checkpoint that lacks weights: the library makes them up at random.

    found: what the library says of its loading. It does not miss a head tied to the embeddings.

    Raises:
        ReaderError: some are missing.
    """
    missing = sorted(found["missing_keys"])
    if missing:
        raise ReaderError(
            f"{name} lacks {len(missing)} of the model's weights, {missing[0]} among them; get the "
            "whole checkpoint"
        )


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
    text = config.get_text_config(decoder=True)
    name = text.model_type
    if config.is_encoder_decoder:
        raise ReaderError(
            f"{config.model_type}: an encoder reads its text, and what that makes of a document is "
            "no KV cache; use a model that is a decoder alone"
        )
    model = class_of(config)
    if model is None or not (_calls(model) or _calls(MODEL_MAPPING.get(type(text), None))):
        raise ReaderError(
            f"{name}: not a causal model that calls registered attention functions; the memory "
            "would be silently bypassed"
        )
    if model.forward is nn.Module.forward:
        raise ReaderError(
            f"{config.model_type}: {model.__name__} only holds other models together and answers "
            "nothing itself; use a checkpoint of the one that reads text"
        )
    if not hasattr(text, "num_hidden_layers"):
        raise ReaderError(
            f"{name}: it has no layers of one decoder, whose keys and values a memory would be; "
            "use another model"
        )
    if own := _own_caches(model):
        raise ReaderError(
            f"{name}: its code goes on from a cache of its own alone ({', '.join(own)}), for which "
            "a memory cannot stand in; use another model"
        )
    kinds = layer_kinds(config)
    if kinds and not {FULL, HYBRID} & set(kinds):
        raise ReaderError(
            f"{name}: no layer has full attention ({', '.join(sorted(set(kinds)))}), so that a "
            "memory of the document would be looked at by none"
        )
    check_quantization(config)
    context_for(config, 0)  # raises ReaderError where layers scale RoPE in different ways


def _calls(model: Any) -> bool:
    """Whether the code of a class calls registered attention functions."""
    return model is not None and hasattr(sys.modules[model.__module__], CALLED_BY)


def _own_caches(model: Any) -> list[str]:
    """The names of the caches that the code of a class has for itself."""
    code = sys.modules[model.__module__]
    made = [one for one in vars(code).values() if isinstance(one, type) and issubclass(one, Cache)]
    return [one.__name__ for one in made if one.__module__ == code.__name__]


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
        OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ImportError,
        SafetensorError, StrictDataclassError,
    ) as error:  # fmt: skip
        raise _cannot_load(name, error) from error
    except Exception as error:
        if type(error) is Exception:  # tokenizers has no error of its own
            raise _cannot_load(name, error) from error
        raise


def _cannot_load(name: str, error: Exception) -> ReaderError:
    said = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, KeyError):
        said = f"its code looks for {said} and does not find it"
    return ReaderError(f"cannot load model '{name}': {said[:200]}")
