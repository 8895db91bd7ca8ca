"""Where the claims of a library are kept: files of a folder, or objects.

All that is needed of either is to create what is absent, and to take something away only if it is
still what it was. Torch-free.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from engine.errors import LibraryError, ObjectMissingError
from engine.object_storage import Address, ObjectUrl, bucket
from engine.store.folders import CLAIMS

_ENDING = ".claim"


@dataclass(frozen=True)
class Claim:
    """A claim as it was found. said: what its owner wrote. mark: changes when another claim takes
    its place, or it is renewed as an object. renewed: seconds, by the clock of the place."""

    said: str
    mark: str
    renewed: float


class ClaimPlace(Protocol):
    """The claims of one library, each under the name of a store. Safe for two threads."""

    def create(self, name: str, said: str) -> bool:
        """Make a claim; False where there is one."""

    def find(self, name: str) -> Claim | None:
        """The claim that there is."""

    def renew(self, name: str, said: str) -> None:
        """Keep an own claim from growing old; nothing where it is another's now."""

    def remove(self, name: str, said: str) -> None:
        """Take an own claim away; nothing where it is another's now."""

    def bury(self, name: str, dead: Claim) -> bool:
        """Take away the claim that was found; False where another process was quicker."""

    def names(self) -> list[str]:
        """The stores that are claimed."""

    def tidy(self) -> None:
        """Take away what killed processes left that is no claim."""

    def now(self) -> float:
        """The time by the clock of whoever keeps the claims, which may be another host's."""

    def close(self) -> None:
        """Leave nothing behind that no claim needs."""


def place_of_claims(library: Address) -> ClaimPlace:
    """Where the claims of a library are kept."""
    return _Objects(library) if isinstance(library, ObjectUrl) else _Files(library)


class _Files:
    """A file each; one is taken over by renaming it away, which only one of several can do."""

    def __init__(self, library: Path) -> None:
        self._folder = library / CLAIMS

    def create(self, name: str, said: str) -> bool:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError, FileNotFoundError):
                with self._path(name).open("x") as file:
                    file.write(said)
                return True
        except OSError as error:
            place = self._folder.parent
            raise LibraryError(f"{place} cannot be written: {error.strerror}") from None
        return False

    def find(self, name: str) -> Claim | None:
        path = self._path(name)
        try:
            said = path.read_text()
            return Claim(said, said, path.stat().st_mtime)
        except FileNotFoundError:
            return None

    def renew(self, name: str, said: str) -> None:
        with contextlib.suppress(OSError):
            os.utime(self._path(name))

    def remove(self, name: str, said: str) -> None:
        path = self._path(name)
        with contextlib.suppress(OSError):
            if path.read_text() == said:
                path.unlink()

    def bury(self, name: str, dead: Claim) -> bool:
        path = self._path(name)
        grave = path.with_name(f"{uuid.uuid4().hex}.dead")
        try:
            path.rename(grave)
            if grave.read_text() != dead.mark:  # another buried the dead one and made this one
                os.link(grave, path)
                return False
        except OSError:
            return False
        finally:
            grave.unlink(missing_ok=True)
        return True

    def names(self) -> list[str]:
        return [_unescaped(path.stem) for path in self._folder.glob(f"*{_ENDING}")]

    def tidy(self) -> None:
        for path in self._folder.glob("*"):
            if path.suffix != _ENDING:
                with contextlib.suppress(OSError):
                    path.unlink()

    def now(self) -> float:
        probe = self._folder / f"{uuid.uuid4().hex}.now"
        try:
            probe.touch()
            return probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # there is none, or others have claims still
            self._folder.rmdir()

    def _path(self, name: str) -> Path:
        return self._folder / f"{_escaped(name)}{_ENDING}"


class _Objects:
    """An object each, replaced only if its tag is still the one that was seen."""

    def __init__(self, library: ObjectUrl) -> None:
        self._bucket = bucket(library)
        self._folder = library / CLAIMS
        self._tags: dict[str, str] = {}
        self._renewals = 0

    def create(self, name: str, said: str) -> bool:
        tag = self._bucket.replace(self._key(name), said.encode(), "")
        if tag is None:
            return False
        self._tags[name] = tag
        return True

    def find(self, name: str) -> Claim | None:
        try:
            data, found = self._bucket.read(self._key(name))
        except ObjectMissingError:
            return None
        said = data.decode("utf-8", "replace").partition("\n")[0]
        return Claim(said, found.tag, found.changed.timestamp())

    def renew(self, name: str, said: str) -> None:
        self._renewals += 1  # another content has another tag
        tag = self._bucket.replace(
            self._key(name), f"{said}\n{self._renewals}".encode(), self._tags[name]
        )
        if tag is not None:
            self._tags[name] = tag

    def remove(self, name: str, said: str) -> None:
        with contextlib.suppress(ObjectMissingError):
            if self._bucket.head(self._key(name)).tag == self._tags.pop(name):
                self._bucket.delete([self._key(name)])

    def bury(self, name: str, dead: Claim) -> bool:
        if self._bucket.replace(self._key(name), uuid.uuid4().bytes, dead.mark) is None:
            return False
        self._bucket.delete([self._key(name)])
        return True

    def names(self) -> list[str]:
        found = (below for below, _ in self._bucket.below(self._folder.key))
        return [_unescaped(name.removesuffix(_ENDING)) for name in found if name.endswith(_ENDING)]

    def tidy(self) -> None: ...  # a probe may be another's of this moment: `sekv gc` takes old ones

    def now(self) -> float:
        probe = (self._folder / f"{uuid.uuid4().hex}.now").key
        try:
            self._bucket.replace(probe, b"now", "")
            return self._bucket.head(probe).changed.timestamp()
        finally:
            self._bucket.delete([probe])

    def close(self) -> None: ...

    def _key(self, name: str) -> str:
        return (self._folder / f"{_escaped(name)}{_ENDING}").key


def _escaped(name: str) -> str:
    return name.replace("%", "%25").replace("/", "%2F")


def _unescaped(name: str) -> str:
    return name.replace("%2F", "/").replace("%25", "%")
