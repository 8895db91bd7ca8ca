"""What codecs lose at equal bytes: of keys, of values, and of what attention makes of them.

Every codec keeps all folded tokens of a window at a share of their 16-bit bytes, side information
counted; the queries are those of real questions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from engine import fold, ops
from engine.bench.bootstrap import interval
from engine.bench.fidelity.subjects import Asked, Rows, Subject, scores_of
from engine.policies import rows as plain
from engine.policies.codec import NOTHING, Codec, SharedBasis, SpanSVD
from engine.recipe import RECIPES

SHARES = (50.0, 25.0, 12.5, 6.0)
"""Per cent of the 16-bit bytes of the same tokens."""


@dataclass
class Coded:
    """All rows of a window as a codec gives them back. share: its bytes over 16-bit rows."""

    rows: Rows
    share: float


def code(codec: Codec, subject: Subject, *, weighted: bool) -> Coded:
    """Encode and decode a window; the first tokens stay exact, as in a store.

    weighted: keys are weighed by queries and layers share the bits.
    """
    recipe = RECIPES["sekv"]
    sinks = recipe.sinks
    spans = fold.segment(recipe, subject.surprisal, subject.pieces, last=False)
    bounds = spans.bounds[torch.searchsorted(spans.bounds, sinks) :] - sinks
    body = [(k[:, sinks:], v[:, sinks:]) for k, v in subject.rows]
    known = [learnt if weighted else NOTHING for learnt in subject.learnt]
    if weighted:
        spectra = [codec.spectrum(*kv, one) for kv, one in zip(body, known, strict=True)]
        price = torch.tensor([codec.price(torch.cat(spectra))], dtype=torch.float64)
        known = [{**one, "code_price": price} for one in known]
    out, kept, whole = [], 0, 0
    for (k, v), one, exact in zip(body, known, subject.rows, strict=True):
        side = codec.fit(k, v, one)
        records = codec.encode(k, v, bounds, side)
        kept += records.payload.nbytes + sum(t.nbytes for t in side.values())
        whole += 2 * (k.numel() + v.numel())
        back = [_decode(codec, head, records, bounds, len(k), side) for head in range(len(k))]
        out.append(
            tuple(
                torch.cat([true[:, :sinks], torch.stack(rows)], 1)
                for true, rows in zip(exact, zip(*back, strict=True), strict=True)
            )
        )
    return Coded([(k, v) for k, v in out], kept / whole)


def _decode(
    codec: Codec, head: int, records: Any, bounds: Tensor, heads: int, side: Any
) -> tuple[Tensor, Tensor]:
    sizes = records.offsets.diff()[head::heads]
    payload = records.payload[ops.gather_ranges(records.offsets[head:-1:heads], sizes)]
    offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    return codec.decode(head, payload, offsets, bounds.diff(), side)


def _basis(subject: Subject, *, weighted: bool) -> dict[float, Coded]:
    """A shared basis with as many bits as its side information leaves."""
    out = {}
    for share in SHARES:
        asked = share / 100
        beside = code(SharedBasis(bits=16 * asked), subject, weighted=weighted).share - asked
        bits = 16 * (asked - beside)
        if bits >= 0.25:
            out[share] = code(SharedBasis(bits=bits), subject, weighted=weighted)
    return out


def _svd(subject: Subject) -> dict[float, Coded]:
    """Factors of the greatest rank whose bytes fit."""
    out = {}
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

    def __init__(self) -> None:
        self._losses = {(name, share): _Losses() for name in CODECS for share in SHARES}

    @torch.inference_mode()
    def add(self, subject: Subject) -> None:
        if not subject.asked:
            return
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


def _attend(subject: Subject, asked: Asked, layer: int, k: Tensor, v: Tensor) -> Tensor:
    before, values = subject.prefix[layer]
    q = asked.queries[layer]
    parts = [scores_of(q, before), scores_of(q, k), asked.live_scores(layer)]
    out, _ = ops.mix(parts, [values, v, asked.live[layer][1]])
    return out
