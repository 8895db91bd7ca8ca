"""docs/cli.md, written from the commands themselves: `python -m sekv_cli.reference > docs/cli.md`.

A test compares the two, so the page cannot say what the program does not.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import typer

from engine.errors import SekvError
from sekv_cli.main import app

PREFACE = """\
# The command line

Written from the commands' own help by `make docs`; edit the commands, not this page.

Results go to stdout; progress, notes and errors go to stderr. With `--json` a command prints
exactly one JSON object on one line (`ask`: one per question). An error is one line; with `--json`
it is `{"error": {"code", "message"}}` on stderr, and these codes stay when words change:

CODES

| exit code | meaning |
|---:|---|
| 0 | done |
| 1 | a check failed (`verify`, `bench --assert`) |
| 2 | bad input or usage |
| 70 | a defect of sekv; `SEKV_DEBUG=1` shows where |
| 130 | interrupted; the same command continues |
| 141 | whoever read the output stopped reading |

| environment | meaning |
|---|---|
| `SEKV_MODEL` | the model to use where a command names none |
| `SEKV_CACHE` | the folder for models, in place of the user's cache folder |
| `HF_HUB_OFFLINE=1` | as `--offline`, for every command |
| `SEKV_DEBUG=1` | tracebacks and the remarks of libraries |
| `NO_COLOR` | no colour |
"""


def reference() -> str:
    """The whole page."""
    preface = PREFACE.replace("CODES\n", "\n".join(_codes()) + "\n")
    return "\n".join([preface, *_group(typer.main.get_command(app), "sekv")]).rstrip() + "\n"


def _codes() -> Iterator[str]:
    """The codes of errors, each with what its class says of it."""
    yield "| code | meaning |"
    yield "|---|---|"
    for kind in _kinds(SekvError):
        yield f"| `{kind.code}` | {_cell((kind.__doc__ or '').partition('.')[0])} |"
    yield "| `usage` | A command line that cannot be understood |"
    yield "| `system` | The operating system refuses: a full disk, a closed door |"
    yield "| `out_of_memory`, `interrupted`, `defect` | As they say |"


def _kinds(of: type[SekvError]) -> Iterator[type[SekvError]]:
    """The kinds of error that there are of one, those of the engine's own list."""
    for kind in of.__subclasses__():
        if kind.__module__ == SekvError.__module__:
            yield kind
            yield from _kinds(kind)


def _group(group: Any, path: str) -> Iterator[str]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            if command.invoke_without_command:  # it does something by itself
                yield from _command(command, f"{path} {name}")
            yield from _group(command, f"{path} {name}")
        else:
            yield from _command(command, f"{path} {name}")


def _command(command: Any, path: str) -> Iterator[str]:
    text, _, example = inspect.cleandoc(command.help).partition("\b\n")
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option"]
    usage = [path, *(_argument(argument) for argument in arguments), "[OPTIONS]" * bool(options)]
    yield f"## {path}\n"
    yield f"`{' '.join(usage)}`\n"
    yield f"{text.strip()}\n"
    if example:
        shown = inspect.cleandoc(example.partition("\n")[2])
        yield f"```console\n{shown}\n```\n"
    yield "| argument or option | meaning | default |"
    yield "|---|---|---|"
    for argument in arguments:
        yield f"| `{_argument(argument)}` | {_cell(argument.help)} | {_default(argument)} |"
    for option in options:
        meaning = _cell(_without_default(option.help))
        yield f"| `{_cell(_names(option))}` | {meaning} | {_default(option)} |"
    yield ""


def _argument(argument: Any) -> str:
    name = f"{argument.metavar}{'...' * (argument.nargs == -1)}"
    return name if argument.required else f"[{name}]"


def _names(option: Any) -> str:
    names = ", ".join(sorted(option.opts, key=len))
    if option.is_flag:
        return names
    return f"{names} {option.metavar}"


def _default(parameter: Any) -> str:
    stated = _stated_default(parameter.help or "")
    if stated:
        return stated
    if parameter.required:
        return "required"
    value = getattr(parameter.default, "value", parameter.default)
    if value is None or value is False or value == "":
        return ""
    return f"`{value}`"


def _stated_default(text: str) -> str:
    _, _, rest = text.partition("[default: ")
    return rest.removesuffix("]")


def _without_default(text: str) -> str:
    return text.partition(" [default: ")[0]


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


if __name__ == "__main__":
    print(reference(), end="")
