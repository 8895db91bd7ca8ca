"""Bases of greatest variance (PCA) of keys and values, and thin SVD of spans."""

from __future__ import annotations

import torch
from torch import Tensor


def covariance_basis(rows: Tensor, metric: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The basis of greatest variance of each head (PCA: float32 products, eigh in float64).

    Args:
        rows: [Hkv, N, D].  metric: [Hkv, D, D] second moment of what the rows will be multiplied
            with; None stands for the identity.
    Returns:
        mean [Hkv, D], basis [Hkv, D, D] (columns by falling variance), variance [Hkv, D]; float32.
        Coefficients are uncorrelated, and with them the squared error of a row in the metric is
        the sum of their squared errors; without a metric the basis is orthonormal.
    """
    mean = rows.mean(1, dtype=torch.float64).float()
    x = rows.float() - mean[:, None]
    basis, variance = moment_basis(torch.bmm(x.mT, x).double() / max(1, rows.shape[1]), metric)
    return mean, basis, variance


def moment_basis(cov: Tensor, metric: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The basis of greatest variance, from covariances [Hkv, D, D] in float64: basis and variance
    as `covariance_basis` has them."""
    back = None
    if metric is not None:
        forward, back = _roots(metric.to(torch.float64))
        cov = torch.bmm(torch.bmm(forward.mT, cov), forward)
    variance, basis = torch.linalg.eigh(cov)
    basis, variance = basis.flip(-1), variance.flip(-1).clamp_min(0)
    if back is not None:
        basis = torch.bmm(back, basis)
    # A sign per column is free; fix it so that equal input gives equal bytes.
    sign = torch.sign(basis.gather(1, basis.abs().argmax(1, keepdim=True)))
    return (basis * sign).float(), variance.float()


def _roots(metric: Tensor) -> tuple[Tensor, Tensor]:
    """The root of the metric, and its inverse.

    What few queries have not shown is not free: a hundredth of the mean is added to every
    direction.
    """
    size = metric.shape[-1]
    power, turn = torch.linalg.eigh(metric)
    floor = power.clamp_min(0).mean(-1, keepdim=True) / 100
    root = (power.clamp_min(0) + floor + 1e-12 * size).sqrt()
    forward = torch.bmm(turn * root[:, None], turn.mT)
    return forward, torch.bmm(turn / root[:, None], turn.mT)


def span_svd(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Thin SVD of many small matrices at once by eigh of the smaller Gram matrix.

    Args:
        x: [B, n, D], rows beyond a span's length zero (padding rows is exact).
    Returns:
        u [B, n, m], energy [B, m] (squared singular values, falling), w [B, m, D] = uT x with
        m = min(n, D), so that u[:, :, :r] @ w[:, :r] is the best approximation of rank r.
    Cost: one eigh of size m per matrix, in float64 because the Gram matrix squares the range.
    """
    x64 = x.to(torch.float64)
    if x.shape[1] <= x.shape[2]:
        energy, u = torch.linalg.eigh(torch.bmm(x64, x64.mT))
        u, energy = u.flip(-1), energy.flip(-1).clamp_min(0)
        return u.float(), energy.float(), torch.bmm(u.mT, x64).float()
    energy, v = torch.linalg.eigh(torch.bmm(x64.mT, x64))
    v, energy = v.flip(-1), energy.flip(-1).clamp_min(0)
    size = energy.sqrt()[:, None]
    u = torch.where(size > 1e-10 * size[..., :1], torch.bmm(x64, v) / size, 0.0)
    return u.float(), energy.float(), (size * v).mT.float()
