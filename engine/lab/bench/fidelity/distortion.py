"""What codecs lose at equal bytes: of keys, of values, and of what attention makes of them.

Every codec keeps all compressed tokens of a window at a share of their 16-bit bytes, side
information counted; the queries are those of real questions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from engine.attention.softmax import merge_resolutions
from engine.compression import encode
from engine.compression.codecs import rows as plain
from engine.compression.codecs.base import Codec
from engine.compression.codecs.shared_basis import SharedBasis
from engine.compression.codecs.span_svd import SpanSVD
from engine.compression.methods import METHODS
from engine.compression.params import LayerParams
from engine.compression.quantize import bit_price
from engine.compression.ranges import gather_ranges
from engine.compression.statistics import LayerStatistics
from engine.lab.bench.bootstrap import interval
from engine.lab.bench.fidelity.spaces import BeforeRope, Known, Space, Together
from engine.lab.bench.fidelity.subjects import AskedQuestion, Rows, Subject, scores_of

SHARES = (50.0, 25.0, 12.5, 6.0)
"""Per cent of the 16-bit bytes of the same tokens."""

EXACT = METHODS["sekv"].sinks
"""First tokens of a window that stay exact."""


@dataclass
class Coded:
    """All rows of a window as a codec gives them back. share: its bytes over 16-bit rows."""

    rows: Rows
    share: float


@dataclass(frozen=True)
class _Body:
    """What a codec is given of a window: all rows but the first, which stay exact as in a store.

    layers: per layer k, v and what is known of them. bounds: [S + 1].
    """

    layers: list[tuple[Tensor, Tensor, Known]]
    bounds: Tensor

    @classmethod
    def of(cls, subject: Subject, spaces: Sequence[Space], *, weighted: bool) -> _Body:
        spans = encode.segment(METHODS["sekv"], subject.surprisal, subject.pieces, last=False)
        layers = []
        for (k, v), learnt in zip(subject.rows, subject.learnt, strict=True):
            rows = k[:, EXACT:], v[:, EXACT:], learnt if weighted else None
            for space in spaces:
                rows = space.enter(*rows)
            layers.append(rows)
        bounds = spans.bounds[torch.searchsorted(spans.bounds, EXACT) :] - EXACT
        return cls(layers, bounds)


def code(codec: Codec, subject: Subject, *, weighted: bool, spaces: Sequence[Space] = ()) -> Coded:
    """Encode and decode a window.

    weighted: keys are weighed by queries and layers share the bits. spaces: that the rows enter,
    one after another.
    """
    body = _Body.of(subject, spaces, weighted=weighted)
    return _code(codec, subject, body, spaces, weighted=weighted)


def _code(
    codec: Codec, subject: Subject, body: _Body, spaces: Sequence[Space], *, weighted: bool
) -> Coded:
    statistics = [LayerStatistics.of(*layer) for layer in body.layers]
    if weighted and isinstance(codec, SharedBasis):
        price = bit_price(torch.cat([each.code_cost for each in statistics]), codec.bits)
        statistics = [replace(each, code_price=price) for each in statistics]
    out, kept, whole = [], 0, 0
    for (k, v, _), each, exact in zip(body.layers, statistics, subject.rows, strict=True):
        params = codec.fit(k, v, each)
        records = codec.encode(k, v, body.bounds, params)
        kept += records.payload.nbytes + params.nbytes
        whole += 2 * (k.numel() + v.numel())
        heads = [_decode(codec, h, records, body.bounds, len(k), params) for h in range(len(k))]
        rows = torch.stack([k for k, _ in heads]), torch.stack([v for _, v in heads])
        for space in reversed(spaces):
            rows = space.leave(*rows)
        first, last = (
            torch.cat([true[:, :EXACT], got], 1) for true, got in zip(exact, rows, strict=True)
        )
        out.append((first, last))
    return Coded(out, kept / whole)


def _decode(
    codec: Codec, head: int, records: Any, bounds: Tensor, heads: int, params: LayerParams
) -> tuple[Tensor, Tensor]:
    sizes = records.offsets.diff()[head::heads]
    payload = records.payload[gather_ranges(records.offsets[head:-1:heads], sizes)]
    offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    return codec.decode(head, payload, offsets, bounds.diff(), params)


RESIDUAL = 12.0
"""The bound of the default method; see `SharedBasis`."""


def _basis(
    subject: Subject,
    *,
    weighted: bool,
    turned: bool = True,
    together: bool = False,
    residual: float = 0.0,
) -> dict[float, Coded]:
    """A shared basis with as many bits as its side information, and residuals, leave.

    turned: keys as attention has them, after RoPE. together: one basis for all heads of a layer.
    """
    room = _room(subject, weighted=weighted, turned=turned, together=together, residual=residual)
    if room is None:
        return {}
    found = {share: room.coded(share / 100) for share in SHARES}
    return {share: coded for share, coded in found.items() if coded is not None}


def coded_within(subject: Subject, share: float, *, turned: bool = True) -> Coded | None:
    """A window in the shared bases of the default method, all tokens, in at most so much of the
    bytes of 16-bit rows; None where the bases alone take more, or `turned` cannot be.

    turned: keys are coded as attention has them, after RoPE.
    """
    room = _room(subject, weighted=True, turned=turned, residual=RESIDUAL)
    return None if room is None else room.coded(share)


@dataclass(frozen=True)
class _Room:
    """A window that is to be coded in a shared basis. beside: what that takes of the bytes."""

    subject: Subject
    body: _Body
    spaces: list[Space]
    weighted: bool
    residual: float
    beside: float

    def coded(self, share: float) -> Coded | None:
        """With as many bits as the basis, and residuals, leave of so much of the bytes."""
        bits = 16 * (share - self.beside)
        while bits >= 0.25:
            codec = SharedBasis(bits=bits, residual=self.residual)
            coded = _code(codec, self.subject, self.body, self.spaces, weighted=self.weighted)
            over = coded.share - share
            if not self.residual or over <= 0:
                return coded
            bits -= 16 * over + 0.02
        return None


def _room(
    subject: Subject,
    *,
    weighted: bool,
    turned: bool = True,
    together: bool = False,
    residual: float = 0.0,
) -> _Room | None:
    """See `_basis`; None where keys before RoPE are not known."""
    spaces: list[Space] = []
    if not turned:
        if subject.rotation is None:
            return None
        cos, sin = subject.rotation
        spaces.append(BeforeRope(cos[EXACT:], sin[EXACT:]))
    if together:
        spaces.append(Together(len(subject.rows[0][0])))
    body = _Body.of(subject, spaces, weighted=weighted)
    beside = whole = 0
    for k, v, known in body.layers:
        params = SharedBasis(bits=1.0).fit(k, v, LayerStatistics.of(k, v, known))
        beside += params.nbytes
        whole += 2 * (k.numel() + v.numel())
    return _Room(subject, body, spaces, weighted, residual, beside / whole)


def _svd(subject: Subject) -> dict[float, Coded]:
    """Factors of the greatest rank whose bytes fit."""
    out: dict[float, Coded] = {}
    for rank in (1, 2, 3, 4, 6, 8, 32):
        coded = code(SpanSVD(rank=rank, energy=1.0), subject, weighted=False)
        out |= {share: coded for share in SHARES if coded.share <= share / 100 * 1.05}
    return out


def _rows(subject: Subject) -> dict[float, Coded]:
    """Rows of so many bits; their scales come on top of the share, and are said."""
    bits = {50.0: 8, 25.0: 4, 12.5: 2}
    return {
        share: code(plain.Rows(width), subject, weighted=False) for share, width in bits.items()
    }


CODECS: dict[str, Callable[[Subject], dict[float, Coded]]] = {
    "shared basis, asked": partial(_basis, weighted=True),
    "shared basis, asked, residuals": partial(_basis, weighted=True, residual=RESIDUAL),
    "shared basis, asked, before RoPE": partial(_basis, weighted=True, turned=False),
    "shared basis, asked, heads together": partial(_basis, weighted=True, together=True),
    "shared basis, asked, heads together, before RoPE": partial(
        _basis, weighted=True, turned=False, together=True
    ),
    "shared basis, by variance": partial(_basis, weighted=False),
    "SVD per span": _svd,
    "plain rows": _rows,
}


@dataclass
class _Losses:
    """Relative errors of every document: [layers * Hkv] each."""

    share: list[float] = field(default_factory=list)
    k: list[Tensor] = field(default_factory=list)
    v: list[Tensor] = field(default_factory=list)
    output: list[Tensor] = field(default_factory=list)


class Distortion:
    """Adds up documents; `report` says what came out."""

    unturned: str = ""
    """Why keys before RoPE are not compared, where they are not."""

    def __init__(self) -> None:
        self._losses = {(name, share): _Losses() for name in CODECS for share in SHARES}

    @torch.inference_mode()
    def add(self, subject: Subject) -> None:
        if not subject.asked:
            return
        self.unturned = subject.unturned
        for name, make in CODECS.items():
            for share, coded in make(subject).items():
                losses = self._losses[name, share]
                losses.share.append(coded.share)
                pairs = list(zip(subject.rows, coded.rows, strict=True))
                losses.k.append(torch.cat([_relative(true[0], got[0]) for true, got in pairs]))
                losses.v.append(torch.cat([_relative(true[1], got[1]) for true, got in pairs]))
                losses.output.append(_output_error(subject, coded))

    def report(self) -> dict[str, Any]:
        """Per codec and share: bytes, errors with their intervals over documents."""
        out: dict[str, Any] = {name: {} for name in CODECS}
        for (name, share), losses in self._losses.items():
            if not losses.share:
                continue
            line: dict[str, Any] = {"bytes": sum(losses.share) / len(losses.share)}
            for what in ("k", "v", "output"):
                values = torch.stack(getattr(losses, what))
                line[what] = float(values.mean())
                line[f"{what}_interval"] = interval([[x] for x in values.mean(1).tolist()])
                line[f"{what}_heads"] = [round(x, 4) for x in values.mean(0).tolist()]
            out[name][f"{share:g}"] = line
        return out


def _relative(true: Tensor, got: Tensor) -> Tensor:
    """Error over spread about the mean, [Hkv]."""
    wrong = (got - true).square().sum((1, 2))
    spread = (true - true.mean(1, keepdim=True)).square().sum((1, 2))
    return (wrong / spread.clamp_min(1e-30)).sqrt()


def _output_error(subject: Subject, coded: Coded) -> Tensor:
    """Relative error of the attention output over all rows of all questions, [layers * Hkv]."""
    errors = []
    for layer, (true, got) in enumerate(zip(subject.rows, coded.rows, strict=True)):
        wrong = whole = torch.zeros(len(true[0]))
        for asked in subject.asked:
            exact = _attend(subject, asked, layer, *true)
            wrong = wrong + (_attend(subject, asked, layer, *got) - exact).square().sum((1, 2))
            whole = whole + exact.square().sum((1, 2))
        errors.append((wrong / whole.clamp_min(1e-30)).sqrt())
    return torch.cat(errors)


def _attend(subject: Subject, asked: AskedQuestion, layer: int, k: Tensor, v: Tensor) -> Tensor:
    before, values = subject.prefix[layer]
    q = asked.queries[layer]
    parts = [scores_of(q, before), scores_of(q, k), asked.live_scores(layer)]
    out, _ = merge_resolutions(parts, [values, v, asked.live[layer][1]])
    return out
