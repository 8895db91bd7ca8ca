"""The small reader: a plain Llama, and the weights it starts from.

No layer is written here; `LlamaForCausalLM` is the model. What is here is its shape
and a *structured initialisation*: the first weights already look one to four tokens
back and already find "what followed these tokens before". Training from plain noise
did not find that circuit in two million tokens; from here it is there at step 0.

How: token embeddings live in a subspace beside one constant direction u. RoPE turns
u into a clock, so the first layer's heads read exactly 1, 2, 3 and 4 tokens back and
write what they find into four free slots. In the second layer a query made of
(this token, slot 1, slot 2) meets keys made of (slot 1, slot 2, slot 3): they agree
one place behind an earlier occurrence. These live in the dimensions of RoPE that
hardly turn, so distance does not matter. Values copy the embedding.
Source: the induction circuit of Olsson et al. (arXiv 2209.11895), written in by hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from engine.train.reader import layout
from engine.train.reader.tokenizer import BOS, END, PAD, SPECIALS

if TYPE_CHECKING:
    from torch import Tensor

_SLOTS = 4
_SPREAD = 0.09  # standard deviation of an embedding's entries if it filled all dimensions
_ORDER = (1.0, 0.8, 0.6)  # weight of the latest token, the one before it, and so on


@dataclass(frozen=True)
class Shape:
    """The configuration of a reader. Head size 64; `window` is the text read in one piece."""

    vocabulary: int = 4096
    width: int = 256
    layers: int = 5
    heads: int = 4
    kv_heads: int = 2
    hidden: int = 512
    head_dim: int = 64
    theta: float = 1e8
    positions: int = 32768
    window: int = 2048

    def config(self) -> LlamaConfig:
        """As transformers wants it; `sekv_window` is the one key of our own."""
        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_dim,
            intermediate_size=self.hidden,
            max_position_embeddings=self.positions,
            rope_parameters={"rope_type": "default", "rope_theta": self.theta},
            tie_word_embeddings=True,
            bos_token_id=SPECIALS.index(BOS),
            eos_token_id=SPECIALS.index(END),
            pad_token_id=SPECIALS.index(PAD),
            sekv_window=self.window,  # type: ignore[call-arg]
        )


def build(shape: Shape, seed: int) -> LlamaForCausalLM:
    """Make a reader in float32 with its structured first weights, ready for the layout."""
    config = shape.config()
    config._attn_implementation = layout.ATTENTION
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        structure(model, shape)
    return model


def _rows(count: int, size: int) -> Tensor:
    """[count, size] random orthonormal rows, or columns if there are more rows than that."""
    tall: Tensor = torch.linalg.qr(torch.randn(max(size, count), min(size, count)))[0]
    return tall if count > size else tall.T


@torch.no_grad()
def structure(model: LlamaForCausalLM, shape: Shape) -> None:
    """Write the look-back heads, the induction layer and the copies into `model`."""
    width, dim = shape.width, shape.head_dim
    code = (width * 5) // 32  # dimensions of a slot: 40 of 256
    basis = _rows(width, width)
    clock, free = basis[0], basis[1 : width - _SLOTS * code]
    slots = basis[width - _SLOTS * code :].view(_SLOTS, code, width)

    scale = _SPREAD * width**0.5  # length of an embedding
    noise = torch.randn(shape.vocabulary, len(free))
    noise = noise / noise.norm(dim=1, keepdim=True)
    tokens = noise @ free + 0.5 * clock
    model.model.embed_tokens.weight.copy_(scale * tokens)

    read = _rows(code, len(free)) @ free  # [code, width]: the code of a token
    normed = width**0.5 / (1 + 0.5**2) ** 0.5  # length 1 before the norm is this after it
    group = shape.heads // shape.kv_heads

    first = model.model.layers[0].self_attn
    pairs = torch.arange(dim // 2)
    turn = shape.theta ** (-pairs.float() / (dim // 2))
    strength = 0.7**pairs * (pairs < 12)
    strength = (strength / strength.sum() * 30 * dim**0.5).sqrt() / (0.5 * normed)
    for head in range(shape.heads):
        back = head % _SLOTS + 1
        q = first.q_proj.weight[head * dim : (head + 1) * dim]
        q[: dim // 2] = (strength * torch.cos(back * turn))[:, None] * clock
        q[dim // 2 :] = (-strength * torch.sin(back * turn))[:, None] * clock
    for kv in range(shape.kv_heads):
        k = first.k_proj.weight[kv * dim : (kv + 1) * dim]
        k[: dim // 2] = strength[:, None] * clock
        k[dim // 2 :] = 0
        v = first.v_proj.weight[kv * dim : (kv + 1) * dim]
        v[:code], v[code:] = read, 0
    for head in range(min(shape.heads, _SLOTS)):
        first.o_proj.weight[:, head * dim : head * dim + code] = scale / normed * slots[head].T

    still = torch.cat([torch.arange(dim // 4, dim // 2), torch.arange(3 * dim // 4, dim)])
    mix = torch.stack([_rows(len(still), code) for _ in _ORDER])  # [order, still, code]
    places = (read, *slots)
    normed = width**0.5 / (1 + 0.5**2 + _SLOTS * code / len(free)) ** 0.5
    length = normed * (code / len(free)) ** 0.5  # of one code, after the norm

    def matcher(offset: int) -> Tensor:  # [still, width]
        return torch.stack(
            [w * m @ places[i + offset] for i, (w, m) in enumerate(zip(_ORDER, mix, strict=True))]
        ).sum(0)

    nats = dim**0.5 / (length**2 * sum(w * w for w in _ORDER) * len(still) / code)
    for index in range(1, shape.layers):
        attention = model.model.layers[index].self_attn
        for kv in range(shape.kv_heads):
            induce = index == 1 and kv == 0
            gain = ((15.0 if induce else 4.0) * nats) ** 0.5
            key = attention.k_proj.weight[kv * dim : (kv + 1) * dim]
            key[still] = gain * matcher(1 if induce else 0)
            value = attention.v_proj.weight[kv * dim : (kv + 1) * dim]
            part = (index * shape.kv_heads + kv) * dim
            value[:] = free[(torch.arange(dim) + part) % len(free)]
            for head in range(kv * group, (kv + 1) * group):
                query = attention.q_proj.weight[head * dim : (head + 1) * dim]
                query[still] = gain * matcher(0)
                out = attention.o_proj.weight[:, head * dim : (head + 1) * dim]
                out.copy_((0.15 if induce else 0.02) * value.T)
