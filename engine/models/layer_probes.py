"""Probes that see the layers of a model while it reads, as its attention shows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache

from engine.compression.query_statistics import Probe
from engine.compression.terms import PLAIN, Terms


@dataclass(frozen=True)
class OfLayers:
    """A probe that is shown some layers of the model only, and their rows as a memory has them.

    latents: the cache of a model that caches latents, which are such rows.
    """

    probe: Probe
    layers: frozenset[int]
    latents: Cache | None

    def observe(self, layer: int, q: Tensor, k: Tensor, v: Tensor, terms: Terms = PLAIN) -> None:
        if layer not in self.layers:
            return
        if self.latents is not None:
            held: Any = self.latents.layers[layer]
            k, v = held.keys[0], held.values[0]
        self.probe.observe(layer, q, k, v, terms)


@dataclass(frozen=True)
class TermsProbe:
    """A probe that notes the terms of every layer's softmax."""

    found: dict[int, Terms]

    def observe(self, layer: int, q: Tensor, k: Tensor, v: Tensor, terms: Terms = PLAIN) -> None:
        self.found[layer] = terms
