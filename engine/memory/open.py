"""A store and a reader become a memory under a budget: loads the device tier, moves no codes.

Decides what stays on the device when a budget is too small for everything a recipe keeps there:
routing and summaries first, then pinned rows, and always some room to zoom.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine.attention.layer import (
    OFFSET_BYTES,
    LayerMemory,
    Limits,
    Shared,
    View,
    WholeLayer,
    no_spans,
    whole_rows,
)
from engine.attention.residency import Host
from engine.compression.codecs.layer_basis import borrow, document_bytes, lacks_bases, used_columns
from engine.compression.codecs.shared_basis import SharedBasis
from engine.compression.encode import by_layer, pinned_tokens, sides_of
from engine.compression.methods import Method
from engine.compression.ranges import span_ids
from engine.compression.routers import router_file, two_level
from engine.compression.routers.span_zoom import Learnt, SpanZoom
from engine.compression.routers.static import layer_budgets
from engine.compression.spans import COMPRESSED
from engine.errors import (
    BudgetError,
    OptionError,
    RouterError,
    StoreError,
    StoreMismatchError,
)
from engine.store.library import compare_identity
from engine.store.reader import Store
from engine.store.schema import Schema, recipe_of

if TYPE_CHECKING:
    from engine.compression.codecs.base import Side
    from engine.models.hf import Reader
    from engine.store.manifest import Manifest

ZOOM_RESERVE = 0.12
"""Share of a tight budget that stays free for zoomed spans: coded tokens are small, and what is not
sketched is not found."""


@dataclass(frozen=True)
class Memory:
    """A document, ready for questions. length: tokens its positions take, prefix included."""

    layers: list[LayerMemory]
    shared: Shared
    length: int


def parse_budget(text: str, tokens: int) -> float:
    """Document tokens that a budget allows: "10%" of them, or a number.

    Raises:
        BudgetError: neither, or not positive.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(%?)\s*", text)
    if not match or float(match[1]) <= 0:
        raise BudgetError(f"budget '{text}' is neither a share such as 10% nor a number of tokens")
    return float(match[1]) * tokens / 100 if match[2] else float(match[1])


def open_memory(
    store: Store, reader: Reader, *, budget: str, coverage: float, full: bool, router: str = ""
) -> Memory:
    """Load the device tier of a store.

    router: a trained router's file; "" keeps to what the store was made with.

    Raises:
        StoreError: the store belongs to another reader, or is damaged.
        RouterError: the router is another model's, or the store's sketch is not of its making.
        BudgetError: a budget or coverage that cannot be understood, or `full` of what is gone.
    """
    manifest = store.manifest
    dtypes = manifest.dtype, reader.dtype_name
    different = compare_identity(manifest.model, reader.identity, dtypes)
    if different:
        raise StoreMismatchError(f"{store.path}: {different}")
    if not 0 < coverage <= 1:
        raise OptionError("coverage", f"{coverage} is not in (0, 1]")
    row = 4.0 * manifest.model.head_dim
    cap = row * parse_budget(budget, manifest.tokens)
    stored = store.shared()
    sections = [store.device(window) for window in range(len(manifest.windows))]
    try:
        recipe = recipe_of(manifest)
        stored = lent(stored, recipe, reader, router)
        schema = Schema.of(manifest, recipe)
        schema.check_shared(stored)
        schema.check_windows(stored, sections)
        _check_prompt(manifest, reader)
    except StoreError as error:
        raise type(error)(f"{store.path}: {error}") from None
    if full and recipe.keep < 1:
        raise OptionError(
            "full",
            f"method {manifest.method} of {store.path} has dropped all but {recipe.keep:.0%} of "
            "the tokens for good; leave it out",
        )
    tables = _Tables.of(manifest, sections)
    shared = Shared(tables.bounds, len(manifest.windows))
    recipe, learnt = _rerouted(store, reader, recipe, router)
    sides = [
        {**side, **new} for side, new in zip(sides_of(stored, reader.layers), learnt, strict=True)
    ]
    lean_sides = [used_columns(side) for side in sides]
    balls = len(tables.kind) if manifest.tokens >= recipe.levels.beyond else 0
    caps = _caps(recipe, tables, lean_sides, manifest.model.kv_heads, cap, row, balls)
    hosts = [store.host(w) for w in range(len(manifest.windows))]
    counts = [window.spans for window in manifest.windows]
    longest = max(window.end - window.start for window in manifest.windows)
    layers: list[LayerMemory] = []
    pins: Tensor | None = None
    for index, device in enumerate(reader.devices):
        prefix = (stored[f"{index}.prefix_k"], stored[f"{index}.prefix_v"])
        host = Host(
            index,
            hosts,
            counts,
            manifest.model.kv_heads,
            pinned=device.type == "cuda",
            fits=partial(recipe.codec.fits, lengths=tables.bounds.diff(), side=sides[index]),
        )
        side = {name: t.to(device) for name, t in lean_sides[index].items()}
        limits = Limits(caps[index] * manifest.model.kv_heads, coverage)
        room = caps[index] - ZOOM_RESERVE * min(cap, caps[index])
        if recipe.whole or full:
            k, v = whole_rows(recipe, host, tables.bounds, sides[index])
            rows = _join_rows(prefix, k, v, torch.arange(manifest.tokens), device, reader.dtype)
            layers.append(
                WholeLayer(
                    index,
                    recipe,
                    shared,
                    Limits(float("inf"), 1.0),
                    {},
                    rows,
                    no_spans(device),
                    {},
                    host,
                )
            )
            continue
        tensors = tables.layer(index)
        pinned_k, pinned_v = tensors.pop("pinned_k"), tensors.pop("pinned_v")
        ranking: Side = {}
        lean = lean_sides[index]
        if recipe.selector.static:  # chosen once, from the host: no routing on the device
            tensors, ranking, lean = {}, tensors, {}
        tensors, lean = _fit(recipe, tensors, lean, room * manifest.model.kv_heads, balls)
        if balls and "sketch.t" in tensors:
            lean |= two_level.fit(tensors, lean, tables.bounds)
            tensors |= two_level.build(tensors, lean, tables.bounds)
        side |= {name: t.to(device) for name, t in lean.items()}
        if pins is None:
            least = room if tensors else (1 - ZOOM_RESERVE) * min(caps)
            pins = _affordable_pins(recipe, tables, tensors, lean, prefix, pinned_k, least)
        keep = tables.pinned_span_mask(pins)
        rows = _join_rows(
            prefix,
            pinned_k[:, keep],
            pinned_v[:, keep],
            tables.pinned[keep],
            device,
            pinned_k.dtype,
        )
        folded = torch.ones(len(tables.kind), dtype=torch.bool)
        folded[pins] = False
        folded &= _affordable_summaries(tables, tensors, lean, rows[0], folded, room)
        if not bool(folded.any()):  # not even routing fits: the exact rows alone remain
            layers.append(
                WholeLayer(
                    index,
                    recipe,
                    shared,
                    limits,
                    {},
                    rows,
                    no_spans(device),
                    {},
                    host,
                )
            )
            continue
        everything = View.of(torch.arange(len(folded)), tables.bounds, tables.window)
        view, token_rows = everything.pick(folded)
        tensors = everything.slice({**tensors, **ranking}, folded, token_rows)
        where = torch.device("cpu") if recipe.selector.static else device
        layers.append(
            LayerMemory(
                index,
                recipe,
                shared,
                limits,
                side,
                rows,
                _view_to(view, device),
                {name: t.to(where) for name, t in tensors.items()},
                host,
            )
        )
    shared.layers = layers
    return Memory(layers, shared, len(reader.prompt.prefix) + longest)


def _rerouted(
    store: Store, reader: Reader, recipe: Method, asked: str
) -> tuple[Method, list[Side]]:
    """The store's recipe under the router asked for, and what that adds to each layer's side.

    A router of span summaries can take another's place, for it works on what any such store
    holds; a sketch was made while the document was folded.
    """
    nothing: list[Side] = [{} for _ in range(reader.layers)]
    if not asked:
        return recipe, nothing
    trained, _ = router_file.find(asked, Path(), reader.identity)
    choice = None if trained is None else trained.in_place_of(recipe.router)
    if trained is not None and isinstance(choice, SpanZoom) and not recipe.whole:
        none = torch.empty(0)
        return replace(recipe, router=choice), [choice.fit(none, s) for s in trained.layers]
    used = router_of(recipe)
    if used != ("" if trained is None else trained.fingerprint):
        raise RouterError(
            f"{store.path} was made with {f'the router {used[:8]}' if used else 'no router'}; "
            f"to use '{asked}', ingest again with --router {asked}"
        )
    return recipe, nothing


def router_of(recipe: Method) -> str:
    """Fingerprint of the router file that a store was made with, "" without."""
    if isinstance(recipe.router, Learnt):
        return recipe.router.weights
    return recipe.codec.model if isinstance(recipe.codec, SharedBasis) else ""


def lent(stored: Side, recipe: Method, reader: Reader, asked: str) -> Side:
    """Shared tensors of a store with the model's own bases among them, where it uses these.

    asked: a router's file; "" for the one beside the model.

    Raises:
        RouterError: the router that the store was made with is not at hand.
        StoreError: what is stored does not fit it.
    """
    sides = by_layer(stored, reader.layers)
    if not any(map(lacks_bases, sides)):
        return stored
    used = router_of(recipe)
    trained, _ = router_file.find(asked, reader.located.folder, reader.identity)
    if trained is None or trained.fingerprint != used:
        raise RouterError(
            f"the store is kept in the bases of router {used[:8]}, which is not the one "
            f"{'named' if asked else 'beside the model'}; name its file with --router, or ingest "
            "again"
        )
    return {
        f"{index}.{name}": tensor
        for index, (side, own) in enumerate(zip(sides, trained.layers, strict=True))
        for name, tensor in borrow(side, own).items()
    }


def _check_prompt(manifest: Manifest, reader: Reader) -> None:
    """What was read before the document decides at which positions the question stands."""
    stored, own = manifest.prompt.get("prefix"), list(reader.prompt.prefix)
    if stored != own:
        raise StoreError(
            f"{manifest.creator} read the document behind other words than this version puts "
            "before it: ingest again, or ask with that version"
        )


@dataclass(frozen=True)
class _Tables:
    """Span tables of all windows joined, and the device sections they came with.

    bounds [S + 1] document tokens, kind [S], window [S], pinned [P] document tokens of the
    stored exact rows, pinned_span [P] their spans.
    """

    bounds: Tensor
    kind: Tensor
    window: Tensor
    surprisal: Tensor
    pinned: Tensor
    pinned_span: Tensor
    sections: list[dict[str, Tensor]]

    @classmethod
    def of(cls, manifest: Manifest, sections: list[dict[str, Tensor]]) -> _Tables:
        """From device sections that were checked."""
        bounds, kinds, windows, surprisal, pinned = (
            [torch.zeros(1, dtype=torch.int64)],
            [],
            [],
            [],
            [],
        )
        for index, (entry, section) in enumerate(zip(manifest.windows, sections, strict=True)):
            local = section["bounds"].long()
            bounds.append(local[1:] + entry.start)
            kinds.append(section["kind"])
            windows.append(torch.full((entry.spans,), index))
            surprisal.append(section["surprisal"].float())
            pinned.append(pinned_tokens(local, section["kind"]) + entry.start)
        joined = torch.cat(bounds)
        tokens = torch.cat(pinned)
        return cls(
            joined,
            torch.cat(kinds),
            torch.cat(windows),
            torch.cat(surprisal),
            tokens,
            torch.searchsorted(joined, tokens, right=True) - 1,
            sections,
        )

    def layer(self, index: int) -> dict[str, Tensor]:
        """One layer's device tensors, all windows joined along dimension 1."""
        prefix = f"{index}."
        return {
            n.removeprefix(prefix): torch.cat([s[n] for s in self.sections], 1)
            for n in self.sections[0]
            if n.startswith(prefix) and not n.endswith(".error.s")  # said to people alone
        }

    def pinned_span_mask(self, spans: Tensor) -> Tensor:
        """Which stored exact rows belong to `spans`."""
        return torch.isin(self.pinned_span, spans)


def _caps(
    recipe: Method,
    tables: _Tables,
    sides: list[Side],
    heads: int,
    cap: float,
    row: float,
    balls: int,
) -> list[float]:
    """Bytes per KV head for every layer, `cap` on average: what it needs for routing and summaries
    (less where all layers together need too much), and an equal share of the rest. Layers that
    were calibrated have their shares instead; a static choice needs no routing. row: bytes of
    one token's. balls: spans that will have a span level."""
    if "layer_share" in sides[0]:
        shares = [float(side["layer_share"][0]) for side in sides]
        return [row * rows for rows in layer_budgets(shares, int(cap / row))]
    if recipe.selector.static:
        return [cap] * len(sides)
    needs = []
    for index, side in enumerate(sides):
        parts = [
            t
            for section in tables.sections
            for name, t in section.items()
            if name.startswith(f"{index}.") and name.endswith((".t", ".s"))
            if not name.endswith(".error.s")
        ]
        more = two_level.expected_bytes(side, balls)
        fixed = more + document_bytes(side) + sum(t.nbytes for t in parts)
        needs.append(fixed / heads)
    mean = sum(needs) / len(needs)
    tight = min(1.0, (1 - ZOOM_RESERVE) * cap / max(1.0, mean))
    return [cap + tight * (need - mean) for need in needs]


def _fit(recipe: Method, tensors: Side, side: Side, room: float, spans: int) -> tuple[Side, Side]:
    """Let the router shrink until routing and summaries fit `room` bytes, with the span level of
    that many spans where there will be one."""

    def needed() -> int:
        more = two_level.expected_bytes(side, spans)
        return more + document_bytes(side) + sum(t.nbytes for t in tensors.values())

    while tensors and needed() > room:
        smaller = recipe.router.shrink(tensors, side)
        if smaller is None:
            break
        tensors, side = smaller
    return tensors, side


def _affordable_pins(
    recipe: Method,
    tables: _Tables,
    tensors: Side,
    side: Side,
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
    used = (sum(t.nbytes for t in [*tensors.values(), *prefix]) + document_bytes(side)) / heads
    lengths = tables.bounds.diff()
    room -= used
    cost = lengths[pinned] * 2 * size * rows.element_size()
    if float(cost.sum()) <= room:
        return pinned
    starts = torch.tensor([0, *torch.nonzero(tables.window.diff())[:, 0].add(1).tolist()])
    totals = torch.zeros(len(lengths)).index_add_(0, span_ids(tables.bounds), tables.surprisal)
    worth = totals / lengths
    last = tables.bounds[1:] > tables.bounds[-1] - recipe.local
    worth[last] = 1e6 + tables.bounds[1:][last]
    worth[tables.bounds[:-1] < tables.bounds[starts][tables.window] + recipe.sinks] = float("inf")
    worth = worth[pinned]
    order = worth.argsort(descending=True, stable=True)
    fits = cost[order].cumsum(0) <= room
    return pinned[order[fits]].sort().values


def _affordable_summaries(
    tables: _Tables, tensors: Side, side: Side, rows: Tensor, folded: Tensor, room: float
) -> Tensor:
    """bool [S]: spans whose summaries fit beside the exact rows, the most surprising first.

    Those that are not folded need none. What is free for zoomed spans stays free.
    """
    heads = rows.shape[0]
    lengths = tables.bounds.diff()
    used = (document_bytes(side) + 2 * rows.nbytes) / heads + OFFSET_BYTES
    room -= used
    cost = torch.zeros(len(lengths))
    for name, t in tensors.items():
        each = t.nbytes / heads / t.shape[1]
        cost += each * lengths if name.endswith(".t") else each
    cost[~folded] = 0
    if float(cost.sum()) <= room:
        return torch.ones(len(lengths), dtype=torch.bool)
    totals = torch.zeros(len(lengths)).index_add_(0, span_ids(tables.bounds), tables.surprisal)
    order = (totals / lengths).argsort(descending=True, stable=True)
    fits = torch.zeros(len(lengths), dtype=torch.bool)
    fits[order] = cost[order].cumsum(0) <= room
    return fits


def _join_rows(
    prefix: tuple[Tensor, Tensor],
    k: Tensor,
    v: Tensor,
    tokens: Tensor,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Prefix and document rows together, with the document token of each row."""
    none = tokens.new_full((prefix[0].shape[1],), -1)
    return (
        torch.cat([prefix[0].to(dtype), k.to(dtype)], 1).to(device),
        torch.cat([prefix[1].to(dtype), v.to(dtype)], 1).to(device),
        torch.cat([none, tokens]).to(device),
    )


def _view_to(view: View, device: torch.device) -> View:
    return View(
        view.spans.to(device),
        view.lengths.to(device),
        view.bounds.to(device),
        view.window.to(device),
    )
