"""A window's keys and values become what the store keeps: prefill + recipe -> tensors.

Pure tensor work: no files, no model. `fit` learns a layer's side information from the first
window; `fold_layer` turns any window's rows into device tensors and host records.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine import ops
from engine.policies import summarise
from engine.policies.codec import Records, Side
from engine.policies.segment import FOLDED, Spans, pin_ends
from engine.policies.segment_text import Delimiters
from engine.recipe import Recipe


@dataclass(frozen=True)
class Folded:
    """One layer of one window. device: tensors by name; records: the spans' codes."""

    device: Side
    records: Records


def segment(
    recipe: Recipe,
    surprisal: Tensor,
    pieces: list[str],
    *,
    last: bool,
    near: Tensor | None = None,
) -> Spans:
    """Cut a window and pin its ends; only the document's last window has a local window.

    near: [n, reach], see `observe`, for segmenters that look at attention.
    """
    if isinstance(recipe.segmenter, Delimiters):
        spans = recipe.segmenter.cut(surprisal, pieces, near)
    else:
        spans = recipe.segmenter.cut(surprisal, pieces)
    return pin_ends(spans, recipe.sinks, recipe.local if last else 0)


def fit(
    recipe: Recipe,
    k: Tensor,
    v: Tensor,
    surprisal: Tensor,
    spans: Spans,
    given: Side | None = None,
) -> Side:
    """Side information of a layer, shared by all windows.

    Args:
        k, v: [Hkv, n, D] of the first window.  given: what was calibrated for this layer.
    """
    if recipe.whole:
        return recipe.codec.fit(k, v)
    # Sinks have outlying norms and stay exact; they must not stretch basis and steps.
    body = slice(min(recipe.sinks, k.shape[1] - 1), None)
    side = {**(given or {}), **recipe.codec.fit(k[:, body], v[:, body])}
    side |= recipe.router.fit(k[:, body], side)
    if recipe.selector.hides:
        return side
    values = recipe.summariser.summarise(v, surprisal, spans.bounds)
    return side | summarise.fit_values(values, recipe.summariser.value_bits, side)


def fold_layer(
    recipe: Recipe,
    k: Tensor,
    v: Tensor,
    surprisal: Tensor,
    spans: Spans,
    side: Side,
    queries: Tensor | None = None,
) -> Folded:
    """Device tensors and host records of one layer of one window.

    k, v: [Hkv, n, D]. queries: [H, w, D] of its last tokens, for routers that observe them.
    """
    records = recipe.codec.encode(k, v, spans.bounds, side)
    device = device_tensors(recipe, k, v, surprisal, spans, side, queries)
    if recipe.keep < 1:
        records = _drop(recipe.keep, records, device["rank.s"], spans, side)
    return Folded(device, records)


def device_tensors(
    recipe: Recipe,
    k: Tensor,
    v: Tensor,
    surprisal: Tensor,
    spans: Spans,
    side: Side,
    queries: Tensor | None = None,
) -> Side:
    """What of one layer of one window stays on the device; k, v, queries as in `fold_layer`."""
    if recipe.whole:
        return {}
    keys = recipe.summariser.summarise(k, surprisal, spans.bounds)
    seen = {**side, "owner": ops.span_ids(spans.bounds)}
    if queries is not None:
        seen["observed"] = queries
    device = recipe.router.build(k, keys, seen)
    if not recipe.selector.hides:
        values = recipe.summariser.summarise(v, surprisal, spans.bounds)
        device |= summarise.pack_values(values, recipe.summariser.value_bits, side)
    kept = pinned_tokens(spans.bounds, spans.kind)
    dtype = row_dtype(recipe, k.dtype)
    device["pinned_k"] = k[:, kept].to(dtype).contiguous()
    device["pinned_v"] = v[:, kept].to(dtype).contiguous()
    return device


def _drop(keep: float, records: Records, rank: Tensor, spans: Spans, side: Side) -> Records:
    """The records of each KV head's best ranked spans; the others become empty, for good.

    Pinned spans stay; `keep` is the share of tokens left, pinned ones included, times the layer's
    own where layers have shares.
    """
    lengths = spans.bounds.diff()
    most = min(1.0, keep * float(side.get("layer_share", torch.ones(1))[0])) * int(lengths.sum())
    worth = rank.masked_fill(spans.kind != FOLDED, torch.inf)
    order = worth.argsort(dim=-1, descending=True, stable=True)
    fits = lengths[order].cumsum(-1) <= most
    kept = torch.zeros_like(fits).scatter_(-1, order, fits).T.reshape(-1)
    sizes = records.offsets.diff()
    payload = records.payload[ops.gather_ranges(records.offsets[:-1][kept], sizes[kept])]
    left = torch.where(kept, sizes, 0)
    return Records(payload, torch.cat([left.new_zeros(1), left.cumsum(0)]))


def pinned_tokens(bounds: Tensor, kind: Tensor) -> Tensor:
    """Token positions of all spans that stay exact, ascending."""
    keep = kind != FOLDED
    return ops.gather_ranges(bounds[:-1][keep].long(), bounds.diff()[keep].long())


def row_dtype(recipe: Recipe, model: torch.dtype) -> torch.dtype:
    """How exact rows are kept: 16 bits, or the model's own dtype where the recipe is exact."""
    return torch.float16 if recipe.half_rows and model == torch.float32 else model


def sides_of(shared: Side, layers: int) -> list[Side]:
    """Each layer's side information out of a store's shared tensors, the prefix left out."""
    sides: list[Side] = [{} for _ in range(layers)]
    for name, tensor in shared.items():
        layer, _, rest = name.partition(".")
        if not rest.startswith("prefix_"):
            sides[int(layer)][rest] = tensor
    return sides
