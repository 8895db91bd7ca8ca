"""A document that is asked before it has a store: how it is found, and what options it takes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from engine.documents import is_named_as_document
from engine.errors import SekvError, StoreExistsError
from engine.ingest.sources import default_target
from engine.object_storage import Address
from engine.store import glance
from engine.types import AskOptions, IngestOptions
from sekv_cli import settings
from sekv_cli.asker import Unread, asked
from sekv_cli.commands import SHARED

PART = "A document that has no store yet"
"""The part of a command's help for these options."""

Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="STORE",
        help="Where its store is made. [default: its name.sekv, in this folder]",
        show_default=False,
        rich_help_panel=PART,
    ),
]
Pages = Annotated[
    str,
    typer.Option(
        metavar="1-20,ii,#4",
        help="Only these pages of a PDF, as sekv ingest has them.",
        show_default=False,
        rich_help_panel=PART,
    ),
]
Window = Annotated[
    int | None,
    typer.Option(
        min=0,
        metavar="N",
        help="Document tokens per context. [default: the longest the model reads well]",
        show_default=False,
        rich_help_panel=PART,
    ),
]
ChunkTokens = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Tokens per prefill step. [default: 1024]",
        show_default=False,
        rich_help_panel=PART,
    ),
]
Method = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="How the memory is compressed. [default: sekv]",
        show_default=False,
        rich_help_panel=PART,
    ),
]


def find(
    named: str, output: Path | None, how: Mapping[str, Any]
) -> tuple[Address, Path | None, dict[str, Any]]:
    """What a command is to ask, from the name of a store or of a document.

    Args:
        output: where the store of a document shall be.
        how: options for reading by their names; None and "" where they are not given.
    Returns:
        the store, the document that it is to be made of where it is not there yet, and the
        options that are given.
    Raises:
        SekvError: there is neither, the store is another document's or was read in another way,
            or these options are given of a store that is named itself.
    """
    given = {name: value for name, value in how.items() if value not in (None, "")}
    if not _is_document(named):
        place = asked(named)
        if output is not None:
            raise SekvError(f"{named} is a store; -o is for a document that has none")
        if given:
            raise _refused(named, next(iter(given)))
        return place, None, {}
    store, document = output or default_target([named]), Path(named)
    if not glance.is_store(store):
        if os.path.lexists(store):
            raise StoreExistsError(
                f"{store} is there and no store: name another with -o for the store of {named}"
            )
        return store, document, given
    from engine.ingest.asked import check_read_as, check_store_of

    check_store_of(document, store)
    if "chunk_tokens" in given:
        raise _refused(store, "chunk_tokens")
    check_read_as(document, store, **given)
    return store, None, {}


def to_read(document: Path | None, chosen: AskOptions, given: Mapping[str, Any]) -> Unread | None:
    """How a document that has no store yet is to be read; None where there is none.

    Args:
        document, given: as `find` returns them.  chosen: how questions are answered.
    """
    if document is None:
        return None
    reading = IngestOptions(
        model=own_model(chosen.model),
        device=chosen.device,
        dtype=chosen.dtype,
        router=chosen.router,
        offline=chosen.offline,
    )
    return Unread(document, replace(reading, **given))


def own_model(model: str) -> str:
    """The model to read a document with, by which `ingest` would read it.

    The option --model of `ask` is no default for documents: of a store it says where the store's
    own model lies now.
    """
    return model or os.environ.get(SHARED["model"]) or str(settings.load().get("model", ""))


def _is_document(named: str) -> bool:
    """Whether a file is there that is named as a document; its reader says what is wrong in it."""
    try:
        return is_named_as_document(named) and Path(named).is_file()
    except (OSError, ValueError):  # too long for a name, or with a NUL
        return False


def _refused(store: object, option: str) -> SekvError:
    flag = f"--{option.replace('_', '-')}"
    return SekvError(f"{store} is read already, whole or in part; {flag} cannot change how")
