"""`sekv train`: a router for a frozen model, its retrieval heads, or the built-in reader itself.

No training code here.

The reader's training starts as processes of their own (`python -m engine.train.reader`), because
their number and their memory allocator are settled before Python begins.
"""

from __future__ import annotations

import subprocess
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from engine.errors import TrainError
from sekv_cli import options

app = typer.Typer(rich_markup_mode=None)


class Form(StrEnum):
    """span: the published router of span summaries. sketch: bases that belong to the model."""

    both = "both"
    span = "span"
    sketch = "sketch"


@app.callback(invoke_without_command=True)
def router(
    context: typer.Context,
    model: options.OwnModel = "",
    revision: options.Revision = "",
    text: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of .txt files.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The router to write.")
    ] = Path("router.safetensors"),
    run: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of checkpoint and log; an interrupted run goes on from it. "
            "[default: OUTPUT.run]",
            show_default=False,
        ),
    ] = None,
    form: Annotated[Form, typer.Option(metavar="NAME", help="both, span or sketch.")] = Form.both,
    per_head: Annotated[
        bool,
        typer.Option(
            "--per-head", help="A projection per query head, as published, not per KV head."
        ),
    ] = False,
    columns: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="Columns of each basis to learn; 0: all of them."),
    ] = 0,
    hold_out: Annotated[
        list[str] | None,
        typer.Option(
            "--hold-out",
            metavar="NAME",
            help="A text to test on and not to learn from; more with more of these. "
            "[default: the last tenth of every text]",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, metavar="N", help="Documents to learn from.")] = 200,
    length: Annotated[
        int,
        typer.Option(
            min=0, metavar="N", help="Tokens of the longest; 0: what the model reads well."
        ),
    ] = 0,
    rate: Annotated[float, typer.Option(min=0.0, metavar="R", help="Learning rate.")] = 1e-3,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of documents.")] = 0,
    device: options.Device = "auto",
    dtype: options.DTypeOption = options.DType.auto,
    sizes: Annotated[
        bool, typer.Option("--sizes", help="Print routers' sizes for known models; train nothing.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Train a router for a model, find its retrieval heads, or train the built-in reader.

    The model stays as it is; the router learns which spans to zoom, and in which
    bases keys and values are kept, from what the model looks at when it sees
    everything.

    The file belongs to that model. `ingest` and `ask` take it with --router, or by
    themselves where it lies in the model's folder as router.safetensors. The
    same command continues an interrupted run.

    \b
    Example:
      sekv train --text books -o router.safetensors
      sekv train --model Qwen/Qwen3-4B --text papers -o qwen-router.safetensors
    """
    if context.invoked_subcommand is not None:
        return
    from sekv_cli import format, progress

    if sizes:
        from engine.train.zoomin.sizes import table

        format.print_markdown(format.console(), table())
        return
    if text is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(2)
    if not text.is_dir():
        raise TrainError(f"there is no folder {text}; name one of .txt files with --text")
    if output.is_dir():
        raise TrainError(f"{output} is a folder; name a file with -o")
    with progress.on_stderr() as shown:
        from engine.router import FORMS
        from engine.train.zoomin.loop import Options, train_router

        forms = FORMS if form is Form.both else (form.value,)
        chosen = Options(
            text=text,
            output=output,
            run=run or output.with_name(f"{output.name}.run"),
            model=model,
            revision=revision,
            device=device,
            dtype=dtype.value,
            forms=forms,
            per_head=per_head,
            columns=columns,
            held_out=tuple(hold_out or ()),
            steps=steps,
            length=length,
            rate=rate,
            seed=seed,
        )
        result = train_router(chosen, shown)
    if as_json:
        format.emit_json({"router": str(output), **result.to_json()})
    else:
        format.print_router(format.console(), output, result)


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
    model: options.OwnModel = "",
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
    from engine.models.locate import locate
    from engine.readers import hf
    from engine.train.heads import Setting, calibrate
    from engine.train.reader.haystack import load_books
    from sekv_cli import format, progress

    try:
        books = load_books(text, "train")
    except ValueError as error:  # No such book in the folder.
        raise TrainError(str(error)) from None
    prose = "\n\n".join(part for book in books for part in book.paragraphs[:400])

    with progress.on_stderr() as shown:
        located = locate(model, progress=shown)
        target = output or located.folder / NAME
        reader = hf.load(located, device=device)
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
