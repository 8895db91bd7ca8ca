"""The mapped weight files of a checkpoint, whose pages are given back while they are read.

safetensors maps a file, and every page that was read counts as the process's memory until the whole
file is let go of. A model that is packed weight by weight would so be in memory twice.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

MAPS = Path("/proc/self/maps")


class MappedFiles:
    """The places in memory where files of a folder are mapped now; none but on Linux."""

    def __init__(self, folder: Path):
        linux = sys.platform == "linux" and MAPS.exists()
        self._ranges = list(_mapped_below(folder.resolve())) if linux else []

    def forget(self, weight: Tensor) -> None:
        """Give back the pages that hold nothing but a weight, where it lies in one of the files.
        Who reads it later reads it from the file again."""
        first = -(-weight.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (weight.data_ptr() + weight.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if any(begin <= first < last <= end for begin, end in self._ranges):
            start, size = ctypes.c_void_p(first), ctypes.c_size_t(last - first)
            ctypes.CDLL(None).madvise(start, size, mmap.MADV_DONTNEED)


def _mapped_below(folder: Path) -> Iterator[tuple[int, int]]:
    """First and last + 1 address of every mapping of a file in a folder."""
    for line in MAPS.read_text(encoding="utf-8", errors="replace").splitlines():
        place, _, _, _, _, *name = line.split(maxsplit=5)
        if name and Path(name[0]).parent == folder:
            first, last = (int(end, 16) for end in place.split("-"))
            yield first, last
