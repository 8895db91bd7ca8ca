"""Runs the products with packed codes by Triton's interpreter, on the CPU, against torch alone;
prints how far apart they are.

A program of its own: the interpreter is chosen by the environment before Triton is imported.
"""

from __future__ import annotations

import json

import torch

from engine.compression.columns import CodeColumns, CodeLayout
from engine.compression.products import Residuals

HEADS = 2
WIDE = [8] * 3 + [4] * 4 + [2] * 8 + [1] * 24
CASES = (
    (3, 200, [[WIDE, WIDE], [WIDE, [4] * 10 + [1] * 8 + [0] * 21]], None),
    (20, 70, [[WIDE, [0] * 39], [[8] + [0] * 38, WIDE]], None),
    (1, 300, [[WIDE, WIDE], [WIDE, WIDE]], ((3, 130), (131, 132), (200, 300))),
)
"""Query rows, rows of codes, the bits of each part and head, and the ranges of rows."""


def far(queries: int, rows: int, table: list[list[list[int]]], runs: object) -> float:
    from engine.compression import gpu_kernels

    made = torch.Generator().manual_seed(rows)
    layout = CodeLayout.of(torch.tensor(table, dtype=torch.uint8))
    data = torch.randint(0, 256, (layout.width, rows), generator=made).to(torch.uint8)
    codes = CodeColumns(layout, data, runs)  # type: ignore[arg-type]
    size, count = layout.components, len(codes)
    plain = codes.unpack().view(2, HEADS, size, count)
    used = (layout.lower > 0).float()
    index = torch.randint(0, HEADS * size, (30,), generator=made)
    row = torch.randint(0, count, (30,), generator=made)
    amount = torch.randn(30, generator=made).half().float()
    some = Residuals.none(HEADS, size, count, torch.device("cpu")).appended(index, row, amount)
    beside = torch.zeros(HEADS, size, count)
    beside.view(-1).index_add_(0, index * count + row, amount)
    worst = 0.0
    for part in (0, 1):
        q = torch.randn(HEADS, queries, size, generator=made) * used[part][:, None] / 64
        weight = torch.rand(HEADS, queries, count, generator=made) / count
        found = gpu_kernels.scores(codes, part, q)
        gpu_kernels.add_residual_scores(some, q, found)
        worst = max(worst, float((found - q @ (plain[part] + beside)).abs().max()))
        found = gpu_kernels.sums(codes, part, weight)
        gpu_kernels.add_residual_sums(some, weight, found)
        wanted = weight @ (plain[part] + beside).mT
        worst = max(worst, float(((found - wanted) * used[part][:, None]).abs().max()))
    return worst


if __name__ == "__main__":
    print(json.dumps([far(*case) for case in CASES]))
