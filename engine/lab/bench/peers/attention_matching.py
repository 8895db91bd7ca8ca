"""Attention matching: a bias and a new value for every key that is kept, so that attention over the
kept rows comes out as over all.

Source: Fast KV Compaction via Attention Matching (arXiv 2602.16284). For queries that stand for
those to come, biases make the mass of the kept keys that of all keys (non-negative least squares),
then values make the outputs those of all rows (least squares).
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.attention.resident import row_scores

STEPS = 200
"""Of the projected gradient that finds the biases."""

RIDGE = 1e-3
"""Weight, beside the mean square of a column, that draws values to the tokens' own."""

LEAST, MOST = 1e-4, 1e4
"""A kept key's mass, in its own."""


def match(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Biases and values of the tokens kept, head by head.

    Args:
        q: [Hkv, R, D] scaled so that scores are q.k / sqrt(D).  k, v: [Hkv, N, D] of all tokens.
        keep: bool [Hkv, N].
    Returns:
        biases [Hkv, N] in nats and values [Hkv, N, D], float32; 0 of tokens that are not kept.
    """
    biases, values = k.new_zeros(k.shape[:2], dtype=torch.float32), torch.zeros_like(v.float())
    scores = row_scores(q, k)
    total = scores.logsumexp(-1, keepdim=True)
    outputs = torch.bmm((scores - total).exp(), v.float())
    for head, mine in enumerate(keep):
        if not bool(mine.any()):
            continue
        shares = (scores[head][:, mine] - total[head]).exp()
        mass = matched_mass(shares)
        biases[head, mine] = mass.log()
        weight = shares * mass
        weight = weight / weight.sum(-1, keepdim=True).clamp_min(1e-30)
        values[head, mine] = matched_values(weight, outputs[head], v[head, mine].float())
    return biases, values


def matched_mass(shares: Tensor) -> Tensor:
    """Factors [t] >= LEAST by which columns of shares [R, t] add up to 1 in every row, as nearly as
    can be in least squares."""
    square, target = shares.T @ shares, shares.sum(0)
    pace = 1 / square.sum(-1).max().clamp_min(1e-30)  # no eigenvalue is above a row's sum
    mass = torch.ones_like(target)
    ahead, speed = mass, 1.0
    for _ in range(STEPS):
        new = (ahead - pace * (square @ ahead - target)).clamp(LEAST, MOST)
        faster = (1 + (1 + 4 * speed * speed) ** 0.5) / 2  # Nesterov's acceleration
        ahead = new + (speed - 1) / faster * (new - mass)
        mass, speed = new, faster
    return mass


def matched_values(weight: Tensor, outputs: Tensor, own: Tensor) -> Tensor:
    """Values [t, D] by which weights [R, t] give outputs [R, D], drawn a little to their own."""
    square = weight.T @ weight
    ridge = RIDGE * square.diagonal().mean().clamp_min(1e-12)
    square = square + ridge * torch.eye(len(square))
    values: Tensor = torch.linalg.solve(square, weight.T @ outputs + ridge * own)
    return values
