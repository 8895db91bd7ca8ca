"""Who else keeps a document: the full cache of plain transformers, and llama.cpp.

The full cache is read and continued by the same weights as ours; where a CPU holds these in 16
bits, transformers as it comes, in float32, is timed too.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache

from engine.lab.bench import llamacpp
from engine.lab.bench.efficiency.asking import Times, forget
from engine.lab.bench.efficiency.setting import DECODED, QUESTION
from engine.lab.bench.peers import caches
from engine.models.half_weights import HalfLinear
from engine.models.load import load_weights

if TYPE_CHECKING:
    from engine.models.reader import Reader


@dataclass(frozen=True)
class LlamaRival:
    """llama.cpp with a document's ids and a question's. model: its file. kind: of its cache, see
    `llamacpp.KINDS`. state: what it saves."""

    weights: llamacpp.LlamaWeights
    model: str
    ids: list[int]
    question: list[int]
    kind: str
    state: Path

    def time(self, times: Times) -> None:
        """One round: restore with the file warm and cold, and a long answer. It reads and saves in
        the first round alone, which takes minutes where its cache is quantised."""
        threads, count = torch.get_num_threads(), len(self.ids)

        def restore(more: int) -> tuple[float, float]:
            return llamacpp.restore_and_ask(
                self.weights, threads, count, self.question, self.state, more, self.kind
            )

        if not self.state.exists():
            read, save = llamacpp.read_and_save(
                self.weights, threads, self.ids, self.question, self.state, self.kind
            )
            times[self.key("reprefill")].append(read)
            times[self.key("save")].append(save)
        times[self.key("open")].append(restore(0)[0])
        if forget(self.state):
            times[self.key("open_cold")].append(restore(0)[0])
        times[self.key("token")].append(restore(DECODED)[1] / DECODED)

    def key(self, what: str) -> str:
        """Of a figure of this rival in the report."""
        return f"llama_{self.kind}_{what}"

    def program(self) -> list[str]:
        """The same in a process of its own, to the first token."""
        numbers = (len(self.ids), torch.get_num_threads(), *self.question)
        script = [sys.executable, "-m", "engine.lab.bench.llamacpp", self.model, str(self.state)]
        return [*script, self.kind, *map(str, numbers)]


def plain_model(reader: Reader) -> Any:
    """The model as transformers loads it, where ours holds its weights in 16 bits; else None."""
    if not any(isinstance(module, HalfLinear) for module in reader.model.modules()):
        return None
    return load_weights(reader.located.folder, reader.dtype, {"attn_implementation": "sdpa"})


@torch.inference_mode()
def time_plain(plain: Any, reader: Reader, text: str, times: Times) -> None:
    """Reading the text and its question, and a token of the answer."""
    seconds, token, cache = _read_all(plain, reader, text)
    times["plain_reprefill"].append(seconds)
    at = time.perf_counter()
    for _ in range(DECODED - 1):
        token = _feed(plain, reader, cache, [token])
    times["plain_token"].append((time.perf_counter() - at) / (DECODED - 1))


def reprefill(reader: Reader, text: str) -> tuple[float, DynamicCache]:
    """Seconds to the first token without a store, see `_read_all`, and the cache of the text
    without the question."""
    seconds, _, cache = _read_all(reader.model, reader, text)
    cache.crop(-len(reader.prompt.question(reader.tokenizer, QUESTION)))
    return seconds, cache


@torch.inference_mode()
def reload(reader: Reader, file: Path, more: int) -> tuple[float, float]:
    """Seconds from the file of a full cache to the first token, and of so many more tokens."""
    at = time.perf_counter()
    rows = zip(caches.load(file), reader.devices, strict=True)
    cache = DynamicCache([(k.to(device), v.to(device)) for (k, v), device in rows])
    token = _feed(reader.model, reader, cache, reader.prompt.question(reader.tokenizer, QUESTION))
    first = time.perf_counter() - at
    for _ in range(more):
        token = _feed(reader.model, reader, cache, [token])
    return first, time.perf_counter() - at - first


def reload_program(model: str, file: Path, reader: Reader) -> list[str]:
    """The same in a process of its own, to the first token."""
    prompt = map(str, reader.prompt.question(reader.tokenizer, QUESTION))
    return [sys.executable, "-m", "engine.lab.bench.peers.fresh", model, str(file), *prompt]


@torch.inference_mode()
def _read_all(model: Any, reader: Reader, text: str) -> tuple[float, int, DynamicCache]:
    """Seconds from the text to the first token of a model with the plain full cache, in chunks of
    the size ingest uses, question included; that token, and the cache."""
    at = time.perf_counter()
    ids = reader.tokenizer.encode(text, add_special_tokens=False)
    prompt = reader.prompt.question(reader.tokenizer, QUESTION)
    cache = DynamicCache(config=model.config)
    token = _feed(model, reader, cache, [*reader.prompt.prefix, *ids, *prompt])
    return time.perf_counter() - at, token, cache


def _feed(model: Any, reader: Reader, cache: DynamicCache, ids: list[int]) -> int:
    """Put tokens behind what a plain cache holds; the likeliest next one."""
    tokens = torch.tensor([ids], device=reader.devices[0])
    for start in range(0, len(ids), 1024):
        piece = tokens[:, start : start + 1024]
        before = int(cache.get_seq_length())
        places = torch.arange(before, before + piece.shape[1], device=tokens.device)[None]
        out = model(input_ids=piece, position_ids=places, past_key_values=cache, logits_to_keep=1)
    return int(out.logits[0, -1].argmax())
