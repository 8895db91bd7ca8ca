"""`sekv train`: a router for a frozen model, or its retrieval heads. No training code here."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from engine.errors import TrainError
from engine.models import named
from sekv_cli import options, outputs
from sekv_cli.commands import Command, Group

app = typer.Typer(cls=Group, rich_markup_mode=None, add_completion=False)


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
    rank: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="Rows of each projection; fewer where the router must be a small share of a small "
            "model.",
        ),
    ] = 32,
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
    verbose: options.Verbose = None,
) -> None:
    """Train a router for a model, or find its retrieval heads.

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
    if not sizes:
        if text is None:
            raise TrainError("a router learns from text; name a folder of .txt files with --text")
        outputs.check_router(output)
        options.check_folder(text, "--text", ".txt files")
        if not any(text.glob("*.txt")):
            raise TrainError(f"no .txt files in {text}; name a folder of texts with --text")
        named.check(model)

    from sekv_cli import format, progress

    if text is None or sizes:
        from engine.lab.train.zoomin.sizes import table

        format.print_markdown(format.console(), table())
        return
    with progress.on_stderr(verbose) as shown:
        from engine.compression.routers.router_file import FORMS
        from engine.lab.train.zoomin.loop import Options, train_router

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
            rank=rank,
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


@app.command(cls=Command)
def heads(
    text: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="Folder of .txt books.",
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
    verbose: options.Verbose = None,
) -> None:
    """Find the retrieval heads of a model and what compression costs its layers.

    Method compresskv needs them. Nothing is trained: needles are hidden in
    the books, and it is seen which heads look at one while it is said.

    \b
    Example:
      sekv train heads --text books
      sekv train heads --text books --model Qwen/Qwen3-4B -o heads.json
    """
    options.check_folder(text, "--text", ".txt books")
    named.check(model)
    if output is not None:
        outputs.check_heads(output)

    from engine.lab.bench.books import load_books
    from engine.lab.train.heads import HeadSetting, calibrate
    from engine.models.compresskv_heads import NAME
    from engine.models.locate import locate
    from engine.models.reader import load_reader
    from sekv_cli import format, progress

    prose = "\n\n".join(part for book in load_books(text) for part in book.paragraphs[:400])

    with progress.on_stderr(verbose) as shown:
        located = locate(model, progress=shown)
        target = output or located.folder / NAME
        reader = load_reader(located, device=device)
        made = calibrate(reader, prose[:1_000_000], HeadSetting(each=needles, seed=seed), shown)
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
