"""Measures retrieval heads of a model, and what compression costs each layer.

Needles are hidden in ordinary text, the model reads it with a question behind and is made to say
the needle; nothing is trained and no evaluation text is read. The result is
`compresskv_heads.Heads`.
Source: CompressKV (arXiv 2606.24467), section 3.2 (scores) and 3.3 (layer errors). There the model
must have answered by itself; here the answer is forced, so that a weak model is measured too, and
errors are taken before the output projection, which not every architecture names alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import DynamicCache

from engine.compression.terms import PLAIN, Terms
from engine.errors import TrainError
from engine.lab.train.trainable import check_trainable
from engine.models.compresskv_heads import Heads
from engine.models.evidence_heads import attention_rows

if TYPE_CHECKING:
    from engine.compression.query_statistics import Probe
    from engine.models.reader import Reader
    from engine.types import Progress

PLACES = ("harbour", "old mill", "lighthouse", "north gate", "chapel", "market", "quarry")
THINGS = ("lantern", "violin", "compass", "ledger", "almanac", "telescope", "chisel", "anvil")
EPSILON = 1e-6


@dataclass(frozen=True)
class HeadSetting:
    """lengths: tokens of text around a needle. depths: where it stands. each: needles per length
    and depth. heads: kept per layer, at most a quarter of them. rows: tokens per layer that a
    compressed layer has."""

    lengths: tuple[int, ...] = (256, 512, 1024)
    depths: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    each: int = 2
    heads: int = 4
    rows: int = 32
    seed: int = 0


@dataclass(frozen=True)
class Needle:
    """ids: what is read. start, end: where the needle stands in them. said: the last rows, which
    predict the needle's tokens."""

    ids: list[int]
    start: int
    end: int
    said: int


@dataclass
class Scores:
    """Measures how much attention each head gives to the needle. score: [L, H]."""

    score: Tensor
    needle: Needle

    def observe(self, layer: int, q: Tensor, k: Tensor, v: Tensor, terms: Terms = PLAIN) -> None:
        share = attention_rows(q[:, -self.needle.said :], k, terms)
        inside = share[:, :, self.needle.start : self.needle.end]
        self.score[layer] += inside.sum(-1).sum(-1).cpu()


@dataclass
class Errors:
    """Measures what is lost when a layer has `rows` tokens. error: [L]."""

    error: Tensor
    needle: Needle
    heads: list[list[int]]
    rows: int

    def observe(self, layer: int, q: Tensor, k: Tensor, v: Tensor, terms: Terms = PLAIN) -> None:
        q = q[:, -self.needle.said :]
        share = attention_rows(q, k, terms)
        values = v.float().repeat_interleave(len(q) // len(k), 0)
        whole = torch.bmm(share, values)
        wanted = share[self.heads[layer]].sum((0, 1))
        wanted[-self.needle.said :] = torch.inf  # the answer so far is always there
        kept = torch.zeros_like(share)
        kept[:, :, wanted.topk(min(len(wanted), self.rows + self.needle.said)).indices] = 1
        left = share * kept
        out = torch.bmm(left / left.sum(-1, keepdim=True).clamp_min(EPSILON), values)
        lost = (whole - out).permute(1, 0, 2).flatten(1).norm(dim=-1)
        size = whole.permute(1, 0, 2).flatten(1).norm(dim=-1)
        self.error[layer] += float((lost / (size + EPSILON)).sum())


@torch.inference_mode()
def calibrate(reader: Reader, text: str, setting: HeadSetting, progress: Progress) -> Heads:
    """Measure a loaded model on a text of the caller's.

    Raises:
        TrainError: the text is too short, or the model too small for every length.
    """
    check_trainable(reader)
    filler = reader.tokenizer.encode(text, add_special_tokens=False)
    most = min(len(filler), reader.max_positions - 256)
    lengths = [length for length in setting.lengths if length <= most]
    if not lengths:
        raise TrainError(
            f"the text has {len(filler)} tokens and the model {reader.max_positions} positions; "
            f"needles need {min(setting.lengths)} tokens of text around them and 256 more positions"
        )
    rng = Random(setting.seed)
    needles = [
        hide(reader, filler, length, depth, rng)
        for length in lengths
        for depth in setting.depths
        for _ in range(setting.each)
    ]
    layers = reader.layers
    progress.start("calibrating", 2 * len(needles), "needles")
    score = torch.zeros(layers, reader.identity.heads)
    for needle in needles:
        _read(reader, needle, Scores(score, needle))
        progress.advance(1)
    score /= len(needles)
    kept = min(setting.heads, max(1, reader.identity.heads // 4))
    heads = score.argsort(dim=-1, descending=True, stable=True)[:, :kept].tolist()
    error = torch.zeros(layers)
    for needle in needles:
        _read(reader, needle, Errors(error, needle, heads, setting.rows))
        progress.advance(1)
    return Heads(
        model=reader.identity.id,
        weights=reader.identity.weights,
        heads=heads,
        scores=[[round(float(s), 6) for s in layer] for layer in score],
        layer_share=[round(float(e), 6) for e in error / error.sum()],
        made={
            "needles": len(needles),
            "lengths": lengths,
            "rows": setting.rows,
            "seed": setting.seed,
        },
    )


def hide(reader: Reader, filler: list[int], length: int, depth: float, rng: Random) -> Needle:
    """A needle in `length` tokens of text, the question for it, and the needle once more."""
    encode = reader.tokenizer.encode
    thing, place = rng.choice(THINGS), rng.choice(PLACES)
    fact = f" The number on the {thing} of the {place} is {rng.randrange(1000, 10000)}."
    needle = encode(fact, add_special_tokens=False)
    question = f"What is the number on the {thing} of the {place}?"
    start = rng.randrange(len(filler) - length + 1)
    around = filler[start : start + length]
    place_at = round(depth * length)
    before = [*reader.prompt.prefix, *around[:place_at]]
    asked = reader.prompt.question(reader.tokenizer, question)
    ids = [*before, *needle, *around[place_at:], *asked, *needle[:-1]]
    return Needle(ids, len(before), len(before) + len(needle), len(needle))


def _read(reader: Reader, needle: Needle, probe: Probe) -> None:
    tokens = torch.tensor([needle.ids], device=reader.devices[0])
    cache = DynamicCache(config=reader.model.config)
    reader.model.base_model(input_ids=tokens, past_key_values=cache, use_cache=True, probe=probe)
