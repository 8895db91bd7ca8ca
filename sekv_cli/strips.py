"""Bars, maps and curves of characters: pure functions from numbers to short strings.

No rich, no colour, no knowledge of stores. `format` places and paints them.
"""

from __future__ import annotations

from collections.abc import Sequence

BLOCKS = "▁▂▃▄▅▆▇█"
ASCII = ".:-=+*#@"
NOTHING = "·"
NOTHING_ASCII = " "


def stretches(total: int, cells: int) -> list[tuple[int, int]]:
    """Cut [0, total) into at most `cells` stretches of nearly equal, never empty length."""
    cells = min(cells, total)
    return [(total * i // cells, total * (i + 1) // cells) for i in range(cells)]


def spread(
    items: Sequence[tuple[int, int, float]], cells: Sequence[tuple[int, int]]
) -> list[float]:
    """Mean of `value` over each cell, each item counting by the tokens it shares with the cell.

    Args:
        items: (start, end, value), sorted by start and not overlapping.
        cells: (start, end), sorted and not overlapping.
    """
    means = []
    first = 0
    for start, end in cells:
        while first < len(items) and items[first][1] <= start:
            first += 1
        weighted = shared = 0.0
        index = first
        while index < len(items) and items[index][0] < end:
            overlap = min(items[index][1], end) - max(items[index][0], start)
            weighted += overlap * items[index][2]
            shared += overlap
            index += 1
        means.append(weighted / shared if shared else 0.0)
    return means


def counts(positions: Sequence[int], cells: Sequence[tuple[int, int]]) -> list[float]:
    """How many of the sorted `positions` fall into each cell, per token of the cell."""
    found = []
    index = 0
    for start, end in cells:
        while index < len(positions) and positions[index] < start:
            index += 1
        begun = index
        while index < len(positions) and positions[index] < end:
            index += 1
        found.append((index - begun) / (end - start))
    return found


def strip(values: Sequence[float], *, unicode: bool, zero_is_empty: bool = False) -> str:
    """One character per value, from the least to the greatest; zero may be the empty cell.

    The outermost twentieth of the values on either side is not looked at, so that one odd cell
    does not flatten all others.
    """
    if not values:
        return ""
    levels, empty = (BLOCKS, NOTHING) if unicode else (ASCII, NOTHING_ASCII)
    ranked = sorted(values)
    low = 0.0 if zero_is_empty else ranked[len(values) // 20]
    width = (ranked[-1] if zero_is_empty else ranked[-1 - len(values) // 20]) - low
    return "".join(
        empty
        if zero_is_empty and value <= 0
        else levels[min(max(int((value - low) / width * len(levels)), 0), len(levels) - 1)]
        if width
        else levels[len(levels) // 2 - 1]
        for value in values
    )


def ruler(labels: Sequence[str], width: int) -> str:
    """Write each cell's label under its cell wherever it changes and there is room."""
    line = ""
    last = ""
    for cell, label in enumerate(labels[:width]):
        if label != last and cell >= len(line) + bool(line) and cell + len(label) <= width:
            line = line.ljust(cell) + label
            last = label
    return line
