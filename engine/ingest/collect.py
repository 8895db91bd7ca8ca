"""Which documents folders, files and lists name, and what their stores are called. Torch-free."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path, PurePath

from engine.documents import is_named_as_document
from engine.errors import DocumentError
from engine.ingest.sources import STDIN
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
    """
    found = Selection()
    taken: list[tuple[str, PurePath]] = []
    files = [source for source in sources if not Path(source).is_dir()]
    common = _common(files)
    for source in sources:
        if source == STDIN:
            raise DocumentError("stdin has no name in a library; write it to a file first")
        path = Path(source)
        if not os.path.lexists(path):
            raise DocumentError(f"{source} does not exist; check the name")
        if path.is_dir():
            taken += _Walk(path, include, exclude, found).files()
        else:
            taken.append((source, PurePath(os.path.relpath(path.absolute(), common))))
    _name(taken, found)
    if not found.documents and not found.refused:
        also = f"; {len(found.left_out)} files are left out" if found.left_out else ""
        raise DocumentError(f"there is no document in {', '.join(sources)}{also}")
    return found


class _Walk:
    """One folder and all below it."""

    def __init__(
        self, root: Path, include: Sequence[str], exclude: Sequence[str], found: Selection
    ) -> None:
        self._root, self._include, self._exclude, self._found = root, include, exclude, found
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
            if child.name.startswith(".") or self._fits(below, self._exclude):
                continue
            if child.is_dir():
                if not looks_like_a_store(child):
                    taken += self._below(child)
            elif self._is_wanted(below):
                taken.append((str(child), PurePath(below)))
            elif not self._include:
                self._found.left_out.append(str(child))
        self._above.pop()
        return taken

    def _is_wanted(self, below: PurePath) -> bool:
        if self._include:
            return self._fits(below, self._include)
        return is_named_as_document(below.name)

    @staticmethod
    def _fits(below: PurePath, patterns: Iterable[str]) -> bool:
        return any(
            fnmatch(below.name, pattern) or fnmatch(below.as_posix(), pattern)
            for pattern in patterns
        )


def _common(files: Sequence[str]) -> str:
    """The deepest folder that has all files below it."""
    folders = [Path(file).absolute().parent for file in files]
    return os.path.commonpath(folders) if folders else ""


def _name(taken: Iterable[tuple[str, PurePath]], found: Selection) -> None:
    """Give every document a store's name that no other has; a file counts once."""
    once: dict[str, tuple[str, PurePath]] = {}
    for source, below in taken:
        once.setdefault(os.path.realpath(source), (source, below))
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
