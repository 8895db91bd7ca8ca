"""Runs the kernel by Triton's interpreter, on the CPU, against the reference; prints how far apart.

A program of its own: the interpreter is chosen by the environment before Triton is imported.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import torch
from torch import Tensor

from engine.compression.packing import Packing
from engine.compression.scores import packed_span_masses

WIDE = [8] * 3 + [4] * 4 + [2] * 8 + [1] * 8
CASES = (
    (2, [1, 7, 12, 3, 40, 1], [WIDE, [4] * 10 + [1] * 8 + [0] * 5]),
    (20, [5] * 70, [WIDE]),
    (70, [9, 2, 33], [[1] * 8 + [0] * 15, [0] * 23, WIDE]),
    (1, [2], [[8]]),
)
"""Query rows, lengths of spans, and the bits of each head."""


def cases() -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
    """packed, bits, q, shift, bounds."""
    made = torch.Generator().manual_seed(1)
    for rows, lengths, layout in CASES:
        bits = torch.tensor(layout, dtype=torch.uint8)
        bounds = torch.tensor([0, *lengths]).cumsum(0)
        shape = (1, int(bounds[-1]), sum(Packing.of(each).row_bytes for each in bits))
        packed = torch.randint(0, 256, shape, dtype=torch.uint8, generator=made)
        q = torch.randn(len(bits), rows, bits.shape[1], generator=made) / (1 << bits.int())[:, None]
        yield packed, bits, q, torch.randn(len(bits), rows, 1, generator=made), bounds


def far(case: tuple[Tensor, Tensor, Tensor, Tensor, Tensor]) -> float:
    """The largest difference in nats where the reference says anything at all."""
    from engine.compression import gpu_sketch_kernel

    wanted, found = packed_span_masses(*case), gpu_sketch_kernel.span_masses(*case)
    assert found.shape == wanted.shape
    assert bool(torch.isfinite(found).all())
    return float((found - wanted)[torch.isfinite(wanted)].abs().max())


if __name__ == "__main__":
    print(json.dumps([far(case) for case in cases()]))
