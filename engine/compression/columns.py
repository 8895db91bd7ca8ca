"""Packed codes as they are resident: bytes in columns over all rows, columns of a width together.

A store keeps a row's codes side by side. Products with a query want the opposite: the codes of one
component for all rows, so that a whole tensor unpacks with one mask per width and nothing is held
in more bits than it has. Heads may give their components different bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from engine.compression.packing import Packing
from engine.compression.quantize import WIDTHS

Runs = tuple[tuple[int, int], ...]
"""Ranges (first, last + 1)."""


@dataclass(frozen=True, eq=False)
class CodeLayout:
    """Where the codes of some parts (such as keys and values) of Hkv heads lie in columns of bytes.

    runs: per width in use (bits, first column, columns, first row of what is unpacked).
    unpacked: rows that unpacking makes. order: int64 [width], the column of each byte of a row as
    a store has it: of the first head all parts, then of the second, and so on; on the CPU. first:
    [Hkv + 1] where each head's bytes begin in that. source: int32 [parts * Hkv * R] which unpacked
    row is which component. lower: float16 [parts, Hkv, R] what brings an unpacked code down to its
    value, a power of two; 0 where a component has no bits.
    """

    runs: tuple[tuple[int, int, int, int], ...]
    unpacked: int
    order: Tensor
    first: tuple[int, ...]
    source: Tensor
    lower: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of the tables on the device."""
        return self.source.nbytes + self.lower.nbytes

    @property
    def width(self) -> int:
        """Bytes of a row, all heads together."""
        return len(self.order)

    @classmethod
    def of(cls, bits: Tensor) -> CodeLayout:
        """bits: uint8 [parts, Hkv, R]; on any device, which is waited for."""
        table = bits.cpu()
        parts, heads, size = table.shape
        packings = [[Packing.of(table[p, h]) for p in range(parts)] for h in range(heads)]
        flat = [packing for of_head in packings for packing in of_head]
        runs, column, row = [], 0, 0
        for index, bits_each in enumerate(WIDTHS):
            columns = sum(packing.counts[index] * bits_each // 8 for packing in flat)
            if columns:
                runs.append((bits_each, column, columns, row))
            column, row = column + columns, row + columns * (8 // bits_each)
        order: list[int] = []
        first = [0]
        source = np.zeros((parts, heads, size), np.int32)
        lower = np.zeros((parts, heads, size), np.float16)
        begun = {run[0]: 0 for run in runs}
        for head, of_head in enumerate(packings):
            for part, packing in enumerate(of_head):
                component = 0
                for count, bits_each in zip(packing.counts, WIDTHS, strict=True):
                    if not count:
                        continue
                    here = next(run for run in runs if run[0] == bits_each)
                    columns, at = count * bits_each // 8, begun[bits_each]
                    order += range(here[1] + at, here[1] + at + columns)
                    place, inside = np.divmod(np.arange(count), columns)
                    mine = slice(component, component + count)
                    source[part, head, mine] = here[3] + place * here[2] + at + inside
                    lower[part, head, mine] = np.ldexp(1.0, -place * bits_each)
                    begun[bits_each] = at + columns
                    component += count
            first.append(len(order))
        used = max(1, int((table > 0).sum(-1).max()) if table.numel() else 1)
        device = bits.device
        return cls(
            tuple(runs),
            row,
            torch.tensor(order, dtype=torch.int64),
            tuple(first),
            torch.from_numpy(source[..., :used].ravel()).to(device),
            torch.from_numpy(np.ascontiguousarray(lower[..., :used])).to(device),
        )

    @property
    def components(self) -> int:
        """R: the most components that any head has codes of."""
        return int(self.lower.shape[-1])

    def places(self, part: int) -> tuple[Tensor, Tensor]:
        """The column of each component of a part, int32 [Hkv, R'], and the mask of its bits there,
        uint8 [Hkv, R']; R filled up to a multiple of four with components of no bits."""
        return self._places[0][part], self._places[1][part]

    @cached_property
    def _places(self) -> tuple[Tensor, Tensor]:
        column, mask = torch.zeros_like(self.source), torch.zeros_like(self.source)
        for bits, first, columns, row in self.runs:
            inside = self.source - row
            mine = (inside >= 0) & (inside < columns * (8 // bits))
            column = torch.where(mine, first + inside % columns, column)
            mask = torch.where(mine, ((1 << bits) - 1) << (inside // columns * bits), mask)
        mask = torch.where(self.lower.flatten() > 0, mask, 0)
        filled = (0, -self.components % 4)
        column, mask = (
            torch.nn.functional.pad(x.view(self.lower.shape), filled) for x in (column, mask)
        )
        return column.int().contiguous(), mask.to(torch.uint8).contiguous()

    def columns(self, rows: Tensor) -> Tensor:
        """Rows uint8 [n, width] as a store has them, all heads side by side -> [width, n]."""
        out = torch.empty(self.width, len(rows), dtype=torch.uint8, device=rows.device)
        out[self.order.to(rows.device)] = rows.T.contiguous()
        return out

    def unpack(self, data: Tensor, runs: Runs | None = None) -> Tensor:
        """Columns uint8 [width, n] -> codes float32 [parts * Hkv, R, n], each to be multiplied with
        its `lower`: no bit was shifted. Components without bits hold anything finite. runs: ranges
        of rows (first, last + 1) that are wanted, one after another; all without."""
        runs = ((0, data.shape[1]),) if runs is None else runs
        count = sum(last - first for first, last in runs)
        parts_heads = self.lower.shape[0] * self.lower.shape[1]
        shape = (parts_heads, self.components, count)
        if not self.unpacked:
            return torch.zeros(shape, device=data.device)
        whole = torch.empty(self.unpacked, count, dtype=torch.uint8, device=data.device)
        at = 0
        for first, last in runs:
            self._unmask(data[:, first:last], whole[:, at : at + last - first])
            at += last - first
        return whole.index_select(0, self.source).float().view(shape)

    def _unmask(self, data: Tensor, out: Tensor) -> None:
        """Columns [width, n] -> the same bytes once for each code in them, [unpacked, n], all else
        masked away."""
        for bits, column, columns, row in self.runs:
            part = data[column : column + columns]
            places = 8 // bits
            mine = out[row : row + places * columns]
            if bits == 8:
                mine.copy_(part)
                continue
            torch.bitwise_and(
                part[None], _masks(bits, data.device), out=mine.view(places, columns, -1)
            )

    def working_bytes(self, rows: int) -> int:
        """Bytes that unpacking so many rows takes beside them."""
        return rows * (self.unpacked + 5 * len(self.source))


def table_bytes(bits: Tensor) -> int:
    """The most that the tables of a layout of these bits take on a device."""
    return 6 * bits.numel()


_MASKS: dict[tuple[int, torch.device], Tensor] = {}


def _masks(bits: int, device: torch.device) -> Tensor:
    """uint8 [8 / bits, 1, 1]: the bits of each place in a byte."""
    found = _MASKS.get((bits, device))
    if found is None:
        places = [((1 << bits) - 1) << place for place in range(0, 8, bits)]
        with torch.inference_mode(False):
            found = torch.tensor(places, dtype=torch.uint8, device=device)[:, None, None]
        _MASKS[bits, device] = found
    return found


def centre(bits: Tensor) -> Tensor:
    """What is added to a code to stand in the middle of its step, in steps; 0 without bits."""
    return torch.where(bits > 0, 0.5 - torch.pow(2.0, bits.float() - 1), 0.0)


@dataclass(frozen=True, eq=False)
class CodeColumns:
    """Codes of some rows. data: uint8 [width, N]. runs: the ranges of its rows that are looked at,
    one after another; None for all."""

    layout: CodeLayout
    data: Tensor
    runs: Runs | None = None

    @classmethod
    def of_rows(cls, rows: Tensor, layout: CodeLayout) -> CodeColumns:
        """rows: uint8 [1, n, width], see `pack_heads`."""
        return cls(layout, layout.columns(rows[0]))

    @property
    def nbytes(self) -> int:
        return self.data.nbytes + self.layout.nbytes

    def __len__(self) -> int:
        """Rows that are looked at."""
        if self.runs is None:
            return int(self.data.shape[1])
        return sum(last - first for first, last in self.runs)

    def followed_by(self, first: int, rows: Sequence[Tensor]) -> CodeColumns:
        """The first rows, and behind them others, each as in `of_rows`."""
        more = [self.layout.columns(each[0].to(self.data.device)) for each in rows]
        return CodeColumns(self.layout, torch.cat([self.data[:, :first], *more], 1))

    @property
    def ranges(self) -> Runs:
        """The ranges of rows that are looked at."""
        return ((0, int(self.data.shape[1])),) if self.runs is None else self.runs

    def some(self, first: int, last: int) -> CodeColumns:
        """The rows from first to last - 1 of those that are looked at."""
        inside, at = [], 0
        for begin, end in self.ranges:
            low, high = max(begin, begin + first - at), min(end, begin + last - at)
            if low < high:
                inside.append((low, high))
            at += end - begin
        return CodeColumns(self.layout, self.data, tuple(inside))

    def unpack(self) -> Tensor:
        """float32 [parts * Hkv, R, n]; see `CodeLayout.unpack`."""
        return self.layout.unpack(self.data, self.runs)
