"""The files of a checkpoint folder that hold its weights, and their fingerprint."""

from __future__ import annotations

import json
from pathlib import Path

import xxhash

from engine.errors import ReaderError
from engine.models import cache
from engine.types import Progress

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""What transformers loads a checkpoint from: the first that is there, in its order. A sharded one
has a file of the same name and `.index.json` instead, which names the shards."""


def weights_fingerprint(folder: Path, progress: Progress) -> str:
    """Hash of all bytes of the files that the checkpoint is loaded from; other files in its folder
    do not matter. Digests of files are remembered, see `cache.digest_of`.

    Raises:
        ReaderError: such a file is missing or cannot be read.
    """
    digest = xxhash.xxh3_128()
    for file in weight_files(folder):
        try:
            line = f"{file.name}:{file.stat().st_size}:{cache.xxh3_of(file, progress)}\n"
        except OSError as error:
            raise ReaderError(f"{file} cannot be read: {error.strerror or error}") from None
        digest.update(line.encode())
    return digest.hexdigest()


def weight_files(folder: Path) -> list[Path]:
    """The files that a checkpoint is loaded from, by name.

    Raises:
        ReaderError: there are none, or one that the index names is missing.
    """
    for name in WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _shards(folder, index)
    raise ReaderError(f"no weight files in {folder}; it needs {WEIGHTS[0]} or an index of shards")


def _shards(folder: Path, index: Path) -> list[Path]:
    try:
        names = shard_names(index.read_bytes())
    except (OSError, ValueError) as error:
        raise ReaderError(f"{index} cannot be read: {error}") from None
    for name in names:
        if not (folder / name).is_file():
            raise ReaderError(f"{index} names {name}, which is not there; get the model again")
    return [folder / name for name in names]


def shard_names(index: bytes) -> list[str]:
    """The files that an index of shards names, sorted.

    Raises:
        ValueError: no such index, or one that names files elsewhere.
    """
    try:
        names = sorted(set(json.loads(index)["weight_map"].values()))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("it is no index of shards") from error
    if not names or any(not isinstance(name, str) or Path(name).name != name for name in names):
        raise ValueError("it is no index of shards")
    return names
