"""A store taken to another place: another disk, or an object store. torch-free.

Its files go first and its manifest last, so that whatever ends the process, a whole store is at the
new place or none. What was begun is noted where the new store is made: the same move goes on with
it, and knows whether the store that it finds there is its own.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import ObjectStorageError, StoreDamagedError, StoreExistsError
from engine.object_storage import Address, ObjectUrl, bucket
from engine.store.container import checksum
from engine.store.disk import Disk
from engine.store.folder import Folder, pieces
from engine.store.manifest import NAME, WINDOWS
from engine.store.object_folder import listing, object_of
from engine.store.reader import open_folder, read_manifest
from engine.store.upload import Upload
from engine.store.verify import damages
from engine.store.work import PUBLISH, clear_work, open_work, published_journal
from engine.types import Silent

if TYPE_CHECKING:
    from engine.store.manifest import FileEntry, Manifest, SourceEntry
    from engine.store.upload import Put
    from engine.store.work import Journal, Places
    from engine.types import Progress


def seen_from(manifest: Manifest, old: Address, new: Address) -> Manifest:
    """The manifest of a store that says where its sources lie from its new place.

    Beside a store in an object store there are no files.
    """

    def placed(source: SourceEntry) -> SourceEntry:
        if not source.near or isinstance(old, ObjectUrl):
            return source
        if isinstance(new, ObjectUrl):
            return replace(source, near="")
        return replace(source, near=os.path.relpath(old.parent / source.near, new.parent))

    return replace(manifest, sources=tuple(map(placed, manifest.sources)))


class Transfer:
    """One store on its way to another place, where no rename brings it. Both must be locked."""

    def __init__(self, path: Address, target: Address, places: Places) -> None:
        """places: where the new store is made.

        Raises:
            StoreError: the store cannot be read.
            ObjectStorageError: an object store cannot be reached or refuses.
        """
        self._path, self._target, self._places, self._disk = path, target, places, Disk()
        self._upload = Upload(target) if isinstance(target, ObjectUrl) else None
        self._manifest = seen_from(read_manifest(path), path, target)
        self._data = self._manifest.to_bytes()
        self._job = {"moved": str(path.absolute() if isinstance(path, Path) else path)}
        opened = open_folder(path)
        try:
            self._from = opened.again()  # of what is read once nothing is kept near
        finally:
            opened.release()

    def run(self, progress: Progress) -> None:
        """Have the store at its new place too.

        Raises:
            StoreExistsError: another store is there.
            StoreError: the store is damaged, or the disk refuses.
            ObjectStorageError: an object store cannot be reached or refuses.
        """
        try:
            if not self._is_done():
                self._refuse_existing()
                journal = open_work(self._places, self._disk, self._job, checksum(self._data))
                journal.add(PUBLISH, {"manifest": checksum(self._data)})
                self._bring(journal, progress)
        finally:
            self._from.release()

    def forget(self) -> None:
        """Let go of what the same move would go on with: the store has left its old place."""
        clear_work(self._places, self._disk)

    def _is_done(self) -> bool:
        """Whether an earlier run of this move put the store that is there."""
        far = None if self._upload is None else self._upload.manifest
        published = published_journal(self._places, self._disk, far)
        return published is not None and published.is_of(self._job)

    def _refuse_existing(self) -> None:
        taken = os.path.lexists(self._places.target) if self._upload is None else self._upload.tag
        if taken:
            raise StoreExistsError(f"{self._target} exists: choose another name")

    def _bring(self, journal: Journal, progress: Progress) -> None:
        if self._upload is None:
            self._bring_here(progress)
            return
        names = list(self._manifest.files)
        try:
            self._upload.publish(self._put(self._upload), names, self._manifest, journal, progress)
        except ObjectStorageError as error:
            raise ObjectStorageError(
                f"{error}; {self._path} stays, run the same command again to continue"
            ) from None

    def _put(self, upload: Upload) -> Put:
        """How files come into an object store: from a disk, within a bucket, from another one."""
        path, there = self._path, bucket(upload.url)
        if isinstance(path, Path):
            return upload.of(path)
        if path.root != upload.url.root:
            return self._pass_on(upload.of(self._places.store))
        listed = listing(path)

        def copy(name: str, entry: FileEntry, key: str) -> str:
            found = object_of(listed, name, entry)
            if found is None:
                raise StoreDamagedError(f"{path}: {name} is missing")
            there.copy(found.key, key)
            return ""

        return copy

    def _pass_on(self, put: Put) -> Put:
        """From one object store to another, each file by way of this disk."""

        def pass_on(name: str, entry: FileEntry, key: str) -> str:
            file = self._places.store / name
            self._disk.write_file(file, pieces(self._from, name, entry))
            tag = put(name, entry, key)
            self._disk.unlink(file)
            return tag

        return pass_on

    def _bring_here(self, progress: Progress) -> None:
        """Copy the store to this disk; it gets its name when every byte was checked."""
        places, disk, files = self._places, self._disk, self._manifest.files
        progress.start("copying", sum(entry.bytes for entry in files.values()), "bytes")
        for name, entry in files.items():
            disk.write_file(places.store / name, pieces(self._from, name, entry))
            progress.advance(entry.bytes)
        disk.write_file(places.store / NAME, [self._data])
        for folder in (places.store / WINDOWS, places.store, places.work):
            disk.sync_folder(folder)
        copied = Folder(places.store)
        try:
            found = damages(copied, self._manifest, Silent())
        finally:
            copied.release()
        if found:
            raise StoreDamagedError(f"{self._path} is damaged, so it stays: {found[0]}")
        disk.rename(places.store, places.target)
        disk.sync_folder(places.target.parent)
