"""Documents longer than the model's positions, which are read in windows.

No rival has windows, so that ours is compared with its own reading of the same windows, and the
pace of its answers with that on shorter documents. Such a document is read once, in a process of
its own, and its store is kept in the run's folder.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from engine.compression import methods
from engine.ingest.build import creator
from engine.ingest.run import ingest
from engine.lab.bench import processes
from engine.lab.bench.efficiency import asking
from engine.lab.bench.efficiency.setting import DECODED
from engine.types import IngestOptions, IngestReport, Silent

if TYPE_CHECKING:
    from engine.lab.bench.efficiency.asking import Times
    from engine.lab.bench.efficiency.setting import EfficiencySetting
    from engine.models.reader import Reader
    from engine.types import Progress

READ = "read.json"
"""Beside a store that is kept: what its ingest said, and what the process of it took."""


def read_once(
    reader: Reader,
    model: str,
    text: str,
    length: int,
    setting: EfficiencySetting,
    folder: Path,
) -> Path:
    """The store of a text, ingested now or by an earlier run with the same model and settings.

    folder: of the run.  length: document tokens.
    """
    window = setting.window_of(reader, length)
    identity, recipe = reader.identity, methods.named(setting.method).settings()
    made_of = [text, creator(), identity.weights, reader.dtype_name, window, recipe]
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
    place = folder / "stores" / f"{length}-{digest}"
    source, store, note = place / "text.txt", place / "text.sekv", place / READ
    if store.exists() and note.exists():
        return store
    place.mkdir(parents=True, exist_ok=True)
    source.write_text(text, encoding="utf-8")
    if setting.processes:
        command = asking.ingest_program(model, source, store, window, setting)
        ran = processes.run("ingest", command)
        said = {"report": json.loads(ran.output), "wall_s": ran.seconds, "peak_bytes": ran.peak}
    else:
        options = IngestOptions(model=model, method=setting.method, window=window, overwrite=True)
        said = {"report": ingest([str(source)], store, options, Silent(), None, reader).to_json()}
    note.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    return store


def one_length(
    reader: Reader, model: str, store: Path, setting: EfficiencySetting, progress: Progress
) -> dict[str, Any]:
    """What `rounds` measures of a document, without the rivals. Reading again, `reprefill`, is the
    prefill of the same windows."""
    times: Times = defaultdict(list)
    held: dict[str, dict[str, int]] = {}
    read = json.loads((store.parent / READ).read_text(encoding="utf-8"))
    report = IngestReport(**{**read["report"], "sources": ()})
    asking.note_ingest(report, times)
    times["reprefill"] = times["prefill"]
    for _ in range(setting.rounds):
        answer, spent = asking.open_and_ask(reader, store, setting.budget, 1)
        times["open"].append(spent)
        if asking.forget(store):
            times["open_cold"].append(asking.open_and_ask(reader, store, setting.budget, 1)[1])
        said = asking.open_and_ask(reader, store, setting.budget, DECODED)[0]
        times["token"] += asking.pace(said)
        held = asking.time_budgets(reader, store, setting.budgets, times)
        progress.advance(1)
    started: dict[str, Any] = {}
    if setting.processes:
        started = processes.measure(asking.programs(model, store, setting), setting.processes)
        if "wall_s" in read:
            started["ingest"] = {"wall_s": read["wall_s"], "peak_bytes": read["peak_bytes"]}
    return {
        **asking.timed(times),
        **asking.counted(report, answer, reader.dtype.itemsize),
        "window_tokens": report.window_tokens,
        "budgets": held,
        "llama_state_bytes": {},
        "reload_bytes": None,
        "processes": started,
    }


def pace_by_length(
    reader: Reader, stores: Mapping[int, Path], setting: EfficiencySetting, progress: Progress
) -> dict[str, Any]:
    """Seconds of a token at `setting.budget`, of documents of several lengths that take turns.

    stores: by document tokens.
    """
    times: dict[int, list[float]] = {length: [] for length in stores}
    for _ in range(setting.rounds):
        for length, store in stores.items():
            said = asking.open_and_ask(reader, store, setting.budget, DECODED)[0]
            times[length] += asking.pace(said)
        progress.advance(1)
    return {
        str(length): {"median_s": median(seconds), "all_s": seconds}
        for length, seconds in times.items()
        if seconds
    }
