"""Checking a whole store: every byte against its checksum, every table against the manifest.

The walk behind `sekv verify`: torch-free, in bounded memory. It repairs nothing.
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from engine.errors import StoreError
from engine.store import manifest as names
from engine.store.container import span_checksum
from engine.store.document import read_tables, read_text
from engine.store.files import BLOCK, StoreFile
from engine.store.host import HostSection
from engine.store.records import SPAN_TABLE, span_table_fault
from engine.store.tensors import to_numpy

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from engine.store.folder import StoreFolder
    from engine.store.manifest import Manifest, WindowEntry
    from engine.types import Progress


HOST_ENDING, STATES_ENDING = ".host.safetensors", ".states.safetensors"


def damages(folder: StoreFolder, manifest: Manifest, progress: Progress) -> list[str]:
    """One line per damage of the store whose folder is open as `folder`; [] when sound."""
    try:
        found = list(folder.strangers({*manifest.files, names.NAME}))
    except StoreError as error:
        found = [str(error)]
    except OSError as error:
        found = [f"the folder cannot be listed: {error.strerror}"]
    windows = {
        name(index): manifest.windows[index]
        for index in manifest.read
        for name in (names.device_file, names.host_file)
    }
    progress.start("verify", sum(entry.bytes for entry in manifest.files.values()), "bytes")
    for name, entry in sorted(manifest.files.items()):
        try:
            with closing(StoreFile(folder, name, entry)) as file:
                progress.advance(file.header.data_start)
                found += _tensor_damages(file, manifest, windows.get(name), progress.advance)
        except StoreError as error:
            found.append(str(error))
    return found


def contradictions(
    folder: StoreFolder, manifest: Manifest, without: Collection[int] = ()
) -> Iterator[str]:
    """Tables that do not fit the manifest. Reads the tables, not the codes.

    Args:
        without: windows that are not looked at.
    Raises:
        StoreError: a table is damaged.
    """
    with closing(StoreFile(folder, names.DOCUMENT, manifest.files[names.DOCUMENT])) as file:
        yield from _document_faults(file, manifest)
    for index in sorted({*manifest.read} - {*without}):
        window = manifest.windows[index]
        name = names.device_file(index)
        with closing(StoreFile(folder, name, manifest.files[name])) as file:
            yield from _span_faults(file, window)
        name = names.host_file(index)
        with closing(StoreFile(folder, name, manifest.files[name])) as file:
            section = HostSection(file, window.spans)
            for layer in section.layers:
                yield from _layer_faults(section, layer, manifest)
        if manifest.has_states:
            name = names.states_file(index)
            with closing(StoreFile(folder, name, manifest.files[name])) as file:
                yield from _state_faults(file, manifest)


def _tensor_damages(
    file: StoreFile, manifest: Manifest, window: WindowEntry | None, advance: Callable[[int], None]
) -> Iterator[str]:
    """Every damage of one file whose header is sound; reads each byte of codes once."""
    if window is None or not file.name.endswith(HOST_ENDING):
        broken = [name for name in file.header.tensors if file.is_damaged(name, advance)]
        yield from (f"{file.name} is damaged in tensor {name!r}" for name in broken)
        if not broken and file.name == names.DOCUMENT:
            yield from _document_faults(file, manifest)
        if not broken and window is not None:
            yield from _span_faults(file, window)
        if not broken and file.name.endswith(STATES_ENDING):
            yield from _state_faults(file, manifest)
        return
    section = HostSection(file, window.spans)
    for layer in section.layers:
        try:
            yield from _layer_faults(section, layer, manifest)
            yield from _code_damages(file, section, layer, advance)
        except StoreError as error:
            yield str(error)


def _code_damages(
    file: StoreFile, section: HostSection, layer: int, advance: Callable[[int], None]
) -> Iterator[str]:
    """Check the codes of one layer as a whole and record by record, in one pass."""
    bounds, sums = section.tables(layer)
    whole = xxhash.xxh3_128()
    sound = True
    span = 0
    while span < section.spans:
        reach = int(np.searchsorted(bounds, bounds[span] + BLOCK, side="right")) - 1
        last = max(span + 1, reach)
        data = file.read(int(bounds[span]), int(bounds[last])).data
        whole.update(data)
        advance(len(data))
        for index in range(span, last):
            record = data[bounds[index] - bounds[span] : bounds[index + 1] - bounds[span]]
            if span_checksum(record) != int(sums[index]):
                sound = False
                yield f"{file.name} is damaged in layer {layer}, span {index}"
        span = last
    if sound and whole.hexdigest() != file.entry.tensors[f"{layer}.codes"]:
        yield f"{file.name} is damaged in tensor '{layer}.codes'"


def _layer_faults(section: HostSection, layer: int, manifest: Manifest) -> Iterator[str]:
    expected = section.spans * manifest.model.kv_heads + 1
    found = section.offset_count(layer)
    if found != expected:
        yield (
            f"{section.name}: layer {layer} has {found} offsets where "
            f"{section.spans} spans of {manifest.model.kv_heads} KV heads have {expected}"
        )
    if layer not in manifest.model.memory_layers:
        yield f"{section.name}: layer {layer}, which is none with full attention of this model"


def _state_faults(file: StoreFile, manifest: Manifest) -> Iterator[str]:
    """Layers whose state is missing, and states of layers that keep none."""
    kept = {name.partition(".")[0] for name in file.header.tensors}
    for layer in sorted(kept ^ set(map(str, manifest.model.state_layers))):
        yield f"{file.name}: the state of layer {layer[:20]!r} is " + (
            "one too many" if layer in kept else "missing"
        )


def _document_faults(file: StoreFile, manifest: Manifest) -> Iterator[str]:
    try:
        read_tables(file, manifest)
    except StoreError as error:
        yield str(error)
    for index in range(len(manifest.sources)):
        try:
            read_text(file, manifest, index)
        except StoreError as error:
            yield str(error)


def _span_faults(file: StoreFile, window: WindowEntry) -> Iterator[str]:
    """What is wrong with the span table of a device section; a method need not have one."""
    infos = {name: file.info(name) for name in SPAN_TABLE if name in file.header.tensors}
    if not infos:
        return
    try:
        tables = {name: to_numpy(file.tensor_bytes(name), info) for name, info in infos.items()}
    except ValueError as error:
        yield f"{file.name}: {error}"
        return
    fault = span_table_fault(tables, window.end - window.start, window.spans)
    if fault:
        yield f"{file.name} has {fault}"
