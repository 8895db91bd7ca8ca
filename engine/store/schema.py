"""What the tensors of a store must look like before anything computes with them.

Checksums tell that bytes are those that were written, not that a sane program wrote them. The
shapes and dtypes of a recipe follow from the recipe: it folds a few made-up rows here, and what
is stored must look like the outcome. No files, no model, no repair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.compression.codecs.base import Side
from engine.compression.codecs.shared_basis import SharedBasis
from engine.compression.encode import Given, by_layer, compress_layer, fit, pinned_tokens
from engine.compression.methods import Method, from_settings
from engine.compression.quantize import is_allocation
from engine.compression.routers.span_zoom import Learnt
from engine.compression.routers.static import CALIBRATED, RetrievalHeads
from engine.compression.spans import COMPRESSED, Spans, pin_ends
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
    """What the layers of a store with this manifest hold. example: what fitting made-up rows
    gives; lent: the same for a document that uses the model's own bases, where one may."""

    manifest: Manifest
    recipe: Method
    example: Side
    lent: Side

    @classmethod
    def of(cls, manifest: Manifest, recipe: Method) -> Schema:
        """Raises StoreError when the manifest names a dtype that no model has."""
        if manifest.dtype not in DTYPES:
            raise StoreError(f"the manifest names a dtype '{manifest.dtype}' that no model has")
        made = cls(manifest, recipe, {}, {})
        rows, told, learnt = made._rows(), made._spans(), made._learnt()
        own = made._own()
        lent = fit(recipe, *rows, *told, Given(trained=learnt | own)) if own else {}
        return cls(manifest, recipe, fit(recipe, *rows, *told, Given(trained=learnt)), lent)

    def check_shared(self, shared: Side) -> None:
        """Raises StoreError, in one line, when the tensors of all windows are not the recipe's.

        Args:
            shared: what is the model's own among it, see `codec.borrow`.
        """
        for layer, side in enumerate(by_layer(shared, self.manifest.model.layers)):
            place = f"{SHARED}, layer {layer}"
            calibrated = self._calibrated(place, side)
            example = self._example(side)
            _compare(place, side, {**example, **self._prefix(), **calibrated})
            for name, tensor in side.items():
                if name in calibrated:
                    continue
                if name.endswith("_bits") and not is_allocation(tensor):
                    raise _fault(place, name, "no widths in bits")
                # Counts and sizes are the model's; no document changes them.
                if tensor.dtype == torch.int32 and not torch.equal(tensor, example[name]):
                    raise _fault(place, name, "another size")

    def check_windows(self, shared: Side, sections: Sequence[Side]) -> None:
        """Raises StoreError, in one line, when a device section is not the recipe's.

        Args:
            shared: as `check_shared` accepted it.
        """
        expected = [self._device(side) for side in by_layer(shared, self.manifest.model.layers)]
        for index, section in enumerate(sections):
            entry, place = self.manifest.windows[index], device_file(index)
            tables = {name: section[name].numpy() for name in SPAN_TABLE if name in section}
            fault = span_table_fault(tables, entry.end - entry.start, entry.spans)
            if fault:
                raise StoreDamagedError(f"{place} has {fault}: ingest again")
            pinned = len(pinned_tokens(section["bounds"].long(), section["kind"]))
            rest = {name: t for name, t in section.items() if name not in SPAN_TABLE}
            count = {".t": entry.end - entry.start, ".s": entry.spans}
            for layer, tensors in enumerate(by_layer(rest, self.manifest.model.layers)):
                wanted = {
                    name: t[:, :1].expand(-1, count.get(name[-2:], pinned), *t.shape[2:])
                    for name, t in expected[layer].items()
                }
                _compare(f"{place}, layer {layer}", tensors, wanted)

    def _example(self, side: Side) -> Side:
        """The made-up layer that a stored one must look like."""
        return self.lent if self.lent and "k_order" in side else self.example

    def _own(self) -> Side:
        """Bases in the shapes of the model's own; nothing where the recipe uses none."""
        codec, model = self.recipe.codec, self.manifest.model
        return codec.lent(model.kv_heads, model.head_dim) if isinstance(codec, SharedBasis) else {}

    def _calibrated(self, place: str, side: Side) -> Side:
        """What was measured of the model and not of a document, as it is stored.

        Raises StoreError when it cannot be of this model."""
        if not isinstance(self.recipe.router, RetrievalHeads):
            return {}
        odd = [name for name in CALIBRATED if name not in side or side[name].dim() != 1]
        if odd:
            raise _fault(place, odd[0], "missing or no list")
        heads, share = (side[name] for name in CALIBRATED)
        if heads.dtype != torch.int32 or not all(
            0 <= head < self.manifest.model.heads for head in heads.tolist()
        ):
            raise _fault(place, CALIBRATED[0], "no list of the model's heads")
        if not len(heads) or share.shape != (1,) or not float(share[0]) > 0:
            raise _fault(place, CALIBRATED[1], "no share")
        return {CALIBRATED[0]: heads, CALIBRATED[1]: torch.ones(1)}

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
        """Surprisal and spans of the made-up rows: one span pinned, one folded."""
        spans = Spans(
            torch.tensor([0, _SPAN, 2 * _SPAN]), torch.full((2,), COMPRESSED, dtype=torch.uint8)
        )
        return torch.ones(2 * _SPAN), pin_ends(spans, _SPAN, 0)

    def _learnt(self) -> Side:
        """What a trained router would know of a layer, in its shapes."""
        model, router = self.manifest.model, self.recipe.router
        return router.example(model.kv_heads, model.head_dim) if isinstance(router, Learnt) else {}

    def _prefix(self) -> Side:
        k, _ = self._rows()
        prefix = self.manifest.prompt.get("prefix")
        row = k[:, :1].expand(-1, len(prefix) if isinstance(prefix, list) else 0, -1)
        return {"prefix_k": row, "prefix_v": row}

    def _device(self, side: Side) -> Side:
        """What a window's layer looks like: how wide packed rows are follows from its own bits."""
        own = {name: t for name, t in side.items() if name.endswith("_bits") or name in CALIBRATED}
        known = {**self._example(side), **own, **self._learnt()}
        rows, told = self._rows(), self._spans()
        return compress_layer(self.recipe, *rows, *told, known, self._queries()).device


def is_finite(tensors: Side) -> bool:
    """Whether every number of these tensors is one."""
    return all(bool(t.isfinite().all()) for t in tensors.values() if t.is_floating_point())


def _compare(place: str, found: Side, expected: Side) -> None:
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
    return StoreDamagedError(f"{place}: tensor {name[:80]!r} is {what}: ingest again")
