"""What the tensors of a store must look like before anything computes with them.

Checksums tell that bytes are those that were written, not that a sane program wrote them. The
shapes and dtypes of a recipe follow from the recipe: a few made-up rows are compressed here, and
what is stored must look like the outcome. No files, no model, no repair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from engine.compression.encode import compress_layer, device_tables, fit, pinned_tokens
from engine.compression.layer_basis import LayerAxes
from engine.compression.methods import Method, from_settings
from engine.compression.params import LayerCalibration, LayerParams, Tensors
from engine.compression.quantize import is_allocation
from engine.compression.span_tables import Change, DeviceLayer
from engine.compression.spans import COMPRESSED, Spans, pin_ends
from engine.compression.statistics import Given
from engine.compression.stored_layers import SharedLayer, bit_tables, by_layer, in_model_bases
from engine.compression.tensor_names import CALIBRATED
from engine.errors import StoreDamagedError, StoreError
from engine.store.manifest import SHARED, Manifest, device_file
from engine.store.records import SPAN_TABLE, span_table_fault
from engine.types import DTYPES

_SPAN = 8
"""Tokens of each of the two spans that the made-up rows are cut into."""


def recipe_of(manifest: Manifest) -> Method:
    """The recipe a store was made by.

    Raises:
        StoreError: the manifest's settings are of no recipe that this version knows.
    """
    try:
        return from_settings(manifest.method, manifest.settings)
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"unknown method settings ({error}): open it with {manifest.creator}"
        ) from None


@dataclass(frozen=True)
class Schema:
    """What the layers of a store with this manifest hold. example: the parameters that made-up rows
    give; in_model_bases: the same for a document that uses the model's own bases, where one may."""

    manifest: Manifest
    recipe: Method
    example: LayerParams
    in_model_bases: LayerParams | None

    @classmethod
    def of(cls, manifest: Manifest, recipe: Method) -> Schema:
        """Raises StoreError when the manifest names a dtype that no model has."""
        if manifest.dtype not in DTYPES:
            raise StoreError(f"the manifest names a dtype '{manifest.dtype}' that no model has")
        made = cls(manifest, recipe, LayerParams(), None)
        rows, spans = made._rows(), made._spans()
        trained = recipe.example(manifest.model.kv_heads, manifest.model.head_dim)
        calibrated = LayerCalibration(torch.zeros(1, dtype=torch.int32), torch.ones(1))
        known = Given(trained=replace(trained, bases=None), calibrated=calibrated)
        borrowing = None
        if trained.bases is not None:
            borrowing = fit(recipe, *rows, *spans, replace(known, trained=trained))
        return cls(manifest, recipe, fit(recipe, *rows, *spans, known), borrowing)

    def check_shared(self, shared: Tensors) -> None:
        """Raises StoreError, in one line, when the tensors of all windows are not the recipe's.

        Args:
            shared: what is the model's own among it, see `stored_layers.with_model_bases`.
        """
        numbers = self.manifest.model.memory_layers
        for layer, tensors in zip(numbers, by_layer(shared, numbers), strict=True):
            place = f"{SHARED}, layer {layer}"
            calibrated = self._calibrated(place, tensors)
            made = SharedLayer(self._example(tensors), self._prefix()).tensors()
            _compare(place, tensors, {**made, **calibrated})
            for name, bits in bit_tables(tensors).items():
                if not is_allocation(bits):
                    raise _fault(place, name, "no widths in bits")
            for name, tensor in tensors.items():
                # Counts and sizes are the model's; no document changes them.
                counts = tensor.dtype == torch.int32 and name not in calibrated
                if counts and not torch.equal(tensor, made[name]):
                    raise _fault(place, name, "another size")

    def check_windows(self, shared: Tensors, sections: Sequence[Tensors]) -> None:
        """Raises StoreError, in one line, when a device section is not the recipe's.

        Args:
            shared: as `check_shared` accepted it.
            sections: of the windows that are read, in order.
        """
        numbers, names = self.manifest.model.memory_layers, self.recipe.router.key_names
        expected = self._devices(by_layer(shared, numbers))
        for index, section in zip(self.manifest.read, sections, strict=True):
            entry, place = self.manifest.windows[index], device_file(index)
            tables = {name: section[name].numpy() for name in SPAN_TABLE if name in section}
            fault = span_table_fault(tables, entry.end - entry.start, entry.spans)
            if fault:
                raise StoreDamagedError(f"{place} has {fault}")
            exact = len(pinned_tokens(section["bounds"].long(), section["kind"]))
            rest = {name: t for name, t in section.items() if name not in SPAN_TABLE}
            found = zip(numbers, by_layer(rest, numbers), expected, strict=True)
            for layer, tensors, one in found:
                wanted = _sized(one, entry.end - entry.start, entry.spans, exact)
                _compare(f"{place}, layer {layer}", tensors, wanted.tensors(names))

    def _example(self, tensors: Tensors) -> LayerParams:
        """The made-up layer that a stored one must look like."""
        if self.in_model_bases is not None and in_model_bases(tensors):
            return self.in_model_bases
        return self.example

    def _calibrated(self, place: str, tensors: Tensors) -> Tensors:
        """What was measured of the model and not of a document, as it is stored.

        Raises StoreError when it cannot be of this model."""
        if not self.recipe.needs_calibration:
            return {}
        odd = [name for name in CALIBRATED if name not in tensors or tensors[name].dim() != 1]
        if odd:
            raise _fault(place, odd[0], "missing or no list")
        heads, share = (tensors[name] for name in CALIBRATED)
        if heads.dtype != torch.int32 or not all(
            0 <= head < self.manifest.model.heads for head in heads.tolist()
        ):
            raise _fault(place, CALIBRATED[0], "no list of the model's heads")
        if not len(heads) or share.shape != (1,) or not float(share[0]) > 0:
            raise _fault(place, CALIBRATED[1], "no share")
        return LayerCalibration(heads, torch.ones(1)).tensors()

    def _queries(self) -> Tensor | None:
        """Made-up queries, for routers that observe the model's."""
        rows = min(self.recipe.observe.rows, 2 * _SPAN)
        model, made = self.manifest.model, torch.Generator().manual_seed(1)
        return torch.randn(model.heads, rows, model.head_dim, generator=made) if rows else None

    def _rows(self) -> tuple[Tensor, Tensor]:
        model, made = self.manifest.model, torch.Generator().manual_seed(0)
        shape = (model.kv_heads, 2 * _SPAN, model.head_dim)
        k, v = (torch.randn(shape, generator=made) for _ in range(2))
        return k.to(getattr(torch, self.manifest.dtype)), v.to(getattr(torch, self.manifest.dtype))

    def _spans(self) -> tuple[Tensor, Spans]:
        """Surprisal and spans of the made-up rows: one span pinned, one compressed."""
        spans = Spans(
            torch.tensor([0, _SPAN, 2 * _SPAN]), torch.full((2,), COMPRESSED, dtype=torch.uint8)
        )
        return torch.ones(2 * _SPAN), pin_ends(spans, _SPAN, 0)

    def _prefix(self) -> tuple[Tensor, Tensor]:
        k, _ = self._rows()
        prefix = self.manifest.prompt.get("prefix")
        row = k[:, :1].expand(-1, len(prefix) if isinstance(prefix, list) else 0, -1)
        return row, row

    def _devices(self, layers: Sequence[Tensors]) -> list[DeviceLayer]:
        """What a window's layers look like: how wide packed rows are follows from a layer's own
        bits. Whether a codec says what it loses is the same in all layers."""
        rows, spans, queries = self._rows(), self._spans(), self._queries()
        params = [self._params(tensors) for tensors in layers]
        first = compress_layer(self.recipe, *rows, *spans, params[0], queries).device
        if self.recipe.whole:
            return [first] * len(layers)
        axes = LayerAxes.of(params[0])  # of any numbers: only shapes are compared
        tables = [device_tables(self.recipe, *rows, *spans, each, axes, queries) for each in params]
        return [DeviceLayer(*each, first.errors) for each in tables]

    def _params(self, tensors: Tensors) -> LayerParams:
        """The made-up layer, with the bits of a stored one."""
        own = bit_tables(tensors) | {n: t for n, t in tensors.items() if n in CALIBRATED}
        return LayerParams.of({**self._example(tensors).tensors(), **own})


def _sized(layer: DeviceLayer, tokens: int, spans: int, exact: int) -> DeviceLayer:
    """The same shapes for so many tokens, spans and exact rows."""

    def rows(count: int) -> Change:
        return lambda table: table[:, :1].expand(-1, count, *table.shape[2:])

    return DeviceLayer(
        layer.tables.changed(rows(tokens), rows(spans)),
        layer.exact and (rows(exact)(layer.exact[0]), rows(exact)(layer.exact[1])),
        None if layer.errors is None else rows(spans)(layer.errors),
    )


def is_finite(tensors: Tensors) -> bool:
    """Whether every number of these tensors is one."""
    return all(bool(t.isfinite().all()) for t in tensors.values() if t.is_floating_point())


def _compare(place: str, found: Tensors, expected: Tensors) -> None:
    odd = sorted(found.keys() ^ expected.keys())
    if odd:
        raise _fault(place, odd[0], "one too many" if odd[0] in found else "missing")
    for name, tensor in found.items():
        wanted = expected[name]
        if tensor.dtype != wanted.dtype or tensor.shape != wanted.shape:
            raise _fault(place, name, f"{_looks(tensor)} where {_looks(wanted)} belongs")
        if not is_finite({name: tensor}):
            raise _fault(place, name, "not all finite numbers")


def _looks(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _fault(place: str, name: str, what: str) -> StoreError:
    return StoreDamagedError(f"{place}: tensor {name[:80]!r} is {what}")
