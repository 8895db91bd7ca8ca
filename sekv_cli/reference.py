"""docs/cli.md, written from the commands themselves: `python -m sekv_cli.reference > docs/cli.md`.

A test compares the two, so the page cannot say what the program does not.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import typer

from engine.errors import SekvError
from sekv_cli.commands import (
    ENVIRONMENT,
    Group,
    argument_text,
    meaning,
    option_text,
    usage_pieces,
)
from sekv_cli.main import app

PREFACE = """\
# The command line

Written from the commands' own help by `make docs`; edit the commands, not this page.

Results go to stdout; progress, notes and errors go to stderr. With `--json` a command prints
exactly one JSON object on one line (`ask`: one per question); [schemas](schemas) has a JSON Schema
of each, and later versions may add keys. An error is one line; with `--json` it is
`{"error": {"code", "message"}}` on stderr, and these codes stay when words change:

CODES

| exit code | meaning |
|---:|---|
| 0 | done |
| 1 | a check failed (`verify`, `models check`, `bench --assert`), or one document of many |
| 2 | bad input or usage |
| 70 | a defect of sekv; `SEKV_DEBUG=1` shows where |
| 130 | interrupted; the same command continues |
| 141 | whoever read the output stopped reading |

ENVIRONMENT
"""


def reference() -> str:
    """The whole page."""
    preface = PREFACE.replace("CODES\n", "\n".join(_codes()) + "\n")
    preface = preface.replace("ENVIRONMENT\n", "\n".join(_environment()) + "\n")
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


def _environment() -> Iterator[str]:
    """The variables that are looked at."""
    yield "| environment | meaning |"
    yield "|---|---|"
    for name, what in ENVIRONMENT:
        yield f"| `{name}` | {_cell(what)} |"


def _kinds(of: type[SekvError]) -> Iterator[type[SekvError]]:
    """The kinds of error that there are of one, those of the engine's own list."""
    for kind in of.__subclasses__():
        if kind.__module__ == SekvError.__module__:
            yield kind
            yield from _kinds(kind)


def _group(group: Any, path: str) -> Iterator[str]:
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        if isinstance(command, Group):
            yield from _command(command, f"{path} {name}")
            yield from _group(command, f"{path} {name}")
        else:
            yield from _command(command, f"{path} {name}")


def _command(command: Any, path: str) -> Iterator[str]:
    text, _, example = inspect.cleandoc(command.help).partition("\b\n")
    yield f"## {path}\n"
    yield f"`{' '.join([path, *usage_pieces(command)])}`\n"
    yield f"{text.strip()}\n"
    if example:
        shown = inspect.cleandoc(example.partition("\n")[2])
        yield f"```console\n{shown}\n```\n"
    for title, rows in _parameters(command).items():
        yield f"| {title} | meaning | default |"
        yield "|---|---|---|"
        yield from rows
        yield ""


def _parameters(command: Any) -> dict[str, list[str]]:
    """The rows of the tables of arguments and options, by the part of the help they stand in."""
    parts: dict[str, list[str]] = {}
    for parameter in command.params:
        if getattr(parameter, "hidden", False):
            continue
        text, default = meaning(parameter)
        if parameter.param_type_name == "argument":
            title, name = "argument or option", argument_text(parameter)
        else:
            title = (parameter.rich_help_panel or "argument or option").lower()
            name = option_text(parameter)
        default = "required" if parameter.required else default
        parts.setdefault(title, []).append(
            f"| `{_cell(name)}` | {_cell(text)} | {_cell(default)} |"
        )
    return parts


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


if __name__ == "__main__":
    print(reference(), end="")
