"""The bases of a layer's keys and values: fitted, packed, borrowed from the model, and applied."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.compression.basis import covariance_basis
from engine.compression.codecs.base import Side
from engine.errors import StoreError

OWN = "own_"
"""Begins the names of tensors that are the model's and not a document's: bases out of a router's
file. They serve every document alike and are no bytes of any."""


def fit_bases(k: Tensor, v: Tensor, given: Side) -> list[tuple[Side, Tensor]]:
    """`fit_basis` of keys and of values."""
    return [fit_basis("k", k, given), fit_basis("v", v, given)]


def spread_of(bases: list[tuple[Side, Tensor]], given: Side) -> Tensor:
    """What leaving out a component costs, [2 Hkv, D] of keys and then values; see
    `Codec.spectrum`."""
    (_, keys), (_, values) = bases
    return torch.cat(
        [
            weighted(score_error(keys, given), "score_worth", given),
            weighted(relative(values), "value_worth", given),
        ]
    )


def fit_basis(name: str, rows: Tensor, given: Side) -> tuple[Side, Tensor]:
    """The basis of rows [Hkv, n, D] as side information, and the variance [Hkv, D] of its
    components, falling, in the metric that is given if any: of queries for keys.

    Where the model's own bases are given, it is these with the columns in this document's order.
    """
    metric = given.get({"k": "queries", "v": "outputs"}[name])
    if f"{OWN}{name}_basis" not in given:
        mean, basis, variance = covariance_basis(rows, metric)
        return pack_basis(name, mean, basis), variance
    side = {key: given[key] for key in (f"{OWN}{name}_basis", f"{OWN}{name}_scale")}
    side[f"{name}_mean"] = rows.float().mean(1).half()
    _, basis = basis_of(name, side)
    weight = basis.square().sum(1)
    if metric is not None:
        weight = (basis * torch.bmm(metric.float(), basis)).sum(1)
    variance = to_basis(sample(rows), name, side).square().mean(1) * weight
    variance, order = variance.sort(dim=-1, descending=True, stable=True)
    side[f"{name}_order"] = order.to(torch.int16)
    return _ordered(name, side), variance


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


def weighted(error: Tensor, name: str, given: Side) -> Tensor:
    """Errors [Hkv, D] times what they are worth to the head's output, where that is known.

    Routers do without: what a head that now looks elsewhere will look for is not known.
    """
    return error * given[name][:, None] if name in given else error


def relative(variance: Tensor) -> Tensor:
    """What leaving out a component [Hkv, D] costs: its share of the head's variance."""
    return variance / variance.sum(-1, keepdim=True).clamp_min(1e-30)


def score_error(variance: Tensor, given: Side) -> Tensor:
    """What leaving out a component of the keys [Hkv, D] costs: squared nats of score where the
    basis was weighted by queries, else its share of the variance."""
    return variance / variance.shape[-1] if "queries" in given else relative(variance)


def sample(rows: Tensor) -> Tensor:
    """About 4096 of the rows [Hkv, n, D], evenly spread."""
    return rows[:, :: max(1, rows.shape[1] // 4096)]


def pack_basis(name: str, mean: Tensor, basis: Tensor) -> Side:
    """A basis [Hkv, D, D] as side information: 8-bit columns with one scale each.

    Rounding costs nothing but orthogonality: `to_basis` solves for the rounded columns.
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
    mean, basis = basis_of(name, side)
    inverse = basis
    if f"{_place(name, side)}_scale" in side:  # its columns are not orthonormal
        square = basis.shape[-2] == basis.shape[-1]
        inverse = (torch.linalg.inv(basis) if square else torch.linalg.pinv(basis)).mT
    return torch.bmm(rows.float() - mean[:, None], inverse)
