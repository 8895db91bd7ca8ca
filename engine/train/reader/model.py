"""The small reader: a plain Llama, and the weights it starts from.

No layer is written here; `LlamaForCausalLM` is the model. What is here is its shape
and a *structured initialisation*: the first weights already look one to four tokens
back and already find "what followed these tokens before". Training from plain noise
did not find that circuit in two million tokens; from here it is there at step 0.

How: token embeddings live in a subspace beside one constant direction u. RoPE turns
u into a clock, so the first layer's heads read exactly 1, 2 and 3 tokens back and
write what they find into free slots. In the second layer a query made of
(this token, slot 1, slot 2) meets keys made of (slot 1, slot 2, slot 3): they agree
one place behind an earlier occurrence. These live in the dimensions of RoPE that
hardly turn, so distance does not matter. Values copy the embedding. Another head there
looks at the first token of its sentence and keeps it in a slot, and one gathers the rarer
of the last ten tokens in a slot. In the third layer the same match is made once more, now
among the text alone (not in the question itself, whose sentence begins with a mark) and
preferring places around which much the same words were gathered.
Source: the induction circuit of Olsson et al. (arXiv 2209.11895), written in by hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from engine.train.reader import layout
from engine.train.reader.tokenizer import BOS, END, PAD, SPECIALS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

_BACK = 3
_START, _BAG = 3, 4  # after three tokens back: the sentence's first token; what was said lately
_SLOTS = 5
_KINSHIP = 0.6  # cosine of two spellings of one word ("But", " but") at birth
_SPREAD = 0.09  # standard deviation of an embedding's entries if it filled all dimensions
_ORDER = (1.0, 0.8, 0.6)  # weight of the latest token, the one before it, and so on


@dataclass(frozen=True)
class Shape:
    """The configuration of a reader. Head size 64; `window` is the text read in one piece."""

    vocabulary: int = 4096
    width: int = 256
    layers: int = 4
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


@dataclass(frozen=True)
class Tokens:
    """What the first embeddings know of the tokens.

    kin: of each token the class whose members start out alike; class 0 ends sentences,
        class 1 are the marks of question and answer.
    rarity: of each token from 0 (the commonest) to 1.
    """

    kin: Sequence[int]
    rarity: Sequence[float]


def strangers(count: int) -> Tokens:
    """Tokens of which nothing is known."""
    return Tokens(range(2, count + 2), [1.0] * count)


def build(shape: Shape, seed: int, tokens: Tokens | None = None) -> LlamaForCausalLM:
    """Make a reader in float32 with its structured first weights, ready for the layout."""
    config = shape.config()
    config._attn_implementation = layout.ATTENTION
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        structure(model, shape, tokens or strangers(shape.vocabulary))
    return model


def _rows(count: int, size: int) -> Tensor:
    """[count, size] random orthonormal rows, or columns if there are more rows than that."""
    tall: Tensor = torch.linalg.qr(torch.randn(max(size, count), min(size, count)))[0]
    return tall if count > size else tall.T


def _unit(count: int, size: int) -> Tensor:
    rows: Tensor = torch.nn.functional.normalize(torch.randn(count, size), dim=1)
    return rows


@torch.no_grad()
def structure(model: LlamaForCausalLM, shape: Shape, tokens: Tokens) -> None:
    """Write the look-back heads, the induction layer and the copies into `model`."""
    width, dim, kvs = shape.width, shape.head_dim, shape.kv_heads
    group = shape.heads // kvs
    code = width // 8  # dimensions of a slot: 32 of 256
    basis = _rows(width, width)
    clock, rare, common = basis[:3]
    free = basis[3 : width - _SLOTS * code]
    slots = basis[width - _SLOTS * code :].view(_SLOTS, code, width)

    scale = _SPREAD * width**0.5  # length of an embedding
    shared = _unit(max(tokens.kin) + 1, len(free))
    kin = torch.tensor(tokens.kin)
    alike = torch.where(kin < 2, 0.85, _KINSHIP)[:, None]
    noise = alike.sqrt() * shared[kin]
    noise += (1 - alike).sqrt() * _unit(shape.vocabulary, len(free))
    noise = noise / noise.norm(dim=1, keepdim=True)
    rarity = torch.tensor(tokens.rarity)[:, None]
    known = clock + rarity * rare + (1 - rarity**2).sqrt() * common  # of one length for all
    model.model.embed_tokens.weight.copy_(scale * (noise @ free + 0.5 * known))
    reading = _rows(code, len(free))
    read = reading @ free  # [code, width]: the code of a token

    def head_rows(weight: Tensor, head: int) -> Tensor:
        return weight[head * dim : (head + 1) * dim]

    def out_columns(weight: Tensor, head: int, size: int = dim) -> Tensor:
        return weight[:, head * dim : head * dim + size]

    # Layer 0: heads that look back by the clock.
    normed = width**0.5 / (1 + 2 * 0.5**2) ** 0.5  # length 1 before the norm is this after it
    first = model.model.layers[0].self_attn
    pairs = torch.arange(dim // 2)
    turn = shape.theta ** (-pairs.float() / (dim // 2))
    strength = 0.7**pairs * (pairs < 12)
    strength = (strength / strength.sum() * 30 * dim**0.5).sqrt() / (0.5 * normed)
    for head in range(shape.heads):
        back = head % _SLOTS + 1
        q = head_rows(first.q_proj.weight, head)
        q[: dim // 2] = (strength * torch.cos(back * turn))[:, None] * clock
        q[dim // 2 :] = (-strength * torch.sin(back * turn))[:, None] * clock
        out = out_columns(first.o_proj.weight, head)
        out[:] = 0  # a head without a slot is silent until it has learnt something
        if head < _BACK:
            out[:, :code] = scale / normed * slots[head].T
    for kv in range(kvs):
        k = head_rows(first.k_proj.weight, kv)
        k[: dim // 2], k[dim // 2 :] = strength[:, None] * clock, 0
        v = head_rows(first.v_proj.weight, kv)
        v[:code], v[code:] = read, 0

    # Later layers: matching in the dimensions that hardly turn.
    still = torch.cat([torch.arange(dim // 4, dim // 2), torch.arange(3 * dim // 4, dim)])
    mix = torch.stack([_rows(len(still), code) for _ in _ORDER])  # [order, still, code]
    places = (read, *slots[:_BACK])
    share = code / len(free)
    normed = width**0.5 / (1 + 2 * 0.5**2 + _SLOTS * share) ** 0.5
    length = normed * share**0.5  # of one code, after the norm

    def matcher(offset: int) -> Tensor:  # [still, width]
        parts = zip(_ORDER, mix, places[offset:], strict=False)
        return torch.stack([w * m @ place for w, m, place in parts]).sum(0)

    bag = _rows(len(still), code) @ slots[_BAG]
    end, mark = reading @ shared[0], reading @ shared[1]  # [code] of sentence ends, of marks
    begins = end @ slots[0] / end.norm() ** 2 + 1.2 * shared[1] @ free
    asked = mark @ slots[_START] / mark.norm() ** 2

    def gain(nats: float, weight: float) -> float:
        return float((nats * dim**0.5 / (length**2 * weight)) ** 0.5)

    for index in range(1, shape.layers):
        attention = model.model.layers[index].self_attn
        for kv in range(kvs):
            key = head_rows(attention.k_proj.weight, kv)
            value = head_rows(attention.v_proj.weight, kv)
            heads = range(kv * group, (kv + 1) * group)
            induce, begin = index == 1 and kv == 0, index == 1 and kv == kvs - 1
            find = index == 2 and kv == 0
            size = gain(15.0 if induce or find else 4.0, sum(w * w for w in _ORDER))
            around = gain(3.0, 0.2) * bag if find else 0 * bag
            part = torch.arange(dim) + (index * kvs + kv) * dim
            value[:] = free[part % len(free)]
            if begin:
                _look_at_start(
                    attention,
                    (kv, heads),
                    (clock, begins, rare),
                    turn,
                    normed,
                )
                value[:code], value[code:] = read, 0
                attention.o_proj.weight[:, heads[0] * dim :] = 0
                for head, slot in zip(heads, (slots[_START], 2 * slots[_BAG]), strict=False):
                    out_columns(attention.o_proj.weight, head, code).copy_(scale / normed * slot.T)
                continue
            key[still] = size * matcher(1 if induce or find else 0) + around
            if find:
                key[dim // 4 - 1] = asked / normed  # not among the words of the question itself
            for head in heads:
                query = head_rows(attention.q_proj.weight, head)
                query[still] = size * matcher(0) + around
                out = out_columns(attention.o_proj.weight, head)
                if find:
                    query[dim // 4 - 1] = -30 * dim**0.5 / (0.5 * normed) * clock
                out.copy_((0.15 if induce else 0.06 if find else 0.02) * value.T)


def _look_at_start(
    attention: Any,
    place: tuple[int, range],
    directions: tuple[Tensor, Tensor, Tensor],
    turn: Tensor,
    normed: float,
) -> None:
    """Make one head look at the latest token after the end of a sentence, the next at late tokens.

    Args:
        place: the KV head, and its query heads.
        directions: [width] each: the constant one; how much a token looks like the first of
            a sentence; how rare it is.
        turn: [dim / 2] RoPE's frequencies.
        normed: length after the norm of what is 1 before it.
    """
    kv, heads = place
    clock, begins, rare = directions
    dim = 2 * len(turn)
    constant = 0.5 * normed
    # Nats of each frequency: a sum of slow cosines falls with distance for thousands of tokens.
    latest = dict(zip(range(7, 12), (16.0, 12.0, 8.0, 8.0, 6.0), strict=True))
    late = {4: 4.0, 6: 6.0, 8: 8.0, 10: 8.0}
    key = attention.k_proj.weight[kv * dim : (kv + 1) * dim]
    key[:] = 0
    for pair in {*latest, *late}:
        key[pair] = clock / constant
    key[dim - 1], key[dim - 2] = begins / normed, rare / constant
    for number, head in enumerate(heads):
        query = attention.q_proj.weight[head * dim : (head + 1) * dim]
        query[:] = 0
        for pair, nats in (late if number else latest).items():
            query[pair] = nats * dim**0.5 / constant * clock
        if number:
            query[dim - 2] = 3 * dim**0.5 / constant * clock
        else:
            query[dim - 1] = 20 * dim**0.5 / constant * clock
