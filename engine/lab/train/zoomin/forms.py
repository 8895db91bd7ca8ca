"""The two forms of a trained router as torch modules.

`SpanForm` is the published one (W, tau and the rank gates g_phi) and learns by gradients: how far
it is from what it should be is in `student`. `SketchForm` are bases of keys and values that belong
to the model, and learns in closed form. Each gives, layer by layer, the tensors that a
router takes while a document is compressed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from engine.compression.basis import moment_basis
from engine.compression.params import Basis, ModelBases, ModelBasis, RankGates, ZoomWeights, needed

THRESHOLD = 0.05
"""Where every tau begins, as published."""

USUAL_SCORE = 3.0
"""Root mean square of a span's score at the start, in nats."""


@dataclass(frozen=True)
class Shape:
    """Of a router. layers L, heads H, kv_heads Hkv and size D are the model's.

    rank: d', rows of W. per_head: W of every query head, as published, or one per KV head.
    columns: of each basis that are learnt, 0 for all; the others follow from them.
    """

    layers: int
    heads: int
    kv_heads: int
    size: int
    rank: int = 32
    per_head: bool = False
    columns: int = 0

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
            {name: nn.Parameter(torch.zeros(s)) for name, s in RankGates.shapes(shape.size).items()}
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

    @property
    def trained(self) -> int:
        """How many parameters were trained."""
        return sum(p.numel() for p in self.parameters())

    def zoom(self, layer: int) -> ZoomWeights:
        """The layer's projections and thresholds as `SpanZoom` is given them."""
        return ZoomWeights(self.w[layer] * self.size[layer], self.tau[layer])

    @property
    def rank_gates(self) -> RankGates:
        """The gates as `SpanSVD` is given them."""
        return needed(RankGates.of(dict(self.gates)))


class SketchForm(nn.Module):
    """Bases of keys and of values, in which sketches and codes of any document can be kept.

    Second moments over documents and the questions behind them give the bases of least expected
    error: of keys in the metric of queries, since what shows of a key's error is its score's. No
    step of a gradient finds a better one for what is measured here. keys, values, queries: sums
    [L, Hkv, D, D] of the documents' second moments, rows centred by document; documents: [L].
    """

    keys: Tensor
    values: Tensor
    queries: Tensor
    documents: Tensor

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        self.register_buffer("documents", torch.zeros(shape.layers, dtype=torch.float64))
        size = (shape.layers, shape.kv_heads, shape.size, shape.size)
        for name in ("keys", "values", "queries"):
            self.register_buffer(name, torch.zeros(size, dtype=torch.float64))

    @property
    def trained(self) -> int:
        """How many numbers were learnt."""
        layers, heads, size, _ = self.keys.shape
        return 2 * layers * heads * size * (self.shape.columns or size)

    @torch.no_grad()
    def learn(self, layer: int, moments: Moments) -> None:
        """One more document."""
        for name, new in (
            ("keys", moments.centred),
            ("values", moments.values),
            ("queries", moments.queries),
        ):
            getattr(self, name)[layer] += new.to(self.keys)
        self.documents[layer] += 1

    @property
    def spread(self) -> float:
        """Of everything seen, to notice what is no number."""
        return float((self.keys + self.values + self.queries).square().mean())

    @torch.no_grad()
    def bases(self, layer: int) -> ModelBases:
        """The layer's bases as `fit_axes` is given them."""
        keys, values, queries = (
            (moment[layer] / self.documents[layer]).cpu()
            for moment in (self.keys, self.values, self.queries)
        )
        return ModelBases(self._basis(keys, queries), self._basis(values, None))

    def _basis(self, rows: Tensor, metric: Tensor | None) -> ModelBasis:
        """Of second moments [Hkv, D, D] of rows and of what they are multiplied with."""
        basis, _ = moment_basis(rows, metric)
        if self.shape.columns:
            basis = completed(basis[..., : self.shape.columns])
        packed = Basis.packed(basis[..., 0], basis)
        return ModelBasis(packed.columns, needed(packed.scale))


def completed(columns: Tensor) -> Tensor:
    """Columns [Hkv, D, R] with others behind them that make a basis [Hkv, D, D]: those orthogonal
    to all, one after another as Gram and Schmidt find them, of the mean length."""
    heads, size, count = columns.shape
    unit = torch.eye(size, dtype=columns.dtype).expand(heads, size, size)
    rest, _ = torch.linalg.qr(torch.cat([columns, unit], -1))
    length = columns.norm(dim=1).mean(-1)[:, None, None]
    return torch.cat([columns, length * rest[..., count:size]], -1)


@dataclass(frozen=True)
class Moments:
    """Second moments of a layer's queries and keys, and of centred keys and values: float64
    [Hkv, D, D]."""

    queries: Tensor
    keys: Tensor
    centred: Tensor
    values: Tensor

    @classmethod
    def of(cls, q: Tensor, k: Tensor, v: Tensor) -> Moments:
        """q: [Hkv, R, D].  k, v: [Hkv, n, D]."""
        rows = (q, k, *(x - x.mean(1, keepdim=True) for x in (k, v)))
        return cls(*(torch.bmm(x.double().mT, x.double()).cpu() / x.shape[1] for x in rows))


class Seen:
    """Gathers moments, layer by layer, over documents."""

    def __init__(self) -> None:
        self._parts: dict[int, list[Moments]] = {}

    def add(self, layer: int, moments: Moments) -> None:
        """One document's."""
        self._parts.setdefault(layer, []).append(moments)

    def moments(self) -> list[Moments]:
        """Per layer, the mean over documents."""
        return [
            Moments(
                *(
                    torch.stack([getattr(part, name) for part in self._parts[layer]]).mean(0)
                    for name in ("queries", "keys", "centred", "values")
                )
            )
            for layer in sorted(self._parts)
        ]
