"""Arithmetic on keys and values. No files, no models, no policy.

Shapes share one alphabet: L layers, H query heads, Hkv KV heads, G = H / Hkv, Q query rows,
D head size, N tokens, S spans, R rank. Spans are given by `bounds` [S + 1], ascending token
positions: span s holds the tokens bounds[s] .. bounds[s + 1] - 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

NEVER = float("-inf")

CACHED = 1 << 18
"""Numbers of an array that are worked on at once where there are very many: a cache holds them."""


# ---------------------------------------------------------------------------- attention


def mix(logits: list[Tensor], values: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Attend once over rows of mixed resolution: one softmax over all parts.

    Args:
        logits: parts [Hkv, Q, n_i] in float32 nats, scaled; -inf hides a row from a query.
        values: parts [Hkv, n_i, D].
    Returns:
        The output [Hkv, Q, D] in float32 and the weights of each part [Hkv, Q, n_i].
    Source: SeKV (arXiv 2606.31145), section 3.3. A row that stands for n tokens carries their
        log-mass as its logit; it is exact when the keys of the span agree.
    """
    top = logits[0].amax(-1, keepdim=True)
    for part in logits[1:]:
        if part.shape[-1]:
            top = torch.maximum(top, part.amax(-1, keepdim=True))
    top = top.clamp_min(torch.finfo(torch.float32).min)
    weights = [torch.exp(part - top) for part in logits]
    total = torch.stack([w.sum(-1, keepdim=True) for w in weights]).sum(0)
    total = total.clamp_min(1.0)  # its top row alone is one; less means that all are hidden
    weights = [w / total for w in weights]
    out = torch.zeros(
        *logits[0].shape[:2], values[0].shape[-1], dtype=torch.float32, device=top.device
    )
    for w, v in zip(weights, values, strict=True):
        if w.shape[-1]:
            out = torch.baddbmm(out, w, v.to(torch.float32))
    return out, weights


def group(q: Tensor, kv_heads: int) -> Tensor:
    """Queries [H, Q, D] as float32 rows of their KV head [Hkv, G * Q, D]."""
    return q.to(torch.float32).reshape(kv_heads, -1, q.shape[-1])


def turn(rows: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of rows [..., n, D] by tables [n, D], as RoPE's own are laid out.

    Source: RoFormer (arXiv 2104.09864), component i paired with i + D / 2 as Llama pairs them.
    """
    first, second = rows.chunk(2, -1)
    return rows * cos + torch.cat([-second, first], -1) * sin


def turn_back(rows: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """What `turn` turned; tables may be scaled alike, as YaRN's are."""
    return turn(rows, cos, -sin) / (cos.square() + sin.square())


# ---------------------------------------------------------------------------- spans


def span_ids(bounds: Tensor) -> Tensor:
    """The span of every token, [N], from bounds [S + 1]."""
    lengths = bounds.diff()
    return torch.repeat_interleave(torch.arange(len(lengths), device=bounds.device), lengths)


def span_mean(rows: Tensor, weights: Tensor, bounds: Tensor) -> Tensor:
    """Weighted mean of the rows of each span.

    Args:
        rows: [Hkv, N, D].  weights: [N], not negative.  bounds: [S + 1].
    Returns:
        [Hkv, S, D] in float32; the plain mean where a span's weights are all zero.
    Source: SeKV (arXiv 2606.31145), equations for the summary key and value.
    """
    ids = span_ids(bounds)
    count = len(bounds) - 1
    lengths = bounds.diff().to(torch.float32)
    w = weights.to(torch.float32)
    total = torch.zeros(count, device=rows.device).index_add_(0, ids, w)
    w = torch.where(total[ids] > 0, w / total.clamp_min(1e-30)[ids], 1.0 / lengths[ids])
    weighted = (rows.to(torch.float32) * w[:, None]).transpose(0, 1)
    means = torch.zeros(count, rows.shape[0], rows.shape[2], device=rows.device)
    return means.index_add_(0, ids, weighted).transpose(0, 1).contiguous()


def stretches(bounds: Tensor, tokens: int) -> list[tuple[int, int]]:
    """Runs of spans (first, last + 1) of at most `tokens` tokens, or of one span."""
    spans = len(bounds) - 1
    runs, first = [], 0
    while first < spans:
        last = int(torch.searchsorted(bounds, bounds[first] + tokens, right=True)) - 1
        last = max(first + 1, last)
        runs.append((first, last))
        first = last
    return runs


def padded_spans(rows: Tensor, owner: Tensor) -> tuple[Tensor, Tensor]:
    """Rows span by span, zeros where a span is shorter than the longest.

    Args:
        rows: [Hkv, N, D].  owner: [N] the span of every token, see `span_ids`.
    Returns:
        [Hkv, S, n, D] float32, and bool [1, S, n] where a token is.
    """
    lengths = torch.bincount(owner)
    first = lengths.cumsum(0) - lengths
    place = torch.arange(len(owner), device=owner.device) - first[owner]
    inside = torch.arange(int(lengths.max()), device=owner.device) < lengths[:, None]
    out = rows.new_zeros(rows.shape[0], *inside.shape, rows.shape[2], dtype=torch.float32)
    out[:, owner, place] = rows.float()
    return out, inside[None]


def span_logsumexp(scores: Tensor, bounds: Tensor) -> Tensor:
    """Log-mass of each span: log of the sum of exp(score) over its tokens.

    Args:
        scores: [Hkv, Q, N] nats.  bounds: [S + 1], no empty span.
    Returns:
        [Hkv, Q, S]. Spans more than about 87 nats under the row's best come out as -inf: their
        share of the softmax is below what float32 can add.
    """
    heads, rows, _ = scores.shape
    top = scores.amax(-1, keepdim=True)
    out = torch.zeros(len(bounds) - 1, heads * rows, device=scores.device)
    for first, last in stretches(bounds, max(256, CACHED // max(1, heads * rows))):
        here = bounds[first : last + 1]
        mass = torch.exp(scores[..., here[0] : here[-1]] - top)
        mass = mass.permute(2, 0, 1).reshape(-1, heads * rows)
        out[first:last].index_add_(0, span_ids(here), mass)
    return out.log().reshape(-1, heads, rows).permute(1, 2, 0) + top


def span_masses(packed: Tensor, bits: Tensor, q: Tensor, shift: Tensor, bounds: Tensor) -> Tensor:
    """Log-mass of each span of rows that are held in few bits, stretch by stretch.

    Args:
        packed: uint8 [1, N, width], see `pack_heads`.  bits: uint8 [Hkv, R].
        q: float32 [Hkv, Q, R] nats per step of a component.  shift: [Hkv, Q, 1] nats that every
            token of a head has beside.  bounds: [S + 1].
    Returns:
        [Hkv, Q, S], see `span_logsumexp`.
    """
    out = [q.new_zeros(*q.shape[:2], 0)]
    for first, last in stretches(bounds, max(256, 2**22 // max(1, q.shape[1]))):
        start, end = int(bounds[first]), int(bounds[last])
        scores = packed_scores(packed[:, start:end], bits, q) + shift
        out.append(span_logsumexp(scores, bounds[first : last + 1] - start))
    return torch.cat(out, -1)


def packed_scores(packed: Tensor, bits: Tensor, q: Tensor) -> Tensor:
    """The products of queries with rows that are held in few bits, [Hkv, Q, n].

    Args:
        packed: uint8 [1, n, width], see `pack_heads`.  bits: uint8 [Hkv, R].
        q: float32 [Hkv, Q, R], per step of a component.
    """
    out = q.new_empty(*q.shape[:2], packed.shape[1])
    rows = split_heads(packed, bits)
    for head, each in enumerate(bits):
        packing = Packing.of(each)
        used = packing.components
        middle = 0.5 - torch.pow(2.0, each[:used].float() - 1)
        beside = (q[head, :, :used] * middle).sum(-1, keepdim=True)
        lowered = q[head].clone()
        lowered[:, :used] *= q.new_tensor(packing.powers)
        step = max(256, CACHED // max(1, used))
        for start in range(0, packed.shape[1], step):
            codes = packing.raised(rows[head][start : start + step])
            products = lowered[:, :used] @ codes.T
            torch.add(products, beside, out=out[head, :, start : start + step])
    return out


# ---------------------------------------------------------------------------- bases


def covariance_basis(rows: Tensor, metric: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The basis of greatest variance of each head (PCA by eigh, in float64).

    Args:
        rows: [Hkv, N, D].  metric: [Hkv, D, D] second moment of what the rows will be multiplied
            with; None stands for the identity.
    Returns:
        mean [Hkv, D], basis [Hkv, D, D] (columns by falling variance), variance [Hkv, D]; float32.
        Coefficients are uncorrelated, and with them the squared error of a row in the metric is
        the sum of their squared errors; without a metric the basis is orthonormal.
    """
    x = rows.to(torch.float64)
    mean = x.mean(1)
    x = x - mean[:, None]
    basis, variance = moment_basis(torch.bmm(x.mT, x) / max(1, rows.shape[1]), metric)
    return mean.float(), basis, variance


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


# ---------------------------------------------------------------------------- quantisers

WIDTHS = (8, 4, 2, 1)
# Mean squared error of the best uniform quantiser of a unit Gaussian at 0, 1, 2, 4, 8 bits.
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
    """The step of a uniform mid-rise quantiser per component with the least squared error.

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


def quantise(coefs: Tensor, bits: Tensor, step: Tensor) -> Tensor:
    """Codes uint8 [..., D] of coefficients; `step` as `fit_steps` gives it, bits [D] or a number
    of bits that all components share."""
    half = torch.pow(2.0, bits.float() - 1)
    return (coefs / step).add_(half).floor_().clamp_min_(0).minimum(2 * half - 1).to(torch.uint8)


def dequantise(codes: Tensor, bits: Tensor, step: Tensor) -> Tensor:
    """The values that codes stand for, float32."""
    half = torch.pow(2.0, bits.float() - 1)
    return codes.float().add_(0.5 - half).mul_(step)


@dataclass(frozen=True)
class Packing:
    """How a row of codes lies in bytes: first the 8-bit components, then 4, 2 and 1.

    Within a width, byte j holds components j, j + n, j + 2n ... of that run of n bytes, lowest
    bits first, so that unpacking is a shift and a mask of whole runs, never an interleave.
    """

    counts: tuple[int, int, int, int]

    @classmethod
    def of(cls, bits: Tensor) -> Packing:
        widths = bits.flatten().tolist()  # a device is waited for once
        c8, c4, c2, c1 = (widths.count(width) for width in WIDTHS)
        return cls((c8, c4, c2, c1))

    @property
    def components(self) -> int:
        return sum(self.counts)

    @property
    def row_bytes(self) -> int:
        return sum(n * w // 8 for n, w in zip(self.counts, WIDTHS, strict=True))

    def pack(self, codes: Tensor) -> Tensor:
        """codes uint8 [..., D] -> uint8 [..., row_bytes]."""
        parts, start = [], 0
        for count, width in zip(self.counts, WIDTHS, strict=True):
            run = count * width // 8
            out = torch.zeros(*codes.shape[:-1], run, dtype=torch.uint8, device=codes.device)
            for place in range(8 // width):
                piece = codes[..., start + place * run : start + (place + 1) * run]
                out |= piece << (place * width)
            parts.append(out)
            start += count
        return torch.cat(parts, -1)

    def unpack(self, packed: Tensor) -> Tensor:
        """uint8 [..., row_bytes] -> codes uint8 [..., components]."""
        parts = [packed[..., :0]]
        for piece, width, place in self._runs(packed):
            # What lies lowest or highest in a byte needs half the work.
            part = piece >> place if place else piece
            parts.append(part & ((1 << width) - 1) if place + width < 8 else part)
        return torch.cat(parts, -1)

    def raised(self, packed: Tensor) -> Tensor:
        """Codes where they lie in their bytes, float32 [..., components]: each is a power of two
        too large, see `powers`, and no shift was needed."""
        parts = [packed[..., :0]]
        for piece, width, place in self._runs(packed):
            parts.append(piece & (((1 << width) - 1) << place) if width < 8 else piece)
        return torch.cat(parts, -1).float()

    def _runs(self, packed: Tensor) -> Iterator[tuple[Tensor, int, int]]:
        """Bytes that hold components of one width, that width, and the bit where they lie."""
        start = 0
        for count, width in zip(self.counts, WIDTHS, strict=True):
            run = count * width // 8
            for place in range(0, 8 if run else 0, width):
                yield packed[..., start : start + run], width, place
            start += run

    @property
    def powers(self) -> list[float]:
        """What brings the components of `raised` down; a product with them is exact."""
        return [
            2.0**-place
            for count, width in zip(self.counts, WIDTHS, strict=True)
            for place in range(0, 8, width)
            for _ in range(count * width // 8)
        ]


def pack_heads(coefs: Tensor, bits: Tensor, step: Tensor) -> Tensor:
    """Quantise and pack rows of all heads.

    Args:
        coefs: [Hkv, n, D].  bits, step: [Hkv, D].
    Returns:
        uint8 [1, n, width]: the rows of the heads side by side, each of its own length.
    """
    rows = [
        Packing.of(b).pack(quantise(x, b, s)) for x, b, s in zip(coefs, bits, step, strict=True)
    ]
    return torch.cat(rows, -1)[None]


def split_heads(packed: Tensor, bits: Tensor) -> list[Tensor]:
    """Each head's packed rows uint8 [n, bytes], from rows as `pack_heads` gives them."""
    return list(torch.split(packed[0], [Packing.of(row).row_bytes for row in bits], -1))


def code_places(bits: Tensor) -> Tensor:
    """Where the code of each component lies in a row of bytes as `pack_heads` gives it.

    Args:
        bits: uint8 [Hkv, R].
    Returns:
        int32 [Hkv, 3, R]: its byte, how many bits up it begins there, and the mask above them;
        0 where a component has no bits. Computed on the device, without waiting for it.
    """
    widths = torch.tensor(WIDTHS, device=bits.device)
    kind = (bits[..., None] == widths).int()
    counts = kind.sum(1)
    runs = counts * widths // 8
    total = runs.sum(-1, keepdim=True)
    byte = (runs.cumsum(-1) - runs + (total.cumsum(0) - total)).gather(1, kind.argmax(-1))
    start = (counts.cumsum(-1) - counts).gather(1, kind.argmax(-1))
    run = runs.gather(1, kind.argmax(-1)).clamp_min(1)
    place = torch.arange(bits.shape[-1], device=bits.device) - start
    mask = (1 << bits.int()) - 1
    return (
        torch.stack([byte + place % run, place // run * bits, mask], 1) * (bits > 0)[:, None]
    ).int()


def gather_ranges(starts: Tensor, lengths: Tensor) -> Tensor:
    """Indices of the ranges start .. start + length - 1, one after another, [sum(lengths)]."""
    total = int(lengths.sum())
    ends = lengths.cumsum(0)
    offset = torch.repeat_interleave(starts - (ends - lengths), lengths)
    return offset + torch.arange(total, device=starts.device)
