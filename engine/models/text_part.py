"""The part of a multimodal checkpoint that reads text: the library's own model without encoders.

A wrapper such as Gemma3ForConditionalGeneration holds a language model beside encoders of pictures
and sound, which text alone never reaches. It is made without them, so that their weights are not
loaded; what answers is the wrapper's own code.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
)

from engine.errors import ReaderError


def class_of(config: Any) -> Any:
    """The library's class that continues text with a model of this configuration; None if it has
    none."""
    own = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    return own or MODEL_FOR_MULTIMODAL_LM_MAPPING.get(type(config), None)


def is_wrapper(config: Any) -> bool:
    """Whether the model of that class can hold more than a language model. Of some wrappers the
    library has a class for the language model alone, which takes its weights from theirs."""
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return True
    text = config.get_text_config(decoder=True)
    return text is not config and class_of(config).config_class is not type(text)


def body_of(model: Any) -> Any:
    """A model without its output head, whatever its class calls that.

    Raises:
        ReaderError: it has no such part.
    """
    body = model.base_model
    if body is model:
        body = getattr(model, "model", None)
    if body is None:
        raise ReaderError(
            f"{type(model).__name__} has no part that ends before its output head, by which a "
            "document is read; use another model"
        )
    return body


def by_part(config: Any, attention: str) -> dict[str, str]:
    """`attn_implementation` of a wrapper: this attention, and the plainest for its encoders, some
    of which know none but the library's own; they are dropped as soon as they are made."""
    text = config.get_text_config(decoder=True)
    parts = {name: getattr(config, name, None) for name in config.sub_configs}
    encoders = [name for name, part in parts.items() if part is not None and part is not text]
    reading = [name for name, part in parts.items() if part is text]
    return dict.fromkeys(["", *reading], attention) | dict.fromkeys(encoders, "eager")


def without_encoders(wrapper: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """The same class, whose models are made without the parts that read no text."""

    def init(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        wrapper.__init__(self, config, *args, **kwargs)
        _drop_encoders(self, self.get_decoder())

    # Under the wrapper's own name, by which the library renames weights of older checkpoints.
    same = {"__module__": wrapper.__module__, "__qualname__": wrapper.__qualname__}
    return type(wrapper.__name__, (wrapper,), {"__init__": init, **same})


def _drop_encoders(holder: nn.Module, decoder: nn.Module) -> None:
    """Leave out the models beside the decoder, wherever it is within `holder`."""
    for name, part in list(holder.named_children()):
        if part is decoder:
            continue
        if decoder in part.modules():
            _drop_encoders(part, decoder)
        elif isinstance(part, PreTrainedModel):
            setattr(holder, name, None)
