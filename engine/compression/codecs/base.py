"""What a codec is: the rows of a span as records, and records as rows again.

A codec turns the keys and values of a window into *records*, one per span and KV head, and
records back into rows. It knows nothing of files, devices or which spans are wanted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from engine.compression.columns import CodeLayout
from engine.compression.ranges import gather_ranges


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


@dataclass(frozen=True)
class ExactRows:
    """Rows as attention takes them: k, v float32 [n, D]."""

    k: Tensor
    v: Tensor


@dataclass(frozen=True)
class CodedRows:
    """Rows as their codes in the bases of a layer.

    packed: uint8 [n, bytes], those of the key and then of the value. residuals: int64 [4, M], what
    single coefficients have beside their codes: the row, 0 for its key or 1 for its value, the
    component, and sixteenths of its step.
    """

    packed: Tensor
    residuals: Tensor


@dataclass(frozen=True)
class Placed:
    """Where records lie: starts, sizes in bytes and lengths in tokens, int64 [M]."""

    starts: Tensor
    sizes: Tensor
    lengths: Tensor

    @classmethod
    def after_another(cls, offsets: Tensor, lengths: Tensor) -> Placed:
        """offsets: [M + 1]."""
        return cls(offsets[:-1], offsets.diff(), lengths)

    def where(self, some: Tensor) -> Placed:
        """Those where bool [M] holds."""
        return Placed(self.starts[some], self.sizes[some], self.lengths[some])

    def joined(self, payload: Tensor) -> tuple[Tensor, Tensor]:
        """The records one after another, and their offsets [M + 1]."""
        offsets = torch.cat([self.sizes.new_zeros(1), self.sizes.cumsum(0)])
        return payload[gather_ranges(self.starts, self.sizes)], offsets


@dataclass(frozen=True)
class Contents:
    """What records hold, told by their sizes. exact: bool [Hkv, S], rows and no codes; residuals:
    int64 [Hkv, S], how many coefficients of coded rows have one. Empty records hold neither."""

    exact: Tensor
    residuals: Tensor


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

    def expand(self, head: int, payload: Tensor, records: Placed, side: Side) -> ExactRows:
        """The rows of some spans of one head that all hold rows.

        Args:
            payload: uint8 with these records anywhere in it.
        """
        ...

    def unpack(
        self, head: int, payload: Tensor, records: Placed, side: Side, layout: CodeLayout
    ) -> CodedRows:
        """The codes of some spans of one head that all hold codes.

        Args:
            payload: uint8 with these records anywhere in it.  layout: of this codec.
        Raises:
            StoreError: a residual is of no code.
        """
        ...

    def layout(self, side: Side) -> CodeLayout | None:
        """How the codes of `CodedRows` lie, keys and values as two parts; None where every record
        holds rows."""
        ...

    def contents(self, sizes: Tensor, lengths: Tensor, side: Side) -> Contents:
        """What records of these sizes in bytes [Hkv, S] hold for spans of lengths [S]."""
        ...

    def fits(self, sizes: Tensor, lengths: Tensor, side: Side) -> bool:
        """Whether records of these sizes in bytes [Hkv, S] can hold spans of lengths [S]."""
        ...

    def host_share(self, size: int, span: float) -> float:
        """Expected bytes over those of 16-bit rows, for spans of about `span` tokens."""
        ...


def all_exact(sizes: Tensor) -> Contents:
    """Of records that hold rows wherever they hold anything."""
    return Contents(sizes > 0, torch.zeros_like(sizes, dtype=torch.int64))


class Unallocated:
    """A codec that has no bits to share out among components, heads or layers, and whose rows
    attention takes as rows."""

    def decode(
        self, head: int, payload: Tensor, offsets: Tensor, lengths: Tensor, side: Side
    ) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def expand(self, head: int, payload: Tensor, records: Placed, side: Side) -> ExactRows:
        return ExactRows(*self.decode(head, *records.joined(payload), records.lengths, side))

    def unpack(
        self, head: int, payload: Tensor, records: Placed, side: Side, layout: CodeLayout
    ) -> CodedRows:
        raise NotImplementedError

    def layout(self, side: Side) -> CodeLayout | None:
        return None

    def contents(self, sizes: Tensor, lengths: Tensor, side: Side) -> Contents:
        return all_exact(sizes)

    def spectrum(self, k: Tensor, v: Tensor, given: Side) -> Tensor:
        return k.new_zeros(0, k.shape[-1])

    def price(self, spread: Tensor) -> float:
        return math.inf


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
            payload[gather_ranges(place, size)] = piece
            place = place + size
    return Records(payload, offsets)
