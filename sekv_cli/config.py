"""`sekv config`: show and change the settings file."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from engine.errors import SettingsError
from sekv_cli import options, settings
from sekv_cli.commands import SHARED, Command, Group

app = typer.Typer(cls=Group, rich_markup_mode=None, add_completion=False)

Key = Annotated[
    str,
    typer.Argument(
        metavar="KEY", help=f"{', '.join(SHARED)}, or COMMAND.OPTION such as ask.max-new-tokens."
    ),
]


@app.callback(invoke_without_command=True)
def config(context: typer.Context, as_json: options.Json = False) -> None:
    """Show the settings file, which gives options defaults of your own.

    An option on the command line wins, then a variable such as SEKV_MODEL, then
    the file, then what the help says. A key without a dot holds for every command
    that has the option; COMMAND.OPTION for one.

    \b
    Example:
      sekv config
      sekv config set model Qwen/Qwen3-4B
      sekv config set ask.max-new-tokens 64
      sekv config get model
      sekv config unset model
      sekv config path
    """
    if context.invoked_subcommand is not None:
        return
    from sekv_cli import format

    found = dict(settings.flat(settings.load()))
    if as_json:
        format.emit_json({"path": str(settings.path()), "settings": found})
        return
    for key, value in found.items():
        typer.echo(format.clean(f"{key} = {_shown(value)}"))
    typer.echo(f"{'settings' if found else 'no settings yet'} in {settings.path()}", err=True)


@app.command("get", cls=Command)
def get(key: Key) -> None:
    """Print the value of a setting.

    \b
    Example:
      sekv config get model
    """
    found = dict(settings.flat(settings.load()))
    if key not in found:
        raise SettingsError(f"{key} is not set; sekv config shows what is")
    typer.echo(_shown(found[key]))


@app.command("set", cls=Command)
def set_(
    context: typer.Context,
    key: Key,
    value: Annotated[
        str, typer.Argument(metavar="VALUE", help="As behind the option; flags: true.")
    ],
) -> None:
    """Set a value; the option that it is for checks it first.

    \b
    Example:
      sekv config set model Qwen/Qwen3-4B
      sekv config set offline true
      sekv config set serve.port 9000
    """
    root: Any = context.find_root().command
    file = settings.set_value(root, key, value)
    typer.echo(f"{key} is set in {file}", err=True)


@app.command("unset", cls=Command)
def unset(context: typer.Context, key: Key) -> None:
    """Remove a setting.

    \b
    Example:
      sekv config unset model
    """
    root: Any = context.find_root().command
    file = settings.unset(root, key)
    typer.echo(f"{key} is gone from {file}", err=True)


@app.command("path", cls=Command)
def path() -> None:
    """Print where the settings file is, or would be.

    \b
    Example:
      sekv config path
    """
    typer.echo(settings.path())


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
