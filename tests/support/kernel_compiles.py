"""Compiles the kernels for real GPUs, for which none is needed; prints what came out."""

from __future__ import annotations

import json
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from engine.compression import gpu_kernels, gpu_sketch_kernel

MASSES = {"packed": "*u8", "places": "*i32", "queries": "*fp32", "shift": "*fp32"}
MASSES |= {"bounds": "*i64", "out": "*fp32"}
MASSES |= dict.fromkeys(("spans", "rows", "width", "components"), "i32")
CODES = {"data": "*u8", "column": "*i32", "mask": "*u8", "out": "*fp32"}
NUMBERS = ("first", "count", "stride", "queries", "components", "size", "at", "width")
CODES |= dict.fromkeys(NUMBERS, "i32")
TILES = {"TILE": 16, "LINES": gpu_kernels.ROWS, "PARTS": gpu_kernels.TERMS}
KERNELS: list[tuple[Any, dict[str, str], dict[str, int]]] = [
    (
        gpu_sketch_kernel._kernel,
        MASSES,
        {"TERMS": 32, "TILE": 16, "SPANS": gpu_sketch_kernel.LANES},
    ),
    (gpu_kernels._scores_kernel, {**CODES, "q": "*fp32"}, TILES),
    (gpu_kernels._sums_kernel, {**CODES, "weight": "*fp32", "heads": "i32", "each": "i32"}, TILES),
]

made = []
for kernel, known, sizes in KERNELS:
    for capability in (80, 90):
        kinds = {**known, **dict.fromkeys(sizes, "constexpr")}
        source = ASTSource(
            kernel, signature={name: kinds[name] for name in kernel.arg_names}, constexprs=sizes
        )
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
        made.append(len(compiled.asm["cubin"]))
print(json.dumps(made))
