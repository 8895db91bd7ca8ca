"""Attention of a chunk of a plain prefill: on a CPU without a mask, and with a softmax's terms."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.compression.terms import PLAIN, Terms

MOST_SCORES = 1 << 24
"""Scores of all heads that `attend_rows` holds at once."""


def attend_chunk(q: Tensor, k: Tensor, v: Tensor, scale: float, terms: Terms = PLAIN) -> Tensor:
    """Causal attention of the newest rows over all rows.

    The rows before the chunk are seen by every query, those of the chunk by later ones; each part
    is one call of torch's flash kernel without a mask, and their sums are joined in one softmax.
    With a mask the kernel computes the hidden scores too: 28 % slower at 4,096 + 1,024 rows.

    Args:
        q: [1, H, Q, D].  k, v: [1, Hkv, N, D], Hkv divides H, the last Q rows those of q.
        terms: of the softmax, without a cap: the kernel has none.
    Returns:
        [1, Q, H, D].
    """
    _, heads, rows, size = q.shape
    kv_heads, past = k.shape[1], k.shape[2] - rows
    group = heads // kv_heads
    inside = [x[:, :, past:].repeat_interleave(group, 1) for x in (k, v)]
    near, near_sum = _flash(q, inside[0], inside[1], True, scale)
    if not past:
        return _drained(near, near_sum, terms)
    grouped = q.reshape(1, kv_heads, group * rows, size)
    far, far_sum = _flash(grouped, k[:, :, :past], v[:, :, :past], False, scale)
    far_sum = far_sum.reshape(near_sum.shape)
    share = torch.sigmoid(near_sum - far_sum)[..., None]
    out = torch.lerp(far.reshape(near.shape).float(), near.float(), share).to(q.dtype)
    return _drained(out, torch.logaddexp(near_sum, far_sum), terms)


def _drained(out: Tensor, total: Tensor, terms: Terms) -> Tensor:
    """Outputs [1, H, Q, D] without what the sink takes, [1, Q, H, D]; total: [1, H, Q] log of the
    sum of exp(scores)."""
    if terms.sinks is not None:
        left = torch.sigmoid(total - terms.sinks.detach().float()[:, None])
        out = (out * left[..., None]).to(out.dtype)
    return out.transpose(1, 2).contiguous()


def _flash(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """Output [1, h, Q, D] and the log of the sum of exp(scores) float32 [1, h, Q]."""
    out, total = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, causal, attn_mask=None, scale=scale
    )
    return out, total


def attend_rows(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, terms: Terms
) -> Tensor:
    """Attention over whole rows with the terms of a softmax that torch's own has not.

    Args:
        q: [1, H, Q, D].  k: [1, Hkv, N, D].  v: [1, Hkv, N, D'].  mask: [1, 1 or H, Q, N], bool or
            added to the scores; None where every row sees all before it.
    Returns:
        [1, Q, H, D'].
    """
    heads, rows, columns = q.shape[1], q.shape[2], k.shape[2]
    k, v = (x[0].float().repeat_interleave(heads // x.shape[1], 0) for x in (k, v))
    step = max(1, MOST_SCORES // (heads * columns))
    sink = None if terms.sinks is None else terms.sinks.detach().float()[:, None, None]
    places = torch.arange(columns, device=q.device)
    parts = []
    for at in range(0, rows, step):
        some = q[0, :, at : at + step].float()
        scores = terms.capped(torch.bmm(some, k.mT) * scale)
        if mask is None:
            own = columns - rows + at + torch.arange(some.shape[1], device=q.device)
            scores = scores.masked_fill(places > own[:, None], -torch.inf)
        elif mask.dtype == torch.bool:
            scores = scores.masked_fill(~mask[0, :, at : at + step], -torch.inf)
        else:
            scores = scores + mask[0, :, at : at + step]
        if sink is not None:
            scores = torch.cat([scores, sink.expand(-1, some.shape[1], -1)], -1)
        parts.append(torch.bmm(scores.softmax(-1)[..., :columns], v))
    return torch.cat(parts, 1).to(q.dtype).transpose(0, 1)[None].contiguous()
