"""Quantized coefficients in a basis that all spans of a document share: our default codec."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from engine.compression.basis import covariance_basis
from engine.compression.codecs.base import (
    NOTHING,
    CodedRows,
    Contents,
    ExactRows,
    Placed,
    Records,
    Side,
    all_exact,
    interleave,
    join,
)
from engine.compression.codecs.eight_bits import from_eight_bits, to_eight_bits
from engine.compression.codecs.layer_basis import (
    OWN,
    basis_of,
    fit_bases,
    sample,
    spread_of,
    to_basis,
)
from engine.compression.columns import CodeLayout
from engine.compression.packing import Packing
from engine.compression.quantize import bit_price, bits_at, dequantize, fit_steps, quantize
from engine.compression.ranges import gather_ranges, span_ids, span_mean
from engine.errors import StoreError

ENTRY_BYTES, PLACES = 3, 1 << 16
"""Of a coefficient that keeps its residual: two bytes say which of its span, one how much."""


FINER = 16
"""Steps of a residual in one step of its coefficient."""


@dataclass(frozen=True)
class SharedBasis:
    """Our default: every token keeps quantized coefficients in a basis shared by the document.

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
                mean, basis, _ = covariance_basis(rows)
                side |= {f"{name}_mean": mean, f"{name}_basis": basis}
            return side
        bases = fit_bases(k, v, given)
        spread = spread_of(bases, given)
        price = given["code_price"].item() if "code_price" in given else self.price(spread)
        side = {}
        for name, rows, found, part in zip("kv", (k, v), bases, spread.chunk(2), strict=True):
            side |= found[0]
            side[f"{name}_bits"] = bits = bits_at(part, price)
            coefs = to_basis(sample(rows), name, side)
            side[f"{name}_step"] = step = fit_steps(coefs, bits)
            bits, step = bits[:, None], step[:, None]
            kept = dequantize(quantize(coefs, bits, step), bits, step)
            usual = torch.stack([x.square().sum(-1).mean(-1) for x in (coefs, kept - coefs)])
            side[f"{name}_error"] = usual.clamp_min(1e-30)
        return side

    def spectrum(self, k: Tensor, v: Tensor, given: Side) -> Tensor:
        if self.bits >= 32:
            return k.new_zeros(0, k.shape[-1])
        return spread_of(fit_bases(k, v, given), given)

    def price(self, spread: Tensor) -> float:
        return bit_price(spread, self.bits) if len(spread) else math.inf

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
                codes = quantize(mine, bits, step)
                parts.append(Packing.of(bits).pack(codes))
                wrong.append(mine - dequantize(codes, bits, step))
                usual.append(side[f"{name}_error"][:, head, None])
            rows = torch.cat(parts, -1)
            entries, mended = self._mend(head, wrong, bounds, side)
            squares = torch.stack([x.square().sum(-1) for x in wrong])[..., None]
            mean = span_mean(squares, torch.ones(len(rows)), bounds)[..., 0]  # [K or V, S]
            lost = (mean[:, None] / torch.stack(usual)).amax(0).sqrt()  # over spread, over usual
            coded = rows.shape[-1] * lengths
            apart = (mended > 0) & (coded + ENTRY_BYTES * mended >= most)
            if self.outlier:
                apart |= lost[1] > self.outlier
            eight = torch.repeat_interleave(apart, lengths)
            plain = torch.cat([to_eight_bits(x[head, eight].float()) for x in (k, v)], -1)
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
        size, owner = side["k_mean"].shape[-1], span_ids(bounds)
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
        k, v = (torch.empty(int(lengths.sum()), size, device=payload.device) for _ in range(2))
        records = Placed.after_another(offsets, lengths)
        layout = self.layout(side)
        exact = self.contents(offsets.diff()[None], lengths, _of_head(head, side)).exact[0]
        into = lengths.cumsum(0) - lengths
        for kind in (exact, ~exact):
            if not bool(kind.any()):
                continue
            some = records.where(kind)
            if layout is None or kind is exact:
                rows = self.expand(head, payload, some, side)
            else:
                rows = self._restore(head, self.unpack(head, payload, some, side, layout), side)
            places = gather_ranges(into[kind], some.lengths)
            k[places], v[places] = rows.k, rows.v
        return k, v

    def expand(self, head: int, payload: Tensor, records: Placed, side: Side) -> ExactRows:
        size = side["k_mean"].shape[-1]
        joined, _ = records.joined(payload)
        if self.bits < 32:
            return ExactRows(*from_eight_bits(joined.reshape(-1, 2, size + 2)))
        coefs = joined.view(torch.float32).reshape(-1, 2, size)
        out = []
        for part, name in enumerate("kv"):
            mean, basis = basis_of(name, side, head)
            out.append(torch.addmm(mean, coefs[:, part], basis.T))
        return ExactRows(*out)

    def unpack(
        self, head: int, payload: Tensor, records: Placed, side: Side, layout: CodeLayout
    ) -> CodedRows:
        starts, lengths = records.starts, records.lengths
        width = layout.first[head + 1] - layout.first[head]
        codes = lengths * width
        first = torch.repeat_interleave(starts - (codes.cumsum(0) - codes), lengths)
        first += torch.arange(len(first), device=payload.device) * width
        packed = payload[first[:, None] + torch.arange(width, device=payload.device)]
        places = gather_ranges(starts + codes, records.sizes - codes)
        if not len(places):
            return CodedRows(packed, starts.new_empty(4, 0))
        counts = (records.sizes - codes) // ENTRY_BYTES
        residuals = self._mended(payload[places], counts, lengths, side["k_mean"].shape[-1])
        _, part, component, _ = residuals
        known = component < layout.components
        if not bool(known.all()) or not bool(layout.lower[part, head, component].all()):
            raise StoreError(
                "a span's record corrects a coefficient that has no code: ingest again"
            )
        return CodedRows(packed, residuals)

    def layout(self, side: Side) -> CodeLayout | None:
        if self.bits >= 32:
            return None
        bits = [side["k_bits"], side["v_bits"]]
        most = max(each.shape[-1] for each in bits)
        padded = [torch.nn.functional.pad(each, (0, most - each.shape[-1])) for each in bits]
        return CodeLayout.of(torch.stack(padded))

    def contents(self, sizes: Tensor, lengths: Tensor, side: Side) -> Contents:
        if self.bits >= 32:
            return all_exact(sizes)
        codes = sizes.new_tensor(self._row_bytes(side))[:, None] * lengths
        exact = (sizes != codes) & (sizes == 2 * (side["k_mean"].shape[-1] + 2) * lengths)
        entries = torch.where(exact, 0, (sizes - codes) // ENTRY_BYTES)
        return Contents(exact, entries.long())

    @staticmethod
    def _row_bytes(side: Side) -> list[int]:
        """Bytes of a token's codes in each head."""
        return [
            sum(Packing.of(side[f"{name}_bits"][head]).row_bytes for name in "kv")
            for head in range(len(side["k_bits"]))
        ]

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

    @staticmethod
    def _restore(head: int, coded: CodedRows, side: Side) -> ExactRows:
        """The rows that codes stand for; rows of no bytes are the mean."""
        packings = [Packing.of(side[f"{name}_bits"][head]) for name in "kv"]
        parts = torch.split(coded.packed, [packing.row_bytes for packing in packings], -1)
        out = []
        for part, name in enumerate("kv"):
            mean, basis = basis_of(name, side, head)
            bits, step = side[f"{name}_bits"][head], side[f"{name}_step"][head]
            used = packings[part].components
            coefs = dequantize(packings[part].unpack(parts[part]), bits[:used], step[:used])
            row, _, component, value = coded.residuals[:, coded.residuals[1] == part]
            coefs[row, component] += value * step[component] / FINER
            out.append(torch.addmm(mean, coefs, basis[:, :used].T))
        return ExactRows(*out)

    def fits(self, sizes: Tensor, lengths: Tensor, side: Side) -> bool:
        plain = 2 * (side["k_mean"].shape[-1] + 2) * lengths
        if self.bits >= 32:
            return bool((sizes == 8 * side["k_mean"].shape[-1] * lengths).all())
        beside = sizes - torch.tensor(self._row_bytes(side))[:, None] * lengths
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


def _of_head(head: int, side: Side) -> Side:
    """The same for one head alone, as `contents` needs it."""
    return {
        name: tensor[head : head + 1] if name in ("k_bits", "v_bits") else tensor
        for name, tensor in side.items()
    }
