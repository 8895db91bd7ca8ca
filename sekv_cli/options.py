"""Options that several commands share, and what a text must look like before the engine loads.

Not the meaning of an option: the engine decides that. A check here only spares
the user the wait for torch when a glance at the text already shows the mistake,
and asks the engine's own light modules what is a mistake.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from engine.answer import checks
from engine.errors import DocumentError, OptionError, RouterError
from engine.object_storage import Address, address
from engine.store import glance
from engine.types import AUTO, AUTO_SHARE, AUTO_TOKENS, DEVICES, unknown_device
from sekv_cli import completion
from sekv_cli.commands import COMPUTING, RESEARCH


class DType(StrEnum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kMGT]?)B?", re.IGNORECASE)


def size(text: str) -> str:
    """A number of bytes as people write it: "800MB", "2 GB", "5000000"."""
    if not _SIZE.fullmatch(text.strip()):
        raise typer.BadParameter(f"{text!r} is no number of bytes, such as 800MB or 2GB.")
    return text


def bytes_of(text: str) -> int:
    """What `size` has let pass, in bytes."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise OptionError("memory", f"{text!r} is no number of bytes")
    powers = {"": 0, "k": 3, "m": 6, "g": 9, "t": 12}
    return int(float(found[1]) * 10 ** powers[found[2].lower()])


def _device(text: str) -> str:
    if not re.fullmatch(DEVICES, text):
        raise typer.BadParameter(unknown_device(text))
    return text


def budget(text: str) -> str:
    """A budget as the engine takes it: "10%", "4096" or "auto"."""
    return "".join(str(_in_range("budget")(text)).split())


def _in_range(name: str) -> Callable[[Any], Any]:
    """A callback that holds a value to the engine's own bounds of this option."""

    def checked(value: Any) -> Any:
        try:
            checks.check(name, value)
        except OptionError as error:
            raise typer.BadParameter(f"{error.reason}.") from None
        return value

    return checked


def check_folder(folder: Path, option: str, holds: str) -> None:
    """Whether a folder that an option names is there. Raises DocumentError."""
    if not folder.is_dir():
        raise DocumentError(f"there is no folder {folder}; name one of {holds} with {option}")


def check_router(file: Path | None) -> None:
    """Whether a router that is named is there; "none" is the word for none. Raises RouterError."""
    if file is not None and str(file) != "none" and not file.is_file():
        raise RouterError(f"there is no router file {file}; make one with `sekv train`")


def there(store: str) -> Address:
    """The path or URL of a store that is there.

    Raises:
        StoreMissingError, ObjectStorageError: there is none, or none to be had.
    """
    place = address(store)
    glance.check_store(place)
    return place


Store = Annotated[
    str,
    typer.Argument(
        metavar="STORE",
        help="A store made by `sekv ingest`: a folder or an s3://, gs:// or az:// URL.",
        autocompletion=completion.stores,
    ),
]
StoreOrDocument = Annotated[
    str,
    typer.Argument(
        metavar="STORE|DOCUMENT",
        help="A store made by `sekv ingest` (a folder or a URL), or a document that is read as far "
        "as the questions need it.",
        autocompletion=completion.stores,
    ),
]
Whole = Annotated[
    bool | None,
    typer.Option(
        "--whole/--no-whole",
        help="Answer every question as one about the whole document, from its beginnings and "
        "central passages; or none, not even “What is it about?”. [default: by the question's "
        "form]",
        show_default=False,
    ),
]
NoRead = Annotated[
    bool,
    typer.Option(
        "--no-read",
        help="Answer from what is read; read nothing more of a document that is partly read.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of text.")]
Verbose = Annotated[
    bool | None,
    typer.Option(
        "--verbose/--quiet",
        help="Show nothing but results and errors; or every step with its time.",
        show_default=False,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        metavar="DEVICE",
        envvar="SEKV_DEVICE",
        callback=_device,
        help="auto, cpu, cuda or cuda:N.",
        autocompletion=completion.words("auto", "cpu", "cuda"),
        rich_help_panel=COMPUTING,
    ),
]
DTypeOption = Annotated[
    DType,
    typer.Option(
        metavar="DTYPE",
        envvar="SEKV_DTYPE",
        help="Of weights and memory: auto, float32, bfloat16 or float16.",
        rich_help_panel=COMPUTING,
    ),
]
Router = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="A router made by `sekv train`, or none. [default: the store's; for a new "
        "store the model's own, if it has one]",
        show_default=False,
        rich_help_panel=RESEARCH,
    ),
]
Model = Annotated[
    str,
    typer.Option(
        metavar="MODEL",
        help="The store's model, when it lies elsewhere than at ingest: alias, hub id, folder or "
        "GGUF file.",
        show_default=False,
        autocompletion=completion.models,
        rich_help_panel=COMPUTING,
    ),
]
OwnModel = Annotated[
    str,
    typer.Option(
        metavar="ALIAS|ID|FOLDER|FILE.gguf",
        envvar="SEKV_MODEL",
        help="The model: an alias of `sekv models`, a hub id, a folder of transformers or a GGUF "
        "file. [default: smollm2]",
        show_default=False,
        autocompletion=completion.models,
        rich_help_panel=COMPUTING,
    ),
]
Revision = Annotated[
    str,
    typer.Option(
        metavar="REV",
        help="Revision of a hub model.",
        show_default=False,
        rich_help_panel=COMPUTING,
    ),
]
Offline = Annotated[
    bool,
    typer.Option(
        "--offline",
        envvar="SEKV_OFFLINE",
        help="Fetch no model; HF_HUB_OFFLINE=1 says the same.",
        rich_help_panel=COMPUTING,
    ),
]
Budget = Annotated[
    str,
    typer.Option(
        metavar="SHARE|TOKENS|auto",
        envvar="SEKV_BUDGET",
        callback=budget,
        help="How much of the document may be resident at full resolution: 10% or 4096 tokens, "
        "per layer and KV head, summaries counted in; "
        f"{AUTO} is {AUTO_SHARE:.0%}, and {AUTO_TOKENS:,} tokens where that is more.",
    ),
]
Coverage = Annotated[
    float,
    typer.Option(
        metavar="SHARE",
        callback=_in_range("coverage"),
        help="Share of the estimated attention that the zoom must cover; 1 fills the budget.",
        rich_help_panel=RESEARCH,
    ),
]
Widen = Annotated[
    float,
    typer.Option(
        metavar="FACTOR",
        callback=_in_range("widen"),
        help="Repeat a step with up to this many times the budget where its next token is hardly "
        "likelier than another, or its attention was covered less than asked; 1: never.",
        rich_help_panel=RESEARCH,
    ),
]
Full = Annotated[
    bool,
    typer.Option("--full", help="Zoom everything at its stored rank.", rich_help_panel=RESEARCH),
]
MaxNewTokens = Annotated[
    int,
    typer.Option(
        metavar="N", callback=_in_range("max_new_tokens"), help="Longest answer, in tokens."
    ),
]
Temperature = Annotated[
    float,
    typer.Option(
        metavar="T",
        callback=_in_range("temperature"),
        help="0 takes the likeliest token.",
        rich_help_panel=RESEARCH,
    ),
]
TopP = Annotated[
    float,
    typer.Option(
        metavar="P",
        callback=_in_range("top_p"),
        help="Sample from this share of the mass.",
        rich_help_panel=RESEARCH,
    ),
]
NoServer = Annotated[
    bool,
    typer.Option(
        "--no-server",
        help="Load model and store here, even if a server has them.",
        rich_help_panel=COMPUTING,
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        metavar="N",
        callback=_in_range("seed"),
        help="Seed of the sampling.",
        rich_help_panel=RESEARCH,
    ),
]
