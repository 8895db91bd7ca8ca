"""How large the states of a model's layers will be, before its weights are read."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM

from engine.attention.layer_states import cache_layers, kept_rows, states_of
from engine.models.load import loading
from engine.models.text_part import body_of, class_of, is_wrapper, without_encoders
from engine.models.window_cache import window_cache

HALF = torch.bfloat16
"""What the model is built in: experts have no kernel for others on a device without memory."""


def state_bytes(config: Any, seen: int, dtype: torch.dtype) -> int:
    """Bytes that layers without full attention keep at the end of a context of `seen` tokens.

    The model's own code says it: it is built without weights and run on one token, on torch's
    device `meta`, where tensors have shapes and no content.

    Raises:
        ReaderError: it cannot be run so.
    """
    with loading(config.get_text_config().model_type), torch.device("meta"):
        maker: Any = AutoModelForCausalLM.from_config
        if is_wrapper(config):
            maker = without_encoders(class_of(config))
        model = maker(config).to(HALF)
        body = body_of(model)
        cache, one = window_cache(config, 1), torch.zeros(1, 1, dtype=torch.int64)
        with torch.inference_mode():
            body(input_ids=one, position_ids=one, past_key_values=cache, use_cache=True)
    layers, total = cache_layers(config), 0
    for number, state in states_of(cache.layers).items():
        for name, tensor in state.items():
            width = (dtype if tensor.dtype == HALF else tensor.dtype).itemsize
            rows = kept_rows(layers[number], seen) if name in ("keys", "values") else 1
            total += tensor.numel() * width * rows
    return total
