"""`sekv train`: make what the project ships trained, and measure what a method must know.

It starts the training as processes of their own (`python -m engine.train.reader`), because their
number and their memory allocator are settled before Python begins. No training code here.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from engine.errors import TrainError
from sekv_cli import options

app = typer.Typer(help="Train what sekv ships trained.", rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def root(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(2)


@app.command()
def reader(
    text: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of .txt books.", show_default=False)
    ],
    run: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="Folder of checkpoints and log; an interrupted run goes on from it.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Where to write the finished reader.",
            show_default=False,
        ),
    ] = None,
    minutes: Annotated[float, typer.Option(min=0.0, metavar="N", help="How long to train.")] = 90.0,
    steps: Annotated[
        int, typer.Option(min=0, metavar="N", help="Train so many steps instead; 0 is by time.")
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of data and weights.")] = 0,
    layers: Annotated[
        int, typer.Option(min=0, metavar="N", help="Layers of the reader; 0 is the usual shape.")
    ] = 0,
    batch: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="Tokens per process and step; 0 is the usual."),
    ] = 0,
    processes: Annotated[
        int, typer.Option(min=1, metavar="N", help="Processes on a CPU, one thread each.")
    ] = 2,
    compile_: Annotated[
        bool, typer.Option("--compile", help="Compile the model; pays on a GPU.")
    ] = False,
    export: Annotated[
        bool, typer.Option("--export", help="Train no further; write the run's reader.")
    ] = False,
) -> None:
    """Train the built-in reader from nothing on a folder of books.

    Questions and facts are generated from grammars and from the books' own
    sentences. The same command continues an interrupted run.

    \b
    Example:
      sekv train reader --text books --run runs/reader -o reader --minutes 90
    """
    command = [sys.executable, "-m", "engine.train.reader", "--text", str(text), "--run", str(run)]
    command += ["--out", str(output)] if output else []
    for name, value in {
        "minutes": minutes,
        "steps": steps,
        "seed": seed,
        "layers": layers,
        "batch": batch,
        "processes": processes,
    }.items():
        command += [f"--{name}", str(value)]
    command += ["--compile"] * compile_ + ["--export"] * export
    raise typer.Exit(subprocess.run(command, check=False).returncode)


@app.command()
def heads(
    text: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="Folder of .txt books; those that suites draw from are left out.",
            show_default=False,
        ),
    ],
    model: Annotated[
        str,
        typer.Option(
            metavar="ID_OR_PATH",
            envvar="SEKV_MODEL",
            help="Hub id or folder of the model. [default: the built-in reader]",
            show_default=False,
        ),
    ] = "",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Where to write. [default: heads.json in the model's folder]",
            show_default=False,
        ),
    ] = None,
    needles: Annotated[
        int, typer.Option(min=1, metavar="N", help="Needles per length and depth.")
    ] = 2,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of the needles.")] = 0,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Find the retrieval heads of a model and what compression costs its layers.

    Method compresskv needs them. Nothing is trained: needles are hidden in
    the books, and it is seen which heads look at one while it is said.

    \b
    Example:
      sekv train heads --text books
      sekv train heads --text books --model Qwen/Qwen3-4B -o heads.json
    """
    if not text.is_dir():
        raise TrainError(f"there is no folder {text}")

    from engine.calibration import NAME
    from engine.readers import hf
    from engine.train.heads import Setting, calibrate
    from engine.train.reader.haystack import load_books
    from sekv_cli import format, progress

    try:
        books = load_books(text, "train")
    except ValueError as error:  # No such book in the folder.
        raise TrainError(str(error)) from None
    prose = "\n\n".join(part for book in books for part in book.paragraphs[:400])

    name = hf.resolve(model)
    if output is None and not Path(name).is_dir():
        raise TrainError(f"{name} has no folder of its own here; name a file with -o")
    target = output or Path(name) / NAME
    with progress.on_stderr() as shown:
        reader = hf.load(name, device=device)
        made = calibrate(reader, prose[:1_000_000], Setting(each=needles, seed=seed), shown)
    made.save(target)
    report = {"heads": str(target), "model": made.model, "layers": len(made.heads), **made.made}
    if as_json:
        format.emit_json(report)
    else:
        lines = [
            f"{layer}: heads {', '.join(map(str, best))}; share of the error {share:.3f}"
            for layer, (best, share) in enumerate(zip(made.heads, made.layer_share, strict=True))
        ]
        format.console().print("\n".join([*lines, f"written to {target}"]), markup=False)
