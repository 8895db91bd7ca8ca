"""Codes of 8, 4, 2 and 1 bits packed into bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.compression.quantize import WIDTHS, float_codes


@dataclass(frozen=True)
class Packing:
    """How a row of codes lies in bytes: first the 8-bit components, then 4, 2 and 1.

    Within a width, byte j holds components j, j + n, j + 2n ... of that run of n bytes, lowest
    bits first, so that unpacking is a shift and a mask of whole runs, never an interleave.
    """

    counts: tuple[int, int, int, int]

    @classmethod
    def of(cls, bits: Tensor) -> Packing:
        widths = bits.flatten().tolist()  # a device is waited for once
        c8, c4, c2, c1 = (widths.count(width) for width in WIDTHS)
        return cls((c8, c4, c2, c1))

    @property
    def components(self) -> int:
        return sum(self.counts)

    @property
    def row_bytes(self) -> int:
        return sum(n * w // 8 for n, w in zip(self.counts, WIDTHS, strict=True))

    def pack(self, codes: Tensor) -> Tensor:
        """codes uint8 [..., D] -> uint8 [..., row_bytes]."""
        parts, start = [], 0
        for count, width in zip(self.counts, WIDTHS, strict=True):
            run = count * width // 8
            out = torch.zeros(*codes.shape[:-1], run, dtype=torch.uint8, device=codes.device)
            for place in range(8 // width):
                piece = codes[..., start + place * run : start + (place + 1) * run]
                out |= piece << (place * width)
            parts.append(out)
            start += count
        return torch.cat(parts, -1)

    def unpack(self, packed: Tensor) -> Tensor:
        """uint8 [..., row_bytes] -> codes uint8 [..., components]."""
        parts = [packed[..., :0]]
        for piece, width, place in self._runs(packed):
            # What lies lowest or highest in a byte needs half the work.
            part = piece >> place if place else piece
            parts.append(part & ((1 << width) - 1) if place + width < 8 else part)
        return torch.cat(parts, -1)

    def raised(self, packed: Tensor) -> Tensor:
        """Codes where they lie in their bytes, float32 [..., components]: each is a power of two
        too large, see `powers`, and no shift was needed."""
        parts = [packed[..., :0]]
        for piece, width, place in self._runs(packed):
            parts.append(piece & (((1 << width) - 1) << place) if width < 8 else piece)
        return torch.cat(parts, -1).float()

    def _runs(self, packed: Tensor) -> Iterator[tuple[Tensor, int, int]]:
        """Bytes that hold components of one width, that width, and the bit where they lie."""
        start = 0
        for count, width in zip(self.counts, WIDTHS, strict=True):
            run = count * width // 8
            for place in range(0, 8 if run else 0, width):
                yield packed[..., start : start + run], width, place
            start += run

    @property
    def powers(self) -> list[float]:
        """What brings the components of `raised` down; a product with them is exact."""
        return [
            2.0**-place
            for count, width in zip(self.counts, WIDTHS, strict=True)
            for place in range(0, 8, width)
            for _ in range(count * width // 8)
        ]


def pack_heads(coefs: Tensor, bits: Tensor, step: Tensor) -> Tensor:
    """Quantize and pack rows of all heads.

    Args:
        coefs: [Hkv, n, R]; R or more columns of bits and step are used.  bits, step: [Hkv, D].
    Returns:
        uint8 [1, n, width]: the rows of the heads side by side, each of its own length.
    """
    used = coefs.shape[-1]
    codes = float_codes(coefs, bits[:, None, :used], step[:, None, :used])
    return torch.cat(pack_each(codes, bits), -1)[None]


def pack_each(codes: Tensor, bits: Tensor) -> list[Tensor]:
    """Codes of all heads, whole numbers [Hkv, n, R], of bits [Hkv, D]: of each head its packed rows
    uint8 [n, bytes]."""
    whole = codes.to(torch.uint8)
    return [Packing.of(row).pack(rows) for row, rows in zip(bits, whole, strict=True)]


def row_widths(bits: Tensor) -> Tensor:
    """Bytes of a packed row of each head, int64 [Hkv], from bits [Hkv, D]."""
    return bits.long().sum(-1) // 8


def split_heads(packed: Tensor, bits: Tensor) -> list[Tensor]:
    """Each head's packed rows uint8 [n, bytes], from rows as `pack_heads` gives them."""
    return list(torch.split(packed[0], [Packing.of(row).row_bytes for row in bits], -1))


def code_places(bits: Tensor) -> Tensor:
    """Where the code of each component lies in a row of bytes as `pack_heads` gives it.

    Args:
        bits: uint8 [Hkv, R].
    Returns:
        int32 [Hkv, 3, R]: its byte, how many bits up it begins there, and the mask above them;
        0 where a component has no bits. Computed on the device, without waiting for it.
    """
    widths = torch.tensor(WIDTHS, device=bits.device)
    kind = (bits[..., None] == widths).int()
    counts = kind.sum(1)
    runs = counts * widths // 8
    total = runs.sum(-1, keepdim=True)
    byte = (runs.cumsum(-1) - runs + (total.cumsum(0) - total)).gather(1, kind.argmax(-1))
    start = (counts.cumsum(-1) - counts).gather(1, kind.argmax(-1))
    run = runs.gather(1, kind.argmax(-1)).clamp_min(1)
    place = torch.arange(bits.shape[-1], device=bits.device) - start
    mask = (1 << bits.int()) - 1
    return (
        torch.stack([byte + place % run, place // run * bits, mask], 1) * (bits > 0)[:, None]
    ).int()
