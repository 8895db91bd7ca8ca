"""The suites of `sekv bench` that compare methods: what is asked becomes a suite, a run, a report.

Parsing stays in `bench`, measuring in `engine.lab.bench.compare`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from engine.errors import SekvError
from sekv_cli import bench_inputs

if TYPE_CHECKING:
    from engine.lab.bench.compare import ComparisonSetting, Run
    from engine.lab.bench.suites.types import Suite

LENGTHS = {"niah": (2048, 4096), "qa": (1024,)}
SAMPLES = {"qa": 100, "niah": 4, "ruler": 5, "multi": 2, "longbench": 20, "infinitebench": 20}
"""Of a suite by itself; lengths of the others: 2048."""


@dataclass(frozen=True)
class ComparisonRequest:
    """The command line, parsed. suites: one or several. methods, budgets, lengths: none, samples:
    None, and most: 0, for each suite's own. whole: natural questions on whole documents. most:
    tokens of an answer."""

    suites: tuple[str, ...]
    model: str
    questions: Path | None
    documents: Path | None
    whole: bool
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
    most: int
    device: str
    claims: tuple[str, ...]


def compare(
    asked: ComparisonRequest, output: Path, *, as_json: bool, verbose: bool | None = None
) -> None:
    """Run, write below `output`, print; exit code 1 where a claim does not hold.

    Several suites are one run with one report; each has its own results in a folder of its name.
    """
    settings = [_setting(name, asked) for name in asked.suites]
    suites = [make_suite(name, asked) for name in asked.suites]
    from engine.lab.bench.compare import Run
    from engine.models.locate import locate
    from engine.models.reader import load_reader
    from sekv_cli import progress

    alone = len(suites) == 1
    folders = [output if alone else output / suite.name for suite in suites]
    with progress.on_stderr(verbose) as shown:
        located = locate(asked.model, progress=shown)
        reader, name = load_reader(located, device=asked.device), str(located.folder)
        runs = [
            Run(reader, name, suite, setting, folder)
            for suite, setting, folder in zip(suites, settings, folders, strict=True)
        ]
        shown.start("asking", sum(run.left for run in runs), "answers")
        for run in runs:
            run.ask(shown)
    if not _publish(asked, runs, folders, output, as_json=as_json):
        raise typer.Exit(1)


def _setting(suite: str, asked: ComparisonRequest) -> ComparisonSetting:
    """What is compared in a suite.

    Raises:
        SekvError: an unknown method or peer, or a budget that is none.
    """
    from engine.compression.methods import METHODS
    from engine.lab.bench import peers
    from engine.lab.bench.budgets import ALL
    from engine.lab.bench.compare import ComparisonSetting, rows_of
    from engine.lab.bench.peers.plain import PLAIN
    from engine.types import AUTO_SHARE
    from sekv_cli import options

    methods, budgets = asked.methods or tuple(METHODS), asked.budgets or ("5%", "10%", "20%")
    if suite == "qa":
        methods, budgets = (
            asked.methods or ("full", "sekv"),
            asked.budgets or (f"{AUTO_SHARE:.0%}",),
        )
        # Plain transformers reads a document in one context, which a whole book is too long for.
        methods = methods if asked.whole else (PLAIN, *methods)
    for budget in budgets:
        if budget != ALL:
            options.budget(budget)
    setting = ComparisonSetting(
        peers.expand(methods), budgets, asked.seed, window=asked.window, most=asked.most
    )
    rows_of(setting)  # an unknown method is said before a model is loaded
    return setting


def _publish(
    asked: ComparisonRequest, runs: list[Run], folders: list[Path], output: Path, *, as_json: bool
) -> bool:
    """Write and print the results; whether all claims hold."""
    from engine.lab.bench import claims, page, results
    from sekv_cli import format, reports

    made, tables, holds = [], [], True
    for run, folder in zip(runs, folders, strict=True):
        report = run.report()
        table, drawn = page.markdown(report), page.charts(report)
        verdicts = [claims.check(claim, report) for claim in asked.claims]
        holds &= all(verdict.holds for verdict in verdicts)
        report["claims"] = [vars(verdict) for verdict in verdicts]
        checked = "\n".join(
            f"- {'holds' if v.holds else 'does not hold'}: {v.claim} ({v.told})" for v in verdicts
        )
        tables.append(f"{table}\n{checked}\n" if checked else table)
        page_of_one = page.html([(report, drawn)])
        results.save(report, tables[-1], folder, {**drawn, "report.html": page_of_one})
        made.append((report, drawn))
    whole = made[0][0]
    if len(runs) > 1:
        whole = {"suites": {report["suite"]: report for report, _ in made}}
        results.save(whole, "\n".join(tables), output, {"report.html": page.html(made)})
    if as_json:
        format.emit_json(whole)
    else:
        reports.print_measured(format.console(), "\n".join(tables), output)
    return holds


def make_suite(name: str, asked: ComparisonRequest) -> Suite:
    """The suite of that name.

    Raises:
        SekvError: files or a folder are missing, or a task is unknown.
    """
    if name == "qa":
        return _natural(asked)
    if name in ("longbench", "infinitebench"):
        from engine.lab.bench.suites.official import Official

        folder = bench_inputs.official(asked.data, name)
        return Official(name, folder, asked.samples or SAMPLES[name], asked.tasks)
    return _generated(name, asked, bench_inputs.books(asked.text, name))


def _natural(asked: ComparisonRequest) -> Suite:
    from functools import partial

    from engine.documents.tokens import tokenize
    from engine.lab.bench.questions import choose, load_questions
    from engine.lab.bench.suites.qa import NaturalQuestions
    from engine.models.load import load_tokenizer
    from engine.models.locate import locate

    lengths = (0,) if asked.whole else asked.lengths or LENGTHS["qa"]
    if len(lengths) != 1 or (asked.whole and asked.lengths):
        raise SekvError("the qa suite takes one --length, and none with --scope book")
    file, folder = bench_inputs.natural(asked.questions, asked.documents, "qa")
    chosen = choose(load_questions(file), asked.samples or SAMPLES["qa"], asked.seed)
    for document in dict.fromkeys(question.document for question in chosen):
        if not (folder / document).is_file():
            raise SekvError(f"there is no {document} in {folder}; name its folder: --documents")
    tokenizer = load_tokenizer(locate(asked.model).folder)
    return NaturalQuestions(
        chosen, folder, partial(tokenize, tokenizer=tokenizer), lengths[0], asked.seed
    )


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
