"""Copies of fetched records to a device, begun before the layer that uses them computes.

The layer before it begins the copy of what is known to be wanted, which is everything where all
spans fit. A GPU copies from pinned memory on a stream of its own; the stream of the model waits for
it where the records are unpacked. A CPU has nothing to copy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor


class Copies(Protocol):
    def begin(self, payload: Tensor) -> Callable[[], Tensor]:
        """Begin to copy bytes to the device. The result is called once, by who uses them: it gives
        the copy, and what is queued after that call sees it whole."""
        ...


class InPlace:
    """For a CPU."""

    def begin(self, payload: Tensor) -> Callable[[], Tensor]:
        return lambda: payload


class OnStream:
    """For a GPU. `payload` must be pinned: else the host waits for the copy."""

    def __init__(self, device: torch.device):
        self._device, self._stream = device, torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def begin(self, payload: Tensor) -> Callable[[], Tensor]:
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._stream):
            copy = payload.to(self._device, non_blocking=True)
            done.record(self._stream)

        def there() -> Tensor:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(done)
            copy.record_stream(current)  # its memory is of the other stream's pool
            return copy

        return there
