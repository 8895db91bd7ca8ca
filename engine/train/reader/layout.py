"""How a batch of texts and questions is laid out in one sequence, and who sees whom.

Not a model: the layers are those of a plain Llama, reached through one attention
function registered with transformers. Not a mask either: the structure is
rectangular, so it is computed block by block and the empty part is never formed.

One row is flattened as [prefix][window 1]...[window k][question 1]...[question m].
A window sees the prefix and itself; windows share positions and never meet. A
question (with its answer) sees the prefix, every window and its own past, in one
softmax. With one window and one question this is plain causal attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

ATTENTION = "sekv_layout"
_CHUNK = 256  # query rows computed at a time: half of a causal square is then never formed


@dataclass(frozen=True)
class Layout:
    """The shape of a flattened row, and which of its document tokens are padding.

    prefix, windows, window, questions, question: counts and padded lengths, so a
        row has prefix + windows * window + questions * question tokens.
    present: [B, prefix + windows * window] bool, false for padding of a window.
        Padding of a question needs no mark: it stands last in its own block and
        nothing looks at it.
    """

    prefix: int
    windows: int
    window: int
    questions: int
    question: int
    present: Tensor

    @property
    def document(self) -> int:
        """Tokens of the prefix and all windows, padding counted."""
        return self.prefix + self.windows * self.window

    @property
    def total(self) -> int:
        """Tokens of a whole row, padding counted."""
        return self.document + self.questions * self.question


def positions(layout: Layout, lengths: Tensor, jump: Tensor) -> Tensor:
    """Give every token of the flattened rows its place.

    Args:
        layout: the shape of the rows.
        lengths: [B] length of the longest window of each row.
        jump: [B] how far the questions of a row stand behind that window's end.
    Returns:
        [B, total] int64: the prefix from 0, every window from the prefix's end,
        every question from the longest window's end plus the jump.
    """
    rows = lengths.shape[0]
    prefix = torch.arange(layout.prefix)
    window = torch.arange(layout.window) + layout.prefix
    document = torch.cat([prefix, window.repeat(layout.windows)]).expand(rows, -1)
    start = (lengths + jump + layout.prefix)[:, None]
    question = start + torch.arange(layout.question).repeat(layout.questions)
    return torch.cat([document, question], dim=1)


class _Causal(torch.autograd.Function):
    """Causal attention after a shared past, a chunk of query rows at a time.

    torch's own CPU kernel spends most of a training step in its backward pass at
    these sizes; plain batched products in bfloat16 are two to three times faster.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """q [Z, G, T, D]; k, v [Z, P + T, D]: returns [Z, G, T, D]."""
        z, groups, length, dim = q.shape
        past = k.shape[1] - length
        out = torch.empty_like(q)
        weights: list[Tensor] = []
        for start in range(0, length, _CHUNK):
            stop = min(start + _CHUNK, length)
            rows = q[:, :, start:stop].reshape(z, -1, dim)
            scores = torch.bmm(rows, k[:, : past + stop].transpose(1, 2)).mul_(scale)
            size = stop - start
            future = torch.ones(size, size, dtype=torch.bool, device=q.device).triu_(1)
            scores.view(z, groups, size, -1)[..., past + start :].masked_fill_(
                future, float("-inf")
            )
            weight = torch.softmax(scores, dim=-1)
            weights.append(weight)
            out[:, :, start:stop] = torch.bmm(weight, v[:, : past + stop]).view(
                z, groups, size, dim
            )
        ctx.save_for_backward(q, k, v, *weights)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Gradients of the three inputs, from the stored attention weights."""
        (grad,) = grads
        q, k, v, *weights = ctx.saved_tensors
        z, _, length, dim = q.shape
        past = k.shape[1] - length
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for index, weight in enumerate(weights):
            start = index * _CHUNK
            stop = min(start + _CHUNK, length)
            seen = past + stop
            rows = q[:, :, start:stop].reshape(z, -1, dim)
            drows = grad[:, :, start:stop].reshape(z, -1, dim)
            dv[:, :seen] += torch.bmm(weight.transpose(1, 2), drows)
            dweight = torch.bmm(drows, v[:, :seen].transpose(1, 2))
            dscore = torch._softmax_backward_data(dweight, weight, -1, weight.dtype).mul_(ctx.scale)
            dq[:, :, start:stop] = torch.bmm(dscore, k[:, :seen]).view(z, -1, stop - start, dim)
            dk[:, :seen] += torch.bmm(dscore.transpose(1, 2), rows)
        return dq, dk, dv, None


def attend_windows(q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float) -> Tensor:
    """Attend causally inside the prefix and inside each window after the prefix.

    Args:
        q: [B, H, document, D].  k, v: [B, Hkv, document, D].
    Returns:
        [B, H, document, D].
    """
    rows, heads, _, dim = q.shape
    kv = k.shape[1]
    groups, past = heads // kv, layout.prefix
    q = q.view(rows, kv, groups, layout.document, dim)
    head: Tensor = _Causal.apply(  # type: ignore[no-untyped-call]
        q[:, :, :, :past].reshape(rows * kv, groups, past, dim),
        k[:, :, :past].reshape(rows * kv, past, dim),
        v[:, :, :past].reshape(rows * kv, past, dim),
        scale,
    ).view(rows, kv, groups, past, dim)

    def blocks(x: Tensor) -> Tensor:  # [B, Hkv, document, D] -> [B Hkv k, prefix + window, D]
        own = x[:, :, past:].reshape(rows, kv, layout.windows, layout.window, dim)
        shared = x[:, :, None, :past].expand(-1, -1, layout.windows, -1, -1)
        return torch.cat([shared, own], dim=3).flatten(0, 2)

    body = q[:, :, :, past:].reshape(rows, kv, groups, layout.windows, layout.window, dim)
    body = _Causal.apply(  # type: ignore[no-untyped-call]
        body.transpose(2, 3).flatten(0, 2).contiguous(), blocks(k), blocks(v), scale
    )
    body = body.view(rows, kv, layout.windows, groups, layout.window, dim).transpose(2, 3)
    body = body.reshape(rows, kv, groups, -1, dim)
    return torch.cat([head, body], dim=3).view(rows, heads, layout.document, dim)


class _Branches(torch.autograd.Function):
    """One softmax over a shared document and a private causal past per branch."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        shared: tuple[Tensor, Tensor],
        k: Tensor,
        v: Tensor,
        k_own: Tensor,
        v_own: Tensor,
        scale: float,
    ) -> Tensor:
        """q [Z, M, G, T, D]; k, v [Z, N, D]; own [Z, M, T, D]: returns q's shape."""
        hidden, future = shared
        z, m, _, length, dim = q.shape
        n = k.shape[1]
        near = torch.bmm(
            q.view(z * m, -1, dim), k_own.view(z * m, length, dim).transpose(1, 2)
        ).view(z, -1, length)
        near.view(-1, length, length).masked_fill_(future, float("-inf"))
        far = torch.bmm(q.view(z, -1, dim), k.transpose(1, 2))
        if hidden.any():
            far.masked_fill_(hidden[:, None], float("-inf"))
        weight = torch.softmax(torch.cat([far, near], dim=-1).mul_(scale), dim=-1)
        # The products are several times slower on slices than on whole tensors.
        far = weight[..., :n].contiguous()
        near = weight[..., n:].reshape(z * m, -1, length)
        out = torch.bmm(far, v).view(z * m, -1, dim)
        out = torch.baddbmm(out, near, v_own.view(z * m, length, dim)).view_as(q)
        ctx.save_for_backward(q, k, v, k_own, v_own, far, near, out)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of queries, document and own keys and values."""
        q, k, v, k_own, v_own, far, near, out = ctx.saved_tensors
        z, m, _, length, dim = q.shape
        grad = grads[0].contiguous()
        rows, own = q.view(z, -1, dim), q.view(z * m, -1, dim)
        drows, down = grad.view(z, -1, dim), grad.view(z * m, -1, dim)
        k_near, v_near = k_own.view(z * m, length, dim), v_own.view(z * m, length, dim)
        # The softmax's own sum over a row is the product of its output and its gradient.
        mean = (grad.float() * out.float()).sum(-1, keepdim=True).to(q.dtype)
        dfar = torch.bmm(drows, v.transpose(1, 2)).sub_(mean.view(z, -1, 1)).mul_(far)
        dnear = torch.bmm(down, v_near.transpose(1, 2)).sub_(mean.view(z * m, -1, 1)).mul_(near)
        dq = torch.bmm(dfar, k).view(z * m, -1, dim)
        dq = torch.baddbmm(dq, dnear, k_near).mul_(ctx.scale).view_as(q)
        dk = torch.bmm(dfar.transpose(1, 2), rows).mul_(ctx.scale)
        dk_own = torch.bmm(dnear.transpose(1, 2), own).mul_(ctx.scale).view_as(k_own)
        dv = torch.bmm(far.transpose(1, 2), drows)
        dv_own = torch.bmm(near.transpose(1, 2), down).view_as(v_own)
        return dq, None, dk, dv, dk_own, dv_own, None


def attend_questions(q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float) -> Tensor:
    """Attend from every question to the whole document and to its own past.

    Args:
        q: [B, H, questions * question, D].  k, v: [B, Hkv, total, D].
    Returns:
        [B, H, questions * question, D].
    """
    rows, heads, _, dim = q.shape
    kv = k.shape[1]
    groups, m, length, n = heads // kv, layout.questions, layout.question, layout.document
    q = q.view(rows, kv, groups, m, length, dim).transpose(2, 3)
    q = q.reshape(rows * kv, m, groups, length, dim).contiguous()
    hidden = (~layout.present)[:, None].expand(-1, kv, -1).reshape(rows * kv, n)
    future = torch.ones(length, length, dtype=torch.bool, device=q.device).triu_(1)
    own = (x[:, :, n:].reshape(rows * kv, m, length, dim).contiguous() for x in (k, v))
    out: Tensor = _Branches.apply(  # type: ignore[no-untyped-call]
        q,
        (hidden, future),
        k[:, :, :n].reshape(rows * kv, n, dim),
        v[:, :, :n].reshape(rows * kv, n, dim),
        *own,
        scale,
    )
    out = out.view(rows, kv, m, groups, length, dim).transpose(2, 3)
    return out.reshape(rows, heads, m * length, dim)


def layout_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    layout: Layout,
    **_: Any,
) -> tuple[Tensor, None]:
    """The attention function transformers calls; `layout` is a keyword of the model's forward.

    Args:
        query: [B, H, total, D].  key, value: [B, Hkv, total, D].
    Returns:
        [B, total, H, D] and no weights.
    """
    del module, attention_mask  # who sees whom is the layout's alone
    dtype = value.dtype  # rotary embedding widens queries and keys under autocast
    query, key = query.to(dtype), key.to(dtype)
    n = layout.document
    document = attend_windows(query[:, :, :n], key[:, :, :n], value[:, :, :n], layout, scaling)
    questions = attend_questions(query[:, :, n:], key, value, layout, scaling)
    return torch.cat([document, questions], dim=2).transpose(1, 2), None


AttentionInterface.register(ATTENTION, layout_attention)
