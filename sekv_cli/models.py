"""`sekv models`: the models known by alias; getting one and freeing its bytes."""

from __future__ import annotations

from typing import Annotated

import typer

from engine.models import named
from sekv_cli import completion, options
from sekv_cli.commands import Command, Group

app = typer.Typer(cls=Group, rich_markup_mode=None, add_completion=False)


@app.callback(invoke_without_command=True)
def models(context: typer.Context, as_json: options.Json = False) -> None:
    """List the models known by alias, and what of them is here.

    Any other causal model of transformers works too: name its hub id, its folder
    or a GGUF file with --model. Converted GGUF files are listed below the table.

    \b
    Example:
      sekv models
      sekv models pull smollm2
      sekv models rm smollm2
    """
    if context.invoked_subcommand is not None:
        return
    from engine.models import shelf
    from sekv_cli import format, reports

    found = shelf.listing()
    if as_json:
        format.emit_json(found.to_json())
    else:
        reports.print_models(format.console(), found)


@app.command("pull", cls=Command)
def pull(
    model: Annotated[
        str,
        typer.Argument(
            metavar="ALIAS",
            help="An alias, or the id of a model on the hub.",
            autocompletion=completion.models,
        ),
    ],
    revision: options.Revision = "",
    as_json: options.Json = False,
    verbose: options.Verbose = None,
) -> None:
    """Fetch a model and check its hash, so that it is here when it is needed.

    A model that comes as GGUF is converted once. Nothing is fetched twice.

    \b
    Example:
      sekv models pull smollm2
      sekv models pull Qwen/Qwen3-4B --revision main
    """
    named.check(model)

    from engine.models import shelf
    from sekv_cli import format, progress, reports

    with progress.on_stderr(verbose) as shown:
        report = shelf.pull(model, revision, shown)
    if as_json:
        format.emit_json(report.to_json())
    else:
        reports.print_pulled(format.console(), report)


@app.command("rm", cls=Command)
def remove(
    model: Annotated[
        str,
        typer.Argument(
            metavar="ALIAS",
            help="An alias, or the name of a converted file from the list.",
            autocompletion=completion.models,
        ),
    ],
    as_json: options.Json = False,
    verbose: options.Verbose = None,
) -> None:
    """Remove what sekv keeps of a model in its cache.

    A Python package that holds the model, and the hub's own cache, are not touched.

    \b
    Example:
      sekv models rm smollm2
    """
    from engine.models import shelf
    from sekv_cli import format, progress, reports

    with progress.on_stderr(verbose) as shown:
        report = shelf.remove(model, shown)
    if as_json:
        format.emit_json(report.to_json())
    else:
        reports.print_removed(format.console(), report)


@app.command("check")
def check(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="An alias, a hub id, a folder or a .gguf file, as for --model."
        ),
    ],
    revision: options.Revision = "",
    device: options.Device = "auto",
    dtype: options.DTypeOption = options.DType.auto,
    offline: options.Offline = False,
    as_json: options.Json = False,
) -> None:
    """Check that a model answers from a memory as it does from its full cache.

    A short text goes through a store that loses nothing, which is written, closed and
    opened again; the logits behind it are held against those of transformers' own
    attention. `sekv ingest` does the same once for a model it has not met. Exit code 1
    says that they differ, or that the model is refused, and why.

    \b
    Example:
      sekv models check Qwen/Qwen3-4B --device cuda --dtype bfloat16
      sekv models check ./my-model --json
    """
    from engine.api import IngestOptions, check_model
    from engine.models import named
    from sekv_cli import format, progress, reports
    from sekv_cli.endings import CHECK_FAILED

    named.check(model, offline=offline)
    chosen = IngestOptions(revision=revision, device=device, dtype=dtype.value, offline=offline)
    with progress.on_stderr() as shown:
        found = check_model(model, chosen, shown)
    if as_json:
        format.emit_json(found.to_json())
    else:
        reports.print_parity(format.console(), found)
    if not found.passed:
        raise typer.Exit(CHECK_FAILED)
