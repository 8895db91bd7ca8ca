"""Opens a store as a memory under a budget: loads its device sections and moves no codes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine.attention.host_records import Host
from engine.attention.layer import LayerMemory
from engine.attention.shared import Shared
from engine.attention.shares import Limits
from engine.attention.view import View, no_spans
from engine.compression.methods import Method
from engine.compression.params import LayerParams, Tensors, needed
from engine.compression.ranges import gather_ranges
from engine.compression.routers import router_file, two_level
from engine.compression.span_tables import SpanTables
from engine.compression.spans import COMPRESSED
from engine.compression.statistics import Given
from engine.compression.stored_layers import (
    SharedLayer,
    by_layer,
    lacks_bases,
    of_layers,
    with_model_bases,
)
from engine.errors import (
    OptionError,
    RouterError,
    StoreError,
    StoreMismatchError,
)
from engine.memory import fitting
from engine.memory.fitting import ZOOM_RESERVE
from engine.memory.states import WindowStates
from engine.memory.tables import Tables
from engine.store.library import compare_identity
from engine.store.reader import Store
from engine.store.schema import Schema, recipe_of

if TYPE_CHECKING:
    from engine.models.reader import Reader
    from engine.store.manifest import Manifest


@dataclass(frozen=True)
class Memory:
    """A document, ready for questions. layers: those with full attention. length: tokens its
    positions take, prefix included. states: what other layers keep; None of a model without such.
    """

    layers: list[LayerMemory]
    shared: Shared
    length: int
    states: WindowStates | None = None


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
    tokens = fitting.parse_budget(budget, manifest.tokens)
    store.fetch_ahead()
    stored = store.shared()
    sections = [store.device(window) for window in manifest.read]
    try:
        recipe = recipe_of(manifest)
        stored = in_its_bases(stored, recipe, reader, router)
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
    layers = [SharedLayer.of(tensors) for tensors in by_layer(stored, reader.memory_layers)]
    recipe, layers = _with_router(store, reader, recipe, layers, router)
    tables = Tables.of(manifest, sections, recipe.router.key_names)
    opening = _Opening(store, reader, recipe, tables, layers, coverage)
    if recipe.whole:
        opening.hold_rows()
    elif full:
        opening.hold_codes()
    else:
        opening.hold_budget(tokens)
    states = WindowStates(store, reader) if manifest.has_states else None
    length = len(reader.prompt.prefix) + opening.longest
    return Memory(opening.shared.layers, opening.shared, length, states)


NO_LIMIT = Limits(float("inf"), 1.0, full=True)


class _Opening:
    """A store as it becomes the layers of a memory, which are those of the model that have full
    attention. numbers: theirs in the model. devices: theirs. longest: tokens of the longest
    window. A question sees passages of windows, so that only long windows need a span level."""

    def __init__(
        self,
        store: Store,
        reader: Reader,
        recipe: Method,
        tables: Tables,
        layers: list[SharedLayer],
        coverage: float,
    ):
        manifest = store.manifest
        self.reader, self.recipe, self.tables, self.coverage = reader, recipe, tables, coverage
        self.layers = layers
        self.numbers = manifest.model.memory_layers
        self.devices = [reader.devices[number] for number in self.numbers]
        self.heads = manifest.model.kv_heads
        self.row_bytes = 2.0 * manifest.model.numbers_per_layer / self.heads
        self.windows = [store.host(window) for window in manifest.read]
        self.counts = [manifest.windows[window].spans for window in manifest.read]
        self.longest = max(window.end - window.start for window in manifest.windows)
        self.shared = Shared(
            tables.bounds, len(manifest.windows), starts=tables.starts, tokens=manifest.tokens
        )
        every = torch.arange(len(tables.kind))
        self._everything = View.of(every, tables.bounds, tables.window, tables.starts)
        self._views: dict[tuple[bytes, str], View] = {}

    def _host(self, index: int) -> Host:
        lengths, params = self.tables.bounds.diff(), self.layers[index].params
        return Host(
            self.numbers[index],
            self.windows,
            self.counts,
            self.heads,
            pinned=self.devices[index].type == "cuda",
            fits=partial(self.recipe.codec.fits, lengths=lengths, params=params),
        )

    def _view(self, compressed: Tensor, device: torch.device) -> View:
        """Of the spans where `compressed` bool [S] holds; layers with the same ones share it."""
        key = (compressed.numpy().tobytes(), str(device))
        if key not in self._views:
            self._views[key] = self._everything.pick(compressed)[0].to(device)
        return self._views[key]

    def _add(
        self,
        index: int,
        host: Host,
        limits: Limits,
        params: LayerParams,
        rows: tuple[Tensor, Tensor, Tensor],
        view: View,
        tables: SpanTables,
    ) -> None:
        recipe, shared, number = self.recipe, self.shared, self.numbers[index]
        shared.layers.append(
            LayerMemory(number, recipe, shared, limits, params, rows, view, tables, host)
        )

    def hold_rows(self) -> None:
        """Every token as a row of the model."""
        tokens = self.tables.tokens_read()
        for index, device in enumerate(self.devices):
            host = self._host(index)
            params, prefix = self.layers[index].params, self.layers[index].prefix
            k, v = whole_rows(self.recipe, host, self.tables.bounds, params)
            rows = _join_rows(prefix, k, v, tokens, device, self.reader.dtype)
            self._add(index, host, NO_LIMIT, LayerParams(), rows, no_spans(device), SpanTables())

    def hold_codes(self) -> None:
        """Every span zoomed, whatever is asked: neither routing nor summaries are needed."""
        compressed = self.tables.kind == COMPRESSED
        for index, device in enumerate(self.devices):
            k, v = needed(self.tables.layer(index).exact)
            prefix = self.layers[index].prefix
            rows = _join_rows(prefix, k, v, self.tables.pinned, device, k.dtype)
            params = self.layers[index].params.trimmed().to(device)
            view = self._view(compressed, device) if bool(compressed.any()) else no_spans(device)
            self._add(index, self._host(index), NO_LIMIT, params, rows, view, SpanTables())

    def hold_budget(self, tokens: float) -> None:
        """What the model's own cache of so many document tokens takes at 16 bits, per layer on
        average."""
        recipe, tables, row = self.recipe, self.tables, self.row_bytes
        cap = row * tokens
        params = [layer.params.trimmed() for layer in self.layers]
        bounded = len(tables.kind) if self.longest >= recipe.levels.beyond else 0
        caps = fitting.caps(recipe, tables, params, self.heads, cap, row, bounded)
        pins: Tensor | None = None
        for index, device in enumerate(self.devices):
            room = caps[index] - ZOOM_RESERVE * min(cap, caps[index])
            made = tables.layer(index)
            (k, v), router, lean = needed(made.exact), made.tables, params[index]
            if recipe.selector.static:  # chosen once, from the host: no routing on the device
                router, lean = SpanTables(), LayerParams()
            router, lean = fitting.fit(recipe, router, lean, room * self.heads, bounded)
            if bounded and router.sketch is not None:
                lean = two_level.fit(router, lean, tables.bounds)
                router = two_level.build(router, lean, tables.bounds)
            prefix = self.layers[index].prefix
            if pins is None:
                least = room if router.nbytes else (1 - ZOOM_RESERVE) * min(caps)
                pins = fitting.affordable_pins(recipe, tables, router, lean, prefix, k, least)
            keep = tables.pinned_span_mask(pins)
            rows = _join_rows(prefix, k[:, keep], v[:, keep], tables.pinned[keep], device, k.dtype)
            compressed = torch.ones(len(tables.kind), dtype=torch.bool)
            compressed[pins] = False
            compressed &= fitting.affordable_summaries(
                tables, router, lean, rows[0], compressed, room
            )
            limits = Limits(caps[index] * self.heads, self.coverage)
            if not bool(compressed.any()):  # not even routing fits: only exact rows remain
                nothing = LayerParams(), rows, no_spans(device), SpanTables()
                self._add(index, self._host(index), limits, *nothing)
                continue
            where = device
            if recipe.selector.static:
                router, lean, where = made.tables, params[index], torch.device("cpu")
            router = router.pick(self._everything.pick(compressed)[1], compressed).to(where)
            view = self._view(compressed, device)
            self._add(index, self._host(index), limits, lean.to(device), rows, view, router)


def _with_router(
    store: Store, reader: Reader, recipe: Method, layers: list[SharedLayer], requested: str
) -> tuple[Method, list[SharedLayer]]:
    """The store's recipe and layers under the router asked for.

    A router of span summaries can take another's place, for it works on what any such store
    holds; a sketch was made while the document was compressed.
    """
    if not requested:
        return recipe, layers
    trained, _ = router_file.find(requested, Path(), reader.identity)
    choice = None if trained is None else trained.in_place_of(recipe.router)
    if trained is not None and choice is not None and not recipe.whole:
        none = torch.empty(0)
        fitted = [
            replace(layer, params=choice.fit(none, layer.params, Given(trained=known)))
            for layer, known in zip(layers, trained.layers, strict=True)
        ]
        return replace(recipe, router=choice), fitted
    used = recipe.trained_by
    if used != ("" if trained is None else trained.fingerprint):
        raise RouterError(
            f"{store.path} was made with {f'the router {used[:8]}' if used else 'no router'}; "
            f"to use '{requested}', ingest again with --router {requested}"
        )
    return recipe, layers


def in_its_bases(stored: Tensors, recipe: Method, reader: Reader, requested: str) -> Tensors:
    """Shared tensors of a store with the model's own bases among them, where it uses these.

    requested: a router's file; "" for the one beside the model.

    Raises:
        RouterError: the router that the store was made with is not at hand.
        StoreError: what is stored does not fit it.
    """
    layers = by_layer(stored, reader.memory_layers)
    if not any(map(lacks_bases, layers)):
        return stored
    used = recipe.trained_by
    trained, _ = router_file.find(requested, reader.located.folder, reader.identity)
    if trained is None or trained.fingerprint != used:
        raise RouterError(
            f"the store is kept in the bases of router {used[:8]}, which is not the one "
            f"{'named' if requested else 'beside the model'}; name its file with --router, or "
            "ingest again"
        )
    found = zip(layers, trained.layers, strict=True)
    return of_layers(
        reader.memory_layers, (with_model_bases(tensors, known.bases) for tensors, known in found)
    )


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


def whole_rows(
    recipe: Method, host: Host, bounds: Tensor, params: LayerParams
) -> tuple[Tensor, Tensor]:
    """All tokens of a layer decoded from the host: k, v float32 [Hkv, N, D], on the CPU."""
    payload, starts = host.fetch(torch.arange(len(bounds) - 1))
    lengths = bounds.diff()
    ks, vs = [], []
    for head in range(host.heads):
        size = host.sizes[head].long()
        records = payload[gather_ranges(starts[:, head], size)]
        offsets = torch.cat([size.new_zeros(1), size.cumsum(0)])
        k, v = recipe.codec.decode(head, records, offsets, lengths, params)
        ks.append(k)
        vs.append(v)
    return torch.stack(ks), torch.stack(vs)
