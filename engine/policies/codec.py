"""How the tokens of a span are kept on the host so that they can come back.

A codec turns the keys and values of a window into *records*, one per span and KV head, and
records back into rows. It knows nothing of files, devices or which spans are wanted.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from engine import ops
from engine.errors import StoreError
from engine.policies.gates import kept_rank, rank_gates


@dataclass(frozen=True)
class Records:
    """Encoded spans of one window and layer.

    payload: uint8 [bytes]. offsets: int64 [S * Hkv + 1]; record (s, h) is
    payload[offsets[s * Hkv + h] : offsets[s * Hkv + h + 1]], so a span's heads are adjacent.
    errors: [Hkv, S] of each record over the spread of its head; empty where the codec is exact or
    does not say.
    """

    payload: Tensor
    offsets: Tensor
    errors: Tensor = field(default_factory=lambda: torch.empty(0))


Side = dict[str, Tensor]


NOTHING: Side = {}

OWN = "own_"
"""Begins the names of tensors that are the model's and not a document's: bases out of a router's
file. They serve every document alike and are no bytes of any."""


class Codec(Protocol):
    def fit(self, k: Tensor, v: Tensor, given: Side = NOTHING) -> Side:
        """Side information of a layer, shared by all windows, from the first one's rows.

        given: what is known beside the rows; see `fold.prepare`.
        """
        ...

    def spectrum(self, k: Tensor, v: Tensor, given: Side) -> Tensor:
        """The variances [R, D] among which the codec spends its bits, comparable between layers;
        [0, D] where it spends none."""
        ...

    def price(self, spread: Tensor) -> float:
        """What a bit must save, given the spectra [R, D] of all layers; see `ops.bit_price`."""
        ...

    def encode(self, k: Tensor, v: Tensor, bounds: Tensor, side: Side) -> Records:
        """k, v [Hkv, n, D] and bounds [S + 1] -> records."""
        ...

    def decode(
        self, head: int, payload: Tensor, offsets: Tensor, lengths: Tensor, side: Side
    ) -> tuple[Tensor, Tensor]:
        """Rows of some spans of one head.

        Args:
            payload: uint8, records one after another.  offsets: [M + 1] their places.
            lengths: [M] tokens of each span.
        Returns:
            k, v float32 [sum(lengths), D].
        """
        ...

    def fits(self, sizes: Tensor, lengths: Tensor, side: Side) -> bool:
        """Whether records of these sizes in bytes [Hkv, S] can hold spans of lengths [S]."""
        ...

    def host_share(self, size: int, span: float) -> float:
        """Expected bytes over those of 16-bit rows, for spans of about `span` tokens."""
        ...


class Unallocated:
    """A codec that has no bits to share out among components, heads or layers."""

    def spectrum(self, k: Tensor, v: Tensor, given: Side) -> Tensor:
        return k.new_zeros(0, k.shape[-1])

    def price(self, spread: Tensor) -> float:
        return math.inf


@dataclass(frozen=True)
class Raw(Unallocated):
    """Rows as they are, in the model's own dtype. The reference every codec is held against."""

    def fit(self, k: Tensor, v: Tensor, given: Side = NOTHING) -> Side:
        return {"rows": torch.empty(0, k.shape[-1], dtype=k.dtype)}

    def encode(self, k: Tensor, v: Tensor, bounds: Tensor, side: Side) -> Records:
        rows = torch.cat([k, v], -1).contiguous().view(torch.uint8)
        return interleave(list(rows), bounds)

    def decode(
        self, head: int, payload: Tensor, offsets: Tensor, lengths: Tensor, side: Side
    ) -> tuple[Tensor, Tensor]:
        size, dtype = side["rows"].shape[-1], side["rows"].dtype
        rows = payload.view(dtype).reshape(-1, 2, size)
        return rows[:, 0].float(), rows[:, 1].float()

    def fits(self, sizes: Tensor, lengths: Tensor, side: Side) -> bool:
        row = 2 * side["rows"].shape[-1] * side["rows"].element_size()
        return bool((sizes == row * lengths).all())

    def host_share(self, size: int, span: float) -> float:
        return 1.0


@dataclass(frozen=True)
class SharedBasis:
    """Our default: every token keeps quantised coefficients in a basis shared by the document.

    One basis per layer and KV head, for K and for V, fitted on the first window and kept for all.
    That of the keys is weighted by the queries they will meet, where those are known: the error
    that counts is the score's. Bits go to components by variance (reverse water-filling), over
    keys and values, heads and layers alike. `bits` is their mean per component; 32 keeps every
    coefficient in float32 (full rank, exact). Decoding is one gather, one unpack and one product.

    A span whose error is more than `outlier` times the usual one of its head keeps plain 8-bit
    rows; 0 lets every error pass. Errors are of coefficients: of keys in the metric of queries.

    model: fingerprint of the router file whose bases may stand in place of the document's, see
    `fold.prepare`; "" where there is none. A document that uses them stores the order of their
    columns in place of its own bases.
    """

    bits: float = 4.0
    outlier: float = 0.0
    model: str = ""

    def fit(self, k: Tensor, v: Tensor, given: Side = NOTHING) -> Side:
        if self.bits >= 32:
            side: Side = {}
            for name, rows in (("k", k), ("v", v)):
                mean, basis, _ = ops.covariance_basis(rows)
                side |= {f"{name}_mean": mean, f"{name}_basis": basis}
            return side
        bases, spread = _bases(k, v, given), self.spectrum(k, v, given)
        price = given["code_price"].item() if "code_price" in given else self.price(spread)
        side = {}
        for name, rows, found, part in zip("kv", (k, v), bases, spread.chunk(2), strict=True):
            side |= found[0]
            side[f"{name}_bits"] = bits = ops.bits_at(part, price)
            coefs = to_basis(sample(rows), name, side)
            side[f"{name}_step"] = step = ops.fit_steps(coefs, bits)
            bits, step = bits[:, None], step[:, None]
            kept = ops.dequantise(ops.quantise(coefs, bits, step), bits, step)
            usual = torch.stack([x.square().sum(-1).mean(-1) for x in (coefs, kept - coefs)])
            side[f"{name}_error"] = usual.clamp_min(1e-30)
        return side

    def spectrum(self, k: Tensor, v: Tensor, given: Side) -> Tensor:
        if self.bits >= 32:
            return k.new_zeros(0, k.shape[-1])
        (_, keys), (_, values) = _bases(k, v, given)
        return torch.cat(
            [
                _worth(score_error(keys, given), "score_worth", given),
                _worth(relative(values), "value_worth", given),
            ]
        )

    def price(self, spread: Tensor) -> float:
        return ops.bit_price(spread, self.bits) if len(spread) else math.inf

    def encode(self, k: Tensor, v: Tensor, bounds: Tensor, side: Side) -> Records:
        coefs = {"k": to_basis(k, "k", side), "v": to_basis(v, "v", side)}
        rows, errors, apart = [], [], []
        for head in range(len(k)):
            parts, lost = [], []
            for name in ("k", "v"):
                mine = coefs[name][head]
                if self.bits >= 32:
                    parts.append(mine.contiguous().view(torch.uint8))
                    continue
                bits, step = side[f"{name}_bits"][head], side[f"{name}_step"][head]
                codes = ops.quantise(mine, bits, step)
                parts.append(ops.Packing.of(bits).pack(codes))
                wrong = (ops.dequantise(codes, bits, step) - mine).square().sum(-1)
                wrong = ops.span_mean(wrong[None, :, None], torch.ones(len(wrong)), bounds)
                lost.append(wrong[0, :, 0] / side[f"{name}_error"][:, head, None])
            rows.append(torch.cat(parts, -1))
            if lost:
                relative_to = torch.stack(lost)  # [K or V, of the spread or of the usual, S]
                errors.append(relative_to[:, 0].amax(0).sqrt())
                apart.append(relative_to[:, 1].amax(0).sqrt() > self.outlier)
        if self.bits >= 32:
            return interleave(rows, bounds)
        found, out = torch.stack(errors), torch.stack(apart)
        if not self.outlier or not bool(out.any()):
            return replace(interleave(rows, bounds), errors=found)
        plain = torch.cat([_eight_bits(k.float()), _eight_bits(v.float())], -1)
        mixed = interleave(rows, bounds, list(plain), out)
        return replace(mixed, errors=found.masked_fill(out, 0.0))

    def decode(
        self, head: int, payload: Tensor, offsets: Tensor, lengths: Tensor, side: Side
    ) -> tuple[Tensor, Tensor]:
        size = side["k_mean"].shape[-1]
        widths = [
            4 * size if self.bits >= 32 else ops.Packing.of(side[f"{name}_bits"][head]).row_bytes
            for name in ("k", "v")
        ]
        sizes = offsets.diff()
        plain = sizes != lengths * sum(widths)
        if not bool(plain.any()):
            return self._restore(
                head, payload.reshape(int(lengths.sum()), sum(widths)), widths, side
            )
        k, v = (torch.empty(int(lengths.sum()), size, device=payload.device) for _ in range(2))
        places = lengths.cumsum(0) - lengths
        for some, eight in ((~plain, False), (plain, True)):
            rows = payload[ops.gather_ranges(offsets[:-1][some], sizes[some])]
            into = ops.gather_ranges(places[some], lengths[some])
            if eight:
                k[into], v[into] = _from_eight_bits(rows.reshape(len(into), 2, size + 2))
            else:
                rows = rows.reshape(len(into), sum(widths))
                k[into], v[into] = self._restore(head, rows, widths, side)
        return k, v

    def _restore(
        self, head: int, rows: Tensor, widths: list[int], side: Side
    ) -> tuple[Tensor, Tensor]:
        """Coded rows uint8 [n, bytes] -> k, v [n, D]; rows of no bytes are the mean."""
        out = []
        for name, packed in zip("kv", torch.split(rows, widths, -1), strict=True):
            mean, basis = basis_of(name, side, head)
            if self.bits >= 32:
                coefs = packed.contiguous().view(torch.float32)
            else:
                bits, step = side[f"{name}_bits"][head], side[f"{name}_step"][head]
                packing = ops.Packing.of(bits)
                used = packing.components
                coefs = ops.dequantise(packing.unpack(packed), bits[:used], step[:used])
                basis = basis[:, :used]
            out.append(torch.addmm(mean, coefs, basis.T))
        return out[0], out[1]

    def fits(self, sizes: Tensor, lengths: Tensor, side: Side) -> bool:
        if self.bits >= 32:
            row = torch.full((len(sizes),), 8 * side["k_mean"].shape[-1])
        else:
            row = torch.tensor(
                [
                    sum(ops.Packing.of(side[f"{name}_bits"][head]).row_bytes for name in ("k", "v"))
                    for head in range(len(sizes))
                ]
            )
        coded = sizes == row[:, None] * lengths
        if self.outlier:
            coded |= sizes == 2 * (side["k_mean"].shape[-1] + 2) * lengths
        return bool(coded.all())

    def host_share(self, size: int, span: float) -> float:
        return self.bits / 16

    def lent(self, heads: int, size: int) -> Side:
        """Made-up bases in the shapes of the model's own, or nothing where none may be used."""
        if not self.model:
            return {}
        basis = torch.eye(size).mul(127).to(torch.int8).expand(heads, size, size)
        scale = torch.full((heads, size), 1 / 127).half()
        parts = (("basis", basis), ("scale", scale))
        return {f"{OWN}{name}_{part}": t for name in "kv" for part, t in parts}


@dataclass(frozen=True)
class SpanSVD(Unallocated):
    """The published codec: a truncated SVD per span and KV head, made never larger than raw.

    The smallest rank, at most `rank`, whose residual is at most 1 - `energy` of the span's
    variance is kept, both factors in 8 bits with one scale per direction. Where plain 8-bit rows
    are not larger, those are kept instead. `exact` keeps every direction in float32.
    Source: SeKV (arXiv 2606.31145), section 3.2 (R_max 32); energy rule and 8-bit factors ours.

    Record: int16 marks of K and of V (the rank, or -1 for rows), then K and V: per direction
    u and w, or per row its values, each as a float16 scale and int8 values (u [n], w and rows [D]).
    Direction-major, so a lower rank is a prefix.
    """

    rank: int = 32
    energy: float = 0.9995
    exact: bool = False

    def fit(self, k: Tensor, v: Tensor, given: Side = NOTHING) -> Side:
        return {"size": torch.tensor([k.shape[-1]], dtype=torch.int32)}

    def encode(self, k: Tensor, v: Tensor, bounds: Tensor, side: Side) -> Records:
        heads, spans = len(k), len(bounds) - 1
        lengths = bounds.diff()
        groups = []
        sizes = torch.zeros(spans * heads, dtype=torch.int64)
        for length in torch.unique(lengths).tolist():
            which = torch.nonzero(lengths == length)[:, 0]
            index = bounds[which][:, None] + torch.arange(length)
            place = (which[None] * heads + torch.arange(heads)[:, None]).reshape(-1)
            parts = [self._factor(x[:, index].float().flatten(0, 1), side) for x in (k, v)]
            marks = torch.stack([mark for mark, _, _ in parts], -1).to(torch.int16)
            data = torch.cat([marks.view(torch.uint8), *(rows for _, rows, _ in parts)], -1)
            used = torch.cat(
                [torch.ones(len(place), 4, dtype=torch.bool), *(mask for _, _, mask in parts)], -1
            )
            sizes[place] = used.sum(-1)
            groups.append((place, data[used]))
        offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        payload = torch.empty(int(offsets[-1]), dtype=torch.uint8)
        for place, data in groups:
            payload[ops.gather_ranges(offsets[place], sizes[place])] = data
        return Records(payload, offsets)

    def _factor(self, x: Tensor, side: Side) -> tuple[Tensor, Tensor, Tensor]:
        """Matrices [B, n, D] of one length -> marks [B], bytes [B, m] and which of them count.

        Where `side` brings trained rank gates they weigh the directions and drop the last ones.
        """
        batch, n, size = x.shape
        u, energy, w = ops.span_svd(x)
        directions = min(n, size) if self.exact else min(self.rank, n, size)
        u, w = u[..., :directions].mT, w[:, :directions]
        if self.exact:
            rows = torch.cat([u, w], -1).contiguous().view(torch.uint8).flatten(1)
            return torch.full((batch,), directions), rows, torch.ones_like(rows, dtype=torch.bool)
        spread = (x - x.mean(1, keepdim=True)).square().sum((1, 2))
        residual = energy.sum(-1, keepdim=True) - energy.cumsum(-1)
        rank = ((residual > (1 - self.energy) * spread[:, None]).sum(-1) + 1).clamp_max(directions)
        if "gate_0_w" in side:
            gates = rank_gates(energy[:, :directions], x.mean(1), side)
            rank = rank.minimum(kept_rank(gates))
            w = w[:, : gates.shape[1]] * gates[..., None]
            w = F.pad(w, (0, 0, 0, directions - gates.shape[1]))
        root = energy[:, :directions, None].sqrt().clamp_min(1e-12).sqrt()
        factors = torch.cat([_eight_bits(u * root), _eight_bits(w / root)], -1)
        plain = _eight_bits(x).flatten(1)
        small = rank * (n + size + 4) < n * (size + 2)
        width = max(directions * (n + size + 4), plain.shape[1])
        rows = torch.zeros(batch, width, dtype=torch.uint8)
        rows[:, : directions * (n + size + 4)] = factors.flatten(1)
        rows[~small, : plain.shape[1]] = plain[~small]
        used = torch.where(small, rank * (n + size + 4), n * (size + 2))
        return torch.where(small, rank, -1), rows, torch.arange(width) < used[:, None]

    def decode(
        self, head: int, payload: Tensor, offsets: Tensor, lengths: Tensor, side: Side
    ) -> tuple[Tensor, Tensor]:
        size, device = int(side["size"][0]), payload.device
        k, v = (torch.empty(int(lengths.sum()), size, device=device) for _ in range(2))
        starts = offsets[:-1]
        marks = payload[starts[:, None] + torch.arange(4, device=device)]
        ranks = marks.contiguous().view(torch.int16).long()
        self._check(ranks, lengths, offsets.diff(), size)
        places = lengths.cumsum(0) - lengths
        for group in _alike(lengths):
            some = group.to(device)
            at, tokens = starts[some] + 4, lengths[some]
            rows = ops.gather_ranges(places[some], tokens)
            for out, rank in ((k, ranks[some, 0]), (v, ranks[some, 1])):
                out[rows], used = self._restore(payload, at, tokens, rank, size)
                at = at + used
        return k, v

    def fits(self, sizes: Tensor, lengths: Tensor, side: Side) -> bool:
        """Every record has its marks; what must follow them `decode` holds against each."""
        return bool((sizes >= 4).all())

    def _check(self, ranks: Tensor, lengths: Tensor, sizes: Tensor, size: int) -> None:
        """Refuse records whose marks [M, 2] say more or less than their sizes [M] in bytes hold."""
        longer = lengths[:, None]
        factors = 4 * (longer + size) if self.exact else longer + size + 4
        wanted = torch.where(ranks < 0, longer * (size + 2), ranks * factors).sum(-1) + 4
        least = 0 if self.exact else -1
        if bool(((ranks < least) | (ranks > longer.clamp_max(size))).any()) or bool(
            (wanted != sizes).any()
        ):
            raise StoreError("a span's record is not what its marks say: ingest again")

    def _restore(
        self, payload: Tensor, starts: Tensor, lengths: Tensor, rank: Tensor, size: int
    ) -> tuple[Tensor, Tensor]:
        """Rows [sum(lengths), D] of all records, and the bytes [M] each of them took."""
        longest, device = int(lengths.max()), payload.device
        across = torch.arange(longest, device=device)
        valid = across < lengths[:, None]
        out = torch.zeros(len(starts), longest, size, device=device)
        stride = 4 * (lengths + size) if self.exact else lengths + size + 4
        kept = int(rank.clamp_min(0).max())
        if kept:
            at = starts[:, None] + torch.arange(kept, device=device) * stride[:, None]
            live = torch.arange(kept, device=device) < rank[:, None]
            take = _floats if self.exact else _scaled
            u_bytes = 4 * lengths if self.exact else lengths + 2
            u = take(payload, at, lengths, longest, live)
            w = take(payload, at + u_bytes[:, None], torch.full_like(lengths, size), size, live)
            out = torch.bmm(u.mT, w)
        plain = rank < 0
        if bool(plain.any()):
            at = starts[plain][:, None] + across * (size + 2)
            widths = torch.full_like(lengths[plain], size)
            out[plain] = _scaled(payload, at, widths, size, valid[plain])
        used = torch.where(plain, lengths * (size + 2), rank * stride)
        return out[valid], used

    @staticmethod
    def ranks(payload: Tensor, offsets: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Directions kept of K and of V by each record, int64 [records]; D for 8-bit rows."""
        marks = payload[offsets[:-1][:, None] + torch.arange(4)].contiguous().view(torch.int16)
        rank = torch.where(marks < 0, size, marks).long()
        return rank[:, 0], rank[:, 1]

    def host_share(self, size: int, span: float) -> float:
        rank = min(self.rank, span)
        return min(rank * (span + size + 4), span * (size + 2)) / (2 * span * size)


def _alike(lengths: Tensor, most: int = 1 << 14) -> Iterator[Tensor]:
    """Indices of spans in groups of like length: padding at most doubles the rows of a group, and
    a group of several spans has at most `most` padded rows."""
    order = lengths.argsort(stable=True).cpu()
    rising = lengths.cpu()[order].tolist()
    first = 0
    while first < len(rising):
        like = bisect_right(rising, 2 * rising[first], first)
        last = min(like, first + max(1, most // rising[like - 1]))
        yield order[first:last]
        first = last


def _bases(k: Tensor, v: Tensor, given: Side) -> list[tuple[Side, Tensor]]:
    """`fit_basis` of keys and of values."""
    return [fit_basis("k", k, given), fit_basis("v", v, given)]


def fit_basis(name: str, rows: Tensor, given: Side) -> tuple[Side, Tensor]:
    """The basis of rows [Hkv, n, D] as side information, and the variance [Hkv, D] of its
    components, falling, in the metric that is given if any: of queries for keys.

    Where the model's own bases are given, it is these with the columns in this document's order.
    """
    metric = given.get({"k": "queries", "v": "outputs"}[name])
    if f"{OWN}{name}_basis" not in given:
        mean, basis, variance = ops.covariance_basis(rows, metric)
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


def _worth(error: Tensor, name: str, given: Side) -> Tensor:
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


def _eight_bits(x: Tensor) -> Tensor:
    """Rows [..., m] -> bytes [..., 2 + m]: a float16 scale and int8 values."""
    scale = (x.abs().amax(-1, keepdim=True) / 127).clamp(1e-7, 65000).half()
    values = (x / scale.float()).round().clamp(-127, 127).to(torch.int8)
    return torch.cat([scale.view(torch.uint8), values.view(torch.uint8)], -1)


def _from_eight_bits(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Bytes [n, 2, 2 + D] of k and v as `_eight_bits` gives them -> k, v [n, D]."""
    scale = rows[..., :2].contiguous().view(torch.float16).float()
    values = rows[..., 2:].contiguous().view(torch.int8).float() * scale
    return values[:, 0], values[:, 1]


def _scaled(payload: Tensor, at: Tensor, widths: Tensor, most: int, live: Tensor) -> Tensor:
    """Scaled int8 rows at bytes `at` [M, R], each widths[m] long -> float32 [M, R, most]."""
    place = torch.where(live, at, 0)
    scale = payload[place[..., None] + torch.arange(2, device=at.device)]
    scale = scale.contiguous().view(torch.float16).float()
    across = torch.arange(most, device=at.device)
    inside = live[..., None] & (across < widths[:, None, None])
    values = payload[torch.where(inside, place[..., None] + 2 + across, 0)].view(torch.int8)
    return torch.where(inside, values.float() * scale, 0.0)


def _floats(payload: Tensor, at: Tensor, widths: Tensor, most: int, live: Tensor) -> Tensor:
    """float32 rows at bytes `at` [M, R], each widths[m] values long -> [M, R, most]."""
    across = torch.arange(4 * most, device=at.device)
    inside = live[..., None] & (across < 4 * widths[:, None, None])
    values = payload[torch.where(inside, at[..., None] + across, 0)]
    return torch.where(inside, values, 0).contiguous().view(torch.float32)


def interleave(
    rows: list[Tensor],
    bounds: Tensor,
    other: list[Tensor] | None = None,
    apart: Tensor | None = None,
) -> Records:
    """Rows of bytes per head [n, b_h] -> records with the heads of a span side by side.

    other, apart: rows [n, c_h] that take the place where bool [Hkv, S] says so.
    """
    lengths = bounds.diff()
    both = [rows] if other is None or apart is None else [rows, other]
    widths = torch.tensor([[r.shape[1] for r in kind] for kind in both])
    which = torch.zeros(len(rows), len(lengths), dtype=torch.int64)
    if apart is not None:
        which = apart.long()
    sizes = (lengths * widths[which, torch.arange(len(rows))[:, None]]).T.reshape(-1)
    offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    payload = torch.empty(int(offsets[-1]), dtype=torch.uint8)
    for head in range(len(rows)):
        for index, kind in enumerate(both):
            mine = which[head] == index
            tokens = ops.gather_ranges(bounds[:-1][mine], lengths[mine])
            place = offsets[head : -1 : len(rows)][mine]
            payload[ops.gather_ranges(place, sizes[head :: len(rows)][mine])] = kind[head][
                tokens
            ].reshape(-1)
    return Records(payload, offsets)
