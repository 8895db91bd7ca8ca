"""Which documents folders, files and lists name, and what their stores are called. Torch-free.

What begins with the same key in an object store is a folder too.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path, PurePath

from engine.documents import is_named_as_document
from engine.errors import DocumentError, ObjectMissingError
from engine.ingest.sources import STDIN
from engine.object_storage import ObjectUrl, address, bucket, is_url
from engine.store.folders import looks_like_a_store


@dataclass(frozen=True)
class Wanted:
    """A document that shall have a store. name: of the store below its library, with slashes."""

    source: str
    name: str


@dataclass
class Selection:
    """What a command line names.

    documents: what shall be read. refused: those that cannot be, each with the reason. left_out:
    files in folders that are no documents. remarks: one line each about folders.
    """

    documents: list[Wanted] = field(default_factory=list)
    refused: list[tuple[Wanted, str]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def read_list(lines: Iterable[str]) -> list[str]:
    """The sources of a list, one a line, without empty lines and those that begin with #."""
    named = (line.strip() for line in lines)
    return [line for line in named if line and not line.startswith("#")]


def collect(
    sources: Sequence[str],
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> Selection:
    """The documents that folders and files name.

    A folder's documents are called by their path below it, files by that below the folder that they
    have in common. The ending becomes `.sekv`; where two documents would then have one name, both
    keep their own ending before it ("book.pdf.sekv").

    Args:
        include: patterns of file names, or of paths below a folder; a file of a folder is taken if
            one fits, whatever its ending; without patterns, if its ending is a document's.
        exclude: patterns of files and folders that are passed over.
    Raises:
        DocumentError: a folder or file is not there, or there is no document at all.
        ObjectStorageError: nothing is at a URL, or its object store cannot be reached.
    """
    found = Selection()
    if STDIN in sources:
        raise DocumentError("stdin has no name in a library; write it to a file first")
    patterns = _Patterns(include, exclude)
    taken: list[tuple[str, PurePath]] = []
    alone: list[str] = []
    for source in sources:
        place = address(source)
        if isinstance(place, ObjectUrl):
            if is_named_as_document(place.name):
                alone.append(source)
            else:
                taken += _objects(place, patterns, found)
        elif not os.path.lexists(place):
            raise DocumentError(f"{source} does not exist; check the name")
        elif place.is_dir():
            taken += _Walk(place, patterns, found).files()
        else:
            alone.append(source)
    taken += _below_common([source for source in alone if not is_url(source)])
    taken += _below_common([source for source in alone if is_url(source)])
    _name(taken, found)
    if not found.documents and not found.refused:
        also = f"; {len(found.left_out)} files are left out" if found.left_out else ""
        raise DocumentError(f"there is no document in {', '.join(sources)}{also}")
    return found


@dataclass(frozen=True)
class _Patterns:
    """What of a folder is wanted; see `collect`."""

    include: Sequence[str]
    exclude: Sequence[str]

    def passes_over(self, below: PurePath) -> bool:
        return below.name.startswith(".") or self._fits(below, self.exclude)

    def wants(self, below: PurePath) -> bool:
        if self.include:
            return self._fits(below, self.include)
        return is_named_as_document(below.name)

    @staticmethod
    def _fits(below: PurePath, patterns: Iterable[str]) -> bool:
        return any(
            fnmatch(below.name, pattern) or fnmatch(below.as_posix(), pattern)
            for pattern in patterns
        )


def _objects(
    folder: ObjectUrl, patterns: _Patterns, found: Selection
) -> list[tuple[str, PurePath]]:
    """The documents whose keys begin with that of a URL, each with its path below it, in order.

    Raises:
        ObjectMissingError: no key does.
        ObjectStorageError: the object store cannot be reached or refuses.
    """
    names = sorted(below for below, _ in bucket(folder).below(folder.key))
    if not names:
        raise ObjectMissingError(f"there is nothing below {folder}/; check its name")
    taken = []
    for below in map(PurePath, names):
        if any(map(patterns.passes_over, (below, *below.parents[:-1]))):
            continue
        if any(above.suffix == ".sekv" for above in below.parents):
            continue
        if patterns.wants(below):
            taken.append((str(folder / below.as_posix()), below))
        elif not patterns.include:
            found.left_out.append(str(folder / below.as_posix()))
    return taken


class _Walk:
    """One folder and all below it."""

    def __init__(self, root: Path, patterns: _Patterns, found: Selection) -> None:
        self._root, self._patterns, self._found = root, patterns, found
        self._above: list[tuple[tuple[int, int], Path]] = []

    def files(self) -> list[tuple[str, PurePath]]:
        """Its documents, each with its path below it, in order."""
        return self._below(self._root)

    def _below(self, folder: Path) -> list[tuple[str, PurePath]]:
        try:
            here = folder.stat()
            children = sorted(folder.iterdir())
        except OSError as error:
            self._found.remarks.append(f"{folder} cannot be read: {error.strerror}; left out")
            return []
        identity = here.st_dev, here.st_ino
        for known, path in self._above:
            if known == identity:
                self._found.remarks.append(f"{folder} leads back to {path}; not read again")
                return []
        self._above.append((identity, folder))
        taken = []
        for child in children:
            below = child.relative_to(self._root)
            if self._patterns.passes_over(below):
                continue
            if child.is_dir():
                if not looks_like_a_store(child):
                    taken += self._below(child)
            elif self._patterns.wants(below):
                taken.append((str(child), PurePath(below)))
            elif not self._patterns.include:
                self._found.left_out.append(str(child))
        self._above.pop()
        return taken


def _below_common(sources: Sequence[str]) -> list[tuple[str, PurePath]]:
    """Files, or objects, with their paths below the deepest folder that has all of them."""
    paths = [Path(source.replace("://", "/")).absolute() for source in sources]
    common = os.path.commonpath([path.parent for path in paths]) if paths else ""
    return [
        (source, PurePath(os.path.relpath(path, common)))
        for source, path in zip(sources, paths, strict=True)
    ]


def _name(taken: Iterable[tuple[str, PurePath]], found: Selection) -> None:
    """Give every document a store's name that no other has; a file counts once."""
    once: dict[str, tuple[str, PurePath]] = {}
    for source, below in taken:
        same = source if is_url(source) else os.path.realpath(source)
        once.setdefault(same, (source, below))
    short = Counter(below.with_suffix("") for _, below in once.values())
    owners: dict[str, str] = {}
    for source, below in once.values():
        stem = below.with_suffix("")
        name = f"{(stem if short[stem] == 1 else below).as_posix()}.sekv"
        wanted = Wanted(source, name)
        if name in owners:
            reason = f"its store would be {name}, as that of {owners[name]}; rename one of them"
            found.refused.append((wanted, reason))
        else:
            owners[name] = source
            found.documents.append(wanted)
