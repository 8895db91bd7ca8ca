"""Arithmetic on keys and values, held against the plain formulas."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.attention.softmax import merge_resolutions
from engine.compression.basis import covariance_basis, span_svd
from engine.compression.packing import Packing, pack_heads, split_heads
from engine.compression.quantize import (
    GAUSS_MSE,
    WIDTHS,
    allocate_bits,
    dequantize,
    fit_steps,
    quantize,
)
from engine.compression.ranges import gather_ranges, span_ids, span_mean
from engine.compression.scores import NEG_INF, group_queries, span_logsumexp
from tiny_memory import plain


def randn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Attention by one resolution alone: q [H, Q, D], k and v [Hkv, N, D], bias [H, Q, N]."""
    logits = group_queries(q, len(k)) @ k.float().mT / math.sqrt(q.shape[-1])
    out, _ = merge_resolutions([logits + bias.reshape(len(k), -1, k.shape[1])], [v])
    return out.reshape(q.shape).to(v.dtype)


lengths_of_spans = st.lists(st.integers(1, 9), min_size=1, max_size=10)


def bounds_of(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


# ---------------------------------------------------------------------------- attention


def test_a_summary_row_is_exact_when_a_span_repeats_one_key() -> None:
    """One row biased by log(5) must weigh as much as the five tokens it replaces."""
    q, k, v = randn(1, 4, 3, 16), randn(2, 2, 6, 16), randn(3, 2, 6, 16)
    repeated = torch.tensor([0, 1, 2, 3, 3, 3, 3, 3, 4, 5])
    bias = torch.zeros(4, 3, 6)
    bias[..., 3] = math.log(5)
    expected = plain(q, k[:, repeated], v[:, repeated], torch.ones(3, 10, dtype=torch.bool))
    torch.testing.assert_close(attend(q, k, v, bias), expected.float(), atol=1e-6, rtol=1e-5)


def test_hidden_summary_and_full_rows_mix_in_one_call() -> None:
    """A row at -inf is as good as absent, per head and query, while others stand for many."""
    q, k, v = randn(4, 4, 3, 16), randn(5, 2, 8, 16), randn(6, 2, 8, 16)
    copies = torch.randint(0, 4, (4, 3, 8), generator=torch.Generator().manual_seed(7))
    copies[..., 0] = 1
    out = attend(q, k, v, copies.float().log())
    for head in range(4):
        for row in range(3):
            index = torch.repeat_interleave(torch.arange(8), copies[head, row])
            seen = torch.ones(1, len(index), dtype=torch.bool)
            kv = head // 2
            expected = plain(
                q[head : head + 1, row : row + 1],
                k[kv : kv + 1, index],
                v[kv : kv + 1, index],
                seen,
            )
            torch.testing.assert_close(out[head, row], expected[0, 0].float(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("heads", [(4, 1), (4, 2), (4, 4), (6, 3)])
def test_attention_groups_query_heads_by_kv_head(heads: tuple[int, int]) -> None:
    q, k, v = randn(8, heads[0], 5, 16), randn(9, heads[1], 7, 16), randn(10, heads[1], 7, 16)
    out = attend(q, k, v, torch.zeros(heads[0], 5, 7))
    expected = plain(q, k, v, torch.ones(5, 7, dtype=torch.bool))
    torch.testing.assert_close(out, expected.float(), atol=1e-6, rtol=1e-5)


def test_rows_that_are_all_hidden_give_zero_and_no_nan() -> None:
    """And leave the other rows of the call alone."""
    q, k, v = randn(11, 2, 3, 16), randn(12, 1, 6, 16), randn(13, 1, 6, 16)
    bias = torch.zeros(2, 3, 6)
    bias[0, 1] = NEG_INF
    out = attend(q, k, v, bias)
    assert torch.equal(out[0, 1], torch.zeros(16))
    expected = attend(q, k, v, torch.zeros(2, 3, 6))
    torch.testing.assert_close(out[1], expected[1])
    torch.testing.assert_close(out[0, ::2], expected[0, ::2])


@settings(max_examples=60)
@given(
    widths=st.lists(st.integers(0, 5), max_size=3),
    first=st.integers(1, 5),
    scale=st.sampled_from([1.0, 50.0, 1e4]),
    seed=st.integers(0, 99),
)
def test_parts_mix_as_one_softmax(widths: list[int], first: int, scale: float, seed: int) -> None:
    """However the rows are split, empty parts among them, and however large scores are."""
    parts = [first, *widths]
    logits = scale * randn(seed, 2, 3, sum(parts))
    values = randn(seed + 1, 2, sum(parts), 8)
    out, weights = merge_resolutions(list(logits.split(parts, -1)), list(values.split(parts, 1)))
    expected = logits.double().softmax(-1)
    torch.testing.assert_close(torch.cat(weights, -1).double(), expected, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(out.double(), expected @ values.double(), atol=1e-5, rtol=1e-4)


def test_low_precision_values_are_mixed_in_float32() -> None:
    q, k, v = randn(14, 2, 2, 16), randn(15, 2, 9, 16), randn(16, 2, 9, 16)
    bias = torch.zeros(2, 2, 9)
    half = attend(q, k, v.bfloat16(), bias)
    assert half.dtype == torch.bfloat16
    exact = attend(q, k, v.bfloat16().float(), bias)
    assert torch.equal(half, exact.bfloat16())


# ---------------------------------------------------------------------------- spans


@settings(max_examples=80)
@given(lengths=lengths_of_spans, scale=st.sampled_from([0.1, 1.0, 8.0]), seed=st.integers(0, 99))
def test_the_mass_of_a_span_is_the_log_of_the_sum_of_its_exponentials(
    lengths: list[int], scale: float, seed: int
) -> None:
    bounds = bounds_of(lengths)
    scores = scale * randn(seed, 2, 3, int(bounds[-1])) + 100 * randn(seed + 1, 2, 3, 1)
    found = span_logsumexp(scores, bounds)
    parts = scores.double().split(lengths, -1)
    expected = torch.stack([part.logsumexp(-1) for part in parts], -1)
    assert float((scores.amax(-1) - scores.amin(-1)).max()) < 80
    torch.testing.assert_close(found.double(), expected, atol=1e-3, rtol=1e-5)


def test_a_mass_that_float32_cannot_add_is_minus_infinity() -> None:
    scores = torch.tensor([[[0.0, -200.0, -1.0]]])
    found = span_logsumexp(scores, torch.tensor([0, 1, 2, 3]))
    assert found[0, 0].tolist() == [0.0, -math.inf, -1.0]


@settings(max_examples=60)
@given(lengths=lengths_of_spans, data=st.data())
def test_a_weighted_mean_is_the_weighted_mean(lengths: list[int], data: st.DataObject) -> None:
    """And the plain one where all weights of a span are zero."""
    count = sum(lengths)
    weights = torch.tensor(
        data.draw(st.lists(st.sampled_from([0.0, 0.5, 3.0]), min_size=count, max_size=count))
    )
    rows = randn(count, 2, count, 4)
    bounds = bounds_of(lengths)
    found = span_mean(rows, weights, bounds)
    for span, (a, b) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)):
        w = weights[a:b] if float(weights[a:b].sum()) > 0 else torch.ones(b - a)
        expected = (rows[:, a:b] * w[:, None]).sum(1) / w.sum()
        torch.testing.assert_close(found[:, span], expected, atol=1e-5, rtol=1e-5)


@given(lengths=lengths_of_spans)
def test_every_token_knows_its_span(lengths: list[int]) -> None:
    expected = [span for span, n in enumerate(lengths) for _ in range(n)]
    assert span_ids(bounds_of(lengths)).tolist() == expected


@given(ranges=st.lists(st.tuples(st.integers(0, 50), st.integers(0, 6)), max_size=12))
def test_ranges_are_gathered_one_after_another(ranges: list[tuple[int, int]]) -> None:
    starts = torch.tensor([a for a, _ in ranges], dtype=torch.int64)
    lengths = torch.tensor([n for _, n in ranges], dtype=torch.int64)
    found = gather_ranges(starts, lengths)
    assert found.dtype == torch.int64
    assert found.tolist() == [i for a, n in ranges for i in range(a, a + n)]


# ---------------------------------------------------------------------------- bases


def test_a_basis_is_orthonormal_and_orders_components_by_variance() -> None:
    rows = randn(17, 3, 200, 16) @ torch.diag(torch.linspace(3, 0.1, 16)) + 5
    mean, basis, variance = covariance_basis(rows)
    torch.testing.assert_close(basis.mT @ basis, torch.eye(16).expand(3, -1, -1), atol=1e-5, rtol=0)
    torch.testing.assert_close(mean, rows.mean(1), atol=1e-5, rtol=1e-5)
    coefs = (rows - mean[:, None]) @ basis
    torch.testing.assert_close(coefs.var(1, correction=0), variance, atol=1e-4, rtol=1e-4)
    assert bool((variance.diff() <= 1e-6).all())
    torch.testing.assert_close(mean[:, None] + coefs @ basis.mT, rows, atol=1e-4, rtol=1e-4)


def test_the_sign_of_a_component_is_the_sign_of_its_largest_entry() -> None:
    """Free otherwise; so equal input gives equal bytes, and so does its mirror image."""
    rows = randn(18, 2, 100, 16)
    _, basis, _ = covariance_basis(rows)
    largest = basis.gather(1, basis.abs().argmax(1, keepdim=True))
    assert bool((largest > 0).all())
    assert torch.equal(basis, covariance_basis(rows.clone())[1])
    _, mirrored, _ = covariance_basis(-rows)
    torch.testing.assert_close(mirrored, basis, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("what", ["zeros", "equal", "one"])
def test_a_basis_of_rows_without_variance_is_a_basis(what: str) -> None:
    rows = torch.zeros(1, 5, 8) if what == "zeros" else randn(19, 1, 1, 8).expand(1, 5, 8)
    rows = rows[:, :1] if what == "one" else rows
    _, basis, variance = covariance_basis(rows)
    torch.testing.assert_close(basis[0].T @ basis[0], torch.eye(8), atol=1e-5, rtol=0)
    assert float(variance.abs().max()) < 1e-6


def unrolled(x: torch.Tensor, rank: int) -> torch.Tensor:
    u, _, w = span_svd(x)
    return u[:, :, :rank] @ w[:, :rank]


@settings(max_examples=60)
@given(
    n=st.integers(1, 40), size=st.integers(1, 24), rank=st.integers(1, 6), seed=st.integers(0, 9)
)
def test_a_span_of_some_rank_needs_no_more_directions(
    n: int, size: int, rank: int, seed: int
) -> None:
    x = randn(seed, 2, n, rank) @ randn(seed + 1, 2, rank, size)
    torch.testing.assert_close(unrolled(x, rank), x, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(unrolled(x, min(n, size)), x, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("n", [3, 16, 50])
def test_fewer_directions_are_the_best_approximation(n: int) -> None:
    """The residual is what the true singular values leave."""
    x = randn(20, 3, n, 16)
    _, energy, _ = span_svd(x)
    true = torch.linalg.svdvals(x.double())
    most = min(n, 16)
    torch.testing.assert_close(energy[:, :most].double(), true.square(), atol=1e-4, rtol=1e-4)
    for rank in (1, most // 2, most):
        residual = (x - unrolled(x, rank)).square().sum((1, 2))
        expected = true[:, rank:].square().sum(1)
        torch.testing.assert_close(residual.double(), expected, atol=1e-3, rtol=1e-3)


def test_duplicates_and_zeros_are_exact() -> None:
    one = randn(21, 1, 1, 16)
    x = torch.cat([one.expand(1, 9, 16), torch.zeros(1, 9, 16)])
    torch.testing.assert_close(unrolled(x, 1), x, atol=1e-5, rtol=1e-5)
    assert torch.equal(unrolled(torch.zeros(2, 4, 8), 4), torch.zeros(2, 4, 8))


def test_padding_rows_with_zeros_changes_nothing() -> None:
    x = randn(22, 2, 6, 16)
    padded = torch.cat([x, torch.zeros(2, 5, 16)], 1)
    torch.testing.assert_close(unrolled(padded, 3)[:, :6], unrolled(x, 3), atol=1e-5, rtol=1e-5)
    assert float(unrolled(padded, 3)[:, 6:].abs().max()) < 1e-5


def test_a_long_span_costs_its_width_and_not_its_length() -> None:
    """A window without any boundary is one span; its factors are no wider than a head."""
    u, energy, w = span_svd(randn(23, 1, 5000, 16))
    assert u.shape == (1, 5000, 16)
    assert energy.shape == (1, 16)
    assert w.shape == (1, 16, 16)


# ---------------------------------------------------------------------------- quantizers

variances = st.lists(st.floats(1e-6, 1e4), min_size=8, max_size=64).map(
    lambda values: torch.tensor(sorted(values, reverse=True))
)


@settings(max_examples=80)
@given(variance=variances, mean=st.floats(0.1, 8))
def test_bits_fall_with_the_variance_and_fill_whole_bytes(
    variance: torch.Tensor, mean: float
) -> None:
    bits = allocate_bits(variance, mean)
    assert bits.dtype == torch.uint8
    assert set(bits.tolist()) <= {0, 1, 2, 4, 8}
    assert bool((bits.int().diff() <= 0).all())
    for width in (1, 2, 4):
        assert int((bits == width).sum()) * width % 8 == 0
    packing = Packing.of(bits)
    assert packing.components == int((bits > 0).sum())
    assert packing.row_bytes * 8 == int(bits.sum())
    assert float(bits.float().sum()) <= mean * len(variance) + 24


def test_bits_are_near_the_mean_asked_and_follow_the_variance() -> None:
    variance = 4.0 ** -torch.arange(64).float().div(6)
    for mean in (0.5, 1.0, 1.25, 2.0, 4.0, 6.0):
        bits = allocate_bits(variance, mean).float()
        assert float(bits.mean()) == pytest.approx(mean, rel=0.2, abs=0.25)
    equal = allocate_bits(torch.ones(64), 4.0)
    assert equal.unique().tolist() == [4]
    assert allocate_bits(torch.zeros(64), 1.0).float().mean() <= 1.4
    assert allocate_bits(variance, 8.0).tolist() == [8] * 64


@settings(max_examples=80)
@given(
    counts=st.tuples(
        st.integers(0, 5),
        st.integers(0, 4).map(lambda n: 2 * n),
        st.integers(0, 3).map(lambda n: 4 * n),
        st.integers(0, 2).map(lambda n: 8 * n),
    ),
    rows=st.integers(0, 5),
    unused=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_what_is_packed_is_unpacked(
    counts: tuple[int, int, int, int], rows: int, unused: int, seed: int
) -> None:
    widths = [w for w, n in zip(WIDTHS, counts, strict=True) for _ in range(n)]
    bits = torch.tensor([*widths, *[0] * unused], dtype=torch.uint8)
    packing = Packing.of(bits)
    assert packing == Packing(counts)
    made = torch.Generator().manual_seed(seed)
    codes = (
        torch.stack([torch.randint(0, 2**w, (rows,), generator=made) for w in widths], -1).to(
            torch.uint8
        )
        if widths
        else torch.zeros(rows, 0, dtype=torch.uint8)
    )
    packed = packing.pack(codes)
    assert packed.shape == (rows, packing.row_bytes)
    assert packed.dtype == torch.uint8
    assert torch.equal(packing.unpack(packed), codes)


def test_heads_of_different_widths_lie_side_by_side_without_padding() -> None:
    bits = torch.tensor([[8, 8, 4, 4], [4, 4, 0, 0]], dtype=torch.uint8)
    step = torch.full((2, 4), 0.1)
    coefs = randn(24, 2, 5, 4) / 4
    packed = pack_heads(coefs, bits, step)
    assert packed.shape == (1, 5, 3 + 1)
    parts = split_heads(packed, bits)
    for head, used in ((0, 4), (1, 2)):
        codes = Packing.of(bits[head]).unpack(parts[head])
        assert codes.shape == (5, used)
        expected = quantize(coefs[head], bits[head], step[head])[:, :used]
        assert torch.equal(codes, expected)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_quantised_value_is_half_a_step_off_at_most(bits: int) -> None:
    """Inside the range; outside it is the nearest level."""
    width = torch.tensor([bits])
    step = torch.tensor([0.25])
    reach = 0.25 * 2 ** (bits - 1)
    x = torch.linspace(-reach, reach - 1e-4, 997)[:, None]
    codes = quantize(x, width, step)
    assert codes.dtype == torch.uint8
    assert int(codes.max()) < 2**bits
    back = dequantize(codes, width, step)
    assert float((back - x).abs().max()) <= 0.125 + 1e-5
    far = dequantize(quantize(torch.tensor([[-1e6], [1e6]]), width, step), width, step)
    assert far[:, 0].tolist() == [-reach + 0.125, reach - 0.125]


def test_a_level_is_its_own_code() -> None:
    """Quantising what was dequantized changes nothing."""
    for bits in (1, 2, 4, 8):
        width, step = torch.tensor([bits]), torch.tensor([0.3])
        codes = torch.arange(2**bits, dtype=torch.uint8)[:, None]
        assert torch.equal(quantize(dequantize(codes, width, step), width, step), codes)


@pytest.mark.parametrize(("bits", "expected"), [(b, m) for b, m in GAUSS_MSE.items() if b])
def test_steps_come_near_the_best_quantiser_of_a_gaussian(bits: int, expected: float) -> None:
    x = 3 * randn(25, 1, 20000, 1)
    width = torch.tensor([[bits]], dtype=torch.uint8)
    step = fit_steps(x, width)
    back = dequantize(quantize(x[0], width[0], step[0]), width[0], step[0])
    error = float((back - x[0]).square().mean()) / 9
    assert 0.7 * expected < error < 1.1 * expected


def test_steps_of_constant_components_are_finite() -> None:
    x = torch.zeros(2, 10, 4)
    step = fit_steps(x, torch.full((2, 4), 4, dtype=torch.uint8))
    assert bool(torch.isfinite(step).all())
    assert bool((step > 0).all())
