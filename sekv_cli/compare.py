"""The suites of `sekv bench` that compare methods: what is asked becomes a suite, a run, a report.

Parsing stays in `bench`, measuring in `engine.bench.compare`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from engine.errors import SekvError

if TYPE_CHECKING:
    from engine.bench.suites.types import Suite


@dataclass(frozen=True)
class Asked:
    """The command line, parsed. methods: none for all. samples: None for the suite's own."""

    suite: str
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


def compare(asked: Asked, output: Path, *, as_json: bool) -> None:
    """Run, write below `output`, print; exit code 1 where a claim does not hold."""
    suite = make_suite(asked)
    from engine.bench import claims, page, peers, results
    from engine.bench.compare import Setting, measure, rows_of
    from engine.readers import hf
    from engine.recipe import RECIPES
    from sekv_cli import format, options, progress

    for budget in asked.budgets:
        options.budget(budget)
    methods = peers.expand(asked.methods or tuple(RECIPES))
    setting = Setting(methods, asked.budgets, asked.seed, window=asked.window)
    rows_of(setting)  # an unknown method is said before a model is loaded
    name = hf.resolve(asked.model)
    with progress.on_stderr() as shown:
        reader = hf.load(name, device=asked.device)
        report = measure(reader, name, suite, setting, output, shown)
    table = page.markdown(report)
    drawn = page.charts(report)
    verdicts = [claims.check(claim, report) for claim in asked.claims]
    report["claims"] = [vars(verdict) for verdict in verdicts]
    results.save(report, table, output, {**drawn, "report.html": page.html(report, drawn)})
    if as_json:
        format.emit_json(report)
    else:
        told = "\n".join(
            f"- {'holds' if v.holds else 'does not hold'}: {v.claim} ({v.told})" for v in verdicts
        )
        format.print_markdown(format.console(), f"{table}\n{told}\n" if told else table)
    if not all(verdict.holds for verdict in verdicts):
        raise typer.Exit(1)


def make_suite(asked: Asked) -> Suite:
    """The suite of that name.

    Raises:
        SekvError: files or a folder are missing, or a task is unknown.
    """
    if asked.suite in ("longbench", "infinitebench"):
        from engine.bench.suites.official import Official

        if asked.data is None or not asked.data.is_dir():
            raise SekvError(
                f"the {asked.suite} suite reads official .jsonl files; name their folder: --data"
            )
        return Official(asked.suite, asked.data, asked.samples or 20, asked.tasks)
    if asked.text is None:
        raise SekvError(
            f"the {asked.suite} suite draws its texts from books; name their folder: --text"
        )
    if not asked.text.is_dir():
        raise SekvError(f"there is no folder {asked.text}")
    return _generated(asked, asked.text)


def _generated(asked: Asked, text: Path) -> Suite:
    from engine.bench.suites.ruler import TASKS, Library, ManyQuestions, NeedleGrid, Ruler
    from engine.train.reader.haystack import load_books, sentences

    unknown = [task for task in asked.tasks if task not in TASKS]
    if unknown:
        raise SekvError(f"ruler has no task '{unknown[0]}'; known: {', '.join(TASKS)}")
    try:
        books = load_books(text, "eval")
    except ValueError as error:  # No such book in the folder.
        raise SekvError(str(error)) from None
    library = Library([s for book in books for part in book.paragraphs for s in sentences(part)])
    plan: dict[str, Any] = {
        "library": library,
        "lengths": asked.lengths,
        "samples": asked.samples or 2,
        "seed": asked.seed,
    }
    if asked.suite == "niah":
        return NeedleGrid(depths=asked.depths, **plan)
    if asked.suite == "multi":
        return ManyQuestions(**plan)
    return Ruler(tasks=asked.tasks or TASKS, **plan)
