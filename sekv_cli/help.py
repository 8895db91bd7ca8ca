"""`sekv help`: what `--help` behind a command shows."""

from __future__ import annotations

from typing import Annotated, Any

import typer


def help_command(
    context: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="COMMAND", help="A command, such as ask or models pull."),
    ] = None,
) -> None:
    """Show the help of a command; without one, what there is.

    \b
    Example:
      sekv help ask
      sekv help models pull
    """
    asked: Any = context.find_root()
    for name in names or []:
        group = asked.command
        if not hasattr(group, "resolve_command"):
            asked.fail(f"{asked.command_path} has no command {name!r}.")
        _, command, _ = group.resolve_command(asked, [name])
        asked = typer.Context(command, info_name=name, parent=asked)
    typer.echo(asked.get_help())
