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
from engine.recipe import Recipe

NOTHING: Side = {}
"""What an untrained method has learnt."""


@dataclass(frozen=True)
class Folded:
    """One layer of one window. device: tensors by name; records: the spans' codes."""

    device: Side
    records: Records


def segment(recipe: Recipe, surprisal: Tensor, pieces: list[str], *, last: bool) -> Spans:
    """Cut a window and pin its ends; only the document's last window has a local window."""
    spans = recipe.segmenter.cut(surprisal, pieces)
    return pin_ends(spans, recipe.sinks, recipe.local if last else 0)


def fit(
    recipe: Recipe, k: Tensor, v: Tensor, surprisal: Tensor, spans: Spans, learnt: Side = NOTHING
) -> Side:
    """Side information of a layer, shared by all windows.

    Args:
        k, v: [Hkv, n, D] of the first window.  learnt: the layer's part of a trained router.
    """
    if recipe.whole:
        return recipe.codec.fit(k, v)
    # Sinks have outlying norms and stay exact; they must not stretch basis and steps.
    body = slice(min(recipe.sinks, k.shape[1] - 1), None)
    side = recipe.codec.fit(k[:, body], v[:, body])
    side |= recipe.router.fit(k[:, body], {**side, **learnt})
    values = recipe.summariser.summarise(v, surprisal, spans.bounds)
    return side | summarise.fit_values(values, recipe.summariser.value_bits, side)


def fold_layer(
    recipe: Recipe,
    k: Tensor,
    v: Tensor,
    surprisal: Tensor,
    spans: Spans,
    side: Side,
    learnt: Side = NOTHING,
) -> Folded:
    """Device tensors and host records of one layer of one window; k, v: [Hkv, n, D]."""
    side = {**side, **learnt}
    records = recipe.codec.encode(k, v, spans.bounds, side)
    return Folded(device_tensors(recipe, k, v, surprisal, spans, side), records)


def device_tensors(
    recipe: Recipe, k: Tensor, v: Tensor, surprisal: Tensor, spans: Spans, side: Side
) -> Side:
    """What of one layer of one window stays on the device; k, v: [Hkv, n, D]."""
    if recipe.whole:
        return {}
    keys = recipe.summariser.summarise(k, surprisal, spans.bounds)
    values = recipe.summariser.summarise(v, surprisal, spans.bounds)
    device = recipe.router.build(k, keys, side)
    device |= summarise.pack_values(values, recipe.summariser.value_bits, side)
    kept = pinned_tokens(spans.bounds, spans.kind)
    dtype = row_dtype(recipe, k.dtype)
    device["pinned_k"] = k[:, kept].to(dtype).contiguous()
    device["pinned_v"] = v[:, kept].to(dtype).contiguous()
    return device


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
