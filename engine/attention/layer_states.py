"""What layers without full attention keep of a context: a small state, stored exactly.

A layer with sliding-window or chunked attention keeps the keys and values of its last tokens; a
convolution, linear attention or SSM keeps its final state. Both live in the cache layers of
transformers; here their tensors are taken out of such layers and put back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import (
    DummyLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionLayer,
)

from engine.attention.rope_length import longest_context
from engine.errors import ReaderError
from engine.types import FULL, HYBRID, RECURRENT, SLIDING, STATELESS

State = Mapping[str, Tensor]
"""What one layer keeps: `keys`, `values` [Hkv, n, D] of its last n tokens, after RoPE; `conv.I` and
`recurrent.I` of its state I, in the shape and dtype that the model's own code gives them."""

States = Mapping[int, State]
"""The states of layers by their number in the model."""

_KINDS: dict[type, str] = {
    DynamicLayer: FULL,
    DynamicSlidingWindowLayer: SLIDING,
    LinearAttentionLayer: RECURRENT,
    LinearAttentionAndFullAttentionLayer: HYBRID,
    DummyLayer: STATELESS,
}


def cache_layers(config: Any) -> list[Any]:
    """Fresh layers of the library's own cache for a model of this configuration.

    Where every layer has a sliding window they are layers of full attention: such a model is read
    in contexts that are no longer than the window (see `positions`), and within one the two are the
    same.
    """
    layers = _library_layers(config)
    if _narrowest(layers):
        return [DynamicLayer() for _ in layers]  # type: ignore[no-untyped-call]
    return layers


def looking_layers(config: Any) -> frozenset[int]:
    """The numbers of the layers whose queries see all tokens before: those with a document memory,
    and those that look at the keys and values of such a layer."""
    layers = cache_layers(config)
    own = {number for number, layer in enumerate(layers) if has_memory(layer)}
    named = getattr(config.get_text_config(decoder=True), "layer_types", None) or ()
    borrowing = {
        number
        for number, kind in enumerate(named)
        if kind == FULL and isinstance(layers[number], DummyLayer)
    }
    return frozenset(own | borrowing)


def positions(config: Any) -> int:
    """Most tokens of one context: the model's positions, or the window that every layer has."""
    most = longest_context(config.get_text_config(decoder=True))
    return min(most, _narrowest(_library_layers(config)) or most)


def _library_layers(config: Any) -> list[Any]:
    """Raises ReaderError where the library has no cache for a kind of layer."""
    try:
        return list(DynamicCache(config=config).layers)
    except KeyError as kind:
        name = config.get_text_config(decoder=True).model_type
        raise ReaderError(f"{name}: layers of the kind {kind} are not supported") from None
    except ValueError as error:
        name = config.get_text_config(decoder=True).model_type
        raise ReaderError(f"{name}: transformers makes no cache for it: {error}") from None


def _narrowest(layers: Sequence[Any]) -> int:
    """The window or chunk of a model whose layers all have one; 0 of any other model."""
    if any(type(layer) is not DynamicSlidingWindowLayer for layer in layers):
        return 0
    narrowest: int = min(layer.sliding_window for layer in layers)
    return narrowest


def layer_kinds(config: Any) -> tuple[str, ...]:
    """The kind of every layer of a model, one of `types.LAYER_KINDS`; empty where all are full
    attention.

    Raises:
        ReaderError: a layer keeps something else.
    """
    layers = cache_layers(config)
    strange = sorted({type(layer).__name__ for layer in layers if type(layer) not in _KINDS})
    if strange:
        name = config.get_text_config(decoder=True).model_type
        raise ReaderError(
            f"{name}: layers whose cache is a {', '.join(strange)} are not supported: what they "
            "keep of a document is neither keys and values nor one of the states that a store holds"
        )
    kinds = tuple(_KINDS[type(layer)] for layer in layers)
    return () if set(kinds) == {FULL} else kinds


def has_memory(layer: Any) -> bool:
    """Whether a cache layer is of full attention, so that a document memory stands in for it."""
    return isinstance(layer, DynamicLayer) and not layer.is_sliding


def has_state(layer: Any) -> bool:
    """Whether a cache layer keeps a state of its own."""
    return isinstance(layer, LinearAttentionLayer | DynamicSlidingWindowLayer)


def kept_rows(layer: Any, seen: int) -> int:
    """Rows that a layer with a sliding window or chunks keeps of so many tokens."""
    return min(seen, getattr(layer, "sliding_window", 1) - 1)


def states_of(layers: Sequence[Any]) -> dict[int, dict[str, Tensor]]:
    """Copies of the states of all cache layers that keep one and have read something."""
    return {n: _state_of(layer) for n, layer in enumerate(layers) if has_state(layer)}


def put_states(layers: Sequence[Any], states: States, seen: int) -> None:
    """Let cache layers go on from these states, of which they keep copies.

    seen: tokens that were read before, which is the position of the next one.
    """
    for number, state in states.items():
        layer = layers[number]
        with torch.inference_mode(False):  # written to in whatever mode a forward runs
            if isinstance(layer, LinearAttentionLayer):
                _put_recurrent(layer, state)
            if isinstance(layer, DynamicSlidingWindowLayer):
                keys, values = (state[name][None].clone() for name in ("keys", "values"))
                layer.lazy_initialization(keys, values)
                layer.keys, layer.values = keys, values
                layer.cumulative_length = seen


def take_back(layers: Sequence[Any], rows: int, states: States, seen: int) -> None:
    """Forget the last `rows` tokens of cache layers; `states`, `seen`: as they were before."""
    for layer in filter(has_memory, layers):
        DynamicLayer.crop(layer, -rows)
    put_states(layers, states, seen)


def by_number(tensors: State) -> dict[int, dict[str, Tensor]]:
    """Tensors `{layer}.{name}`, as files hold them, by the layer's number in the model."""
    states: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        number, _, rest = name.partition(".")
        states.setdefault(int(number), {})[rest] = tensor
    return states


def nbytes(states: States) -> int:
    """Bytes of all states."""
    return sum(tensor.nbytes for state in states.values() for tensor in state.values())


def moved(states: States, devices: Sequence[torch.device]) -> dict[int, dict[str, Tensor]]:
    """The same with each layer's on its device, one for every layer of the model."""
    return {
        number: {name: tensor.to(devices[number]) for name, tensor in state.items()}
        for number, state in states.items()
    }


def _state_of(layer: Any) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    if isinstance(layer, LinearAttentionLayer):
        for name, held in (("conv", layer.conv_states), ("recurrent", layer.recurrent_states)):
            state |= {f"{name}.{i}": one.clone() for i, one in held.items() if one is not None}
    if isinstance(layer, DynamicSlidingWindowLayer):
        for name, rows in (("keys", layer.keys), ("values", layer.values)):
            state |= {} if rows is None else {name: rows[0].clone()}
    return state


def _put_recurrent(layer: LinearAttentionLayer, state: State) -> None:
    for name, tensor in state.items():
        kind, _, index = name.partition(".")
        if kind not in ("conv", "recurrent"):
            continue
        at, own = int(index), tensor.clone()
        if kind == "conv":
            layer.lazy_initialization(conv_states=own, state_idx=at)
            layer.conv_states[at] = own
        else:
            layer.lazy_initialization(recurrent_states=own, state_idx=at)
            layer.recurrent_states[at] = own
        layer.has_previous_state[at] = True
