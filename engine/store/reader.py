"""Opening a store: the manifest at once, everything else when it is asked for.

Read-only access in which no damaged byte is ever used, by any number of processes at the same time.
Tensors come on the CPU. torch is imported by the methods that give torch tensors, so that `list`,
`inspect` and `verify` need none.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from engine.errors import StoreDamagedError, StoreError
from engine.object_storage import Address, ObjectUrl
from engine.store import manifest as names
from engine.store.disk import Disk
from engine.store.document import read_tables, read_text
from engine.store.files import Meter, StoreFile
from engine.store.folder import Folder
from engine.store.glance import not_a_store
from engine.store.host import HostSection
from engine.store.lock import Lock
from engine.store.manifest import Manifest, from_bytes
from engine.store.tensors import to_numpy, to_torch
from engine.store.verify import damages
from engine.store.work import Places, finish_exchange
from engine.types import Silent

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

    from engine.store.folder import StoreFolder
    from engine.store.manifest import FileEntry
    from engine.types import Progress

_HEADER_OF_LAYER = 400
"""About what the header of a file of codes takes for the three tensors of a layer."""

_RECOVERY_TRIES = 20
_RECOVERY_WAIT = 0.05

T = TypeVar("T")


class Store:
    """A store, opened by its manifest alone; windows that are not read have no sections.

    manifest_bytes: size of the manifest's file; the manifest has those of all others.

    It keeps reading the store it opened even when another takes its name meanwhile.
    """

    def __init__(self, path: Address, folder: StoreFolder) -> None:
        self.path = path
        self._folder = folder
        self._closer = weakref.finalize(self, folder.release)
        self._device_meter = Meter()
        self._host_meter = Meter()
        self.manifest = self._read_manifest()

    @classmethod
    def open(cls, path: Address) -> Self:
        """Open the store at `path`: reads and checks `manifest.json`, nothing else.

        Raises:
            StoreError: there is no store, an unfinished one, a newer one or a damaged one.
            ObjectStorageError: its object store cannot be reached or refuses.
        """
        while True:
            folder = open_folder(path)
            try:
                return cls(path, folder)
            except StoreError as error:
                if folder.was_replaced():  # between the two steps
                    continue
                if isinstance(path, Path) and not os.path.lexists(path / names.NAME):
                    raise not_a_store(path) from None
                raise type(error)(f"{path}: {error}") from None

    def close(self) -> None:
        """Give the descriptors back; host sections that are still in use keep theirs."""
        self._closer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def device_bytes_read(self) -> int:
        """Bytes read of the manifest, document, shared and device files so far."""
        return self._device_meter.bytes

    @property
    def host_bytes_read(self) -> int:
        """Bytes read of host files so far."""
        return self._host_meter.bytes

    def document(self) -> dict[str, npt.NDArray[Any]]:
        """Token tables: `ids`, `starts`, `ends`, `source`, integers [N] each. Texts: see `text`.

        Raises:
            StoreError: missing, damaged, or not of this manifest.
        """
        with self._reading(names.DOCUMENT) as file:
            return read_tables(file, self.manifest)

    def text(self, source: int) -> str:
        """The text of one source, which citations are slices of.

        Raises:
            StoreError: missing, damaged, or not of this manifest.
        """
        with self._reading(names.DOCUMENT) as file:
            return read_text(file, self.manifest, source)

    def texts(self) -> tuple[str, ...]:
        """The texts of all sources, for answers to quote.

        Raises:
            StoreError: one is missing, damaged, or not of this manifest.
        """
        with self._reading(names.DOCUMENT) as file:
            for index, source in enumerate(self.manifest.sources):
                if f"text.{index}" not in file.header.tensors:
                    raise StoreError(
                        f"{self.path} keeps no text of {source.path}, and answers quote it: ingest "
                        "again (`sekv inspect` without --question works)"
                    )
            sources = range(len(self.manifest.sources))
            return tuple(read_text(file, self.manifest, source) for source in sources)

    def has_text(self, source: int) -> bool:
        """Whether the store keeps the text of a source; a header is read, no text.

        Raises:
            StoreError: missing or damaged.
        """
        with self._reading(names.DOCUMENT) as file:
            return f"text.{source}" in file.header.tensors

    def shared(self) -> dict[str, torch.Tensor]:
        """The tensors that all windows share, on the CPU.

        Raises:
            StoreError: missing or damaged.
        """
        return self._load(names.SHARED)

    def device(self, window: int) -> dict[str, torch.Tensor]:
        """The device section of a window in one read, each tensor checked; views of one buffer.

        Raises:
            StoreError: no such window, missing or damaged.
        """
        self._check_window(window)
        return self._load(names.device_file(window))

    def states(self, window: int) -> dict[str, torch.Tensor]:
        """What layers without full attention keep at the end of a window: `{layer}.{name}`, on the
        CPU.

        Raises:
            StoreError: no such window, missing or damaged.
        """
        self._check_window(window)
        return self._load(names.states_file(window))

    def tables(self, name: str, tables: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
        """Some tensors of a file, checked, as numpy arrays: what `inspect` needs without torch.

        Args:
            name: "shared.safetensors" or the device file of a window (`manifest.device_file`).
            tables: names of tensors; those the file does not hold are left out.
        Raises:
            StoreError: missing or damaged.
        """
        with self._reading(name) as file:
            return {
                table: to_numpy(file.tensor_bytes(table), file.info(table))
                for table in tables
                if table in file.header.tensors
            }

    def host(self, window: int) -> HostSection:
        """The host section of a window; opens the file and checks its header, reads no codes.

        Raises:
            StoreError: no such window, missing or damaged.
        """
        self._check_window(window)
        file = self._open(names.host_file(window), self._host_meter)
        return HostSection(file, self.manifest.windows[window].spans)

    @property
    def received(self) -> tuple[int, int]:
        """Bytes that came over a network so far, and requests; 0 of a store on disk."""
        return self._folder.received

    def fetch_ahead(self) -> None:
        """Bring near what opening a memory reads: device sections, and the tables of the codes.

        A store on disk is near. The tables stand first in their file; how long they are follows
        from the manifest, but for the header, which is estimated.
        """
        files, model = self.manifest.files, self.manifest.model
        wanted = [(names.SHARED, files[names.SHARED], files[names.SHARED].bytes)]
        for index in self.manifest.read:
            window = self.manifest.windows[index]
            device, host = names.device_file(index), names.host_file(index)
            tables = 8 * (window.spans * (model.kv_heads + 1) + 1) + _HEADER_OF_LAYER
            wanted.append((device, files[device], files[device].bytes))
            wanted.append((host, files[host], len(model.memory_layers) * tables))
        self._folder.fetch_ahead(wanted)

    def size(self) -> int:
        """Bytes of all files that there are below the store."""
        try:
            return self._folder.total_bytes()
        except OSError as error:
            raise StoreError(f"{self.path} cannot be measured: {error.strerror}") from None

    def verify(self, progress: Progress | None = None) -> list[str]:
        """Check every byte and every table. One line per damage; [] when the store is sound."""
        # What is open already may have lost its name meanwhile: look at everything afresh.
        folder = self._folder.again()
        try:
            return damages(folder, self.manifest, progress or Silent())
        finally:
            folder.release()

    def _open(self, name: str, meter: Meter | None = None) -> StoreFile:
        try:
            entry = self.manifest.files[name]
            return StoreFile(self._folder, name, entry, meter or self._device_meter)
        except StoreError as error:
            if self.was_replaced():
                raise StoreError(
                    f"{self.path} was replaced while it was open: open it again"
                ) from None
            raise type(error)(f"{self.path}: {error}") from None

    def was_replaced(self) -> bool:
        """Whether the name belongs to another store now, and this one's files are going."""
        return self._folder.was_replaced()

    def _load(self, name: str) -> dict[str, torch.Tensor]:
        with self._reading(name) as file:
            return _load_torch(file)

    @contextmanager
    def _reading(self, name: str) -> Iterator[StoreFile]:
        """A file of the store while it is read; what is wrong with it names the store."""
        file = self._open(name)
        try:
            yield file
        except StoreError as error:
            raise type(error)(f"{self.path}: {error}") from None
        finally:
            file.close()

    def _check_window(self, window: int) -> None:
        count = len(self.manifest.windows)
        if not 0 <= window < count:
            raise StoreError(f"{self.path}: there is no window {window} of {count}")
        if window in self.manifest.unread:
            raise StoreError(f"{self.path}: window {window} of {count} is not read yet")

    def _read_manifest(self) -> Manifest:
        data = self._folder.read_manifest()
        if len(data) > names.MAX_BYTES:
            raise StoreDamagedError("the manifest is damaged (it is far too long)")
        self._device_meter.add(len(data))
        self.manifest_bytes = len(data)
        return from_bytes(data)


def read_manifest(path: Address) -> Manifest:
    """The manifest of the store at `path`, checked.

    Raises:
        StoreError: as `Store.open`.
    """
    with Store.open(path) as store:
        return store.manifest


def read_store(path: Address, read: Callable[[Store], T]) -> T:
    """What `read` makes of the store at `path`.

    Where another process replaces the store meanwhile, whose files then go, `read` begins again
    with the new one.

    Raises:
        StoreError: as `Store.open` and `read`.
    """
    while True:
        with Store.open(path) as store:
            try:
                return read(store)
            except StoreError:
                if not store.was_replaced():
                    raise


def load_file(folder: Path, name: str, entry: FileEntry) -> dict[str, torch.Tensor]:
    """All tensors of one file below `folder`, checked, on the CPU.

    Raises:
        StoreError: missing or damaged.
    """
    opened = Folder(folder)
    try:
        return _load_torch(StoreFile(opened, name, entry))
    finally:
        opened.release()


def open_folder(path: Address) -> StoreFolder:
    """Where the files of the store at `path` are, with nothing checked yet.

    Raises:
        StoreError: there is no store, or an unfinished one.
        ObjectStorageError: its object store cannot be reached or refuses.
    """
    if isinstance(path, ObjectUrl):
        from engine.store.object_folder import ObjectFolder

        return ObjectFolder(path)
    recover(path)
    try:
        return Folder(path)
    except OSError:
        raise not_a_store(path) from None


def recover(path: Path) -> None:
    """Finish a replacement that died between its two renames; nothing otherwise.

    Raises:
        StoreError: another process is still at it.
    """
    for attempt in range(_RECOVERY_TRIES):
        places = Places(Path(os.path.realpath(path)))
        if places.target.exists() or not places.old.exists():
            return
        try:
            lock = Lock(places.lock, places.target)
        except StoreError:
            if attempt == _RECOVERY_TRIES - 1:
                raise
            time.sleep(_RECOVERY_WAIT)
            continue
        try:
            finish_exchange(places, Disk())
        except OSError as error:
            raise StoreError(f"{path} cannot be recovered: {error.strerror}") from None
        finally:
            lock.release()


def _load_torch(file: StoreFile) -> dict[str, torch.Tensor]:
    """Every tensor of a file: one read of all data, one check per tensor, views of one buffer."""
    import torch

    first, last = file.header.data_start, file.header.data_end
    buffer = torch.empty(last - first, dtype=torch.uint8)
    data = buffer.numpy().data
    file.read_into([([data], first)])
    tensors = {}
    for name, info in file.header.tensors.items():
        start, end = info.start - first, info.end - first
        file.check(name, data[start:end])
        tensors[name] = to_torch(buffer[start:end], info)
    file.close()
    return tensors
