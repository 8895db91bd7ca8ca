"""The keys and values of a window while it is read, in memory that is taken once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    DynamicLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionLayer,
)

from engine.attention.layer_states import cache_layers, has_memory, has_state
from engine.attention.row_form import cached_rows, caches_latents, memory_rows


class WindowLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One layer's keys and values, as a memory has them, in a buffer of `capacity` tokens.

    latent: whether the model caches latents.

    What `update` gives are views of the buffer: a chunk's rows are no copies, and the layer's
    memory is free when the last of them is let go of. A cache that grows by concatenation would
    copy all rows at every chunk, and each chunk's views would keep the whole cache of its time.
    """

    def __init__(self, capacity: int, *, latent: bool = False):
        super().__init__()  # type: ignore[no-untyped-call]
        self.capacity, self.latent = capacity, latent
        self._rows: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Put what the model caches of n tokens behind that of those before, and give all.

        Raises:
            ValueError: more than `capacity`.
        """
        like = key_states, value_states
        self.put(*memory_rows(*like, latent=self.latent))
        assert self.keys is not None
        assert self.values is not None
        return cached_rows(self.keys, self.values, like, latent=self.latent)

    def put(self, k: Tensor, v: Tensor) -> None:
        """Put rows of a memory [1, Hkv, n, D] behind those there are.

        Raises:
            ValueError: more than `capacity`.
        """
        if self._rows is None:
            self.lazy_initialization(k, v)
            self._rows = (self._empty(k), self._empty(v))
        start = self.get_seq_length()
        end = start + k.shape[-2]
        if end > self.capacity:
            raise ValueError(f"{end} rows do not fit into a window of {self.capacity}")
        for buffer, new in zip(self._rows, (k, v), strict=True):
            buffer[..., start:end, :] = new
        self.keys, self.values = (buffer[..., :end, :] for buffer in self._rows)

    def _empty(self, rows: Tensor) -> Tensor:
        shape = (*rows.shape[:-2], self.capacity, rows.shape[-1])
        return torch.empty(shape, dtype=rows.dtype, device=rows.device)


class WindowHybridLayer(WindowLayer, LinearAttentionAndFullAttentionLayer):  # type: ignore[misc,override,no-untyped-call]
    """The same of a layer that has recurrent states beside its full attention."""

    def __init__(self, capacity: int, number_of_states: int, *, latent: bool = False):
        super().__init__(capacity, latent=latent)
        LinearAttentionLayer.__init__(self, number_of_states)


class WindowCache(Cache):
    """The cache of a window. context: the length whose frequencies its keys are rotated with, see
    `rope_length`."""

    def __init__(self, layers: list[Any], context: int):
        super().__init__(layers=layers)
        self.context = context


def window_cache(config: Any, capacity: int, context: int = 0) -> Cache:
    """An empty cache for `capacity` tokens of a model of this configuration; layers without full
    attention are the library's own."""
    layers, latent = cache_layers(config), caches_latents(config)
    for number, layer in enumerate(layers):
        if has_memory(layer):
            layers[number] = (
                WindowHybridLayer(capacity, layer.number_of_states, latent=latent)
                if has_state(layer)
                else WindowLayer(capacity, latent=latent)
            )
    return WindowCache(layers, context)
