"""Who a model is: enough to notice other weights, another tokenizer or another shape."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import transformers
import xxhash

from engine.attention.layer_states import layer_kinds
from engine.attention.row_form import caches_latents
from engine.errors import ReaderError
from engine.models.checkpoint import weights_fingerprint
from engine.models.locate import Located
from engine.models.quantized import quantization
from engine.types import FULL, HYBRID, ModelIdentity, Progress


def identify(located: Located, config: Any, tokenizer: Any, progress: Progress) -> ModelIdentity:
    """The model's identity. What it makes of fixed tokens, `behaviour`, is not known yet.

    Raises:
        ReaderError: weight files are missing.
    """
    return replace(
        of_configuration(config),
        id=located.name,
        revision=located.revision,
        weights=weights_fingerprint(located.folder, progress),
        tokenizer=tokenizer_fingerprint(tokenizer),
    )


def of_configuration(config: Any) -> ModelIdentity:
    """What the configuration alone says of a model: its architecture and shape."""
    text = config.get_text_config()
    kinds = layer_kinds(config)
    shape = _row_shape(config, kinds)
    return ModelIdentity(
        id="",
        revision="",
        architecture=(config.architectures or [text.model_type])[0],
        weights="",
        layers=text.num_hidden_layers,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        rope=json.loads(json.dumps(getattr(text, "rope_parameters", None) or {})),
        tokenizer="",
        transformers=transformers.__version__,
        layer_kinds=kinds,
        cached=shape.cached,
        quantized=quantization(config),
    )


@dataclass(frozen=True)
class _RowShape:
    """H, Hkv, D and `cached` as in `ModelIdentity`."""

    heads: int
    kv_heads: int
    head_dim: int
    cached: int


def _row_shape(config: Any, kinds: tuple[str, ...]) -> _RowShape:
    """Of the layers with full attention, whose settings may differ from those of others.

    Raises:
        ReaderError: they differ among these layers.
    """
    text = config.get_text_config()
    numbers = [n for n, kind in enumerate(kinds) if kind in (FULL, HYBRID)] or [0]
    of_layers = getattr(text, "per_layer_config", None)
    found = {_shape_of(of_layers[n] if of_layers else text) for n in numbers}
    if len(found) > 1:
        raise ReaderError(
            f"{text.model_type}: layers with full attention have keys of different shapes, which "
            "one store does not hold"
        )
    return found.pop()


def _shape_of(settings: Any) -> _RowShape:
    heads = settings.num_attention_heads
    if caches_latents(settings):
        size = settings.kv_lora_rank + settings.qk_rope_head_dim
        return _RowShape(heads, 1, size, size)
    kv_heads = getattr(settings, "num_key_value_heads", None) or heads
    key = getattr(settings, "head_dim", None) or settings.hidden_size // heads
    value = getattr(settings, "v_head_dim", None) or key
    cached = 0 if key == value else kv_heads * (key + value)
    return _RowShape(heads, kv_heads, max(key, value), cached)


def tokenizer_fingerprint(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    body = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab())
    return xxhash.xxh3_128_hexdigest((body + str(tokenizer.chat_template)).encode())
