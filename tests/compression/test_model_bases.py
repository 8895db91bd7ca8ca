"""The model's own bases in place of a document's: when, in which order, and what is counted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from engine.compression import encode
from engine.compression.basis import covariance_basis
from engine.compression.codecs.base import Side
from engine.compression.codecs.layer_basis import (
    OWN,
    LentBases,
    borrow,
    document_bytes,
    of_document,
    pack_basis,
)
from engine.compression.codecs.shared_basis import SharedBasis
from engine.compression.methods import METHODS
from engine.compression.ranges import gather_ranges
from engine.compression.routers.sketch import Sketch
from engine.compression.scores import span_logsumexp
from engine.compression.spans import COMPRESSED, Spans
from engine.compression.statistics import LayerStatistics
from engine.errors import StoreError

SIZE, HEADS, TOKENS = 32, 2, 240
RECIPE = replace(
    METHODS["sekv"], codec=SharedBasis(3.0, model="x"), router=Sketch(1.0), sinks=0, local=0
)


def rows(seed: int, tokens: int = TOKENS) -> tuple[Tensor, Tensor]:
    """Keys and values of a head that lie along few of the same directions in every document."""
    made = torch.Generator().manual_seed(seed)
    turn, _ = torch.linalg.qr(
        torch.randn(HEADS, SIZE, SIZE, generator=torch.Generator().manual_seed(9))
    )
    size = 0.8 ** torch.arange(SIZE)
    k, v = (torch.randn(HEADS, tokens, SIZE, generator=made) * size @ turn.mT for _ in range(2))
    return k, v


def model_bases(seed: int = 100) -> Side:
    """What another, longer text gives."""
    made: Side = {}
    for name, x in zip("kv", rows(seed, 4000), strict=True):
        packed = pack_basis(name, *covariance_basis(x)[:2])
        made |= {f"{OWN}{name}_{part}": packed[f"{name}_{part}"] for part in ("basis", "scale")}
    return made


def lent_to(k: Tensor, v: Tensor, bases: Side) -> LayerStatistics:
    return LayerStatistics.of(k, v, lent=LentBases.of(bases))


def statistics_of(given: encode.Given) -> LayerStatistics:
    assert given.statistics is not None
    return given.statistics


def test_rows_come_back_from_the_models_bases_as_from_their_own() -> None:
    k, v = rows(1)
    codec, bounds = SharedBasis(6.0, model="x"), torch.arange(0, TOKENS + 1, 8)
    errors = []
    for given in (lent_to(k, v, model_bases()), None):
        side = codec.fit(k, v, given)
        records = codec.encode(k, v, bounds, side)
        lengths = bounds.diff()
        one = torch.arange(0, len(lengths))
        sizes = records.offsets.diff()[one * HEADS]
        at = gather_ranges(records.offsets[:-1][one * HEADS], sizes)
        offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        back, _ = codec.decode(0, records.payload[at], offsets, lengths, side)
        errors.append(float((back - k[0]).norm() / k[0].norm()))
    assert errors[0] < 0.05
    assert errors[0] < 1.5 * errors[1]


def test_a_document_keeps_the_order_of_the_columns_and_not_these() -> None:
    k, v = rows(2)
    codec, own = SharedBasis(3.0, model="x"), model_bases()
    side, plain = codec.fit(k, v, lent_to(k, v, own)), codec.fit(k, v)
    stored = of_document(side)
    assert not {"k_basis", "v_basis"} & side.keys()
    assert document_bytes(side) == document_bytes(stored) < 0.5 * document_bytes(plain)
    again = borrow(stored, own)
    assert again.keys() == side.keys()
    assert all(torch.equal(again[name], side[name]) for name in side)
    variance = lent_to(k, v, own).keys.variance
    assert bool((variance.diff(dim=-1) <= 0).all())
    assert borrow(plain, {}) is plain


@pytest.mark.parametrize("order", [[0] * SIZE, list(range(1, SIZE + 1)), [0]])
def test_what_is_no_order_of_columns_is_refused(order: list[int]) -> None:
    own = model_bases()
    side = of_document(SharedBasis(3.0, model="x").fit(*rows(2), lent_to(*rows(2), own)))
    side["k_order"] = torch.tensor([order] * HEADS, dtype=torch.int16)
    with pytest.raises(StoreError, match="no order of a basis' columns"):
        borrow(side, own)


def test_short_documents_borrow_and_long_ones_do_not() -> None:
    """Their own bases fit a little better and cost the same at any length."""
    layers = [rows(3), rows(4)]
    trained = [model_bases(), model_bases()]

    def borrows(tokens: int, bases: list[Side]) -> bool:
        given = encode.prepare(RECIPE, layers, [], bases, tokens)
        lent = [f"{OWN}k_basis" in statistics_of(each).keys.stored for each in given]
        assert len(set(lent)) == 1
        return lent[0]

    assert borrows(TOKENS, trained)
    assert not borrows(10**7, trained)
    assert not borrows(TOKENS, [])
    crooked = [pack_basis("k", *covariance_basis(rows(5)[1].flip(-1))[:2]) for _ in layers]
    other = [
        {f"{OWN}{n}_{part}": c[f"k_{part}"] for n in "kv" for part in ("basis", "scale")}
        for c in crooked
    ]
    assert not borrows(20 * TOKENS, other)


def test_sketch_and_summaries_use_the_same_bases() -> None:
    """A layer folds whole, and its sketch finds what a sketch in the document's bases does."""
    k, v = rows(6)
    spans = Spans(torch.arange(0, TOKENS + 1, 8), torch.full((TOKENS // 8,), COMPRESSED).byte())
    q = torch.randn(HEADS, 4, SIZE, generator=torch.Generator().manual_seed(7))
    true = span_logsumexp(torch.bmm(q, k.mT) / SIZE**0.5, spans.bounds)
    errors = []
    for trained, tokens in (([model_bases()], 1), ([], 1)):
        [given] = encode.prepare(RECIPE, [(k, v)], [], trained, tokens)
        side = encode.fit(RECIPE, k, v, torch.ones(TOKENS), spans, given)
        folded = encode.compress_layer(RECIPE, k, v, torch.ones(TOKENS), spans, side)
        found = RECIPE.router.logmass(q, folded.device, side, spans.bounds)
        errors.append(float((found - true).abs().mean()))
    assert errors[0] < 1.3 * errors[1]
