"""Fits a memory into its budget: routing and summaries first, then exact rows, and room to zoom."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from engine.attention.resident import TOKEN_BYTES
from engine.compression.columns import table_bytes
from engine.compression.methods import Method
from engine.compression.params import LayerParams
from engine.compression.ranges import span_ids
from engine.compression.routers import two_level
from engine.compression.routers.question_blind import layer_budgets
from engine.compression.span_tables import SpanTables
from engine.compression.spans import COMPRESSED
from engine.errors import BudgetError
from engine.memory.tables import Tables
from engine.types import AUTO, AUTO_SHARE, AUTO_TOKENS

ZOOM_RESERVE = 0.12
"""Share of a tight budget that stays free for zoomed spans: coded tokens are small, and what is not
sketched is not found."""


def parse_budget(text: str, tokens: int) -> float:
    """Document tokens that a budget allows: "10%" of them, a number, or what `AUTO` means.

    Raises:
        BudgetError: neither, or not positive.
    """
    if text == AUTO:
        return max(AUTO_SHARE * tokens, AUTO_TOKENS)
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(%?)\s*", text)
    if not match or float(match[1]) <= 0:
        raise BudgetError(f"budget '{text}' is neither a share such as 10% nor a number of tokens")
    return float(match[1]) * tokens / 100 if match[2] else float(match[1])


def read_with(params: LayerParams) -> int:
    """Bytes of what codes, sketches and span values of a layer are read with."""
    return params.nbytes + sum(table_bytes(each.bits) for each in params.quantizers)


def caps(
    recipe: Method,
    tables: Tables,
    params: list[LayerParams],
    heads: int,
    cap: float,
    row: float,
    bounded: int,
) -> list[float]:
    """Bytes per KV head for every layer, `cap` on average: what it needs for routing and summaries
    (less where all layers together need too much), and an equal share of the rest. Layers that
    were calibrated have their shares instead; a static choice needs no routing. row: bytes of
    one token's. bounded: spans that will have a span level."""
    calibrated = [each.calibration for each in params if each.calibration is not None]
    if calibrated:
        shares = [float(each.share[0]) for each in calibrated]
        return [row * rows for rows in layer_budgets(shares, int(cap / row))]
    if recipe.selector.static:
        return [cap] * len(params)
    needs = []
    for each, windows in zip(params, tables.layers, strict=True):
        fixed = two_level.expected_bytes(each, bounded) + read_with(each)
        needs.append((fixed + sum(window.tables.nbytes for window in windows)) / heads)
    mean = sum(needs) / len(needs)
    tight = min(1.0, (1 - ZOOM_RESERVE) * cap / max(1.0, mean))
    return [cap + tight * (need - mean) for need in needs]


def fit(
    recipe: Method, tables: SpanTables, params: LayerParams, room: float, spans: int
) -> tuple[SpanTables, LayerParams]:
    """Let the router shrink until routing and summaries fit `room` bytes, with the span level of
    that many spans where there will be one."""

    def needed() -> int:
        return two_level.expected_bytes(params, spans) + read_with(params) + tables.nbytes

    while tables.nbytes and needed() > room:
        smaller = recipe.router.shrink(tables, params)
        if smaller is None:
            break
        tables, params = smaller
    return tables, params


def affordable_pins(
    recipe: Method,
    tables: Tables,
    router: SpanTables,
    params: LayerParams,
    prefix: tuple[Tensor, Tensor],
    rows: Tensor,
    room: float,
) -> Tensor:
    """Spans that stay pinned: all when they fit, else the first tokens of every window, then the
    document's last, then the most surprising.

    Returns:
        int64 ids of spans, ascending.
    """
    heads, _, size = rows.shape
    pinned = torch.nonzero(tables.kind != COMPRESSED)[:, 0]
    resident = router.nbytes + sum(rows.nbytes for rows in prefix) + read_with(params)
    used = resident / heads
    used += TOKEN_BYTES * prefix[0].shape[1]
    lengths = tables.bounds.diff()
    room -= used
    cost = lengths[pinned] * (2 * size * rows.element_size() + TOKEN_BYTES)
    if float(cost.sum()) <= room:
        return pinned
    changes = torch.nonzero(tables.window.diff())[:, 0] + 1
    first = torch.cat([changes.new_zeros(1), changes])  # spans that windows begin with
    window = torch.searchsorted(first, torch.arange(len(lengths)), right=True) - 1
    totals = torch.zeros(len(lengths)).index_add_(0, span_ids(tables.bounds), tables.surprisal)
    scores = totals / lengths
    last = tables.ends > tables.tokens - recipe.local
    scores[last] = 1e6 + tables.ends[last]
    scores[tables.starts < tables.starts[first][window] + recipe.sinks] = float("inf")
    scores = scores[pinned]
    order = scores.argsort(descending=True, stable=True)
    fits = cost[order].cumsum(0) <= room
    return pinned[order[fits]].sort().values


def affordable_summaries(
    tables: Tables,
    router: SpanTables,
    params: LayerParams,
    rows: Tensor,
    compressed: Tensor,
    room: float,
) -> Tensor:
    """bool [S]: spans whose summaries fit beside the exact rows, the most surprising first.

    Those that are not compressed need none. What is free for zoomed spans stays free.
    """
    heads = rows.shape[0]
    lengths = tables.bounds.diff()
    used = (read_with(params) + 2 * rows.nbytes) / heads + TOKEN_BYTES * rows.shape[1]
    room -= used
    of_tokens, of_spans = router.token_bytes, router.nbytes - router.token_bytes
    cost = of_tokens / heads / int(lengths.sum()) * lengths + of_spans / heads / len(lengths)
    cost[~compressed] = 0
    if float(cost.sum()) <= room:
        return torch.ones(len(lengths), dtype=torch.bool)
    totals = torch.zeros(len(lengths)).index_add_(0, span_ids(tables.bounds), tables.surprisal)
    order = (totals / lengths).argsort(descending=True, stable=True)
    fits = torch.zeros(len(lengths), dtype=torch.bool)
    fits[order] = cost[order].cumsum(0) <= room
    return fits
