"""`sekv bench`: measure what is claimed, resumable, with every setting beside the figure."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engine.errors import SekvError
from sekv_cli import options

if TYPE_CHECKING:
    from engine.types import Progress

_Measured = tuple[dict[str, Any], str, dict[str, str]]
"""A report, its table, and its charts by file name."""


class SuiteName(StrEnum):
    """What can be measured.

    fidelity: what does a compressed memory lose, in its heads and in its answers? efficiency: what
    do reading once and asking later cost? support: do citations hold the evidence, and does support
    tell what a document does not state? niah, ruler, multi, longbench, infinitebench: how right are
    the answers of every method?
    """

    fidelity = "fidelity"
    efficiency = "efficiency"
    support = "support"
    niah = "niah"
    ruler = "ruler"
    multi = "multi"
    longbench = "longbench"
    infinitebench = "infinitebench"


COMPARED = (
    SuiteName.niah,
    SuiteName.ruler,
    SuiteName.multi,
    SuiteName.longbench,
    SuiteName.infinitebench,
)


def bench(
    suite: Annotated[
        str,
        typer.Option(
            metavar="NAME,...",
            help=f"What to measure: {', '.join(SuiteName)}. Several that compare methods, such as "
            "niah,ruler, are one run with one report.",
        ),
    ] = "fidelity",
    model: Annotated[
        str,
        typer.Option(
            metavar="ALIAS|ID|DIR",
            envvar="SEKV_MODEL",
            help="The model. [default: smollm2]",
            show_default=False,
        ),
    ] = "",
    text: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of .txt books to hide needles in (niah, ruler, multi, efficiency).",
            show_default=False,
        ),
    ] = None,
    questions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Natural questions, JSON lines (fidelity, support); see docs/questions/README.md.",
            show_default=False,
        ),
    ] = None,
    documents: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the documents they name.", show_default=False),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of the official .jsonl files (longbench, infinitebench).",
            show_default=False,
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Questions per line of the table (fidelity), documents per cell "
            "(niah, ruler, multi) or lines per file. [default: 200; 4, 5, 2; 20]",
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            metavar="NAME,...",
            help="Methods to compare, NAME@FILE or NAME@none with another router, or one to time "
            "(efficiency, which also takes llama.cpp@FILE.gguf); suites that compare take peers "
            "such as kvpress:snapkv or transformers:reload. [default: sekv,sekv-paper (fidelity), "
            "sekv (efficiency), all others]",
            show_default=False,
        ),
    ] = "",
    budget: Annotated[
        str,
        typer.Option(
            metavar="SHARE,...",
            help="Resident budgets, all for everything zoomed (fidelity). [default: "
            "2.5%,5%,10%,20%,all (fidelity), 20% (efficiency), 5%,10%,20%]",
            show_default=False,
        ),
    ] = "",
    length: Annotated[
        str,
        typer.Option(
            metavar="TOKENS,...",
            help="Tokens of a document, one or several in turn. [default: 2048; 2048,4096 (niah); "
            "8192,32768 (efficiency)]",
            show_default=False,
        ),
    ] = "",
    task: Annotated[
        str,
        typer.Option(
            metavar="NAME,...",
            help="Only these tasks (ruler, longbench, infinitebench).",
            show_default=False,
        ),
    ] = "",
    depth: Annotated[
        str, typer.Option(metavar="PERCENT,...", help="Where the needle stands (niah).")
    ] = "0,50,100",
    claims: Annotated[
        list[str] | None,
        typer.Option(
            "--assert",
            metavar="CLAIM",
            help="Exit 1 unless it holds, such as 'sekv@10% > snapkv@10%'; >> asks for an interval "
            "that excludes zero. May be given several times.",
            show_default=False,
        ),
    ] = None,
    window: Annotated[
        int, typer.Option(min=0, metavar="N", help="Tokens per window; 0: the model's own.")
    ] = 0,
    dissect: Annotated[
        int,
        typer.Option(
            min=0, metavar="N", help="Documents whose heads are looked into; 0: none (fidelity)."
        ),
    ] = 8,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of the questions.")] = 0,
    device: options.Device = "auto",
    output: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="DIR", help="For results.json, table.md and charts."),
    ] = Path("runs/bench"),
    as_json: options.Json = False,
) -> None:
    """Measure, and write the results with their settings.

    The fidelity suite asks natural questions on excerpts of their documents, of
    the full cache and of every method at every budget of resident bytes:
    answers, next tokens, divergence. On the first excerpts it then looks into
    every head: what routers find of the attention, and what codecs lose at equal
    bytes. Interrupted, the same
    command goes on. The efficiency suite
    times ingest and ask beside plain prefill of the same tokens and beside the
    full cache saved and loaded again, in turns, in one run; then whole programs
    from their start. The support suite lets plain transformers answer natural
    questions on excerpts and reports where the evidence stands among the cited
    passages, and what support tells of questions without an answer.

    The suites niah, ruler, multi, longbench and infinitebench score the
    answers of many methods at equal resident bytes. Documents are made from
    the books or read from official files. Peers, systems of others, can be
    rows too: kvpress, transformers, llama.cpp@FILE.gguf, or peers for all; one
    that is not installed is named with what it needs. Interrupted, the same
    command goes on.

    \b
    Example:
      sekv bench --suite fidelity --questions docs/questions/books.jsonl --documents DIR
      sekv bench --suite efficiency --text books --length 8192,32768 --budget 20%
      sekv bench --suite niah --text books --method sekv,snapkv,full --budget 5%,10%
      sekv bench --suite niah,ruler --text books --task niah_single_2,qa_1 --out runs/table
      sekv bench --suite multi --text books --method sekv,full,transformers,kvpress
      sekv bench --suite ruler --text books --length 2048 --assert 'sekv@10% > snapkv@10%'
      sekv bench --suite longbench --data LongBench/data --task qasper --samples 50
    """
    suites = _suites(suite)
    if suites[0] in COMPARED:
        from sekv_cli import compare

        asked = compare.ComparisonRequest(
            suites=tuple(map(str, suites)),
            model=model,
            text=text,
            data=data,
            methods=_names(method),
            budgets=_names(budget or "5%,10%,20%"),
            lengths=tuple(_numbers(length)) if length else (),
            depths=_depths(depth),
            tasks=_names(task),
            samples=samples,
            seed=seed,
            window=window,
            device=device,
            claims=tuple(claims or ()),
        )
        compare.compare(asked, output, as_json=as_json)
        return
    method, samples = method or "sekv,sekv-paper", samples or 200
    from sekv_cli import format, progress

    with progress.on_stderr() as shown:
        if suites[0] is SuiteName.fidelity:
            if questions is None or documents is None:
                raise SekvError(
                    "the fidelity suite asks natural questions; name their file and the folder of "
                    "their documents: --questions and --documents"
                )
            source = (questions, documents, _numbers(length or "2048"), seed)
            measured = _fidelity(
                model, source, (method, budget), samples, dissect, window, device, output, shown
            )
        elif suites[0] is SuiteName.support:
            if questions is None or documents is None:
                raise SekvError(
                    "the support suite asks natural questions; name their file and the folder of "
                    "their documents: --questions and --documents"
                )
            tokens = _numbers(length or "1100")[0]
            source = (questions, documents, [tokens], seed)
            measured = _support(model, source, samples, device, output, shown)
        else:
            if text is None:
                raise SekvError("the efficiency suite reads books; name their folder: --text")
            lengths = _numbers(length or "8192,32768")
            measured = _efficiency(model, text, lengths, (method, budget), window, device, shown)
    from engine.lab.bench.results import save

    report, table, charts = measured
    save(report, table, output, charts)
    if as_json:
        format.emit_json(report)
    else:
        format.print_markdown(format.console(), table)


def _suites(text: str) -> list[SuiteName]:
    """One suite, or several of those that compare methods."""
    names = list(dict.fromkeys(_names(text)))
    for name in names or [text]:
        if name not in list(SuiteName):
            raise SekvError(f"unknown suite '{name}'; known: {', '.join(SuiteName)}")
    suites = [SuiteName(name) for name in names]
    if len(suites) > 1 and not set(suites) <= set(COMPARED):
        raise SekvError(f"only {', '.join(COMPARED)} can be run together")
    return suites


def _numbers(text: str) -> list[int]:
    """Positive whole numbers parted by commas."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise SekvError(f"{text!r} is no list of numbers of tokens such as 8192,32768")
    return [int(part) for part in parts]


def _depths(text: str) -> tuple[float, ...]:
    """Per cents parted by commas, as shares."""
    parts = [part.strip().removesuffix("%") for part in text.split(",")]
    if not all(part.replace(".", "", 1).isdigit() and float(part) <= 100 for part in parts):
        raise SekvError(f"{text!r} is no list of depths such as 0,50,100")
    return tuple(float(part) / 100 for part in parts)


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _fidelity(
    model: str,
    asked: tuple[Path, Path, list[int], int],
    compared: tuple[str, str],
    samples: int,
    dissect: int,
    window: int,
    device: str,
    output: Path,
    shown: Progress,
) -> _Measured:
    from functools import partial

    from engine.documents.tokens import tokenize as tokenise
    from engine.lab.bench.fidelity import laboratory
    from engine.lab.bench.fidelity import report as shape
    from engine.lab.bench.questions import Excerpts, load_questions
    from engine.models import hf

    path, documents, lengths, seed = asked
    questions = load_questions(path)
    name = hf.resolve(model)
    setting = laboratory.FidelitySetting(
        methods=_names(compared[0]),
        budgets=_names(compared[1]) or laboratory.FidelitySetting.budgets,
        questions=samples,
        window=window,
        dissected=dissect,
    )
    reader = hf.load(name, device=device)
    tokenize = partial(tokenise, tokenizer=reader.tokenizer)
    drawn = Excerpts(questions, documents, tokenize, lengths, seed)
    report = laboratory.measure(reader, name, drawn, setting, output, shown)
    return report, shape.markdown(report), shape.charts(report)


def _support(
    model: str,
    asked: tuple[Path, Path, list[int], int],
    samples: int,
    device: str,
    output: Path,
    shown: Progress,
) -> _Measured:
    from engine.lab.bench import support
    from engine.lab.bench.questions import load_questions
    from engine.models import hf

    path, documents, lengths, seed = asked
    setting = support.SupportSetting(tokens=lengths[0], samples=samples, seed=seed)
    reader = hf.load(hf.resolve(model), device=device)
    files = [(load_questions(path), documents)]
    report = support.measure(reader, files, setting, output, shown)
    return report, support.markdown(report), {}


def _efficiency(
    model: str,
    text: Path,
    lengths: list[int],
    compared: tuple[str, str],
    window: int,
    device: str,
    shown: Progress,
) -> _Measured:
    from engine.lab.bench import efficiency, peers
    from engine.lab.bench.books import load_books
    from engine.models import hf

    own = [name for name in _names(compared[0]) if not peers.is_peer(name)]
    others = [name for name in _names(compared[0]) if peers.is_peer(name)]
    if len(others) > 1 or any(not peers.is_llama(name) for name in others):
        raise SekvError(
            "the efficiency suite times one peer, llama.cpp@FILE.gguf, beside the full cache of "
            "transformers, which is always there"
        )
    setting = efficiency.EfficiencySetting(
        lengths=tuple(lengths),
        method=own[0] if own else "sekv",
        budget=_names(compared[1] or "20%")[-1],
        window=window,
        peer=others[0] if others else "",
    )
    books = "\n\n".join(part for book in load_books(text) for part in book.paragraphs)
    name = hf.resolve(model)
    reader = hf.load(name, device=device)
    report = efficiency.measure(reader, name, books[: 8 * max(lengths)], setting, shown)
    return report, efficiency.markdown(report), {}
