"""What it costs to score a sketch of very many tokens: every token, and spans first.

Keys are random, drift as a text's topics do, and hold needles that one query each asks for. Both
ways take turns in one process; only their ratios are meant to be quoted.

    python -m engine.lab.bench.scoring 32768 131072 1048576
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from engine.compression.codecs.base import Side
from engine.compression.routers import two_level
from engine.compression.routers.sketch import Sketch
from engine.compression.routers.two_level import Levels

HEADS, SIZE, ROUNDS, NEEDLES = 2, 64, 5, 16
ROUTER = Sketch(bits=1.0)
TOPIC = 64
"""Tokens that have a direction in common."""


def measure(tokens: int, refine: Sequence[float] = (0.25, 0.5)) -> dict[str, Any]:
    """One layer's sketch of so many tokens, in spans of eight on average.

    Returns:
        spans; bytes of sketch and span level; seconds to derive that; per number of query rows and
        share of spans refined the median seconds, "1.0" is the one level; and the share of needles
        whose span is first for its query.
    """
    made = torch.Generator().manual_seed(tokens)
    lengths = torch.randint(4, 13, (tokens // 8 + 1,), generator=made)
    bounds = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    tokens = int(bounds[-1])
    k, needles, places = _keys(tokens, made)
    side = ROUTER.fit(k[:, :4096], {})
    device = {"sketch.t": _sketch(k, side)}
    at = time.perf_counter()
    side |= two_level.fit(device, side, bounds)
    device |= two_level.build(device, side, bounds)
    derived = time.perf_counter() - at
    times: dict[str, dict[str, float]] = {}
    for rows in (2, 64):
        q = torch.randn(HEADS, rows, SIZE, generator=made)
        taken: dict[float, list[float]] = {share: [] for share in (1.0, *refine)}
        for _ in range(ROUNDS):
            for share, seconds in taken.items():
                at = time.perf_counter()
                _score(share, q, device, side, bounds)
                seconds.append(time.perf_counter() - at)
        times[str(rows)] = {str(s): statistics.median(each) for s, each in taken.items()}
    owner = torch.searchsorted(bounds, places, right=True) - 1
    found = {
        str(share): float(
            (_score(share, 2 * needles, device, side, bounds).argmax(-1) == owner).float().mean()
        )
        for share in (1.0, *refine)
    }
    level = sum(device[name].nbytes for name in ("ball.s", "radius.s"))
    return {
        "tokens": tokens,
        "spans": len(lengths),
        "sketch_bytes": device["sketch.t"].nbytes,
        "level_bytes": level,
        "derive_s": derived,
        "score_s": times,
        "needles_first": found,
    }


def _score(share: float, q: Tensor, device: Side, side: Side, bounds: Tensor) -> Tensor:
    if share == 1.0:
        return ROUTER.logmass(q, device, side, bounds)
    mass, _ = two_level.logmass(ROUTER, Levels(0, share), q, device, side, bounds)
    return mass


def _keys(tokens: int, made: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Keys [HEADS, n, SIZE], the needles among them [HEADS, NEEDLES, SIZE], and their places."""
    strength = 2.0 * torch.arange(1, SIZE + 1) ** -0.5
    topics = torch.randn(HEADS, tokens // TOPIC + 1, SIZE, generator=made)
    k = topics.repeat_interleave(TOPIC, 1)[:, :tokens].mul_(0.6)
    k = k.add_(torch.randn(k.shape, generator=made), alpha=0.8).mul_(strength)
    needles = torch.randn(HEADS, NEEDLES, SIZE, generator=made) * strength
    needles = 10 * needles / needles.norm(dim=-1, keepdim=True)
    places = torch.randint(0, tokens, (NEEDLES,), generator=made)
    k[:, places] = needles
    return k, needles, places


def _sketch(k: Tensor, side: Side) -> Tensor:
    parts = [ROUTER.build(part, part, side)["sketch.t"] for part in torch.split(k, 1 << 16, 1)]
    return torch.cat(parts, 1)


def main(lengths: Sequence[str]) -> None:
    for length in lengths:
        print(json.dumps(measure(int(length))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
