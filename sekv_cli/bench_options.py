"""The options of `sekv bench`, and the suites that it knows."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class SuiteName(StrEnum):
    """What can be measured; `sekv bench --help` says what each asks."""

    qa = "qa"
    fidelity = "fidelity"
    efficiency = "efficiency"
    support = "support"
    retrieval = "retrieval"
    positions = "positions"
    library = "library"
    niah = "niah"
    ruler = "ruler"
    multi = "multi"
    longbench = "longbench"
    infinitebench = "infinitebench"


COMPARED = tuple(
    name
    for name in SuiteName
    if name
    not in (
        SuiteName.fidelity,
        SuiteName.efficiency,
        SuiteName.support,
        SuiteName.retrieval,
        SuiteName.positions,
        SuiteName.library,
    )
)
"""Suites that compare methods: they can be one run with one report."""


class Scope(StrEnum):
    """What a natural question is asked on."""

    window = "window"
    book = "book"


Suites = Annotated[
    str,
    typer.Option(
        metavar="NAME,...",
        help=f"What to measure: {', '.join(SuiteName)}. Several that compare methods, such as "
        "niah,ruler, are one run with one report.",
    ),
]
Questions = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Natural questions, JSON lines (qa, fidelity, support, retrieval, positions, "
        "library); see docs/questions/README.md.",
        show_default=False,
    ),
]
Documents = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Folder of the documents they name.", show_default=False),
]
ScopeOption = Annotated[
    Scope,
    typer.Option(
        metavar="window|book",
        help="Ask on an excerpt of --length tokens, or on the whole document, whose store is then "
        "kept in --out (qa).",
    ),
]
Text = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Folder of .txt books to hide needles in (niah, ruler, multi, efficiency).",
        show_default=False,
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Folder of the official .jsonl files (longbench, infinitebench).",
        show_default=False,
    ),
]
Samples = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Questions, drawn evenly over kinds and documents (qa, positions, library), questions "
        "per line of the table (fidelity), rounds (efficiency), documents per cell (niah, ruler, "
        "multi) or lines per file. [default: 100; 100; 5; 4, 5, 2; 20]",
        show_default=False,
    ),
]
Methods = Annotated[
    str,
    typer.Option(
        metavar="NAME,...",
        help="Methods to compare, NAME@FILE or NAME@none with another router, or one to time "
        "(efficiency, which also takes llama.cpp@FILE.gguf); suites that compare take peers "
        "such as kvpress:snapkv or transformers:reload. [default: full,sekv (qa, beside "
        "transformers:plain), sekv,sekv-paper (fidelity), sekv (efficiency), all others]",
        show_default=False,
    ),
]
Budgets = Annotated[
    str,
    typer.Option(
        metavar="SHARE,...",
        help="Resident budgets, all for everything zoomed. [default: 30% (qa), 10%,20%,30%,all "
        "(efficiency), 2.5%,5%,10%,20%,all (fidelity), 5%,10%,20%]",
        show_default=False,
    ),
]
Lengths = Annotated[
    str,
    typer.Option(
        metavar="TOKENS,...",
        help="Tokens of a document, one or several in turn. [default: 1024 (qa, fidelity); "
        "2048,4096 (niah); 2048,6144 (efficiency); 2048]",
        show_default=False,
    ),
]
Tasks = Annotated[
    str,
    typer.Option(
        metavar="NAME,...",
        help="Only these tasks (ruler, longbench, infinitebench) or arrangements (positions).",
        show_default=False,
    ),
]
Depths = Annotated[str, typer.Option(metavar="PERCENT,...", help="Where the needle stands (niah).")]
Claims = Annotated[
    list[str] | None,
    typer.Option(
        "--assert",
        metavar="CLAIM",
        help="Exit 1 unless it holds, such as 'sekv@10% > snapkv@10%' or, in suite qa, "
        "'full:same >= 1'; >> asks for an interval that excludes zero. May be given several times.",
        show_default=False,
    ),
]
MaxNewTokens = Annotated[
    int,
    typer.Option(
        min=0,
        metavar="N",
        help="Longest answer, in tokens; 0: the suite's own (32 in qa, 48 in fidelity).",
    ),
]
Answers = Annotated[
    bool,
    typer.Option(
        "--answers/--no-answers",
        help="Whether to generate answers, or to compare next tokens alone, which is quicker "
        "(fidelity).",
    ),
]
Window = Annotated[
    int,
    typer.Option(
        min=0,
        metavar="N",
        help="Tokens per window; 0: the model's own, in suite efficiency one window where the "
        "model has positions for it.",
    ),
]
Dissect = Annotated[
    int,
    typer.Option(
        min=0, metavar="N", help="Documents whose heads are looked into; 0: none (fidelity)."
    ),
]
Seed = Annotated[int, typer.Option(min=0, metavar="N", help="Seed of the questions.")]
Output = Annotated[
    Path,
    typer.Option("--out", "-o", metavar="DIR", help="For results.json, table.md and charts."),
]
