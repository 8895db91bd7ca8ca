"""Ingest and ask beside the rivals, side by side in one run.

Times are medians of rounds in which all contenders take turns on the same machine; only their
ratios are meant to be quoted. Bytes are counted, not sampled. A document that is longer than the
model's positions is ours alone, see `windows`.
"""

from __future__ import annotations

import hashlib
import os
import resource
import tempfile
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from engine.ingest.run import ingest
from engine.lab.bench import llamacpp, peers, processes
from engine.lab.bench.efficiency import asking, rivals, windows
from engine.lab.bench.efficiency.setting import DECODED, QUESTION, in_one_context
from engine.lab.bench.log import Log
from engine.lab.bench.peers import caches
from engine.types import IngestOptions, Progress, Silent

if TYPE_CHECKING:
    from engine.lab.bench.efficiency.asking import Times
    from engine.lab.bench.efficiency.setting import EfficiencySetting
    from engine.models.reader import Reader
    from engine.types import Answer, IngestReport

FORMAT = "sekv-efficiency-bench 4"


def measure(
    reader: Reader,
    model: str,
    text: str,
    setting: EfficiencySetting,
    folder: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Time ingest and ask against plain prefill of the same tokens by the same model.

    Args:
        text: at least as long as the longest length asks for.
        folder: of the run; what was measured of a length is kept there, so that an interrupted run
            goes on with the next one, and stores of documents in windows, which are read once.

    Raises:
        SekvError: the folder holds a run of other settings.
    """
    ids = reader.tokenizer.encode(text, add_special_tokens=False)
    rows, missing = [], peers.named(setting.peer).missing() if setting.peer else ""
    file = "" if missing else setting.peer.partition("@")[2]
    others = llamacpp.LlamaWeights(file) if file else None, rivals.plain_model(reader)
    parts = {length: reader.tokenizer.decode(ids[:length]) for length in setting.lengths}
    settings = {**asdict(setting), "lengths": None}  # more of them can be added to a run
    log = Log.open(folder, {"format": FORMAT, "model": reader.identity.id, "setting": settings})
    progress.start("timing", (len(parts) + 1) * setting.rounds, "rounds")
    stores: dict[int, Path] = {}
    with tempfile.TemporaryDirectory(prefix="sekv-efficiency-") as scratch:
        for length, part in parts.items():
            digest = hashlib.sha256(part.encode()).hexdigest()[:16]
            key = f"{length}-{digest}", setting.method
            known = log.entries.get(key)
            if known is None and in_one_context(reader, length):
                place = Path(scratch) / str(length)
                row = _one_length(reader, model, others, (part, length), setting, place, progress)
                stores[length] = place / "text.sekv"
            else:
                store = windows.read_once(reader, model, part, length, setting, folder)
                stores[length] = store
                if known is None:
                    row = windows.one_length(reader, model, store, setting, progress)
                else:
                    row = known["measured"]
                    progress.resume(setting.rounds)
            if known is None:
                log.put({"key": key[0], "row": key[1], "measured": row})
            rows.append({"asked_tokens": length, **row})
        beside = windows.pace_by_length(reader, stores, setting, progress)
    return {
        "format": FORMAT,
        "model": reader.identity.id,
        "setting": asdict(setting),
        "load": os.getloadavg()[0],
        "threads": torch.get_num_threads(),
        "positions": reader.max_positions,
        "skipped": _skipped(setting.peer, missing, others[0]),
        "lengths": rows,
        "pace_by_length": beside,
    }


def _skipped(
    peer: str, missing: str, weights: llamacpp.LlamaWeights | None
) -> list[dict[str, str]]:
    """What takes no part, and why."""
    if weights is None:
        return [{"what": peer, "why": missing}] if missing else []
    lacking = [kind for kind in llamacpp.KINDS if kind not in weights.kinds]
    why = "llama.cpp has no such cache for this model"
    return [{"what": f"llama.cpp:{kind}", "why": why} for kind in lacking]


@dataclass(frozen=True)
class _Files:
    """What the contenders keep of one document, in one folder. llama: its contenders, one for each
    kind of cache, if any."""

    source: Path
    store: Path
    full: Path
    llama: list[rivals.LlamaRival]

    @classmethod
    def of(
        cls, place: Path, reader: Reader, text: str, weights: llamacpp.LlamaWeights | None,
        setting: EfficiencySetting,
    ) -> _Files:  # fmt: skip
        """The files in a new folder; the text is written."""
        place.mkdir()
        source = place / "text.txt"
        source.write_text(text, encoding="utf-8")
        llama = []
        if weights:
            ids = [*reader.prompt.prefix, *reader.tokenizer.encode(text, add_special_tokens=False)]
            question = reader.prompt.question(reader.tokenizer, QUESTION)
            model = setting.peer.partition("@")[2]
            llama = [
                rivals.LlamaRival(weights, model, ids, question, kind, place / f"{kind}.state")
                for kind in weights.kinds
            ]
        return cls(source, place / "text.sekv", place / "full.safetensors", llama)


def _one_length(
    reader: Reader,
    model: str,
    others: tuple[llamacpp.LlamaWeights | None, Any],
    document: tuple[str, int],
    setting: EfficiencySetting,
    place: Path,
    progress: Progress,
) -> dict[str, Any]:
    """others: the weights of llama.cpp, and plain transformers' model, where there are.
    document: its text, and its tokens."""
    times: Times = defaultdict(list)
    held: dict[str, dict[str, int]] = {}
    weights, plain = others
    text, length = document
    started: dict[str, Any] = {}
    window = setting.window_of(reader, length)
    files = _Files.of(place, reader, text, weights, setting)
    for _ in range(setting.rounds):
        report, answer = _round(reader, model, files, text, window, setting, times)
        if plain is not None:
            rivals.time_plain(plain, reader, text, times)
        held = asking.time_budgets(reader, files.store, setting.budgets, times)
        progress.advance(1)
    rival = files.full.stat().st_size
    if setting.processes:
        again = place / "again.sekv"
        programs = {
            **asking.programs(model, files.store, setting),
            "ingest": asking.ingest_program(model, files.source, again, window, setting),
            "reload": rivals.reload_program(model, files.full, reader),
        }
        programs |= {rival.key("process"): rival.program() for rival in files.llama}
        started = processes.measure(programs, setting.processes)
    return {
        **asking.timed(times),
        **asking.counted(report, answer, reader.dtype.itemsize),
        "reload_bytes": rival,
        "reload_over_store_bytes": rival / report.store_bytes,
        "budgets": held,
        "llama_state_bytes": {rival.kind: rival.state.stat().st_size for rival in files.llama},
        "processes": started,
        "process_peak_rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _round(
    reader: Reader,
    model: str,
    files: _Files,
    text: str,
    window: int,
    setting: EfficiencySetting,
    times: Times,
) -> tuple[IngestReport, Answer]:
    """All contenders once; seconds are added to `times`. What ingest and the answer say."""
    store, full, ask = files.store, files.full, asking.open_and_ask
    options = IngestOptions(model=model, method=setting.method, window=window, overwrite=True)
    report = ingest([str(files.source)], store, options, Silent(), None, reader)
    asking.note_ingest(report, times)
    seconds, cache = rivals.reprefill(reader, text)
    times["reprefill"].append(seconds)
    caches.write(cache, full)
    answer, spent = ask(reader, store, setting.budget, 1)
    times["open"].append(spent)
    times["reload"].append(rivals.reload(reader, full, 0)[0])
    if all([asking.forget(store), asking.forget(full)]):
        times["open_cold"].append(ask(reader, store, setting.budget, 1)[1])
        asking.forget(full)
        times["reload_cold"].append(rivals.reload(reader, full, 0)[0])
    said, spent = ask(reader, store, setting.budget, DECODED)
    times["token"] += asking.pace(said)
    more = said.usage.answer_tokens - 1
    if more:
        times["reload_token"].append(rivals.reload(reader, full, more)[1] / more)
    for rival in files.llama:
        rival.time(times)
    return report, answer
