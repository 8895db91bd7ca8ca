"""GGUF files: checked from their header, converted once to a safetensors folder.

The conversion is `gguf_worker`, a process of its own, so that what it allocates is given back, and
what it meets in a stranger's file ends that process and not ours.
"""

from __future__ import annotations

import math
import os
import struct
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path

from engine.errors import ReaderError
from engine.types import Progress

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ADVICE = "it is damaged or cut short; get it again"
MOST_SIZES = 8
"""Most dimensions of a tensor; ggml knows four."""

_WORKER = Path(__file__).with_name("gguf_worker.py")
_STRING, _ARRAY = 8, 9
_NUMBERS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
"""Types of values in a header and how `struct` reads them."""


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says of itself. types: how many weights it holds in each tensor type."""

    architecture: str
    types: Counter[str]

    @property
    def dtype(self) -> str:
        """What the converted tensors are kept in: the narrowest type that holds the values.

        A file of floats keeps its own type. What quantised blocks stand for, a small integer times
        a 16-bit scale and for some kinds plus a 16-bit offset, has more bits than bfloat16's 8;
        float16 keeps 11.
        """
        own, _ = self.types.most_common(1)[0]
        return {"F32": "float32", "BF16": "bfloat16"}.get(own, "float16")

    @property
    def needs(self) -> int:
        """Bytes of the converted weights."""
        return self.types.total() * (4 if self.dtype == "float32" else 2)


def check_magic(path: Path) -> None:
    """Raises ReaderError for a file that is no GGUF at all; reads its first bytes only."""
    try:
        with path.open("rb") as stream:
            magic = stream.read(len(MAGIC))
    except OSError as error:
        raise ReaderError(f"{path} cannot be read: {error.strerror or error}") from None
    if magic != MAGIC:
        raise ReaderError(f"{path} is no GGUF file")


def read_header(path: Path) -> GgufHeader:
    """Read and check the header of a GGUF file, and that all its weights are there.

    Every length is held against the size of the file before it is believed, which the readers that
    the conversion uses do not do.

    Raises:
        ReaderError: not GGUF, cut short, or one part of several.
    Source: docs/gguf.md of ggml, versions 2 and 3.
    """
    check_magic(path)
    try:
        with path.open("rb") as stream, mmap(stream.fileno(), 0, access=ACCESS_READ) as data:
            claims, types = _parse(data)
    except OSError as error:
        raise ReaderError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, struct.error) as error:
        said = "" if isinstance(error, struct.error) else f" ({error})"
        raise ReaderError(f"{path} cannot be read as GGUF{said}; {ADVICE}") from None
    parts = claims.get("split.count")
    if isinstance(parts, int) and parts > 1:
        raise ReaderError(
            f"{path} is one of {parts} parts; join them with llama.cpp's gguf-split --merge"
        )
    return GgufHeader(str(claims.get("general.architecture", "")), types)


def _parse(data: mmap) -> tuple[dict[str, object], Counter[str]]:
    """Single values of the header by name, and the weights by tensor type.

    Raises:
        ValueError, struct.error: it is not as it should be.
    """
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    cursor = _Cursor(data, len(MAGIC))
    if cursor.number("I") not in VERSIONS:
        raise ValueError("of a version that is not known, or of a machine of the other byte order")
    tensors, values = cursor.number("Q"), cursor.number("Q")
    claims = {}
    for _ in range(values):
        key = cursor.text()
        claims[key] = cursor.value(cursor.number("I"))
    types: Counter[str] = Counter()
    end = 0
    for _ in range(tensors):
        cursor.text()
        dimensions = cursor.number("I")
        if dimensions > MOST_SIZES:
            raise ValueError(f"a tensor of {dimensions} dimensions")
        count = math.prod(cursor.number("Q") for _ in range(dimensions))
        kind = GGMLQuantizationType(cursor.number("I"))
        block, size = GGML_QUANT_SIZES[kind]
        end = max(end, cursor.number("Q") + count // block * size)
        types[kind.name] += count
    if not types:
        raise ValueError("it holds no weights")
    aligned = claims.get("general.alignment", 32)
    if not isinstance(aligned, int) or aligned < 1:
        raise ValueError("an alignment that is none")
    start = -(-cursor.at // aligned) * aligned
    if start + end > len(data):
        raise ValueError(f"{start + end} bytes are promised and {len(data)} are there")
    return claims, types


class _Cursor:
    """A place in a header, moving on. Raises struct.error or ValueError at its end."""

    def __init__(self, data: mmap, at: int):
        self.data, self.at = data, at

    def number(self, code: str) -> int:
        value = self.unpack(code)
        if not isinstance(value, int):
            raise ValueError("a number that is none")
        return value

    def unpack(self, code: str) -> object:
        (value,) = struct.unpack_from(f"<{code}", self.data, self.at)
        self.at += struct.calcsize(f"<{code}")
        found: object = value
        return found

    def text(self) -> str:
        size = self.number("Q")
        start = self.at
        self.skip(size)
        return self.data[start : self.at].decode("utf-8", "replace")

    def skip(self, size: int) -> None:
        if size > len(self.data) - self.at:
            raise ValueError("it ends within its header")
        self.at += size

    def value(self, kind: int, depth: int = 0) -> object:
        """One value; None for an array, which is stepped over."""
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            if kind not in _NUMBERS:
                raise ValueError(f"a value of type {kind}")
            return self.unpack(_NUMBERS[kind])
        inner, count = self.number("I"), self.number("Q")
        if inner in _NUMBERS:
            self.skip(count * struct.calcsize(f"<{_NUMBERS[inner]}"))
            return None
        if depth or count > len(self.data) - self.at:
            raise ValueError("an array that does not end")
        for _ in range(count):
            self.value(inner, depth + 1)
        return None


def check_architecture(architecture: str) -> None:
    """Ask the installed transformers whether it reads GGUF files of an architecture.

    Raises:
        ReaderError: it says that it does not.
    """
    from transformers.integrations.gguf import GGUF_CONFIG_ARCHS  # type: ignore[attr-defined]
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    known = {_plain(name) for name in (*GGUF_SUPPORTED_ARCHITECTURES, *GGUF_CONFIG_ARCHS)}
    if _plain(architecture) not in known:
        raise ReaderError(
            f"architecture '{architecture[:40]}' is none that transformers reads from GGUF "
            f"({', '.join(sorted(known))}); name a safetensors folder of the model"
        )


def _plain(architecture: str) -> str:
    """llama.cpp says qwen2moe and gpt-oss where transformers says qwen2_moe and gpt_oss."""
    return architecture.lower().replace("_", "").replace("-", "")


def convert(file: Path, what: str, folder: Path, dtype: str, lock: int, progress: Progress) -> None:
    """Convert a GGUF file into `folder`, which does not exist yet.

    Args:
        what: how the model is named to people.  dtype: that its tensors are kept in.
        lock: a descriptor that the converting process inherits.
    Raises:
        ReaderError: what the file holds cannot be used, or `folder` cannot be written.
    """
    progress.start(f"converting {what}, once", 0, "")
    quiet = {"TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        # -P: a module that lies in the current folder must not be imported.
        [sys.executable, "-P", "-W", "ignore", str(_WORKER), str(file), str(folder), dtype],
        env={**os.environ, **quiet},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        pass_fds=(lock,),
        check=False,
    )
    if done.returncode == 0 and (folder / "config.json").is_file():
        return
    said = done.stdout.strip().splitlines()
    if done.returncode == ReaderError.exit_code and said:
        raise ReaderError(f"{what}: {said[-1]}")
    if done.returncode < 0:
        raise ReaderError(
            f"{what}: converting was ended by signal {-done.returncode}; "
            "if memory ran out, name a smaller model or a safetensors folder"
        )
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    raise ReaderError(f"{what} cannot be converted: {last[:200]}")
