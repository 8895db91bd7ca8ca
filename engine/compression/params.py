"""The parameters of a layer that all windows of a document share, as dataclasses and as tensors.

What a codec, a router and the summaries of a layer have in common (the bases) stands here once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Self, TypeVar, cast

import torch
from torch import Tensor

from engine.compression.tensor_names import CALIBRATED, KEYS, SKETCH, SUMMARIES, VALUES, bits_of

Tensors = dict[str, Tensor]
"""Tensors by their names in a file."""

Part = TypeVar("Part")


@dataclass(frozen=True)
class RowFormat:
    """What codecs that keep rows as such know of them. size: D. dtype: None for the codecs that
    have a number format of their own."""

    size: int
    dtype: torch.dtype | None = None

    @property
    def row_bytes(self) -> int:
        """Of the key and the value of a token, where they are kept in `dtype`."""
        return 2 * self.size * needed(self.dtype).itemsize

    def tensors(self) -> Tensors:
        if self.dtype is None:
            return {"size": torch.tensor([self.size], dtype=torch.int32)}
        return {"rows": torch.empty(0, self.size, dtype=self.dtype)}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> RowFormat | None:
        if "rows" in tensors:
            return cls(tensors["rows"].shape[-1], tensors["rows"].dtype)
        return cls(int(tensors["size"][0])) if "size" in tensors else None


@dataclass(frozen=True)
class ModelBasis:
    """A basis of keys or values that belongs to the model and serves every document alike.

    columns: int8 [Hkv, D, D].  scale: float16 [Hkv, D].
    """

    columns: Tensor
    scale: Tensor

    def in_order(self, order: Tensor) -> ModelBasis:
        """order: integers [Hkv, D], for each place the column that stands there.

        Raises:
            ValueError: it is no order of the columns.
        """
        order = order.long()
        places = torch.arange(self.scale.shape[-1]).expand_as(self.scale)
        if not torch.equal(order.sort(-1).values, places):
            raise ValueError("no order of a basis' columns")
        index = order[:, None].expand_as(self.columns)
        return ModelBasis(self.columns.gather(-1, index), self.scale.gather(-1, order))

    def tensors(self, name: str) -> Tensors:
        """name: `KEYS` or `VALUES`."""
        return {f"own_{name}_basis": self.columns, f"own_{name}_scale": self.scale}

    @classmethod
    def of(cls, name: str, tensors: Mapping[str, Tensor]) -> ModelBasis | None:
        if f"own_{name}_basis" not in tensors:
            return None
        return cls(tensors[f"own_{name}_basis"], tensors[f"own_{name}_scale"])


@dataclass(frozen=True)
class ModelBases:
    """The model's own bases of a layer, out of a router's file."""

    keys: ModelBasis
    values: ModelBasis

    def tensors(self) -> Tensors:
        return self.keys.tensors(KEYS) | self.values.tensors(VALUES)

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> ModelBases | None:
        """Raises KeyError where one of its tensors is missing and others are there."""
        keys, values = ModelBasis.of(KEYS, tensors), ModelBasis.of(VALUES, tensors)
        return None if keys is None or values is None else cls(keys, values)


@dataclass(frozen=True)
class Basis:
    """The basis of the keys or the values of each head: mean + coefficients @ columns.T is a row.

    mean: [Hkv, D].  columns: [Hkv, D, R], int8 in units of `scale`, or orthonormal float32.
    scale: float16 [Hkv, R], None for orthonormal columns.
    from_model: the columns are the model's own, and the document keeps only their order: int16
    [Hkv, D], greatest variance first; None once columns are trimmed.
    """

    mean: Tensor
    columns: Tensor
    scale: Tensor | None = None
    order: Tensor | None = None
    from_model: bool = False

    @classmethod
    def packed(cls, mean: Tensor, columns: Tensor) -> Basis:
        """Float columns [Hkv, D, D] in eight bits with one scale each.

        Rounding costs nothing but orthogonality: `Axes` inverts the rounded columns.
        """
        scale = (columns.abs().amax(1) / 127).half()
        whole = (columns / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
        return cls(mean.half(), whole, scale)

    @classmethod
    def of_model(cls, mean: Tensor, basis: ModelBasis, order: Tensor) -> Basis:
        """The model's columns in a document's order; see `ModelBasis.in_order`."""
        basis = basis.in_order(order)
        return cls(mean, basis.columns, basis.scale, order.to(torch.int16), from_model=True)

    def unpacked(self, head: int | slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Mean [..., D] and columns [..., D, R] in float32, of one head or of all."""
        columns = self.columns[head].float()
        if self.scale is not None:
            columns = columns * self.scale[head].float()[..., None, :]
        return self.mean[head].float(), columns

    def trimmed(self, used: int) -> Basis:
        """The same with the first `used` columns."""
        scale = None if self.scale is None else self.scale[..., :used].contiguous()
        return replace(self, columns=self.columns[..., :used].contiguous(), scale=scale, order=None)

    def tensors(self, name: str, *, with_model: bool = True) -> Tensors:
        """name: `KEYS` or `VALUES`.  with_model: the model's own columns among them."""
        found = {f"{name}_mean": self.mean}
        if self.order is not None:
            found[f"{name}_order"] = self.order
        if not self.from_model:
            found[f"{name}_basis"] = self.columns
            if self.scale is not None:
                found[f"{name}_scale"] = self.scale
        elif with_model:
            found |= ModelBasis(self.columns, needed(self.scale)).tensors(name)
        return found

    @classmethod
    def of(cls, name: str, tensors: Mapping[str, Tensor]) -> Basis | None:
        """Of tensors that `stored_layers.with_model_bases` has completed."""
        if f"{name}_mean" not in tensors:
            return None
        mean, model = tensors[f"{name}_mean"], ModelBasis.of(name, tensors)
        if model is not None:
            order = tensors.get(f"{name}_order")
            return cls(mean, model.columns, model.scale, order, from_model=True)
        return cls(mean, tensors[f"{name}_basis"], tensors.get(f"{name}_scale"))


@dataclass(frozen=True)
class Quantizer:
    """How coefficients in a basis are rounded. bits: uint8 [Hkv, R].  step: float32 [Hkv, R]."""

    bits: Tensor
    step: Tensor

    @property
    def used(self) -> int:
        """The most components that a head spends a bit on."""
        return int((self.bits > 0).sum(-1).max())

    def trimmed(self, used: int) -> Self:
        """The same of the first `used` components."""
        bits, step = (each[..., :used].contiguous() for each in (self.bits, self.step))
        return replace(self, bits=bits, step=step)

    def tensors(self, name: str) -> Tensors:
        """`{name}_bits` and so on, each field under its own name."""
        return {f"{name}_{field.name}": getattr(self, field.name) for field in fields(self)}

    @classmethod
    def of(cls, name: str, tensors: Mapping[str, Tensor]) -> Self | None:
        if bits_of(name) not in tensors:
            return None
        return cls(*(tensors[f"{name}_{field.name}"] for field in fields(cls)))


@dataclass(frozen=True)
class CodeQuantizer(Quantizer):
    """That of the codes of keys or of values. error: float32 [2, Hkv], the squared error of a row
    that is left out, and of one that is coded."""

    error: Tensor


@dataclass(frozen=True)
class Codes:
    """The quantizers of a layer's codes."""

    keys: CodeQuantizer
    values: CodeQuantizer

    def tensors(self) -> Tensors:
        return self.keys.tensors(KEYS) | self.values.tensors(VALUES)

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Codes | None:
        keys, values = CodeQuantizer.of(KEYS, tensors), CodeQuantizer.of(VALUES, tensors)
        return None if keys is None or values is None else cls(keys, values)


@dataclass(frozen=True)
class SketchQuantizer(Quantizer):
    """That of the sketch. lost: float32 [Hkv, R], the squared error of every coefficient."""

    lost: Tensor

    def trimmed(self, used: int) -> Self:
        return replace(super().trimmed(used), lost=self.lost[..., :used].contiguous())


@dataclass(frozen=True)
class BoundQuantizer(Quantizer):
    """That of the means of spans in the span level of a sketch; see `routers.two_level`. weight:
    float32 [Hkv, R], of a component in the radius of a span. No store keeps it."""

    weight: Tensor

    @property
    def nbytes(self) -> int:
        return self.bits.nbytes + self.step.nbytes + self.weight.nbytes


@dataclass(frozen=True)
class ZoomWeights:
    """The published router. w: [Hkv, G or 1, d', D] projections.  tau: [Hkv, G] thresholds."""

    w: Tensor
    tau: Tensor

    def tensors(self) -> Tensors:
        return {"zoom_w": self.w, "zoom_tau": self.tau}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> ZoomWeights | None:
        """Raises KeyError where one of its tensors is missing."""
        if "zoom_w" not in tensors:
            return None
        return cls(tensors["zoom_w"], tensors["zoom_tau"])


@dataclass(frozen=True)
class RankGates:
    """The network of the rank gates, 32 + D -> 64 -> 64 -> 32; see `codecs.rank_gates`.

    weights: [out, in] of each layer.  biases: [out].
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]

    @staticmethod
    def shapes(size: int, rank: int = 32, width: int = 64) -> dict[str, tuple[int, ...]]:
        """Its tensors by name for heads of `size`."""
        shapes: dict[str, tuple[int, ...]] = {}
        for layer, (inner, outer) in enumerate(pairwise((rank + size, width, width, rank))):
            shapes |= {f"gate_{layer}_w": (outer, inner), f"gate_{layer}_b": (outer,)}
        return shapes

    def tensors(self) -> Tensors:
        found: Tensors = {}
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            found |= {f"gate_{layer}_w": weight, f"gate_{layer}_b": bias}
        return found

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> RankGates | None:
        """Raises KeyError where one of its tensors is missing."""
        if "gate_0_w" not in tensors:
            return None
        weights, biases = (tuple(tensors[f"gate_{i}_{part}"] for i in range(3)) for part in "wb")
        return cls(weights, biases)


@dataclass(frozen=True)
class TrainedLayer:
    """What a trained router knows of a layer; it acts while a document is compressed."""

    zoom: ZoomWeights | None = None
    gates: RankGates | None = None
    bases: ModelBases | None = None

    def tensors(self) -> Tensors:
        return _merged(self.zoom, self.gates, self.bases)

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> TrainedLayer:
        """Raises KeyError where a part is not whole."""
        return cls(ZoomWeights.of(tensors), RankGates.of(tensors), ModelBases.of(tensors))


@dataclass(frozen=True)
class LayerCalibration:
    """What was measured of a layer of the model beforehand and is kept with the store.

    heads: int32 [n], its retrieval heads.  share: float32 [1], its part of the rows that a budget
    holds, with a mean of one over all layers.
    """

    heads: Tensor
    share: Tensor

    def tensors(self) -> Tensors:
        return dict(zip(CALIBRATED, (self.heads, self.share), strict=True))

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> LayerCalibration | None:
        if CALIBRATED[0] not in tensors:
            return None
        return cls(*(tensors[name] for name in CALIBRATED))


@dataclass(frozen=True)
class LayerParams:
    """The parameters of a layer; a part that its method does not use is None.

    rows: of codecs that keep rows.  keys, values: bases, for codes, sketch and summaries alike.
    codes, sketch, summaries: how coefficients in them are rounded.  zoom: the trained projections.
    gates: rank gates, while a document is compressed; bounds: the span level of a sketch, while a
    memory is open. No store keeps these two.
    """

    rows: RowFormat | None = None
    keys: Basis | None = None
    values: Basis | None = None
    codes: Codes | None = None
    sketch: SketchQuantizer | None = None
    summaries: Quantizer | None = None
    zoom: ZoomWeights | None = None
    calibration: LayerCalibration | None = None
    gates: RankGates | None = None
    bounds: BoundQuantizer | None = None

    def tensors(self, *, with_model: bool = True) -> Tensors:
        """As a store has them. with_model: the model's own bases among them."""
        found = _merged(self.rows, self.codes, self.zoom, self.calibration)
        for name, basis in ((KEYS, self.keys), (VALUES, self.values)):
            found |= {} if basis is None else basis.tensors(name, with_model=with_model)
        for name, quantizer in ((SKETCH, self.sketch), (SUMMARIES, self.summaries)):
            found |= {} if quantizer is None else quantizer.tensors(name)
        return found

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> LayerParams:
        """Of tensors that `stored_layers.with_model_bases` has completed; others are left out."""
        return cls(
            rows=RowFormat.of(tensors),
            keys=Basis.of(KEYS, tensors),
            values=Basis.of(VALUES, tensors),
            codes=Codes.of(tensors),
            sketch=SketchQuantizer.of(SKETCH, tensors),
            summaries=Quantizer.of(SUMMARIES, tensors),
            zoom=ZoomWeights.of(tensors),
            calibration=LayerCalibration.of(tensors),
        )

    @property
    def quantizers(self) -> list[Quantizer]:
        codes = () if self.codes is None else (self.codes.keys, self.codes.values)
        every = (*codes, self.sketch, self.summaries, self.bounds)
        return [each for each in every if each is not None]

    @cached_property
    def nbytes(self) -> int:
        """Bytes of the document: the model's own bases are none."""
        stored = sum(t.nbytes for t in self.tensors(with_model=False).values())
        return stored + (0 if self.bounds is None else self.bounds.nbytes)

    def to(self, device: torch.device) -> LayerParams:
        """The same on a device."""
        return on_device(self, device)

    def trimmed(self) -> LayerParams:
        """The same without the columns of bases that no code, sketch or summary spends a bit on.

        Of rows coded with what is trimmed, such as a conversation's, those directions are not kept.
        """
        if self.codes is None:
            return self
        keys, values, sketch, summaries = self.keys, self.values, self.sketch, self.summaries
        of_keys = max(each.used for each in (self.codes.keys, sketch) if each is not None)
        of_values = max(each.used for each in (self.codes.values, summaries) if each is not None)
        return replace(
            self,
            keys=keys and keys.trimmed(of_keys),
            values=values and values.trimmed(of_values),
            codes=Codes(self.codes.keys.trimmed(of_keys), self.codes.values.trimmed(of_values)),
            sketch=sketch and sketch.trimmed(of_keys),
            summaries=summaries and summaries.trimmed(of_values),
        )


def needed(part: Part | None) -> Part:
    """A part that a layer has wherever its method asks for it."""
    if part is None:
        raise TypeError("these parameters are of a layer of another method")
    return part


def _merged(
    *parts: RowFormat | Codes | ZoomWeights | RankGates | ModelBases | LayerCalibration | None,
) -> Tensors:
    return {name: t for part in parts if part is not None for name, t in part.tensors().items()}


def on_device(part: Part, device: torch.device) -> Part:
    """A tensor, or a dataclass of tensors and of other dataclasses, on a device."""
    moved: Any = part
    if isinstance(part, Tensor):
        moved = part.to(device)
    elif isinstance(part, tuple):
        moved = tuple(on_device(each, device) for each in part)
    elif is_dataclass(part) and not isinstance(part, type):
        values = {field.name: getattr(part, field.name) for field in fields(part)}
        moved = replace(part, **{name: on_device(each, device) for name, each in values.items()})
    return cast(Part, moved)
