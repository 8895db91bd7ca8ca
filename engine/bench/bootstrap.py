"""Intervals for means over questions that share documents: the cluster bootstrap.

Questions on one document are not independent, so whole documents are drawn again.
"""

from __future__ import annotations

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
