"""A window's keys and values become what the store keeps: prefill + recipe -> tensors.

Pure tensor work: no files, no model. `fit` learns a layer's side information from the first
window; `compress_layer` turns any window's rows into device tensors and host records.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.compression import summaries
from engine.compression.codecs.base import NOTHING, Records, Side
from engine.compression.codecs.layer_basis import (
    OWN,
    document_bytes,
    fit_basis,
    of_document,
    score_error,
)
from engine.compression.codecs.shared_basis import SharedBasis
from engine.compression.methods import Method
from engine.compression.quantize import expected_error
from engine.compression.ranges import gather_ranges, span_ids
from engine.compression.routers.static import CALIBRATED
from engine.compression.spans import COMPRESSED, Spans, pin_ends
from engine.compression.text_spans import Delimiters
from engine.errors import StoreError


@dataclass(frozen=True)
class CompressedLayer:
    """One layer of one window. device: tensors by name; records: the spans' codes.

    "error.s" uint8 [Hkv, S] says in 1/255 what the codes lost; it is for people, see `recall`.
    """

    device: Side
    records: Records


def segment(
    recipe: Method,
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
    recipe: Method,
    layers: Iterable[tuple[Tensor, Tensor]],
    learnt: Sequence[Side],
    trained: Sequence[Side] = (),
    tokens: int = 0,
) -> list[Side]:
    """What one layer's `fit` must know of the others: layers share the bits of codes and sketches.

    Args:
        layers: k, v [Hkv, n, D] of the first window, layer after layer.
        learnt: per layer what queries make of it, see `queries.QueryStatistics`; empty for methods
            that do not ask.
        trained: per layer what a router brings.  tokens: of the whole document.
    Returns:
        per layer the same and the prices of a bit, see `ops.bit_price`. The model's own bases are
        among it where the document loses less by them; see `_Plan.loss`.
    """
    if recipe.whole:
        return [NOTHING for _ in layers]
    lends = isinstance(recipe.codec, SharedBasis) and bool(recipe.codec.model and trained)
    plans = [_Plan(recipe), _Plan(recipe)] if lends else [_Plan(recipe)]
    for index, (k, v) in enumerate(layers):
        known: Side = dict(learnt[index]) if learnt else {}
        known |= trained[index] if trained else {}
        body = _body(recipe, k)
        for plan, given in zip(plans, (of_document(known), known), strict=False):
            plan.add(k[:, body], v[:, body], given)
    if lends and plans[1].loss(plans[0].bases, tokens) < plans[0].loss(0, tokens):
        return plans[1].given()
    return plans[0].given()


class _Plan:
    """The components of all layers under one choice of bases, among which bits are shared out."""

    def __init__(self, recipe: Method):
        self.recipe = recipe
        self.bases = 0  # bytes that the document pays for bases
        self._known: list[Side] = []
        self._codes: list[Tensor] = []
        self._sketches: list[Tensor] = []

    def add(self, k: Tensor, v: Tensor, known: Side) -> None:
        """The next layer's rows without the sinks, and what is known of them."""
        keys, variance = fit_basis("k", k, known)
        self._sketches.append(score_error(variance, known))
        self._codes.append(self.recipe.codec.spectrum(k, v, known))
        self._known.append(known)
        if f"{OWN}k_basis" not in known:
            # Values' bases have the size of the keys'.
            self.bases += 2 * (document_bytes(keys) - keys["k_mean"].nbytes)

    def given(self) -> list[Side]:
        prices = {
            "code_price": self.recipe.codec.price(torch.cat(self._codes)),
            "sketch_price": self.recipe.router.price(torch.cat(self._sketches)),
        }
        tensors = {name: torch.tensor([p], dtype=torch.float64) for name, p in prices.items()}
        return [known | tensors for known in self._known]

    def loss(self, spare: int, tokens: int) -> float:
        """What the code and the sketch of a document lose, multiplied, at equal bytes in all.

        spare: bytes that other bases would have cost; the rows of the document have them instead.
        """
        lost = 1.0
        parts = ((self._codes, self.recipe.codec), (self._sketches, self.recipe.router))
        for spread, part in parts:
            bits = getattr(part, "bits", 0.0)
            rows = torch.cat(spread)
            if bits and len(rows):
                bits = min(8.0, bits + 8 * spare / max(1, tokens * rows.numel()))
                lost *= expected_error(rows, bits)
        return lost


def fit(
    recipe: Method,
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
    return side | summaries.fit_values(values, recipe.summariser.value_bits, side)


def _body(recipe: Method, k: Tensor) -> slice:
    """All rows but the sinks, which have outlying norms and stay exact: they must not stretch
    basis and steps."""
    return slice(min(recipe.sinks, k.shape[1] - 1), None)


def compress_layer(
    recipe: Method,
    k: Tensor,
    v: Tensor,
    surprisal: Tensor,
    spans: Spans,
    side: Side,
    queries: Tensor | None = None,
) -> CompressedLayer:
    """Device tensors and host records of one layer of one window.

    k, v: [Hkv, n, D]. side: the layer's, and what a trained router knows of it. queries:
    [H, w, D] of its last tokens, for routers that observe them.
    """
    records = recipe.codec.encode(k, v, spans.bounds, side)
    if recipe.whole:
        return CompressedLayer({}, records)
    keys = recipe.summariser.summarise(k, surprisal, spans.bounds)
    seen = {**side, "owner": span_ids(spans.bounds)}
    if queries is not None:
        seen["observed"] = queries
    device = recipe.router.build(k, keys, seen)
    if not recipe.selector.hides:
        values = recipe.summariser.summarise(v, surprisal, spans.bounds)
        device |= summaries.pack_values(values, recipe.summariser.value_bits, side)
    kept = pinned_tokens(spans.bounds, spans.kind)
    dtype = row_dtype(recipe, k.dtype)
    device["pinned_k"] = k[:, kept].to(dtype).contiguous()
    device["pinned_v"] = v[:, kept].to(dtype).contiguous()
    if records.errors.numel():
        device["error.s"] = (records.errors.clamp(0, 1) * 255).round().to(torch.uint8)
    if recipe.keep < 1:
        records = _drop(recipe.keep, records, device["rank.s"], spans, side)
    return CompressedLayer(device, records)


def _drop(keep: float, records: Records, rank: Tensor, spans: Spans, side: Side) -> Records:
    """The records of each KV head's best ranked spans; the others become empty, for good.

    Pinned spans stay; `keep` is the share of tokens left, pinned ones included, times the layer's
    own where layers have shares.
    """
    lengths = spans.bounds.diff()
    most = min(1.0, keep * float(side.get("layer_share", torch.ones(1))[0])) * int(lengths.sum())
    worth = rank.masked_fill(spans.kind != COMPRESSED, torch.inf)
    order = worth.argsort(dim=-1, descending=True, stable=True)
    fits = lengths[order].cumsum(-1) <= most
    kept = torch.zeros_like(fits).scatter_(-1, order, fits).T.reshape(-1)
    sizes = records.offsets.diff()
    payload = records.payload[gather_ranges(records.offsets[:-1][kept], sizes[kept])]
    left = torch.where(kept, sizes, 0)
    return Records(payload, torch.cat([left.new_zeros(1), left.cumsum(0)]))


def pinned_tokens(bounds: Tensor, kind: Tensor) -> Tensor:
    """Token positions of all spans that stay exact, ascending."""
    keep = kind != COMPRESSED
    return gather_ranges(bounds[:-1][keep].long(), bounds.diff()[keep].long())


def row_dtype(recipe: Method, model: torch.dtype) -> torch.dtype:
    """How exact rows are kept: 16 bits, or the model's own dtype where the recipe is exact."""
    return torch.float16 if recipe.half_rows and model == torch.float32 else model


def by_layer(tensors: Side, layers: int) -> list[Side]:
    """Tensors `{layer}.{name}` by layer.

    Raises:
        StoreError: one belongs to no layer.
    """
    found: list[Side] = [{} for _ in range(layers)]
    for name, tensor in tensors.items():
        match = re.fullmatch(r"(\d{1,6})\.(.+)", name, re.ASCII)
        if match is None or int(match[1]) >= layers:
            raise StoreError(f"the store holds {name[:80]!r}, which no layer has: ingest again")
        found[int(match[1])][match[2]] = tensor
    return found


def sides_of(shared: Side, layers: int) -> list[Side]:
    """Each layer's side information out of a store's shared tensors, the prefix left out."""
    return [
        {name: tensor for name, tensor in side.items() if not name.startswith("prefix_")}
        for side in by_layer(shared, layers)
    ]
