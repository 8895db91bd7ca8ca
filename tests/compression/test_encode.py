"""A window's rows become device tensors and host records, layer by layer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from engine.compression.codecs.span_svd import SpanSVD
from engine.compression.encode import (
    CompressedLayer,
    compress_layer,
    fit,
    pinned_tokens,
    row_dtype,
    segment,
)
from engine.compression.methods import METHODS, Method
from engine.compression.params import LayerCalibration, LayerParams, needed
from engine.compression.span_tables import DeviceLayer
from engine.compression.spans import COMPRESSED, PINNED, Spans
from engine.compression.statistics import Given
from engine.compression.stored_layers import SharedLayer, by_layer
from tiny_memory import EXACT, fixed_spans, rows

TOKENS = 120
GIVEN = Given(calibrated=LayerCalibration(torch.tensor([1, 2]), torch.ones(1)))
QUERIES = torch.randn(4, 8, 16, generator=torch.Generator().manual_seed(5))
"""Calibrated heads and observed queries, for the methods that need them."""


def compressed(
    recipe: Method, seed: int = 1, spans: Spans | None = None
) -> tuple[CompressedLayer, LayerParams]:
    k, v = rows(seed, 2, TOKENS, 16)
    spans = spans or fixed_spans(TOKENS, 8, sinks=4)
    surprisal = torch.ones(TOKENS)
    params = fit(recipe, k, v, surprisal, spans, GIVEN)
    return compress_layer(recipe, k, v, surprisal, spans, params, QUERIES), params


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_s_records_give_the_rows_back(name: str) -> None:
    """Exactly where the method is exact, nearly where it is not."""
    made, params = compressed(replace(METHODS[name], keep=1.0))
    spans = fixed_spans(TOKENS, 8, sinks=4)
    k, v = rows(1, 2, TOKENS, 16)
    for head in range(2):
        records = made.records
        sizes = records.offsets.diff()[head::2]
        payload = torch.cat(
            [
                records.payload[a : a + n]
                for a, n in zip(records.offsets[head:-1:2], sizes, strict=True)
            ]
        )
        offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        codec = METHODS[name].codec
        got = codec.decode(head, payload, offsets, spans.bounds.diff(), params)
        for mine, true in zip(got, (k[head], v[head]), strict=True):
            limit = 0.0 if METHODS[name].whole else 0.25
            assert float((mine - true).norm() / true.norm()) <= limit


def test_exact_rows_are_the_tokens_of_every_span_that_is_not_compressed() -> None:
    k, v = rows(1, 2, TOKENS, 16)
    bounds = torch.tensor([0, 3, 4, 20, 21, 60, 110, 120])
    kind = torch.tensor(
        [PINNED, COMPRESSED, COMPRESSED, 1, COMPRESSED, PINNED, COMPRESSED], dtype=torch.uint8
    )
    kept = [0, 1, 2, 20, *range(60, 110)]
    assert pinned_tokens(bounds, kind).tolist() == kept
    made, _ = compressed(EXACT, spans=Spans(bounds, kind))
    for mine, true in zip(needed(made.device.exact), (k, v), strict=True):
        assert torch.equal(mine, true[:, kept])
    half, _ = compressed(replace(EXACT, half_rows=True), spans=Spans(bounds, kind))
    assert torch.equal(needed(half.device.exact)[0], k[:, kept].half())


@pytest.mark.parametrize(
    ("half", "model", "kept"),
    [
        (True, torch.float32, torch.float16),
        (True, torch.bfloat16, torch.bfloat16),
        (True, torch.float16, torch.float16),
        (False, torch.float32, torch.float32),
        (False, torch.bfloat16, torch.bfloat16),
    ],
)
def test_exact_rows_take_sixteen_bits_unless_the_method_is_exact(
    half: bool, model: torch.dtype, kept: torch.dtype
) -> None:
    assert row_dtype(replace(EXACT, half_rows=half), model) == kept


def test_the_reference_keeps_nothing_but_rows() -> None:
    made, params = compressed(METHODS["full"])
    assert made.device.tensors(()) == {}
    assert set(params.tensors()) == {"rows"}


def test_outlying_first_tokens_do_not_stretch_what_is_fitted() -> None:
    """Attention sinks have norms of their own; they are exact rows and no part of the basis."""
    k, v = rows(2, 2, TOKENS, 16)
    spans = fixed_spans(TOKENS, 8, sinks=4)
    loud = k.clone()
    loud[:, :4] *= 100
    for name in ("sekv", "sekv-paper"):
        recipe = METHODS[name]
        calm = fit(recipe, k, v, torch.ones(TOKENS), spans)
        stretched = fit(recipe, loud, v, torch.ones(TOKENS), spans)
        for name, tensor in calm.tensors().items():
            assert torch.equal(tensor, stretched.tensors()[name])


def test_later_windows_are_compressed_with_what_the_first_one_taught() -> None:
    """The same params, and records that need nothing else."""
    recipe = METHODS["sekv"]
    made, params = compressed(recipe)
    before = {name: tensor.clone() for name, tensor in params.tensors().items()}
    k, v = rows(9, 2, 40, 16)
    spans = fixed_spans(40, 8)
    later = compress_layer(recipe, k, v, torch.ones(40), spans, params)
    assert all(torch.equal(params.tensors()[name], tensor) for name, tensor in before.items())
    names = recipe.router.key_names
    first, second = made.device.tensors(names), later.device.tensors(names)
    assert set(second) == set(first)
    assert all(second[name].shape[2:] == tensor.shape[2:] for name, tensor in first.items())


def test_only_the_last_window_has_a_local_window() -> None:
    recipe = replace(METHODS["sekv"], sinks=4, local=10)
    surprisal = torch.rand(100, generator=torch.Generator().manual_seed(1))
    for last in (False, True):
        spans = segment(recipe, surprisal, ["x"] * 100, last=last)
        kept = pinned_tokens(spans.bounds, (spans.kind == PINNED).to(torch.uint8)).tolist()
        assert kept == [*range(4), *(range(90, 100) if last else ())]


@pytest.mark.parametrize("name", sorted(METHODS))
@pytest.mark.parametrize("tokens", [1, 2, 3, 7])
def test_windows_of_a_few_tokens_are_compressed(name: str, tokens: int) -> None:
    recipe = METHODS[name]
    k, v = rows(3, 2, tokens, 16)
    near = torch.rand(tokens, 16)
    spans = segment(recipe, torch.rand(tokens), ["x"] * tokens, last=True, near=near)
    params = fit(recipe, k, v, torch.ones(tokens), spans, GIVEN)
    queries = QUERIES[:, -tokens:]
    made = compress_layer(recipe, k, v, torch.ones(tokens), spans, params, queries)
    assert len(made.records.offsets) == 2 * len(spans.kind) + 1
    tensors = params.tensors() | made.device.tensors(recipe.router.key_names)
    for tensor in tensors.values():
        assert bool(torch.isfinite(tensor.float()).all())


def test_shared_tensors_are_told_apart_by_layer() -> None:
    one, two, rest = torch.ones(1), torch.ones(2), torch.zeros(3)
    shared = {"0.k_basis": one, "11.k_basis": two, "0.prefix_k": rest, "11.prefix_v": rest}
    layers = by_layer(shared, range(12))
    assert layers[0] == {"k_basis": one, "prefix_k": rest}
    assert layers[11] == {"k_basis": two, "prefix_v": rest}
    assert layers[1:11] == [{}] * 10


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_layer_is_read_as_it_was_stored(name: str) -> None:
    """Parameters and tables, of every method: the names they are stored by lose nothing."""
    made, params = compressed(METHODS[name])
    stored = SharedLayer(params, (torch.ones(2, 1, 16), torch.zeros(2, 1, 16))).tensors()
    again = SharedLayer.of(stored).tensors()
    assert list(again) == list(stored)
    assert all(torch.equal(again[each], stored[each]) for each in stored)
    names = METHODS[name].router.key_names
    tables = made.device.tensors(names)
    read = DeviceLayer.of(tables, names).tensors(names)
    assert read.keys() == tables.keys()
    assert all(torch.equal(read[each], tables[each]) for each in tables)


def test_what_the_exact_settings_keep_is_larger_than_the_rows() -> None:
    """Full rank is for proofs, not for use: the default takes half of 16-bit rows at most."""
    sizes = {}
    for name, recipe in (
        ("exact", replace(EXACT, codec=SpanSVD(exact=True))),
        ("sekv", METHODS["sekv"]),
    ):
        made, _ = compressed(replace(recipe, summariser=METHODS["sekv-paper"].summariser))
        sizes[name] = len(made.records.payload)
    rows_bytes = 2 * 2 * TOKENS * 16 * 2
    assert sizes["sekv"] <= 0.5 * rows_bytes < sizes["exact"]
