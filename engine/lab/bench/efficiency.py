"""What reading once costs and what asking from the store saves, side by side in one run.

Times are medians of rounds in which all contenders take turns on the same machine; only their
ratios are meant to be quoted. Bytes are counted, not sampled. The rival is not only reading again
but the full cache of plain transformers, saved to a file and loaded, and llama.cpp's state where
a model file of its own is named. The full cache is read and continued by the same weights as ours;
where a CPU holds these in 16 bits, transformers as it comes, in float32, is timed too.
"""

from __future__ import annotations

import os
import resource
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache

from engine.answer.session import Session
from engine.ingest.run import ingest
from engine.lab.bench import llamacpp, peers, processes
from engine.lab.bench.budgets import ALL, options_of
from engine.lab.bench.peers import caches
from engine.models.half_weights import HalfLinear
from engine.models.load import load_weights
from engine.types import AUTO_SHARE, IngestOptions, Progress, Silent

if TYPE_CHECKING:
    from engine.models.reader import Reader
    from engine.types import Answer, IngestReport

FORMAT = "sekv-efficiency-bench 2"
QUESTION = "Where did they arrive at last?"
DECODED = 24
"""Tokens of an answer at most, whose pace is taken."""


@dataclass(frozen=True)
class EfficiencySetting:
    """lengths: document tokens. budget: of what is opened. budgets: at which the pace of an answer
    is taken, `budgets.ALL` for everything zoomed. rounds: how often each contender runs. processes:
    how often each program is started anew, 0 for not at all. peer: `llama.cpp@FILE.gguf` or "" for
    none."""

    lengths: tuple[int, ...] = (2048, 6144)
    method: str = "sekv"
    budget: str = f"{AUTO_SHARE:.0%}"
    budgets: tuple[str, ...] = ("10%", "20%", f"{AUTO_SHARE:.0%}", ALL)
    rounds: int = 5
    window: int = 0
    processes: int = 3
    peer: str = ""


@dataclass(frozen=True)
class _Llama:
    """llama.cpp with a document's ids and a question's. state: its file."""

    weights: llamacpp.LlamaWeights
    model: str
    ids: list[int]
    question: list[int]
    state: Path

    def time(self, times: dict[str, list[float]]) -> None:
        """One round: read and save, restore with the file warm and cold, a long answer."""
        threads, count = torch.get_num_threads(), len(self.ids)

        def restore(more: int) -> tuple[float, float]:
            return llamacpp.restore_and_ask(
                self.weights, threads, count, self.question, self.state, more
            )

        read, save = llamacpp.read_and_save(
            self.weights, threads, self.ids, self.question, self.state
        )
        times["llama_reprefill"].append(read)
        times["llama_save"].append(save)
        times["llama_open"].append(restore(0)[0])
        if forget(self.state):
            times["llama_open_cold"].append(restore(0)[0])
        times["llama_token"].append(restore(DECODED)[1] / DECODED)

    def program(self) -> list[str]:
        """The same in a process of its own, to the first token."""
        numbers = (len(self.ids), torch.get_num_threads(), *self.question)
        script = [sys.executable, "-m", "engine.lab.bench.llamacpp", self.model, str(self.state)]
        return [*script, *map(str, numbers)]


def measure(
    reader: Reader, model: str, text: str, setting: EfficiencySetting, progress: Progress
) -> dict[str, Any]:
    """Time ingest and ask against plain prefill of the same tokens by the same model.

    Args:
        text: at least as long as the longest length asks for.
    """
    ids = reader.tokenizer.encode(text, add_special_tokens=False)
    rows, missing = [], peers.named(setting.peer).missing() if setting.peer else ""
    file = "" if missing else setting.peer.partition("@")[2]
    weights = llamacpp.LlamaWeights(file) if file else None
    plain = _plain(reader)
    progress.start("timing", len(setting.lengths) * setting.rounds, "rounds")
    for length in setting.lengths:
        part = reader.tokenizer.decode(ids[:length])
        rows.append(_one_length(reader, model, (weights, plain), part, length, setting, progress))
    return {
        "format": FORMAT,
        "model": reader.identity.id,
        "setting": asdict(setting),
        "load": os.getloadavg()[0],
        "threads": torch.get_num_threads(),
        "skipped": [{"what": setting.peer, "why": missing}] if missing else [],
        "lengths": rows,
    }


@dataclass(frozen=True)
class _Files:
    """What the contenders keep of one document, in one folder. llama: its contender, if any."""

    source: Path
    store: Path
    full: Path
    llama: _Llama | None

    @classmethod
    def of(
        cls, place: Path, reader: Reader, text: str, weights: llamacpp.LlamaWeights | None,
        setting: EfficiencySetting,
    ) -> _Files:  # fmt: skip
        """The files in a folder; the text is written."""
        source = place / "text.txt"
        source.write_text(text, encoding="utf-8")
        llama = None
        if weights:
            ids = [*reader.prompt.prefix, *reader.tokenizer.encode(text, add_special_tokens=False)]
            question = reader.prompt.question(reader.tokenizer, QUESTION)
            model = setting.peer.partition("@")[2]
            llama = _Llama(weights, model, ids, question, place / "llama.state")
        return cls(source, place / "text.sekv", place / "full.safetensors", llama)


def _one_length(
    reader: Reader,
    model: str,
    peers: tuple[llamacpp.LlamaWeights | None, Any],
    text: str,
    length: int,
    setting: EfficiencySetting,
    progress: Progress,
) -> dict[str, Any]:
    """peers: the weights of llama.cpp, and plain transformers' model, where there are."""
    times: dict[str, list[float]] = defaultdict(list)
    held: dict[str, Answer] = {}
    weights, plain = peers
    started: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="sekv-efficiency-") as scratch:
        place = Path(scratch)
        files = _Files.of(place, reader, text, weights, setting)
        for _ in range(setting.rounds):
            report, answer = _round(reader, model, files, text, setting, times)
            if plain is not None:
                _time_plain(plain, reader, text, times)
            for budget in setting.budgets:
                said = _open(reader, files.store, budget, DECODED)[0]
                times[f"token@{budget}"] += _pace(said)
                held[budget] = said
            progress.advance(1)
        rival = files.full.stat().st_size
        if setting.processes:
            programs = _programs(model, place, setting)
            if files.llama:
                programs["llama"] = files.llama.program()
            started = processes.measure(programs, setting.processes)
        state_bytes = files.llama.state.stat().st_size if files.llama else None
    counted = _counted(report, answer, rival, report.full_kv_bytes * 2 / reader.dtype.itemsize)
    return {
        "tokens": report.tokens,
        "asked_tokens": length,
        "windows": report.windows,
        **_timed(times),
        **counted,
        "budgets": {
            budget: {
                "resident_bytes": said.memory.device_kv_bytes,
                "working_bytes": said.memory.working_bytes,
            }
            for budget, said in held.items()
        },
        "llama_state_bytes": state_bytes,
        "processes": started,
        "process_peak_rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _round(
    reader: Reader,
    model: str,
    files: _Files,
    text: str,
    setting: EfficiencySetting,
    times: dict[str, list[float]],
) -> tuple[IngestReport, Answer]:
    """All contenders once; seconds are added to `times`. What ingest and the answer say."""
    store, full = files.store, files.full
    options = IngestOptions(
        model=model, method=setting.method, window=setting.window, overwrite=True
    )
    report = ingest([str(files.source)], store, options, Silent(), None, reader)
    times["prefill"].append(report.timing["prefill_s"])
    times["read"].append(report.timing["read_s"] + report.timing["tokenize_s"])
    times["fold"].append(report.timing["compress_s"])
    times["write"].append(report.timing["write_s"])
    times["ingest"].append(report.timing["total_s"])
    seconds, cache = _reprefill(reader, text)
    times["reprefill"].append(seconds)
    caches.write(cache, full)
    answer, spent = _open(reader, store, setting.budget, 1)
    times["open"].append(spent)
    times["reload"].append(_reload(reader, full, 0)[0])
    if all([forget(store), forget(full)]):
        times["open_cold"].append(_open(reader, store, setting.budget, 1)[1])
        forget(full)
        times["reload_cold"].append(_reload(reader, full, 0)[0])
    said, spent = _open(reader, store, setting.budget, DECODED)
    times["token"] += _pace(said)
    more = said.usage.answer_tokens - 1
    if more:
        times["reload_token"].append(_reload(reader, full, more)[1] / more)
    if files.llama:
        files.llama.time(times)
    return report, answer


def _timed(times: dict[str, list[float]]) -> dict[str, Any]:
    """Medians and their ratios."""
    median = {name: statistics.median(values) for name, values in times.items() if values}
    saved = median["reprefill"] - median["open"]
    return {
        "median_s": median,
        "all_s": {name: values for name, values in times.items() if values},
        "fold_and_write_over_prefill": (median["fold"] + median["write"]) / median["prefill"],
        "reprefill_over_open": median["reprefill"] / median["open"],
        "reload_over_open": median["reload"] / median["open"],
        "cold_reload_over_open": (
            median["reload_cold"] / median["open_cold"] if "open_cold" in median else None
        ),
        "ingest_over_reprefill": median["ingest"] / median["reprefill"],
        "token_over_full": median["token"] / median["reload_token"] if "token" in median else None,
        # Questions after which reading once was cheaper; none where asking costs more.
        "break_even_questions": median["ingest"] / saved if saved > 0 else None,
    }


def _counted(report: IngestReport, answer: Answer, rival: int, half: float) -> dict[str, Any]:
    """Bytes and their ratios. rival: of the saved full cache. half: of it in 16 bits."""
    first = answer.stats["read_bytes"] + answer.stats["read_host_bytes"]
    return {
        "store_bytes": report.store_bytes,
        "store_over_16_bit_cache": report.store_bytes / half,
        "reload_bytes": rival,
        "reload_over_store_bytes": rival / report.store_bytes,
        "first_token_bytes": first,
        "first_token_over_16_bit_cache": first / half,
        "resident_bytes": answer.memory.device_kv_bytes,
        "resident_over_16_bit_cache": answer.memory.device_kv_bytes / half,
        "full_16_bit_bytes": half,
    }


def _open(reader: Reader, store: Path, budget: str, tokens: int) -> tuple[Answer, float]:
    """The answer of at most so many tokens from a store opened anew, and all its seconds."""
    at = time.perf_counter()
    with Session(store, options_of(budget, 1.0, tokens), Silent(), reader) as session:
        answer = session.ask(QUESTION)
    return answer, time.perf_counter() - at


def _pace(said: Answer) -> list[float]:
    """Seconds of a token behind the first, if there is one."""
    more = said.usage.answer_tokens - 1
    late = said.timing["total_s"] - said.timing["first_token_s"]
    return [late / more] if more else []


def _plain(reader: Reader) -> Any:
    """The model as transformers loads it, where ours holds its weights in 16 bits; else None."""
    if not any(isinstance(module, HalfLinear) for module in reader.model.modules()):
        return None
    return load_weights(reader.located.folder, reader.dtype, {"attn_implementation": "sdpa"})


@torch.inference_mode()
def _time_plain(plain: Any, reader: Reader, text: str, times: dict[str, list[float]]) -> None:
    """Reading the text and its question, and a token of the answer."""
    seconds, token, cache = _read_all(plain, reader, text)
    times["plain_reprefill"].append(seconds)
    at = time.perf_counter()
    for _ in range(DECODED - 1):
        token = _feed(plain, reader, cache, [token])
    times["plain_token"].append((time.perf_counter() - at) / (DECODED - 1))


def _reprefill(reader: Reader, text: str) -> tuple[float, DynamicCache]:
    """Seconds to the first token without a store, see `_read_all`, and the cache of the text
    without the question."""
    seconds, _, cache = _read_all(reader.model, reader, text)
    cache.crop(-len(reader.prompt.question(reader.tokenizer, QUESTION)))
    return seconds, cache


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


@torch.inference_mode()
def _reload(reader: Reader, file: Path, more: int) -> tuple[float, float]:
    """Seconds from the file of a full cache to the first token, and of so many more tokens."""
    at = time.perf_counter()
    rows = zip(caches.load(file), reader.devices, strict=True)
    cache = DynamicCache([(k.to(device), v.to(device)) for (k, v), device in rows])
    token = _feed(reader.model, reader, cache, reader.prompt.question(reader.tokenizer, QUESTION))
    first = time.perf_counter() - at
    for _ in range(more):
        token = _feed(reader.model, reader, cache, [token])
    return first, time.perf_counter() - at - first


def _feed(model: Any, reader: Reader, cache: DynamicCache, ids: list[int]) -> int:
    """Put tokens behind what a plain cache holds; the likeliest next one."""
    tokens = torch.tensor([ids], device=reader.devices[0])
    for start in range(0, len(ids), 1024):
        piece = tokens[:, start : start + 1024]
        before = int(cache.get_seq_length())
        places = torch.arange(before, before + piece.shape[1], device=tokens.device)[None]
        out = model(input_ids=piece, position_ids=places, past_key_values=cache, logits_to_keep=1)
    return int(out.logits[0, -1].argmax())


def forget(path: Path) -> bool:
    """Ask the system to drop the pages of a file, or of all files of a folder; whether it can."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for file in [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def _programs(model: str, place: Path, setting: EfficiencySetting) -> dict[str, list[str]]:
    """What is started anew, in this order: a program that does nothing, ours, and plain
    transformers with the saved cache; ours has no server to turn to."""
    mine = [sys.executable, "-m", "sekv_cli"]
    store = str(place / "text.sekv")
    window = ["--window", str(setting.window)] if setting.window else []
    return {
        "nothing": [sys.executable, "-c", "pass"],
        "help": [*mine, "--help"],
        "list": [*mine, "list", str(place)],
        "inspect": [*mine, "inspect", store],
        "ingest": [
            *mine, "ingest", str(place / "text.txt"), "-o", str(place / "again.sekv"),
            "--overwrite", "--model", model, "--method", setting.method, *window,
        ],
        "ask": [
            *mine, "ask", store, QUESTION, "--budget", setting.budget, "--max-new-tokens", "1",
            "--no-server", "--model", model,
        ],
        "reload": [
            sys.executable, "-m", "engine.lab.bench.peers.fresh", model,
            str(place / "full.safetensors"), QUESTION,
        ],
    }  # fmt: skip


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
    lines += ["", *(f"`{one['what']}` skipped: {one['why']}" for one in report["skipped"])]
    for row in report["lengths"]:
        lines += ["", f"{row['tokens']} tokens:", "", *_ratios(row), "", *_paces(row)]
    return "\n".join(lines) + "\n"


def _paces(row: dict[str, Any]) -> list[str]:
    """A token of an answer at every budget, beside the rivals that were there."""
    s = row["median_s"]
    rivals = {
        "full cache, same weights": "reload_token",
        "transformers, float32": "plain_token",
        "llama.cpp": "llama_token",
    }
    there = {name: s[key] for name, key in rivals.items() if key in s}
    lines = [
        "| a token of an answer | ms | resident MB | working MB | "
        + " | ".join(f"/ {name}" for name in there)
        + " |",
        "|---|" + "---|" * (3 + len(there)),
    ]
    for budget, held in row["budgets"].items():
        mine = s.get(f"token@{budget}")
        if mine is not None:
            taken = (1e3 * mine, held["resident_bytes"] / 1e6, held["working_bytes"] / 1e6)
            ratios = " | ".join(f"{mine / other:.2f}" for other in there.values())
            numbers = " | ".join(f"{number:.1f}" for number in taken)
            lines.append(f"| ours, {budget} | {numbers} | {ratios} |")
    empty = " |" * (2 + len(there))
    return lines + [f"| {name} | {1e3 * seconds:.1f} |{empty}" for name, seconds in there.items()]


def _ratios(row: dict[str, Any]) -> list[str]:
    """The twelve ratios of one length, each with what it is a ratio of."""
    s, started = row["median_s"], row["processes"]
    full = row["full_16_bit_bytes"]

    def of(over: str, under: str, table: dict[str, float]) -> str:
        if over not in table or under not in table:
            return "not measured"
        return f"{table[over] / table[under]:.2f} ({table[over]:.3f} s / {table[under]:.3f} s)"

    def bytes_of(count: float) -> str:
        return f"{count / full:.3f} ({count / 1e6:.2f} MB / {full / 1e6:.2f} MB)"

    walls = {name: one["wall_s"] for name, one in started.items()}
    even = row["break_even_questions"]
    llama = row["llama_state_bytes"]
    cold = ", ".join(f"{name} {of(name, 'nothing', walls)}" for name in ("help", "list", "inspect"))
    return [
        "| | what | value |",
        "|---|---|---|",
        f"| R1 | re-prefill / open, to the first token | {of('reprefill', 'open', s)} |",
        f"| R2 | full cache reloaded / open, files warm | {of('reload', 'open', s)} |",
        f"| R2 | the same, files cold | {of('reload_cold', 'open_cold', s)} |",
        f"| R3 | new process: full cache reloaded / ask | {of('reload', 'ask', walls)} |",
        f"| R4 | store / 16-bit cache | {bytes_of(row['store_bytes'])} |",
        f"| R4 | saved full cache / 16-bit cache | {bytes_of(row['reload_bytes'])} |",
        f"| R5 | read before the first token / 16-bit cache | "
        f"{bytes_of(row['first_token_bytes'])} |",
        f"| R6 | resident / 16-bit cache | {bytes_of(row['resident_bytes'])} |",
        f"| R7 | ingest / re-prefill | {of('ingest', 'reprefill', s)} |",
        f"| R8 | a token of an answer: ours / full cache | {of('token', 'reload_token', s)} |",
        "| R9 | answers kept at a budget | suites fidelity, niah, ruler, multi |",
        f"| R7 | ingest / re-prefill of transformers, float32 "
        f"| {of('ingest', 'plain_reprefill', s)} |",
        f"| | our prefill alone / re-prefill, same weights | {of('prefill', 'reprefill', s)} |",
        f"| | our prefill alone / re-prefill of transformers, float32 "
        f"| {of('prefill', 'plain_reprefill', s)} |",
        f"| | compressing / our prefill | {of('fold', 'prefill', s)} |",
        f"| | compressing / re-prefill of transformers, float32 "
        f"| {of('fold', 'plain_reprefill', s)} |",
        f"| R10 | questions until reading once is cheaper | "
        f"{'never' if even is None else f'{even:.2f}'} |",
        f"| R11 | new process / one that does nothing | {cold if started else 'not measured'} |",
        f"| R12 | peak memory of a process that ingests / 16-bit cache | "
        f"{bytes_of(started['ingest']['peak_bytes']) if started else 'not measured'} |",
        *(
            ()
            if llama is None
            else (
                f"| R1 | llama.cpp: re-prefill / state restored "
                f"| {of('llama_reprefill', 'llama_open', s)} |",
                f"| R2 | llama.cpp's state restored / open, files warm "
                f"| {of('llama_open', 'open', s)} |",
                f"| R2 | the same, files cold | {of('llama_open_cold', 'open_cold', s)} |",
                f"| R3 | new process: llama.cpp's state restored / ask "
                f"| {of('llama', 'ask', walls)} |",
                f"| R4 | llama.cpp's state / 16-bit cache | {bytes_of(llama)} |",
                f"| R7 | ingest / llama.cpp's re-prefill | {of('ingest', 'llama_reprefill', s)} |",
                f"| R7 | llama.cpp: saving / re-prefill "
                f"| {of('llama_save', 'llama_reprefill', s)} |",
                f"| R8 | a token of an answer: ours / llama.cpp "
                f"| {of('token', 'llama_token', s)} |",
            )
        ),
    ]
