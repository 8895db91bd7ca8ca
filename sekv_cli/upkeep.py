"""`sekv rm`, `sekv mv` and `sekv gc`: stores go, move, and what dead runs left is removed."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from engine.errors import LibraryError, OptionError
from engine.object_storage import Address, ObjectUrl, address
from engine.store import glance
from engine.store.folders import is_library
from sekv_cli import completion, options

Stores = Annotated[
    list[str],
    typer.Argument(
        metavar="STORE", help="Stores: paths or URLs.", autocompletion=completion.stores
    ),
]


def remove(
    stores: Stores,
    source: Annotated[
        str,
        typer.Option(
            "--source",
            metavar="NAME",
            help="Remove this source from a store of several; the others stay.",
        ),
    ] = "",
    as_json: options.Json = False,
) -> None:
    """Remove stores, or one source of a store; the documents themselves stay.

    A store that is being written is refused. A library's catalogue forgets what is removed.

    Of a store of several sources, windows with none of the removed one stay as they are. Those that
    it shared with others are read again by the questions that need them; where no window can stay,
    all are read again at once, from the store's own text.

    \b
    Example:
      sekv rm book.sekv
      sekv rm library/old/*.sekv
      sekv rm papers.sekv --source second.pdf
    """
    places = [_checked(store, source) for store in stores]
    if source:
        if len(places) > 1:
            raise OptionError("source", "a source is removed from one store; name one")
        _remove_source(places[0], source, as_json)
        return

    from engine.store import upkeep
    from sekv_cli import format

    freed = 0
    for store in places:
        libraries = upkeep.libraries_of(store)
        freed += upkeep.remove_store(store)
        _tell(libraries)
    if as_json:
        format.emit_json({"removed": [str(store) for store in places], "freed_bytes": freed})
    else:
        what = format.some(len(places), "store")
        format.console().print(f"removed {what}: {format.bytes_text(freed)} freed")


def _remove_source(store: Address, source: str, as_json: bool) -> None:
    from engine.api import remove_source
    from engine.store import upkeep
    from sekv_cli import format, progress

    with progress.on_stderr() as shown:
        done = remove_source(store, source, shown)
    _tell(upkeep.libraries_of(store))
    if as_json:
        format.emit_json(asdict(done))
        return
    out = format.console()
    left = f"{format.some(len(done.sources), 'source')}, {format.count_text(done.tokens)} tokens"
    out.print(format.clean(f"removed {done.removed}: {store} has {left}"))
    if done.unread:
        unread = format.count_text(done.unread)
        out.print(f"{unread} of them are read by the questions that need them")
    if done.read:
        out.print("all of them were read again, as every window had some of it")


def move(
    store: Annotated[
        str,
        typer.Argument(
            metavar="STORE", help="A store: a path or a URL.", autocompletion=completion.stores
        ),
    ],
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET", help="Its new name, a folder that is there, or a URL of either."
        ),
    ],
    as_json: options.Json = False,
) -> None:
    """Give a store another name or folder; its sources are still found from there.

    It may go to another disk, into an object store, out of it and to another bucket. There it
    is copied first and leaves its old place when all of it has arrived, so that nothing is lost
    however the command ends; the same command goes on.

    \b
    Example:
      sekv mv book.sekv library/
      sekv mv library/book.sekv library/dracula.sekv
      sekv mv book.sekv s3://bucket/books/
    """
    place = _checked(store)

    from engine.store import upkeep
    from sekv_cli import format, progress

    libraries = upkeep.libraries_of(place)
    to = address(target)
    if isinstance(to, ObjectUrl) and target.endswith("/"):  # a folder, though there is none yet
        to = to / place.name
    with progress.on_stderr() as shown:
        moved = upkeep.move_store(place, to, shown)
    _tell([*libraries, *(each for each in upkeep.libraries_of(moved) if each not in libraries)])
    if as_json:
        format.emit_json({"store": str(moved)})
    else:
        format.console().print(format.clean(f"{store} is {moved} now"))


def collect(
    folder: Annotated[
        str,
        typer.Argument(metavar="DIR", help="Where to look: a folder or a URL.", show_default=False),
    ] = ".",
    older: Annotated[
        float,
        typer.Option(
            "--older-than",
            min=0,
            metavar="HOURS",
            help="Keep unfinished stores that changed since; the same ingest goes on from them.",
        ),
    ] = 24.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed.")] = False,
    as_json: options.Json = False,
) -> None:
    """Remove what dead runs left: unfinished stores, locks, claims, sockets of servers.

    Looks in the current folder and all below it unless another is named. What a living process
    holds stays, and so does an unfinished store that changed within a day; of an
    object store, where nobody knows who lives, an unfinished upload goes by its age.

    \b
    Example:
      sekv gc
      sekv gc ~/library --older-than 0 --dry-run
    """
    place = address(folder)
    if isinstance(place, Path) and not place.is_dir():
        raise LibraryError(f"there is no folder {folder}")
    if math.isnan(older):  # no age is less, so that all would go
        raise OptionError("older_than", "nan is not a number of hours")

    from engine.store import upkeep
    from sekv_cli import format
    from sekv_cli.server import unix_socket

    removed, kept = [], []
    for each in upkeep.leftovers(place):
        young = each.age_s < 3600 * older and each.kind == "work"
        if young or not (dry_run or upkeep.clear(each)):
            kept.append(each)
        else:
            removed.append(each)
    sockets = unix_socket.stale(remove=not dry_run)
    freed = sum(each.bytes for each in removed)
    if as_json:
        format.emit_json(
            {
                "removed": [asdict(each) for each in removed],
                "kept": [asdict(each) for each in kept],
                "sockets": [str(path) for path in sockets],
                "freed_bytes": freed,
                "dry_run": dry_run,
            }
        )
        return
    out = format.console()
    for leftover in removed:
        out.print(format.clean(f"  {leftover.path} ({format.bytes_text(leftover.bytes)})"))
    for path in sockets:
        out.print(format.clean(f"  {path}"))
    verb = "would be free" if dry_run else "free"
    total = format.some(len(removed) + len(sockets), "leftover")
    out.print(f"{total}: {format.bytes_text(freed)} {verb}")
    for leftover in kept:
        out.print(format.clean(f"kept: {leftover.path}, which the same ingest goes on from"))


def _checked(store: str, source: str = "") -> Address:
    """The path or URL of a store. Raises SekvError, one of its own kind for a library, which says
    where in it the source is."""
    place = address(store)
    if is_library(place):
        way = _way_to(place, source) if source else "name the stores themselves"
        raise LibraryError(f"{store} is a folder of stores; {way}")
    glance.check_store(place)
    return place


def _way_to(library: Address, source: str) -> str:
    """What to do about a source of some store in a library."""
    from engine.store.library import list_stores, sources_named

    found = [each for each in list_stores(library) if sources_named(each.sources, source)]
    if not found:
        return f"none of them has a source {source}; sekv list {library} shows what they have"
    if len(found) > 1:
        return f"{source} is in {', '.join(each.path for each in found)}; name one of them"
    (only,) = found
    part = f" --source {source}" if len(only.sources) > 1 else ""
    return f"sekv rm {only.path}{part} takes that document out of it"


def _tell(libraries: list[Path]) -> None:
    """Bring the catalogues of libraries up to date."""
    from engine.store.catalogue import Catalogue

    for library in libraries:
        with Catalogue(library) as catalogue:
            catalogue.refresh()
