"""Each layer's limits, and its share of the budget of all layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """cap: device bytes per layer, everything counted; see `allot` for what others leave of theirs.
    coverage: share of the estimated attention to have exact. full: everything is zoomed, whatever
    it takes."""

    cap: float
    coverage: float
    full: bool = False


def allot(caps: Sequence[float], least: Sequence[float], most: Sequence[float]) -> list[float]:
    """What each layer may hold when those that need less than their share leave the rest to others.

    Every layer keeps the smaller of its share and its need, whatever the others hold; the rest goes
    to those that need more, in proportion to what they lack. The result depends only on shares and
    needs, so that no layer can lose at one step what it was given at another.

    Args:
        caps: bytes, the share of each layer.  least: bytes that a layer takes whatever happens;
        where that is more than its share, all others give in proportion to what they have.
        most: bytes with which a layer has all it can use.
    Returns:
        bytes for each layer, their sum at most that of `caps` where what all take at least is.
    """
    own = [max(low, min(cap, high)) for cap, low, high in zip(caps, least, most, strict=True)]
    left = sum(caps) - sum(own)
    ends = most if left >= 0 else least
    ways = [abs(end - mine) for end, mine in zip(ends, own, strict=True)]
    total = sum(ways)
    part = min(1.0, abs(left) / total) if total > 0 else 0.0
    return [
        mine + part * (end - mine) if way > 0 else mine
        for mine, end, way in zip(own, ends, ways, strict=True)
    ]
