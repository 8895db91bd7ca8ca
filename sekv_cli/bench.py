"""`sekv bench`: measure what is claimed, resumable, with every setting beside the figure."""

from __future__ import annotations

from collections.abc import Iterator
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


class Suite(StrEnum):
    """What can be measured.

    reader: does the look-up reader find what a text states? fidelity: what does a compressed
    memory lose, in its heads and in its answers? efficiency: what do reading once and asking later
    cost? niah, ruler, multi, longbench, infinitebench: how right are the answers of every method?
    """

    reader = "reader"
    fidelity = "fidelity"
    efficiency = "efficiency"
    niah = "niah"
    ruler = "ruler"
    multi = "multi"
    longbench = "longbench"
    infinitebench = "infinitebench"


MOST_ASKED = 8
"""Questions on one document of the fidelity suite: what intervals need is many documents."""

COMPARED = (Suite.niah, Suite.ruler, Suite.multi, Suite.longbench, Suite.infinitebench)


def bench(
    suite: Annotated[
        str,
        typer.Option(
            metavar="NAME,...",
            help=f"What to measure: {', '.join(Suite)}. Several that compare methods, such as "
            "niah,ruler, are one run with one report.",
        ),
    ] = "reader",
    model: options.OwnModel = "",
    text: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of .txt books; only those that no reader is trained on are used.",
            show_default=False,
        ),
    ] = None,
    questions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Questions on whole books of that folder too, JSON lines.",
            show_default=False,
        ),
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
            help="Questions per line of the table (reader, fidelity), documents per cell "
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
    facts: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="Facts of one type per document: what is asked for and N - 1 that look like it "
            "(fidelity).",
        ),
    ] = 4,
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

    The reader suite asks a look-up reader about texts, names and wordings that
    its training cannot have met, without any memory: it is the bound of what
    any store of it can answer. Interrupted, the same command goes on.

    The fidelity suite asks the same questions of the full cache and of every
    method at every budget of resident bytes: answers, next tokens, divergence.
    On the first documents it then looks into every head: what routers find of
    the attention, and what codecs lose at equal bytes. Interrupted, the same
    command goes on. The efficiency suite
    times ingest and ask beside plain prefill of the same tokens and beside the
    full cache saved and loaded again, in turns, in one run; then whole programs
    from their start.

    The suites niah, ruler, multi, longbench and infinitebench score the
    answers of many methods at equal resident bytes. Documents are made from
    the books or read from official files. Peers, systems of others, can be
    rows too: kvpress, transformers, llama.cpp@FILE.gguf, or peers for all; one
    that is not installed is named with what it needs. Interrupted, the same
    command goes on.

    \b
    Example:
      sekv bench --suite reader --text books --samples 200 --out runs/reader-bench
      sekv bench --suite fidelity --text books --method sekv,sekv-paper --budget 5%,10%
      sekv bench --suite fidelity --text books --facts 17 --length 2048,4096,8192 --dissect 0
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

        asked = compare.Asked(
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
    if text is None:
        raise SekvError(f"the {suite} suite draws its texts from books; name their folder: --text")
    if not text.is_dir():
        raise SekvError(f"there is no folder {text}")
    if questions is not None and not questions.is_file():
        raise SekvError(f"there is no file {questions}")

    from sekv_cli import format, progress

    with progress.on_stderr() as shown:
        if suites[0] is Suite.reader:
            measured = _reader(model, text, questions, samples, seed, device, output, shown)
        elif suites[0] is Suite.fidelity:
            drawn = _Drawn(text, _numbers(length or "2048"), facts, seed)
            measured = _fidelity(
                model, drawn, (method, budget), samples, dissect, window, device, output, shown
            )
        else:
            lengths = _numbers(length or "8192,32768")
            measured = _efficiency(model, text, lengths, (method, budget), window, device, shown)
    from engine.bench.results import save

    report, table, charts = measured
    save(report, table, output, charts)
    if as_json:
        format.emit_json(report)
    else:
        format.print_markdown(format.console(), table)


def _suites(text: str) -> list[Suite]:
    """One suite, or several of those that compare methods."""
    names = list(dict.fromkeys(_names(text)))
    for name in names or [text]:
        if name not in list(Suite):
            raise SekvError(f"unknown suite '{name}'; known: {', '.join(Suite)}")
    suites = [Suite(name) for name in names]
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


def unseen(text: Path, seed: int) -> Any:
    """Documents that training cannot have met; `text` must hold a book kept back."""
    from engine.train.reader.episodes import Episodes

    try:
        return Episodes(text, "eval", seed)
    except ValueError as error:  # No such book in the folder.
        raise SekvError(str(error)) from None


class _Drawn:
    """Documents with facts of one type, of each length in turn, drawn for ever. Every question is
    one that its document answers."""

    def __init__(self, text: Path, lengths: list[int], facts: int, seed: int) -> None:
        self._episodes = unseen(text, seed)
        self._lengths, self._facts, self._seed = lengths, facts, seed

    def __iter__(self) -> Iterator[Any]:
        from itertools import cycle
        from random import Random

        rng = Random(self._seed)
        for tokens in cycle(self._lengths):
            yield self._episodes.sample(
                tokens,
                rng=rng,
                facts=self._facts,
                same_type=True,
                questions=min(self._facts, MOST_ASKED),
                unanswerable=0.0,
            )


def _fidelity(
    model: str,
    drawn: _Drawn,
    compared: tuple[str, str],
    samples: int,
    dissect: int,
    window: int,
    device: str,
    output: Path,
    shown: Progress,
) -> _Measured:
    from engine.bench.fidelity import laboratory
    from engine.bench.fidelity import report as shape
    from engine.models.locate import locate
    from engine.readers import hf

    setting = laboratory.Setting(
        methods=_names(compared[0]),
        budgets=_names(compared[1]) or laboratory.Setting.budgets,
        questions=samples,
        window=window,
        dissected=dissect,
    )
    located = locate(model, progress=shown)
    reader, name = hf.load(located, device=device), str(located.folder)
    report = laboratory.measure(reader, name, drawn, setting, output, shown)
    return report, shape.markdown(report), shape.charts(report)


def _efficiency(
    model: str,
    text: Path,
    lengths: list[int],
    compared: tuple[str, str],
    window: int,
    device: str,
    shown: Progress,
) -> _Measured:
    from engine.bench import efficiency, peers
    from engine.models.locate import locate
    from engine.readers import hf

    own = [name for name in _names(compared[0]) if not peers.is_peer(name)]
    others = [name for name in _names(compared[0]) if peers.is_peer(name)]
    if len(others) > 1 or any(not peers.is_llama(name) for name in others):
        raise SekvError(
            "the efficiency suite times one peer, llama.cpp@FILE.gguf, beside the full cache of "
            "transformers, which is always there"
        )
    setting = efficiency.Setting(
        lengths=tuple(lengths),
        method=own[0] if own else "sekv",
        budget=_names(compared[1] or "20%")[-1],
        window=window,
        peer=others[0] if others else "",
    )
    books = "\n\n".join(
        path.read_text(encoding="utf-8", errors="replace") for path in sorted(text.glob("*.txt"))
    )
    if not books:
        raise SekvError(f"{text} holds no .txt books")
    located = locate(model, progress=shown)
    reader, name = hf.load(located, device=device), str(located.folder)
    report = efficiency.measure(reader, name, books[: 8 * max(lengths)], setting, shown)
    return report, efficiency.markdown(report), {}


def _reader(
    model: str,
    text: Path,
    questions: Path | None,
    samples: int,
    seed: int,
    device: str,
    output: Path,
    shown: Progress,
) -> _Measured:
    """The report, kept cell by cell below `output`, and its table."""
    from engine.bench.reader import evaluate_reader, markdown
    from engine.models.load import pick_device
    from engine.models.locate import locate
    from engine.train.reader.episodes import Episodes

    named = {
        "eval": unseen(text, seed),
        "train": Episodes(text, "eval", seed, names="train"),
    }
    output.mkdir(parents=True, exist_ok=True)
    report = evaluate_reader(
        locate(model, progress=shown).folder,
        named,
        output / "results.json",
        questions=samples,
        seed=seed,
        file=questions,
        texts=text if questions is not None else None,
        device=str(pick_device(device)),
        say=shown.note,
    )
    return report, markdown(report), {}
