"""`sekv calibrate`: measure when a look-up reader had better say "not stated"."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from engine.errors import SekvError
from sekv_cli import options
from sekv_cli.bench import unseen


def calibrate(
    text: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="Folder of .txt books; only those that no reader is trained on are used.",
        ),
    ],
    model: options.OwnModel = "",
    questions: Annotated[
        int, typer.Option(min=1, metavar="N", help="Questions, half of them without an answer.")
    ] = 400,
    tokens: Annotated[
        int, typer.Option(min=64, metavar="N", help="Tokens of a document, about.")
    ] = 1024,
    lost: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, metavar="SHARE", help="Share of right answers to give up."),
    ] = 0.02,
    budget: options.Budget = "20%",
    seed: options.Seed = 1,
    device: options.Device = "auto",
    write: Annotated[
        bool, typer.Option("--write", help="Put the best bar into the reader's config.json.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Measure how sure a look-up reader must be of a quote to give it.

    Books that no reader is trained on get facts inserted and are asked what they
    state and what they do not. Printed are, for every score of certainty, the bar
    that loses at most the given share of right answers and how many questions
    without an answer it refuses; and how often the passage that states a right
    answer is among the citations. --write keeps the best bar beside the weights;
    no store depends on it.

    \b
    Example:
      sekv calibrate --text books --questions 400 --write
    """
    if not text.is_dir():
        raise SekvError(f"there is no folder {text}")

    from sekv_cli import format, progress

    with progress.on_stderr() as shown:
        from random import Random

        from engine.bench import support
        from engine.models.locate import locate
        from engine.readers import hf

        episodes = unseen(text, seed)
        rng = Random(seed)
        drawn = (
            episodes.sample(
                tokens, rng=rng, facts=2, same_type=False, questions=4, unanswerable=0.5
            )
            for _ in range(questions)
        )
        located = locate(model, progress=shown)
        reader, name = hf.load(located, device=device), str(located.folder)
        asked = support.ask_all(reader, name, drawn, questions, budget, shown)
        report = support.report(asked, lost)
        if write:
            support.write(Path(name), report["best"])
    if as_json:
        format.emit_json(report)
    else:
        format.print_markdown(format.console(), support.markdown(report))
