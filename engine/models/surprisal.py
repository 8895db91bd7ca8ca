"""How much each token of a text surprises the model: -log p, with few logits alive at once."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD_ROWS = 256
"""Rows of logits alive at once where the whole vocabulary is computed."""

COLUMNS = 1024
"""Tokens of the vocabulary whose logits are computed at once on a CPU, so that they stay in its
cache: of 49,152 the logits of 1,024 rows took 2.0 s whole and 0.7 s so."""


def surprisal(hidden: Tensor, targets: list[int], head: Any, factor: float) -> Tensor:
    """-log p(target) in nats, float32 [n] on the CPU.

    Args:
        hidden: [n, d].  head: the model's output embeddings.  factor: of its logits.
    """
    goal = torch.tensor(targets, device=hidden.device)
    # A subclass, or weights that are brought here when they are called, may compute otherwise.
    if (
        type(head) is nn.Linear
        and head.weight.device.type == "cpu"
        and "_hf_hook" not in vars(head)
    ):
        total = _log_sum(hidden, head, factor)
        own = F.embedding(goal, head.weight).float().mul_(hidden.float()).sum(-1)
        own = own if head.bias is None else own + head.bias[goal].float()
        return (total - own * factor).clamp_min_(0)
    out = []
    for at in range(0, len(targets), HEAD_ROWS):
        logits = head(hidden[at : at + HEAD_ROWS]).float()
        logits = logits * factor if factor != 1 else logits
        own = logits.gather(-1, goal[at : at + HEAD_ROWS].to(logits.device)[:, None])[:, 0]
        out.append(logits.logsumexp(-1) - own)
    return torch.cat(out).cpu()


def _log_sum(hidden: Tensor, head: nn.Linear, factor: float) -> Tensor:
    """The log of the sum of exp(logit) over the vocabulary, float32 [n], a block of columns after
    the other through the same memory."""
    parts = []
    logits = normal = torch.empty(0)
    for at in range(0, head.out_features, COLUMNS):
        weight = head.weight[at : at + COLUMNS]
        if logits.shape[-1] != len(weight):
            logits = hidden.new_empty(len(hidden), len(weight))
            normal = torch.empty_like(logits, dtype=torch.float32)
        torch.mm(hidden, weight.T, out=logits)
        if head.bias is not None:
            logits += head.bias[at : at + COLUMNS]
        scaled = logits.float() if factor == 1 else logits.float() * factor
        torch.log_softmax(scaled, -1, out=normal)
        parts.append(scaled[:, 0] - normal[:, 0])
    return torch.stack(parts).logsumexp(0)
