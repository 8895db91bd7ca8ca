"""Quantized coefficients in a basis that all spans of a document share: our default codec."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.lib.stride_tricks import as_strided
from torch import Tensor

from engine.compression.basis import covariance_basis
from engine.compression.codecs.base import (
    CodedRows,
    Contents,
    ExactRows,
    Placed,
    Records,
    all_exact,
    interleave,
)
from engine.compression.codecs.eight_bits import from_eight_bits, to_eight_bits
from engine.compression.columns import CodeLayout
from engine.compression.layer_basis import LayerAxes, sample
from engine.compression.packing import Packing, pack_each, row_widths
from engine.compression.params import (
    Basis,
    CodeQuantizer,
    Codes,
    LayerParams,
    ModelBases,
    ModelBasis,
    needed,
)
from engine.compression.quantize import (
    bit_price,
    bits_at,
    dequantize,
    fit_steps,
    float_codes,
    rounding_error,
)
from engine.compression.ranges import gather_ranges, span_ids, span_mean
from engine.compression.statistics import LayerStatistics
from engine.errors import StoreError

ENTRY_BYTES, PLACES = 3, 1 << 16
"""Of a coefficient that keeps its residual: two bytes say which of its span, one how much."""


FINER = 16
"""Steps of a residual in one step of its coefficient."""


@dataclass(frozen=True)
class _Coded:
    """Keys or values of a window in codes. codes: whole float32 numbers [Hkv, n, D]. wrong,
    squares: what they leave of the coefficients, and its squares."""

    quantizer: CodeQuantizer
    codes: Tensor
    wrong: Tensor
    squares: Tensor

    @classmethod
    def of(cls, coefs: Tensor, quantizer: CodeQuantizer) -> _Coded:
        each = quantizer.bits[:, None], quantizer.step[:, None]
        codes = float_codes(coefs, *each)
        wrong = rounding_error(coefs, codes, *each)
        return cls(quantizer, codes, wrong, wrong.square())

    @property
    def widths(self) -> Tensor:
        """Bytes of a row of each head."""
        return row_widths(self.quantizer.bits)

    def large(self, times: float) -> Tensor:
        """Where an error is so many times the usual one; not of columns without a bit, of which a
        device may lack the basis."""
        bits = self.quantizer.bits
        usual = self.quantizer.error[1] / (bits > 0).sum(-1).clamp_min(1)
        limit = (times * usual)[:, None].expand_as(bits).masked_fill(bits == 0, math.inf)
        return self.squares > limit[:, None]


def _packed(keys: _Coded, values: _Coded) -> list[Tensor]:
    """The codes of a token's key and value side by side: of each head uint8 [n, width]."""
    parts = (pack_each(each.codes, each.quantizer.bits) for each in (keys, values))
    return [torch.cat(of_head, -1) for of_head in zip(*parts, strict=True)]


class _Joint:
    """Where the bytes of all heads' records lie: in a span head after head, and in a record codes
    and then entries, or plain rows.

    widths: [Hkv] bytes of a row of codes.  mended: [Hkv, S] entries of each record.  apart: which
    records are plain rows.  most: [S] the bytes of these.
    """

    def __init__(self, bounds: Tensor, widths: Tensor, mended: Tensor, apart: Tensor, most: Tensor):
        self.bounds, self.widths, self.mended, self.apart = bounds, widths, mended, apart
        self.coded = widths[:, None] * bounds.diff()
        sizes = torch.where(apart, most, self.coded + ENTRY_BYTES * mended).T.reshape(-1)
        self.offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])

    def payload(self, packed: list[Tensor], entries: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """All bytes. packed: of each head uint8 [n, width].  entries: of all records, those that
        are plain rows too.  k, v: [Hkv, n, D]."""
        heads, n, _ = k.shape
        total = int(self.offsets[-1])
        out = torch.empty(total, dtype=torch.uint8)
        owner = span_ids(self.bounds)
        inside = torch.arange(n) - self.bounds[owner]
        starts = self.offsets[:-1].reshape(-1, heads).T
        for index, rows in enumerate(packed):
            width, kept = rows.shape[1], ~self.apart[index, owner]
            begins = starts[index, owner] + inside * width
            # Rows of the output from every byte on, so that a row is copied and not scattered.
            into = as_strided(out.numpy(), (max(0, total - width + 1), width), (1, 1))
            into[begins[kept].numpy()] = rows[kept].numpy()
        counts, apart = self.mended.T.reshape(-1), self.apart.T.reshape(-1)
        first = (starts + self.coded).T.reshape(-1) - ENTRY_BYTES * (counts.cumsum(0) - counts)
        at = first.repeat_interleave(counts) + ENTRY_BYTES * torch.arange(len(entries))
        whole = ~apart.repeat_interleave(counts)
        out[at[whole, None] + torch.arange(ENTRY_BYTES)] = entries[whole]
        head, token = self.apart[:, owner].nonzero().unbind(-1)
        plain = torch.cat([to_eight_bits(x[head, token].float()) for x in (k, v)], -1)
        at = starts[head, owner[token]] + inside[token] * plain.shape[-1]
        out[at[:, None] + torch.arange(plain.shape[-1])] = plain
        return out


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
    `encode.prepare`; "" where there is none. A document that uses them stores the order of their
    columns in place of its own bases.
    """

    bits: float = 4.0
    outlier: float = 0.0
    residual: float = 0.0
    model: str = ""

    def fit(self, k: Tensor, v: Tensor, statistics: LayerStatistics | None = None) -> LayerParams:
        if self.bits >= 32:
            keys, values = (Basis(*covariance_basis(rows)[:2]) for rows in (k, v))
            return LayerParams(keys=keys, values=values)
        found = statistics or LayerStatistics.of(k, v)
        price = found.code_price
        if price is None:
            price = bit_price(found.code_cost, self.bits)
        bits = bits_at(found.code_cost, price)
        parts = zip((k, v), (found.keys, found.values), strict=True)
        coefs = torch.cat([fitted.axes.coefficients(sample(rows)) for rows, fitted in parts])
        step = fit_steps(coefs, bits)
        each = bits[:, None], step[:, None]
        wrong = rounding_error(coefs, float_codes(coefs, *each), *each)
        usual = torch.stack([x.square().sum(-1).mean(-1) for x in (coefs, wrong)]).clamp_min(1e-30)
        tables = zip(bits.chunk(2), step.chunk(2), usual.chunk(2, 1), strict=True)
        codes = Codes(*(CodeQuantizer(*each) for each in tables))
        return LayerParams(keys=found.keys.basis, values=found.values.basis, codes=codes)

    def encode(
        self,
        k: Tensor,
        v: Tensor,
        bounds: Tensor,
        params: LayerParams,
        axes: LayerAxes | None = None,
    ) -> Records:
        axes = axes or needed(LayerAxes.of(params))
        coefs = axes.keys.coefficients(k), axes.values.coefficients(v)
        if params.codes is None:
            return interleave(torch.cat(coefs, -1).view(torch.uint8), bounds)
        keys = _Coded.of(coefs[0], params.codes.keys)
        values = _Coded.of(coefs[1], params.codes.values)
        entries, mended = self._mend((keys, values), bounds, k.shape[-1])
        # Of keys and of values over their spread, and over the usual error: [2, Hkv, S].
        squares = torch.cat([keys.squares.sum(-1), values.squares.sum(-1)])[..., None]
        mean = span_mean(squares, squares.new_ones(k.shape[1]), bounds)
        mean = mean.reshape(2, len(k), -1)
        usual = torch.stack([keys.quantizer.error, values.quantizer.error], 1)[..., None]
        lost = (mean / usual).amax(1).sqrt()
        widths = keys.widths + values.widths
        coded = widths[:, None] * bounds.diff()
        most = 2 * (k.shape[-1] + 2) * bounds.diff()
        apart = (mended > 0) & (coded + ENTRY_BYTES * mended >= most)
        if self.outlier:
            apart |= lost[1] > self.outlier
        records = _Joint(bounds, widths, mended, apart, most)
        payload = records.payload(_packed(keys, values), entries, k, v)
        return Records(payload, records.offsets, lost[0].masked_fill(apart, 0.0))

    def _mend(
        self, parts: tuple[_Coded, _Coded], bounds: Tensor, size: int
    ) -> tuple[Tensor, Tensor]:
        """Take the residuals that are kept out of the squared errors of keys and of values, heads
        of `size`.

        Returns:
            entries uint8 [M, ENTRY_BYTES], record after record, and how many of each, int64
            [Hkv, S].
        """
        heads, spans = len(parts[0].codes), len(bounds) - 1
        if not self.residual:
            return torch.empty(0, ENTRY_BYTES, dtype=torch.uint8), bounds.new_zeros(heads, spans)
        owner = span_ids(bounds)
        entries, owners = [], []
        for part, coded in enumerate(parts):
            large = coded.large(self.residual)
            few = torch.from_numpy(np.flatnonzero(large.numpy()))  # a fifth of torch's time
            head, token, component = torch.unravel_index(few, large.shape)
            inside = token - bounds[owner[token]]
            near = (inside + 1) * 2 * size <= PLACES
            head, token, component, inside = (x[near] for x in (head, token, component, inside))
            fine = coded.quantizer.step[head, component] / FINER
            wrong = coded.wrong[head, token, component]
            value = (wrong / fine).round().clamp(-127, 127)
            coded.squares[head, token, component] = (wrong - value * fine).square()
            place = (inside * 2 + part) * size + component
            entries.append(torch.stack([place & 255, place >> 8, value.long() & 255], -1))
            owners.append(owner[token] * heads + head)
        of = torch.cat(owners)
        found = torch.cat(entries).to(torch.uint8)[of.argsort(stable=True)]
        return found, torch.bincount(of, minlength=spans * heads).reshape(spans, heads).T

    def decode(
        self, head: int, payload: Tensor, offsets: Tensor, lengths: Tensor, params: LayerParams
    ) -> tuple[Tensor, Tensor]:
        size = _size(params)
        k, v = (torch.empty(int(lengths.sum()), size, device=payload.device) for _ in range(2))
        records = Placed.after_another(offsets, lengths)
        layout = self.layout(params)
        sizes = offsets.diff()[None].expand(len(needed(params.keys).mean), -1)
        exact = self.contents(sizes, lengths, params).exact[head]
        into = lengths.cumsum(0) - lengths
        for kind in (exact, ~exact):
            if not bool(kind.any()):
                continue
            some = records.where(kind)
            if layout is None or kind is exact:
                rows = self.expand(head, payload, some, params)
            else:
                rows = self._restore(head, self.unpack(head, payload, some, params, layout), params)
            places = gather_ranges(into[kind], some.lengths)
            k[places], v[places] = rows.k, rows.v
        return k, v

    def expand(self, head: int, payload: Tensor, records: Placed, params: LayerParams) -> ExactRows:
        size = _size(params)
        joined, _ = records.joined(payload)
        if params.codes is not None:
            return ExactRows(*from_eight_bits(joined.reshape(-1, 2, size + 2)))
        coefs = joined.view(torch.float32).reshape(-1, 2, size)
        out = []
        for part, basis in enumerate((params.keys, params.values)):
            mean, columns = needed(basis).unpacked(head)
            out.append(torch.addmm(mean, coefs[:, part], columns.T))
        return ExactRows(*out)

    def unpack(
        self, head: int, payload: Tensor, records: Placed, params: LayerParams, layout: CodeLayout
    ) -> CodedRows:
        starts, lengths = records.starts, records.lengths
        width = layout.first[head + 1] - layout.first[head]
        codes = lengths * width
        first = torch.repeat_interleave(starts - (codes.cumsum(0) - codes), lengths)
        first += torch.arange(len(first), device=payload.device) * width
        # Rows of the payload from every byte on, so that a row is copied and not gathered.
        begins = max(0, len(payload) - width + 1)
        packed = payload.as_strided((begins, width), (1, 1)).index_select(0, first)
        places = gather_ranges(starts + codes, records.sizes - codes)
        if not len(places):
            return CodedRows(packed, starts.new_empty(4, 0))
        counts = (records.sizes - codes) // ENTRY_BYTES
        residuals = self._mended(payload[places], counts, lengths, _size(params))
        _, part, component, _ = residuals
        known = component < layout.components
        if not bool(known.all()) or not bool(layout.lower[part, head, component].all()):
            raise StoreError(
                "a span's record corrects a coefficient that has no code: ingest again"
            )
        return CodedRows(packed, residuals)

    def layout(self, params: LayerParams) -> CodeLayout | None:
        if params.codes is None:
            return None
        bits = [params.codes.keys.bits, params.codes.values.bits]
        most = max(each.shape[-1] for each in bits)
        padded = [torch.nn.functional.pad(each, (0, most - each.shape[-1])) for each in bits]
        return CodeLayout.of(torch.stack(padded))

    def contents(self, sizes: Tensor, lengths: Tensor, params: LayerParams) -> Contents:
        if params.codes is None:
            return all_exact(sizes)
        codes = sizes.new_tensor(_row_bytes(params.codes))[:, None] * lengths
        exact = (sizes != codes) & (sizes == 2 * (_size(params) + 2) * lengths)
        entries = torch.where(exact, 0, (sizes - codes) // ENTRY_BYTES)
        return Contents(exact, entries.long())

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
    def _restore(head: int, coded: CodedRows, params: LayerParams) -> ExactRows:
        """The rows that codes stand for; rows of no bytes are the mean."""
        codes = needed(params.codes)
        quantizers, bases = (codes.keys, codes.values), (params.keys, params.values)
        packings = [Packing.of(quantizer.bits[head]) for quantizer in quantizers]
        parts = torch.split(coded.packed, [packing.row_bytes for packing in packings], -1)
        out = []
        for part, (quantizer, basis) in enumerate(zip(quantizers, bases, strict=True)):
            mean, columns = needed(basis).unpacked(head)
            bits, step = quantizer.bits[head], quantizer.step[head]
            used = packings[part].components
            coefs = dequantize(packings[part].unpack(parts[part]), bits[:used], step[:used])
            row, _, component, value = coded.residuals[:, coded.residuals[1] == part]
            coefs[row, component] += value * step[component] / FINER
            out.append(torch.addmm(mean, coefs, columns[:, :used].T))
        return ExactRows(*out)

    def fits(self, sizes: Tensor, lengths: Tensor, params: LayerParams) -> bool:
        plain = 2 * (_size(params) + 2) * lengths
        if params.codes is None:
            return bool((sizes == 8 * _size(params) * lengths).all())
        beside = sizes - torch.tensor(_row_bytes(params.codes))[:, None] * lengths
        known = beside == 0
        if self.outlier or self.residual:
            known |= sizes == plain
        if self.residual:
            known |= (beside > 0) & (beside % ENTRY_BYTES == 0) & (sizes < plain)
        return bool(known.all())

    def host_share(self, size: int, span: float) -> float:
        # Residuals of outliers and spans kept as rows add a fifteenth (measured on prose).
        return self.bits / 15

    def made_up_bases(self, heads: int, size: int) -> ModelBases | None:
        """In the shapes of the model's own; None where none may be used."""
        if not self.model:
            return None
        columns = torch.eye(size).mul(127).to(torch.int8).expand(heads, size, size)
        basis = ModelBasis(columns, torch.full((heads, size), 1 / 127).half())
        return ModelBases(basis, basis)


def _size(params: LayerParams) -> int:
    """D."""
    return int(needed(params.keys).mean.shape[-1])


def _row_bytes(codes: Codes) -> list[int]:
    """Bytes of the codes of a token in each head."""
    return [
        sum(Packing.of(bits).row_bytes for bits in of_head)
        for of_head in zip(codes.keys.bits, codes.values.bits, strict=True)
    ]
