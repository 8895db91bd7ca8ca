"""The settings file: defaults of one's own for the options of commands, in TOML.

    model = "smollm2"           # for every command that SEKV_MODEL concerns
    budget = "20%"

    [ask]                       # for `sekv ask` alone: any of its options
    max-new-tokens = 64

An option on the command line wins, then a variable of the environment, then this file. A key at the
top is the name of a variable without SEKV_; a key in a table is the name of an option without --.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from engine.errors import SettingsError
from sekv_cli.commands import ENTRIES, SHARED, Commands

VARIABLE = "SEKV_CONFIG"


def path() -> Path:
    """Where the file is, or would be."""
    named = os.environ.get(VARIABLE, "")
    if named:
        return Path(named).expanduser()
    import platformdirs

    return platformdirs.user_config_path("sekv") / "config.toml"


def load() -> dict[str, Any]:
    """What the file says; {} where there is none.

    Raises:
        SettingsError: it cannot be read, is no TOML, or has a key that nobody knows.
    """
    file = path()
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise SettingsError(f"the settings {file} cannot be read: {reason}") from None
    found = _parsed(text, file)
    tables = [listed.name for listed in ENTRIES]
    for key, value in found.items():
        if key not in SHARED and not (key in tables and isinstance(value, dict)):
            raise SettingsError(
                f"{file}: there is no setting {key!r}; known: {', '.join(SHARED)}, and tables for "
                "commands, such as [ask]"
            )
    return found


def defaults(name: str, command: Any) -> dict[str, Any]:
    """The defaults of one command by the names of its parameters, as the file has them.

    Raises:
        SettingsError: as `load`, or the command's table has a key that is none of its options.
    """
    found = load()
    shared = {
        param.name: found[key]
        for key, variable in SHARED.items()
        for param in command.params
        if key in found and param.envvar == variable
    }
    own = found.get(name, {})
    options = by_key(command)
    for key in own:
        if key not in options:
            raise SettingsError(f"{path()}: sekv {name} has no option {key!r} to be set")
    return {**shared, **{options[key].name: value for key, value in own.items()}}


def by_key(command: Any) -> dict[str, Any]:
    """The options of a command that a table may set, by their long names without --."""
    return {
        max(param.opts, key=len).lstrip("-"): param
        for param in command.params
        if param.param_type_name == "option"
    }


def set_value(root: Commands, key: str, text: str) -> Path:
    """Set one key ("budget", "ask.budget"); the rest of the file stays as it is.

    Returns:
        The file that was written.
    Raises:
        SettingsError: there is no such key, or the option takes no such value.
    """
    table, name, param = _place(root, key)
    value = _value(key, param, text)
    lines = _lines()
    made = (table, f"{name} = {_toml(value)}")
    there = [index for index, line in enumerate(lines) if _sets(line, table, name)]
    if there:
        lines[there[0]] = made
    else:
        own = [index for index, line in enumerate(lines) if line[0] == table and line[1].strip()]
        if table and not own:
            lines.append((table, f"[{table}]"))
            own = [len(lines) - 1]
        lines.insert(own[-1] + 1 if own else 0, made)
    return _write(lines, {key: value})


def unset(root: Commands, key: str) -> Path:
    """Remove one key, which then has its default again. Raises SettingsError."""
    table, name, _ = _place(root, key)
    lines = _lines()
    kept = [line for line in lines if not _sets(line, table, name)]
    if len(kept) == len(lines):
        raise SettingsError(f"{key} is not set in {path()}")
    return _write(kept, {})


def flat(found: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Keys with their tables, "ask.budget", and their values."""
    for key, value in found.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{name}", inner) for name, inner in value.items())
        else:
            yield key, value


def _place(root: Commands, key: str) -> tuple[str, str, Any]:
    """The table, the name in it, and the option that a key means."""
    table, _, name = key.rpartition(".")
    if not table:
        for listed in ENTRIES:
            for param in root.get_command(None, listed.name).params:
                if key in SHARED and param.envvar == SHARED[key]:
                    return "", key, param
        raise SettingsError(
            f"there is no setting {key!r}; known: {', '.join(SHARED)}, and options of one command, "
            "such as ask.max-new-tokens"
        )
    command = root.get_command(None, table)
    options = by_key(command) if command is not None else {}
    if name not in options:
        raise SettingsError(f"there is no setting {key!r}; sekv help {table} lists its options")
    return table, name, options[name]


def _value(key: str, param: Any, text: str) -> Any:
    """The text as the option takes it, checked by the option itself. Raises SettingsError."""
    value: Any = text
    if param.is_flag:
        if text not in ("true", "false"):
            raise SettingsError(f"{key}: {text!r} is neither true nor false")
        value = text == "true"
    elif re.fullmatch(r"-?\d+(\.\d+)?", text) and param.type.name != "text":
        value = float(text) if "." in text else int(text)
    context = typer.Context(typer.core.TyperCommand("sekv"))
    try:
        param.process_value(context, value)
    except typer.BadParameter as error:
        raise SettingsError(f"{key}: {error.message}") from None
    return value


def _toml(value: Any) -> str:
    """One value as TOML writes it. JSON's strings are TOML's, but for the character DEL."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _lines() -> list[tuple[str, str]]:
    """The lines of the file, each with the table that it stands in."""
    load()
    file, table, lines = path(), "", []
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    for line in text.splitlines():
        head = re.fullmatch(r"\s*\[\s*([\w-]+)\s*\]\s*(#.*)?", line)
        table = head[1] if head else table
        lines.append((table, line))
    return lines


def _sets(line: tuple[str, str], table: str, name: str) -> bool:
    key = rf"\s*[\"']?{re.escape(name)}[\"']?\s*="
    return line[0] == table and re.match(key, line[1]) is not None


def _write(lines: list[tuple[str, str]], wanted: dict[str, Any]) -> Path:
    """Write the file as a whole, if it then says what is wanted.

    Raises:
        SettingsError: it would not: it says it in a form that is not edited here.
    """
    file = path()
    text = "".join(f"{line}\n" for _, line in lines)
    found = dict(flat(_parsed(text, file)))
    if any(found.get(key) != value for key, value in wanted.items()):
        raise SettingsError(
            f"{file} is written in a form that sekv does not edit; edit it yourself"
        )
    from sekv_cli import outputs

    file.parent.mkdir(parents=True, exist_ok=True)
    outputs.write(file, text)
    return file


def _parsed(text: str, file: Path) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"the settings {file} are no TOML: {error}") from None
