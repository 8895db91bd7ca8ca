"""A toy ingest for the tests of the store: small, torch-free to write, the same bytes every time.

What it is: a stand-in for prefill and compression whose windows are made from their chunks, so that
a resumed run that lost or mixed chunks cannot end in the right bytes, and the questions that
several test files ask of a store. What it is not: a test.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors import safe_open

from engine.errors import StoreError
from engine.store import container
from engine.store.manifest import (
    NAME,
    FileEntry,
    Manifest,
    ModelIdentity,
    SourceEntry,
    WindowEntry,
    from_bytes,
)
from engine.store.reader import Store
from engine.store.tensors import to_blocks
from engine.store.writer import StoreWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from engine.object_storage import Address
    from engine.store.disk import Disk

LAYERS = 2
KV_HEADS = 2
SPANS = 3
WINDOW = 12
CHUNKS = 3

MODEL = ModelIdentity(
    id="toy/model",
    revision="main",
    architecture="ToyForCausalLM",
    weights="aa" * 16,
    layers=LAYERS,
    heads=4,
    kv_heads=KV_HEADS,
    head_dim=8,
    rope={"rope_type": "default", "rope_theta": 10000.0},
    tokenizer="bb" * 16,
    transformers="5.17.0",
)

MIXED = dataclasses.replace(MODEL, layer_kinds=("sliding_attention", "hybrid"))
"""A model one of whose two layers has no full attention; both keep a state."""

LATENT = dataclasses.replace(MODEL, kv_heads=1, cached=8, quantized="fp8")
"""A model that caches one latent of 8 numbers for all heads, whose weights are quantised."""

LONG = 4096
"""Positions of the context that the latent model rotates its keys for."""


def job(seed: int, windows: int) -> dict[str, Any]:
    """What an ingest of this seed and length is."""
    return {"toy": seed, "windows": windows}


def text(seed: int, windows: int) -> str:
    """The text of the toy document: one letter per token, some of two bytes."""
    return "".join(
        chr(0xE0 + (seed + i) % 26) if i % 5 == 0 else "x" for i in range(WINDOW * windows)
    )


def document(seed: int, windows: int) -> dict[str, npt.NDArray[Any]]:
    """The document's tensors."""
    count = np.arange(WINDOW * windows)
    return {
        "ids": ((count * 7 + seed) % 101).astype(np.int32),
        "starts": count.astype(np.int32),
        "ends": (count + 1).astype(np.int32),
        "source": np.zeros(count.size, dtype=np.int32),
        "text.0": np.frombuffer(text(seed, windows).encode(), dtype=np.uint8),
    }


def chunk(seed: int, window: int, index: int) -> dict[str, npt.NDArray[Any]]:
    """The raw state of one chunk: `prefill` of the toy."""
    values = np.arange(40) * 13 + seed * 31 + window * 17 + index * 5
    return {"state": (values % 251).astype(np.uint8)}


def compress(
    states: list[npt.NDArray[np.uint8]], model: ModelIdentity = MODEL
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Device and host tensors of a window from the states of all its chunks."""
    codes = np.concatenate(states)
    device = {"rows": codes.reshape(-1, 8).astype(np.float32), "sinks": codes[:4].astype(np.int64)}
    host: dict[str, Any] = {}
    for layer in model.memory_layers:
        cuts = [0, 3, 20, 20, 41, 90, codes.size - layer]
        host[f"{layer}.codes"] = codes[layer:]
        host[f"{layer}.offsets"] = np.array(cuts[:: KV_HEADS // model.kv_heads], dtype=np.int64)
    return device, host


def layer_states(states: list[npt.NDArray[np.uint8]], model: ModelIdentity) -> dict[str, Any]:
    """What the layers of a model keep at the end of a window; nothing where all have full
    attention."""
    last = states[-1][:32].astype(np.float32)
    rows = {"keys": last.reshape(KV_HEADS, 2, 8), "values": -last.reshape(KV_HEADS, 2, 8)}
    own = {"conv.0": last[:12].reshape(1, 4, 3), "recurrent.0": last.astype(np.float64)}
    kinds = {"sliding_attention": rows, "hybrid": own}
    return {
        f"{layer}.{name}": tensor
        for layer, kind in enumerate(model.layer_kinds)
        for name, tensor in kinds[kind].items()
    }


def fields(seed: int, windows: int, model: ModelIdentity = MODEL) -> dict[str, Any]:
    """What `publish` is told."""
    chars = len(text(seed, windows))
    return {
        "creator": "sekv toy",
        "model": model,
        "method": "sekv",
        "settings": {"alpha": 1.5, "codec": {"bits": [4, 2]}},
        "dtype": "float32",
        "prompt": {"prefix": [1, 2, 3]},
        "tokens": WINDOW * windows,
        "tokenizer_engine": "toy",
        "window_tokens": WINDOW,
        "context": LONG if model.cached else 0,
        "sources": (SourceEntry("toy.txt", "text", "cc" * 32, chars, (("1", 0), ("2", 5))),),
    }


def run(
    writer: StoreWriter,
    seed: int,
    windows: int,
    on_chunk: Callable[[int, int], None] | None = None,
    appended: bool = False,
    only: Sequence[int] | None = None,
    model: ModelIdentity = MODEL,
) -> Manifest:
    """Ingest what is not done yet; `on_chunk` takes the window and number of each chunk.

    only: the windows that are read, None for all; others may be there already.
    """
    with writer:
        writer.put_document(document(seed, windows))
        if not appended and writer.shared() is None:
            writer.put_shared({"basis": np.full((2, 3), seed, dtype=np.float32)})
        for window in range(windows) if only is None else only:
            if writer.window_done(window):
                continue
            states = [found["state"].numpy() for found in writer.chunks(window)]
            for index in range(len(states), CHUNKS):
                if on_chunk is not None:
                    on_chunk(window, index)
                made = chunk(seed, window, index)
                writer.put_chunk(window, index, made)
                states.append(made["state"])
            entry = WindowEntry(window * WINDOW, (window + 1) * WINDOW, SPANS, 1)
            device, host = compress(states, model)
            writer.put_window(window, device, host, entry, layer_states(states, model))
        unread = [
            (window, WindowEntry(window * WINDOW, (window + 1) * WINDOW, 0, 0))
            for window in range(windows)
            if not writer.window_done(window)
        ]
        return writer.publish(**fields(seed, windows, model), unread=unread)


def ingest(
    target: Address,
    *,
    seed: int = 0,
    windows: int = 2,
    overwrite: bool = False,
    disk: Disk | None = None,
    on_chunk: Callable[[int, int], None] | None = None,
    only: Sequence[int] | None = None,
    model: ModelIdentity = MODEL,
) -> Manifest:
    """Make the toy store of a seed."""
    writer = StoreWriter.begin(target, job(seed, windows), overwrite=overwrite, disk=disk)
    return run(writer, seed, windows, on_chunk, only=only, model=model)


def append(
    target: Address,
    *,
    seed: int = 0,
    windows: int = 3,
    disk: Disk | None = None,
    on_chunk: Callable[[int, int], None] | None = None,
    only: Sequence[int] | None = None,
    model: ModelIdentity = MODEL,
) -> Manifest:
    """Continue the toy store of a seed to more windows, or with windows that it lacks."""
    writer = StoreWriter.append(target, job(seed, windows), disk=disk)
    return run(writer, seed, windows, on_chunk, appended=True, only=only, model=model)


def tree(path: Path) -> dict[str, bytes]:
    """Every file below a folder, by name."""
    return {
        file.relative_to(path).as_posix(): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def read_all(path: Address) -> dict[str, Any]:
    """Everything that a reader can get out of a store."""
    with Store.open(path) as store:
        found: dict[str, Any] = {"manifest": store.manifest, "text": store.text(0)}
        found |= {f"document {name}": array.tolist() for name, array in store.document().items()}
        found |= {f"shared {name}": tensor.tolist() for name, tensor in store.shared().items()}
        for window in store.manifest.read:
            entry = store.manifest.windows[window]
            device = store.device(window)
            found |= {f"{window} {name}": tensor.tolist() for name, tensor in device.items()}
            host = store.host(window)
            for layer in host.layers:
                codes = host.read(layer, np.arange(entry.spans))
                found[f"{window} {layer}"] = codes.tolist(), host.offsets(layer).tolist()
            host.close()
            states = store.states(window) if store.manifest.has_states else {}
            found |= {f"{window} state {name}": tensor.tolist() for name, tensor in states.items()}
        return found


def refuses(call: Callable[[], object]) -> str:
    """The one line with which a call is refused."""
    with pytest.raises(StoreError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def flip(path: Path, place: int, mask: int) -> None:
    """Change some bits of one byte of a file."""
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ mask]))


def leftovers(folder: Path) -> list[str]:
    """Hidden names beside the stores of a folder."""
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def rewrite(path: Path, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Write a file of a store anew, and a manifest that agrees in every checksum, as a hostile
    program can. change: is given the file's tensors, numpy arrays by name."""
    manifest = from_bytes((path / NAME).read_bytes())
    with safe_open(path / name, "np") as file:
        tensors = {tensor: file.get_tensor(tensor) for tensor in file.keys()}  # noqa: SIM118
    change(tensors)
    blocks = to_blocks(tensors)
    encoded = container.encode(blocks)
    data = b"".join(bytes(piece) for piece in container.pieces(encoded, blocks))
    (path / name).unlink()  # it may be a hard link to another store's
    (path / name).write_bytes(data)
    entry = FileEntry(encoded.size, encoded.tensors, encoded.header_checksum)
    files = {**manifest.files, name: entry}
    (path / NAME).write_bytes(dataclasses.replace(manifest, files=files).to_bytes())
