"""Cuts: total, ascending, where the rules say, and from the document alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.compression.spans import (
    ANCHOR,
    COMPRESSED,
    PINNED,
    Entropy,
    Fixed,
    Peaks,
    Segmenter,
    Spans,
    pin_ends,
)

SEGMENTERS: list[Segmenter] = [
    Entropy(),
    Entropy(alpha=0.0, shortest=3),
    Peaks(),
    Peaks(distance=2, longest=5, anchors=0.1),
    Peaks(distance=9, longest=4, anchors=0.0),
    Fixed(),
    Fixed(1),
]

surprisals = st.lists(
    st.floats(0, 30, width=32) | st.sampled_from([0.0, 1.0, 2.0]), min_size=1, max_size=120
).map(lambda values: torch.tensor(values, dtype=torch.float32))


def cut(segmenter: Segmenter, surprisal: torch.Tensor) -> Spans:
    return segmenter.cut(surprisal, ["x"] * len(surprisal))


def assert_total(spans: Spans, n: int) -> None:
    """A partition of n tokens: from 0 to n, strictly ascending, a kind for each span."""
    edges = spans.bounds.tolist()
    assert spans.bounds.dtype == torch.int64
    assert edges[0] == 0
    assert edges[-1] == n
    assert edges == sorted(set(edges))
    assert len(spans.kind) == len(edges) - 1
    assert spans.kind.dtype == torch.uint8
    assert set(spans.kind.tolist()) <= {COMPRESSED, ANCHOR, PINNED}
    lengths = spans.bounds.diff()
    assert bool((lengths[spans.kind == ANCHOR] == 1).all())


@settings(max_examples=150)
@given(segmenter=st.sampled_from(SEGMENTERS), surprisal=surprisals)
def test_any_surprisal_is_cut_into_a_partition(
    segmenter: Segmenter, surprisal: torch.Tensor
) -> None:
    before = surprisal.clone()
    spans = cut(segmenter, surprisal)
    assert_total(spans, len(surprisal))
    again = cut(segmenter, surprisal)
    assert torch.equal(spans.bounds, again.bounds)
    assert torch.equal(spans.kind, again.kind)
    assert torch.equal(surprisal, before)


def test_constant_surprisal_is_cut_too(subtests: pytest.Subtests) -> None:
    for segmenter in SEGMENTERS:
        for n in (1, 2, 3, 500):
            with subtests.test(segmenter=segmenter, n=n):
                for level in (0.0, 3.5):
                    spans = cut(segmenter, torch.full((n,), level))
                    assert_total(spans, n)
                    if not isinstance(segmenter, Peaks):
                        assert not bool((spans.kind == ANCHOR).any())


def test_the_published_rule_by_hand() -> None:
    """Mean 2, deviation 2: what surprises by more than 4 nats is an anchor, the runs between are
    spans, and runs shorter than four stay exact."""
    surprisal = torch.tensor([1.0, 1, 1, 1, 7, 1, 1, 1, 7, 1, 1, 1, 1, 1, 1, 5])
    assert float(surprisal.mean()) == 2.0
    limit = 2.0 + float(surprisal.std(correction=0))
    assert 4.0 < limit < 5.0
    spans = cut(Entropy(alpha=1.0, shortest=4), surprisal)
    assert spans.bounds.tolist() == [0, 4, 5, 8, 9, 15, 16]
    assert spans.kind.tolist() == [COMPRESSED, ANCHOR, PINNED, ANCHOR, COMPRESSED, ANCHOR]
    lower = cut(Entropy(alpha=100.0, shortest=4), surprisal)
    assert lower.bounds.tolist() == [0, 16]
    assert lower.kind.tolist() == [COMPRESSED]


@settings(max_examples=80)
@given(surprisal=surprisals, alpha=st.floats(-1, 3), shortest=st.integers(1, 20))
def test_the_published_rule_holds_everywhere(
    surprisal: torch.Tensor, alpha: float, shortest: int
) -> None:
    spans = cut(Entropy(alpha, shortest), surprisal)
    limit = surprisal.mean() + alpha * surprisal.std(correction=0)
    anchors = spans.bounds[:-1][spans.kind == ANCHOR]
    assert anchors.tolist() == torch.nonzero(surprisal > limit)[:, 0].tolist()
    lengths = spans.bounds.diff()
    assert bool((lengths[spans.kind == COMPRESSED] >= shortest).all())
    assert bool((lengths[spans.kind == PINNED] < shortest).all())


@settings(max_examples=150)
@given(
    surprisal=surprisals,
    distance=st.integers(1, 8),
    longest=st.integers(1, 16),
    anchors=st.sampled_from([0.0, 0.002, 0.05, 0.3]),
)
def test_peaks_keep_their_distance_and_anchors_are_rare(
    surprisal: torch.Tensor, distance: int, longest: int, anchors: float
) -> None:
    """No span is longer than asked; at most the share asked are anchors, and they are the most
    surprising peaks."""
    n = len(surprisal)
    spans = cut(Peaks(distance, longest, anchors), surprisal)
    assert int(spans.bounds.diff().max()) <= longest
    kept = spans.bounds[:-1][spans.kind == ANCHOR]
    assert len(kept) <= anchors * n
    assert bool((kept.diff() >= distance).all())
    for token in kept.tolist():
        near = surprisal[max(0, token - distance) : token + distance + 1]
        assert float(surprisal[token]) == float(near.max())


def test_peaks_by_hand() -> None:
    """A token opens a span where none within four surprises more; the first of equal ones does."""
    surprisal = torch.ones(30)
    surprisal[[7, 9, 20, 21]] = torch.tensor([5.0, 6.0, 4.0, 4.0])
    surprisal += torch.linspace(0.5, 0, 30) * (surprisal == 1)
    spans = cut(Peaks(distance=4, longest=40, anchors=0.0), surprisal)
    assert {9, 20} <= set(spans.bounds.tolist())
    assert not {7, 21} & set(spans.bounds.tolist())
    pinned = cut(Peaks(distance=4, longest=40, anchors=1 / 30), surprisal)
    assert pinned.bounds[:-1][pinned.kind == ANCHOR].tolist() == [9]
    assert 10 in pinned.bounds.tolist()


def test_long_spans_are_split_into_equal_pieces() -> None:
    surprisal = torch.zeros(100)
    surprisal[50] = 9.0
    spans = cut(Peaks(distance=60, longest=12, anchors=0.0), surprisal)
    lengths = spans.bounds.diff()
    assert 50 in spans.bounds.tolist()
    assert int(lengths.max()) - int(lengths.min()) <= 1
    assert len(lengths) == 10


def test_fixed_spans_are_of_one_length_but_the_last() -> None:
    assert cut(Fixed(4), torch.zeros(10)).bounds.tolist() == [0, 4, 8, 10]
    assert cut(Fixed(4), torch.zeros(8)).bounds.tolist() == [0, 4, 8]


@settings(max_examples=150)
@given(
    segmenter=st.sampled_from(SEGMENTERS),
    surprisal=surprisals,
    sinks=st.integers(0, 10),
    local=st.integers(0, 40),
)
def test_both_ends_of_a_window_are_pinned_to_the_token(
    segmenter: Segmenter, surprisal: torch.Tensor, sinks: int, local: int
) -> None:
    """Exactly the first `sinks` and last `local`; every other token keeps its kind and span."""
    n = len(surprisal)
    before = cut(segmenter, surprisal)
    after = pin_ends(before, sinks, local)
    assert_total(after, n)
    kinds = {}
    for spans, name in ((before, "before"), (after, "after")):
        kinds[name] = np.repeat(spans.kind.numpy(), spans.bounds.diff().numpy())
    inside = np.arange(n)
    ends = (inside < sinks) | (inside >= n - local)
    assert (kinds["after"][ends] == PINNED).all()
    assert (kinds["after"][~ends] == kinds["before"][~ends]).all()
    edges = {*before.bounds.tolist(), min(sinks, n), max(min(sinks, n), n - local)}
    assert set(after.bounds.tolist()) == edges


def test_expected_shares_are_those_of_random_surprisal() -> None:
    """What `--dry-run` reckons with: the published rule keeps about half of all tokens."""
    surprisal = torch.empty(4000).exponential_(1.0, generator=torch.Generator().manual_seed(1))
    for segmenter in (Entropy(), Peaks(), Fixed()):
        spans = cut(segmenter, surprisal)
        kept = float(spans.bounds.diff()[spans.kind != COMPRESSED].sum()) / 4000
        assert segmenter.exact_share() == pytest.approx(kept, abs=0.35)
