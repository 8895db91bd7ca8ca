"""Uniform quantizers: how many bits a component gets, its step, codes and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[Any]

WIDTHS = (8, 4, 2, 1)


# Mean squared error of the best uniform quantizer of a unit Gaussian at 0, 1, 2, 4, 8 bits.
GAUSS_MSE = {0: 1.0, 1: 0.3634, 2: 0.1188, 4: 0.01154, 8: 1.2e-4}


SAVINGS = tuple(
    (GAUSS_MSE[fewer] - GAUSS_MSE[more]) / (more - fewer)
    for more, fewer in ((8, 4), (4, 2), (2, 1), (1, 0))
)
"""Squared error of a unit Gaussian that each bit saves between a width of WIDTHS and the next
narrower one; it falls with the width, so that a component takes a width where its variance times
this is more than a bit costs."""


def bit_price(variance: Tensor, mean_bits: float) -> float:
    """The squared error that a bit must save to be spent, so that `mean_bits` are spent.

    Args:
        variance: [R, D], each row falling; rows share the bits, so their units must agree.
        mean_bits: bits per component to spend on average over all rows, 0..8.
    Raises:
        TypeError: the variances are not on the CPU; a device would be asked for every trial.
    Source: reverse water-filling over the widths 0, 1, 2, 4 and 8.
    """
    return float(bit_prices(variance[None], mean_bits)[0])


def bit_prices(variance: Tensor, mean_bits: float) -> Tensor:
    """`bit_price` of many groups of rows at once, each with bits of its own.

    variance: [G, R, D], each row falling -> float64 [G].
    """
    var = variance.double().clamp_min(1e-30).numpy()
    low, high = np.log(var.min((1, 2))) - 40.0, np.log(var.max((1, 2))) + 10.0
    saved = _saved(var)
    for _ in range(32):  # the logarithm to a part in a hundred million
        middle = (low + high) / 2
        spent = (_counts(saved, np.exp(middle)).sum(1) * np.array(WIDTHS)).sum(-1)
        over = spent > mean_bits * var[0].size
        low, high = np.where(over, middle, low), np.where(over, high, middle)
    return torch.from_numpy(np.exp(high))


def expected_error(variance: Tensor, mean_bits: float) -> float:
    """Squared error of components of these variances [R, D] that share so many bits on average."""
    bits = bits_at(variance, bit_price(variance, mean_bits)).long()
    lost = torch.zeros(max(GAUSS_MSE) + 1, dtype=torch.float64)
    lost[list(GAUSS_MSE)] = torch.tensor(list(GAUSS_MSE.values()), dtype=torch.float64)
    return float((variance.double() * lost[bits]).sum())


def bits_at(variance: Tensor, price: float | Tensor) -> Tensor:
    """Bits per component at a price as `bit_price` gives it.

    Args:
        variance: [R, D], each row falling.  price: of all rows, or of each [R].
    Returns:
        uint8 [R, D], falling; runs of 4, 2 and 1 bits fill whole bytes, so a row is byte aligned.
    Raises:
        TypeError: as `bit_price`.
    """
    rows, size = variance.shape
    prices = np.broadcast_to(np.asarray(price, np.float64), rows)
    counts = _counts(_saved(variance.double().clamp_min(1e-30).numpy())[:, None], prices)[:, 0]
    kind = (np.arange(size)[:, None] >= counts.cumsum(-1)[:, None]).sum(-1)
    return torch.from_numpy(np.array([*WIDTHS, 0], np.uint8)[kind])


def _saved(variance: Array) -> Array:
    """What a bit saves of each component: [..., D] -> [..., D, widths], widths falling."""
    saved: Array = variance[..., None] * np.array(SAVINGS)
    return saved


def _counts(saved: Array, price: Array) -> Array:
    """Components of each width, int64 [G, R, widths], where a bit saves so much [G, R, D, widths]
    and costs `price` [G]; narrow ones in whole bytes. In numpy, which takes a third of torch's time
    for arrays of so few numbers."""
    size = saved.shape[-2]
    counts: Array = (saved > price[:, None, None, None]).sum(-2)
    start = np.zeros_like(counts[..., 0])
    for index, width in enumerate(WIDTHS):
        run = 8 // width
        count = np.maximum((counts[..., index] - start + run // 2) // run, 0)
        counts[..., index] = np.minimum(count, (size - start) // run) * run
        start += counts[..., index]
    return counts


def is_allocation(bits: Tensor) -> bool:
    """Whether bits [..., D] are as `allocate_bits` gives them: falling widths in whole bytes."""
    known = torch.tensor([*WIDTHS, 0], device=bits.device)
    whole = all(bool(((bits == w).sum(-1) * w % 8 == 0).all()) for w in WIDTHS)
    return whole and bool(torch.isin(bits, known).all() and (bits.int().diff(dim=-1) <= 0).all())


def allocate_bits(variance: Tensor, mean_bits: float) -> Tensor:
    """Bits per component; every row of falling variances [..., D] has `mean_bits` of its own."""
    rows = variance.reshape(-1, variance.shape[-1])
    return bits_at(rows, bit_prices(rows[:, None], mean_bits)).reshape(variance.shape)


REACH = {0: 1.0, 1: 1.596, 2: 1.991, 4: 2.682, 8: 3.942}
"""How far the levels of the best uniform quantizer of a unit Gaussian reach, by bits."""

TRIALS = (0.5, 0.65, 0.8, 0.9, 1.0, 1.12, 1.3, 1.6, 2.2)
"""Reaches that are tried, in those of a Gaussian: less for heavy tails of which most is small,
more where nothing lies between the levels."""


def fit_steps(coefs: Tensor, bits: Tensor) -> Tensor:
    """The step of a uniform mid-rise quantizer per component with the least squared error.

    Args:
        coefs: [Hkv, N, D] sample; some hundred rows are enough.  bits: [Hkv, D] uint8.
    Returns:
        [Hkv, D] float32; the levels are (i + 0.5 - 2**(b-1)) * step, i = 0 .. 2**b - 1. 1 where a
        component has no bits.
    """
    step = torch.ones(bits.shape, dtype=torch.float32, device=coefs.device)
    used = int((bits > 0).sum(-1).max())
    if not used:
        return step
    coefs, widths = coefs[..., :used].float().contiguous(), bits[:, :used].long()
    half = torch.pow(2.0, widths.float() - 1)[:, None]
    size = coefs.square().mean(1, keepdim=True).sqrt().clamp_min(1e-12)
    gauss = torch.zeros(max(REACH) + 1, device=coefs.device)
    gauss[list(REACH)] = gauss.new_tensor(list(REACH.values()))
    usual, peak = gauss[widths][:, None] * size, coefs.abs().amax(1, keepdim=True)
    best = torch.full_like(size, torch.inf)
    found = torch.ones_like(size)
    scaled, level = torch.empty_like(coefs), torch.empty_like(coefs)  # once, not for every trial
    for reach in [*(trial * usual for trial in TRIALS), peak.clamp_min(1e-12)]:
        trial = reach / half
        torch.div(coefs, trial, out=scaled)
        torch.floor(scaled, out=level).add_(0.5).clamp_(0.5 - half, half - 0.5)
        error = level.sub_(scaled).square_().mean(1, keepdim=True) * trial.square()
        better = error < best
        best, found = torch.where(better, error, best), torch.where(better, trial, found)
    step[:, :used] = torch.where(widths > 0, found[:, 0], 1.0)
    return step


def quantize(coefs: Tensor, bits: Tensor, step: Tensor) -> Tensor:
    """Codes uint8 [..., D] of coefficients; `step` as `fit_steps` gives it, bits [D] or a number
    of bits that all components share."""
    return float_codes(coefs, bits, step).to(torch.uint8)


def float_codes(coefs: Tensor, bits: Tensor, step: Tensor) -> Tensor:
    """`quantize`, the codes as whole float32 numbers."""
    half = torch.pow(2.0, bits.float() - 1)
    return (coefs / step).add_(half).floor_().clamp_min_(0).clamp_max_(2 * half - 1)


def rounding_error(coefs: Tensor, codes: Tensor, bits: Tensor, step: Tensor) -> Tensor:
    """What codes as `float_codes` gives them leave of the coefficients, float32 [..., D]."""
    half = torch.pow(2.0, bits.float() - 1)
    return (codes + (0.5 - half)).mul_(step).neg_().add_(coefs)


def dequantize(codes: Tensor, bits: Tensor, step: Tensor) -> Tensor:
    """The values that codes stand for, float32."""
    half = torch.pow(2.0, bits.float() - 1)
    return codes.float().add_(0.5 - half).mul_(step)
