"""The suites of `sekv bench` that compare methods: what is asked becomes a suite, a run, a report.

Parsing stays in `bench`, measuring in `engine.lab.bench.compare`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from engine.errors import SekvError

if TYPE_CHECKING:
    from engine.lab.bench.suites.types import Suite


LENGTHS = {"niah": (2048, 4096)}
SAMPLES = {"niah": 4, "ruler": 5, "multi": 2, "longbench": 20, "infinitebench": 20}
"""Of a suite by itself; lengths of the others: 2048."""


@dataclass(frozen=True)
class ComparisonRequest:
    """The command line, parsed. suites: one or several. methods: none for all. lengths: none, and
    samples: None, for each suite's own."""

    suites: tuple[str, ...]
    model: str
    text: Path | None
    data: Path | None
    methods: tuple[str, ...]
    budgets: tuple[str, ...]
    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    tasks: tuple[str, ...]
    samples: int | None
    seed: int
    window: int
    device: str
    claims: tuple[str, ...]


def compare(asked: ComparisonRequest, output: Path, *, as_json: bool) -> None:
    """Run, write below `output`, print; exit code 1 where a claim does not hold.

    Several suites are one run with one report; each has its own results in a folder of its name.
    """
    suites = [make_suite(name, asked) for name in asked.suites]
    from engine.compression.methods import METHODS
    from engine.lab.bench import claims, page, peers, results
    from engine.lab.bench.compare import ComparisonSetting, Run, rows_of
    from engine.models import hf
    from engine.models.locate import locate
    from sekv_cli import format, options, progress

    for budget in asked.budgets:
        options.budget(budget)
    methods = peers.expand(asked.methods or tuple(METHODS))
    setting = ComparisonSetting(methods, asked.budgets, asked.seed, window=asked.window)
    rows_of(setting)  # an unknown method is said before a model is loaded
    alone = len(suites) == 1
    folders = [output if alone else output / suite.name for suite in suites]
    with progress.on_stderr() as shown:
        located = locate(asked.model, progress=shown)
        reader, name = hf.load(located, device=asked.device), str(located.folder)
        runs = [
            Run(reader, name, suite, setting, folder)
            for suite, folder in zip(suites, folders, strict=True)
        ]
        shown.start("asking", sum(run.left for run in runs), "answers")
        for run in runs:
            run.ask(shown)
    made, tables, holds = [], [], True
    for run, folder in zip(runs, folders, strict=True):
        report = run.report()
        table, drawn = page.markdown(report), page.charts(report)
        verdicts = [claims.check(claim, report) for claim in asked.claims]
        holds &= all(verdict.holds for verdict in verdicts)
        report["claims"] = [vars(verdict) for verdict in verdicts]
        told = "\n".join(
            f"- {'holds' if v.holds else 'does not hold'}: {v.claim} ({v.told})" for v in verdicts
        )
        tables.append(f"{table}\n{told}\n" if told else table)
        results.save(report, table, folder, {**drawn, "report.html": page.html([(report, drawn)])})
        made.append((report, drawn))
    whole = made[0][0] if alone else {"suites": {report["suite"]: report for report, _ in made}}
    if not alone:
        results.save(whole, "\n".join(tables), output, {"report.html": page.html(made)})
    if as_json:
        format.emit_json(whole)
    else:
        format.print_markdown(format.console(), "\n".join(tables))
    if not holds:
        raise typer.Exit(1)


def make_suite(name: str, asked: ComparisonRequest) -> Suite:
    """The suite of that name.

    Raises:
        SekvError: files or a folder are missing, or a task is unknown.
    """
    if name in ("longbench", "infinitebench"):
        from engine.lab.bench.suites.official import Official

        if asked.data is None or not asked.data.is_dir():
            raise SekvError(
                f"the {name} suite reads official .jsonl files; name their folder: --data"
            )
        return Official(name, asked.data, asked.samples or SAMPLES[name], asked.tasks)
    if asked.text is None:
        raise SekvError(f"the {name} suite draws its texts from books; name their folder: --text")
    return _generated(name, asked, asked.text)


def _generated(name: str, asked: ComparisonRequest, text: Path) -> Suite:
    from engine.lab.bench.books import load_books, sentences
    from engine.lab.bench.suites.ruler import TASKS, Library, ManyQuestions, NeedleGrid, Ruler

    unknown = [task for task in asked.tasks if task not in TASKS]
    if unknown:
        raise SekvError(f"ruler has no task '{unknown[0]}'; known: {', '.join(TASKS)}")
    library = Library(
        [s for book in load_books(text) for part in book.paragraphs for s in sentences(part)]
    )
    plan: dict[str, Any] = {
        "library": library,
        "lengths": asked.lengths or LENGTHS.get(name, (2048,)),
        "samples": asked.samples or SAMPLES[name],
        "seed": asked.seed,
    }
    if name == "niah":
        return NeedleGrid(depths=asked.depths, **plan)
    if name == "multi":
        return ManyQuestions(**plan)
    return Ruler(tasks=asked.tasks or TASKS, **plan)
