"""The table of commands, the classes that show their help, and how a name finds its command.

A command's file is imported when the command is called: `sekv --help` and a mistyped name cost
what typer costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from sekv_cli.endings import UsageError

READ, KEEP, MEASURE = "Read and ask", "Keep", "Measure and train"

COMPUTING = "Model and device"
"""The part of a command's help for options that say what computes, and where."""

RESEARCH = "For experiments"
"""The part of a command's help for options that nobody needs to read a book."""


@dataclass(frozen=True)
class Listed:
    """A command in the table.

    group: of `sekv --help`. summary: its line there, short enough for 80 columns. place: the file
    in sekv_cli, and the function or typer.Typer in it.
    """

    name: str
    group: str
    summary: str
    place: str


ENTRIES = (
    Listed("ingest", READ, "Read documents once and keep the memory as a store.", "ingest.ingest"),
    Listed("ask", READ, "Answer questions from a store or document, citing pages.", "ask.ask"),
    Listed("chat", READ, "Talk with a store or document, question after question.", "chat.chat"),
    Listed("serve", READ, "Answer over HTTP, as OpenAI's API does.", "serve.serve"),
    Listed("list", KEEP, "List the stores of a folder.", "list.list_stores"),
    Listed("rm", KEEP, "Remove stores, or one source of a store.", "upkeep.remove"),
    Listed("mv", KEEP, "Move a store; its sources are still found.", "upkeep.move"),
    Listed("gc", KEEP, "Remove what dead runs left.", "upkeep.collect"),
    Listed(
        "inspect", KEEP, "Show what a store holds and what a question reads.", "inspect.inspect"
    ),
    Listed("text", KEEP, "Write the text that was read from a source.", "text.text"),
    Listed("verify", KEEP, "Check every byte of a store against its checksums.", "verify.verify"),
    Listed("models", KEEP, "List, fetch and remove models.", "models.app"),
    Listed("config", KEEP, "Show and change defaults of your own.", "config.app"),
    Listed("completion", KEEP, "Teach your shell what TAB offers.", "completion.completion"),
    Listed("help", KEEP, "Show the help of a command.", "help.help_command"),
    Listed("bench", MEASURE, "Measure answers, memory and speed.", "bench.bench"),
    Listed("train", MEASURE, "Train a router for a model.", "train.app"),
)

COMPLETION = "_SEKV_COMPLETE"
"""The environment variable by which a shell asks for completions."""

ALL_STATS = "--stats-full"
"""What `--stats=full` is to the parser, which knows no flag that may have a value."""

SHARED = {
    "model": "SEKV_MODEL",
    "device": "SEKV_DEVICE",
    "dtype": "SEKV_DTYPE",
    "budget": "SEKV_BUDGET",
    "offline": "SEKV_OFFLINE",
}
"""Settings for all commands that have such an option, each with its variable."""

ENVIRONMENT = (
    ("SEKV_MODEL", "the model that reads documents, where none is named"),
    ("SEKV_DEVICE, SEKV_DTYPE", "as --device and --dtype, where these are not given"),
    ("SEKV_BUDGET", "as --budget, where it is not given"),
    ("SEKV_OFFLINE=1", "as --offline; so does HF_HUB_OFFLINE=1"),
    ("SEKV_CACHE", "the folder for models, in place of the user's cache folder"),
    ("SEKV_CONFIG", "the settings file, in place of the user's own (sekv config)"),
    ("SEKV_TOKEN", "the token that clients of `sekv serve` must send"),
    ("SEKV_OBJECT_CACHE", "gigabytes kept here of stores in object storage, 4 where not named"),
    ("SEKV_STORES", "folders whose stores are models of the command llm, separated as PATH is"),
    ("SEKV_DEBUG=1", "tracebacks and the remarks of libraries"),
    ("NO_COLOR", "no colour"),
)
"""Variables that sekv looks at, each with what it does."""


class Command(TyperCommand):
    """A command whose help shows what repeats, and options in parts."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return usage_pieces(self)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        _write_parameters(self, ctx, formatter)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """What is wrong is told with its command, a value with its option, and where it came from
        if it was not typed."""
        options = args[: args.index("--")] if "--" in args else args
        if "--stats=full" in options:
            args = [ALL_STATS if arg == "--stats=full" else arg for arg in args]
        try:
            return super().parse_args(ctx, args)
        except UsageError as raised:
            error: Any = raised
            error.ctx = error.ctx or ctx
            param = getattr(error, "param", None)
            source = ctx.get_parameter_source(param.name) if param is not None else None
            if param is not None and source is not None and param.param_type_name == "option":
                known = {
                    "DEFAULT_MAP": "the settings, see sekv config",
                    "ENVIRONMENT": param.envvar,
                }
                origin = known.get(source.name)
                error.param_hint = f"'{param.opts[0]}'" + (f" (from {origin})" if origin else "")
            raise


class Group(TyperGroup):
    """A command with commands below it, such as `sekv models`."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return usage_pieces(self)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        _write_parameters(self, ctx, formatter)
        self.format_commands(ctx, formatter)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            near = get_close_matches(name, self.list_commands(ctx), n=1, cutoff=0.65)
            hint = f" Did you mean {near[0]}?" if near else _for_a_file(name)
            ctx.fail(f"There is no command {name!r}.{hint}")
        return super().resolve_command(ctx, args)


class Commands(Group):
    """`sekv` itself: the commands of the table in their groups, imported when they are needed."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [entry.name for entry in ENTRIES]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        entry = next((entry for entry in ENTRIES if entry.name == cmd_name), None)
        return None if entry is None else _load(entry)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        for group in (READ, KEEP, MEASURE):
            with formatter.section(group):
                formatter.write_dl([(e.name, e.summary) for e in ENTRIES if e.group == group])
        with formatter.section("Environment"):
            formatter.write_dl(ENVIRONMENT)


def _load(entry: Listed) -> Any:
    """The command of an entry, from its file."""
    file, _, name = entry.place.partition(".")
    found = getattr(import_module(f"sekv_cli.{file}"), name)
    if not isinstance(found, typer.Typer):
        alone = typer.Typer(rich_markup_mode=None, add_completion=False)
        alone.command(entry.name, cls=Command, short_help=entry.summary)(found)
        found = alone
    command: Any = typer.main.get_command(found)
    command.name, command.short_help = entry.name, entry.summary
    return command


def usage_pieces(command: Any) -> list[str]:
    """The arguments as they are typed, with what repeats and what may be left out; then options."""
    if isinstance(command, Commands):
        return ["COMMAND ..."]
    pieces = [argument_text(p) for p in command.params if p.param_type_name == "argument"]
    if any(p.param_type_name == "option" for p in command.params):
        pieces.append("[OPTIONS]")
    return [*pieces, "[COMMAND ...]"] if isinstance(command, Group) else pieces


def argument_text(argument: Any) -> str:
    """STORE, SOURCE..., [DIR] or [QUESTION...]."""
    name = f"{argument.metavar}{'...' * (argument.nargs == -1)}"
    return name if argument.required else f"[{name}]"


def option_text(option: Any) -> str:
    """The names of an option, short ones first, and what comes behind them."""
    names = ", ".join(sorted([*option.opts, *option.secondary_opts], key=len))
    return names if option.is_flag or option.count else f"{names} {option.metavar}"


def meaning(parameter: Any) -> tuple[str, str]:
    """What a parameter's help says, and its default; "" where it has none that is worth a word.

    A help text may state the default itself, as "[default: ...]" at its end.
    """
    text, _, stated = (parameter.help or "").partition(" [default: ")
    if stated:
        return text, stated.removesuffix("]")
    value = getattr(parameter.default, "value", parameter.default)
    shown = parameter.show_default and not parameter.required and not callable(value)
    return text, "" if not shown or value is None or value is False or value == "" else str(value)


def _write_parameters(command: Any, ctx: Any, formatter: Any) -> None:
    """Arguments, then options in the parts that their definitions name."""
    parts: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
    for param in command.get_params(ctx):
        text, default = meaning(param)
        if param.param_type_name == "argument":
            parts["Arguments"].append((argument_text(param), text))
        elif not param.hidden:
            notes = [param.envvar] if param.envvar else []
            notes += [f"default: {default}"] if default else []
            text += f" [{'; '.join(notes)}]" if notes else ""
            part = getattr(param, "rich_help_panel", None) or "Options"
            parts.setdefault(part, []).append((option_text(param), text))
    for name, records in parts.items():
        if records:
            with formatter.section(name):
                formatter.write_dl(records, col_max=min(30, formatter.width // 3))


def _for_a_file(name: str) -> str:
    """What to type for whoever names a document or a store and no command."""
    try:
        there = Path(name).exists()
    except (OSError, ValueError):  # too long for a name, or with a NUL
        there = False
    return f" To ask it: sekv ask {name} 'Who ...?'" if there else ""
