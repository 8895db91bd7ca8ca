"""Fetches the span records of one layer from the store, and counts what was moved.

It decides nothing and keeps nothing on a device: see `layer` and `resident`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from engine.compression.codecs.base import Records
from engine.compression.ranges import gather_ranges
from engine.errors import StoreError


class Section(Protocol):
    """Where the records of some spans lie; `store.host.HostSection` is one on disk."""

    def offsets(self, layer: int) -> Tensor:
        """[S * Hkv + 1] places of the records; see `codecs.base.Records`."""
        ...

    def read(self, layer: int, spans: Tensor, *, out: Tensor) -> Tensor:
        """Records of spans [M] into uint8 `out`, all heads of each; the part that was filled."""
        ...


@dataclass(frozen=True)
class _Held:
    """Records of one layer that no file has."""

    records: Records
    heads: int

    def offsets(self, layer: int) -> Tensor:
        return self.records.offsets

    def read(self, layer: int, spans: Tensor, *, out: Tensor) -> Tensor:
        bounds = self.records.offsets[:: self.heads]
        places = gather_ranges(bounds[spans], bounds[spans + 1] - bounds[spans])
        out[: len(places)] = self.records.payload[places]
        return out[: len(places)]


class Host:
    """Span records of one layer: of all windows of the document, then of what follows it."""

    def __init__(
        self,
        layer: int,
        windows: Sequence[Section],
        spans: list[int],
        heads: int,
        *,
        pinned: bool = False,
        fits: Callable[[Tensor], bool] = lambda sizes: True,
    ):
        """spans: of each window. pinned: stage records in page-locked memory, for a GPU.
        fits: whether the codec can have made records of these bytes [Hkv, S]."""
        self.layer = layer
        self._fits = fits
        self._counts = spans
        self._pinned = pinned
        self.heads = heads
        self._windows = list(windows)
        self._first = torch.tensor([0, *spans]).cumsum(0)
        self._sizes: Tensor | None = None

    @property
    def sizes(self) -> Tensor:
        """Bytes of every record, int32 [Hkv, S]; the offset tables are read on first use.

        Raises:
            StoreError: a table is damaged, or of records that this method never makes.
        """
        if self._sizes is None:
            tables = [w.offsets(self.layer).diff() for w in self._windows[: len(self._counts)]]
            counts = [spans * self.heads for spans in self._counts]
            fits = [len(table) for table in tables] == counts
            sizes = torch.cat(tables).reshape(-1, self.heads).T if fits else torch.empty(0)
            if not fits or not self._fits(sizes):
                raise StoreError(
                    f"the records of layer {self.layer} are not of the spans the store names: "
                    "ingest again"
                )
            self._sizes = sizes.to(torch.int32).contiguous()
        return self._sizes

    def follow(self, behind: Sequence[Records]) -> None:
        """Have these records behind the document's, in place of any there before."""
        windows, spans = len(self._counts), sum(self._counts)
        sizes = [r.offsets.diff().reshape(-1, self.heads).T for r in behind]
        self._sizes = torch.cat([self.sizes[:, :spans], *(s.to(torch.int32) for s in sizes)], 1)
        self._windows[windows:] = [_Held(records, self.heads) for records in behind]
        counts = [*self._counts, *(s.shape[1] for s in sizes)]
        self._first = torch.tensor([0, *counts]).cumsum(0)

    def fetch(self, spans: Tensor) -> tuple[Tensor, Tensor]:
        """Records of the given spans (ascending, int64 [M]), all heads.

        Returns:
            payload uint8, and where record (m, h) starts in it, int64 [M, Hkv].
        Raises:
            StoreError: a record does not match its checksum.
        """
        sizes = self.sizes[:, spans].T.long()
        window = torch.searchsorted(self._first, spans, right=True) - 1
        # One buffer for all windows: joining them later would leave page-locked memory.
        payload = torch.empty(int(sizes.sum()), dtype=torch.uint8, pin_memory=self._pinned)
        done = 0
        for w in torch.unique(window).tolist():
            part = self._windows[w].read(
                self.layer, spans[window == w] - self._first[w], out=payload[done:]
            )
            done += len(part)
        flat = sizes.reshape(-1)
        return payload, (flat.cumsum(0) - flat).reshape(-1, self.heads)


@dataclass
class Traffic:
    """What moved for one layer since it was opened."""

    fetched_bytes: int = 0
    fetched_spans: int = 0
    reused_spans: int = 0
