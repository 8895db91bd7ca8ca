"""Options that several commands share, and what a text must look like before the engine loads.

Not the meaning of an option: the engine decides that. A check here only spares
the user the wait for torch when a glance at the text already shows the mistake.
"""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from engine.errors import SekvError


class DType(StrEnum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def _device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        raise typer.BadParameter(f"{text!r} is not auto, cpu, cuda or cuda:N.")
    return text


def budget(text: str) -> str:
    """Accept "10%" or "4096": a share of the document's tokens, or a number of them."""
    number = text.removesuffix("%").strip()
    share = text.endswith("%")
    well_formed = re.fullmatch(r"\d+(\.\d+)?" if share else r"\d+", number)
    if not well_formed or float(number) == 0 or (share and float(number) > 100):
        raise typer.BadParameter(
            f"{text!r} is neither a share of the document such as 10% nor a number of tokens "
            "such as 4096."
        )
    return number + "%" * share


def _share(value: float) -> float:
    """A number in (0, 1]: nothing cannot be covered, and no more than all can."""
    if not 0.0 < value <= 1.0:
        raise typer.BadParameter(f"{value:g} is not above 0 and at most 1.")
    return value


def _factor(value: float) -> float:
    """A number of times that is no less than once."""
    if not 1.0 <= value < float("inf"):
        raise typer.BadParameter(f"{value:g} is not 1 or more.")
    return value


def _temperature(value: float) -> float:
    if not 0.0 <= value < float("inf"):
        raise typer.BadParameter(f"{value:g} is not a number from 0 up.")
    return value


def check_writable(file: Path | None) -> None:
    """Raises SekvError when there can be no such file."""
    if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
        raise SekvError(f"{file} cannot be written; name a file in an existing folder")


Store = Annotated[Path, typer.Argument(metavar="STORE", help="A store made by `sekv ingest`.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of text.")]
Device = Annotated[
    str, typer.Option(metavar="DEVICE", callback=_device, help="auto, cpu, cuda or cuda:N.")
]
DTypeOption = Annotated[
    DType,
    typer.Option(
        metavar="DTYPE", help="Of weights and memory: auto, float32, bfloat16 or float16."
    ),
]
Router = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="A router made by `sekv train`, or none. [default: the store's; for a new "
        "store the model's own, if it has one]",
        show_default=False,
    ),
]
Model = Annotated[
    str,
    typer.Option(
        metavar="MODEL",
        help="The store's model, when it lies elsewhere than at ingest: alias, hub id, folder or "
        "GGUF file.",
        show_default=False,
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
    ),
]
Revision = Annotated[
    str, typer.Option(metavar="REV", help="Revision of a hub model.", show_default=False)
]
Offline = Annotated[
    bool, typer.Option("--offline", help="Fetch no model; HF_HUB_OFFLINE=1 says the same.")
]
Budget = Annotated[
    str,
    typer.Option(
        metavar="SHARE|TOKENS",
        callback=budget,
        help="How much of the document may be resident at full resolution: 10% or 4096 tokens, "
        "per layer and KV head, summaries counted in.",
    ),
]
Coverage = Annotated[
    float,
    typer.Option(
        metavar="SHARE",
        callback=_share,
        help="Share of the estimated attention that the zoom must cover; 1 fills the budget.",
    ),
]
Widen = Annotated[
    float,
    typer.Option(
        metavar="FACTOR",
        callback=_factor,
        help="How many times the budget a step may take that is done again because its next token "
        "is nearly as likely as another, or its attention was covered less than asked; 1: never.",
    ),
]
Full = Annotated[bool, typer.Option("--full", help="Zoom everything at its stored rank.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, metavar="N", help="Longest answer, in tokens.")]
Temperature = Annotated[
    float, typer.Option(metavar="T", callback=_temperature, help="0 takes the likeliest token.")
]
TopP = Annotated[
    float, typer.Option(metavar="P", callback=_share, help="Sample from this share of the mass.")
]
NoServer = Annotated[
    bool,
    typer.Option("--no-server", help="Load model and store here, even if a server has them."),
]
Seed = Annotated[int, typer.Option(min=0, metavar="N", help="Seed of the sampling.")]
