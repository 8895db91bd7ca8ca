"""Spans first: nothing is lost that a bound can hold, and what is not refined is said honestly."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.compression.params import LayerParams
from engine.compression.routers import two_level
from engine.compression.routers.sketch import Sketch, projected_queries
from engine.compression.routers.two_level import Levels, expected_bytes, span_level
from engine.compression.scores import group_queries
from engine.compression.span_tables import SpanTables
from tiny_memory import EXACT, NO_LIMIT, fixed_spans, layers, rows
from tiny_sketches import SIZE, evenly, queries, sketched

HEADS = 2
ROUTER = Sketch(2.0)


def uneven(seed: int, spans: int) -> torch.Tensor:
    made = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 14, (spans,), generator=made)
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


def with_balls(k: torch.Tensor, bounds: torch.Tensor) -> tuple[SpanTables, LayerParams]:
    tables, params = sketched(ROUTER, k, bounds)
    params = two_level.fit(tables, params, bounds)
    return two_level.build(tables, params, bounds), params


@given(st.integers(0, 1000), st.integers(1, 90), st.integers(1, 5))
@settings(max_examples=15)
def test_refining_everything_is_the_one_level_router(seed: int, spans: int, count: int) -> None:
    """To the bit: the same rows meet the same arithmetic."""
    bounds = uneven(seed, spans)
    k, _ = rows(seed, HEADS, int(bounds[-1]), SIZE)
    tables, params = with_balls(k, bounds)
    q = queries(seed, HEADS, count)
    mass, refined = two_level.logmass(Levels(0, 1.0), q, tables, params, bounds)
    assert bool(refined.all())
    assert torch.equal(mass, ROUTER.logmass(q, tables, params, bounds))


@given(st.integers(0, 1000), st.floats(0.1, 6.0), st.sampled_from([0.5, 1.0, 2.0, 4.0]))
@settings(max_examples=25)
def test_no_span_outweighs_its_bound(seed: int, strength: float, bits: float) -> None:
    """Of the sketch, whatever the keys, the queries and the bits; the estimate neither."""
    bounds = uneven(seed, 60)
    k, _ = rows(seed, HEADS, int(bounds[-1]), SIZE)
    k[:, ::17] *= strength
    router = Sketch(bits)
    tables, params = sketched(router, k, bounds)
    params = two_level.fit(tables, params, bounds)
    tables = two_level.build(tables, params, bounds)
    q = queries(seed, HEADS, 4)
    moved, shift = projected_queries(q, params)
    estimate, bound = span_level(moved, shift, tables, params, bounds)
    mass = router.logmass(q, tables, params, bounds)
    assert bool((mass <= bound + 1e-3).all())
    assert bool((estimate <= bound).all())


@pytest.mark.parametrize("seed", range(4))
def test_a_needle_is_always_refined(seed: int) -> None:
    """One token in thousands, hidden by the mean of its span, drawn by a query that wants it."""
    made = torch.Generator().manual_seed(seed)
    bounds = evenly(6000, 12)
    k = torch.randn(HEADS, 6000, SIZE, generator=made)
    needle = torch.randn(HEADS, SIZE, generator=made)
    at = int(torch.randint(0, 6000, (1,), generator=made))
    k[:, at] = 12 * needle / needle.norm(dim=-1, keepdim=True)
    tables, params = with_balls(k, bounds)
    q = torch.cat([queries(seed, HEADS, 3), 2 * k[:, at : at + 1]], 1)
    mass, refined = two_level.logmass(Levels(0, 0.05), q, tables, params, bounds)
    assert int(refined.sum()) == HEADS * 25
    assert bool(refined[:, at // 12].all())
    assert mass[:, -1].argmax(-1).tolist() == [at // 12] * HEADS


@given(st.integers(0, 1000), st.sampled_from([0.02, 0.2, 0.5]))
@settings(max_examples=15)
def test_what_its_bound_sets_apart_is_refined(seed: int, share: float) -> None:
    """A span that weighs more, for any row, than all others could at most is never left out."""
    bounds = uneven(seed, 100)
    k, _ = rows(seed, HEADS, int(bounds[-1]), SIZE)
    k[:, int(bounds[-1]) // 2] *= 9
    tables, params = with_balls(k, bounds)
    q = torch.cat([queries(seed, HEADS, 2), k[:, int(bounds[-1]) // 2, None]], 1)[:, -1:]
    moved, shift = projected_queries(q, params)
    _, bound = span_level(moved, shift, tables, params, bounds)
    _, refined = two_level.logmass(Levels(0, share * 4), q, tables, params, bounds)
    mass = ROUTER.logmass(q, tables, params, bounds)
    few = int(-(-share * 4 * 100 // 1)) // two_level.BY_BOUND if share * 4 < 1 else 100
    apart = mass[:, 0] > bound[:, 0].sort(-1, descending=True).values[:, few - 1, None]
    assert bool(refined[apart].all())


def test_spans_that_are_not_refined_keep_what_their_ball_says_less_its_bias() -> None:
    """The bias is a row's own: the mean over what was scored both ways; no bound is passed."""
    bounds = uneven(3, 120)
    k, _ = rows(3, HEADS, int(bounds[-1]), SIZE)
    tables, params = with_balls(k, bounds)
    q = queries(3, HEADS, 5)
    mass, refined = two_level.logmass(Levels(0, 0.25), q, tables, params, bounds)
    assert refined.sum(-1).tolist() == [30, 30]
    estimate, bound = span_level(*projected_queries(q, params), tables, params, bounds)
    exact = ROUTER.logmass(q, tables, params, bounds)
    for head in range(HEADS):
        mine = refined[head]
        torch.testing.assert_close(mass[head][:, mine], exact[head][:, mine])
        bias = (exact - estimate)[head][:, mine].mean(-1, keepdim=True)
        wanted = torch.minimum(estimate[head] + bias, bound[head])
        torch.testing.assert_close(mass[head][:, ~mine], wanted[:, ~mine])


def test_a_ball_of_equal_tokens_is_nearly_exact() -> None:
    """Nothing lies away from the mean but what its rounding moved."""
    bounds = evenly(400, 8)
    k, _ = rows(4, HEADS, 50, SIZE)
    tables, params = with_balls(k.repeat_interleave(8, 1), bounds)
    q = queries(4, HEADS, 5)
    estimate, bound = span_level(*projected_queries(q, params), tables, params, bounds)
    exact = ROUTER.logmass(q, tables, params, bounds)
    alone = float((exact - exact.mean(-1, keepdim=True)).square().mean())
    assert float((estimate - exact).square().mean()) < 0.1 * alone
    assert bool((bound >= exact - 1e-3).all())


def test_bytes_are_known_before_they_are_spent() -> None:
    bounds = uneven(5, 70)
    k, _ = rows(5, HEADS, int(bounds[-1]), SIZE)
    tables, params = sketched(ROUTER, k, bounds)
    more = two_level.fit(tables, params, bounds)
    made = two_level.build(tables, more, bounds)
    spent = more.nbytes - params.nbytes + made.nbytes - tables.nbytes
    assert spent == expected_bytes(params, 70)
    assert expected_bytes(params, 0) == expected_bytes(LayerParams(), 70) == 0


def test_a_memory_says_the_same_below_the_length_and_nearly_so_above() -> None:
    """Refining all of it is the plain memory; refining a part changes little, and zooms first what
    was refined."""
    spans = fixed_spans(600, 6)
    k, v = rows(6, 2, 600, 16)
    recipe = replace(EXACT, router=Sketch(2.0))
    made = torch.Generator().manual_seed(9)
    q, live = 2 * torch.randn(4, 2, 16, generator=made), torch.randn(2, 2, 16, generator=made)
    seen = torch.ones(2, 2, dtype=torch.bool).tril()
    said = {}
    for name, levels in {
        "plain": Levels(601, 0.3),
        "all": Levels(0, 1.0),
        "part": Levels(0, 0.3),
    }.items():
        made_so = replace(recipe, levels=levels)
        [memory] = layers([[(k, v)]], [spans], recipe=made_so, balls=True)
        memory.limits = replace(NO_LIMIT, cap=memory.fixed_bytes + 40_000)
        said[name] = memory.attend(q, live, live, seen)
        assert memory.device_bytes <= memory.limits.cap
        if name == "part":
            _, refined = memory.index.mass(group_queries(q, 2), memory.view)
            assert refined is not None
            for head, ids in enumerate(memory.zoomed.spans):
                where = torch.isin(memory.view.spans, ids)
                assert int(where.sum())
                assert bool(refined[head][where].all())
    assert torch.equal(said["plain"], said["all"])
    assert float((said["part"] - said["plain"]).norm() / said["plain"].norm()) < 0.5
