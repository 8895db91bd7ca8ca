"""Span records of one window, fetched by offset when the zoom asks for them.

What it is: `preadv` of the wanted records into one staging tensor, every record checked before
anybody sees it. What it is not: a cache; `tiers` decides what stays. Several threads may read at
the same time.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engine.container import span_checksum
from engine.errors import StoreError
from engine.store.files import ADVICE, StoreFile
from engine.store.tensors import to_numpy

if TYPE_CHECKING:
    from typing import Any

    import numpy.typing as npt
    import torch


@dataclass(frozen=True)
class _Layer:
    """Tables of one layer. bounds: [S+1] positions in the file; sums: [S]; touched: [S]."""

    offsets: npt.NDArray[np.int64]
    bounds: npt.NDArray[np.int64]
    sums: npt.NDArray[np.uint64]
    touched: npt.NDArray[np.bool_]


class HostSection:
    """The codes of one window: per layer one record per span, all KV heads of a span adjacent.

    spans: S. bytes_read: bytes read from the file. fetched_bytes: bytes of records handed out.
    """

    def __init__(self, file: StoreFile, spans: int) -> None:
        self._file = file
        self.spans = spans
        self._layers: dict[int, _Layer] = {}
        self._lock = threading.Lock()
        self.fetched_bytes = 0

    @property
    def bytes_read(self) -> int:
        return self._file.bytes_read

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers that have codes, in order."""
        names = self._file.header.tensors
        return tuple(sorted(int(n.split(".")[0]) for n in names if n.endswith(".codes")))

    def close(self) -> None:
        """Give the descriptor back."""
        self._file.close()

    def offsets(self, layer: int) -> torch.Tensor:
        """[S*Hkv+1] int64: span s of KV head h is codes[offsets[s*Hkv+h] : offsets[s*Hkv+h+1]].

        Raises:
            StoreError: no such layer, or its tables are damaged.
        """
        import torch

        return torch.from_numpy(self._layer(layer).offsets)

    def sizes(self, layer: int) -> npt.NDArray[np.int64]:
        """[S] bytes of each span's record, all KV heads."""
        return np.diff(self._layer(layer).bounds)

    def read(
        self,
        layer: int,
        spans: torch.Tensor | npt.NDArray[Any],
        *,
        pinned: bool = False,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Read the records of some spans, all KV heads of each.

        Args:
            layer: of the model.
            spans: [n] integers, any order.
            pinned: give page-locked memory, for copies that do not block.
            out: uint8 [at least the bytes] to read into instead of new memory.
        Returns:
            uint8 [bytes of all records], record after record in the order of `spans`.
        Raises:
            StoreError: a record is damaged or cut; names file, layer and span.
            ValueError: a span that does not exist, or `out` is too small.
        """
        import torch

        table = self._layer(layer)
        wanted = np.asarray(spans, dtype=np.int64).reshape(-1)
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < self.spans):
            raise ValueError(f"spans must lie in [0, {self.spans})")
        starts, ends = table.bounds[wanted], table.bounds[wanted + 1]
        places = np.concatenate(([0], np.cumsum(ends - starts)))
        total = int(places[-1])
        if out is None:
            out = torch.empty(total, dtype=torch.uint8, pin_memory=pinned)
        elif out.numel() < total:
            raise ValueError(f"{total} bytes do not fit a buffer of {out.numel()}")
        stage = out[:total]
        data = stage.numpy().data
        self._fill(data, starts, ends, places)
        self._check(layer, table, wanted, data, places)
        with self._lock:
            self.fetched_bytes += total
        return stage

    def _fill(
        self,
        data: memoryview,
        starts: npt.NDArray[np.int64],
        ends: npt.NDArray[np.int64],
        places: npt.NDArray[np.int64],
    ) -> None:
        """Read each run of records that lie side by side in the file with one call."""
        order = np.argsort(starts, kind="stable")
        order = order[ends[order] > starts[order]]
        if not order.size:
            return
        breaks = np.flatnonzero(starts[order][1:] != ends[order][:-1]) + 1
        for run in np.split(order, breaks):
            # Side by side in memory too is one buffer; else the call scatters.
            jumps = np.flatnonzero(places[run][1:] != places[run + 1][:-1]) + 1
            buffers = [
                data[int(places[part[0]]) : int(places[part[-1] + 1])]
                for part in np.split(run, jumps)
            ]
            self._file.read_into(buffers, int(starts[run[0]]))

    def _check(
        self,
        layer: int,
        table: _Layer,
        wanted: npt.NDArray[np.int64],
        data: memoryview,
        places: npt.NDArray[np.int64],
    ) -> None:
        for index in np.flatnonzero(~table.touched[wanted]).tolist():
            span = int(wanted[index])
            record = data[int(places[index]) : int(places[index + 1])]
            if span_checksum(record) != int(table.sums[span]):
                raise StoreError(
                    f"{self._file.name} is damaged in layer {layer}, span {span}: {ADVICE}"
                )
            table.touched[span] = True

    def _layer(self, layer: int) -> _Layer:
        with self._lock:
            if layer not in self._layers:
                self._layers[layer] = self._load_layer(layer)
            return self._layers[layer]

    def _load_layer(self, layer: int) -> _Layer:
        codes = self._file.info(f"{layer}.codes")
        offsets = self._table(f"{layer}.offsets")
        sums = self._table(f"{layer}.check")
        fault = table_fault(offsets, sums, codes.bytes, self.spans)
        if fault:
            raise StoreError(f"{self._file.name} is damaged in layer {layer}: {fault}")
        heads = (offsets.size - 1) // self.spans if self.spans else 1
        bounds = offsets[::heads] + codes.start
        touched = np.zeros(self.spans, dtype=np.bool_)
        return _Layer(offsets, bounds, sums.view(np.uint64), touched)

    def _table(self, name: str) -> npt.NDArray[np.int64]:
        info = self._file.info(name)
        if info.dtype != "I64" or len(info.shape) != 1:
            raise StoreError(f"{self._file.name}: {name!r} is no table of integers")
        return to_numpy(self._file.tensor_bytes(name), info)


def table_fault(
    offsets: npt.NDArray[np.int64], sums: npt.NDArray[np.int64], code_bytes: int, spans: int
) -> str:
    """What is wrong with the tables of one layer, "" when nothing is."""
    if sums.size != spans:
        return f"{sums.size} span checksums for {spans} spans"
    if not offsets.size or (offsets.size - 1) % max(spans, 1) or bool(spans) != (offsets.size > 1):
        return f"{offsets.size} offsets for {spans} spans"
    if offsets[0] != 0 or offsets[-1] != code_bytes or bool((np.diff(offsets) < 0).any()):
        return "offsets that leave the codes"
    return ""
