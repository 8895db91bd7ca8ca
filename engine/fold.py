"""A window's keys and values become what the store keeps: prefill + recipe -> tensors.

Pure tensor work: no files, no model. `fit` learns a layer's side information from the first
window; `fold_layer` turns any window's rows into device tensors and host records.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine import ops
from engine.policies import summarise
from engine.policies.codec import NOTHING, Records, Side, score_error
from engine.policies.route_static import CALIBRATED
from engine.policies.segment import FOLDED, Spans, pin_ends
from engine.policies.segment_text import Delimiters
from engine.recipe import Recipe


@dataclass(frozen=True)
class Folded:
    """One layer of one window. device: tensors by name; records: the spans' codes.

    "error.s" uint8 [Hkv, S] says in 1/255 what the codes lost; it is for people, see `recall`.
    """

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


def prepare(
    recipe: Recipe, layers: Iterable[tuple[Tensor, Tensor]], learnt: Sequence[Side]
) -> list[Side]:
    """What one layer's `fit` must know of the others: layers share the bits of codes and sketches.

    Args:
        layers: k, v [Hkv, n, D] of the first window, layer after layer.
        learnt: per layer what queries make of it, see `queries.SelfQuestions`; empty for methods
            that do not ask.
    Returns:
        per layer the same and the prices of a bit; see `ops.bit_price`.
    """
    if recipe.whole:
        return [NOTHING for _ in layers]
    given: list[Side] = []
    codes, sketches = [], []
    for index, (k, v) in enumerate(layers):
        known: Side = learnt[index] if learnt else {}
        body = _body(recipe, k)
        codes.append(recipe.codec.spectrum(k[:, body], v[:, body], known))
        _, _, variance = ops.covariance_basis(k[:, body], known.get("queries"))
        sketches.append(score_error(variance, known))
        given.append(known)
    prices = {
        "code_price": torch.tensor([recipe.codec.price(torch.cat(codes))], dtype=torch.float64),
        "sketch_price": torch.tensor(
            [recipe.router.price(torch.cat(sketches))], dtype=torch.float64
        ),
    }
    return [known | prices for known in given]


def fit(
    recipe: Recipe,
    k: Tensor,
    v: Tensor,
    surprisal: Tensor,
    spans: Spans,
    given: Side = NOTHING,
) -> Side:
    """Side information of a layer, shared by all windows.

    Args:
        k, v: [Hkv, n, D] of the first window.  given: as `prepare` has it, with what was calibrated
            for this layer and what a trained router knows of it; without, the layer spends the
            bits of all layers on its own.
    """
    if recipe.whole:
        return recipe.codec.fit(k, v)
    body = _body(recipe, k)
    side = {name: given[name] for name in CALIBRATED if name in given}
    side |= recipe.codec.fit(k[:, body], v[:, body], given)
    side |= recipe.router.fit(k[:, body], {**given, **side})
    if recipe.selector.hides:
        return side
    values = recipe.summariser.summarise(v, surprisal, spans.bounds)
    return side | summarise.fit_values(values, recipe.summariser.value_bits, side)


def _body(recipe: Recipe, k: Tensor) -> slice:
    """All rows but the sinks, which have outlying norms and stay exact: they must not stretch
    basis and steps."""
    return slice(min(recipe.sinks, k.shape[1] - 1), None)


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

    k, v: [Hkv, n, D]. side: the layer's, and what a trained router knows of it. queries:
    [H, w, D] of its last tokens, for routers that observe them.
    """
    records = recipe.codec.encode(k, v, spans.bounds, side)
    if recipe.whole:
        return Folded({}, records)
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
    if records.errors.numel():
        device["error.s"] = (records.errors.clamp(0, 1) * 255).round().to(torch.uint8)
    if recipe.keep < 1:
        records = _drop(recipe.keep, records, device["rank.s"], spans, side)
    return Folded(device, records)


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
