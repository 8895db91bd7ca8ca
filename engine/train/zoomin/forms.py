"""What is learnt: the two forms of the router as modules.

`SpanForm` is the published one (W, tau and the rank gates g_phi), `SketchForm` a learnt basis for
the sketch of every token's key. Each gives, layer by layer, the tensors that `policies.zoom` runs
on; how far they are from what they should be is in `student`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from engine import ops
from engine.policies.codec import Side
from engine.policies.gates import gate_shapes

THRESHOLD = 0.05
"""Where every tau begins, as published."""

USUAL_SCORE = 3.0
"""Root mean square of a span's score at the start, in nats."""


@dataclass(frozen=True)
class Shape:
    """Of a router. layers L, heads H, kv_heads Hkv and size D are the model's.

    rank: d', rows of W. per_head: W of every query head, as published, or one per KV head.
    bits: of the sketch, mean per component of a head. components: most that a sketch keeps.
    """

    layers: int
    heads: int
    kv_heads: int
    size: int
    rank: int = 32
    per_head: bool = False
    bits: float = 1.5
    components: int = 24

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads


class SpanForm(nn.Module):
    """W [L, Hkv, G or 1, d', D], tau [L, Hkv, G] and the gates, one network for all layers.

    W is learnt at the size of an orthonormal matrix and carries its real size as a constant, so
    that one learning rate suits all heads.
    """

    size: Tensor

    def __init__(self, shape: Shape):
        super().__init__()
        rank, group = min(shape.rank, shape.size), shape.group if shape.per_head else 1
        lead = (shape.layers, shape.kv_heads)
        self.w = nn.Parameter(torch.zeros(*lead, group, rank, shape.size))
        self.tau = nn.Parameter(torch.full((*lead, shape.group), THRESHOLD))
        self.register_buffer("size", torch.ones(*lead, 1, 1, 1))
        self.gates = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(s)) for name, s in gate_shapes(shape.size).items()}
        )

    @torch.no_grad()
    def begin(self, seen: Seen, generator: torch.Generator) -> None:
        """Start near the mean-key router; gates start open.

        The keys' leading directions, their mean among them, make |W k| nearly the same for all
        spans, so that dividing by it leaves q . k; the size makes up for it, up to where scores
        would be so large that the sigmoid passes no gradient.
        """
        rank, size = self.w.shape[-2:]
        for layer, moments in enumerate(seen.moments()):
            strength, directions = (part.flip(-1) for part in torch.linalg.eigh(moments.keys))
            self.w[layer] = directions[..., :rank].mT[:, None].to(self.w)
            length = strength[..., :rank].sum(-1).sqrt() * math.sqrt(rank / size)
            spread = (moments.queries * moments.keys).sum((1, 2)).div(size).sqrt()
            length = length * (USUAL_SCORE / spread.clamp_min(1e-12)).clamp_max(1.0)
            self.size[layer] = length[:, None, None, None].to(self.w)
        for name, parameter in self.gates.items():
            if name.endswith("_w"):
                bound = 1 / math.sqrt(parameter.shape[1])
                drawn = torch.rand(parameter.shape, generator=generator)
                parameter.copy_((2 * drawn - 1) * bound)
        self.gates["gate_2_b"].fill_(2.0)

    def side(self, layer: int) -> Side:
        """The layer's tensors as `policies.zoom.SpanZoom` is given them."""
        return {"zoom_w": self.w[layer] * self.size[layer], "zoom_tau": self.tau[layer]}


class SketchForm(nn.Module):
    """Projections of keys and of queries [L, Hkv, R, D] with the bits of every component.

    Rows are learnt at length one and carry their real length as a constant, so that one learning
    rate suits all heads.
    """

    bits: Tensor
    key_size: Tensor
    query_size: Tensor

    def __init__(self, shape: Shape):
        super().__init__()
        count = min(shape.components, shape.size) // 8 * 8 or 8
        lead = (shape.layers, shape.kv_heads, count)
        self.mean_bits = shape.bits
        self.key = nn.Parameter(torch.zeros(*lead, shape.size))
        self.query = nn.Parameter(torch.zeros(*lead, shape.size))
        self.register_buffer("bits", torch.zeros(lead, dtype=torch.uint8))
        self.register_buffer("key_size", torch.ones(*lead, 1))
        self.register_buffer("query_size", torch.ones(*lead, 1))

    @torch.no_grad()
    def begin(self, seen: Seen, generator: torch.Generator) -> None:
        """Start from the best product of that rank: SVD of the two covariances' roots.

        Among all q . M k of rank R it has the least squared error over the queries and keys seen.
        """
        count, size = self.key.shape[-2:]
        for layer, moments in enumerate(seen.moments()):
            root_q, inverse_q = _roots(moments.queries)
            root_k, inverse_k = _roots(moments.centred)
            u, s, vh = torch.linalg.svd(torch.bmm(root_q, root_k))
            key = torch.bmm(vh[:, :count], inverse_k)
            query = torch.bmm((u[..., :count] * s[:, None, :count]).mT, inverse_q)
            for name, rows in (("key", key), ("query", query)):
                length = rows.norm(dim=-1, keepdim=True).clamp_min(1e-12)
                getattr(self, name)[layer] = (rows / length).to(self.key)
                getattr(self, f"{name}_size")[layer] = length.to(self.key)
            budget = self.mean_bits * size / count
            for head, sizes in enumerate(s[:, :count]):
                self.bits[layer, head] = ops.allocate_bits(sizes.square(), min(8.0, budget))

    def side(self, layer: int) -> Side:
        """The layer's tensors as `policies.zoom.LearnedSketch` is given them."""
        return {
            "zoom_key": self.key[layer] * self.key_size[layer],
            "zoom_query": self.query[layer] * self.query_size[layer],
            "zoom_bits": self.bits[layer],
        }


@dataclass(frozen=True)
class Moments:
    """Second moments of a layer's queries, keys and centred keys: float64 [Hkv, D, D]."""

    queries: Tensor
    keys: Tensor
    centred: Tensor


class Seen:
    """Gathers moments, layer by layer, over documents."""

    def __init__(self) -> None:
        self._parts: dict[int, list[Moments]] = {}

    def add(self, layer: int, q: Tensor, k: Tensor) -> None:
        """q: [Hkv, R, D].  k: [Hkv, n, D]."""
        centred = k - k.mean(1, keepdim=True)
        made = [torch.bmm(x.double().mT, x.double()) / x.shape[1] for x in (q, k, centred)]
        self._parts.setdefault(layer, []).append(Moments(*(m.cpu() for m in made)))

    def moments(self) -> list[Moments]:
        """Per layer, the mean over documents."""
        return [
            Moments(
                *(
                    torch.stack([getattr(part, name) for part in self._parts[layer]]).mean(0)
                    for name in ("queries", "keys", "centred")
                )
            )
            for layer in sorted(self._parts)
        ]


def _roots(cov: Tensor) -> tuple[Tensor, Tensor]:
    """The square root of covariances and its inverse; directions hardly seen are not blown up."""
    values, vectors = torch.linalg.eigh(cov)
    values = values.clamp_min(0) + 1e-4 * values.mean(-1, keepdim=True).clamp_min(1e-12)
    root = values.sqrt()[:, None]
    return torch.bmm(vectors * root, vectors.mT), torch.bmm(vectors / root, vectors.mT)


def trained_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
