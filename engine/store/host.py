"""Span records of one window, fetched by offset when the zoom asks for them.

`preadv` of the wanted records into one staging tensor, every record checked before anybody sees it.
Nothing is cached here: `attention.resident` keeps what is on the device. Several threads may read
at the same time.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engine.errors import StoreDamagedError
from engine.store.container import span_checksum
from engine.store.files import StoreFile
from engine.store.records import PARTS, layers_of, span_bounds, table_fault
from engine.store.tensors import to_numpy

if TYPE_CHECKING:
    from typing import Any

    import numpy.typing as npt
    import torch


@dataclass(frozen=True)
class _Layer:
    """Tables of one layer. bounds: [S+1] positions in the file; sums: [S]."""

    offsets: npt.NDArray[np.int64]
    bounds: npt.NDArray[np.int64]
    sums: npt.NDArray[np.uint64]


class HostSection:
    """The codes of one window: per layer one record per span, all KV heads of a span adjacent.

    spans: S. bytes_read: bytes read from the file. fetched_bytes: bytes of records handed out.
    """

    def __init__(self, file: StoreFile, spans: int) -> None:
        """Take an open host file.

        Raises:
            StoreError: it holds what a host section cannot hold.
        """
        self._file = file
        self.spans = spans
        try:
            layers = layers_of(file.header.tensors)
        except ValueError as error:
            raise StoreDamagedError(f"{file.name}: {error}") from None
        if any(len(parts) != len(PARTS) for parts in layers.values()):
            raise StoreDamagedError(f"{file.name}: a layer lacks one of {', '.join(PARTS)}")
        self._names = tuple(layers)
        self._layers: dict[int, _Layer] = {}
        self._lock = threading.Lock()
        self.fetched_bytes = 0

    @property
    def bytes_read(self) -> int:
        return self._file.meter.bytes

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers that have codes, in order."""
        return self._names

    @property
    def name(self) -> str:
        """Name of the file, relative to the store."""
        return self._file.name

    def offset_count(self, layer: int) -> int:
        """Offsets that a layer has."""
        return self._layer(layer).offsets.size

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
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Read the records of some spans, all KV heads of each.

        Args:
            layer: of the model.
            spans: [n] integers, any order.
            out: uint8 [at least the bytes] to read into instead of new memory.
        Returns:
            uint8 [bytes of all records], record after record in the order of `spans`.
        Raises:
            StoreError: a record is damaged or cut; names file, layer and span.
            ValueError: a span that does not exist, or `out` is too small.
        """
        import torch

        table = self._layer(layer)
        wanted = np.asarray(
            spans if isinstance(spans, np.ndarray) else spans.cpu(), dtype=np.int64
        ).reshape(-1)
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < self.spans):
            raise ValueError(f"spans must lie in [0, {self.spans})")
        starts, ends = table.bounds[wanted], table.bounds[wanted + 1]
        places = np.concatenate(([0], np.cumsum(ends - starts)))
        total = int(places[-1])
        if out is None:
            out = torch.empty(total, dtype=torch.uint8)
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
        first, last = starts[order], ends[order]
        apart = first[1:] != last[:-1]
        # Records side by side in the file but not in memory: one call, scattered.
        scattered = places[order][1:] != places[order + 1][:-1]
        cuts = np.flatnonzero(apart | scattered) + 1
        heads = np.concatenate(([0], cuts))
        tails = np.concatenate((cuts, [order.size])) - 1
        begins, stops = places[order[heads]].tolist(), places[order[tails] + 1].tolist()
        positions, reached = first[heads].tolist(), last[tails].tolist()
        runs = [([data[begins[0] : stops[0]]], positions[0])]
        for index in range(1, len(begins)):
            if positions[index] != reached[index - 1]:
                runs.append(([], positions[index]))
            runs[-1][0].append(data[begins[index] : stops[index]])
        self._file.read_into(runs)

    def _check(
        self,
        layer: int,
        table: _Layer,
        wanted: npt.NDArray[np.int64],
        data: memoryview,
        places: npt.NDArray[np.int64],
    ) -> None:
        """Every record, each time it is read: what was sound an hour ago need not be now."""
        cuts, sums = places.tolist(), table.sums[wanted].tolist()
        for index, span in enumerate(wanted.tolist()):
            if span_checksum(data[cuts[index] : cuts[index + 1]]) != sums[index]:
                self._file.forget()
                raise StoreDamagedError(
                    f"{self._file.name} is damaged in layer {layer}, span {span}"
                )

    def _layer(self, layer: int) -> _Layer:
        with self._lock:
            if layer not in self._layers:
                self._layers[layer] = self._load_layer(layer)
            return self._layers[layer]

    def tables(self, layer: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
        """The checked tables of a layer: [S+1] positions of the records in the file, [S] sums.

        Raises:
            StoreError: no such layer, or its tables are damaged.
        """
        table = self._layer(layer)
        return table.bounds, table.sums

    def _load_layer(self, layer: int) -> _Layer:
        codes = self._file.info(f"{layer}.codes")
        offsets = self._table(f"{layer}.offsets")
        sums = self._table(f"{layer}.check")
        fault = table_fault(offsets, sums, codes.bytes, self.spans)
        if fault or codes.dtype != "U8":
            raise StoreDamagedError(
                f"{self._file.name}: layer {layer} has {fault or 'codes of no bytes'}"
            )
        bounds = span_bounds(offsets, self.spans) + codes.start
        return _Layer(offsets, bounds, sums.view(np.uint64))

    def _table(self, name: str) -> npt.NDArray[np.int64]:
        info = self._file.info(name)
        if info.dtype != "I64" or len(info.shape) != 1:
            raise StoreDamagedError(f"{self._file.name}: {name!r} is no table of integers")
        return to_numpy(self._file.tensor_bytes(name), info)
