"""Checking a whole store: every byte against its checksum, every table against the manifest.

What it is: the walk behind `sekv verify`, torch-free and of bounded memory. What it is not: it
repairs nothing.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import numpy as np

from engine import manifest as names
from engine.errors import StoreError
from engine.store.files import StoreFile
from engine.store.host import table_fault
from engine.store.tensors import to_numpy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.manifest import Manifest
    from engine.types import Progress


def damages(folder: int, manifest: Manifest, progress: Progress) -> list[str]:
    """One line per damage of the store whose folder is open as `folder`; [] when sound."""
    found = list(strangers(folder, manifest))
    progress.start("verify", sum(entry.bytes for entry in manifest.files.values()), "bytes")
    for name, entry in sorted(manifest.files.items()):
        try:
            file = StoreFile(folder, name, entry)
        except StoreError as error:
            found.append(str(error))
            continue
        try:
            broken = list(file.damaged_tensors(progress.advance))
            found += [f"{name} is damaged in tensor {tensor!r}" for tensor in broken]
            if not broken:
                found += [f"{name}: {fault}" for fault in _faults(file, name, manifest)]
        except StoreError as error:
            found.append(str(error))
        finally:
            file.close()
    return found


def walk(folder: int, below: str = "") -> Iterator[tuple[str, os.stat_result]]:
    """Everything below an open folder as (name, lstat), folders included, links not followed."""
    with os.scandir(folder) as entries:
        listed = sorted(entries, key=lambda entry: entry.name)
    for entry in listed:
        name = f"{below}{entry.name}"
        found = os.stat(entry.name, dir_fd=folder, follow_symlinks=False)
        yield name, found
        if stat.S_ISDIR(found.st_mode):
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            inner = os.open(entry.name, flags, dir_fd=folder)
            try:
                yield from walk(inner, f"{name}/")
            finally:
                os.close(inner)


def strangers(folder: int, manifest: Manifest) -> Iterator[str]:
    """Files, links and folders that the manifest does not name."""
    known = {*manifest.files, names.NAME}
    for name, found in walk(folder):
        if stat.S_ISLNK(found.st_mode):
            yield f"{name} is a symbolic link, which a store never holds"
        elif name not in known and not (name == names.WINDOWS and stat.S_ISDIR(found.st_mode)):
            yield f"{name} does not belong to the store"


def _faults(file: StoreFile, name: str, manifest: Manifest) -> Iterator[str]:
    """Tables that contradict the manifest although their bytes are as written."""
    if name == names.DOCUMENT:
        yield from _document_faults(file, manifest)
    for index, window in enumerate(manifest.windows):
        if name == names.host_file(index):
            yield from _host_faults(file, window.spans, manifest.model.kv_heads)


def _document_faults(file: StoreFile, manifest: Manifest) -> Iterator[str]:
    tables = {}
    for name in ("ids", "starts", "ends", "source"):
        info = file.info(name)
        if info.shape != (manifest.tokens,) or info.dtype not in ("I32", "I64"):
            yield f"{name} is {info.dtype} {info.shape} for {manifest.tokens} tokens"
            return
        tables[name] = to_numpy(file.tensor_bytes(name), info).astype(np.int64)
    source, starts, ends = tables["source"], tables["starts"], tables["ends"]
    if ((source < 0) | (source >= len(manifest.sources))).any():
        yield "tokens of a source that does not exist"
        return
    chars = np.array([entry.chars for entry in manifest.sources], dtype=np.int64)
    if ((starts < 0) | (ends < starts) | (ends > chars[source])).any():
        yield "tokens that leave their text"
    if (tables["ids"] < 0).any():
        yield "negative token ids"
    for index, entry in enumerate(manifest.sources):
        text = file.tensor_bytes(f"text.{index}").tobytes().decode("utf-8", "surrogatepass")
        if len(text) != entry.chars:
            yield f"text.{index} has {len(text)} characters where the manifest says {entry.chars}"


def _host_faults(file: StoreFile, spans: int, kv_heads: int) -> Iterator[str]:
    layers = {name.split(".")[0] for name in file.header.tensors}
    for layer in sorted(layers):
        parts = [file.info(f"{layer}.{part}") for part in ("offsets", "check", "codes")]
        offsets, sums = (
            to_numpy(file.tensor_bytes(f"{layer}.{part}"), info)
            for part, info in zip(("offsets", "check"), parts, strict=False)
        )
        fault = table_fault(offsets, sums, parts[2].bytes, spans)
        if not fault and offsets.size != spans * kv_heads + 1:
            fault = f"{offsets.size} offsets for {spans} spans of {kv_heads} KV heads"
        if fault:
            yield f"layer {layer}: {fault}"
