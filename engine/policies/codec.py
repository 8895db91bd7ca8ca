"""How the tokens of a span are kept on the host so that they can come back.

A codec turns the keys and values of a window into *records*, one per span and KV head, and
records back into rows. It knows nothing of files, devices or which spans are wanted.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
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

ENTRY_BYTES, PLACES = 3, 1 << 16
"""Of a coefficient that keeps its residual: two bytes say which of its span, one how much."""

FINER = 16
"""Steps of a residual in one step of its coefficient."""


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

    A coefficient whose squared error is more than `residual` times the usual one of its head, as
    those of the few tokens are that its steps do not reach, keeps its residual beside the codes; 0
    keeps none. A span whose error is then still more than `outlier` times the usual one, or whose
    record would not be smaller so, keeps plain 8-bit rows; 0 lets every error pass. Errors are of
    coefficients: of keys in the metric of queries.

    model: fingerprint of the router file whose bases may stand in place of the document's, see
    `fold.prepare`; "" where there is none. A document that uses them stores the order of their
    columns in place of its own bases.
    """

    bits: float = 4.0
    outlier: float = 0.0
    residual: float = 0.0
    model: str = ""

    def fit(self, k: Tensor, v: Tensor, given: Side = NOTHING) -> Side:
        if self.bits >= 32:
            side: Side = {}
            for name, rows in (("k", k), ("v", v)):
                mean, basis, _ = ops.covariance_basis(rows)
                side |= {f"{name}_mean": mean, f"{name}_basis": basis}
            return side
        bases = _bases(k, v, given)
        spread = _spread(bases, given)
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
        return _spread(_bases(k, v, given), given)

    def price(self, spread: Tensor) -> float:
        return ops.bit_price(spread, self.bits) if len(spread) else math.inf

    def encode(self, k: Tensor, v: Tensor, bounds: Tensor, side: Side) -> Records:
        coefs = {"k": to_basis(k, "k", side), "v": to_basis(v, "v", side)}
        if self.bits >= 32:
            both = torch.cat([coefs["k"], coefs["v"]], -1).contiguous()
            return interleave(list(both.view(torch.uint8)), bounds)
        lengths, most = bounds.diff(), 2 * (k.shape[-1] + 2) * bounds.diff()
        heads, errors = [], []
        for head in range(len(k)):
            parts, wrong, usual = [], [], []
            for name in ("k", "v"):
                mine = coefs[name][head]
                bits, step = side[f"{name}_bits"][head], side[f"{name}_step"][head]
                codes = ops.quantise(mine, bits, step)
                parts.append(ops.Packing.of(bits).pack(codes))
                wrong.append(mine - ops.dequantise(codes, bits, step))
                usual.append(side[f"{name}_error"][:, head, None])
            rows = torch.cat(parts, -1)
            entries, mended = self._mend(head, wrong, bounds, side)
            squares = torch.stack([x.square().sum(-1) for x in wrong])[..., None]
            mean = ops.span_mean(squares, torch.ones(len(rows)), bounds)[..., 0]  # [K or V, S]
            lost = (mean[:, None] / torch.stack(usual)).amax(0).sqrt()  # over spread, over usual
            coded = rows.shape[-1] * lengths
            apart = (mended > 0) & (coded + ENTRY_BYTES * mended >= most)
            if self.outlier:
                apart |= lost[1] > self.outlier
            eight = torch.repeat_interleave(apart, lengths)
            plain = torch.cat([_eight_bits(x[head, eight].float()) for x in (k, v)], -1)
            entries = entries[~torch.repeat_interleave(apart, mended)]
            heads.append(
                [
                    (rows[~eight].reshape(-1), coded * ~apart),
                    (entries.reshape(-1), ENTRY_BYTES * mended * ~apart),
                    (plain.reshape(-1), most * apart),
                ]
            )
            errors.append(lost[0].masked_fill(apart, 0.0))
        return replace(join(heads), errors=torch.stack(errors))

    def _mend(
        self, head: int, wrong: list[Tensor], bounds: Tensor, side: Side
    ) -> tuple[Tensor, Tensor]:
        """Take the residuals that are kept out of the errors [n, D] of keys and of values.

        Returns:
            entries uint8 [M, ENTRY_BYTES], span after span, and how many of each, int64 [S].
        """
        if not self.residual:
            return torch.empty(0, ENTRY_BYTES, dtype=torch.uint8), torch.zeros_like(bounds[1:])
        size, owner = side["k_mean"].shape[-1], ops.span_ids(bounds)
        inside = torch.arange(len(owner)) - bounds[owner]
        entries, owners = [], []
        for part, (name, error) in enumerate(zip("kv", wrong, strict=True)):
            bits, step = side[f"{name}_bits"][head], side[f"{name}_step"][head]
            usual = side[f"{name}_error"][1, head] / (bits > 0).sum().clamp_min(1)
            # Of columns without a bit the device may lack the basis.
            large = (error.square() > self.residual * usual) & (bits > 0)
            large &= ((inside + 1) * 2 * size <= PLACES)[:, None]
            token, component = large.nonzero().T
            fine = step[component] / FINER
            value = (error[token, component] / fine).round().clamp(-127, 127)
            error[token, component] -= value * fine
            place = (inside[token] * 2 + part) * size + component
            entries.append(torch.stack([place & 255, place >> 8, value.long() & 255], -1))
            owners.append(owner[token])
        of = torch.cat(owners)
        found = torch.cat(entries).to(torch.uint8)[of.argsort(stable=True)]
        return found, torch.bincount(of, minlength=len(bounds) - 1)

    def decode(
        self, head: int, payload: Tensor, offsets: Tensor, lengths: Tensor, side: Side
    ) -> tuple[Tensor, Tensor]:
        size = side["k_mean"].shape[-1]
        widths = [
            4 * size if self.bits >= 32 else ops.Packing.of(side[f"{name}_bits"][head]).row_bytes
            for name in ("k", "v")
        ]
        sizes = offsets.diff()
        codes = lengths * sum(widths)
        if bool((sizes == codes).all()):
            rows = payload.reshape(int(lengths.sum()), sum(widths))
            return self._restore(head, rows, widths, side)
        plain = (sizes != codes) & (sizes == 2 * (size + 2) * lengths)
        k, v = (torch.empty(int(lengths.sum()), size, device=payload.device) for _ in range(2))
        places = lengths.cumsum(0) - lengths
        starts = offsets[:-1]
        rows = payload[ops.gather_ranges(starts[plain], sizes[plain])]
        into = ops.gather_ranges(places[plain], lengths[plain])
        k[into], v[into] = _from_eight_bits(rows.reshape(len(into), 2, size + 2))
        starts, sizes, lengths, codes = (x[~plain] for x in (starts, sizes, lengths, codes))
        into = ops.gather_ranges(places[~plain], lengths)
        rows = payload[ops.gather_ranges(starts, codes)].reshape(len(into), sum(widths))
        entries = payload[ops.gather_ranges(starts + codes, sizes - codes)]
        mended = self._mended(entries, (sizes - codes) // ENTRY_BYTES, lengths, size)
        k[into], v[into] = self._restore(head, rows, widths, side, mended)
        return k, v

    @staticmethod
    def _mended(entries: Tensor, counts: Tensor, lengths: Tensor, size: int) -> Tensor:
        """Entries of spans of so many tokens -> of each the row, 0 for its key or 1 for its value,
        the component and the steps to add, int64 [4, M].

        Raises:
            StoreError: an entry lies outside of its span.
        """
        low, high, value = entries.reshape(-1, ENTRY_BYTES).long().T
        place = low + 256 * high
        token = place // (2 * size)
        if bool((token >= torch.repeat_interleave(lengths, counts)).any()):
            raise StoreError("a span's record corrects a token that it has not: ingest again")
        row = torch.repeat_interleave(lengths.cumsum(0) - lengths, counts) + token
        steps = value - 256 * (value > 127)
        return torch.stack([row, place // size % 2, place % size, steps])

    def _restore(
        self,
        head: int,
        rows: Tensor,
        widths: list[int],
        side: Side,
        mended: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Coded rows uint8 [n, bytes] -> k, v [n, D]; rows of no bytes are the mean. mended: see
        `_mended`."""
        out = []
        for part, name in enumerate("kv"):
            packed = torch.split(rows, widths, -1)[part]
            mean, basis = basis_of(name, side, head)
            if self.bits >= 32:
                coefs = packed.contiguous().view(torch.float32)
            else:
                bits, step = side[f"{name}_bits"][head], side[f"{name}_step"][head]
                packing = ops.Packing.of(bits)
                used = packing.components
                coefs = ops.dequantise(packing.unpack(packed), bits[:used], step[:used])
                if mended is not None:
                    row, _, component, value = mended[:, mended[1] == part]
                    if bool((component >= used).any()):
                        raise StoreError(
                            "a span's record corrects a coefficient that has no code: ingest again"
                        )
                    coefs[row, component] += value * step[component] / FINER
                basis = basis[:, :used]
            out.append(torch.addmm(mean, coefs, basis.T))
        return out[0], out[1]

    def fits(self, sizes: Tensor, lengths: Tensor, side: Side) -> bool:
        plain = 2 * (side["k_mean"].shape[-1] + 2) * lengths
        if self.bits >= 32:
            row = torch.full((len(sizes),), 8 * side["k_mean"].shape[-1])
        else:
            row = torch.tensor(
                [
                    sum(ops.Packing.of(side[f"{name}_bits"][head]).row_bytes for name in ("k", "v"))
                    for head in range(len(sizes))
                ]
            )
        beside = sizes - row[:, None] * lengths
        known = beside == 0
        if self.outlier or self.residual:
            known |= sizes == plain
        if self.residual:
            known |= (beside > 0) & (beside % ENTRY_BYTES == 0) & (sizes < plain)
        return bool(known.all())

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


def _spread(bases: list[tuple[Side, Tensor]], given: Side) -> Tensor:
    """What leaving out a component costs, [2 Hkv, D] of keys and then values; see
    `Codec.spectrum`."""
    (_, keys), (_, values) = bases
    return torch.cat(
        [
            _worth(score_error(keys, given), "score_worth", given),
            _worth(relative(values), "value_worth", given),
        ]
    )


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


def interleave(rows: list[Tensor], bounds: Tensor) -> Records:
    """Rows of bytes per head [n, b_h] -> records with the heads of a span side by side."""
    lengths = bounds.diff()
    return join([[(part.reshape(-1), part.shape[1] * lengths)] for part in rows])


def join(heads: Sequence[Sequence[tuple[Tensor, Tensor]]]) -> Records:
    """Records with the heads of a span side by side, each made of pieces.

    heads: per head its pieces, in the order in which they follow each other in a record: bytes
    uint8, span after span, and how many of each span, int64 [S].
    """
    sizes = torch.stack([torch.stack([s for _, s in pieces]).sum(0) for pieces in heads], 1)
    offsets = torch.cat([sizes.new_zeros(1), sizes.reshape(-1).cumsum(0)])
    payload = torch.empty(int(offsets[-1]), dtype=torch.uint8)
    for head, pieces in enumerate(heads):
        place = offsets[head : -1 : len(heads)]
        for piece, size in pieces:
            payload[ops.gather_ranges(place, size)] = piece
            place = place + size
    return Records(payload, offsets)
