"""Exit codes and error lines: how each error ends a command.

The only place where errors become exit codes. Free of the engine's heavy parts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from typing import cast

import typer

from engine.errors import OptionError, SekvError

DONE, CHECK_FAILED = 0, 1
DEFECT, INTERRUPTED, PIPE_CLOSED = 70, 130, 141
BAD_USAGE = 2

# The base of everything typer says about a wrong command line. Typer does not export it, and
# depending on its version it lives in click or in typer's own copy of click.
UsageError = cast("type[Exception]", typer.BadParameter.__mro__[1])


PLAIN_WORDS = (
    (r"a valid int(eger)?( range)?\b", "a whole number"),
    (r"a valid float( range)?\b", "a number"),
    (r"is not in the range x>=(\d[\d.]*)", r"is less than \1"),
    (r"is not in the range (\d[\d.]*)<=x<=(\d[\d.]*)", r"is not from \1 to \2"),
)
"""What typer says of a wrong value, and what users are told."""


@dataclass(frozen=True)
class Ending:
    """How a run ends. exit_code: of the process. code: for scripts, stable. line: for people."""

    exit_code: int
    code: str = ""
    line: str = ""


def explain(error: BaseException) -> Ending:
    """What an ending means; no line where there is nothing to say."""
    if isinstance(error, typer.Exit):
        return Ending(error.exit_code)
    if isinstance(error, OptionError):
        flag = f"--{error.option.replace('_', '-')}"
        return Ending(error.exit_code, error.code, _one_line(f"{flag}: {error.reason}"))
    if isinstance(error, SekvError):
        return Ending(error.exit_code, error.code, _one_line(str(error)))
    if isinstance(error, UsageError):
        return Ending(BAD_USAGE, "usage", _usage_line(error))
    if isinstance(error, KeyboardInterrupt):
        line = "interrupted; run the same command to continue"
        return Ending(INTERRUPTED, "interrupted", line)
    if isinstance(error, BrokenPipeError):
        return Ending(PIPE_CLOSED)
    if isinstance(error, OSError):  # A full disk or a closed door is not our defect.
        where = f"{error.filename}: " if error.filename else ""
        return Ending(BAD_USAGE, "system", _one_line(f"{where}{error.strerror or error}"))
    if _out_of_memory(error):
        line = "out of memory; a smaller --chunk-tokens or --window needs less"
        return Ending(BAD_USAGE, "out_of_memory", line)
    what = _one_line(f"{type(error).__name__}: {error}")
    line = f"defect in sekv: {what} (please report it with the output under SEKV_DEBUG=1)"
    return Ending(DEFECT, "defect", line)


def _out_of_memory(error: BaseException) -> bool:
    """True for Python's own error and for torch's two, which cannot be named without torch."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "DefaultCPUAllocator: can't allocate memory" in str(error)
    )


def _one_line(text: str) -> str:
    """On one line; bytes of a name that are not UTF-8, and codes that a terminal would obey, are
    shown by their numbers."""
    line = " ".join(text.encode("utf-8", "backslashreplace").decode("utf-8").split())
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda code: f"\\x{ord(code[0]):02x}", line)


def _usage_line(error: BaseException) -> str:
    """The wrong option and the command whose help explains it."""
    message = _one_line(getattr(error, "format_message", error.__str__)())
    for theirs, plain in PLAIN_WORDS:
        message = re.sub(theirs, plain, message)
    near = getattr(error, "possibilities", None)
    if near:  # typer's own words: "No such option: --bugdet (Possible options: --budget, --quiet)"
        nearest = get_close_matches(getattr(error, "option_name", ""), near, n=1, cutoff=0)
        message = f"{message.partition(' (')[0]}. Did you mean {nearest[0]}?"
    message = message if message.endswith(("?", ".")) else f"{message}."
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "sekv"
    return f"{message} Try: {command} --help"
