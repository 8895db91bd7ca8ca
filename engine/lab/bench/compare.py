"""Methods side by side: the same model, documents, questions and resident bytes, in one run.

Every finished answer is on disk at once, so that an interrupted run goes on where it was. A
document is read by the model once; all methods fold the same keys and values.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.answer.session import Session
from engine.compression import methods as recipes
from engine.compression.methods import Method
from engine.compression.observation import Observe
from engine.errors import ReaderError, SekvError
from engine.ingest.build import creator
from engine.ingest.routers import routed
from engine.ingest.run import ingest
from engine.lab.bench import peers
from engine.lab.bench.bootstrap import interval
from engine.lab.bench.peers.held import PeerError
from engine.lab.bench.suites.scores import score
from engine.models import hf, retrieval_heads
from engine.store import disk
from engine.types import AskOptions, IngestOptions, Progress, Silent

if TYPE_CHECKING:
    from torch import Tensor

    from engine.lab.bench.suites.types import Ask, Item, Sample, Suite
    from engine.types import Answer

FORMAT = "sekv-bench 1"
ANSWERS = "answers.jsonl"
ROOM = 512
"""Positions a question and its answer may need behind the longest document."""


@dataclass(frozen=True)
class ComparisonSetting:
    """What is compared.

    methods: recipes, NAME@FILE or NAME@none for another router than the model's own, and peers.
    coverage and window: as `AskOptions` and `IngestOptions` have them. most: tokens of an answer
    at most, 0 for the suite's own.
    """

    methods: tuple[str, ...]
    budgets: tuple[str, ...]
    seed: int = 0
    coverage: float = 1.0
    window: int = 0
    most: int = 0


class ReadOnce(hf.Reader):
    """A reader that remembers the last document's chunks, so that every method gets the same ones
    and none waits for them again; what any method observes is observed."""

    def __init__(self, reader: hf.Reader, observe: Observe):
        self.__dict__.update(reader.__dict__)
        self._observe = observe
        self._before: list[tuple[Tensor, Tensor]] | None = None
        self._chunks: dict[tuple[int, ...], list[hf.Chunk]] = {}

    @classmethod
    def of(cls, reader: hf.Reader, recipes: Sequence[Method]) -> ReadOnce:
        """One that observes what any of these methods asks for."""
        rows = max((recipe.observe.rows for recipe in recipes), default=0)
        reach = max((recipe.observe.reach for recipe in recipes), default=0)
        spread = max((recipe.observe.spread for recipe in recipes), default=0)
        return cls(reader, Observe(rows, reach, spread))

    def forget(self) -> None:
        """Let go of the document; the next one is another."""
        self._chunks.clear()

    def prefix(self) -> list[tuple[Tensor, Tensor]]:
        if self._before is None:
            self._before = super().prefix()
        return self._before

    def read_window(
        self,
        ids: list[int],
        prefix: list[tuple[Tensor, Tensor]],
        chunk_tokens: int,
        done: list[hf.Chunk],
        observe: Observe = hf.NOTHING,
    ) -> Iterator[hf.Chunk]:
        key = (chunk_tokens, *ids)
        if done or not self._observe.covers(observe):
            yield from super().read_window(ids, prefix, chunk_tokens, done, observe)
            return
        if key not in self._chunks:
            read = super().read_window(ids, prefix, chunk_tokens, [], self._observe)
            self._chunks[key] = list(read)
        for chunk in self._chunks[key]:  # whoever folds them empties the lists
            yield replace(chunk, k=list(chunk.k), v=list(chunk.v))


@dataclass(frozen=True)
class Row:
    """One line of the table: a method at a budget."""

    method: str
    budget: str

    @property
    def name(self) -> str:
        return self.method if not self.budget else f"{self.method}@{self.budget}"


@dataclass
class Log:
    """The answers so far, one JSON object a line, the run's settings first."""

    path: Path
    entries: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, head: dict[str, Any]) -> Log:
        """What an earlier run of the same settings left, or nothing.

        Rows of other methods stay, so that methods and peers can be added to a run; rows that
        failed are tried again.

        Raises:
            SekvError: the folder holds another run's answers.
        """
        folder.mkdir(parents=True, exist_ok=True)
        log = cls(folder / ANSWERS)
        whole = ""
        if log.path.exists():
            # Killed while writing, a run leaves half a line behind.
            whole, _, _ = log.path.read_text(encoding="utf-8").rpartition("\n")
        first, *rest = whole.split("\n")
        head = json.loads(json.dumps(head))
        if first:
            head = _joined(json.loads(first), head, log.path)
        for line in rest:
            entry = json.loads(line)
            if "why" not in entry:
                log.entries[entry["key"], entry["row"]] = entry
        lines = [head, *log.entries.values()]
        disk.put(log.path, "".join(_line_of(line) for line in lines).encode())
        return log

    def put(self, entry: dict[str, Any]) -> None:
        self.entries[entry["key"], entry["row"]] = entry
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line_of(entry))


def _line_of(entry: dict[str, Any]) -> str:
    return json.dumps(entry, ensure_ascii=False) + "\n"


def _joined(before: dict[str, Any], head: dict[str, Any], path: Path) -> dict[str, Any]:
    """The settings of a run that goes on, with the methods of both.

    Raises:
        SekvError: they differ in anything else, or in what a method is.
    """
    joined, other = {}, []
    for name, value in head.items():
        if name in ("recipes", "peers"):
            old = before.get(name, {})
            other += [method for method in value if old.get(method, value[method]) != value[method]]
            joined[name] = {**old, **value}
        else:
            other += [name] if before.get(name) != value else []
            joined[name] = value
    if other:
        raise SekvError(
            f"{path} holds a run with another {', '.join(other)}; name a new folder with --out or "
            "remove it"
        )
    return joined


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
    reader: hf.Reader,
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
        self, reader: hf.Reader, model: str, suite: Suite, setting: ComparisonSetting, folder: Path
    ) -> None:
        self.reader, self.model, self.suite, self.setting = reader, model, suite, setting
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
                place = Path(scratch)
                for entry in _ask(self.once, self.model, item, sample, todo, self.setting, place):
                    self.log.put(entry)
                    progress.advance(1)
                self.once.forget()

    def report(self) -> dict[str, Any]:
        """All answers as JSON values, once every row has been asked."""
        return _report(self.head, self.setting, self.items, self.rows, self.log, self.skipped)

    def _todo(self, item: Item) -> list[Row]:
        return [row for row in self.rows if (item.key, row.name) not in self.log.entries]

    def _recipe(self, method: str) -> tuple[Method, str]:
        """The recipe as ingest would use it, with its router, and why it cannot be used or ""."""
        name, _, file = method.partition("@")
        folder, identity = Path(self.model), self.reader.identity
        recipe, _ = routed(recipes.named(name), file, folder, self.reader, Silent())
        try:
            retrieval_heads.needed(recipe, self.model, "", identity)
        except ReaderError as error:
            return recipe, str(error)
        return recipe, ""


def _encode(reader: hf.Reader, text: str) -> list[int]:
    ids: list[int] = reader.tokenizer.encode(text, add_special_tokens=False)
    return ids


def _ask(
    reader: ReadOnce,
    model: str,
    item: Item,
    sample: Sample,
    rows: Sequence[Row],
    setting: ComparisonSetting,
    place: Path,
) -> Iterator[dict[str, Any]]:
    """One document and all its questions, of every row that has not answered yet.

    A peer takes the document from a store of the full cache, and answers from what it holds.
    """
    source, store = place / "document.txt", place / "document.sekv"
    source.write_text(sample.document, encoding="utf-8")
    folded = ""
    for row in rows:
        peer = peers.named(row.method) if peers.is_peer(row.method) else None
        method = row.method if peer is None else "full"
        if method != folded:
            name, _, router = method.partition("@")
            options = IngestOptions(
                model=model, method=name, router=router, window=setting.window, overwrite=True
            )
            made = ingest([str(source)], store, options, Silent(), None, reader)
            folded = method
        asking = AskOptions(
            budget=row.budget or "100%",
            coverage=setting.coverage,
            max_new_tokens=setting.most or max(ask.most for ask in sample.asks),
        )
        with Session(store, asking, Silent(), reader) as session:
            stored = made.store_bytes
            if peer is not None:
                try:
                    stored = peer.hold(session, row.budget, place)
                except PeerError as error:
                    yield {"key": item.key, "row": row.name, "why": str(error)}
                    continue
            said = [(ask, session.ask(ask.text)) for ask in sample.asks]
        yield {
            "key": item.key,
            "row": row.name,
            "task": item.task,
            "tokens": made.tokens,
            "asked_tokens": item.tokens,
            "depth": item.depth,
            "scores": [_scored(ask, answer) for ask, answer in said],
            "answers": [answer.answer for _, answer in said],
            "resident_bytes": max(answer.memory.device_kv_bytes for _, answer in said),
            "full_16_bit_bytes": made.full_kv_bytes * 2 // reader.dtype.itemsize,
            "store_bytes": stored,
            "first_token_s": sum(a.timing["first_token_s"] for _, a in said) / len(said),
            "fetched_bytes": sum(a.stats["fetched_bytes"] for _, a in said) // len(said),
            "reuse_rate": sum(a.stats["reuse_rate"] for _, a in said) / len(said),
        }


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
    """n, mean and the 95 % interval of the answers in some entries, one per document."""
    groups = [entry["scores"] for entry in entries]
    flat = [value for group in groups for value in group]
    low, high = interval(groups)
    return {"n": len(flat), "mean": sum(flat) / len(flat), "low": low, "high": high}


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
