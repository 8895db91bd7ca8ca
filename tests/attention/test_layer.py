"""Three resolutions, one softmax, and bytes that never exceed what was allowed."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.attention.host_records import Traffic
from engine.attention.index import SpanIndex
from engine.attention.layer import LayerMemory
from engine.attention.shared import Shared
from engine.attention.shares import Limits, allot
from engine.attention.view import View, no_spans
from engine.compression.codecs.raw import Raw
from engine.compression.codecs.span_svd import SpanSVD
from engine.compression.methods import Method
from engine.compression.params import LayerParams, needed
from engine.compression.ranges import gather_ranges
from engine.compression.routers.base import Router
from engine.compression.routers.sketch import MeanKey, Sketch
from engine.compression.selectors import ByShare, RoutingInput, Transcript
from engine.compression.span_tables import SpanTables
from engine.compression.spans import Spans
from engine.compression.summaries import Mean, SurprisalMean
from engine.memory.open import whole_rows
from tiny_memory import EXACT, NO_LIMIT, StepRecorder, fixed_spans, layer, layers, plain, rows

HEADS, KV_HEADS, SIZE, TOKENS = 4, 2, 16, 60
ROUTERS: dict[str, Router] = {"sketch": Sketch(1.25), "mean": MeanKey()}
CODECS = {"basis": EXACT.codec, "svd": SpanSVD(exact=True), "raw": Raw()}


def asked(
    seed: int, queries: int = 3, live: int = 5, heads: int = HEADS, kv_heads: int = KV_HEADS
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A question: q, live k and v, and which live rows a query sees (causal)."""
    made = torch.Generator().manual_seed(1000 + seed)
    q = 2 * torch.randn(heads, queries, SIZE, generator=made)
    k, v = (torch.randn(kv_heads, live, SIZE, generator=made) for _ in range(2))
    return q, k, v, torch.ones(queries, live, dtype=torch.bool).tril(live - queries)


def truth(
    k: torch.Tensor, v: torch.Tensor, question: tuple[torch.Tensor, ...], hidden: Any = ()
) -> torch.Tensor:
    """Plain attention of the question over document and live rows, some tokens hidden."""
    q, live_k, live_v, live_seen = question
    seen = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool)
    seen[:, list(hidden)] = False
    both = torch.cat([seen, live_seen], 1)
    return plain(q, torch.cat([k, live_k], 1), torch.cat([v, live_v], 1), both).float()


@pytest.mark.parametrize("router", sorted(ROUTERS))
@pytest.mark.parametrize("codec", sorted(CODECS))
def test_everything_zoomed_is_plain_attention(codec: str, router: str) -> None:
    """Whatever routes and codes: with every span at full rank nothing is lost."""
    k, v = rows(1, KV_HEADS, TOKENS, SIZE)
    recipe = replace(
        EXACT, codec=CODECS[codec], router=ROUTERS[router], summariser=SurprisalMean(16)
    )
    memory = layer(k, v, fixed_spans(TOKENS, 7), recipe=recipe)
    question = asked(1)
    torch.testing.assert_close(
        memory.attend(*question), truth(k, v, question), atol=1e-5, rtol=1e-5
    )


@settings(max_examples=25)
@given(
    seed=st.integers(0, 99),
    tokens=st.integers(1, 40),
    length=st.integers(1, 12),
    queries=st.integers(1, 4),
    live=st.integers(4, 7),
    heads=st.sampled_from([(4, 1), (4, 2), (3, 3), (2, 2)]),
)
def test_any_shape_is_plain_attention(
    seed: int, tokens: int, length: int, queries: int, live: int, heads: tuple[int, int]
) -> None:
    k, v = rows(seed, heads[1], tokens, SIZE)
    memory = layer(k, v, fixed_spans(tokens, length))
    question = asked(seed, queries, live, *heads)
    if not len(memory.view.spans):
        return  # all pinned: `memory.open` makes such a layer whole
    torch.testing.assert_close(
        memory.attend(*question), truth(k, v, question), atol=2e-5, rtol=2e-5
    )


def repeating(length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values that are the same within every span, and exact in half precision."""
    made = torch.Generator().manual_seed(3)
    first = torch.zeros(1, dtype=torch.int64)
    owner = torch.cat([first, 1 + torch.arange(TOKENS - 1) // length])
    k, v = (
        torch.randint(-8, 9, (KV_HEADS, int(owner.max()) + 1, SIZE), generator=made) / 4
        for _ in range(2)
    )
    return k[:, owner], v[:, owner]


def test_summaries_alone_are_exact_where_spans_repeat_one_row() -> None:
    """One row biased by log(n) weighs as much as the n tokens it replaces."""
    k, v = repeating(6)
    spans = fixed_spans(1, 1)
    bounds = torch.cat([torch.tensor([0]), torch.arange(1, TOKENS, 6), torch.tensor([TOKENS])])
    kind = torch.zeros(len(bounds) - 1, dtype=torch.uint8)
    kind[0] = 2
    recipe = replace(EXACT, router=MeanKey(), summariser=Mean(16))
    memory = layer(
        k, v, replace(spans, bounds=bounds, kind=kind), recipe=recipe, limits=Limits(0.0, 1.0)
    )
    question = asked(2)
    out = memory.attend(*question)
    assert all(len(ids) == 0 for ids in memory.zoomed.spans)
    torch.testing.assert_close(out, truth(k, v, question), atol=1e-5, rtol=1e-5)


def test_a_zoomed_span_is_not_counted_twice() -> None:
    """Its summary has no weight; pinned, summaries, zoomed and live rows add up to one."""
    k, v = rows(4, KV_HEADS, TOKENS, SIZE)
    memory = layer(k, v, fixed_spans(TOKENS, 6))
    need = memory.fixed_bytes + 3000
    memory.limits = Limits(need, 1.0)
    recorder = StepRecorder()
    memory.shared.watchers.append(recorder)
    q, live_k, live_v, seen = asked(4, queries=1, live=1)
    memory.attend(q, torch.full_like(live_k, -1e4) * q.sum(), live_v, ~seen)
    (step,) = recorder.steps
    assert 0 < int(step.zoomed[0].sum()) < len(step.spans)
    for head in range(KV_HEADS):
        zoomed = step.zoomed[head]
        assert torch.equal(step.summary[head] == 0, zoomed.expand(2, -1))
        total = step.summary[head].sum(-1) + step.weight[head].sum(-1)
        torch.testing.assert_close(total, torch.ones(2))
        tokens = step.tokens[head]
        wanted = gather_ranges(step.starts[zoomed], step.lengths[zoomed])
        assert sorted(tokens[tokens >= 0].tolist()) == sorted([*wanted.tolist(), 0])


def test_hidden_live_rows_are_not_seen() -> None:
    k, v = rows(5, KV_HEADS, TOKENS, SIZE)
    q, live_k, live_v, seen = asked(5)
    memory = layer(k, v, fixed_spans(TOKENS, 6))
    loud = live_k.clone()
    loud[:, -1] = 100.0
    out = memory.attend(q, live_k, live_v, seen)
    changed = memory.attend(q, loud, live_v, seen)
    assert torch.equal(out[:, :-1], changed[:, :-1])
    assert not torch.equal(out[:, -1], changed[:, -1])


@settings(max_examples=30)
@given(
    seed=st.integers(0, 99),
    room=st.lists(st.floats(-1e4, 2e4), min_size=3, max_size=3),
    coverage=st.sampled_from([0.3, 0.9, 1.0]),
    steps=st.integers(1, 3),
)
def test_bytes_never_exceed_the_caps(
    seed: int, room: list[float], coverage: float, steps: int
) -> None:
    """All layers together stay under the sum of their caps, except for what is fixed."""
    parts = [[rows(seed + i, KV_HEADS, TOKENS, SIZE)] for i in range(3)]
    made = layers(parts, [fixed_spans(TOKENS, 5)])
    shared = made[0].shared
    for memory, extra in zip(made, room, strict=True):
        memory.limits = Limits(memory.fixed_bytes + extra, coverage)
    fixed = sum(memory.device_bytes for memory in made)
    cap = sum(memory.limits.cap for memory in made)
    for step in range(steps):
        for memory in made:
            memory.attend(*asked(seed + step))
            assert shared.device_bytes <= max(cap, fixed)
    assert shared.peak_bytes <= max(cap, fixed)
    for memory in made:
        memory.release()
        assert memory.zoomed.holds_all or memory.device_bytes == memory.fixed_bytes
    assert fixed <= shared.device_bytes <= max(cap, fixed)


def test_what_a_layer_cannot_use_another_may() -> None:
    """And nothing else: a layer that holds less than it may today keeps its share for tomorrow."""
    parts = [[rows(i, KV_HEADS, TOKENS, SIZE)] for i in range(2)]
    one, other = layers(parts, [fixed_spans(TOKENS, 5)])
    all_of_it = one.most_bytes - one.fixed_bytes
    one.limits = Limits(one.fixed_bytes + 1.25 * all_of_it, 1.0)
    other.limits = Limits(other.fixed_bytes + 0.5 * all_of_it, 1.0)
    assert one.slot_bytes == pytest.approx(all_of_it)
    assert other.slot_bytes == pytest.approx(0.75 * all_of_it)
    one.limits = replace(one.limits, coverage=0.05)
    one.attend(*asked(0))
    assert int(one.zoomed.held.sum()) < one.zoomed.held.numel()
    assert other.slot_bytes == pytest.approx(0.75 * all_of_it)
    other.attend(*asked(0))
    assert other.device_bytes > other.limits.cap


def test_the_last_byte_may_be_used_and_not_one_more() -> None:
    k, v = rows(10, KV_HEADS, TOKENS, SIZE)
    memory = layer(k, v, fixed_spans(TOKENS, 6))
    empty = memory.device_bytes
    memory.attend(*asked(10))
    everything = memory.device_bytes
    assert everything > empty
    memory.release()
    memory.limits = Limits(everything, 1.0)
    memory.attend(*asked(10))
    assert memory.device_bytes == everything
    memory.release()
    memory.limits = Limits(everything - 1, 1.0)
    memory.attend(*asked(10))
    assert empty < memory.device_bytes < everything


def test_where_everything_fits_nothing_is_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither routing nor summaries are worked out; nothing changes but the rounding of sums."""
    k, v = rows(11, KV_HEADS, TOKENS, SIZE)
    memory = layer(k, v, fixed_spans(TOKENS, 6))
    out = memory.attend(*asked(11))
    everything = memory.device_bytes
    memory.release()
    memory.limits = Limits(everything, 1.0)
    memory.shared.estimates = False
    routed: list[int] = []
    mass = SpanIndex.mass

    def counted(index: SpanIndex, *args: Any) -> Any:
        routed.append(1)
        return mass(index, *args)

    monkeypatch.setattr(SpanIndex, "mass", counted)
    torch.testing.assert_close(memory.attend(*asked(11)), out, atol=1e-6, rtol=1e-6)
    assert memory.device_bytes == everything
    assert not routed
    for limits in (Limits(everything - 1, 1.0), Limits(everything, 0.99)):
        memory.release()
        memory.limits = limits
        memory.attend(*asked(11))
        assert routed
        routed.clear()


def test_release_gives_back_what_a_question_chose() -> None:
    k, v = rows(6, KV_HEADS, TOKENS, SIZE)
    memory = layer(k, v, fixed_spans(TOKENS, 6), limits=Limits(6000.0, 1.0))
    before = memory.device_bytes
    memory.attend(*asked(6))
    assert memory.device_bytes > before
    memory.release()
    assert memory.device_bytes == before


def test_what_every_question_brings_stays_for_the_next() -> None:
    """Where all spans fit none is fetched twice, unless another view was looked at."""
    k, v = rows(6, KV_HEADS, TOKENS, SIZE)
    memory = layer(k, v, fixed_spans(TOKENS, 6))
    first = memory.attend(*asked(6))
    memory.release()
    memory.zoomed.traffic = Traffic()
    assert torch.equal(memory.attend(*asked(6)), first)
    assert memory.zoomed.traffic.fetched_spans == 0


def test_questions_leave_no_trace_in_the_memory() -> None:
    """After release a question sees what it would have seen alone."""
    k, v = rows(7, KV_HEADS, TOKENS, SIZE)
    limits = Limits(6000.0, 0.8)
    alone = layer(k, v, fixed_spans(TOKENS, 6), limits=limits).attend(*asked(8))
    memory = layer(k, v, fixed_spans(TOKENS, 6), limits=limits)
    memory.attend(*asked(7))
    memory.release()
    assert torch.equal(memory.attend(*asked(8)), alone)


def test_a_span_in_use_is_kept_for_a_while() -> None:
    """What the last step wanted is not dropped at once; without a rule for that it is."""
    k, v = rows(9, KV_HEADS, TOKENS, SIZE)
    kept = {}
    for keeps, rule in ((False, ByShare(1.0, 0.0)), (True, ByShare())):
        memory = layer(k, v, fixed_spans(TOKENS, 4), recipe=replace(EXACT, selector=rule))
        memory.limits = Limits(memory.fixed_bytes + 2500, 1.0)
        fetched = []
        for step in range(6):
            memory.attend(*asked(20 + step, queries=1))
            fetched.append(memory.zoomed.traffic.fetched_spans)
        kept[keeps] = fetched[-1]
    assert kept[True] < kept[False]


@dataclass
class AskedToFit:
    """Room for two spans a head, and how often it was asked what fits."""

    asked: int = 0

    def __call__(self, scores: torch.Tensor, uncovered: float = 0.0) -> torch.Tensor:
        self.asked += 1
        return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, scores.topk(2).indices, True)


def chosen_after(shares: list[list[float]]) -> tuple[list[list[int]], int]:
    """The spans that each head has after it had 0 and 1, by shares [Hkv, F], and how often it was
    asked what fits."""
    share, fit = torch.tensor(shares), AskedToFit()
    held = torch.zeros_like(share, dtype=torch.bool)
    held[:, :2] = True
    none = torch.empty(0)
    routing = RoutingInput(none, 1, share, held, none, Transcript(), 0.0, lambda q: none, fit)
    wanted = ByShare().begin().choose(routing)
    return [row.nonzero()[:, 0].tolist() for row in wanted], fit.asked


def test_only_heads_that_gain_exchange_spans_and_only_for_spans_that_matter(
    subtests: pytest.Subtests,
) -> None:
    cases = [
        ("one head gains", [[0.3, 0.0, 0.1, 0.0], [0.3, 0.1, 0.05, 0.0]], [[0, 2], [0, 1]], 1),
        ("nothing to gain, nothing is ranked", [[0.3, 0.1, 0.02, 0.0]], [[0, 1]], 0),
        ("all that is missing is in crumbs", [[0.3, 0.0, *[0.0015] * 30]], [[0, 1]], 1),
        ("in use counts four times", [[0.3, 0.02, 0.07, 0.0]], [[0, 1]], 1),
        ("much more than what is in use", [[0.3, 0.02, 0.09, 0.0]], [[0, 2]], 1),
    ]
    for name, shares, expected, asked_to_fit in cases:
        with subtests.test(name):
            assert chosen_after(shares) == (expected, asked_to_fit)


WINDOWS = [fixed_spans(20, 5), fixed_spans(30, 6), fixed_spans(10, 3)]


def windowed(
    seed: int, recipe: Method = EXACT, cuts: list[Spans] = WINDOWS
) -> tuple[LayerMemory, torch.Tensor, torch.Tensor]:
    k, v = rows(seed, KV_HEADS, TOKENS, SIZE)
    lengths = [int(cut.bounds[-1]) for cut in cuts]
    parts = list(zip(k.split(lengths, 1), v.split(lengths, 1), strict=True))
    return layers([parts], cuts, recipe=recipe)[0], k, v


@pytest.mark.parametrize("chosen", [[0], [1], [2], [0, 2], [0, 1, 2]])
def test_focus_hides_everything_else_and_its_exact_rows(chosen: list[int]) -> None:
    memory, k, v = windowed(11)
    starts = [0, 20, 50, 60]
    memory.focus([(starts[window], starts[window + 1]) for window in chosen])
    question = asked(11)
    hidden = [
        token
        for window in set(range(3)) - set(chosen)
        for token in range(starts[window], starts[window + 1])
    ]
    expected = truth(k, v, question, hidden)
    torch.testing.assert_close(memory.attend(*question), expected, atol=2e-5, rtol=2e-5)
    memory.focus(None)
    torch.testing.assert_close(
        memory.attend(*question), truth(k, v, question), atol=2e-5, rtol=2e-5
    )


@pytest.mark.parametrize("router", sorted(ROUTERS))
def test_focus_on_a_window_without_spans_leaves_its_exact_rows(router: str) -> None:
    cuts = [fixed_spans(20, 5), fixed_spans(1, 1), fixed_spans(39, 3)]
    memory, k, v = windowed(12, replace(EXACT, router=ROUTERS[router]), cuts)
    memory.focus([(20, 21)])
    question = asked(12)
    hidden = [token for token in range(60) if token != 20]
    out = memory.attend(*question)
    torch.testing.assert_close(out, truth(k, v, question, hidden), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize(
    ("stretches", "seen"),
    [
        ([(22, 23)], [(21, 26)]),  # behind a window's first token, which is an exact row
        ([(25, 27)], [(21, 32)]),
        ([(22, 23), (24, 25)], [(21, 26)]),  # two stretches of one span
        ([(0, 1), (20, 27)], [(0, 1), (20, 32)]),
    ],
)
def test_focus_on_part_of_a_window_shows_the_spans_that_it_has_tokens_of(
    stretches: list[tuple[int, int]], seen: list[tuple[int, int]]
) -> None:
    memory, k, v = windowed(15)
    memory.focus(stretches)
    question = asked(15)
    hidden = [t for t in range(60) if not any(first <= t < end for first, end in seen)]
    out = memory.attend(*question)
    torch.testing.assert_close(out, truth(k, v, question, hidden), atol=2e-5, rtol=2e-5)


def test_rows_that_a_focus_hides_are_bytes_still() -> None:
    memory, _, _ = windowed(12)
    before = memory.fixed_bytes
    memory.focus([(20, 50)])
    assert len(memory.pinned_token) == 1
    assert memory.fixed_bytes == before
    memory.focus(None)
    assert memory.fixed_bytes == before


def test_a_vote_zooms_nothing_and_lets_every_query_vote_for_windows() -> None:
    """A query's vote is shared among windows by their best span; live and exact rows have none."""
    cuts = [fixed_spans(n, 1) for n in (20, 30, 10)]
    memory, k, _ = windowed(13, replace(EXACT, router=MeanKey()), cuts)
    question = asked(13)
    scores = question[0] @ k.repeat_interleave(2, 0).mT / math.sqrt(SIZE)
    scores[..., [0, 20, 50]] = -math.inf
    best = torch.stack([w.amax(-1) for w in scores.split([20, 30, 10], -1)], -1)
    memory.shared.votes = torch.zeros(1, HEADS, 3)
    memory.attend(*question)
    votes = memory.shared.votes[0]
    torch.testing.assert_close(votes, best.softmax(-1).sum(1), atol=0.02, rtol=0)
    assert float(votes.sum()) == pytest.approx(HEADS * 3)
    assert all(len(ids) == 0 for ids in memory.zoomed.spans)
    memory.shared.votes = None
    memory.attend(*question)
    assert all(len(ids) for ids in memory.zoomed.spans)


def test_a_whole_layer_is_plain_attention_and_reports_its_rows() -> None:
    k, v = rows(14, KV_HEADS, TOKENS, SIZE)
    spans = fixed_spans(TOKENS, 6)
    coded = layer(k, v, spans, recipe=replace(EXACT, codec=Raw(), summariser=Mean()))
    got_k, got_v = whole_rows(coded.recipe, coded.host, coded.shared.bounds, coded.params)
    assert torch.equal(got_k, k)
    assert torch.equal(got_v, v)
    recorder = StepRecorder()
    shared = Shared(coded.shared.bounds, 1, watchers=[recorder])
    nothing = no_spans(k.device)
    place = (k, v, torch.arange(TOKENS))
    params, tables = LayerParams(), SpanTables()
    memory = LayerMemory(0, EXACT, shared, NO_LIMIT, params, place, nothing, tables, coded.host)
    question = asked(14)
    torch.testing.assert_close(
        memory.attend(*question), truth(k, v, question), atol=1e-5, rtol=1e-5
    )
    (step,) = recorder.steps
    assert step.tokens[0].tolist() == list(range(TOKENS))
    assert all(w.shape == (2, TOKENS) for w in step.weight)
    memory.release()
    assert memory.device_bytes == memory.fixed_bytes == 2 * k.nbytes + 4 * KV_HEADS * TOKENS


def test_a_step_reports_the_newest_query() -> None:
    """The weights a citation is made of are those of the last row, for every query head."""
    k, v = rows(15, KV_HEADS, TOKENS, SIZE)
    memory = layer(k, v, fixed_spans(TOKENS, 6))
    recorder = StepRecorder()
    memory.shared.watchers.append(recorder)
    q, live_k, live_v, seen = asked(15)
    memory.attend(q, live_k, live_v, seen)
    memory.attend(q[:, -1:], live_k, live_v, seen[-1:])
    whole, last = recorder.steps
    for a, b in zip(whole.weight, last.weight, strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(whole.summary, last.summary)


Bytes = st.integers(0, 10**9)


@given(st.lists(st.tuples(Bytes, Bytes, Bytes), min_size=1, max_size=40))
def test_no_layer_loses_its_share_to_another(layers: list[tuple[int, int, int]]) -> None:
    """Each has the smaller of its share and its need at least, none more than it needs or owns, and
    all together no more than there is."""
    caps = [cap for cap, _, _ in layers]
    least = [low for _, low, _ in layers]
    most = [low + more for _, low, more in layers]
    given = allot(caps, least, most)
    fits = all(cap >= low for cap, low in zip(caps, least, strict=True))
    for room, cap, low, high in zip(given, caps, least, most, strict=True):
        assert low - 1e-3 <= room <= high + 1e-3
        assert not fits or room >= min(cap, high) - 1e-3
    assert sum(given) <= max(sum(caps), sum(least)) + 1e-3
    if sum(most) <= sum(caps) and fits:
        assert given == pytest.approx(most)


@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=8),
    picks=st.data(),
)
def test_a_picked_view_names_the_same_tokens(lengths: list[int], picks: st.DataObject) -> None:
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    count = len(lengths)
    keep = torch.tensor(picks.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    view = View.of(torch.arange(count), bounds, torch.zeros(count, dtype=torch.int64))
    part, token_rows = view.pick(keep)
    tokens = torch.arange(int(bounds[-1]))
    expected = [tokens[bounds[s] : bounds[s + 1]].tolist() for s in range(count) if bool(keep[s])]
    named = [tokens[token_rows][a:b].tolist() for a, b in pairwise(part.bounds.tolist())]
    assert named == expected
    tables = SpanTables(sketch=tokens[None], ranks=torch.arange(count)[None])
    picked = tables.pick(token_rows, keep)
    assert needed(picked.sketch)[0].tolist() == [t for span in expected for t in span]
    assert torch.equal(needed(picked.ranks)[0], part.spans)


def test_far_less_room_than_one_span_leaves_summaries() -> None:
    k, v = rows(16, KV_HEADS, TOKENS, SIZE)
    memory = layer(k, v, fixed_spans(TOKENS, 6), limits=Limits(1.0, 0.95))
    out = memory.attend(*asked(16))
    assert bool(torch.isfinite(out).all())
    assert all(len(ids) == 0 for ids in memory.zoomed.spans)


def test_a_step_far_from_every_key_is_finite() -> None:
    """Scores of thousands of nats overflow nothing."""
    k, v = rows(17, KV_HEADS, TOKENS, SIZE)
    q, live_k, live_v, seen = asked(17)
    for factor in (1e3, -1e3):
        memory = layer(k, v, fixed_spans(TOKENS, 6))
        out = memory.attend(q * factor, live_k, live_v, seen)
        assert bool(torch.isfinite(out).all())
        expected = truth(k, v, (q * factor, live_k, live_v, seen))
        assert math.isclose(float((out - expected).abs().max()), 0, abs_tol=1e-3)
