"""Chooses the spans that each KV head zooms, by their estimated shares of attention."""

from __future__ import annotations

import torch
from torch import Tensor


def choose(
    share: Tensor, cost: Tensor, room: Tensor, uncovered: float, rows: Tensor | None = None
) -> Tensor:
    """The spans that each KV head zooms: by falling share until what is left is small or no room is
    left of what a span takes.

    Args:
        share: [Hkv, F] estimated share of attention that a span draws.
        cost: [C, Hkv, F] what a span takes of each of C kinds of room.  room: [C, Hkv].
        uncovered: what of any row's attention may stay unzoomed; 0 zooms all that fits.
        rows: [Hkv, Q, F] the shares of each row, of which `share` is the largest; without, `share`
            is the only row.
    Returns:
        bool [Hkv, F].
    """
    order = share.argsort(dim=-1, descending=True, stable=True)
    taken = cost.gather(-1, order.expand_as(cost))
    fits = ((taken.cumsum(-1) <= room[..., None]) | (taken == 0)).all(0)
    if uncovered > 0:
        row_shares = share[:, None] if rows is None else rows
        rising = order.flip(-1)[:, None]
        left = row_shares.gather(-1, rising.expand_as(row_shares)).cumsum(-1).amax(1).flip(-1)
        fits &= left > uncovered
    return torch.zeros_like(fits).scatter_(-1, order, fits)
