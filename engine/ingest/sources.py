"""Sources as a store names them: where they lie, and which of them are the same. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import DocumentError
from engine.object_storage import Address, ObjectUrl, is_url
from engine.store.manifest import SourceEntry

if TYPE_CHECKING:
    from engine.documents.types import Source

STDIN = "-"


def default_target(paths: Sequence[str]) -> Path:
    """`<first source's stem>.sekv` in the current folder; "stdin.sekv" for "-"."""
    if not paths:
        raise DocumentError("no source given; name a file, or - for standard input")
    stem = "stdin" if paths[0] == "-" else Path(paths[0]).stem
    return Path(f"{stem}.sekv")


def check_named_once(paths: Sequence[str]) -> None:
    """Whether every file is named once, under whatever name.

    Raises:
        DocumentError: the first that is named again.
    """
    seen: dict[tuple[int, int] | str, str] = {}
    for path in paths:
        file: tuple[int, int] | str = path
        if not is_url(path):
            try:
                found = Path(path).stat()
            except (OSError, ValueError):
                continue  # whoever reads it says what is wrong; "-" is no file
            file = found.st_dev, found.st_ino
        if file in seen:
            also = "" if seen[file] == path else f" (as {seen[file]})"
            raise DocumentError(f"{path} is named twice{also}; name every source once")
        seen[file] = path


def check_there(paths: Sequence[str]) -> None:
    """Whether there is a file of every name; whether it can be read shows when it is.

    Raises:
        DocumentError: the first that is not there.
    """
    for path in paths:
        if path != STDIN and "://" not in path and not os.path.lexists(path):
            raise DocumentError(f"{path} does not exist; check the name")


def check_new(sources: Iterable[Source], old: Sequence[Source]) -> None:
    """Whether a store that is appended to lacks these sources.

    Raises:
        DocumentError: one is there already, with the same text.
    """
    known = {(source.sha256, source.text): source for source in old}
    for source in sources:
        same = known.get((source.sha256, source.text))
        if same is not None:
            also = "" if same.path == source.path else f" (as {same.path})"
            raise DocumentError(
                f"{source.path} is in the store already{also}, with this text; nothing was added"
            )


def remarks(sources: Sequence[Source], old: Sequence[Source] = ()) -> list[str]:
    """One line per source whose content, or whose name with another content, is there before it."""
    said = []
    before = list(old)
    for source in sources:
        for other in before:
            if other.sha256 == source.sha256 and other.path != source.path:
                said.append(f"{source.path} has the same content as {other.path}")
            elif other.path == source.path and other.sha256 != source.sha256:
                said.append(f"{source.path} changed since it was added; both contents are kept")
        before.append(source)
    return said


def entries(sources: Iterable[Source], target: Address) -> tuple[SourceEntry, ...]:
    """What the manifest of a store at `target` says of its sources."""
    return tuple(
        SourceEntry(
            path=source.path,
            kind=source.kind,
            sha256=source.sha256,
            chars=len(source.text),
            pages=tuple((page.label, page.start) for page in source.pages),
            notes=tuple(source.notes),
            sheets=_sheets(source),
            near=_near(source.path, target),
            printed=_printed(source),
            imprint=dict(source.imprint),
        )
        for source in sources
    )


def _near(path: str, target: Address) -> str:
    """Where a file lies, seen from the folder that holds the store.

    So the store finds it from any folder, and still does when both are moved together; and nothing
    of the machine it was made on is told. A path that was given whole needs no other, and beside a
    store in an object store there are no files.
    """
    given = Path(path)
    if path == STDIN or isinstance(target, ObjectUrl) or is_url(path) or given.is_absolute():
        return ""
    beside = Path(os.path.realpath(target)).parent
    return str(Path(os.path.relpath(os.path.realpath(given.parent), beside)) / given.name)


def _sheets(source: Source) -> tuple[int, ...]:
    """Sheets of a PDF's pages, where the labels do not say them."""
    if all(not page.sheet or page.label == str(page.sheet) for page in source.pages):
        return ()
    return tuple(page.sheet for page in source.pages)


def _printed(source: Source) -> tuple[str, ...]:
    """The numbers printed on a PDF's pages, where they are not the labels."""
    printed = tuple(page.printed for page in source.pages)
    return printed if any(printed) else ()
