"""RoPE whose frequencies follow the length of the context: dynamic NTK scaling and LongRoPE.

transformers chooses these frequencies anew at every forward, by the largest position it has seen.
A stored key was rotated once. So the length of its context is chosen when a document is read, and
every forward over the document is told that length, by its cache.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from engine.errors import ReaderError

DYNAMIC, LONGROPE = "dynamic", "longrope"


def context_for(config: Any, tokens: int) -> int:
    """The length of context whose frequencies hold for up to `tokens` positions: the shortest that
    there is, and never shorter than what the model was trained with.

    Returns:
        positions; 0 where frequencies do not depend on the length.
    Raises:
        ReaderError: layers of the model depend on it in several ways.
    """
    text = config.get_text_config(decoder=True)
    kind, trained = _changing(text)
    if not kind:
        return 0
    longest = longest_context(text)
    if tokens <= trained:
        return trained
    return longest if kind == LONGROPE else min(tokens, longest)


def longest_context(text: Any) -> int:
    """Positions of a text model: as its configuration says, and under dynamic NTK scaling, whose
    configuration says what it was trained with, `factor` times as many."""
    positions: int = text.max_position_embeddings
    factors = [rope.get("factor", 1.0) for rope in _ropes(text) if rope.get("rope_type") == DYNAMIC]
    return int(positions * max(factors, default=1.0))


def _changing(text: Any) -> tuple[str, int]:
    """The type of RoPE that depends on the length, and the length up to which it does not; "" and 0
    of a model without."""
    found = set()
    for rope in _ropes(text):
        if rope.get("rope_type") == DYNAMIC:
            found.add((DYNAMIC, int(text.max_position_embeddings)))
        if rope.get("rope_type") == LONGROPE:
            found.add((LONGROPE, int(rope["original_max_position_embeddings"])))
    if len(found) > 1:
        raise ReaderError(
            f"{text.model_type}: its layers scale RoPE with the length of the context in different "
            "ways, which is not supported; use another model"
        )
    return found.pop() if found else ("", 0)


def _ropes(text: Any) -> list[dict[str, Any]]:
    """The parameters of RoPE: of all layers, or for each kind of layer."""
    rope = getattr(text, "rope_parameters", None) or {}
    return [rope] if "rope_type" in rope else [one for one in rope.values() if one]


class RopeLength:
    """Holds the frequencies of a model at the length that the cache of a forward has as `context`;
    a forward without such a cache computes as the library does.

    The library's own code chooses them: its rotary module is shown one position more, the last of
    that context, and what it returns for this position is cut off.
    """

    def __init__(self, body: nn.Module):
        """body: the model without its head, whose config says that frequencies change."""
        self.context = 0
        self._modules = [one for one in body.modules() if hasattr(one, "rope_type")]
        if not self._modules:
            raise ReaderError(
                f"{type(body).__name__} scales RoPE with the length of the context where this tool "
                "cannot hold it; use another model"
            )
        body.register_forward_pre_hook(self._begin, with_kwargs=True)
        for module in self._modules:
            module.register_forward_pre_hook(self._lengthen, with_kwargs=True)
            module.register_forward_hook(self._shorten)

    def hold(self, context: int) -> None:
        """From now on, and until the next forward of the model; 0 leaves it to the library."""
        self.context = context
        for module in self._modules:
            for name in vars(module):
                if name.endswith("max_seq_len_cached"):  # it would not go back to a shorter one
                    setattr(module, name, 0)

    def _begin(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caches = (one for one in (*kwargs.values(), *args) if isinstance(one, Cache))
        self.hold(next((getattr(cache, "context", 0) for cache in caches), 0))

    def _lengthen(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if not self.context:
            return args, kwargs
        if "position_ids" in kwargs:
            return args, {**kwargs, "position_ids": self._with_last(kwargs["position_ids"])}
        return (args[0], self._with_last(args[1]), *args[2:]), kwargs

    def _with_last(self, positions: Tensor) -> Tensor:
        last = torch.full_like(positions[..., :1], self.context - 1)
        return torch.cat([positions, last], -1)

    def _shorten(self, _: nn.Module, __: Any, output: Any) -> Any:
        if not self.context:
            return output
        if isinstance(output, Tensor):
            return output[..., :-1, :]
        return tuple(part[..., :-1, :] for part in output)
