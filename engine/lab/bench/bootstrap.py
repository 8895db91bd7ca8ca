"""95 % intervals of means over questions: Wilson's, and the cluster bootstrap.

Questions on one document are not independent, so whole documents are drawn again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

DRAWS = 1000


def interval(groups: Sequence[Sequence[float]], seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile interval of the mean of all values.

    Args:
        groups: the values of each document; empty ones do not count.
    Returns:
        low and high; (nan, nan) of nothing. One document alone gives an interval of no width.
    Source: Field and Welsh, Bootstrapping clustered data (2007): the cluster bootstrap.
    """
    sums = np.array([sum(group) for group in groups if len(group)], dtype=np.float64)
    sizes = np.array([len(group) for group in groups if len(group)], dtype=np.float64)
    if not len(sums):
        return float("nan"), float("nan")
    drawn = np.random.default_rng(seed).integers(0, len(sums), (DRAWS, len(sums)))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def wilson(hits: int, of: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval of a share; (0, 1) of nothing."""
    if of == 0:
        return 0.0, 1.0
    share = hits / of
    centre = share + z * z / (2 * of)
    spread = z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    scale = 1 + z * z / of
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)
