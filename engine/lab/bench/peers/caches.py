"""transformers' own caches: the full one saved and loaded again, and those with fewer bits."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import DynamicCache, QuantizedCache
from transformers.utils.import_utils import is_hqq_available, is_optimum_quanto_available

from engine.lab.bench.peers.held import FAILURES, Held, failure, put

if TYPE_CHECKING:
    from pathlib import Path

    from engine.answer.session import Session

QUANTISED = ("transformers:quantized", "transformers:quantized-2", "transformers:fp8")


@dataclass(frozen=True)
class Reloaded:
    """The full cache written as safetensors and loaded again, in the model's own dtype."""

    name: str = "transformers:reload"
    whole: bool = True
    source: str = "transformers' DynamicCache, written to a safetensors file and loaded again"

    def missing(self) -> str:
        return ""

    def hold(self, session: Session, budget: str, place: Path) -> int:
        file = place / "cache.safetensors"
        stored = write(DynamicCache(_full(session)), file)
        held = []
        for layer, (k, v) in zip(session.memory.layers, load(file), strict=True):
            k, v = k[0].to(layer.device), v[0].to(layer.device)
            held.append(Held.plain(k, v))
        put(session, held)
        return stored


@dataclass(frozen=True)
class Quantized:
    """The quantized cache, filled in one update as a whole prompt fills it.

    Rows of the question and the answer stay exact here, where transformers would code the whole
    cache anew each time 128 of them have come together.
    """

    name: str
    whole: bool = True

    @property
    def source(self) -> str:
        if self.name.endswith(":fp8"):
            return "transformers' QuantizedCache, fp8"
        return (
            f"transformers' QuantizedCache, {self.bits} bits by optimum-quanto, or by hqq without "
            "that"
        )

    @property
    def bits(self) -> int:
        return 2 if self.name.endswith("-2") else 4

    @property
    def backend(self) -> str:
        """Of transformers' backends the one that is here, "" if none is."""
        if self.name.endswith(":fp8"):
            return "fp8"
        if is_optimum_quanto_available():
            return "quanto"
        return "hqq" if is_hqq_available() else ""

    def missing(self) -> str:
        if self.backend:
            return ""
        return "needs optimum-quanto or hqq, of which none is installed: pip install optimum-quanto"

    def hold(self, session: Session, budget: str, place: Path) -> int:
        try:
            grouped = {} if self.backend == "fp8" else {"nbits": self.bits}
            cache = QuantizedCache(self.backend, config=session.reader.model.config, **grouped)
            held = []
            for index, (k, v) in enumerate(_full(session)):
                cache.update(k, v, index)
                layer: Any = cache.layers[index]
                # The library has no public way to look at what it keeps.
                coded = layer._quantized_keys, layer._quantized_values
                held.append(Held(real_bytes(coded), partial(_decoded, layer, *coded)))
                held[-1].rows()
        except FAILURES as error:
            raise failure(self, error) from error
        put(session, held)
        return 0


def write(cache: DynamicCache, file: Path) -> int:
    """Write a cache as safetensors; the bytes of the file."""
    tensors: dict[str, Tensor] = {}
    layers: list[Any] = list(cache.layers)
    for index, layer in enumerate(layers):
        tensors |= {f"{index}.k": layer.keys.contiguous(), f"{index}.v": layer.values.contiguous()}
    save_file(tensors, file)
    return file.stat().st_size


def load(file: Path) -> list[tuple[Tensor, Tensor]]:
    """Keys and values [1, Hkv, P, D] of every layer of a saved cache."""
    tensors = load_file(file)
    return [(tensors[f"{i}.k"], tensors[f"{i}.v"]) for i in range(len(tensors) // 2)]


def real_bytes(kept: Any) -> int:
    """Bytes of all tensors in nested tuples and dicts; of packed ones those they are packed in."""
    if isinstance(kept, Tensor):
        if hasattr(kept, "__tensor_flatten__"):
            names, _ = kept.__tensor_flatten__()
            return sum(real_bytes(getattr(kept, name)) for name in names)
        return kept.nbytes
    if isinstance(kept, dict):
        return sum(map(real_bytes, kept.values()))
    return sum(map(real_bytes, kept)) if isinstance(kept, list | tuple) else 0


def _full(session: Session) -> list[tuple[Tensor, Tensor]]:
    return [(layer.pinned_k[None], layer.pinned_v[None]) for layer in session.memory.layers]


def _decoded(layer: Any, keys: Any, values: Any) -> tuple[Tensor, Tensor]:
    return layer._dequantize(keys)[0], layer._dequantize(values)[0]
