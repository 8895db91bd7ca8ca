"""Thin SVD factors of every span: the published codec of SeKV."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.compression.basis import span_svd
from engine.compression.codecs.base import Records, RowCodec
from engine.compression.codecs.eight_bits import _floats, _scaled, to_eight_bits
from engine.compression.codecs.rank_gates import kept_rank, rank_gates
from engine.compression.layer_basis import LayerAxes
from engine.compression.params import LayerParams, RankGates, RowFormat, needed
from engine.compression.ranges import gather_ranges
from engine.compression.statistics import LayerStatistics
from engine.errors import StoreError


@dataclass(frozen=True)
class SpanSVD(RowCodec):
    """The published codec: a truncated SVD per span and KV head, made never larger than raw.

    The smallest rank, at most `rank`, whose residual is at most 1 - `energy` of the span's
    variance is kept, both factors in 8 bits with one scale per direction. Where plain 8-bit rows
    are not larger, those are kept instead. `exact` keeps every direction in float32.
    Source: SeKV (arXiv 2606.31145), section 3.2 (R_max 32); energy rule and 8-bit factors ours.

    Record: int16 marks of K and of V (the rank, or -1 for rows), then K and V: per direction
    u and w, or per row its values, each as a float16 scale and int8 values (u [n], w and rows [D]).
    Direction-major, so a lower rank is a prefix.
    """

    rank: int = 32
    energy: float = 0.9995
    exact: bool = False

    def fit(self, k: Tensor, v: Tensor, statistics: LayerStatistics | None = None) -> LayerParams:
        return LayerParams(rows=RowFormat(k.shape[-1]))

    def encode(
        self,
        k: Tensor,
        v: Tensor,
        bounds: Tensor,
        params: LayerParams,
        axes: LayerAxes | None = None,
    ) -> Records:
        heads, spans = len(k), len(bounds) - 1
        lengths = bounds.diff()
        groups = []
        sizes = torch.zeros(spans * heads, dtype=torch.int64)
        for length in torch.unique(lengths).tolist():
            which = torch.nonzero(lengths == length)[:, 0]
            index = bounds[which][:, None] + torch.arange(length)
            place = (which[None] * heads + torch.arange(heads)[:, None]).reshape(-1)
            parts = [self._factor(x[:, index].float().flatten(0, 1), params.gates) for x in (k, v)]
            marks = torch.stack([mark for mark, _, _ in parts], -1).to(torch.int16)
            data = torch.cat([marks.view(torch.uint8), *(rows for _, rows, _ in parts)], -1)
            used = torch.cat(
                [torch.ones(len(place), 4, dtype=torch.bool), *(mask for _, _, mask in parts)], -1
            )
            sizes[place] = used.sum(-1)
            groups.append((place, data[used]))
        offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        payload = torch.empty(int(offsets[-1]), dtype=torch.uint8)
        for place, data in groups:
            payload[gather_ranges(offsets[place], sizes[place])] = data
        return Records(payload, offsets)

    def _factor(self, x: Tensor, trained: RankGates | None) -> tuple[Tensor, Tensor, Tensor]:
        """Matrices [B, n, D] of one length -> marks [B], bytes [B, m] and which of them count.

        Trained rank gates weigh the directions and drop the last ones.
        """
        batch, n, size = x.shape
        u, energy, w = span_svd(x)
        directions = min(n, size) if self.exact else min(self.rank, n, size)
        u, w = u[..., :directions].mT, w[:, :directions]
        if self.exact:
            rows = torch.cat([u, w], -1).contiguous().view(torch.uint8).flatten(1)
            return torch.full((batch,), directions), rows, torch.ones_like(rows, dtype=torch.bool)
        spread = (x - x.mean(1, keepdim=True)).square().sum((1, 2))
        residual = energy.sum(-1, keepdim=True) - energy.cumsum(-1)
        rank = ((residual > (1 - self.energy) * spread[:, None]).sum(-1) + 1).clamp_max(directions)
        if trained is not None:
            gates = rank_gates(energy[:, :directions], x.mean(1), trained)
            rank = rank.minimum(kept_rank(gates))
            w = w[:, : gates.shape[1]] * gates[..., None]
            w = F.pad(w, (0, 0, 0, directions - gates.shape[1]))
        root = energy[:, :directions, None].sqrt().clamp_min(1e-12).sqrt()
        factors = torch.cat([to_eight_bits(u * root), to_eight_bits(w / root)], -1)
        plain = to_eight_bits(x).flatten(1)
        small = rank * (n + size + 4) < n * (size + 2)
        width = max(directions * (n + size + 4), plain.shape[1])
        rows = torch.zeros(batch, width, dtype=torch.uint8)
        rows[:, : directions * (n + size + 4)] = factors.flatten(1)
        rows[~small, : plain.shape[1]] = plain[~small]
        used = torch.where(small, rank * (n + size + 4), n * (size + 2))
        return torch.where(small, rank, -1), rows, torch.arange(width) < used[:, None]

    def decode(
        self, head: int, payload: Tensor, offsets: Tensor, lengths: Tensor, params: LayerParams
    ) -> tuple[Tensor, Tensor]:
        size, device = needed(params.rows).size, payload.device
        k, v = (torch.empty(int(lengths.sum()), size, device=device) for _ in range(2))
        starts = offsets[:-1]
        marks = payload[starts[:, None] + torch.arange(4, device=device)]
        ranks = marks.contiguous().view(torch.int16).long()
        self._check(ranks, lengths, offsets.diff(), size)
        places = lengths.cumsum(0) - lengths
        for group in _alike(lengths):
            some = group.to(device)
            at, tokens = starts[some] + 4, lengths[some]
            rows = gather_ranges(places[some], tokens)
            for out, rank in ((k, ranks[some, 0]), (v, ranks[some, 1])):
                out[rows], used = self._restore(payload, at, tokens, rank, size)
                at = at + used
        return k, v

    def fits(self, sizes: Tensor, lengths: Tensor, params: LayerParams) -> bool:
        """Every record has its marks; what must follow them `decode` holds against each."""
        return bool((sizes >= 4).all())

    def _check(self, ranks: Tensor, lengths: Tensor, sizes: Tensor, size: int) -> None:
        """Refuse records whose marks [M, 2] say more or less than their sizes [M] in bytes hold."""
        longer = lengths[:, None]
        factors = 4 * (longer + size) if self.exact else longer + size + 4
        wanted = torch.where(ranks < 0, longer * (size + 2), ranks * factors).sum(-1) + 4
        least = 0 if self.exact else -1
        if bool(((ranks < least) | (ranks > longer.clamp_max(size))).any()) or bool(
            (wanted != sizes).any()
        ):
            raise StoreError("a span's record is not what its marks say: ingest again")

    def _restore(
        self, payload: Tensor, starts: Tensor, lengths: Tensor, rank: Tensor, size: int
    ) -> tuple[Tensor, Tensor]:
        """Rows [sum(lengths), D] of all records, and the bytes [M] each of them took."""
        longest, device = int(lengths.max()), payload.device
        across = torch.arange(longest, device=device)
        valid = across < lengths[:, None]
        out = torch.zeros(len(starts), longest, size, device=device)
        stride = 4 * (lengths + size) if self.exact else lengths + size + 4
        kept = int(rank.clamp_min(0).max())
        if kept:
            at = starts[:, None] + torch.arange(kept, device=device) * stride[:, None]
            live = torch.arange(kept, device=device) < rank[:, None]
            take = _floats if self.exact else _scaled
            u_bytes = 4 * lengths if self.exact else lengths + 2
            u = take(payload, at, lengths, longest, live)
            w = take(payload, at + u_bytes[:, None], torch.full_like(lengths, size), size, live)
            out = torch.bmm(u.mT, w)
        plain = rank < 0
        if bool(plain.any()):
            at = starts[plain][:, None] + across * (size + 2)
            widths = torch.full_like(lengths[plain], size)
            out[plain] = _scaled(payload, at, widths, size, valid[plain])
        used = torch.where(plain, lengths * (size + 2), rank * stride)
        return out[valid], used

    @staticmethod
    def ranks(payload: Tensor, offsets: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Directions kept of K and of V by each record, int64 [records]; D for 8-bit rows."""
        marks = payload[offsets[:-1][:, None] + torch.arange(4)].contiguous().view(torch.int16)
        rank = torch.where(marks < 0, size, marks).long()
        return rank[:, 0], rank[:, 1]

    def host_share(self, size: int, span: float) -> float:
        rank = min(self.rank, span)
        return min(rank * (span + size + 4), span * (size + 2)) / (2 * span * size)


def _alike(lengths: Tensor, most: int = 1 << 14) -> Iterator[Tensor]:
    """Indices of spans in groups of like length: padding at most doubles the rows of a group, and
    a group of several spans has at most `most` padded rows."""
    order = lengths.argsort(stable=True).cpu()
    rising = lengths.cpu()[order].tolist()
    first = 0
    while first < len(rising):
        like = bisect_right(rising, 2 * rising[first], first)
        last = min(like, first + max(1, most // rising[like - 1]))
        yield order[first:last]
        first = last
