"""One softmax over rows of several resolutions."""

from __future__ import annotations

import torch
from torch import Tensor


def merge_resolutions(logits: list[Tensor], values: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Attend once over rows of mixed resolution: one softmax over all parts.

    Args:
        logits: parts [Hkv, Q, n_i] in float32 nats, scaled; -inf hides a row from a query.
        values: parts [Hkv, n_i, D].
    Returns:
        The output [Hkv, Q, D] in float32 and the weights of each part [Hkv, Q, n_i].
    Source: SeKV (arXiv 2606.31145), section 3.3. A row that stands for n tokens carries their
        log-mass as its logit; it is exact when the keys of the span agree.
    """
    top = logits[0].amax(-1, keepdim=True)
    for part in logits[1:]:
        if part.shape[-1]:
            top = torch.maximum(top, part.amax(-1, keepdim=True))
    top = top.clamp_min(torch.finfo(torch.float32).min)
    weights = [torch.exp(part - top) for part in logits]
    total = torch.stack([w.sum(-1, keepdim=True) for w in weights]).sum(0)
    total = total.clamp_min(1.0)  # its top row alone is one; less means that all are hidden
    weights = [w / total for w in weights]
    out = torch.zeros(
        *logits[0].shape[:2], values[0].shape[-1], dtype=torch.float32, device=top.device
    )
    for w, v in zip(weights, values, strict=True):
        if w.shape[-1]:
            out = torch.baddbmm(out, w, v.to(torch.float32))
    return out, weights
