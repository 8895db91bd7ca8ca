"""GGUF files: checked from their header, converted once to a safetensors folder.

The conversion is `gguf_worker`, a process of its own, so that what it allocates is given back, and
what it meets in a stranger's file ends that process and not ours.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import ReaderError
from engine.types import Progress

_WORKER = Path(__file__).with_name("gguf_worker.py")
MAGIC = b"GGUF"
DOWNLOAD_AGAIN = "it may be damaged or cut short; get it again"


@dataclass(frozen=True)
class Header:
    """What a GGUF file says of itself. types: how many values it holds in each tensor type."""

    architecture: str
    types: Counter[str]

    @property
    def parameters(self) -> int:
        return self.types.total()

    @property
    def dtype(self) -> str:
        """What the converted tensors are kept in: the narrowest type that holds the values.

        A file of floats keeps its own type. What quantised blocks stand for, a 16-bit scale times
        a small integer, plus for some kinds a 16-bit offset, has up to 11 significant bits and
        more: float16 keeps 11 of them and bfloat16 8.
        """
        own, _ = self.types.most_common(1)[0]
        return {"F32": "float32", "BF16": "bfloat16"}.get(own, "float16")

    @property
    def needs(self) -> int:
        """Bytes of the converted weights."""
        return self.parameters * (4 if self.dtype == "float32" else 2)


def check_magic(path: Path) -> None:
    """Raises ReaderError for a file that is no GGUF at all; reads its first bytes only."""
    try:
        with path.open("rb") as stream:
            magic = stream.read(4)
    except OSError as error:
        raise ReaderError(f"{path} cannot be read: {error.strerror or error}") from None
    if magic != MAGIC:
        raise ReaderError(f"{path} is no GGUF file; {DOWNLOAD_AGAIN}")


def read_header(path: Path) -> Header:
    """Read and check the header of a GGUF file; no weights are read.

    Raises:
        ReaderError: not GGUF, cut short, one part of several, or of an architecture that
            transformers does not read from GGUF.
    """
    check_magic(path)
    from gguf import GGUFReader

    try:
        reader: Any = GGUFReader(path)
        parts = reader.get_field("split.count")
        parts = int(parts.contents()) if parts is not None else 1
        architecture = str(reader.get_field("general.architecture").contents())
        types: Counter[str] = Counter()
        for tensor in reader.tensors:
            types[tensor.tensor_type.name] += int(tensor.n_elements)
        end = max(int(tensor.data_offset + tensor.n_bytes) for tensor in reader.tensors)
    # gguf checks nothing, so that a file that is not whole ends in any error of Python's.
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, MemoryError):
        raise ReaderError(f"{path} cannot be read as GGUF; {DOWNLOAD_AGAIN}") from None
    if parts > 1:
        raise ReaderError(
            f"{path} is one of {parts} parts; join them with llama.cpp's gguf-split --merge"
        )
    if end > path.stat().st_size:
        raise ReaderError(f"{path} is cut short; get it again")
    if _plain(architecture) not in (known := readable()):
        raise ReaderError(
            f"{path}: architecture '{architecture}' cannot be read from GGUF by this transformers "
            f"({', '.join(sorted(known))}); name a safetensors folder of the model instead"
        )
    return Header(architecture, types)


def readable() -> set[str]:
    """The GGUF architectures that the installed transformers says it reads."""
    from transformers.integrations.gguf import GGUF_CONFIG_ARCHS  # type: ignore[attr-defined]
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    return {_plain(name) for name in (*GGUF_SUPPORTED_ARCHITECTURES, *GGUF_CONFIG_ARCHS)}


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
