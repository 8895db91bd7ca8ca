"""Products with packed codes are those with the codes themselves, however they are made."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.compression import products
from engine.compression.columns import CodeColumns, CodeLayout
from engine.compression.products import CodeProducts, Residuals

HEADS = 2


def made(seed: int, rows: int, size: int) -> tuple[CodeColumns, torch.Tensor]:
    """Columns of two parts with any bits, and their codes [2, Hkv, R, n] as they unpack."""
    some = torch.Generator().manual_seed(seed)
    choice = torch.tensor([0, 1, 2, 4, 8], dtype=torch.uint8)
    bits = choice[torch.randint(0, 5, (2, HEADS, size), generator=some)]
    bits = bits.sort(-1, descending=True).values
    # a width fills whole bytes
    for part in bits.view(-1, size):
        for width in (1, 2, 4):
            mine = (part == width).nonzero()[:, 0]
            part[mine[len(mine) // (8 // width) * (8 // width) :]] = 0
    bits = bits.sort(-1, descending=True).values
    layout = CodeLayout.of(bits)
    data = torch.randint(0, 256, (layout.width, rows), generator=some).to(torch.uint8)
    columns = CodeColumns(layout, data)
    return columns, columns.unpack().view(2, HEADS, layout.components, rows)


@pytest.fixture(params=["registers", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "torch":
        monkeypatch.setattr(products, "has_kernels", lambda kind: False)
    elif not products.has_kernels("cpu"):
        pytest.skip("numba is not installed")
    return str(request.param)


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    scale = 1 + (float(wanted.abs().max()) if wanted.numel() else 0.0)
    torch.testing.assert_close(found, wanted, atol=2e-6 * scale, rtol=1e-5)


# Which way is the same for all examples of a test.
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10_000), rows=st.integers(0, 1100), size=st.integers(1, 40),
    queries=st.integers(1, 5),
)  # fmt: skip
def test_both_ways_give_what_the_codes_give(
    way: str, seed: int, rows: int, size: int, queries: int
) -> None:
    columns, codes = made(seed, rows, size)
    used = columns.layout.lower > 0  # what has no bits may hold anything finite
    some = torch.Generator().manual_seed(seed)
    for part in (0, 1):
        q = torch.randn(HEADS, queries, codes.shape[2], generator=some) * used[part][:, None]
        weight = torch.rand(HEADS, queries, rows, generator=some)
        asked = CodeProducts(columns)
        close(asked.scores(part, q), q @ codes[part])
        sums = asked.sums(part, weight) * used[part][:, None]
        close(sums, weight @ codes[part].mT * used[part][:, None])


def test_ranges_of_rows_are_taken_one_after_another(way: str) -> None:
    columns, codes = made(3, 900, 24)
    runs = ((5, 600), (700, 701), (850, 900))
    inside = torch.cat([torch.arange(first, last) for first, last in runs])
    q, weight = torch.randn(HEADS, 3, codes.shape[2]), torch.rand(HEADS, 3, len(inside))
    used = (columns.layout.lower > 0).float()
    some = CodeProducts(CodeColumns(columns.layout, columns.data, runs))
    close(some.scores(1, q * used[1][:, None]), (q * used[1][:, None]) @ codes[1][..., inside])
    wanted = weight @ codes[1][..., inside].mT * used[1][:, None]
    close(some.sums(1, weight) * used[1][:, None], wanted)


def test_residuals_count_as_if_they_stood_in_the_codes(way: str) -> None:
    columns, codes = made(4, 333, 16)
    size = codes.shape[2]
    index, row = torch.randint(0, HEADS * size, (50,)), torch.randint(0, 333, (50,))
    amount = torch.randn(50).half()
    none = Residuals.none(HEADS, size, 333, torch.device("cpu"))
    some = none.appended(index, row, amount.float())
    assert torch.equal(some.index, index)
    assert torch.equal(some.row, row)
    codes = codes.clone()
    codes[1].view(-1).index_add_(0, index * 333 + row, amount.float())
    used = (columns.layout.lower > 0).float()
    q, weight = torch.randn(HEADS, 3, size) * used[1][:, None], torch.rand(HEADS, 3, 333)
    asked = CodeProducts(columns, (none, some))
    close(asked.scores(1, q), q @ codes[1])
    close(asked.sums(1, weight) * used[1][:, None], weight @ codes[1].mT * used[1][:, None])
    assert some.masked(torch.arange(50) < 7).row.tolist() == row[:7].tolist()


def test_many_query_rows_unpack_once_and_say_what_that_takes() -> None:
    columns, codes = made(5, 100, 8)
    asked = CodeProducts(columns)
    q = torch.randn(HEADS, products.FEW + 1, codes.shape[2])
    close(asked.scores(0, q), q @ codes[0])
    assert asked.working_bytes(products.FEW + 1) == columns.layout.working_bytes(100) > 0
    few = asked.working_bytes(1)
    assert few == (0 if products.has_kernels("cpu") else columns.layout.working_bytes(100))
