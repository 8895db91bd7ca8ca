"""Reading one file of a store: check it, read ranges of it.

The checks of a header and of tensors against the manifest, wherever the bytes come from.
torch-free.
"""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from engine.errors import StoreDamagedError, StoreError
from engine.store import container
from engine.store.folder import Runs, StoreFolder

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from engine.store.manifest import FileEntry

BLOCK = 1 << 22
"""Bytes read at a time when a whole file is checked."""


class Meter:
    """Counts bytes read, from any number of threads."""

    def __init__(self, parent: Meter | None = None) -> None:
        self.bytes = 0
        self._parent = parent
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """Count, here and in the parent."""
        with self._lock:
            self.bytes += count
        if self._parent is not None:
            self._parent.add(count)


class StoreFile:
    """One open safetensors file of a store, its header checked against the manifest.

    header: where each tensor lies. meter: counts what is read, here and in the given one. Closed
    with `close`, or when it is garbage.
    """

    def __init__(
        self, folder: StoreFolder, name: str, entry: FileEntry, meter: Meter | None = None
    ) -> None:
        """Open and check the header.

        Raises:
            StoreError: missing, cut, no safetensors file, or not the file the manifest names.
        """
        self.name = name
        self.entry = entry
        self.meter = Meter(meter)
        self._folder = folder
        folder.hold()
        self._closer = weakref.finalize(self, folder.release)
        try:
            self.header = self._read_header()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the folder; reading is over."""
        self._closer()

    def forget(self) -> None:
        """What was read does not fit its checksums: the next reader takes nothing from a cache."""
        self._folder.forget(self.entry)

    def read_into(self, runs: Runs) -> None:
        """Fill writable byte buffers, of each run in order, from the run's position in the file on.

        Raises:
            StoreError: the file ends before.
        """
        self._folder.read(self.name, self.entry, runs, self.meter.add)

    def read(self, start: int, end: int) -> npt.NDArray[np.uint8]:
        """Bytes [start, end) of the file."""
        data = np.empty(end - start, dtype=np.uint8)
        self.read_into([([data.data], start)])
        return data

    def tensor_bytes(self, name: str) -> npt.NDArray[np.uint8]:
        """The checked bytes of one tensor.

        Raises:
            StoreError: there is none of that name, or its checksum differs.
        """
        info = self.info(name)
        data = self.read(info.start, info.end)
        self.check(name, data.data)
        return data

    def info(self, name: str) -> container.TensorInfo:
        """Where a tensor lies.

        Raises:
            StoreError: there is none of that name.
        """
        if name not in self.header.tensors:
            raise StoreDamagedError(f"{self.name} holds no tensor {name!r}")
        return self.header.tensors[name]

    def check(self, name: str, data: container.Bytes) -> None:
        """Compare the bytes of a tensor with the manifest.

        Raises:
            StoreError: they differ.
        """
        if container.checksum(data) != self.entry.tensors[name]:
            self.forget()
            raise StoreDamagedError(f"{self.name} is damaged in tensor {name!r}")

    def is_damaged(self, name: str, advance: Callable[[int], None]) -> bool:
        """Whether the bytes of a tensor differ from the manifest, holding little memory."""
        info = self.info(name)
        state = xxhash.xxh3_128()
        for start in range(info.start, info.end, BLOCK):
            part = self.read(start, min(start + BLOCK, info.end))
            state.update(part.data)
            advance(part.size)
        return bool(state.hexdigest() != self.entry.tensors[name])

    def _read_header(self) -> container.Header:
        size = self._folder.size_of(self.name, self.entry)
        if size != self.entry.bytes:
            raise StoreDamagedError(
                f"{self.name} has {size} bytes where the manifest says {self.entry.bytes}"
            )
        try:
            prefix = self.read(0, min(size, container.PREFIX)).tobytes()
            length = container.header_length(prefix, size)
            data = self.read(0, length).tobytes()
            if container.checksum(data) != self.entry.header:
                self.forget()
                raise StoreDamagedError("has a header that is not the manifest's")
            header = container.parse(data, size)
        except StoreError as error:
            raise StoreDamagedError(f"{self.name} {error}") from None
        if set(header.tensors) != set(self.entry.tensors):
            raise StoreDamagedError(f"{self.name} holds other tensors than the manifest says")
        return header
