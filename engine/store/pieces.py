"""The pieces a store is made of while it is written: their names and whether they are sound.

The keys of the journal and the files behind them. Removes files that no piece names, and writes
nothing else.
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

from engine.errors import StoreError
from engine.store.files import StoreFile
from engine.store.folder import Folder
from engine.store.verify import contradictions
from engine.store.work import file_from_json

if TYPE_CHECKING:
    from pathlib import Path

    from engine.store.disk import Disk
    from engine.store.manifest import Manifest

DOCUMENT_KEY = "document"
SHARED_KEY = "shared"


def window_key(index: int) -> str:
    """The key of a window."""
    return f"window {index}"


def chunk_key(window: int, chunk: int) -> str:
    """The key of a chunk of raw prefill state."""
    return f"chunk {window} {chunk}"


def newest_key(window: int, chunk: int) -> str:
    """The key of what is kept of a chunk only while it is the newest of its window."""
    return f"{chunk_key(window, chunk)} newest"


def is_newest(key: str) -> bool:
    """Whether a key is a `newest_key`."""
    return is_chunk(key) and key.endswith(" newest")


def is_chunk(key: str) -> bool:
    """Whether a key names a chunk, of any window, or a part of one."""
    return key.startswith("chunk ")


def chunk_file(key: str) -> str:
    """Name of the file of a chunk, or of a part of one, in the folder of chunks."""
    _, window, chunk, *part = key.split(" ")
    return ".".join([f"{int(window):05d}-{int(chunk):06d}", *part, "safetensors"])


def all_sound(folder: Path, piece: dict[str, Any]) -> bool:
    """Whether every file of a promised piece has every byte that was promised."""
    opened = Folder(folder)
    try:
        for name, value in piece["files"].items():
            with closing(StoreFile(opened, name, file_from_json(value))) as file:
                if any(file.is_damaged(tensor, _no_progress) for tensor in file.header.tensors):
                    return False
    except StoreError:
        return False
    finally:
        opened.release()
    return True


def refuse_contradictions(folder: Path, manifest: Manifest, without: set[int]) -> None:
    """Nothing is published whose tables contradict its manifest, whoever is to blame.

    Args:
        without: windows that do not lie in the folder.
    Raises:
        StoreError: they do.
    """
    opened = Folder(folder)
    try:
        fault = next(contradictions(opened, manifest, without), "")
    finally:
        opened.release()
    if fault:
        raise StoreError(f"the store would contradict itself, so it is not published: {fault}")


def remove_strangers(folder: Path, names: set[str], disk: Disk) -> None:
    """Remove files that no piece names, such as those of a write that failed."""
    for path in sorted(folder.rglob("*")):
        if not path.is_dir() and path.relative_to(folder).as_posix() not in names:
            disk.unlink(path)


def _no_progress(done: int) -> None: ...
