"""What stands for a span in the methods of others: means, boxes, a fixed number of rows."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.compression.params import LayerParams, needed
from engine.compression.routers.base import RoutedRows
from engine.compression.routers.span_keys import KeyBox, PartMeans, SpanKey

HEADS, SIZE = 2, 8
NOTHING = LayerParams()
BOUNDS = torch.tensor([0, 1, 3, 10, 26])
OWNER = torch.repeat_interleave(torch.arange(4), BOUNDS.diff())


def drawn(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [Hkv, 3, D], keys [Hkv, 26, D] that 16 bits hold exactly, means of the spans."""
    made = torch.Generator().manual_seed(seed)
    q = torch.randn(HEADS, 3, SIZE, generator=made)
    k = torch.randn(HEADS, 26, SIZE, generator=made).half().float()
    means = torch.stack([k[:, span == OWNER].mean(1) for span in range(4)], 1)
    return q, k, means


def scores(router: SpanKey | KeyBox | PartMeans, q: Tensor, k: Tensor, means: Tensor) -> Tensor:
    return router.logmass(q, router.build(k, means, NOTHING, RoutedRows(OWNER)), NOTHING, BOUNDS)


def test_a_bucket_is_heard_by_the_mean_of_its_keys() -> None:
    """However many they are: neither the sum of a bucket's keys nor its loudest one."""
    q, k, means = drawn(1)
    mass = scores(SpanKey(), q, k, means)
    torch.testing.assert_close(mass, q @ means.mT / math.sqrt(SIZE), atol=1e-2, rtol=1e-2)


@given(seed=st.integers(0, 999))
@settings(max_examples=25)
def test_no_key_of_a_box_scores_more_than_the_box(seed: int) -> None:
    """And a box of one key scores what that key does."""
    q, k, means = drawn(seed)
    mass = scores(KeyBox(), q, k, means)
    each = q @ k.mT / math.sqrt(SIZE)
    best = torch.stack([each[..., span == OWNER].amax(-1) for span in range(4)], -1)
    assert bool((mass >= best - 1e-4).all())
    torch.testing.assert_close(mass[..., 0], best[..., 0])
    assert bool((mass[..., 3] > best[..., 3]).all())


def test_blocks_of_any_length_are_as_many_rows() -> None:
    """The means of equal parts, of which the best speaks for the block."""
    q, k, means = drawn(3)
    router = PartMeans(count=4)
    parts = needed(router.build(k, means, NOTHING, RoutedRows(OWNER)).keys).float()
    assert parts.shape == (HEADS, 4, 4, SIZE)
    torch.testing.assert_close(parts[:, 0], k[:, :1].expand(-1, 4, -1))  # one token, four times
    torch.testing.assert_close(parts[:, 1, [0, 3]], k[:, 1:3])
    quarters = k[:, 10:26].unflatten(1, (4, 4)).mean(2)
    torch.testing.assert_close(parts[:, 3], quarters, atol=1e-3, rtol=1e-3)
    best = (q @ quarters.mT / math.sqrt(SIZE)).amax(-1)
    torch.testing.assert_close(scores(router, q, k, means)[..., 3], best, atol=1e-2, rtol=1e-2)
