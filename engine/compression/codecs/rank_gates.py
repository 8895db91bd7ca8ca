"""Rank gates of the published method: how much of each direction of a span's SVD is kept.

A small network reads the spectrum and the mean of a span. `span_svd.SpanSVD` uses it where a router
was trained; how it learns is in `lab.train.zoomin`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.compression.params import RankGates

RANK = 32
"""Directions that a gate is given for: R_max of the paper."""

NEGLIGIBLE = 0.05
"""A direction behind which no gate is larger is not stored."""


def rank_gates(energy: Tensor, context: Tensor, network: RankGates) -> Tensor:
    """Gates in (0, 1) of the leading directions of many spans.

    Args:
        energy: [B, m] squared singular values, falling.  context: [B, D] the mean of the rows.
    Returns:
        [B, min(m, 32)].
    Source: SeKV (arXiv 2606.31145), section 3.2; g_phi reads [s / s_1; context].
    """
    directions = min(RANK, energy.shape[-1])
    spectrum = energy[:, :directions].sqrt()
    spectrum = spectrum / spectrum[:, :1].clamp_min(1e-12)
    x = torch.cat(
        [F.pad(spectrum, (0, RANK - directions)), F.normalize(context.to(spectrum), dim=-1)], -1
    )
    for layer, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
        x = F.linear(F.gelu(x) if layer else x, weight.to(x), bias.to(x))
    return x.sigmoid()[:, :directions]


def kept_rank(gates: Tensor) -> Tensor:
    """Directions up to the last whose gate is not negligible, at least one: int64 [B]."""
    place = torch.arange(1, gates.shape[-1] + 1, device=gates.device)
    return torch.where(gates >= NEGLIGIBLE, place, 1).amax(-1)
