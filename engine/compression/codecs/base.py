"""The codec protocol: encodes rows of a span as records, and decodes records to rows.

A codec turns the keys and values of a window into *records*, one per span and KV head, and
records back into rows. It knows nothing of files, devices or which spans are wanted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from engine.compression.columns import CodeLayout
from engine.compression.params import LayerParams
from engine.compression.ranges import gather_ranges, span_ids

if TYPE_CHECKING:
    from engine.compression.layer_basis import LayerAxes
    from engine.compression.statistics import LayerStatistics


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
    def fit(self, k: Tensor, v: Tensor, statistics: LayerStatistics | None = None) -> LayerParams:
        """The codec's parameters of a layer from the rows of the first window.

        statistics: of these rows; computed where they are needed and not given.
        """
        ...

    def encode(
        self,
        k: Tensor,
        v: Tensor,
        bounds: Tensor,
        params: LayerParams,
        axes: LayerAxes | None = None,
    ) -> Records:
        """k, v [Hkv, n, D] and bounds [S + 1] -> records.

        axes: of `params`, for codecs that have a basis; found again where they are not given.
        """
        ...

    def decode(
        self, head: int, payload: Tensor, offsets: Tensor, lengths: Tensor, params: LayerParams
    ) -> tuple[Tensor, Tensor]:
        """Rows of some spans of one head.

        Args:
            payload: uint8, records one after another.  offsets: [M + 1] their places.
            lengths: [M] tokens of each span.
        Returns:
            k, v float32 [sum(lengths), D].
        """
        ...

    def expand(self, head: int, payload: Tensor, records: Placed, params: LayerParams) -> ExactRows:
        """The rows of some spans of one head that all hold rows.

        Args:
            payload: uint8 with these records anywhere in it.
        """
        ...

    def unpack(
        self, head: int, payload: Tensor, records: Placed, params: LayerParams, layout: CodeLayout
    ) -> CodedRows:
        """The codes of some spans of one head that all hold codes.

        Args:
            payload: uint8 with these records anywhere in it.  layout: of this codec.
        Raises:
            StoreError: a residual is of no code.
        """
        ...

    def layout(self, params: LayerParams) -> CodeLayout | None:
        """How the codes of `CodedRows` lie, keys and values as two parts; None where every record
        holds rows."""
        ...

    def contents(self, sizes: Tensor, lengths: Tensor, params: LayerParams) -> Contents:
        """What records of these sizes in bytes [Hkv, S] hold for spans of lengths [S]."""
        ...

    def fits(self, sizes: Tensor, lengths: Tensor, params: LayerParams) -> bool:
        """Whether records of these sizes in bytes [Hkv, S] can hold spans of lengths [S]."""
        ...

    def host_share(self, size: int, span: float) -> float:
        """Expected bytes over those of 16-bit rows, for spans of about `span` tokens."""
        ...


def all_exact(sizes: Tensor) -> Contents:
    """Of records that hold rows wherever they hold anything."""
    return Contents(sizes > 0, torch.zeros_like(sizes, dtype=torch.int64))


class RowCodec:
    """What codecs share whose records attention takes as rows and not as codes."""

    def expand(
        self: Codec, head: int, payload: Tensor, records: Placed, params: LayerParams
    ) -> ExactRows:
        return ExactRows(*self.decode(head, *records.joined(payload), records.lengths, params))

    def unpack(
        self, head: int, payload: Tensor, records: Placed, params: LayerParams, layout: CodeLayout
    ) -> CodedRows:
        raise TypeError(f"{type(self).__name__} keeps rows and no codes")

    def layout(self, params: LayerParams) -> CodeLayout | None:
        return None

    def contents(self, sizes: Tensor, lengths: Tensor, params: LayerParams) -> Contents:
        return all_exact(sizes)


def interleave(rows: Tensor, bounds: Tensor) -> Records:
    """Rows of bytes uint8 [Hkv, n, b] -> records with the heads of a span side by side."""
    heads, _, width = rows.shape
    lengths = bounds.diff()
    sizes = (width * lengths).repeat_interleave(heads)
    offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    return Records(_joined(rows, bounds), offsets)


def _joined(rows: Tensor, bounds: Tensor) -> Tensor:
    """The bytes of all heads' rows [Hkv, n, b], span after span and in each head after head."""
    heads, n, width = rows.shape
    owner = span_ids(bounds)
    first, lengths = bounds[owner], bounds.diff()[owner]
    place = torch.arange(n) - first
    row = heads * first + place + torch.arange(heads)[:, None] * lengths
    out = torch.empty(heads * n, width, dtype=torch.uint8)
    out[row.reshape(-1)] = rows.reshape(-1, width)
    return out.reshape(-1)
