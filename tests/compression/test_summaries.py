"""What stands for a span: weighted means, and their few bits on the packed."""

from __future__ import annotations

import pytest
import torch

from engine.compression.codecs.shared_basis import SharedBasis
from engine.compression.ranges import span_mean
from engine.compression.summaries import Mean, SurprisalMean, fit_values, pack_values, unpack_values
from tiny_memory import rows

BOUNDS = torch.tensor([0, 1, 4, 10, 12, 30])


def test_a_mean_weighs_every_token_alike() -> None:
    k, _ = rows(1, 2, 30, 16)
    found = Mean().summarise(k, torch.rand(30), BOUNDS)
    for span in range(5):
        expected = k[:, BOUNDS[span] : BOUNDS[span + 1]].mean(1)
        torch.testing.assert_close(found[:, span], expected, atol=1e-6, rtol=1e-5)


def test_the_published_mean_weighs_by_surprisal() -> None:
    """A token that surprises nobody has no part; where none surprises, all have the same."""
    k, _ = rows(2, 2, 30, 16)
    surprisal = torch.zeros(30)
    surprisal[[2, 5, 7]] = torch.tensor([3.0, 1.0, 3.0])
    found = SurprisalMean().summarise(k, surprisal, BOUNDS)
    torch.testing.assert_close(found[:, 0], k[:, 0])
    torch.testing.assert_close(found[:, 1], k[:, 2], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found[:, 2], 0.25 * k[:, 5] + 0.75 * k[:, 7], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found[:, 4], k[:, 12:].mean(1), atol=1e-6, rtol=1e-5)


def values(bits: float) -> tuple[torch.Tensor, torch.Tensor, int]:
    """True span values, what comes back, and the bytes in between."""
    k, v = rows(3, 2, 600, 32)
    bounds = torch.arange(0, 601, 6)
    true = Mean().summarise(v, torch.ones(600), bounds)
    params = SharedBasis(6).fit(k, v)
    params = fit_values(true, bits, params)
    packed = pack_values(true, bits, params)
    return true, unpack_values(packed, params), packed.nbytes


def test_sixteen_bits_are_half_precision() -> None:
    true, found, size = values(16)
    assert torch.equal(found, true.half().float())
    assert size == true.numel() * 2


def test_fewer_bits_are_fewer_bytes_and_further_off() -> None:
    errors, sizes = [], []
    for bits in (0.5, 1.0, 2.0, 4.0, 8.0):
        true, found, size = values(bits)
        spread = (true - true.mean(1, keepdim=True)).square().sum()
        errors.append(float((found - true).square().sum() / spread))
        sizes.append(size)
        assert size <= true.numel() * bits / 8 + 3 * 2 * true.shape[1]
    assert errors == sorted(errors, reverse=True)
    assert sizes == sorted(sizes)
    assert errors[1] < 0.6
    assert errors[-1] < 0.01


def test_equal_values_come_back() -> None:
    """Without variance there is nothing to spend bits on; the mean is kept."""
    v = torch.full((2, 40, 16), 1.5)
    bounds = torch.arange(0, 41, 8)
    params = SharedBasis(6).fit(v, v)
    true = Mean().summarise(v, torch.ones(40), bounds)
    params = fit_values(true, 1.0, params)
    found = unpack_values(pack_values(true, 1.0, params), params)
    torch.testing.assert_close(found, true, atol=1e-3, rtol=0)


@pytest.mark.parametrize("bits", [1.0, 16.0])
def test_spans_are_packed_one_by_one(bits: float) -> None:
    """A part of the spans, taken out of the packed tensor, gives the same values."""
    k, v = rows(4, 2, 60, 16)
    bounds = torch.arange(0, 61, 6)
    true = span_mean(v, torch.ones(60), bounds)
    params = SharedBasis(6).fit(k, v)
    params = fit_values(true, bits, params)
    packed = pack_values(true, bits, params)
    assert torch.equal(unpack_values(packed[:, 3:7], params), unpack_values(packed, params)[:, 3:7])
