"""The model's own bases in place of a document's: when, in which order, and what is counted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from engine.compression import encode
from engine.compression.basis import covariance_basis
from engine.compression.codecs.shared_basis import SharedBasis
from engine.compression.methods import METHODS
from engine.compression.params import (
    Basis,
    LayerParams,
    ModelBases,
    ModelBasis,
    TrainedLayer,
    needed,
)
from engine.compression.ranges import gather_ranges
from engine.compression.routers.sketch import Sketch
from engine.compression.scores import span_logsumexp
from engine.compression.spans import COMPRESSED, Spans
from engine.compression.statistics import LayerStatistics
from engine.compression.stored_layers import with_model_bases
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


def packed(rows: Tensor) -> ModelBasis:
    basis = Basis.packed(*covariance_basis(rows)[:2])
    return ModelBasis(basis.columns, needed(basis.scale))


def model_bases(seed: int = 100) -> ModelBases:
    """What another, longer text gives."""
    k, v = rows(seed, 4000)
    return ModelBases(packed(k), packed(v))


def in_bases_of(model: ModelBases, k: Tensor, v: Tensor) -> LayerStatistics:
    return LayerStatistics.of(k, v, model=model)


def test_rows_come_back_from_the_models_bases_as_from_their_own() -> None:
    k, v = rows(1)
    codec, bounds = SharedBasis(6.0, model="x"), torch.arange(0, TOKENS + 1, 8)
    errors = []
    for given in (in_bases_of(model_bases(), k, v), None):
        params = codec.fit(k, v, given)
        records = codec.encode(k, v, bounds, params)
        lengths = bounds.diff()
        one = torch.arange(0, len(lengths))
        sizes = records.offsets.diff()[one * HEADS]
        at = gather_ranges(records.offsets[:-1][one * HEADS], sizes)
        offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        back, _ = codec.decode(0, records.payload[at], offsets, lengths, params)
        errors.append(float((back - k[0]).norm() / k[0].norm()))
    assert errors[0] < 0.05
    assert errors[0] < 1.5 * errors[1]


def test_a_document_keeps_the_order_of_the_columns_and_not_these() -> None:
    k, v = rows(2)
    codec, model = SharedBasis(3.0, model="x"), model_bases()
    params, plain = codec.fit(k, v, in_bases_of(model, k, v)), codec.fit(k, v)
    stored = params.tensors(with_model=False)
    assert not {"k_basis", "own_k_basis", "v_basis", "own_v_basis"} & stored.keys()
    assert params.nbytes == sum(t.nbytes for t in stored.values()) < 0.5 * plain.nbytes
    again = LayerParams.of(with_model_bases(stored, model)).tensors()
    assert again.keys() == params.tensors().keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in params.tensors().items())
    variance = in_bases_of(model, k, v).keys.variance
    assert bool((variance.diff(dim=-1) <= 0).all())
    own = plain.tensors()
    assert with_model_bases(own, None) is own


@pytest.mark.parametrize("order", [[0] * SIZE, list(range(1, SIZE + 1)), [0]])
def test_what_is_no_order_of_columns_is_refused(order: list[int]) -> None:
    model, (k, v) = model_bases(), rows(2)
    params = SharedBasis(3.0, model="x").fit(k, v, in_bases_of(model, k, v))
    stored = params.tensors(with_model=False)
    stored["k_order"] = torch.tensor([order] * HEADS, dtype=torch.int16)
    with pytest.raises(StoreError, match="no order of a basis' columns"):
        with_model_bases(stored, model)


def test_short_documents_borrow_and_long_ones_do_not() -> None:
    """Their own bases fit a little better and cost the same at any length."""
    layers = [rows(3), rows(4)]
    trained = [TrainedLayer(bases=model_bases()) for _ in layers]

    def borrows(tokens: int, trained: list[TrainedLayer]) -> bool:
        given = encode.prepare(RECIPE, layers, [], trained, tokens)
        [borrowed] = {needed(each.statistics).keys.basis.from_model for each in given}
        return borrowed

    assert borrows(TOKENS, trained)
    assert not borrows(10**7, trained)
    assert not borrows(TOKENS, [])
    crooked = packed(rows(5)[1].flip(-1))
    assert not borrows(20 * TOKENS, [TrainedLayer(bases=ModelBases(crooked, crooked))] * 2)


def test_sketch_and_summaries_use_the_same_bases() -> None:
    """Its sketch finds what a sketch in the document's bases does."""
    k, v = rows(6)
    spans = Spans(torch.arange(0, TOKENS + 1, 8), torch.full((TOKENS // 8,), COMPRESSED).byte())
    q = torch.randn(HEADS, 4, SIZE, generator=torch.Generator().manual_seed(7))
    true = span_logsumexp(torch.bmm(q, k.mT) / SIZE**0.5, spans.bounds)
    errors = []
    for trained, tokens in (([TrainedLayer(bases=model_bases())], 1), ([], 1)):
        [given] = encode.prepare(RECIPE, [(k, v)], [], trained, tokens)
        params = encode.fit(RECIPE, k, v, torch.ones(TOKENS), spans, given)
        made = encode.compress_layer(RECIPE, k, v, torch.ones(TOKENS), spans, params)
        found = RECIPE.router.logmass(q, made.device.tables, params, spans.bounds)
        errors.append(float((found - true).abs().mean()))
    assert errors[0] < 1.3 * errors[1]
