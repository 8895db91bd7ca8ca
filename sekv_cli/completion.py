"""What a shell offers when TAB is pressed, and `sekv completion`, which teaches the shell to ask.

The shell starts `sekv` with the line so far in its environment (typer's protocol); only names are
looked at, nothing heavy is imported. Where nothing fits, the shell offers files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from sekv_cli.commands import COMPLETION


class Shell(StrEnum):
    bash = "bash"
    zsh = "zsh"
    fish = "fish"


def completion(
    shell: Annotated[Shell, typer.Argument(metavar="SHELL", help="bash, zsh or fish.")],
) -> None:
    """Print a script that completes commands, options, stores and models.

    Load it where your shell starts.

    \b
    Example:
      sekv completion bash >> ~/.bashrc
      sekv completion zsh >> ~/.zshrc
      sekv completion fish > ~/.config/fish/completions/sekv.fish
    """
    from sekv_cli.main import app

    raise typer.Exit(answer(app, f"source_{shell.value}"))


def answer(app: typer.Typer, instruction: str) -> int:
    """Answer a shell: `source_SHELL` prints the script, `complete_SHELL` what fits the line.

    Returns:
        The exit code for the shell.
    """
    from typer import completion as protocol

    os.environ["COLUMNS"] = "1000"  # a description is one line of the protocol, never wrapped
    protocol.completion_init()  # type: ignore[attr-defined]  # typer exports it to nobody
    command: Any = typer.main.get_command(app)
    return protocol.shell_complete(command, {}, "sekv", COMPLETION, instruction)


def stores(incomplete: str) -> list[str]:
    """The stores whose path begins like this, and the folders on the way to others."""
    return sorted(_stores(incomplete))


def models(incomplete: str) -> list[tuple[str, str]]:
    """The aliases that begin like this, each with what it is."""
    from engine.models import aliases

    return [
        (known.alias, f"{known.parameters / 1e6:,.0f}M parameters, {known.licence}")
        for known in aliases.KNOWN
        if known.alias.startswith(incomplete)
    ]


def words(*known: str) -> Callable[[str], list[str]]:
    """A completer of these words."""
    return lambda incomplete: [word for word in known if word.startswith(incomplete)]


def _stores(incomplete: str) -> Iterator[str]:
    from engine.store.manifest import NAME

    before, slash, begun = incomplete.rpartition("/")
    folder = f"{before}{slash}"
    try:
        entries = list(os.scandir(Path(folder or ".").expanduser()))
    except OSError:  # no such folder, or none that may be read
        return
    for entry in entries:
        if entry.name.startswith(begun) and not entry.name.startswith(".") and entry.is_dir():
            is_store = Path(entry.path, NAME).is_file()
            yield f"{folder}{entry.name}{'' if is_store else '/'}"
