"""The kernel says what the reference says: by Triton's interpreter here, on a GPU where there is
one; and it compiles for real GPUs, for which none is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.compression.packing import Packing, code_places, split_heads
from engine.compression.routers import sketch
from engine.compression.scores import packed_span_masses
from repository import SUPPORT

needs_triton = pytest.mark.skipif(
    find_spec("triton") is None, reason="Triton is not installed: pip install '.[kernels]'"
)


def run(program: str, cache: Path, **environment: str) -> list[float]:
    """What a helper program prints as JSON; Triton reads its switches when imported."""
    done = subprocess.run(
        [sys.executable, str(SUPPORT / program)],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_CACHE_DIR": str(cache), **environment},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: list[float] = json.loads(done.stdout)
    return found


@needs_triton
def test_the_kernel_says_what_the_reference_says(tmp_path: Path) -> None:
    """Heads of other layouts, without bits, spans of one token and of forty, many query rows."""
    assert max(run("kernel_by_interpreter.py", tmp_path, TRITON_INTERPRET="1")) < 1e-4


@needs_triton
def test_products_of_the_kernels_are_those_of_torch(tmp_path: Path) -> None:
    """Both parts, other bits for each head, ranges of rows, residuals."""
    assert max(run("products_by_interpreter.py", tmp_path, TRITON_INTERPRET="1")) < 1e-3


@needs_triton
def test_the_kernel_compiles_for_real_gpus(tmp_path: Path) -> None:
    assert min(run("kernel_compiles.py", tmp_path, TRITON_INTERPRET="0")) > 0


@pytest.mark.gpu
def test_the_kernel_says_on_a_gpu_what_the_reference_says() -> None:
    assert find_spec("triton") is not None, "torch for CUDA brings Triton"
    from engine.compression import gpu_sketch_kernel
    from kernel_by_interpreter import cases

    for packed, bits, q, shift, bounds in cases():
        wanted = packed_span_masses(packed, bits, q, shift, bounds)
        there = [x.cuda() for x in (packed, bits, q, shift, bounds)]
        for found in (gpu_sketch_kernel.span_masses(*there), sketch.span_masses(*there)):
            finite = torch.isfinite(wanted)
            torch.testing.assert_close(found.cpu()[finite], wanted[finite], atol=1e-4, rtol=1e-4)


@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 3), st.integers(0, 2)),
        min_size=1,
        max_size=3,
    )
)
@settings(max_examples=30)
def test_a_code_lies_where_its_place_says(counts: list[tuple[int, int, int, int]]) -> None:
    """Every component of every head, read byte by byte as a kernel does."""
    layouts = [[8] * a + [4] * 2 * b + [2] * 4 * c + [1] * 8 * d for a, b, c, d in counts]
    most = max(len(layout) for layout in layouts) + 1
    bits = torch.tensor([x + [0] * (most - len(x)) for x in layouts], dtype=torch.uint8)
    widths = [Packing.of(each).row_bytes for each in bits]
    packed = torch.randint(
        0, 256, (1, 5, sum(widths)), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    places = code_places(bits)
    parts = split_heads(packed, bits)
    for head, each in enumerate(bits):
        used = int((each > 0).sum())
        wanted = Packing.of(each).unpack(parts[head])
        byte, up, mask = places[head]
        assert bool((places[head][:, used:] == 0).all())
        if sum(widths):
            found = (packed[0][:, byte.long()].int() >> up) & mask
            assert torch.equal(found[:, :used], wanted.int())


@given(st.integers(0, 4), st.integers(0, 4), st.integers(0, 3), st.integers(0, 2))
@settings(max_examples=30)
def test_a_raised_code_is_its_code_times_a_power_of_two(a: int, b: int, c: int, d: int) -> None:
    bits = torch.tensor([8] * a + [4] * 2 * b + [2] * 4 * c + [1] * 8 * d, dtype=torch.uint8)
    packing = Packing.of(bits)
    packed = torch.randint(0, 256, (7, packing.row_bytes), dtype=torch.uint8)
    powers = torch.tensor(packing.powers)
    assert torch.equal(packing.raised(packed) * powers, packing.unpack(packed).float())
