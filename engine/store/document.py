"""The document of a store: token tables and texts, each held against the manifest when read.

The one rule about `document.safetensors`, for opening and for verifying. torch-free.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from engine.errors import StoreDamagedError
from engine.store.tensors import to_numpy

if TYPE_CHECKING:
    import numpy.typing as npt

    from engine.store.files import StoreFile
    from engine.store.manifest import Manifest

TABLES = ("ids", "starts", "ends", "source")
"""[N] each: what every document has beside its texts `text.0`, `text.1`, ..."""


def read_tables(file: StoreFile, manifest: Manifest) -> dict[str, npt.NDArray[Any]]:
    """`TABLES` by name.

    Raises:
        StoreError: one is missing, damaged, or says what cannot be.
    """
    tables = {}
    for name in TABLES:
        info = file.info(name)
        if info.shape != (manifest.tokens,) or info.dtype not in ("I32", "I64"):
            raise StoreDamagedError(
                f"{file.name}: {name} is {info.dtype} {info.shape} for {manifest.tokens} tokens"
            )
        tables[name] = to_numpy(file.tensor_bytes(name), info)
    source, starts, ends = tables["source"], tables["starts"], tables["ends"]
    if ((source < 0) | (source >= len(manifest.sources))).any():
        raise StoreDamagedError(f"{file.name}: tokens of a source that does not exist")
    chars = np.array([entry.chars for entry in manifest.sources], dtype=np.int64)
    if ((starts < 0) | (ends < starts) | (ends > chars[source])).any():
        raise StoreDamagedError(f"{file.name}: tokens that leave their text")
    if (tables["ids"] < 0).any():
        raise StoreDamagedError(f"{file.name}: negative token ids")
    return tables


def read_text(file: StoreFile, manifest: Manifest, source: int) -> str:
    """The text of one source.

    Raises:
        StoreError: missing, damaged, no UTF-8, or of another length than the manifest says.
    """
    data = file.tensor_bytes(f"text.{source}").tobytes()
    try:
        text = data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        raise StoreDamagedError(f"{file.name}: text.{source} is not UTF-8") from None
    chars = manifest.sources[source].chars
    if len(text) != chars:
        raise StoreDamagedError(
            f"{file.name}: text.{source} has {len(text)} characters where the manifest says {chars}"
        )
    return text
