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

from engine.compression.params import LayerParams
from engine.compression.routers import two_level
from engine.compression.routers.sketch import Sketch
from engine.compression.routers.two_level import Levels
from engine.compression.span_tables import SpanTables

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
    params = ROUTER.fit(k[:, :4096], LayerParams())
    tables = _sketch(k, params)
    at = time.perf_counter()
    params = two_level.fit(tables, params, bounds)
    tables = two_level.build(tables, params, bounds)
    derived = time.perf_counter() - at
    times: dict[str, dict[str, float]] = {}
    for rows in (2, 64):
        q = torch.randn(HEADS, rows, SIZE, generator=made)
        taken: dict[float, list[float]] = {share: [] for share in (1.0, *refine)}
        for _ in range(ROUNDS):
            for share, seconds in taken.items():
                at = time.perf_counter()
                _score(share, q, tables, params, bounds)
                seconds.append(time.perf_counter() - at)
        times[str(rows)] = {str(s): statistics.median(each) for s, each in taken.items()}
    owner = torch.searchsorted(bounds, places, right=True) - 1
    found = {
        str(share): float(
            (_score(share, 2 * needles, tables, params, bounds).argmax(-1) == owner).float().mean()
        )
        for share in (1.0, *refine)
    }
    return {
        "tokens": tokens,
        "spans": len(lengths),
        "sketch_bytes": tables.token_bytes,
        "level_bytes": tables.nbytes - tables.token_bytes,
        "derive_s": derived,
        "score_s": times,
        "needles_first": found,
    }


def _score(
    share: float, q: Tensor, tables: SpanTables, params: LayerParams, bounds: Tensor
) -> Tensor:
    if share == 1.0:
        return ROUTER.logmass(q, tables, params, bounds)
    mass, _ = two_level.logmass(Levels(0, share), q, tables, params, bounds)
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


def _sketch(k: Tensor, params: LayerParams) -> SpanTables:
    parts = (ROUTER.build(part, part, params) for part in torch.split(k, 1 << 16, 1))
    return SpanTables.joined(list(parts))


def main(lengths: Sequence[str]) -> None:
    for length in lengths:
        print(json.dumps(measure(int(length))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
