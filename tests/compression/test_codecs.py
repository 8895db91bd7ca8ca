"""Spans into records and back: exact where promised, small where promised."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.compression import summaries
from engine.compression.basis import covariance_basis
from engine.compression.codecs.base import Codec, Records
from engine.compression.codecs.raw import Raw
from engine.compression.codecs.rows import Rows
from engine.compression.codecs.shared_basis import SharedBasis
from engine.compression.codecs.span_svd import SpanSVD
from engine.compression.layer_basis import Axes
from engine.compression.packing import Packing
from engine.compression.params import Basis, Codes, LayerParams, needed
from engine.compression.query_statistics import QueryMoments
from engine.compression.ranges import gather_ranges, span_mean
from engine.compression.routers.sketch import Sketch
from engine.compression.statistics import LayerStatistics
from engine.errors import StoreError
from tiny_memory import rows

EXACT: dict[str, Codec] = {
    "raw": Raw(),
    "basis": SharedBasis(bits=32),
    "svd": SpanSVD(exact=True),
}
LOSSY: dict[str, Codec] = {
    "basis": SharedBasis(bits=6),
    "basis with residuals": SharedBasis(bits=5, outlier=4.0, residual=4.0),
    "svd": SpanSVD(),
}
ALL = {**EXACT, **{f"lossy {name}": codec for name, codec in LOSSY.items()}}


def bounds_of(*lengths: int) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def encoded(codec: Codec, k: torch.Tensor, v: torch.Tensor, bounds: torch.Tensor) -> Any:
    params = codec.fit(k, v)
    return codec.encode(k, v, bounds, params), params


def row_bytes(params: LayerParams) -> int:
    """Of the codes of a token in the first head."""
    codes = needed(params.codes)
    return sum(Packing.of(each.bits[0]).row_bytes for each in (codes.keys, codes.values))


def decoded(
    codec: Codec,
    records: Records,
    params: LayerParams,
    bounds: torch.Tensor,
    heads: int,
    head: int,
    spans: list[int],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Some spans of a head in any order, from their records alone."""
    place = torch.tensor(spans, dtype=torch.int64) * heads + head
    sizes = records.offsets[place + 1] - records.offsets[place]
    payload = records.payload[gather_ranges(records.offsets[place], sizes)]
    offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    lengths = bounds.diff()[torch.tensor(spans, dtype=torch.int64)]
    return codec.decode(head, payload, offsets, lengths, params)


def error(codec: Codec, k: torch.Tensor, v: torch.Tensor, bounds: torch.Tensor) -> float:
    """Relative squared error over all heads of keys and values."""
    records, params = encoded(codec, k, v, bounds)
    every = list(range(len(bounds) - 1))
    wrong = whole = 0.0
    for head in range(len(k)):
        got = decoded(codec, records, params, bounds, len(k), head, every)
        for mine, true in zip(got, (k[head], v[head]), strict=True):
            wrong += float((mine - true).square().sum())
            whole += float((true - true.mean(0)).square().sum())
    return wrong / whole


@pytest.mark.parametrize("size", [16, 64, 128])
@pytest.mark.parametrize("heads", [1, 2, 3, 4])
@pytest.mark.parametrize("name", sorted(EXACT))
def test_the_exact_codecs_lose_nothing(name: str, heads: int, size: int) -> None:
    k, v = rows(heads, heads, 70, size)
    bounds = bounds_of(1, 12, 1, 30, 7, 19)
    codec = EXACT[name]
    records, params = encoded(codec, k, v, bounds)
    for head in range(heads):
        got = decoded(codec, records, params, bounds, heads, head, list(range(6)))
        torch.testing.assert_close(got, (k[head], v[head]), atol=1e-5, rtol=1e-5)


@settings(max_examples=40)
@given(
    name=st.sampled_from(sorted(ALL)),
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=8),
    heads=st.integers(1, 3),
    data=st.data(),
)
def test_any_spans_in_any_order_decode_as_all_of_them(
    name: str, lengths: list[int], heads: int, data: st.DataObject
) -> None:
    """A record needs no other: a subset in any order gives the rows it gives among all."""
    k, v = rows(len(lengths), heads, sum(lengths), 16)
    bounds, codec = bounds_of(*lengths), ALL[name]
    records, params = encoded(codec, k, v, bounds)
    head = data.draw(st.integers(0, heads - 1))
    spans = data.draw(st.lists(st.integers(0, len(lengths) - 1), unique=True))
    every = list(range(len(lengths)))
    whole = decoded(codec, records, params, bounds, heads, head, every)
    some = decoded(codec, records, params, bounds, heads, head, spans)
    picked = torch.tensor(spans, dtype=torch.int64)
    place = gather_ranges(bounds[picked], bounds.diff()[picked])
    for mine, all_of_them, true in zip(some, whole, (k, v), strict=True):
        assert mine.shape == (len(place), 16)
        torch.testing.assert_close(mine, all_of_them[place], atol=1e-6, rtol=1e-6)
        if name in EXACT:
            torch.testing.assert_close(mine, true[head][place], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", sorted(ALL))
def test_records_lie_one_after_another_with_the_heads_of_a_span_together(name: str) -> None:
    k, v = rows(1, 3, 40, 16)
    bounds = bounds_of(4, 10, 1, 25)
    records, params = encoded(ALL[name], k, v, bounds)
    assert records.payload.dtype == torch.uint8
    assert records.offsets.dtype == torch.int64
    assert len(records.offsets) == 4 * 3 + 1
    assert records.offsets[0] == 0
    assert records.offsets[-1] == len(records.payload)
    assert bool((records.offsets.diff() > 0).all())
    again = ALL[name].encode(k, v, bounds, params)
    assert torch.equal(again.payload, records.payload)


@pytest.mark.parametrize("name", sorted(ALL))
@pytest.mark.parametrize(
    "what", ["ones", "equal rows", "zeros", "tiny", "huge", "one token", "few tokens", "one span"]
)
def test_odd_spans_come_back(name: str, what: str) -> None:
    """Spans of one token, rows that are all equal, zero, of any magnitude; fewer rows than D."""
    k, v = rows(5, 2, 24, 16)
    lengths = [8, 8, 8]
    if what == "ones":
        lengths = [1] * 24
    elif what == "equal rows":
        k, v = (x[:, :1].expand(-1, 24, -1).contiguous() for x in (k, v))
    elif what == "zeros":
        k, v = torch.zeros_like(k), torch.zeros_like(v)
    elif what in ("tiny", "huge"):
        k, v = (x * (1e-4 if what == "tiny" else 1e3) for x in (k, v))
    elif what == "one token":
        k, v, lengths = k[:, :1], v[:, :1], [1]
    elif what == "few tokens":
        k, v, lengths = k[:, :3], v[:, :3], [1, 2]
    else:
        lengths = [24]
    bounds, codec = bounds_of(*lengths), ALL[name]
    records, params = encoded(codec, k, v, bounds)
    for head in range(2):
        got = decoded(codec, records, params, bounds, 2, head, list(range(len(lengths))))
        for mine, true in zip(got, (k[head], v[head]), strict=True):
            scale = float(true.abs().max()) + 1e-9
            limit = 1e-5 if name in EXACT else 0.06
            assert float((mine - true).abs().max()) <= limit * scale + 1e-6


@pytest.mark.parametrize("name", sorted(ALL))
def test_no_span_is_no_row(name: str) -> None:
    k, v = rows(6, 2, 24, 16)
    bounds = bounds_of(8, 8, 8)
    records, params = encoded(ALL[name], k, v, bounds)
    for part in decoded(ALL[name], records, params, bounds, 2, 1, []):
        assert part.shape == (0, 16)
        assert part.dtype == torch.float32
        assert part.device == records.payload.device


# ---------------------------------------------------------------------------- raw


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_raw_keeps_every_bit_of_the_model_s_own_dtype(dtype: torch.dtype) -> None:
    k, v = (x.to(dtype) for x in rows(7, 2, 30, 16))
    bounds = bounds_of(10, 5, 15)
    records, params = encoded(Raw(), k, v, bounds)
    assert len(records.payload) == 2 * k.nbytes
    got = decoded(Raw(), records, params, bounds, 2, 1, [0, 1, 2])
    assert torch.equal(got[0], k[1].float())
    assert torch.equal(got[1], v[1].float())


# ---------------------------------------------------------------------------- shared basis


def test_more_bits_are_less_wrong() -> None:
    k, v = rows(8, 2, 600, 64)
    bounds = bounds_of(*[12] * 50)
    errors = [error(SharedBasis(bits), k, v, bounds) for bits in (0.5, 1, 2, 3, 4, 5, 6, 7, 8)]
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 0.1
    assert errors[-1] < 2e-4


@pytest.mark.parametrize("bits", [1.0, 2.0, 4.0, 6.0])
def test_a_token_takes_the_bits_it_was_promised(bits: float) -> None:
    """About the mean asked: every width is rounded to whole bytes, at most three a row."""
    k, v = rows(9, 2, 300, 64)
    codec = SharedBasis(bits)
    records, _ = encoded(codec, k, v, bounds_of(*[10] * 30))
    each = len(records.payload) / (300 * 2 * 2 * 64) * 8
    assert 0.8 * bits <= each <= bits + 3 * 8 / 64
    assert codec.host_share(64, 10) == pytest.approx(bits / 15)  # a fifteenth beside


def test_every_token_of_a_head_takes_the_same_bytes() -> None:
    k, v = rows(10, 2, 60, 16)
    bounds = bounds_of(1, 20, 9, 30)
    records, _ = encoded(SharedBasis(4), k, v, bounds)
    sizes = records.offsets.diff().reshape(4, 2)
    assert torch.equal(sizes, bounds.diff()[:, None] * sizes[0])


def test_a_basis_of_one_window_still_codes_another() -> None:
    """At full rank exactly, else within the range that the first window had."""
    k, v = rows(11, 2, 200, 32)
    other_k, other_v = (3 * x + 1 for x in rows(12, 2, 100, 32))
    bounds = bounds_of(50, 50)
    for codec, limit in ((SharedBasis(32), 1e-4), (SharedBasis(6), 20.0)):
        params = codec.fit(k, v)
        records = codec.encode(other_k, other_v, bounds, params)
        got = decoded(codec, records, params, bounds, 2, 0, [0, 1])
        assert float((got[0] - other_k[0]).abs().max()) < limit
        assert float((got[1] - other_v[0]).abs().max()) < limit


def test_columns_without_a_bit_are_not_missed() -> None:
    """Codes, sketches and their masses read the same from the columns that are used."""
    k, v = rows(17, 2, 200, 32)
    bounds, codec, sketch = bounds_of(*[20] * 10), SharedBasis(1.0), Sketch(0.75)
    params = codec.fit(k, v)
    params = sketch.fit(k, params)
    params = summaries.fit_values(span_mean(v, torch.ones(200), bounds), 1.0, params)
    lean = params.trimmed()
    assert lean.nbytes < 0.8 * params.nbytes
    records = codec.encode(k, v, bounds, params)
    for head in range(2):
        whole = decoded(codec, records, params, bounds, 2, head, list(range(10)))
        torch.testing.assert_close(
            decoded(codec, records, lean, bounds, 2, head, list(range(10))), whole
        )
    tables, packed = sketch.build(k, k, params), summaries.pack_values(k[:, :9], 1.0, params)
    torch.testing.assert_close(
        summaries.unpack_values(packed, lean), summaries.unpack_values(packed, params)
    )
    q = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(17)) / 4
    torch.testing.assert_close(
        sketch.logmass(q, tables, lean, bounds),
        sketch.logmass(q, tables, params, bounds),
        atol=0.05,  # what no column says any more counted a little among what is missing
        rtol=0,
    )


@pytest.mark.parametrize("size", [16, 64, 128])
def test_a_rounded_basis_still_gives_the_rows_back(size: int) -> None:
    """Eight-bit columns are not orthogonal; coefficients are solved for, so nothing is lost."""
    k, _ = rows(13, 2, 300, size)
    mean, basis, _ = covariance_basis(k)
    packed = Basis.packed(mean, basis)
    assert packed.columns.dtype == torch.int8
    back_mean, columns = packed.unpacked()
    coefs = Axes.of(packed).coefficients(k)
    back = back_mean[:, None] + coefs @ columns.mT
    torch.testing.assert_close(back, k, atol=1e-4, rtol=1e-4)
    for head in range(2):
        one_mean, one = packed.unpacked(head)
        assert torch.equal(one, columns[head])
        assert torch.equal(one_mean, back_mean[head])


# ---------------------------------------------------------------------------- span SVD


@settings(max_examples=40)
@given(
    length=st.integers(1, 90),
    size=st.sampled_from([16, 64, 128]),
    rank=st.integers(1, 64),
    directions=st.integers(1, 16),
    seed=st.integers(0, 9),
)
def test_a_factorisation_is_never_larger_than_the_rows(
    length: int, size: int, rank: int, directions: int, seed: int
) -> None:
    """Neither than 16-bit rows nor than 8-bit rows with their scales, but for four bytes of marks;
    the marks tell which it is."""
    made = torch.Generator().manual_seed(seed)
    k, v = (
        torch.randn(1, length, directions, generator=made)
        @ torch.randn(directions, size, generator=made)
        for _ in range(2)
    )
    codec = SpanSVD(rank=rank)
    records, _ = encoded(codec, k, v, bounds_of(length))
    assert len(records.payload) <= 4 + 2 * length * (size + 2)
    assert len(records.payload) <= 4 * length * size
    for kept in SpanSVD.ranks(records.payload, records.offsets, size):
        assert 1 <= int(kept) <= size
        if int(kept) < size:
            assert int(kept) <= min(rank, length)
            assert int(kept) * (length + size + 4) < length * (size + 2)


def test_more_directions_are_less_wrong() -> None:
    k, v = rows(14, 2, 600, 64)
    bounds = bounds_of(*[100] * 6)
    errors = [error(SpanSVD(rank=r, energy=1.0), k, v, bounds) for r in (1, 2, 4, 8, 16, 32)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.01 < errors[0]


def test_no_more_directions_are_kept_than_the_energy_needs() -> None:
    """A span of rank three keeps three, to the rounding of eight bits."""
    made = torch.Generator().manual_seed(1)
    k, v = (
        torch.randn(1, 90, 3, generator=made) @ torch.randn(3, 64, generator=made) for _ in range(2)
    )
    k, v = k - k.mean(1, keepdim=True), v - v.mean(1, keepdim=True)
    bounds = bounds_of(90)
    records, params = encoded(SpanSVD(energy=0.999999), k, v, bounds)
    assert [int(r) for r in SpanSVD.ranks(records.payload, records.offsets, 64)] == [3, 3]
    got = decoded(SpanSVD(), records, params, bounds, 1, 0, [0])
    assert float((got[0] - k[0]).norm() / k.norm()) < 0.01


def test_a_lower_rank_is_a_prefix() -> None:
    """Direction after direction: what one rank writes begins what the next one writes."""
    k, v = rows(15, 1, 100, 64)
    bounds = bounds_of(100)
    low, _ = encoded(SpanSVD(rank=3, energy=1.0), k, v, bounds)
    high, _ = encoded(SpanSVD(rank=5, energy=1.0), k, v, bounds)
    stride = 100 + 64 + 4
    assert torch.equal(low.payload[4 : 4 + 3 * stride], high.payload[4 : 4 + 3 * stride])


def test_the_expected_share_is_near_the_real_one() -> None:
    k, v = rows(16, 2, 640, 64)
    for length in (4, 16, 64):
        for codec in (SharedBasis(4), SpanSVD(energy=1.0), Raw()):
            records, _ = encoded(
                codec, k.bfloat16(), v.bfloat16(), bounds_of(*[length] * (640 // length))
            )
            real = len(records.payload) / (640 * 2 * 2 * 64 * 2)
            assert codec.host_share(64, length) == pytest.approx(real, rel=0.15)


def test_codecs_are_told_apart_by_their_fields() -> None:
    assert replace(SpanSVD(), rank=8) != SpanSVD()
    assert SharedBasis(4) == SharedBasis(bits=4.0)


# ---------------------------------------------------------------------------- errors and bits


def test_a_span_that_a_code_would_spoil_keeps_eight_bit_rows() -> None:
    """It alone; it is then as near as plain rows are, and still smaller than 16-bit ones."""
    k, v = rows(17, 2, 320, 32)
    bounds = evenly = torch.arange(0, 321, 8)
    strange = k.clone()
    strange[1, 80:88] = 30 * torch.randn(8, 32, generator=torch.Generator().manual_seed(3))
    codec = SharedBasis(2.0, outlier=4.0)
    params = codec.fit(k, v)
    records = codec.encode(strange, v, bounds, params)
    sizes = records.offsets.diff().reshape(-1, 2).T
    assert torch.nonzero(sizes != sizes[:, :1]).tolist() == [[1, 10]]
    assert int(sizes[1, 10]) == 8 * 2 * (32 + 2) < 8 * 4 * 32
    assert records.errors.shape == (2, 40)
    assert float(records.errors[1, 10]) == 0
    assert bool((records.errors[sizes == sizes[:, :1]] > 0).all())
    every = list(range(len(evenly) - 1))
    got, _ = decoded(codec, records, params, bounds, 2, 1, every)
    own = slice(80, 88)
    assert float((got[own] - strange[1, own]).norm() / strange[1, own].norm()) < 0.01
    plain, _ = decoded(
        SharedBasis(2.0),
        SharedBasis(2.0).encode(strange, v, bounds, params),
        params,
        bounds,
        2,
        1,
        every,
    )
    assert float((plain[own] - strange[1, own]).norm() / strange[1, own].norm()) > 0.3
    torch.testing.assert_close(torch.cat([got[:80], got[88:]]), torch.cat([plain[:80], plain[88:]]))


def heavy(seed: int, heads: int, n: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of which one in thirty is an outlier."""
    k, v = rows(seed, heads, n, size)
    k[:, ::30] *= 6
    v[:, 7::30] *= 6
    return k, v


def test_outliers_keep_their_residuals_and_nothing_else_changes() -> None:
    """Few tokens take bytes beside their codes; those are nearer, and all others the same rows."""
    k, v = heavy(23, 2, 300, 32)
    bounds = bounds_of(*[10] * 30)
    params = SharedBasis(3.0).fit(k, v)
    got = {}
    for residual in (0.0, 12.0):
        codec = SharedBasis(3.0, residual=residual)
        records = codec.encode(k, v, bounds, params)
        sizes = records.offsets.diff().reshape(-1, 2).T
        assert codec.fits(sizes, bounds.diff(), params)
        got[residual] = (
            records,
            [
                decoded(codec, records, params, bounds, 2, head, list(range(30)))
                for head in range(2)
            ],
        )
    without, mended = got[0.0], got[12.0]
    extra = mended[0].offsets.diff() - without[0].offsets.diff()
    assert bool((extra % 3 == 0).all())
    assert bool((mended[0].errors <= without[0].errors).all())
    assert 0 < int(extra.sum()) < 0.2 * len(without[0].payload)
    for head in range(2):
        for what, before, after, true in zip(
            "kv", without[1][head], mended[1][head], (k[head], v[head]), strict=True
        ):
            same = (before - after).abs().amax(-1) == 0
            assert 0.8 < float(same.float().mean()) < 1
            worse, better = ((x - true)[~same].norm(dim=-1) for x in (before, after))
            # Columns are nearly orthogonal, so that a nearer coefficient is a nearer row.
            assert float(better.norm()) < 0.7 * float(worse.norm()), what


def test_residuals_pay_where_there_are_outliers() -> None:
    """At no more bytes the rows are nearer than with more bits for all."""
    k, v = heavy(24, 2, 600, 32)
    bounds = bounds_of(*[12] * 50)
    spent, lost = {}, {}
    for codec in (SharedBasis(3.0), SharedBasis(2.75, residual=12.0)):
        spent[codec] = len(encoded(codec, k, v, bounds)[0].payload)
        lost[codec] = error(codec, k, v, bounds)
    plain, mended = spent
    assert spent[mended] <= spent[plain]
    assert lost[mended] < 0.9 * lost[plain]


@settings(max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=5),
    bits=st.sampled_from([0.5, 3.0, 7.5]),
    residual=st.sampled_from([0.01, 1.0, 12.0]),
    strange=st.floats(0.0, 1e4),
)
def test_no_record_is_larger_than_plain_rows(
    lengths: list[int], bits: float, residual: float, strange: float
) -> None:
    """However far the rows are from those the basis was fitted on, and in whatever part of a span:
    positions beyond two bytes keep their codes alone."""
    k, v = rows(25, 2, sum(lengths), 64)
    codec = SharedBasis(bits, outlier=4.0, residual=residual)
    params = codec.fit(*rows(26, 2, 100, 64))
    bounds = bounds_of(*lengths)
    records = codec.encode(k * strange, v, bounds, params)
    sizes = records.offsets.diff().reshape(-1, 2).T
    assert bool((sizes <= 2 * (64 + 2) * bounds.diff()).all())
    assert codec.fits(sizes, bounds.diff(), params)
    for head in range(2):
        got = decoded(codec, records, params, bounds, 2, head, list(range(len(lengths))))
        for mine, true in zip(got, (k[head] * strange, v[head]), strict=True):
            assert mine.shape == true.shape
            assert bool(mine.isfinite().all())


def test_residuals_reach_as_far_as_two_bytes_say() -> None:
    """In one long span of outliers the first 512 tokens are nearer, the others as they were."""
    k, v = rows(27, 1, 600, 64)
    params = SharedBasis(2.0).fit(k, v)
    bounds = bounds_of(600)
    far = k * 2
    got = []
    for codec in (SharedBasis(2.0), SharedBasis(2.0, residual=30.0)):
        records = codec.encode(far, v, bounds, params)
        got.append(decoded(codec, records, params, bounds, 1, 0, [0])[0])
    changed = (got[0] - got[1]).abs().amax(-1) > 0
    assert float(changed[:512].float().mean()) > 0.3
    assert not bool(changed[512:].any())


def test_residuals_read_the_same_from_the_columns_that_are_used() -> None:
    """Trimmed or not, and coded with what was trimmed, as old turns of a talk are."""
    k, v = heavy(28, 2, 200, 32)
    bounds, codec = bounds_of(*[20] * 10), SharedBasis(1.0, residual=8.0)
    params = codec.fit(k, v)
    lean = params.trimmed()
    assert needed(lean.codes).keys.bits.shape[-1] < 32
    for given_ in (params, lean):
        records = codec.encode(k, v, bounds, given_)
        assert len(set(records.offsets.diff().tolist())) > 2
        for head in range(2):
            whole = decoded(codec, records, params, bounds, 2, head, list(range(10)))
            torch.testing.assert_close(
                decoded(codec, records, lean, bounds, 2, head, list(range(10))), whole
            )


@pytest.mark.parametrize("at", [0, 1])
def test_a_residual_of_nothing_is_refused(at: int) -> None:
    """An entry that names a token beyond its span, or a coefficient without a code."""
    k, v = heavy(29, 1, 60, 16)
    bounds, codec = bounds_of(30, 30), SharedBasis(2.0, residual=4.0)
    records, params = encoded(codec, k, v, bounds)
    codes = row_bytes(params) * 30
    assert int(records.offsets[1]) > codes
    records.payload[codes : codes + 2] = torch.tensor([255, 255] if at else [15, 0])
    assert int(needed(params.codes).keys.bits[0, 15]) == 0
    with pytest.raises(StoreError, match="ingest again"):
        decoded(codec, records, params, bounds, 1, 0, [0])


def test_sizes_that_no_residuals_make_do_not_fit() -> None:
    k, v = heavy(30, 1, 40, 16)
    lengths, codec = torch.tensor([40]), SharedBasis(2.0, outlier=4.0, residual=4.0)
    params = codec.fit(k, v)
    codes = row_bytes(params) * 40
    plain = 40 * 2 * 18
    for size, fits in ((0, True), (3, True), (1, False), (-3, False), (plain - codes, True)):
        assert codec.fits(torch.tensor([[codes + size]]), lengths, params) == fits, size
    assert not codec.fits(torch.tensor([[plain + 3]]), lengths, params)
    assert not SharedBasis(2.0).fits(torch.tensor([[codes + 3]]), lengths, params)


def test_the_recorded_error_is_that_of_the_rows() -> None:
    """Over the spread about the mean; without queries the basis is orthonormal, so rows and
    coefficients agree to the rounding of the basis."""
    k, v = rows(18, 1, 240, 32)
    bounds, codec = torch.arange(0, 241, 12), SharedBasis(3.0)
    records, params = encoded(codec, k, v, bounds)
    got = decoded(codec, records, params, bounds, 1, 0, list(range(20)))
    found = []
    for mine, true in zip(got, (k[0], v[0]), strict=True):
        wrong = (mine - true).square().sum(-1).reshape(20, 12).mean(1)
        found.append((wrong / (true - true.mean(0)).square().sum(-1).mean()).sqrt())
    torch.testing.assert_close(records.errors[0], torch.stack(found).amax(0), rtol=0.05, atol=0.01)


def test_queries_decide_which_error_of_a_key_counts() -> None:
    """With the same bits, scores of the queries that were expected are nearer to the truth."""
    k, v = rows(19, 1, 600, 32)
    made = torch.Generator().manual_seed(4)
    looks = torch.randn(200, 32, generator=made) * (torch.arange(32) >= 24)
    known = QueryMoments((looks.T @ looks / 200)[None], torch.ones(1), torch.full((1,), 0.01))
    bounds, codec = torch.arange(0, 601, 10), SharedBasis(2.0)
    wrong = []
    for queries in (None, known):
        params = codec.fit(k, v, LayerStatistics.of(k, v, queries))
        records = codec.encode(k, v, bounds, params)
        got, _ = decoded(codec, records, params, bounds, 1, 0, list(range(60)))
        wrong.append(float(((got - k[0]) @ looks.T).square().mean()))
    assert wrong[1] < wrong[0] / 4


def test_layers_and_heads_share_the_bits_they_are_worth() -> None:
    """A head whose errors do not show gives its bits to the others; the mean is kept."""
    k, v = rows(20, 2, 400, 32)
    worth = torch.tensor([1.0, 1e-4])
    known = LayerStatistics.of(k, v, QueryMoments(torch.eye(32).expand(2, -1, -1), worth, worth))
    params = SharedBasis(3.0).fit(k, v, known)
    less = SharedBasis(3.0).fit(k, v, replace(known, code_price=0.5))
    codes, fewer = (needed(each.codes) for each in (params, less))
    mean = torch.stack([codes.keys.bits, codes.values.bits]).float().mean((0, 2))
    assert mean[0] > mean[1] + 1
    assert float(mean.mean()) == pytest.approx(3.0, abs=0.15)
    assert int(fewer.keys.bits.sum()) < int(codes.keys.bits.sum())


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_plain_rows_are_half_a_step_off_at_most(bits: int) -> None:
    k, v = rows(21, 2, 60, 16)
    bounds, codec = bounds_of(20, 1, 39), Rows(bits)
    records, params = encoded(codec, k, v, bounds)
    assert len(records.payload) == 60 * 2 * 2 * (2 + 16 * bits // 8)
    for head in range(2):
        got = decoded(codec, records, params, bounds, 2, head, [0, 1, 2])
        for mine, true in zip(got, (k[head], v[head]), strict=True):
            step = true.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 0.5)
            assert bool(((mine - true).abs() <= 0.5 * step * 1.002 + 1e-6).all())


def test_a_head_of_no_bits_gives_its_mean() -> None:
    k, v = rows(22, 1, 40, 16)
    params = SharedBasis(3.0).fit(k, v)
    keys, values = needed(params.codes).keys, needed(params.codes).values
    none = torch.zeros_like(keys.bits)
    params = replace(params, codes=Codes(replace(keys, bits=none), replace(values, bits=none)))
    records = SharedBasis(3.0).encode(k, v, bounds_of(10, 30), params)
    assert len(records.payload) == 0
    got = decoded(SharedBasis(3.0), records, params, bounds_of(10, 30), 1, 0, [1])
    torch.testing.assert_close(got[0], needed(params.keys).mean.float().expand(30, -1))
