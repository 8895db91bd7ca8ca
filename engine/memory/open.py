"""A store and a reader become a memory under a budget: loads the device tier, moves no codes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine.attention.budget import Limits
from engine.attention.layer import LayerMemory, Shared, whole_rows
from engine.attention.residency import Host
from engine.attention.view import View, no_spans
from engine.compression.codecs.layer_basis import borrow, lacks_bases, used_columns
from engine.compression.codecs.shared_basis import SharedBasis
from engine.compression.encode import by_layer, sides_of
from engine.compression.methods import Method
from engine.compression.routers import router_file, two_level
from engine.compression.routers.span_zoom import Learnt, SpanZoom
from engine.compression.spans import COMPRESSED
from engine.errors import (
    OptionError,
    RouterError,
    StoreError,
    StoreMismatchError,
)
from engine.memory import budget as shares
from engine.memory.budget import ZOOM_RESERVE
from engine.memory.tables import Tables
from engine.store.library import compare_identity
from engine.store.reader import Store
from engine.store.schema import Schema, recipe_of

if TYPE_CHECKING:
    from engine.compression.codecs.base import Side
    from engine.models.hf import Reader
    from engine.store.manifest import Manifest


@dataclass(frozen=True)
class Memory:
    """A document, ready for questions. length: tokens its positions take, prefix included."""

    layers: list[LayerMemory]
    shared: Shared
    length: int


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
    tokens = shares.parse_budget(budget, manifest.tokens)
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
    recipe, learnt = _rerouted(store, reader, recipe, router)
    sides = [
        {**side, **new} for side, new in zip(sides_of(stored, reader.layers), learnt, strict=True)
    ]
    tables = Tables.of(manifest, sections)
    opening = _Opening(store, reader, recipe, tables, stored, sides, coverage)
    if recipe.whole:
        opening.hold_rows()
    elif full:
        opening.hold_codes()
    else:
        opening.hold_budget(tokens)
    longest = max(window.end - window.start for window in manifest.windows)
    return Memory(opening.shared.layers, opening.shared, len(reader.prompt.prefix) + longest)


NO_LIMIT = Limits(float("inf"), 1.0, full=True)


class _Opening:
    """A store as it becomes the layers of a memory."""

    def __init__(
        self,
        store: Store,
        reader: Reader,
        recipe: Method,
        tables: Tables,
        stored: Side,
        sides: list[Side],
        coverage: float,
    ):
        """stored: tensors of all windows; sides: those of each layer."""
        manifest = store.manifest
        self.reader, self.recipe, self.tables, self.coverage = reader, recipe, tables, coverage
        self.stored, self.sides = stored, sides
        self.heads, self.size = manifest.model.kv_heads, manifest.model.head_dim
        self.windows = [store.host(window) for window in range(len(manifest.windows))]
        self.counts = [window.spans for window in manifest.windows]
        self.shared = Shared(tables.bounds, len(manifest.windows))
        every = torch.arange(len(tables.kind))
        self._everything = View.of(every, tables.bounds, tables.window)
        self._views: dict[tuple[bytes, str], View] = {}

    def _host(self, index: int) -> Host:
        lengths, side = self.tables.bounds.diff(), self.sides[index]
        return Host(
            index,
            self.windows,
            self.counts,
            self.heads,
            pinned=self.reader.devices[index].type == "cuda",
            fits=partial(self.recipe.codec.fits, lengths=lengths, side=side),
        )

    def _prefix(self, index: int) -> tuple[Tensor, Tensor]:
        return self.stored[f"{index}.prefix_k"], self.stored[f"{index}.prefix_v"]

    def _view(self, folded: Tensor, device: torch.device) -> View:
        """Of the spans where `folded` bool [S] holds; layers that see the same ones share it."""
        key = (folded.numpy().tobytes(), str(device))
        if key not in self._views:
            self._views[key] = self._everything.pick(folded)[0].to(device)
        return self._views[key]

    def _add(
        self,
        index: int,
        host: Host,
        limits: Limits,
        side: Side,
        rows: tuple[Tensor, Tensor, Tensor],
        view: View,
        tensors: Side,
    ) -> None:
        made = LayerMemory(index, self.recipe, self.shared, limits, side, rows, view, tensors, host)
        self.shared.layers.append(made)

    def hold_rows(self) -> None:
        """Every token as a row of the model."""
        tokens = torch.arange(self.shared.tokens)
        for index, device in enumerate(self.reader.devices):
            host = self._host(index)
            k, v = whole_rows(self.recipe, host, self.tables.bounds, self.sides[index])
            rows = _join_rows(self._prefix(index), k, v, tokens, device, self.reader.dtype)
            self._add(index, host, NO_LIMIT, {}, rows, no_spans(device), {})

    def hold_codes(self) -> None:
        """Every span zoomed, whatever is asked: neither routing nor summaries are needed."""
        folded = self.tables.kind == COMPRESSED
        for index, device in enumerate(self.reader.devices):
            tensors = self.tables.layer(index)
            k, v = tensors["pinned_k"], tensors["pinned_v"]
            rows = _join_rows(self._prefix(index), k, v, self.tables.pinned, device, k.dtype)
            side = {name: t.to(device) for name, t in used_columns(self.sides[index]).items()}
            view = self._view(folded, device) if bool(folded.any()) else no_spans(device)
            self._add(index, self._host(index), NO_LIMIT, side, rows, view, {})

    def hold_budget(self, tokens: float) -> None:
        """What the 16-bit rows of so many document tokens would take, per layer on average."""
        recipe, tables, row = self.recipe, self.tables, 4.0 * self.size
        cap = row * tokens
        sides = [used_columns(side) for side in self.sides]
        balls = len(tables.kind) if self.shared.tokens >= recipe.levels.beyond else 0
        caps = shares.caps(recipe, tables, sides, self.heads, cap, row, balls)
        pins: Tensor | None = None
        for index, device in enumerate(self.reader.devices):
            room = caps[index] - ZOOM_RESERVE * min(cap, caps[index])
            tensors = tables.layer(index)
            k, v = tensors.pop("pinned_k"), tensors.pop("pinned_v")
            ranking: Side = {}
            lean = sides[index]
            side = {name: t.to(device) for name, t in lean.items()}
            if recipe.selector.static:  # chosen once, from the host: no routing on the device
                tensors, ranking, lean = {}, tensors, {}
            tensors, lean = shares.fit(recipe, tensors, lean, room * self.heads, balls)
            if balls and "sketch.t" in tensors:
                lean |= two_level.fit(tensors, lean, tables.bounds)
                tensors |= two_level.build(tensors, lean, tables.bounds)
            side |= {name: t.to(device) for name, t in lean.items()}
            prefix = self._prefix(index)
            if pins is None:
                least = room if tensors else (1 - ZOOM_RESERVE) * min(caps)
                pins = shares.affordable_pins(recipe, tables, tensors, lean, prefix, k, least)
            keep = tables.pinned_span_mask(pins)
            rows = _join_rows(prefix, k[:, keep], v[:, keep], tables.pinned[keep], device, k.dtype)
            folded = torch.ones(len(tables.kind), dtype=torch.bool)
            folded[pins] = False
            folded &= shares.affordable_summaries(tables, tensors, lean, rows[0], folded, room)
            limits = Limits(caps[index] * self.heads, self.coverage)
            if not bool(folded.any()):  # not even routing fits: the exact rows alone remain
                self._add(index, self._host(index), limits, {}, rows, no_spans(device), {})
                continue
            token_rows = self._everything.pick(folded)[1]
            tensors = self._everything.slice({**tensors, **ranking}, folded, token_rows)
            where = torch.device("cpu") if recipe.selector.static else device
            tensors = {name: t.to(where) for name, t in tensors.items()}
            view = self._view(folded, device)
            self._add(index, self._host(index), limits, side, rows, view, tensors)


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
