"""`sekv text`: the text of a store's source, to the character."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from engine.errors import DocumentError
from sekv_cli import names, options

if TYPE_CHECKING:
    from engine.store.pages import StoredPage


def text(
    store: options.Store,
    pages: Annotated[
        str,
        typer.Option(
            metavar="3-5,ii,#4",
            help="Only these pages, as citations name them; #4 is a sheet of a PDF.",
            show_default=False,
        ),
    ] = "",
    source: Annotated[
        str,
        typer.Option(
            metavar="N|NAME",
            help="Which source, by its number or its file's name, where a store has several.",
            show_default=False,
        ),
    ] = "",
    marks: Annotated[
        bool,
        typer.Option("--marks", help="A line before each page: its name and its characters."),
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Write the text that was read from a source, exactly.

    The characters that `start` and `end` of a citation count are those of this
    text. Into a pipe or a file it is UTF-8 without anything added; on a terminal,
    control characters are shown and not obeyed.

    \b
    Example:
      sekv text book.sekv > book.txt
      sekv text book.sekv --pages 3-5 --marks
      sekv text two.sekv --source second.pdf --json
    """
    place = options.there(store)

    from engine.store import pages as stored
    from engine.store.reader import Store
    from sekv_cli import format

    with Store.open(place) as opened:
        sources = opened.manifest.sources
        if not source and len(sources) > 1:
            raise DocumentError(
                f"{store} has {len(sources)} sources, each with a text of its own; "
                "name one with --source, by its number or its file's name"
            )
        index = stored.find_source(sources, source) if source else 0
        if not opened.has_text(index):
            raise DocumentError(f"{store} keeps no text of {sources[index].path}; ingest it again")
        whole = opened.text(index)
    entry = sources[index]
    chosen = stored.select(entry, pages) if pages else stored.pages(entry)
    if as_json:
        format.emit_json(
            {
                "source": entry.path,
                "chars": len(whole),
                "pages": [
                    {
                        "page": page.label,
                        "sheet": str(page.sheet or ""),
                        "printed": page.printed,
                        "start": page.start,
                        "end": page.end,
                        "text": whole[page.start : page.end],
                    }
                    for page in chosen
                ],
            }
        )
    else:
        _write(whole, chosen, marks=marks)


def _write(whole: str, chosen: Sequence[StoredPage], *, marks: bool) -> None:
    from sekv_cli.format import clean

    parts = []
    for page in chosen:
        if marks:
            called = names.page(page.label, str(page.sheet or ""), page.printed)
            name = f"{called}, " if called else ""
            parts.append(f"=== {name}characters {page.start}:{page.end} ===\n")
        parts.append(whole[page.start : page.end])
        if marks and not parts[-1].endswith("\n"):
            parts.append("\n")
    said = "".join(parts)
    if sys.stdout.isatty():
        typer.echo(clean(said))
    else:
        sys.stdout.buffer.write(said.encode("utf-8"))
        sys.stdout.buffer.flush()
