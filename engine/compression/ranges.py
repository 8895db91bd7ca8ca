"""Spans as ranges of tokens: ids, means, padding and gathers over them."""

from __future__ import annotations

import torch
from torch import Tensor


def span_ids(bounds: Tensor) -> Tensor:
    """The span of every token, [N], from bounds [S + 1]."""
    lengths = bounds.diff()
    return torch.repeat_interleave(torch.arange(len(lengths), device=bounds.device), lengths)


def span_mean(rows: Tensor, weights: Tensor, bounds: Tensor) -> Tensor:
    """Weighted mean of the rows of each span.

    Args:
        rows: [Hkv, N, D].  weights: [N], not negative.  bounds: [S + 1].
    Returns:
        [Hkv, S, D] in float32; the plain mean where a span's weights are all zero.
    Source: SeKV (arXiv 2606.31145), equations for the summary key and value.
    """
    ids = span_ids(bounds)
    count = len(bounds) - 1
    lengths = bounds.diff().to(torch.float32)
    w = weights.to(torch.float32)
    total = torch.zeros(count, device=rows.device).index_add_(0, ids, w)
    w = torch.where(total[ids] > 0, w / total.clamp_min(1e-30)[ids], 1.0 / lengths[ids])
    weighted = (rows.to(torch.float32) * w[:, None]).transpose(0, 1)
    means = torch.zeros(count, rows.shape[0], rows.shape[2], device=rows.device)
    return means.index_add_(0, ids, weighted).transpose(0, 1).contiguous()


def blocks_of_spans(bounds: Tensor, tokens: int) -> list[tuple[int, int]]:
    """Runs of spans (first, last + 1) of at most `tokens` tokens, or of one span."""
    spans = len(bounds) - 1
    runs, first = [], 0
    while first < spans:
        last = int(torch.searchsorted(bounds, bounds[first] + tokens, right=True)) - 1
        last = max(first + 1, last)
        runs.append((first, last))
        first = last
    return runs


def padded_spans(rows: Tensor, owner: Tensor) -> tuple[Tensor, Tensor]:
    """Rows span by span, zeros where a span is shorter than the longest.

    Args:
        rows: [Hkv, N, D].  owner: [N] the span of every token, see `span_ids`.
    Returns:
        [Hkv, S, n, D] float32, and bool [1, S, n] where a token is.
    """
    lengths = torch.bincount(owner)
    first = lengths.cumsum(0) - lengths
    place = torch.arange(len(owner), device=owner.device) - first[owner]
    inside = torch.arange(int(lengths.max()), device=owner.device) < lengths[:, None]
    out = rows.new_zeros(rows.shape[0], *inside.shape, rows.shape[2], dtype=torch.float32)
    out[:, owner, place] = rows.float()
    return out, inside[None]


def gather_ranges(starts: Tensor, lengths: Tensor) -> Tensor:
    """Indices of the ranges start .. start + length - 1, one after another, [sum(lengths)]."""
    total = int(lengths.sum())
    ends = lengths.cumsum(0)
    offset = torch.repeat_interleave(starts - (ends - lengths), lengths)
    return offset + torch.arange(total, device=starts.device)
