"""Routers: how near the estimated mass is to the true one."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.compression import scores
from engine.compression.codecs.raw import Raw
from engine.compression.packing import Packing, split_heads
from engine.compression.params import LayerParams, needed
from engine.compression.ranges import blocks_of_spans, span_ids, span_mean
from engine.compression.routers.base import RoutedRows, Router
from engine.compression.routers.baselines import Box, Representatives, SecondOrder
from engine.compression.routers.sketch import MeanKey, Sketch
from engine.compression.span_tables import SpanTables
from tiny_memory import rows
from tiny_sketches import SIZE, evenly, queries
from tiny_sketches import sketched as built

NOTHING = LayerParams()


def bits_of(params: LayerParams) -> torch.Tensor:
    return needed(params.sketch).bits


def true_mass(q: torch.Tensor, k: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
    scores = (q.double() @ k.double().mT) / math.sqrt(k.shape[-1])
    spans = zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
    return torch.stack([scores[..., a:b].logsumexp(-1) for a, b in spans], -1).float()


def test_a_mean_key_knows_the_mass_of_a_span_that_repeats_one_key() -> None:
    """log n and one score are the log of n equal exponentials."""
    k, _ = rows(1, 2, 10, SIZE)
    k = k.half().float().repeat_interleave(torch.arange(1, 11), 1)
    bounds = torch.tensor([0, *range(1, 11)]).cumsum(0)
    tables, params = built(MeanKey(), k, bounds)
    q = queries(1, 2, 5)
    found = MeanKey().logmass(q, tables, params, bounds)
    torch.testing.assert_close(found, true_mass(q, k, bounds), atol=1e-2, rtol=0)


def test_a_mean_key_is_exact_for_spans_of_one_token() -> None:
    k = rows(2, 2, 30, SIZE)[0].half().float()
    bounds = evenly(30, 1)
    tables, params = built(MeanKey(), k, bounds)
    q = queries(2, 2, 4)
    torch.testing.assert_close(
        MeanKey().logmass(q, tables, params, bounds),
        true_mass(q, k, bounds),
        atol=1e-4,
        rtol=1e-4,
    )


def test_a_sketch_of_all_components_at_eight_bits_knows_the_mass() -> None:
    k, _ = rows(3, 3, 400, SIZE)
    bounds = evenly(400, 8)
    tables, params = built(Sketch(8.0), k, bounds)
    q = queries(3, 3, 6)
    torch.testing.assert_close(
        Sketch(8.0).logmass(q, tables, params, bounds),
        true_mass(q, k, bounds),
        atol=0.05,
        rtol=0,
    )


def test_more_bits_are_nearer_to_the_mass() -> None:
    k, _ = rows(4, 2, 400, SIZE)
    bounds = evenly(400, 8)
    q = queries(4, 2, 8)
    errors = []
    for bits in (0.25, 0.5, 1.0, 2.0, 4.0, 8.0):
        tables, params = built(Sketch(bits), k, bounds)
        found = Sketch(bits).logmass(q, tables, params, bounds)
        errors.append(float((found - true_mass(q, k, bounds)).square().mean()))
    assert errors == sorted(errors, reverse=True)


def needles() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One token per span of 16 that a query of its own asks for, among strong others."""
    made = torch.Generator().manual_seed(5)
    strength = torch.linspace(1.6, 0.3, SIZE)
    k = torch.randn(1, 320, SIZE, generator=made) * strength
    q = []
    for span in range(20):
        direction = torch.randn(SIZE, generator=made)
        direction /= direction.norm()
        k[0, 16 * span + 5] = 8 * direction
        q.append(8 * direction)
    return k, torch.stack(q)[None], evenly(320, 16)


def test_a_sketch_finds_the_token_that_a_mean_hides() -> None:
    k, q, bounds = needles()
    right = torch.arange(20)
    assert torch.equal(true_mass(q, k, bounds)[0].argmax(-1), right)
    hits = {}
    for router in (MeanKey(), Sketch(1.5), Sketch(4.0)):
        tables, params = built(router, k, bounds)
        found = router.logmass(q, tables, params, bounds)[0]
        hits[router] = int((found.argmax(-1) == right).sum())
    assert hits[Sketch(4.0)] == 20
    assert hits[Sketch(1.5)] >= 18
    assert hits[MeanKey()] < 18


def test_shrinking_takes_bytes_and_keeps_the_best_components() -> None:
    """A byte of a row at a time, down to the widest components; the narrowest go first."""
    k, q, bounds = needles()
    router = Sketch(3.0)
    tables, params = built(router, k, bounds)
    sizes, hits = [], []
    while True:
        sizes.append(tables.nbytes)
        found = router.logmass(q, tables, params, bounds)
        assert bool(torch.isfinite(found).all())
        hits.append(int((found[0].argmax(-1) == torch.arange(20)).sum()))
        [packed] = split_heads(needed(tables.sketch), bits_of(params))
        codes = Packing.of(bits_of(params)[0]).unpack(packed)
        assert codes.shape[1] == int((bits_of(params)[0] > 0).sum())
        smaller = router.shrink(tables, params)
        if smaller is None:
            break
        before = bits_of(params)[0]
        tables, params = smaller
        kept = bits_of(params)[0]
        assert torch.equal(kept[kept > 0], before[kept > 0])
        dropped = before[(kept == 0) & (before > 0)]
        assert int(dropped.sum()) == 8
        assert int(dropped.max()) <= int(kept[kept > 0].min())
    assert all(a - b == k.shape[1] for a, b in itertools.pairwise(sizes))
    assert len(sizes) >= 2
    assert bool((bits_of(params)[bits_of(params) > 0] == bits_of(params).max()).all())
    assert hits[0] >= 19
    assert MeanKey().shrink(tables, params) is None


def test_the_head_that_loses_least_shrinks_first() -> None:
    k, _, bounds = needles()
    k = torch.cat([k, 0.1 * k])
    tables, params = built(Sketch(3.0), k, bounds)
    alike = bits_of(params)[:1].expand(2, -1).contiguous()
    params = replace(params, sketch=replace(needed(params.sketch), bits=alike))
    tables = Sketch(3.0).build(k, k, params)
    smaller = Sketch(3.0).shrink(tables, params)
    assert smaller is not None
    assert torch.equal(bits_of(smaller[1])[0], bits_of(params)[0])
    assert int(bits_of(smaller[1])[1].sum()) == int(bits_of(params)[1].sum()) - 8
    gone = (bits_of(smaller[1]) == 0) & (bits_of(params) > 0)
    assert bool((needed(smaller[1].sketch).lost[gone] > needed(params.sketch).lost[gone]).all())


def test_shrinking_leaves_the_original_as_it_was() -> None:
    k, _, bounds = needles()
    tables, params = built(Sketch(3.0), k, bounds)
    sketch, known = needed(tables.sketch), params.tensors()
    before = {name: t.clone() for name, t in known.items()}, sketch.clone()
    assert Sketch(3.0).shrink(tables, params) is not None
    assert all(torch.equal(known[name], tensor) for name, tensor in before[0].items())
    assert torch.equal(sketch, before[1])


def test_a_sketch_brings_its_own_basis_where_the_codec_has_none() -> None:
    k, q, bounds = needles()
    params = Sketch(4.0).fit(k, Raw().fit(k, k))
    tables = Sketch(4.0).build(k, k[:, :20], params)
    found = Sketch(4.0).logmass(q, tables, params, bounds)[0]
    assert torch.equal(found.argmax(-1), torch.arange(20))


@pytest.mark.parametrize("router", [MeanKey(), Sketch(1.25), Sketch(4.0)])
def test_a_router_keeps_about_the_bytes_it_expects(router: Router) -> None:
    k, _ = rows(6, 2, 480, 64)
    tables, _ = built(router, k, evenly(480, 12))
    share = tables.nbytes / (480 * 2 * 64 * 4)
    assert router.device_share(64, 12) == pytest.approx(share, rel=0.2)


@pytest.mark.parametrize("what", ["zeros", "equal rows", "one token"])
def test_keys_without_variance_give_finite_masses(what: str) -> None:
    k, _ = rows(7, 2, 12, SIZE)
    bounds = evenly(12, 4)
    if what == "zeros":
        k = torch.zeros_like(k)
    elif what == "equal rows":
        k = k[:, :1].expand(-1, 12, -1).contiguous()
    else:
        k, bounds = k[:, :1], torch.tensor([0, 1])
    q = queries(7, 2, 3)
    for router in (MeanKey(), Sketch(1.25)):
        tables, params = built(router, k, bounds)
        found = router.logmass(q, tables, params, bounds)
        torch.testing.assert_close(found, true_mass(q, k, bounds), atol=0.05, rtol=0)


# ---------------------------------------------------------------------------- stretches


@given(lengths=st.lists(st.integers(1, 50), max_size=30), tokens=st.integers(1, 120))
def test_stretches_cover_every_span_once(lengths: list[int], tokens: int) -> None:
    """In order, each of at most so many tokens, or of one span that alone is longer."""
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    runs = blocks_of_spans(bounds, tokens)
    assert [first for first, _ in runs] == [0, *(last for _, last in runs)][: len(runs)]
    assert (runs[-1][1] if runs else 0) == len(lengths)
    for first, last in runs:
        assert last > first
        assert int(bounds[last] - bounds[first]) <= tokens or last == first + 1


@pytest.mark.parametrize("tokens", [1, 5, 16, 100])
def test_scores_in_stretches_are_the_scores(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    k, _ = rows(8, 2, 200, SIZE)
    bounds = torch.tensor([0, 3, 4, 30, 95, 96, 150, 200])
    tables, params = built(Sketch(2.0), k, bounds)
    q = queries(8, 2, 3)
    whole = Sketch(2.0).logmass(q, tables, params, bounds)
    stretches = blocks_of_spans
    monkeypatch.setattr(scores, "blocks_of_spans", lambda bounds, _: stretches(bounds, tokens))
    torch.testing.assert_close(
        Sketch(2.0).logmass(q, tables, params, bounds), whole, atol=1e-5, rtol=1e-5
    )


def test_routers_are_told_apart_by_their_fields() -> None:
    assert replace(Sketch(), bits=2.0) == Sketch(2.0) != Sketch()


# ---------------------------------------------------------------------------- baselines


def kept_by(router: Router, k: torch.Tensor, bounds: torch.Tensor) -> SpanTables:
    keys = span_mean(k, torch.ones(k.shape[1]), bounds)
    return router.build(k, keys, NOTHING, RoutedRows(span_ids(bounds)))


@pytest.mark.parametrize("router", [Box(), Representatives(2), SecondOrder(1)], ids=repr)
def test_a_baseline_is_exact_for_spans_of_one_token(router: Router) -> None:
    """Nothing can be lost where a span is one key."""
    k = rows(30, 2, 20, SIZE)[0].half().float()
    bounds, q = evenly(20, 1), queries(30, 2, 4)
    found = router.logmass(q, kept_by(router, k, bounds), NOTHING, bounds)
    torch.testing.assert_close(found, true_mass(q, k, bounds), atol=2e-2, rtol=0)


def test_a_box_is_never_below_the_mass() -> None:
    k, q, bounds = rows(31, 2, 60, SIZE)[0], queries(31, 2, 8), torch.tensor([0, 7, 20, 21, 60])
    found = Box().logmass(q, kept_by(Box(), k, bounds), NOTHING, bounds)
    assert bool((found >= true_mass(q, k, bounds) - 0.05).all())


def test_as_many_representatives_as_tokens_know_the_mass() -> None:
    k = rows(32, 1, 40, SIZE)[0].half().float()
    bounds, q = evenly(40, 4), queries(32, 1, 5)
    router = Representatives(4)
    found = router.logmass(q, kept_by(router, k, bounds), NOTHING, bounds)
    torch.testing.assert_close(found, true_mass(q, k, bounds), atol=2e-2, rtol=0)


def test_the_second_order_is_right_to_second_order() -> None:
    """For a weak query the log-mass is log n, the mean and half the variance."""
    made = torch.Generator().manual_seed(33)
    along = torch.randn(SIZE, generator=made)
    k = (torch.randn(1, 64, 1, generator=made) * along + torch.randn(SIZE, generator=made)).float()
    bounds, q = evenly(64, 16), queries(33, 1, 6) / 16
    true = true_mass(q, k, bounds)
    errors = [
        float((router.logmass(q, kept_by(router, k, bounds), NOTHING, bounds) - true).abs().max())
        for router in (SecondOrder(1), SecondOrder(0))
    ]
    assert errors[0] < errors[1] / 3


def test_a_sketch_gives_what_it_left_out_its_expected_weight() -> None:
    """E exp(s + e) = exp(s + var(e) / 2): without it every mass is too small."""
    k, bounds = rows(34, 1, 4000, SIZE)[0], evenly(4000, 400)
    q = queries(34, 1, 30)
    tables, params = built(Sketch(0.75), k, bounds)
    true = true_mass(q, k, bounds)
    sketch = needed(params.sketch)
    biased = replace(params, sketch=replace(sketch, lost=torch.zeros_like(sketch.lost)))
    honest = (Sketch(0.75).logmass(q, tables, params, bounds) - true).mean()
    short = (Sketch(0.75).logmass(q, tables, biased, bounds) - true).mean()
    assert float(short) < -0.02
    assert abs(float(honest)) < abs(float(short)) / 2
