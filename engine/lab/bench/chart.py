"""Line charts as SVG text: a few series over one axis, no library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT, LINE = 680, 380, 60, 48, 36, 190, 18
COLOURS = ("#1b6ca8", "#c0392b", "#2e8b57", "#8e44ad", "#d68910", "#17727a", "#7f8c8d", "#5d4037")
DASHES = ("", "6 3", "2 3")


def lines(
    title: str,
    across: str,
    up: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    log: bool = False,
) -> str:
    """One line per series through its points (x, y), in the order of x.

    Args:
        across, up: what the axes show.  log: the vertical axis is logarithmic.
    Returns:
        a whole SVG document; series without points are left out.
    """
    shown = {
        name: [(x, y) for x, y in sorted(points) if not log or y > 0]
        for name, points in series.items()
    }
    shown = {name: points for name, points in shown.items() if points}
    xs = sorted({x for points in shown.values() for x, _ in points}) or [0.0]
    ys = [y for points in shown.values() for _, y in points] or [0.0, 1.0]
    scale = (lambda y: math.log10(y)) if log else (lambda y: y)
    low = math.floor(scale(min(ys))) if log else min(0.0, *ys)
    high = math.ceil(scale(max(ys))) if log else max(ys)
    high = high if high > low else low + 1

    def right(x: float) -> float:
        # Points sit at equal distances: shares such as 1, 2, 5, 10 would crowd at the left.
        return LEFT + (WIDTH - LEFT - RIGHT) * (xs.index(x) + 0.5) / len(xs)

    def down(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - (value - low) / (high - low))

    tall = max(HEIGHT, TOP + LINE * (len(shown) + 1))  # all names find room at the right
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {tall}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{tall}" fill="white"/>',
        f'<text x="{LEFT}" y="20" font-size="14">{escape(title)}</text>',
    ]
    steps = int(high - low) if log else 5
    for step in range(steps + 1):
        value = low + (high - low) * step / steps
        label = f"{10**value:g}" if log else f"{value:.3g}"
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down(value):.1f}" '
            f'y2="{down(value):.1f}" stroke="#dddddd"/>'
            f'<text x="{LEFT - 6}" y="{down(value) + 4:.1f}" text-anchor="end">{label}</text>'
        )
    for x in xs:
        parts.append(
            f'<text x="{right(x):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{x:g}</text>'
        )
    parts += _axes(across, up)
    for index, (name, points) in enumerate(shown.items()):
        places = [(right(x), down(scale(y))) for x, y in points]
        parts += _series(index, name, places)
    return "\n".join([*parts, "</svg>", ""])


def _axes(across: str, up: str) -> list[str]:
    """The names of the axes."""
    middle = (LEFT + WIDTH - RIGHT) / 2
    return [
        f'<text x="{middle:.0f}" y="{HEIGHT - 8}" text-anchor="middle">{escape(across)}</text>'
        f'<text x="14" y="{(TOP + HEIGHT - BOTTOM) / 2:.0f}" text-anchor="middle" '
        f'transform="rotate(-90 14 {(TOP + HEIGHT - BOTTOM) / 2:.0f})">{escape(up)}</text>'
    ]


def _series(index: int, name: str, places: Sequence[tuple[float, float]]) -> list[str]:
    """A line through places on the page, a point at each, and its name at the right."""
    colour = COLOURS[index % len(COLOURS)]
    dash = DASHES[index // len(COLOURS) % len(DASHES)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    at = TOP + 10 + LINE * index
    return [
        f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2" '
        f'stroke-dasharray="{dash}"/>',
        *(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places),
        f'<line x1="{WIDTH - RIGHT + 12}" x2="{WIDTH - RIGHT + 32}" y1="{at - 4}" '
        f'y2="{at - 4}" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>',
        f'<text x="{WIDTH - RIGHT + 38}" y="{at}">{escape(name)}</text>',
    ]
