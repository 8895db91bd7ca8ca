"""Our store opened and asked, and what is counted of it."""

from __future__ import annotations

import os
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any

from engine.answer.session import Session
from engine.lab.bench.budgets import options_of
from engine.lab.bench.efficiency.setting import DECODED, QUESTION
from engine.types import Silent

if TYPE_CHECKING:
    from pathlib import Path

    from engine.lab.bench.efficiency.setting import EfficiencySetting
    from engine.models.reader import Reader
    from engine.types import Answer, IngestReport

Times = dict[str, list[float]]
"""Seconds of every round, by what was timed."""


def open_and_ask(reader: Reader, store: Path, budget: str, tokens: int) -> tuple[Answer, float]:
    """The answer of at most so many tokens from a store opened anew, and all its seconds."""
    at = time.perf_counter()
    with Session(store, options_of(budget, 1.0, tokens), Silent(), reader) as session:
        answer = session.ask(QUESTION)
    return answer, time.perf_counter() - at


def pace(said: Answer) -> list[float]:
    """Seconds of a token behind the first, if there is one."""
    more = said.usage.answer_tokens - 1
    late = said.timing["total_s"] - said.timing["first_token_s"]
    return [late / more] if more else []


def time_budgets(
    reader: Reader, store: Path, budgets: tuple[str, ...], times: Times
) -> dict[str, dict[str, int]]:
    """The pace at every budget, added to `times`, and the bytes that each took."""
    held = {}
    for budget in budgets:
        said = open_and_ask(reader, store, budget, DECODED)[0]
        times[f"token@{budget}"] += pace(said)
        held[budget] = {
            "resident_bytes": said.memory.device_kv_bytes,
            "working_bytes": said.memory.working_bytes,
        }
    return held


def forget(path: Path) -> bool:
    """Ask the system to drop the pages of a file, or of all files of a folder; whether it can."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for file in [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def note_ingest(report: IngestReport, times: Times) -> None:
    """Add the seconds of an ingest."""
    times["prefill"].append(report.timing["prefill_s"])
    times["read"].append(report.timing["read_s"] + report.timing["tokenize_s"])
    times["fold"].append(report.timing["compress_s"])
    times["write"].append(report.timing["write_s"])
    times["ingest"].append(report.timing["total_s"])


def timed(times: Times) -> dict[str, Any]:
    """Medians and their ratios, None where one of both was not timed."""
    median = {name: statistics.median(values) for name, values in times.items() if values}

    def ratio(over: float | None, under: float | None) -> float | None:
        return None if over is None or under is None else over / under

    of = median.get
    saved = median["reprefill"] - median["open"]
    return {
        "median_s": median,
        "all_s": {name: values for name, values in times.items() if values},
        "fold_and_write_over_prefill": (median["fold"] + median["write"]) / median["prefill"],
        "reprefill_over_open": median["reprefill"] / median["open"],
        "reload_over_open": ratio(of("reload"), median["open"]),
        "cold_reload_over_open": ratio(of("reload_cold"), of("open_cold")),
        "ingest_over_reprefill": median["ingest"] / median["reprefill"],
        "token_over_full": ratio(of("token"), of("reload_token")),
        # Questions after which reading once was cheaper; none where asking costs more.
        "break_even_questions": median["ingest"] / saved if saved > 0 else None,
    }


def counted(report: IngestReport, answer: Answer, itemsize: int) -> dict[str, Any]:
    """Bytes and their ratios. itemsize: bytes of an item of the model's cache."""
    first = answer.stats["read_bytes"] + answer.stats["read_host_bytes"]
    half = report.full_kv_bytes * 2 / itemsize
    return {
        "tokens": report.tokens,
        "windows": report.windows,
        "prefill_tokens_per_s": report.tokens / report.timing["prefill_s"],
        "store_bytes": report.store_bytes,
        "store_over_16_bit_cache": report.store_bytes / half,
        "first_token_bytes": first,
        "first_token_over_16_bit_cache": first / half,
        "resident_bytes": answer.memory.device_kv_bytes,
        "resident_over_16_bit_cache": answer.memory.device_kv_bytes / half,
        "working_bytes": answer.memory.working_bytes,
        "full_16_bit_bytes": half,
    }


def ingest_program(
    model: str, source: Path, store: Path, window: int, setting: EfficiencySetting
) -> list[str]:
    """The command that ingests a text in a process of its own."""
    return [
        sys.executable, "-m", "sekv_cli", "ingest", str(source), "-o", str(store), "--overwrite",
        "--model", model, "--method", setting.method, "--window", str(window), "--json",
    ]  # fmt: skip


def programs(model: str, store: Path, setting: EfficiencySetting) -> dict[str, list[str]]:
    """What is started anew, in this order: a program that does nothing, and ours beside a store;
    ours has no server to turn to."""
    mine = [sys.executable, "-m", "sekv_cli"]
    return {
        "nothing": [sys.executable, "-c", "pass"],
        "help": [*mine, "--help"],
        "list": [*mine, "list", str(store.parent)],
        "inspect": [*mine, "inspect", str(store)],
        "ask": [
            *mine, "ask", str(store), QUESTION, "--budget", setting.budget, "--max-new-tokens", "1",
            "--no-server", "--model", model,
        ],
    }  # fmt: skip
