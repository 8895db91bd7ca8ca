"""The console script: turns whatever ends a command into a line and a code.

The only boundary between errors and exit codes. Nothing here imports the
engine's heavy parts, so that `sekv --help` costs what typer costs.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import warnings
from types import TracebackType
from typing import Annotated, Any

import typer

from engine.errors import PlatformError
from sekv_cli import streams
from sekv_cli.commands import COMPLETION, Commands
from sekv_cli.endings import BAD_USAGE, DONE, PIPE_CLOSED, explain

HELP_WIDTH = 100
"""Most columns of a help text."""

app = typer.Typer(
    name="sekv",
    cls=Commands,
    help="Read a long document once, keep what the model remembers, ask it for ever.",
    epilog="Start with: sekv ingest book.pdf, then: sekv ask book.sekv 'Who ...?'",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


REPORTED = ("torch", "transformers", "tokenizers", "safetensors", "numba", "obstore")
"""Packages whose versions `sekv --version` tells: what answers depend on, and optional ones."""


def _version(wanted: bool) -> None:
    """The version, and below it what matters in a report of a defect; nothing heavy is loaded."""
    if not wanted:
        return
    import platform
    from importlib.metadata import PackageNotFoundError, version

    typer.echo(f"sekv {version('sekv')}")
    found = [f"python {platform.python_version()}"]
    for name in REPORTED:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} not installed")
    typer.echo(", ".join(found))
    typer.echo(f"{platform.platform()}, {os.cpu_count()} processors")
    raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    name = context.invoked_subcommand
    if name is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(BAD_USAGE)
    if name not in ("config", "completion", "help"):  # these work whatever the settings say
        from sekv_cli import settings

        root: Any = context.command
        context.default_map = {name: settings.defaults(name, root.get_command(context, name))}


class Boundary:
    """Around a command: whatever leaves it becomes `code` and at most one line on stderr.

    as_json: whether that line is a JSON object with the error's code, for scripts.
    """

    code = DONE

    def __init__(self, *, as_json: bool = False) -> None:
        self._as_json = as_json

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
        ending = explain(error)
        self.code = ending.exit_code
        if isinstance(error, OSError):
            _drop_output()
        if os.environ.get("SEKV_DEBUG") == "1" and self.code not in (DONE, PIPE_CLOSED):
            import traceback

            traceback.print_exception(error)
        if ending.line:
            found = {"error": {"code": ending.code, "message": ending.line}}
            line = json.dumps(found) if self._as_json else f"sekv: {ending.line}"
            with contextlib.suppress(OSError):  # a full stderr: the code says it all the same
                print(line, file=sys.stderr)
        return True


def _drop_output() -> None:
    """Forget what is buffered for a stdout that takes nothing any more.

    Without this the interpreter tries once more at its end, complains and ends with a code of its
    own. A stdout that works has nothing buffered that matters: an error follows no result.
    """
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):  # it may have no number of its own
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, sys.stdout.fileno())
            os.close(null)


NO_WINDOWS = (
    "Windows is not supported: a store needs the file locks and file systems of Linux or macOS. "
    "Run sekv in WSL: `wsl --install` in a terminal, then install it there as on Linux"
)


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code. Never raises, never exits."""
    command = typer.main.get_command(app)
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    with Boundary(as_json="--json" in options) as boundary:
        if sys.platform == "win32":
            raise PlatformError(NO_WINDOWS)
        width = min(shutil.get_terminal_size().columns, HELP_WIDTH) - 2
        with command.make_context("sekv", arguments, terminal_width=width) as context:
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
    streams.secure()
    if COMPLETION in os.environ:
        from sekv_cli import completion

        raise SystemExit(completion.answer(app, os.environ[COMPLETION]))
    raise SystemExit(run(sys.argv[1:]))
