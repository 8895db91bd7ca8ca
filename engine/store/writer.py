"""Writing a store: piece by piece beside the target, published by one rename.

The only way a store comes to be, grows or is replaced. Each piece is durable before it is promised
in the journal, so that whatever kills the process, the same command continues after the last
promised piece.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Self

from engine.errors import ObjectStorageError, StoreError, StoreExistsError
from engine.object_storage import Address, ObjectUrl
from engine.store import container
from engine.store.disk import Disk
from engine.store.document import TABLES
from engine.store.lock import Lock
from engine.store.manifest import (
    DOCUMENT,
    NAME,
    SHARED,
    WINDOWS,
    FileEntry,
    Manifest,
    SourceEntry,
    WindowEntry,
    device_file,
    from_bytes,
    host_file,
    states_file,
)
from engine.store.pieces import (
    DOCUMENT_KEY,
    SHARED_KEY,
    all_sound,
    chunk_file,
    chunk_key,
    is_chunk,
    is_newest,
    newest_key,
    refuse_contradictions,
    remove_strangers,
    window_key,
)
from engine.store.reader import load_file, read_manifest
from engine.store.records import with_span_checks
from engine.store.tensors import to_blocks
from engine.store.upload import Upload, places_at
from engine.store.work import (
    PUBLISH,
    Journal,
    Places,
    clear_work,
    disk_errors,
    file_from_json,
    finish_exchange,
    open_work,
    published_journal,
)
from engine.types import ModelIdentity, Silent

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import torch

    from engine.store.tensors import Array
    from engine.types import Progress

SILENT = Silent()


class StoreWriter:
    """One store in the making. Use as a context manager; leaving it without `publish` keeps the
    finished pieces for the next run of the same job, unless there are none.

    bytes_written: bytes given to files by this process. seconds: time spent here. base: the store
    that is continued, as it was when the lock was taken; None where all is made anew.
    """

    def __init__(
        self,
        places: Places,
        lock: Lock,
        journal: Journal,
        disk: Disk,
        *,
        base: Manifest | None = None,
        replaces: bool = False,
        published: bool = False,
        upload: Upload | None = None,
    ) -> None:
        self._places = places
        self._upload = upload
        self._replaces = replaces
        # A run that died between publishing and cleaning is repeated as if it had all to do:
        # every piece is found done, in the store itself.
        self._published = published
        self._folder = places.target if published and upload is None else places.store
        self._lock = lock
        self._journal = journal
        self._disk = disk
        self.base = base
        self._sound: dict[str, bool] = {}
        self._inherited: set[str] = set()
        self._far: set[str] = set()  # inherited pieces that stay in their object store
        self.seconds = 0.0

    # -- beginning and ending

    @classmethod
    def begin(
        cls,
        target: Address,
        job: dict[str, Any],
        *,
        overwrite: bool = False,
        disk: Disk | None = None,
    ) -> StoreWriter:
        """Start the store `target`, or continue it where an earlier run of this job stopped.

        Args:
            target: the folder to be, whose parent must exist, or the URL to upload it to.
            job: plain JSON values that say what is being made: another job starts afresh.
            overwrite: replace a store of this name, which stays until the new one is complete.
            disk: the file system, for tests.
        Raises:
            StoreError: the name is taken, another process is writing, or the disk refuses.
        """
        cls.check(target, overwrite=overwrite)
        return cls._start(target, job, disk or Disk(), overwrite=overwrite)

    @classmethod
    def check(cls, target: Address, *, overwrite: bool = False) -> None:
        """Refuse at once what `begin` would refuse after the work that finds out what the job is.

        A name that is taken passes while a dead run's leftovers lie beside it: whether that run
        was this job, and needs only cleaning up after it, is for `begin` to see.

        Raises:
            StoreError: the name is taken, or the folder does not exist.
        """
        places = places_at(target)
        if any(path.exists() for path in places.leftovers):
            return
        if isinstance(target, ObjectUrl):
            if not overwrite:
                Upload(target).refuse_existing()
        elif not overwrite:
            _refuse_existing(places.target)
        elif os.path.lexists(places.target):
            _refuse_foreign(places.target)

    @classmethod
    def append(
        cls, target: Address, job: dict[str, Any], *, disk: Disk | None = None
    ) -> StoreWriter:
        """Continue a store with new windows, or with windows that nobody has read yet; it stays
        until the fuller one is complete.

        The windows and shared tensors that are there are taken over byte for byte (hard links
        where the file system has them; in an object store the windows stay where they are);
        `put_document` must give the whole document.

        Raises:
            StoreError: there is no store, another process is writing, or the disk refuses.
        """
        return cls._start(target, job, disk or Disk(), append=True)

    @classmethod
    def reduce(
        cls,
        target: Address,
        job: dict[str, Any],
        kept: Mapping[int, tuple[int, WindowEntry]],
        *,
        disk: Disk | None = None,
    ) -> StoreWriter:
        """Replace a store by one of some of its windows, which are taken over as in `append`.

        Args:
            kept: by the number of a window that is read: its new number, and where it lies then.
        Raises:
            StoreError: as `append`.
        """
        return cls._start(target, job, disk or Disk(), append=True, kept=kept)

    @classmethod
    def _start(
        cls,
        target: Address,
        job: dict[str, Any],
        disk: Disk,
        *,
        overwrite: bool = False,
        append: bool = False,
        kept: Mapping[int, tuple[int, WindowEntry]] | None = None,
    ) -> StoreWriter:
        places = places_at(target)
        upload = Upload(target) if isinstance(target, ObjectUrl) else None
        lock = Lock(places.lock, places.target)
        try:
            with disk_errors(f"beside {places.target}"):
                finish_exchange(places, disk)
                disk.remove_tree(places.done)
                published = published_journal(places, disk, upload.manifest if upload else None)
                if published is not None:
                    same, journal = published.is_of(job), published.journal
                    if same and not read_manifest(target).unread:
                        return cls(places, lock, journal, disk, published=True, upload=upload)
                    clear_work(places, disk)
                if append:
                    base = read_manifest(target)
                    journal = open_work(places, disk, job, container.checksum(base.to_bytes()))
                    writer = cls(
                        places, lock, journal, disk, base=base, replaces=True, upload=upload
                    )
                    here = {index: (index, base.windows[index]) for index in base.read}
                    writer._take_over(base, here if kept is None else kept)
                    return writer
                if not overwrite:
                    _refuse_existing(places.target) if upload is None else upload.refuse_existing()
                elif places.target.exists():
                    _refuse_foreign(places.target)
                journal = open_work(places, disk, job, "")
                return cls(places, lock, journal, disk, replaces=overwrite, upload=upload)
        except BaseException:
            lock.release()
            raise

    def close(self) -> None:
        """End without publishing: finished pieces stay for the next run of the same job."""
        try:
            if self._published or set(self._journal.entries) <= self._inherited:
                clear_work(self._places, self._disk)
        finally:
            self._lock.release()
            if self._upload is not None:
                with contextlib.suppress(OSError):  # what is unfinished stays in it
                    self._places.target.parent.rmdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with disk_errors(f"beside {self._places.target}"):
            self.close()

    @property
    def bytes_written(self) -> int:
        return self._disk.written

    # -- pieces

    def put_document(self, tensors: Mapping[str, Array]) -> None:
        """Write the document: `ids`, `starts`, `ends`, `source` [N] and `text.0`, ... uint8.

        Raises:
            StoreError: the disk refuses.
            ValueError: a table is missing, or they differ in length.
        """
        shapes = {tuple(tensors[name].shape) if name in tensors else () for name in TABLES}
        if len(shapes) != 1 or len(shapes.pop()) != 1:
            raise ValueError(f"the document needs {', '.join(TABLES)}, all [N]")
        with self._timed():
            self._put_files(DOCUMENT_KEY, {DOCUMENT: tensors}, {})

    def put_shared(self, tensors: Mapping[str, Array]) -> None:
        """Write the tensors that all windows share.

        Raises:
            StoreError: the disk refuses, or the store is being appended to (windows that are
                there depend on the shared tensors that are there).
        """
        if self.base is not None:
            raise StoreError("shared tensors cannot change while a store is appended to")
        with self._timed():
            self._put_files(SHARED_KEY, {SHARED: tensors}, {})

    def shared(self) -> dict[str, torch.Tensor] | None:
        """The shared tensors if they are written, on the CPU; None if they are not."""
        with self._timed():
            if not self._is_sound(SHARED_KEY):
                return None
            return self._load(SHARED_KEY, SHARED)

    def window_done(self, index: int) -> bool:
        """Whether this window is written, now or by an earlier run, and sound to the last byte."""
        with self._timed():
            return self._is_sound(window_key(index))

    def put_window(
        self,
        index: int,
        device: Mapping[str, Array],
        host: Mapping[str, Array],
        entry: WindowEntry,
        states: Mapping[str, Array] | None = None,
    ) -> None:
        """Write one window and drop its chunks.

        Args:
            index: 0, 1, ... in the order of the document.
            device: the device section, any names.
            host: `{layer}.codes` uint8 [bytes] and `{layer}.offsets` int64 [S*Hkv+1] per layer.
            entry: which tokens it covers; entry.spans is S.
            states: `{layer}.{name}` of the layers that keep one; a model without such has none.
        Raises:
            StoreError: the disk refuses.
            ValueError: the offsets do not fit the codes or the spans.
        """
        with self._timed():
            checked = with_span_checks(host, entry.spans)
            files = {device_file(index): device, host_file(index): checked}
            if states:
                files[states_file(index)] = states
            key = window_key(index)
            self._put_files(key, files, asdict(entry), drops=self._chunk_keys(index))

    def put_chunk(
        self,
        window: int,
        chunk: int,
        tensors: Mapping[str, Array],
        newest: Mapping[str, Array] | None = None,
    ) -> None:
        """Keep raw prefill state until its window is written.

        Args:
            window, chunk: counted from 0; chunks of a window come in order.
            tensors: any names, dtypes and shapes.
            newest: more of them, which are kept until the window's next chunk has its own.
        Raises:
            StoreError: the disk refuses.
        """
        key = chunk_key(window, chunk)
        with self._timed():
            self._put_files(key, {chunk_file(key): tensors}, {})
            if newest:
                key = newest_key(window, chunk)
                known = self._chunk_keys(window)
                older = tuple(other for other in known if is_newest(other) and other != key)
                self._put_files(key, {chunk_file(key): newest}, {}, drops=older)

    def chunks(self, window: int) -> list[dict[str, torch.Tensor]]:
        """The chunks of a window that are complete and sound, from the first to the first gap; the
        newest with what is kept of it alone, unless that is damaged."""
        found = []
        with self._timed():
            for chunk in range(len(self._chunk_keys(window))):
                tensors = self._sound_chunk(chunk_key(window, chunk))
                if tensors is None:  # computed again, as what follows it
                    break
                found.append(tensors | (self._sound_chunk(newest_key(window, chunk)) or {}))
        return found

    def _sound_chunk(self, key: str) -> dict[str, torch.Tensor] | None:
        """The tensors of a chunk or of a part of one; None where they are missing or damaged."""
        if key not in self._journal.entries:
            return None
        try:
            return self._load(key, chunk_file(key))
        except StoreError:
            self._forget(key)
            return None

    def publish(
        self,
        *,
        creator: str,
        model: ModelIdentity,
        method: str,
        settings: dict[str, Any],
        dtype: str,
        prompt: dict[str, Any],
        tokens: int,
        tokenizer_engine: str,
        window_tokens: int,
        sources: tuple[SourceEntry, ...],
        unread: Sequence[tuple[int, WindowEntry]] = (),
        context: int = 0,
        progress: Progress = SILENT,
    ) -> Manifest:
        """Write the manifest and give the store its name. The fields are those of `Manifest`.

        Args:
            unread: numbers of windows that nobody has read, and where they lie; all others are
                there.
            progress: is told of the upload, where there is one.
        Raises:
            StoreError: a piece is missing, the manifest would not be valid, or the disk refuses.
            ObjectStorageError: the object store cannot be reached or refuses.
        """
        if self._published:
            return from_bytes((self._folder / NAME).read_bytes())
        entries, missing = self._journal.entries, dict(unread)
        count = sum(key.startswith("window ") for key in entries) + len(missing)
        written = [index for index in range(count) if index not in missing]
        needed = [DOCUMENT_KEY, SHARED_KEY, *map(window_key, written)]
        for key in needed:
            if key not in entries:
                raise StoreError(f"the store is not complete: {key} was never written")
            if not self._is_sound(key):
                raise StoreError(f"{key} was damaged since it was written: run the command again")
        manifest = Manifest(
            creator=creator,
            model=model,
            method=method,
            settings=settings,
            dtype=dtype,
            prompt=prompt,
            tokens=tokens,
            tokenizer_engine=tokenizer_engine,
            window_tokens=window_tokens,
            sources=sources,
            windows=tuple(
                missing.get(index) or WindowEntry(**entries[window_key(index)]["window"])
                for index in range(count)
            ),
            unread=tuple(sorted(missing)),
            context=context,
            files={
                name: file_from_json(value)
                for key in needed
                for name, value in entries[key]["files"].items()
            },
        )
        far = {index for index in written if window_key(index) in self._far}
        with self._timed(), disk_errors(str(self._places.target)):
            refuse_contradictions(self._places.store, manifest, far)
            self._publish(manifest, progress)
        return from_bytes(manifest.to_bytes())

    # -- inner steps

    def _publish(self, manifest: Manifest, progress: Progress) -> None:
        places, disk, data = self._places, self._disk, manifest.to_bytes()
        remove_strangers(places.store, set(manifest.files), disk)
        disk.write_file(places.draft, [data])
        disk.rename(places.draft, places.store / NAME)
        for folder in (places.store / WINDOWS, places.store, places.work):
            disk.sync_folder(folder)
        self._journal.add(PUBLISH, {"manifest": container.checksum(data)})
        if self._upload is not None:
            self._send(self._upload, manifest, progress)
        else:
            self._give_name()
        self._published = True
        clear_work(places, disk)

    def _give_name(self) -> None:
        """Let the finished store have its name on this disk."""
        places, disk = self._places, self._disk
        if not self._replaces:
            _refuse_existing(places.target)
        if not places.target.exists():
            disk.rename(places.store, places.target)
        elif not disk.exchange(places.store, places.target):
            # Without an atomic exchange the name is free for an instant; a crash in it is put
            # right by `recover`, which finds both stores complete.
            disk.rename(places.target, places.old)
            disk.sync_folder(places.work)
            disk.rename(places.store, places.target)
        disk.sync_folder(places.target.parent)
        self._folder = places.target

    def _send(self, upload: Upload, manifest: Manifest, progress: Progress) -> None:
        """Upload the finished store, but for what is there already."""
        entries = self._journal.entries
        there = {name for key in self._inherited for name in entries[key]["files"]}
        new = [name for name in manifest.files if name not in there]
        try:
            upload.publish(upload.of(self._places.store), new, manifest, self._journal, progress)
        except ObjectStorageError as error:
            raise ObjectStorageError(
                f"{error}; what was finished is kept, run the same command again to continue"
            ) from None

    def _put_files(
        self,
        key: str,
        files: Mapping[str, Mapping[str, Array]],
        window: dict[str, Any],
        *,
        drops: tuple[str, ...] = (),
    ) -> None:
        """Write the files of one piece, make them durable, then promise them together."""
        if self._published:
            return
        place = self._place(key)
        written: dict[str, Any] = {}
        with disk_errors(str(self._places.target)):
            self._sound.pop(key, None)
            self._journal.drop(key)
            for name, tensors in files.items():
                blocks = to_blocks(tensors)
                encoded = container.encode(blocks)
                self._disk.write_file(place / name, container.pieces(encoded, blocks))
                self._disk.sync_folder((place / name).parent)
                written[name] = asdict(
                    FileEntry(encoded.size, encoded.tensors, encoded.header_checksum)
                )
            self._journal.add(key, {"files": written, "window": window}, drops)
            for chunk in drops:
                self._disk.unlink(self._place(chunk) / chunk_file(chunk))
        self._sound[key] = True

    def _take_over(self, base: Manifest, kept: Mapping[int, tuple[int, WindowEntry]]) -> None:
        """Link windows and the shared tensors of the store that is continued.

        kept: by their number in it their new number, and where they lie.
        """
        pieces: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
            SHARED_KEY: ({SHARED: SHARED}, {})
        }
        kinds = [device_file, host_file, *([states_file] if base.has_states else [])]
        for index, (number, entry) in kept.items():
            names = {file(number): file(index) for file in kinds}
            pieces[window_key(number)] = (names, asdict(entry))
        if self._upload is not None:
            self._far = {key for key in pieces if key != SHARED_KEY}
            self._refuse_gaps(base, self._upload)
            renamed = {
                old: base.files[old]
                for key in self._far
                for name, old in pieces[key][0].items()
                if name != old
            }
            if renamed:
                self._upload.keep(renamed)
        for key, (names, fields) in pieces.items():
            self._inherited.add(key)
            if key in self._journal.entries:
                continue
            files = {name: asdict(base.files[old]) for name, old in names.items()}
            piece = {"files": files, "window": fields}
            if key not in self._far:
                self._bring(names, base)
                if not all_sound(self._places.store, piece):
                    raise StoreError(
                        f"{self._places.target} is damaged, so nothing is changed: see sekv verify"
                    )
            self._journal.add(key, piece)
            self._sound[key] = True

    def _bring(self, names: Mapping[str, str], base: Manifest) -> None:
        """Have files of the store that is continued in the one that is made, old by new name."""
        places, disk = self._places, self._disk
        for name, old in names.items():
            disk.unlink(places.store / name)
            if self._upload is None:
                disk.link(places.target / old, places.store / name)
            else:
                disk.write_file(places.store / name, [self._upload.fetch(old, base.files[old])])
        disk.sync_folder(places.store / WINDOWS)
        disk.sync_folder(places.store)

    def _refuse_gaps(self, base: Manifest, upload: Upload) -> None:
        gaps = upload.missing(base.files)
        if gaps:
            raise StoreError(
                f"{upload.url} is damaged ({gaps[0]} is missing), so nothing is changed: see sekv "
                "verify"
            )

    def _is_sound(self, key: str) -> bool:
        """Whether a promised piece still has every byte; what has not is made anew."""
        if key in self._far:
            return True
        if key not in self._sound:
            entry = self._journal.entries.get(key)
            self._sound[key] = entry is not None and all_sound(self._place(key), entry)
            if not self._sound[key]:
                self._forget(key)
        return self._sound[key]

    def _forget(self, key: str) -> None:
        with disk_errors(str(self._places.target)):
            self._journal.drop(key)

    def _load(self, key: str, name: str) -> dict[str, torch.Tensor]:
        entry = file_from_json(self._journal.entries[key]["files"][name])
        return load_file(self._place(key), name, entry)

    def _place(self, key: str) -> Path:
        return self._places.chunks if is_chunk(key) else self._folder

    def _chunk_keys(self, window: int) -> tuple[str, ...]:
        start = f"chunk {window} "
        return tuple(key for key in self._journal.entries if key.startswith(start))

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - begun


def _refuse_existing(target: Path) -> None:
    if os.path.lexists(target):
        raise StoreExistsError(f"{target} exists: choose another name with -o, or pass --overwrite")


def _refuse_foreign(target: Path) -> None:
    """Only a store, even a damaged one, is ever overwritten."""
    if not (target / NAME).is_file():
        raise StoreExistsError(
            f"{target} is no store, so it is not overwritten: choose another name"
        )
