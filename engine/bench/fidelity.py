"""Does a compressed memory answer as the full cache does? Same reader, questions and run.

Every method reads the same documents and answers the same questions at the same resident
bytes; the reference is method `full`. Both kinds of loss are counted: an answer that changed
and an answer that is no longer right. Bytes are those of the device tier, everything counted,
over 16-bit keys and values of the same tokens.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from engine.ask import Session
from engine.bench.reader import interval, plain
from engine.errors import BudgetError, SekvError
from engine.ingest import ingest
from engine.recall import parse_budget
from engine.recipe import named
from engine.types import AskOptions, IngestOptions, Progress, Silent

if TYPE_CHECKING:
    from engine.bench.reader import Drawn
    from engine.readers.hf import Reader

FORMAT = "sekv-fidelity-bench 1"


class Documents(Protocol):
    """Where documents with questions come from, one after another."""

    def __iter__(self) -> Iterator[Drawn]: ...


@dataclass(frozen=True)
class Setting:
    """What is compared. methods: names, each with "@" and a router file or "none" after it where
    the model's own is not meant. questions: how many in all. coverage: as `AskOptions`."""

    methods: tuple[str, ...] = ("sekv", "sekv-paper")
    budgets: tuple[str, ...] = ("12%", "17%")
    questions: int = 200
    coverage: float = 1.0
    window: int = 0
    most: int = 80


@dataclass
class Count:
    """One method at one budget. same: answers equal to the full cache's; right: values right."""

    questions: int = 0
    same: int = 0
    right: int = 0
    resident: float = 0.0
    most_resident: float = 0.0
    zoomed: float = 0.0
    first_token_s: list[float] = field(default_factory=list)


def measure(
    reader: Reader, model: str, documents: Documents, setting: Setting, progress: Progress
) -> dict[str, Any]:
    """Ask every question of the full cache and of every method at every budget.

    Args:
        reader: loaded.  model: its name or path, for ingest.
    Returns:
        JSON values: settings, and per method and budget the counts with 95 % intervals.
    Raises:
        SekvError: an unknown method, a budget that is none, or documents without questions.
    """
    for method in setting.methods:
        named(method.partition("@")[0])
    for budget in setting.budgets:
        parse_budget(budget, 1)
    if not 0 < setting.coverage <= 1:
        raise BudgetError(f"coverage {setting.coverage} is not in (0, 1]")
    counts = {(m, b): Count() for m in setting.methods for b in setting.budgets}
    full = Count()
    tokens: list[int] = []
    progress.start("asking", setting.questions, "questions")
    with tempfile.TemporaryDirectory(prefix="sekv-fidelity-") as scratch:
        place = Path(scratch)
        for drawn in documents:
            if full.questions >= setting.questions:
                break
            texts = list(drawn.questions)[: setting.questions - full.questions]
            source = place / "document.txt"
            source.write_text(drawn.document, encoding="utf-8")

            def asked(method: str, budgets: Sequence[str], texts: Any = texts) -> Any:
                name, _, router = method.partition("@")
                options = IngestOptions(
                    model=model, method=name, router=router, window=setting.window, overwrite=True
                )
                store = place / "document.sekv"
                report = ingest(
                    [str(place / "document.txt")], store, options, Silent(), None, reader
                )
                for budget in budgets:
                    ask = AskOptions(
                        budget=budget, coverage=setting.coverage, max_new_tokens=setting.most
                    )
                    with Session(store, ask, Silent(), reader) as session:
                        yield budget, report, [session.ask(q.text) for q in texts]

            _, report, truth = next(asked("full", ["100%"]))
            tokens.append(report.tokens)
            _add(full, truth, truth, texts, report.full_kv_bytes, reader.dtype.itemsize)
            for method in setting.methods:
                for budget, report, answers in asked(method, setting.budgets):
                    _add(
                        counts[method, budget],
                        answers,
                        truth,
                        texts,
                        report.full_kv_bytes,
                        reader.dtype.itemsize,
                    )
            progress.advance(len(texts))
    if not full.questions:
        raise SekvError("the documents hold no questions")
    return {
        "format": FORMAT,
        "model": reader.identity.id,
        "weights": reader.identity.weights,
        "setting": asdict(setting),
        "documents": len(tokens),
        "tokens_per_document": round(sum(tokens) / len(tokens)),
        "full": _line(full),
        "methods": {
            method: {budget: _line(counts[method, budget]) for budget in setting.budgets}
            for method in setting.methods
        },
    }


def _add(
    count: Count, answers: Any, truth: Any, questions: Any, full_bytes: int, itemsize: int
) -> None:
    """Count a document's answers. full_bytes is in the model's dtype; shares are of 16 bits."""
    half = full_bytes * 2 / itemsize
    for answer, reference, question in zip(answers, truth, questions, strict=True):
        count.questions += 1
        count.same += (answer.quote, answer.answer) == (reference.quote, reference.answer)
        said = plain(answer.answer).lower()
        wanted = plain(question.value).lower()
        count.right += wanted in said if wanted else "not stated" in said
        share = answer.memory.device_kv_bytes / half
        count.resident += share
        count.most_resident = max(count.most_resident, share)
        count.zoomed += answer.memory.zoomed_spans / max(1, answer.memory.total_spans)
        count.first_token_s.append(answer.timing["first_token_s"])


def _line(count: Count) -> dict[str, Any]:
    n = max(1, count.questions)
    times = sorted(count.first_token_s) or [0.0]
    return {
        "questions": count.questions,
        "same": count.same / n,
        "same_interval": interval(count.same, count.questions),
        "right": count.right / n,
        "right_interval": interval(count.right, count.questions),
        "resident": count.resident / n,
        "most_resident": count.most_resident,
        "zoomed_spans": count.zoomed / n,
        "median_first_token_s": times[len(times) // 2],
    }


def markdown(report: dict[str, Any]) -> str:
    """The report as a table; shares in per cent with Wilson's 95 % intervals."""

    def share(line: dict[str, Any], name: str) -> str:
        low, high = line[f"{name}_interval"]
        return f"{100 * line[name]:.1f} ({100 * low:.1f}-{100 * high:.1f})"

    full = report["full"]
    lines = [
        f"{full['questions']} questions, {report['documents']} documents of about "
        f"{report['tokens_per_document']} tokens, model {report['model']}",
        "",
        "| method | budget | resident, mean (max) % | same answer % | right value % |",
        "|---|---|---|---|---|",
        f"| full | - | 100 | 100 | {share(full, 'right')} |",
    ]
    for method, budgets in report["methods"].items():
        for budget, line in budgets.items():
            lines.append(
                f"| {method} | {budget} | {100 * line['resident']:.1f} "
                f"({100 * line['most_resident']:.1f}) | {share(line, 'same')} | "
                f"{share(line, 'right')} |"
            )
    return "\n".join(lines) + "\n"


def save(report: dict[str, Any], folder: Path) -> str:
    """Write results.json and table.md; return the table."""
    folder.mkdir(parents=True, exist_ok=True)
    table = markdown(report)
    (folder / "results.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (folder / "table.md").write_text(table, encoding="utf-8")
    return table
