"""The console script: names the commands and turns whatever ends one into a line and a code.

The only boundary between errors and exit codes. Nothing here imports the
engine's heavy parts, so that `sekv --help` costs what typer costs.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from types import TracebackType
from typing import Annotated

import typer

from engine.errors import SekvError
from sekv_cli import ask, bench, chat, ingest, inspect, models, serve, train, verify
from sekv_cli import list as listing

DONE, DEFECT, INTERRUPTED, PIPE_CLOSED = 0, 70, 130, 141
BAD_USAGE = 2

# The base of everything typer says about a wrong command line. Typer does not export it, and
# depending on its version it lives in click or in typer's own copy of click.
UsageError = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="sekv",
    help="Read a long document once, keep what the model remembers, ask it for ever.",
    epilog="Start with: sekv ingest book.pdf, then: sekv ask book.sekv 'Who ...?'",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
app.command("ingest")(ingest.ingest)
app.command("ask")(ask.ask)
app.command("chat")(chat.chat)
app.command("serve")(serve.serve)
app.command("inspect")(inspect.inspect)
app.command("verify")(verify.verify)
app.command("list")(listing.list_stores)
app.command("bench")(bench.bench)
app.add_typer(models.app, name="models")
app.add_typer(train.app, name="train")


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"sekv {version('sekv')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(BAD_USAGE)


def explain(error: BaseException) -> tuple[int, str]:
    """What an ending means: the exit code, and the one line to say ("" for nothing)."""
    if isinstance(error, typer.Exit):
        return error.exit_code, ""
    if isinstance(error, SekvError):
        return error.exit_code, _one_line(str(error))
    if isinstance(error, UsageError):
        return BAD_USAGE, _usage_line(error)
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "interrupted; run the same command to continue"
    if isinstance(error, BrokenPipeError):
        return PIPE_CLOSED, ""
    if isinstance(error, OSError):  # A full disk or a closed door is not our defect.
        where = f"{error.filename}: " if error.filename else ""
        return BAD_USAGE, _one_line(f"{where}{error.strerror or error}")
    if _out_of_memory(error):
        return BAD_USAGE, "out of memory; a smaller --chunk-tokens or --window needs less"
    what = _one_line(f"{type(error).__name__}: {error}")
    return DEFECT, f"defect in sekv: {what} (please report it with the output under SEKV_DEBUG=1)"


def _out_of_memory(error: BaseException) -> bool:
    """True for Python's own error and for torch's two, which cannot be named without torch."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "DefaultCPUAllocator: can't allocate memory" in str(error)
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _usage_line(error: BaseException) -> str:
    """The wrong option and the command whose help explains it."""
    message = _one_line(getattr(error, "format_message", error.__str__)()).rstrip(".") + "."
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "sekv"
    return f"{message} Try: {command} --help"


class Boundary:
    """Around a command: whatever leaves it becomes `code` and at most one line on stderr."""

    code = DONE

    def __enter__(self) -> Boundary:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if error is None:
            return True
        if isinstance(error, SystemExit | GeneratorExit):
            return False
        self.code, line = explain(error)
        if isinstance(error, BrokenPipeError):
            # What is still buffered has no reader; without this the interpreter complains at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if os.environ.get("SEKV_DEBUG") == "1" and self.code not in (DONE, PIPE_CLOSED):
            traceback.print_exception(error)
        if line:
            print(f"sekv: {line}", file=sys.stderr)
        return True


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code. Never raises, never exits."""
    command = typer.main.get_command(app)
    with Boundary() as boundary:
        with command.make_context("sekv", arguments) as context:
            command.invoke(context)
        sys.stdout.flush()
    return boundary.code


def main() -> None:
    """The console script."""
    if os.environ.get("SEKV_DEBUG") != "1":
        # Remarks of libraries to their programmers; on a user's terminal they only hide ours.
        warnings.simplefilter("ignore")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")
    raise SystemExit(run(sys.argv[1:]))
