"""The choice of what is zoomed keeps to room and coverage."""

from __future__ import annotations

import math
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.compression.choose_spans import choose

shares = st.integers(1, 3).flatmap(
    lambda heads: st.integers(1, 8).flatmap(
        lambda spans: st.lists(
            st.lists(st.floats(0, 1, width=32), min_size=spans, max_size=spans),
            min_size=heads,
            max_size=heads,
        )
    )
)


@settings(max_examples=200)
@given(
    share=shares,
    rooms=st.tuples(st.integers(-50, 2000), st.integers(-5, 40)),
    uncovered=st.floats(0, 0.9),
    data=st.data(),
)
def test_the_choice_keeps_to_room_and_coverage(
    share: list[list[float]], rooms: tuple[int, int], uncovered: float, data: st.DataObject
) -> None:
    """Never more than the room of any kind; with room enough, what stays unzoomed is little; each
    head takes by falling share."""
    table = torch.tensor(share)
    heads, spans = table.shape
    drawn = st.lists(st.integers(0, 300), min_size=table.numel(), max_size=table.numel())
    cost = torch.stack([torch.tensor(data.draw(drawn)).reshape(heads, spans) for _ in range(2)])
    cost[0] += 1
    room = torch.tensor(rooms)[:, None].expand(2, heads)
    chosen = choose(table, cost, room, uncovered)
    assert bool(((cost * chosen).sum(-1) <= room.clamp_min(0)).all())
    ample = choose(table, cost, torch.full((2, heads), math.inf), uncovered)
    assert bool((ample | ~chosen).all())
    left = torch.where(ample, 0.0, table).double().sum(-1)
    assert bool((left <= uncovered + 1e-5).all())
    if uncovered == 0:
        assert bool(ample.all())
    for mine, all_of_it, head, worth in zip(chosen, ample, cost.unbind(1), table, strict=True):
        missed = worth[all_of_it & ~mine & (head > 0).all(0)]
        both = mine & (head > 0).all(0)
        if bool(both.any()) and len(missed):
            assert float(worth[both].min()) >= float(missed.max())


def unlimited(share: torch.Tensor, uncovered: float, rows: torch.Tensor | None = None) -> Any:
    cost = torch.ones(1, *share.shape, dtype=torch.int32)
    return choose(share, cost, torch.full((1, len(share)), math.inf), uncovered, rows)


def test_no_more_is_zoomed_than_coverage_needs() -> None:
    share = torch.tensor([[0.5, 0.3, 0.1, 0.06, 0.04], [0.2, 0.2, 0.2, 0.2, 0.2]])
    chosen = unlimited(share, 0.15)
    assert chosen.tolist() == [[True, True, True, False, False], [True] * 5]


def test_every_row_is_covered_and_not_the_sum_of_all() -> None:
    """Two rows look at spans of their own: what stays unzoomed is little for each of them."""
    rows = torch.tensor([[[0.8, 0.04, 0.12, 0.04], [0.0, 0.85, 0.04, 0.11]]])
    share = rows.amax(1)
    assert unlimited(share, 0.2, rows).tolist() == [[True, True, False, False]]
    assert unlimited(share, 0.2).tolist() == [[True, True, True, False]]
    assert unlimited(share, 0.155, rows).tolist() == [[True, True, True, False]]


@settings(max_examples=100)
@given(seed=st.integers(0, 999), uncovered=st.floats(0.01, 0.9))
def test_no_more_is_zoomed_than_the_least_covered_row_needs(seed: int, uncovered: float) -> None:
    made = torch.Generator().manual_seed(seed)
    rows = (3 * torch.randn(2, 5, 9, generator=made)).softmax(-1)
    share = rows.amax(1)
    chosen = unlimited(share, uncovered, rows)
    left = (rows * ~chosen[:, None]).sum(-1)
    assert bool((left <= uncovered + 1e-5).all())
    for head in range(2):  # without the least of the zoomed spans some row would miss too much
        least = share[head].masked_fill(~chosen[head], 2.0).argmin()
        assert float((left[head] + rows[head, :, least]).max()) > uncovered - 1e-5


def test_each_head_fills_its_room_with_its_largest_shares() -> None:
    share = torch.tensor([[0.5, 0.1, 0.2], [0.1, 0.4, 0.3]])
    cost = torch.full((1, 2, 3), 10)
    room = torch.tensor([[20, 19]])
    assert choose(share, cost, room, 0.0).tolist() == [[True, False, True], [False, True, False]]
    assert not choose(share, cost, room - 20, 0.0).any()
    empty: Any = torch.zeros(2, 0)
    assert choose(empty, empty.int()[None], room, 0.05).shape == (2, 0)


def test_what_a_span_does_not_take_it_needs_no_room_of() -> None:
    """Coded spans fill their slots; the one of exact rows still finds its own."""
    share = torch.tensor([[0.4, 0.3, 0.2, 0.1]])
    cost = torch.tensor([[[10, 10, 10, 0]], [[0, 0, 0, 10]]])
    chosen = choose(share, cost, torch.tensor([[20], [10]]), 0.0)
    assert chosen.tolist() == [[True, True, False, True]]
