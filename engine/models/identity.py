"""Who a model is: enough to notice other weights, another tokenizer or another shape."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import transformers
import xxhash

from engine.attention.layer_states import layer_kinds
from engine.models.checkpoint import weights_fingerprint
from engine.models.locate import Located
from engine.types import ModelIdentity, Progress


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
    heads = text.num_attention_heads
    return ModelIdentity(
        id="",
        revision="",
        architecture=(config.architectures or [text.model_type])[0],
        weights="",
        layers=text.num_hidden_layers,
        heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        rope=json.loads(json.dumps(getattr(text, "rope_parameters", None) or {})),
        tokenizer="",
        transformers=transformers.__version__,
        layer_kinds=layer_kinds(config),
    )


def tokenizer_fingerprint(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    body = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab())
    return xxhash.xxh3_128_hexdigest((body + str(tokenizer.chat_template)).encode())
