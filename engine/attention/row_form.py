"""Rows of a memory from what a layer caches: a key and a value of one width for each KV head.

Most layers cache such rows. Where keys and values have different widths the narrower is filled up
with zeros, which neither scores nor outputs see. Multi-head latent attention (MLA, DeepSeek-V2,
arXiv 2405.04434, section 2.1) caches one latent c and one rotated key r per token, of which every
head's key and value are linear functions: k = A [c; r], v = B c. A memory keeps [c; r] as the key
and c as the value of a single KV head, and queries and outputs are mapped in place of rows:
q.k = (A^T q).[c; r] and sum p v = B (sum p c).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import ReaderError


def caches_latents(config: Any) -> bool:
    """Whether the layers with full attention of a model cache latents."""
    return bool(getattr(config.get_text_config(decoder=True), "kv_lora_rank", None))


def widened(rows: Tensor, width: int) -> Tensor:
    """Rows [..., D] filled up with zeros to [..., width]."""
    missing = width - rows.shape[-1]
    return torch.nn.functional.pad(rows, (0, missing)) if missing else rows


def memory_rows(first: Tensor, second: Tensor, *, latent: bool) -> tuple[Tensor, Tensor]:
    """The rows k, v [1, Hkv, n, D] of what a model caches: keys and values, or latents and rotated
    keys."""
    if latent:
        first, second = torch.cat([first, second], -1), first
    width = max(first.shape[-1], second.shape[-1])
    return widened(first, width), widened(second, width)


def cached_rows(
    k: Tensor, v: Tensor, like: tuple[Tensor, Tensor], *, latent: bool
) -> tuple[Tensor, Tensor]:
    """What a model caches, as views of the memory's rows; like: tensors of the widths of both."""
    first, second = (each.shape[-1] for each in like)
    if latent:
        return k[..., :first], k[..., first:]
    return k[..., :first], v[..., :second]


class Expansion:
    """The linear maps from a layer's latents to its heads' keys and values.

    keys: [H, D, Dk], the rows of the memory to keys. values: [H, c, Dv], latents to values.
    """

    def __init__(self, module: Any):
        """Raises ReaderError where the module's own code is not linear."""
        latent, rotated = int(module.kv_lora_rank), int(module.qk_rope_head_dim)
        weight = next(module.parameters())
        unit = torch.eye(latent + rotated, dtype=weight.dtype, device=weight.device)
        unit = torch.cat([unit, torch.zeros_like(unit[:1])])[None, None]
        with torch.no_grad():
            keys, values = module.expand_kv(unit[..., :latent], unit[..., latent:])
        if bool(keys[:, :, -1].any()) or bool(values[:, :, latent:].any()):
            raise ReaderError(
                f"{type(module).__name__} makes keys and values of its latents otherwise than by a "
                "product with weights, which a document memory does not compute"
            )
        self.keys, self.values = keys[0, :, :-1], values[0, :, :latent]

    def queries(self, q: Tensor) -> Tensor:
        """Queries of keys [H, Q, Dk] as queries of the memory's rows [H, Q, D]."""
        return torch.bmm(q, self.keys.mT)

    def outputs(self, out: Tensor) -> Tensor:
        """Outputs [H, Q, Dv] from sums of the memory's value rows [H, Q, D]."""
        values = self.values
        return torch.bmm(out[..., : values.shape[1]].to(values.dtype), values)


class Expansions:
    """Those of a model's layers, each computed when it is first needed."""

    def __init__(self) -> None:
        self._known: dict[int, Expansion] = {}

    def of(self, module: nn.Module) -> Expansion:
        """Of an attention module with this `layer_idx`."""
        number = int(module.layer_idx)  # type: ignore[arg-type]
        if number not in self._known:
            self._known[number] = Expansion(module)
        return self._known[number]
