"""A store on its way into an object store: blocks first, the manifest last.

A store is made on the local disk like any other and then uploaded. Until the manifest is there, no
reader sees a store, or they see the one before; a torn upload is completed by the same command. The
manifest is put only where none is, or in place of the very one that was there when the command
began: of two commands that write one store at the same time, the second says so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from engine.errors import ObjectMissingError, StoreError, StoreExistsError
from engine.object_storage import Address, ObjectUrl, bucket
from engine.store import cache_folder
from engine.store.lock import Lock
from engine.store.manifest import NAME, FileEntry, from_bytes
from engine.store.object_folder import BLOCKS, block_key, listing, object_of
from engine.store.work import Places, places_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from engine.object_storage import ObjectInfo
    from engine.store.manifest import Manifest
    from engine.store.work import Journal
    from engine.types import Progress

Put = Callable[[str, FileEntry, str], str]
"""Puts a file of a store, by its name and what the manifest says of it, under a key of the bucket;
gives the object's tag, "" where that is not known."""

ABANDONED = timedelta(days=1)
"""Blocks without a manifest are removed when they are older: no upload takes so long."""


def uploads() -> Path:
    """The folder of the cache in which the store of every URL is made, in one of its own."""
    return cache_folder.root() / "uploads"


def staging(url: ObjectUrl) -> Path:
    """Where the store of a URL is made before it is uploaded; the folder exists afterwards.

    Raises:
        StoreError: the cache folder cannot be written.
    """
    digest = hashlib.sha256(str(url).encode("utf-8", "surrogatepass")).hexdigest()
    folder = uploads() / digest[:32]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"{url} is made in {folder} first, which cannot be written: {error.strerror}; name "
            "another folder with SEKV_CACHE"
        ) from None
    return folder / url.name


def places_at(target: Address) -> Places:
    """Where a store is made: beside its name, or in the cache from where it is uploaded."""
    return places_of(staging(target) if isinstance(target, ObjectUrl) else target)


@contextmanager
def locked(target: Address) -> Iterator[Places]:
    """Where a store is made, while no other process of this machine writes it.

    Raises:
        StoreBusyError: one does.
        StoreError: the folder that shall hold it does not exist, or cannot be written.
    """
    places = places_at(target)
    lock = Lock(places.lock, places.target)
    try:
        yield places
    finally:
        lock.release()
        if places.target.parent.parent == uploads():
            with suppress(OSError):  # what is unfinished stays in it
                places.target.parent.rmdir()


class Upload:
    """The upload of one store. tag: of the manifest that it is to replace, "" where none is there.

    Raises:
        ObjectStorageError: as every method, where the object store cannot be reached or refuses.
    """

    def __init__(self, url: ObjectUrl) -> None:
        self.url = url
        self._bucket = bucket(url)
        self._key = f"{url.key}/{NAME}"
        self.manifest = b""
        self.tag = ""
        try:
            self.manifest, found = self._bucket.read(self._key)
            self.tag = found.tag
        except ObjectMissingError:
            pass

    def refuse_existing(self) -> None:
        """Raises StoreExistsError where there is a store."""
        if self.tag:
            raise StoreExistsError(
                f"{self.url} exists: choose another name with -o, or pass --overwrite"
            )

    def of(self, folder: Path) -> Put:
        """Puts the files of a folder. It raises OSError where one cannot be read."""
        return lambda name, entry, key: self._bucket.upload(key, folder / name)

    def missing(self, files: dict[str, FileEntry]) -> list[str]:
        """Files that are not there with the sizes that they should have."""
        there = listing(self.url)
        found = {name: object_of(there, name, entry) for name, entry in files.items()}
        return [name for name, at in found.items() if at is None or at.size != files[name].bytes]

    def fetch(self, name: str, entry: FileEntry) -> bytes:
        """A whole file of the store that is there; unchecked."""
        found = object_of(listing(self.url), name, entry)
        return b"" if found is None else self._bucket.read(found.key)[0]

    def keep(self, files: Mapping[str, FileEntry]) -> None:
        """Have files of the store that is there as blocks, where another program put them under
        names that others are to have."""
        there = listing(self.url)
        for name, entry in files.items():
            found, block = object_of(there, name, entry), self._key_of(entry)
            if found is not None and found.key != block:
                self._bucket.copy(found.key, block)

    def publish(
        self,
        put: Put,
        names: list[str],
        manifest: Manifest,
        journal: Journal,
        progress: Progress,
    ) -> None:
        """Upload files of a store, then its manifest.

        Args:
            names: of the manifest's files those that are new.
            journal: remembers what is uploaded, so that a torn upload goes on where it stopped.
        Raises:
            StoreError: another command wrote the store meanwhile.
        """
        done = {key: value["tag"] for key, value in journal.entries.items() if _is_upload(key)}
        there = listing(self.url)
        files = {name: manifest.files[name] for name in names}
        progress.start("uploading", sum(entry.bytes for entry in files.values()), "bytes")
        for name, entry in files.items():
            block = f"{BLOCKS}/{block_key(entry)}"
            known = there.get(block)
            if known is None or not known.tag or known.tag != done.get(_upload_key(block)):
                tag = put(name, entry, self._key_of(entry))
                journal.add(_upload_key(block), {"tag": tag})
                progress.advance(entry.bytes)
            else:
                progress.resume(entry.bytes)
        if self._bucket.replace(self._key, manifest.to_bytes(), self.tag) is None:
            raise StoreError(
                f"another command wrote {self.url} meanwhile, and it is left as it is; run this "
                "one again to see whether it is still needed"
            )
        self._remove_unused(manifest)
        absent = self.missing(manifest.files)
        if absent:  # another command that replaced the store took its blocks for unused
            raise StoreError(f"{self.url} lost {absent[0]} meanwhile: run the same command again")

    def _remove_unused(self, manifest: Manifest) -> None:
        """Remove what the replaced store had alone, and blocks of uploads given up long ago."""
        there = listing(self.url)
        used, old = {NAME, *_used(there, manifest)}, set[str]()
        if self.manifest:
            with suppress(StoreError):  # a damaged one: what it had goes by its age
                old = _names(from_bytes(self.manifest))
        late = datetime.now(UTC) - ABANDONED
        self._bucket.delete(
            [
                found.key
                for name, found in there.items()
                if name not in used
                and (name in old or (name.startswith(f"{BLOCKS}/") and found.changed < late))
            ]
        )

    def _key_of(self, entry: FileEntry) -> str:
        return f"{self.url.key}/{BLOCKS}/{block_key(entry)}"


def _used(there: dict[str, ObjectInfo], manifest: Manifest) -> set[str]:
    """What the objects are called that a store's files are read from."""
    found = {object_of(there, name, entry) for name, entry in manifest.files.items()}
    return {name for name, each in there.items() if each in found}


def _names(manifest: Manifest) -> set[str]:
    """What objects of a store can be called."""
    blocks = {f"{BLOCKS}/{block_key(entry)}" for entry in manifest.files.values()}
    return blocks | {NAME, *manifest.files}


def _upload_key(block: str) -> str:
    """The key of an uploaded block in the journal."""
    return f"upload {block}"


def _is_upload(key: str) -> bool:
    return key.startswith("upload ")
