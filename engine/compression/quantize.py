"""Uniform quantizers: how many bits a component gets, its step, codes and back."""

from __future__ import annotations

import math

import torch
from torch import Tensor

WIDTHS = (8, 4, 2, 1)


# Mean squared error of the best uniform quantizer of a unit Gaussian at 0, 1, 2, 4, 8 bits.
GAUSS_MSE = {0: 1.0, 1: 0.3634, 2: 0.1188, 4: 0.01154, 8: 1.2e-4}


def bit_price(variance: Tensor, mean_bits: float) -> float:
    """The squared error that a bit must save to be spent, so that `mean_bits` are spent.

    Args:
        variance: [R, D], each row falling; rows share the bits, so their units must agree.
        mean_bits: bits per component to spend on average over all rows, 0..8.
    Source: reverse water-filling over the widths 0, 1, 2, 4 and 8.
    """
    var = variance.double().clamp_min(1e-30)
    low, high = math.log(float(var.min())) - 40.0, math.log(float(var.max())) + 10.0
    for _ in range(32):  # the logarithm to a part in a hundred million
        middle = (low + high) / 2
        if float(bits_at(variance, math.exp(middle)).double().mean()) > mean_bits:
            low = middle
        else:
            high = middle
    return math.exp(high)


def expected_error(variance: Tensor, mean_bits: float) -> float:
    """Squared error of components of these variances [R, D] that share so many bits on average."""
    bits = bits_at(variance, bit_price(variance, mean_bits)).long()
    lost = torch.zeros(max(GAUSS_MSE) + 1, dtype=torch.float64)
    lost[list(GAUSS_MSE)] = torch.tensor(list(GAUSS_MSE.values()), dtype=torch.float64)
    return float((variance.double() * lost[bits]).sum())


def bits_at(variance: Tensor, price: float) -> Tensor:
    """Bits per component at a price as `bit_price` gives it.

    Args:
        variance: [R, D], each row falling.
    Returns:
        uint8 [R, D], falling; runs of 4, 2 and 1 bits fill whole bytes, so a row is byte aligned.
    """
    choices = torch.tensor(sorted(GAUSS_MSE))
    mse = torch.tensor([GAUSS_MSE[int(b)] for b in choices], dtype=torch.float64)
    cost = variance.double().clamp_min(1e-30)[..., None] * mse + price * choices
    wanted = choices[cost.argmin(-1)]
    out = torch.zeros(variance.shape, dtype=torch.uint8)
    place = torch.arange(variance.shape[-1])
    start = torch.zeros(len(variance), 1, dtype=torch.int64)
    for width in WIDTHS:
        run = 8 // width
        end = (wanted >= width).sum(-1, keepdim=True)
        count = ((end - start + run // 2) // run).clamp_min(0)
        count = count.minimum((variance.shape[-1] - start) // run) * run
        out[(place >= start) & (place < start + count)] = width
        start = start + count
    return out


def is_allocation(bits: Tensor) -> bool:
    """Whether bits [..., D] are as `allocate_bits` gives them: falling widths in whole bytes."""
    known = torch.tensor([*WIDTHS, 0], device=bits.device)
    whole = all(bool(((bits == w).sum(-1) * w % 8 == 0).all()) for w in WIDTHS)
    return whole and bool(torch.isin(bits, known).all() and (bits.int().diff(dim=-1) <= 0).all())


def allocate_bits(variance: Tensor, mean_bits: float) -> Tensor:
    """Bits per component of one row [D] of falling variances, `mean_bits` on average."""
    return bits_at(variance[None], bit_price(variance[None], mean_bits))[0]


def fit_steps(coefs: Tensor, bits: Tensor) -> Tensor:
    """The step of a uniform mid-rise quantizer per component with the least squared error.

    Args:
        coefs: [Hkv, N, D] sample.  bits: [Hkv, D] uint8.
    Returns:
        [Hkv, D] float32; the levels are (i + 0.5 - 2**(b-1)) * step, i = 0 .. 2**b - 1.
    """
    half = torch.pow(2.0, bits.float() - 1)[:, None]
    sigma = coefs.std(1, correction=0).clamp_min(1e-12)
    peak = coefs.abs().amax(1).clamp_min(1e-12)
    best = torch.full_like(sigma, torch.inf)
    step = torch.ones_like(sigma)
    # From where one bit is best (0.8 sigma) to where eight bits of a Gaussian are (4 sigma),
    # and up to the peak for what has heavier tails.
    for reach in [*(m * sigma for m in torch.linspace(0.8, 4.0, 9)), 6 * sigma, peak]:
        trial = reach / half[:, 0]
        scaled = coefs / trial[:, None]
        level = (scaled.floor() + 0.5).maximum(0.5 - half).minimum(half - 0.5)
        error = (level - scaled).square_().mean(1) * trial.square()
        better = error < best
        best = torch.where(better, error, best)
        step = torch.where(better, trial, step)
    return step


def quantize(coefs: Tensor, bits: Tensor, step: Tensor) -> Tensor:
    """Codes uint8 [..., D] of coefficients; `step` as `fit_steps` gives it, bits [D] or a number
    of bits that all components share."""
    half = torch.pow(2.0, bits.float() - 1)
    return (coefs / step).add_(half).floor_().clamp_min_(0).minimum(2 * half - 1).to(torch.uint8)


def dequantize(codes: Tensor, bits: Tensor, step: Tensor) -> Tensor:
    """The values that codes stand for, float32."""
    half = torch.pow(2.0, bits.float() - 1)
    return codes.float().add_(0.5 - half).mul_(step)
