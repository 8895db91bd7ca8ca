"""A stretch of a window after its forward, and the rows of several of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine.attention.layer_states import States


@dataclass(frozen=True)
class Chunk:
    """A stretch of a window after its forward: document tokens start .. start + n - 1.

    k, v: per layer with full attention [Hkv, n, D], keys after RoPE. surprisal: float32 [n] nats.
    hidden: [1, d] the last row's hidden state, which predicts the next chunk's first token.
    states: what the layers of other kinds keep at its end, by the layer's number in the model.
    queries, spread, near: what was asked to be observed, see `observation.ObservingProbe`; `places`
    are the document tokens whose queries `spread` holds.
    """

    start: int
    k: list[Tensor]
    v: list[Tensor]
    surprisal: Tensor
    hidden: Tensor
    queries: list[Tensor] = field(default_factory=list)
    near: Tensor | None = None
    spread: list[Tensor] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    states: States = field(default_factory=dict)


def joined_rows(chunks: list[Chunk], layer: int) -> tuple[Tensor, Tensor]:
    """k, v [Hkv, n, D] of a layer of all chunks, on the CPU."""
    k = torch.cat([chunk.k[layer] for chunk in chunks], 1)
    v = torch.cat([chunk.v[layer] for chunk in chunks], 1)
    return k.cpu(), v.cpu()
