"""How much each token of a text surprises the model: -log p, with few logits alive at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

HEAD_ROWS = {"cpu": 32}
"""Rows of logits alive at once on a kind of device, so that a CPU's cache holds them; else 256."""


def surprisal(
    hidden: Tensor, targets: list[int], head: Any, factor: float, cap: float | None = None
) -> Tensor:
    """-log p(target) in nats, float32 [n] on the CPU.

    Args:
        hidden: [n, d].  head: the model's output embeddings.  factor: of its logits.
        cap: that they do not go beyond, see `terms.Terms`.
    """
    goal = torch.tensor(targets, device=hidden.device)
    rows = HEAD_ROWS.get(hidden.device.type, 256)
    out = []
    for at in range(0, len(targets), rows):
        logits = head(hidden[at : at + rows]).float()
        logits = logits * factor if factor != 1 else logits
        logits = torch.tanh(logits / cap) * cap if cap is not None else logits
        own = logits.gather(-1, goal[at : at + rows].to(logits.device)[:, None])[:, 0]
        out.append(logits.logsumexp(-1) - own)
    return torch.cat(out).cpu()
