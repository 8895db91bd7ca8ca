"""What reading once costs and what asking from the store saves, side by side in one run.

Times are medians of rounds in which all contenders take turns on the same machine; only their
ratios are meant to be quoted. Bytes are counted, not sampled.
"""

from __future__ import annotations

import os
import resource
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache

from engine.ask import Session
from engine.ingest import ingest
from engine.types import AskOptions, IngestOptions, Progress, Silent

if TYPE_CHECKING:
    from engine.readers.hf import Reader

FORMAT = "sekv-efficiency-bench 1"
QUESTION = "Where did they arrive at last?"


@dataclass(frozen=True)
class Setting:
    """lengths: document tokens. rounds: how often each contender runs."""

    lengths: tuple[int, ...] = (8192, 32768)
    method: str = "sekv"
    budget: str = "20%"
    rounds: int = 5
    window: int = 0


def measure(
    reader: Reader, model: str, text: str, setting: Setting, progress: Progress
) -> dict[str, Any]:
    """Time ingest and ask against plain prefill of the same tokens by the same model.

    Args:
        text: at least as long as the longest length asks for.
    """
    ids = reader.tokenizer.encode(text, add_special_tokens=False)
    rows = []
    progress.start("timing", len(setting.lengths) * setting.rounds, "rounds")
    for length in setting.lengths:
        part = reader.tokenizer.decode(ids[:length])
        rows.append(_one_length(reader, model, part, length, setting, progress))
    return {
        "format": FORMAT,
        "model": reader.identity.id,
        "setting": asdict(setting),
        "load": os.getloadavg()[0],
        "threads": torch.get_num_threads(),
        "lengths": rows,
    }


def _one_length(
    reader: Reader, model: str, text: str, length: int, setting: Setting, progress: Progress
) -> dict[str, Any]:
    times: dict[str, list[float]] = {
        name: [] for name in ("prefill", "read", "fold", "write", "reprefill", "open")
    }
    with tempfile.TemporaryDirectory(prefix="sekv-efficiency-") as scratch:
        source, store = Path(scratch) / "text.txt", Path(scratch) / "text.sekv"
        source.write_text(text, encoding="utf-8")
        for _ in range(setting.rounds):
            options = IngestOptions(
                model=model, method=setting.method, window=setting.window, overwrite=True
            )
            report = ingest([str(source)], store, options, Silent(), None, reader)
            times["prefill"].append(report.timing["prefill_s"])
            times["read"].append(report.timing["read_s"] + report.timing["tokenize_s"])
            times["fold"].append(report.timing["compress_s"])
            times["write"].append(report.timing["write_s"])
            times["reprefill"].append(_reprefill(reader, text))
            at = time.perf_counter()
            ask = AskOptions(budget=setting.budget, max_new_tokens=1)
            with Session(store, ask, Silent(), reader) as session:
                answer = session.ask(QUESTION)
            times["open"].append(time.perf_counter() - at)
            progress.advance(1)
    median = {name: statistics.median(values) for name, values in times.items()}
    half = report.full_kv_bytes * 2 / reader.dtype.itemsize
    return {
        "tokens": report.tokens,
        "asked_tokens": length,
        "windows": report.windows,
        "median_s": median,
        "all_s": times,
        "fold_and_write_over_prefill": (median["fold"] + median["write"]) / median["prefill"],
        "reprefill_over_open": median["reprefill"] / median["open"],
        "store_bytes": report.store_bytes,
        "store_over_16_bit_cache": report.store_bytes / half,
        "resident_bytes": answer.memory.device_kv_bytes,
        "resident_over_16_bit_cache": answer.memory.device_kv_bytes / half,
        "process_peak_rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


@torch.inference_mode()
def _reprefill(reader: Reader, text: str) -> float:
    """Seconds from the text to the first token without a store: the plain full cache, in chunks
    of the size ingest uses, question included."""
    at = time.perf_counter()
    ids = reader.tokenizer.encode(text, add_special_tokens=False)
    prompt = reader.prompt.question(reader.tokenizer, QUESTION)
    tokens = torch.tensor([[*reader.prompt.prefix, *ids, *prompt]], device=reader.devices[0])
    cache = DynamicCache(config=reader.model.config)
    for start in range(0, tokens.shape[1], 1024):
        piece = tokens[:, start : start + 1024]
        places = torch.arange(start, start + piece.shape[1], device=tokens.device)[None]
        out = reader.model(
            input_ids=piece, position_ids=places, past_key_values=cache, logits_to_keep=1
        )
    int(out.logits[0, -1].argmax())
    return time.perf_counter() - at


def markdown(report: dict[str, Any]) -> str:
    """The report as a table."""
    lines = [
        f"model {report['model']}, method {report['setting']['method']}, "
        f"{report['setting']['rounds']} rounds, {report['threads']} threads, "
        f"load {report['load']:.1f}",
        "",
        "| tokens | windows | (fold + write) / prefill | re-prefill / open to first token "
        "| store / 16-bit cache | resident / 16-bit cache |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['tokens']} | {row['windows']} | {row['fold_and_write_over_prefill']:.2f} "
        f"| {row['reprefill_over_open']:.1f} ({row['median_s']['reprefill']:.2f} s / "
        f"{row['median_s']['open']:.2f} s) | {row['store_over_16_bit_cache']:.2f} "
        f"| {row['resident_over_16_bit_cache']:.3f} |"
        for row in report["lengths"]
    ]
    return "\n".join(lines) + "\n"
