"""`sekv list`: the stores of a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from engine.errors import StoreMissingError
from engine.object_storage import address
from sekv_cli import options


def list_stores(
    folder: Annotated[
        str,
        typer.Argument(metavar="DIR", help="Where to look: a folder or a URL.", show_default=False),
    ] = ".",
    tree: Annotated[
        bool, typer.Option("--tree", help="Show the folders that stores lie in, with their sizes.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """List stores with their model, tokens, bytes, last change and sources.

    Looks in the current folder unless another is given.

    \b
    Example:
      sekv list
      sekv list ~/library --tree
      sekv list ~/library --json
    """
    place = address(folder)
    if isinstance(place, Path) and not place.is_dir():
        raise StoreMissingError(f"there is no folder {folder}; name one that holds stores")

    from engine.store import library
    from sekv_cli import format, reports

    found = library.list_stores(place)
    if as_json:
        format.emit_json({"stores": [summary.to_json() for summary in found]})
    elif tree:
        reports.print_tree(format.console(), folder, found)
    else:
        reports.print_stores(format.console(), folder, found)
