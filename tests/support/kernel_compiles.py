"""Compiles the kernel for real GPUs, for which none is needed; prints what came out."""

from __future__ import annotations

import json

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from engine.compression import kernels

pointers = {"packed": "*u8", "places": "*i32", "queries": "*fp32", "shift": "*fp32"}
pointers |= {"bounds": "*i64", "out": "*fp32"}
numbers = dict.fromkeys(("spans", "rows", "width", "components"), "i32")
sizes = {"TERMS": 32, "TILE": 16, "SPANS": kernels.LANES}
made = {}
for capability in (80, 90):
    source = ASTSource(
        kernels._kernel,
        signature={**pointers, **numbers, **dict.fromkeys(sizes, "constexpr")},
        constexprs=sizes,
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    made[capability] = len(compiled.asm["cubin"])
print(json.dumps(list(made.values())))
