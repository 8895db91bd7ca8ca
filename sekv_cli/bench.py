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


class Suite(StrEnum):
    """What can be measured. reader: does the look-up reader find what a text states?"""

    reader = "reader"


def bench(
    suite: Annotated[
        Suite, typer.Option(metavar="NAME", help=f"What to measure: {', '.join(Suite)}.")
    ] = Suite.reader,
    model: Annotated[
        str,
        typer.Option(
            metavar="PATH",
            envvar="SEKV_MODEL",
            help="Folder of the reader. [default: the built-in reader]",
            show_default=False,
        ),
    ] = "",
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
    samples: Annotated[
        int, typer.Option(min=1, metavar="N", help="Questions per line of the table.")
    ] = 200,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of the questions.")] = 0,
    device: options.Device = "auto",
    output: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="DIR", help="For results.json and table.md."),
    ] = Path("runs/bench"),
    as_json: options.Json = False,
) -> None:
    """Measure, and write the results with their settings.

    The reader suite asks a look-up reader about texts, names and wordings that
    its training cannot have met, without any memory: it is the bound of what
    any store of it can answer. Interrupted, the same command goes on.

    \b
    Example:
      sekv bench --suite reader --text books --samples 200 --out runs/reader-bench
    """
    if text is None:
        raise SekvError(f"the {suite} suite draws its texts from books; name their folder: --text")
    if not text.is_dir():
        raise SekvError(f"there is no folder {text}")
    if questions is not None and not questions.is_file():
        raise SekvError(f"there is no file {questions}")

    from sekv_cli import format, progress

    with progress.on_stderr() as shown:
        report, table = _reader(model, text, questions, samples, seed, device, output, shown)
    if as_json:
        format.emit_json(report)
    else:
        format.print_markdown(format.console(), table)


def _reader(
    model: str,
    text: Path,
    questions: Path | None,
    samples: int,
    seed: int,
    device: str,
    output: Path,
    shown: Progress,
) -> tuple[dict[str, Any], str]:
    """The report and its table, both also written below `output`."""
    from engine.bench.reader import evaluate_reader, markdown
    from engine.readers import hf
    from engine.train.reader.episodes import Episodes

    try:
        unseen = Episodes(text, "eval", seed)
    except ValueError as error:  # No such book in the folder.
        raise SekvError(str(error)) from None
    familiar = Episodes(text, "eval", seed, names="train")
    output.mkdir(parents=True, exist_ok=True)
    report = evaluate_reader(
        Path(hf.resolve(model)),
        {"eval": unseen, "train": familiar},
        output / "results.json",
        questions=samples,
        seed=seed,
        file=questions,
        texts=text if questions is not None else None,
        device=str(hf.pick_device(device)),
        say=shown.note,
    )
    table = markdown(report)
    (output / "table.md").write_text(table, encoding="utf-8")
    return report, table
