"""Methods side by side: the same model, documents, questions and resident bytes, in one run.

Every finished answer is on disk at once, so that an interrupted run goes on where it was. A
document is read by the model once; all methods compress the same keys and values.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.answer.session import Session
from engine.compression import methods as recipes
from engine.compression.methods import Method
from engine.errors import ReaderError
from engine.ingest.build import creator
from engine.ingest.run import ingest
from engine.ingest.trained_router import routed
from engine.lab.bench import peers, qa_report
from engine.lab.bench.bootstrap import interval
from engine.lab.bench.budgets import options_of
from engine.lab.bench.log import Log
from engine.lab.bench.peers.held import PeerError
from engine.lab.bench.read_once import ReadOnce
from engine.lab.bench.suites.scores import score
from engine.models import compresskv_heads
from engine.models.reader import Reader
from engine.types import IngestOptions, Progress, Silent

if TYPE_CHECKING:
    from engine.lab.bench.suites.types import Ask, Item, Sample, Suite
    from engine.types import Answer

FORMAT = "sekv-bench 1"
ROOM = 512
"""Positions a question and its answer may need behind the longest document."""


@dataclass(frozen=True)
class ComparisonSetting:
    """What is compared.

    methods: recipes, NAME@FILE or NAME@none for another router than the model's own, and peers.
    budgets: shares or tokens, or "all" for everything zoomed.
    coverage and window: as `AskOptions` and `IngestOptions` have them. most: tokens of an answer
    at most, 0 for the suite's own.
    """

    methods: tuple[str, ...]
    budgets: tuple[str, ...]
    seed: int = 0
    coverage: float = 1.0
    window: int = 0
    most: int = 0


@dataclass(frozen=True)
class Row:
    """One line of the table: a method at a budget."""

    method: str
    budget: str

    @property
    def name(self) -> str:
        return self.method if not self.budget else f"{self.method}@{self.budget}"


def rows_of(setting: ComparisonSetting) -> list[Row]:
    """All rows; a method that keeps everything has no budget.

    Raises:
        BudgetError: an unknown method or peer.
    """
    rows: list[Row] = []
    for method in setting.methods:
        known = peers if peers.is_peer(method) else recipes
        name = method if peers.is_peer(method) else method.partition("@")[0]
        whole = known.named(name).whole
        rows += [Row(method, "")] if whole else [Row(method, budget) for budget in setting.budgets]
    return rows


def measure(
    reader: Reader,
    model: str,
    suite: Suite,
    setting: ComparisonSetting,
    folder: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Ask everything of everyone; what `folder` already holds is not asked again.

    Args:
        reader: loaded.  model: its name or path, for ingest.
    Returns:
        JSON values: settings, rows with means and intervals, what was skipped and why.
    Raises:
        SekvError: an unknown method or budget, or another run's answers in the folder.
    """
    run = Run(reader, model, suite, setting, folder)
    progress.start("asking", run.left, "answers")
    run.ask(progress)
    return run.report()


class Run:
    """One suite asked of all methods; several can share one progress.

    Args and errors: see `measure`.
    """

    def __init__(
        self, reader: Reader, model: str, suite: Suite, setting: ComparisonSetting, folder: Path
    ) -> None:
        self.reader, self.model, self.suite, self.setting = reader, model, suite, setting
        self.folder = folder
        rows = rows_of(setting)
        self.skipped: list[dict[str, str]] = []
        own: dict[str, Method] = {}
        for method in dict.fromkeys(row.method for row in rows):
            if peers.is_peer(method):
                why = peers.named(method).missing()
            else:
                own[method], why = self._recipe(method)
            if why:
                self.skipped.append({"what": method, "why": why})
        missing = {entry["what"] for entry in self.skipped}
        self.rows = [row for row in rows if row.method not in missing]
        room = min(ROOM, reader.max_positions // 4)
        self.items = [item for item in suite.items if item.tokens + room <= reader.max_positions]
        asked = {item.tokens for item in self.items}
        for length in sorted({item.tokens for item in suite.items} - asked):
            why = (
                f"the model has {reader.max_positions} positions, too few for {length} tokens and "
                "a question"
            )
            self.skipped.append({"what": f"{length} tokens", "why": why})
        self.head = {
            "format": FORMAT,
            "creator": creator(),
            "suite": suite.name,
            "model": reader.identity.id,
            "weights": reader.identity.weights,
            "dtype": str(reader.dtype).removeprefix("torch."),
            "device": str(reader.devices[0]),
            "seed": setting.seed,
            "coverage": setting.coverage,
            "window": setting.window,
            "most": setting.most,
            "recipes": {method: recipe.settings() for method, recipe in own.items()},
            "peers": {
                row.method: peers.named(row.method).source
                for row in rows
                if peers.is_peer(row.method)
            },
        }
        self.once = ReadOnce.of(reader, list(own.values()))
        self.log = Log.open(folder, self.head)

    @property
    def left(self) -> int:
        """Answers that are still to be given, one per document and row."""
        return sum(len(self._todo(item)) for item in self.items)

    def ask(self, progress: Progress) -> None:
        """Ask what was not answered yet; each answer is on disk when it is given."""
        with tempfile.TemporaryDirectory(prefix="sekv-bench-") as scratch:
            for item in self.items:
                todo = self._todo(item)
                if not todo:
                    continue
                sample = self.suite.draw(item, lambda text: len(_encode(self.reader, text)))
                place = self.folder / "stores" / item.key if sample.keep else Path(scratch)
                place.mkdir(parents=True, exist_ok=True)
                for entry in self._answers(item, sample, todo, place):
                    self.log.put(entry)
                    progress.advance(1)
                self.once.forget()

    def _answers(
        self, item: Item, sample: Sample, rows: Sequence[Row], place: Path
    ) -> Iterator[dict[str, Any]]:
        """One document and all its questions, of every row that has not answered yet.

        A peer takes the document from a store of the full cache, and answers from what it holds.
        """
        source, store, compressed = place / "document.txt", place, ""
        source.write_text(sample.document, encoding="utf-8")
        # What is kept is long: a whole book does not fit into memory beside the model.
        reader = self.reader if sample.keep else self.once
        for row in rows:
            peer = peers.named(row.method) if peers.is_peer(row.method) else None
            method = row.method if peer is None else "full"
            if method != compressed:
                store = self._store(source, method, reader, keep=sample.keep)
                compressed = method
            most = self.setting.most or max(ask.most for ask in sample.asks)
            asking = options_of(row.budget, self.setting.coverage, most)
            with Session(store, asking, Silent(), reader) as session:
                stored = sum(file.stat().st_size for file in store.rglob("*") if file.is_file())
                if peer is not None:
                    try:
                        stored = peer.hold(session, row.budget, place)
                    except PeerError as error:
                        yield {"key": item.key, "row": row.name, "why": str(error)}
                        continue
                said = [(ask, session.ask(ask.text)) for ask in sample.asks]
                text = session.book.texts[0]
            yield {
                "key": item.key,
                "row": row.name,
                "task": item.task,
                "asked_tokens": item.tokens,
                "depth": item.depth,
                "store_bytes": stored,
                **_counted(said, reader.dtype.itemsize),
                **qa_report.measured(said, text, cites=peer is None),
            }

    def _store(self, source: Path, method: str, reader: Reader, *, keep: bool) -> Path:
        """The store of a document by a method; one that is kept is read once."""
        name, _, router = method.partition("@")
        options = IngestOptions(
            model=self.model, method=name, router=router, window=self.setting.window, overwrite=True
        )
        store = source.with_suffix(".sekv")
        if keep:
            known = [self.head[key] for key in ("weights", "dtype", "window")]
            known += [recipes.named(name).settings(), router, source.read_text(encoding="utf-8")]
            store = source.with_name(f"{name}-{_digest(known)}.sekv")
            if store.exists():
                return store
        ingest([str(source)], store, options, Silent(), None, reader)
        return store

    def report(self) -> dict[str, Any]:
        """All answers as JSON values, once every row has been asked."""
        report = _report(self.head, self.setting, self.items, self.rows, self.log, self.skipped)
        qa_report.add(report, self.log.entries)
        return report

    def _todo(self, item: Item) -> list[Row]:
        return [row for row in self.rows if (item.key, row.name) not in self.log.entries]

    def _recipe(self, method: str) -> tuple[Method, str]:
        """The recipe as ingest would use it, with its router, and why it cannot be used or ""."""
        name, _, file = method.partition("@")
        folder, identity = Path(self.model), self.reader.identity
        recipe, _ = routed(recipes.named(name), file, folder, self.reader, Silent())
        try:
            compresskv_heads.needed(recipe, folder, "", identity)
        except ReaderError as error:
            return recipe, str(error)
        return recipe, ""


def _encode(reader: Reader, text: str) -> list[int]:
    ids: list[int] = reader.tokenizer.encode(text, add_special_tokens=False)
    return ids


def _counted(said: Sequence[tuple[Ask, Answer]], itemsize: int) -> dict[str, Any]:
    """What any suite keeps of the answers on a document, JSON values.

    itemsize: bytes of a number in the reader's dtype.
    """
    answers = [answer for _, answer in said]
    return {
        "tokens": answers[0].usage.document_tokens,
        "scores": [_scored(ask, answer) for ask, answer in said if ask.answers],
        "answers": [answer.answer for answer in answers],
        "resident_bytes": max(answer.memory.device_kv_bytes for answer in answers),
        "full_16_bit_bytes": answers[0].memory.full_kv_bytes * 2 // itemsize,
        "first_token_s": _mean([answer.timing["first_token_s"] for answer in answers]),
        "fetched_bytes": int(_mean([answer.stats["fetched_bytes"] for answer in answers])),
        "reuse_rate": _mean([answer.stats["reuse_rate"] for answer in answers]),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _scored(ask: Ask, answer: Answer) -> float:
    said = answer.answer
    if ask.first_line:
        said = said.lstrip("\n").split("\n")[0]
    return score(ask.metric, said, ask.answers, ask.extra)


# ---------------------------------------------------------------------------- results


def _report(
    head: dict[str, Any],
    setting: ComparisonSetting,
    items: Sequence[Item],
    rows: Sequence[Row],
    log: Log,
    skipped: list[dict[str, str]],
) -> dict[str, Any]:
    lines, skipped = [], list(skipped)
    for row in rows:
        entries = [log.entries[item.key, row.name] for item in items]
        failed = [entry["why"] for entry in entries if "why" in entry]
        if failed:  # a mean over other documents than those of the other rows would mislead
            why = f"{failed[0]} ({len(failed)} of {len(entries)} documents)"
            skipped.append({"what": row.name, "why": why})
        elif entries:
            lines.append(_line(row, entries))
    return {
        **head,
        "setting": asdict(setting),
        "items": len(items),
        "skipped": skipped,
        "tasks": {item.key: item.task for item in items},
        "rows": lines,
    }


def summary(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """n, mean and the 95 % interval of the answers in some entries, one per document; of no answer
    with a score 0, from 0 to 1."""
    groups = [entry["scores"] for entry in entries]
    flat = [value for group in groups for value in group]
    low, high = interval(groups) if flat else (0.0, 1.0)
    return {"n": len(flat), "mean": sum(flat) / max(1, len(flat)), "low": low, "high": high}


def _line(row: Row, entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    def by(name: str) -> dict[str, Any]:
        values = dict.fromkeys(entry[name] for entry in entries)
        return {
            str(value): summary([e for e in entries if e[name] == value])
            for value in values
            if value is not None
        }

    shares = [entry["resident_bytes"] / entry["full_16_bit_bytes"] for entry in entries]
    lengths = sorted({entry["asked_tokens"] for entry in entries})
    return {
        "row": row.name,
        "method": row.method,
        "budget": row.budget,
        **summary(entries),
        "tokens": sum(entry["tokens"] for entry in entries) / len(entries),
        "resident_bytes": sum(entry["resident_bytes"] for entry in entries) / len(entries),
        "resident_share": sum(shares) / len(shares),
        "most_resident_share": max(shares),
        "store_bytes": sum(entry["store_bytes"] for entry in entries) / len(entries),
        "fetched_bytes": sum(entry["fetched_bytes"] for entry in entries) / len(entries),
        "reuse_rate": sum(entry["reuse_rate"] for entry in entries) / len(entries),
        "first_token_s": {
            str(length): statistics.median_high(
                [e["first_token_s"] for e in entries if e["asked_tokens"] == length]
            )
            for length in lengths
        },
        "by_task": by("task"),
        "by_length": by("asked_tokens"),
        "cells": {
            f"{length}/{depth:g}": summary(
                [e for e in entries if (e["asked_tokens"], e["depth"]) == (length, depth)]
            )
            for length in lengths
            for depth in sorted({e["depth"] for e in entries if e["depth"] is not None})
        },
        "scores": {entry["key"]: entry["scores"] for entry in entries},
    }
