"""A document memory made of plain tensors: no model, no files. Not a test itself."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from engine.attention.host_records import Host
from engine.attention.layer import LayerMemory
from engine.attention.shared import Shared
from engine.attention.shares import Limits
from engine.attention.step import Step
from engine.attention.view import View
from engine.compression.codecs.base import Records
from engine.compression.codecs.shared_basis import SharedBasis
from engine.compression.encode import CompressedLayer, compress_layer, fit, pinned_tokens
from engine.compression.methods import METHODS, Method
from engine.compression.ranges import gather_ranges
from engine.compression.routers import two_level
from engine.compression.span_tables import DeviceLayer
from engine.compression.spans import COMPRESSED, Spans

EXACT = replace(METHODS["sekv"], codec=SharedBasis(bits=32), half_rows=False)
NO_LIMIT = Limits(math.inf, 1.0)


@dataclass
class Section:
    """The host section of one window, in memory; it remembers what was read."""

    records: Records
    heads: int
    reads: list[int] = field(default_factory=list)

    def offsets(self, layer: int) -> Tensor:
        return self.records.offsets

    def read(self, layer: int, spans: Tensor, *, out: Tensor) -> Tensor:
        bounds = self.records.offsets[:: self.heads]
        self.reads += spans.tolist()
        places = gather_ranges(bounds[spans], bounds[spans + 1] - bounds[spans])
        out[: len(places)] = self.records.payload[places]
        return out[: len(places)]


@dataclass
class StepRecorder:
    """A watcher that records every step."""

    steps: list[Step] = field(default_factory=list)

    def record(self, step: Step) -> None:
        self.steps.append(step)


def rows(seed: int, heads: int, tokens: int, size: int) -> tuple[Tensor, Tensor]:
    """Random k, v [heads, tokens, size] with a few strong directions, as real ones have."""
    made = torch.Generator().manual_seed(seed)
    strength = 2.0 / (1 + torch.arange(size))
    turn = torch.linalg.qr(torch.randn(size, size, generator=made)).Q
    k, v = (torch.randn(heads, tokens, size, generator=made) * strength @ turn for _ in range(2))
    return k, v


def fixed_spans(tokens: int, length: int, sinks: int = 1) -> Spans:
    """Equal spans, the first `sinks` tokens pinned."""
    from engine.compression.spans import Fixed, pin_ends

    return pin_ends(Fixed(length).cut(torch.zeros(tokens), []), sinks, 0)


def layers(
    windows: list[list[tuple[Tensor, Tensor]]],
    spans: list[Spans],
    *,
    recipe: Method = EXACT,
    limits: Limits = NO_LIMIT,
    surprisal: Tensor | None = None,
    balls: bool = False,
) -> list[LayerMemory]:
    """The layers of a memory.

    Args:
        windows: per layer and window k, v [Hkv, n, D].  spans: per window.
        surprisal: [N], ones when not given.  balls: with a span level of the sketch.
    """
    starts = [0]
    for cut in spans:
        starts.append(starts[-1] + int(cut.bounds[-1]))
    bounds = torch.cat(
        [torch.zeros(1, dtype=torch.int64)]
        + [cut.bounds[1:].long() + start for cut, start in zip(spans, starts, strict=False)]
    )
    kind = torch.cat([cut.kind for cut in spans])
    window = torch.cat([torch.full((len(c.kind),), i) for i, c in enumerate(spans)])
    pinned = torch.cat(
        [pinned_tokens(c.bounds, c.kind) + start for c, start in zip(spans, starts, strict=False)]
    )
    weight = torch.ones(starts[-1]) if surprisal is None else surprisal
    shared = Shared(bounds, len(spans))
    view = View.of(torch.nonzero(kind == COMPRESSED)[:, 0], bounds, window)
    for index, parts in enumerate(windows):
        compressed: list[CompressedLayer] = []
        params = None
        for (k, v), cut, start in zip(parts, spans, starts, strict=False):
            inside = weight[start : start + k.shape[1]]
            params = params or fit(recipe, k, v, inside, cut)
            compressed.append(compress_layer(recipe, k, v, inside, cut, params))
        assert params is not None
        device = DeviceLayer.joined([part.device for part in compressed])
        assert device.exact is not None
        k, v = device.exact
        everything = View.of(torch.arange(len(kind)), bounds, window)
        keep = kind == COMPRESSED
        heads = len(k)
        sections: list[Any] = [Section(part.records, heads) for part in compressed]
        host = Host(index, sections, [len(c.kind) for c in spans], heads)
        tables = device.tables.pick(everything.pick(keep)[1], keep)
        if balls:
            params = two_level.fit(tables, params, view.bounds)
            tables = two_level.build(tables, params, view.bounds)
        shared.layers.append(
            LayerMemory(index, recipe, shared, limits, params, (k, v, pinned), view, tables, host)
        )
    return shared.layers


def layer(k: Tensor, v: Tensor, spans: Spans, **changes: Any) -> LayerMemory:
    """One layer of one window."""
    return layers([[(k, v)]], [spans], **changes)[0]


def plain(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """Softmax attention in float64 by the book: q [H, Q, D], k and v [Hkv, N, D], seen [Q, N]."""
    group = len(q) // len(k)
    k, v = (x.double().repeat_interleave(group, 0) for x in (k, v))
    scores = q.double() @ k.mT / math.sqrt(q.shape[-1])
    return scores.masked_fill(~seen, -math.inf).softmax(-1) @ v
