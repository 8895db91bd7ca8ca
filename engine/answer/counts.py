"""What an answer cost: bytes, windows, spans and seconds, as its report has them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Any

import torch

from engine.answer.generate import AnswerStreamer
from engine.answer.opened import Opened
from engine.attention.coverage import Coverage
from engine.attention.host_records import Traffic
from engine.attention.memory_cache import MemoryCache
from engine.memory.fitting import parse_budget
from engine.memory.retrieval import Retrieved
from engine.types import MemoryUse, WindowRead


def begin(opened: Opened) -> None:
    """Set the counts of one question to nought."""
    shared = opened.memory.shared
    for layer in opened.memory.layers:
        layer.zoomed.traffic = Traffic()
    shared.peak_bytes, shared.working_bytes = shared.device_bytes, 0
    shared.recomputed_tokens = 0
    shared.coverage = Coverage()


def memory_use(opened: Opened, budget: str) -> MemoryUse:
    """Bytes of the memory while the question was answered. budget: as the options have it."""
    manifest, shared, layers = opened.manifest, opened.memory.shared, opened.memory.layers
    zoomed = torch.cat([z.cpu() for layer in layers for z in layer.zoomed.spans])
    zoomed = torch.bincount(zoomed)[: manifest.spans] > 0  # without those of old turns
    turns = shared.reserved * len(layers)
    rows = manifest.model.numbers_per_token * manifest.tokens * opened.reader.dtype.itemsize
    return MemoryUse(
        device_kv_bytes=shared.peak_bytes + turns + opened.state_bytes,
        full_kv_bytes=rows + opened.state_bytes,
        zoomed_spans=int(zoomed.sum()),
        total_spans=manifest.spans,
        peak_device_bytes=_peak(opened.reader.devices),
        working_bytes=shared.working_bytes,
        budget_tokens=round(parse_budget(budget, manifest.tokens)),
    )


def resident(opened: Opened) -> dict[str, int]:
    """Bytes of all layers by kind, as they are behind an answer: slots stay as allocated."""
    kinds: Counter[str] = Counter()
    for layer in opened.memory.layers:
        kinds.update(layer.resident_bytes)
    return {**kinds, "states": opened.state_bytes}


def timing(
    opened: Opened, streamer: AnswerStreamer, started: float, done: float
) -> dict[str, float]:
    """Seconds; started, done: of the question, on the clock of `time.perf_counter`."""
    return {
        "model_load_s": opened.model_s,
        "store_open_s": opened.store_s,
        "first_token_s": streamer.first - started,
        "total_s": done - started,
        # The first token came before the clock of the others started.
        "tokens_per_s": (len(streamer.tokens) - 1) / max(1e-9, done - streamer.first),
    }


def windows_read(
    opened: Opened, retrieved: Retrieved, read_now: Collection[int]
) -> tuple[WindowRead, ...]:
    """The windows that a question looked at, and why. read_now: those that it had read."""
    found, book = [], opened.book
    for window in retrieved.windows:
        token = opened.manifest.windows[window].start
        page = book.page_at(int(book.source[token]), int(book.starts[token]))
        lexical, attention = retrieved.lexical.get(window), retrieved.attention.get(window)
        found.append(WindowRead(window, page, lexical, attention, window in read_now))
    return tuple(found)


def stats(
    opened: Opened, retrieved: Retrieved, cache: MemoryCache, widened_steps: int
) -> dict[str, Any]:
    """All that is counted besides. cache: that the answer was generated with."""
    layers, shared = opened.memory.layers, opened.memory.shared
    traffic = [layer.zoomed.traffic for layer in layers]
    fetched = sum(t.fetched_spans for t in traffic)
    reused = sum(t.reused_spans for t in traffic)
    received, requests = opened.store.received
    return {
        "context": "exact" if shared.windows == 1 else "parallel windows",
        "windows": shared.windows,
        "windows_read": len(retrieved.windows),
        "windows_by": retrieved.by,
        "tokens_read": opened.manifest.tokens_read,
        "tokens_seen": retrieved.tokens(opened.manifest.tokens_read),
        "pinned_rows": int(layers[0].pinned_k.shape[1]),
        "fetched_bytes": sum(t.fetched_bytes for t in traffic),
        "fetched_spans": fetched,
        "reused_spans": reused,
        "fixed_bytes": sum(layer.fixed_bytes for layer in layers),
        "read_bytes": opened.store.device_bytes_read,
        "read_host_bytes": opened.store.host_bytes_read,
        "received_bytes": received,
        "requests": requests,
        "estimated_coverage": round(shared.coverage.mean, 4),
        "least_coverage": round(shared.coverage.least, 4),
        "widened_steps": widened_steps,
        "reuse_rate": reused / max(1, reused + fetched),
        "answer_kv_bytes": cache.peak_live_bytes,
        "state_bytes": opened.state_bytes,
        "state_window": None if opened.memory.states is None else opened.focus.past.window,
    }


def _peak(devices: list[torch.device]) -> int:
    """Most bytes ever allocated on the GPUs in use; 0 on a CPU, where nobody counts them."""
    gpus = {device for device in devices if device.type == "cuda"}
    return sum(torch.cuda.max_memory_allocated(device) for device in gpus)
