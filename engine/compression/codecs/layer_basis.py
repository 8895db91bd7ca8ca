"""The bases of a layer's keys and values: fitted, packed, borrowed from the model, and applied."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.compression.basis import covariance_basis
from engine.compression.codecs.base import Side
from engine.errors import StoreError

OWN = "own_"
"""Begins the names of tensors that are the model's and not a document's: bases out of a router's
file. They serve every document alike and are no bytes of any."""

SAMPLE = 1024
"""Rows that steps and usual errors are fitted on: with them a code loses 0.3 % more than with
steps fitted on all rows of a window (SmolLM2-135M, 5,070 rows)."""


@dataclass(frozen=True)
class Axes:
    """The basis of the keys or the values of each head of a layer, as a store keeps it, and its
    inverse: mean + coefficients @ basis.T gives the rows back, as nearly as R columns can.

    mean: [Hkv, D].  basis, inverse: [Hkv, D, R]; float32.
    """

    mean: Tensor
    basis: Tensor
    inverse: Tensor

    @classmethod
    def of(cls, name: str, side: Side) -> Axes:
        """From tensors by name. name: "k" or "v"."""
        mean, basis = basis_of(name, side)
        if f"{_place(name, side)}_scale" not in side:  # its columns are orthonormal
            return cls(mean, basis, basis)
        square = basis.shape[-2] == basis.shape[-1]
        return cls(mean, basis, (torch.linalg.inv if square else torch.linalg.pinv)(basis).mT)

    def coefficients(self, rows: Tensor, used: int | None = None) -> Tensor:
        """Of rows [Hkv, n, D] the first `used` coefficients, or all: float32 [Hkv, n, used]."""
        return torch.bmm(rows.float() - self.mean[:, None], self.inverse[..., :used])


@dataclass(frozen=True)
class LayerAxes:
    """The axes of a layer's keys and of its values, inverted once for all that code rows."""

    keys: Axes
    values: Axes

    @classmethod
    def of(cls, side: Side) -> LayerAxes | None:
        """From a layer's tensors by name; None where it has no bases."""
        if not (stores_basis("k", side) and stores_basis("v", side)):
            return None
        return cls(Axes.of("k", side), Axes.of("v", side))


@dataclass(frozen=True)
class LentBasis:
    """A basis that is the model's own: columns int8 [Hkv, D, D], scale float16 [Hkv, D]."""

    columns: Tensor
    scale: Tensor


@dataclass(frozen=True)
class LentBases:
    """The model's own bases of a layer, out of a router's file."""

    keys: LentBasis
    values: LentBasis

    @classmethod
    def of(cls, trained: Side) -> LentBases | None:
        """From what a trained router knows of a layer; None where it has none."""
        if f"{OWN}k_basis" not in trained:
            return None
        found = [LentBasis(trained[f"{OWN}{n}_basis"], trained[f"{OWN}{n}_scale"]) for n in "kv"]
        return cls(*found)


@dataclass(frozen=True)
class FittedAxes:
    """Axes that were fitted to rows. variance: [Hkv, D] of their coefficients, falling, in the
    metric that was given. stored: the tensors by name that a store keeps of them."""

    axes: Axes
    variance: Tensor
    stored: Side


def fit_axes(
    name: str, rows: Tensor, metric: Tensor | None = None, lent: LentBasis | None = None
) -> FittedAxes:
    """The basis of greatest variance of rows [Hkv, n, D].

    Args:
        name: "k" or "v".  metric: [Hkv, D, D] second moment of what the rows are multiplied with.
        lent: the model's own basis; its columns are then put in this document's order.
    """
    if lent is None:
        mean, basis, variance = covariance_basis(rows, metric)
        stored = pack_basis(name, mean, basis)
        return FittedAxes(Axes.of(name, stored), variance, stored)
    stored = {f"{OWN}{name}_basis": lent.columns, f"{OWN}{name}_scale": lent.scale}
    stored[f"{name}_mean"] = rows.float().mean(1).half()
    axes = Axes.of(name, stored)
    weight = axes.basis.square().sum(1)
    if metric is not None:
        weight = (axes.basis * torch.bmm(metric.float(), axes.basis)).sum(1)
    variance = axes.coefficients(rows[:, :: max(1, rows.shape[1] // 4096)]).square().mean(1)
    variance, order = (variance * weight).sort(dim=-1, descending=True, stable=True)
    stored = _ordered(name, {**stored, f"{name}_order": order.to(torch.int16)})
    place = order[:, None].expand_as(axes.basis)
    axes = Axes(axes.mean, axes.basis.gather(-1, place), axes.inverse.gather(-1, place))
    return FittedAxes(axes, variance, stored)


def stores_basis(name: str, side: Side) -> bool:
    """Whether a basis of keys ("k") or values ("v") is among a layer's tensors."""
    return f"{name}_mean" in side


def borrow(side: Side, model: Side) -> Side:
    """Side information of a document that uses the model's own bases, with these in their place.

    Args:
        side: as stored; left as it is where it has bases.  model: of this layer, from the router.
    Raises:
        StoreError: what is stored is no order of the columns.
    """
    if not lacks_bases(side):
        return side
    for name in "kv":
        keys = (f"{OWN}{name}_basis", f"{OWN}{name}_scale")
        side = _ordered(name, {**side, **{key: model[key] for key in keys}})
    return side


def lacks_bases(side: Side) -> bool:
    """Whether the model's own bases have to be found elsewhere."""
    return "k_order" in side and f"{OWN}k_basis" not in side


def _ordered(name: str, side: Side) -> Side:
    """The model's columns in a document's order, the first the one that its rows vary most in."""
    basis, scale = side[f"{OWN}{name}_basis"], side[f"{OWN}{name}_scale"]
    order = side.get(f"{name}_order", torch.empty(0)).long()
    columns = torch.arange(scale.shape[-1]).expand_as(scale)
    if not torch.equal(order.sort(-1).values, columns):
        raise StoreError(f"tensor '{name}_order' is no order of a basis' columns: ingest again")
    return {
        **side,
        f"{OWN}{name}_basis": basis.gather(-1, order[:, None].expand_as(basis)),
        f"{OWN}{name}_scale": scale.gather(-1, order),
    }


def of_document(side: Side) -> Side:
    """The same without what is the model's: what a document itself takes on a device."""
    return {name: tensor for name, tensor in side.items() if not name.startswith(OWN)}


def document_bytes(side: Side) -> int:
    return sum(tensor.nbytes for tensor in of_document(side).values())


def sample(rows: Tensor) -> Tensor:
    """About SAMPLE of the rows [Hkv, n, D], evenly spread."""
    return rows[:, :: max(1, rows.shape[1] // SAMPLE)]


def pack_basis(name: str, mean: Tensor, basis: Tensor) -> Side:
    """A basis [Hkv, D, D] as side information: 8-bit columns with one scale each.

    Rounding costs nothing but orthogonality: `Axes` inverts the rounded columns.
    """
    scale = (basis.abs().amax(1) / 127).half()
    columns = (basis / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
    return {f"{name}_mean": mean.half(), f"{name}_basis": columns, f"{name}_scale": scale}


def basis_of(name: str, side: Side, head: int | slice = slice(None)) -> tuple[Tensor, Tensor]:
    """Mean [..., D] and columns [..., D, D] in float32, of one head or of all."""
    place = _place(name, side)
    basis = side[f"{place}_basis"][head].float()
    if f"{place}_scale" in side:
        basis = basis * side[f"{place}_scale"][head].float()[..., None, :]
    return side[f"{name}_mean"][head].float(), basis


def _place(name: str, side: Side) -> str:
    """What a basis' tensors are called: the document's own, else the model's."""
    return name if f"{name}_basis" in side else f"{OWN}{name}"


def used_columns(side: Side) -> Side:
    """The same without the columns of bases that no code, sketch or span value spends a bit on.

    Of rows coded with what is trimmed, such as a conversation's, those directions are not kept.
    """
    out = dict(side)
    for name, others in (("k", ["sketch"]), ("v", ["value"])):
        if f"{name}_bits" not in side:
            continue
        users = [part for part in (name, *others) if f"{part}_bits" in side]
        used = max(int((side[f"{part}_bits"] > 0).sum(-1).max()) for part in users)
        rows = [f"{part}_{what}" for part in users for what in ("bits", "step", "lost")]
        rows += [f"{_place(name, side)}_{what}" for what in ("basis", "scale")]
        out.pop(f"{name}_order", None)  # followed when the columns were put in place
        for key in rows:
            if key in side:
                out[key] = side[key][..., :used].contiguous()
    return out


def to_basis(rows: Tensor, name: str, side: Side) -> Tensor:
    """Coefficients [Hkv, n, D] such that mean + coefficients @ basis.T gives the rows back, as
    nearly as a basis with fewer columns can."""
    return Axes.of(name, side).coefficients(rows)
