"""What a store claims about itself: `manifest.json`, torch-free.

Frozen records of everything a reader must know before it touches a tensor, with a strict way to and
from the bytes of the file. Whatever a hostile manifest says, the outcome is a Manifest that keeps
every promise written here or one StoreError of one line.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass, field
from typing import Any

from engine.errors import FormatError, StoreDamagedError, StoreError
from engine.store.container import checksum
from engine.types import FULL, HYBRID, LAYER_KINDS, ModelIdentity

FORMAT = 2
"""The newest format version that this module writes and reads; a store has the oldest that can say
what it holds, see `Manifest.format`."""

NAME = "manifest.json"
DOCUMENT = "document.safetensors"
SHARED = "shared.safetensors"
WINDOWS = "windows"

MAX_BYTES = 1 << 30
"""Longest manifest file that is read at all."""

LARGEST = 1 << 53
"""Numbers stay below this, so that every JSON reader in the world reads the same number."""

DEEPEST = 64
"""Levels of nesting that settings and prompts may have."""

_ZEROS = "0" * 32
_HEX = re.compile(r"[0-9a-f]{1,128}")
_CHECKSUM = re.compile(r"[0-9a-f]{32}")


def device_file(window: int) -> str:
    """Name of the device section of a window, relative to the store."""
    return f"{WINDOWS}/{window:05d}.device.safetensors"


def host_file(window: int) -> str:
    """Name of the host section of a window, relative to the store."""
    return f"{WINDOWS}/{window:05d}.host.safetensors"


def states_file(window: int) -> str:
    """Name of the states of a window, relative to the store."""
    return f"{WINDOWS}/{window:05d}.states.safetensors"


@dataclass(frozen=True)
class SourceEntry:
    """One source. pages: (label, first character) in order; chars: length of its text.

    sheets: of a PDF whose page labels are not just 1, 2, ..., the sheet of each page. printed: of a
    PDF that prints other numbers on its pages than their labels, the number on each page, "" where
    it is the label or not known. near: where it lay, seen from the folder that holds the store; ""
    where `path` is whole, or was all that was known. imprint: what the file says of itself beside
    its text, see `documents.Source`.
    """

    path: str
    kind: str
    sha256: str
    chars: int
    pages: tuple[tuple[str, int], ...] = ()
    notes: tuple[str, ...] = ()
    sheets: tuple[int, ...] = ()
    near: str = ""
    printed: tuple[str, ...] = ()
    imprint: dict[str, str] = field(default_factory=dict)

    def sheet(self, page: int) -> int:
        """The sheet of a page of a PDF, counted from 1; 0 where there is none."""
        if self.sheets:
            return self.sheets[page]
        label = self.pages[page][0]
        return int(label) if self.kind == "pdf" and label.isdecimal() else 0


@dataclass(frozen=True)
class WindowEntry:
    """Document tokens [start, end) read as one context, in `spans` spans and `anchors` anchors; no
    spans and no anchors while they are not read."""

    start: int
    end: int
    spans: int
    anchors: int


@dataclass(frozen=True)
class FileEntry:
    """One file. bytes: its size; tensors: xxh3_128 of each tensor's bytes; header: of its header,
    from the first byte of the file to the first byte of data."""

    bytes: int
    tensors: dict[str, str]
    header: str


@dataclass(frozen=True)
class Manifest:
    """Everything a store says about itself.

    creator: program and version. method, settings: the recipe and all its settings. dtype: of the
    model's K and V. key_space: "post-rope" when stored keys are rotated. prompt: the prefix's
    token ids and how the question follows. tokens: N of the document. window_tokens: most
    document tokens per window. context: positions of the context whose RoPE frequencies the keys
    were rotated with; 0 where these do not depend on it. files: every other file of the store, by
    name. unread: numbers of the windows that no model has read yet, ascending; a store has at least
    one that is read.
    """

    creator: str
    model: ModelIdentity
    method: str
    settings: dict[str, Any]
    dtype: str
    prompt: dict[str, Any]
    tokens: int
    tokenizer_engine: str
    window_tokens: int
    sources: tuple[SourceEntry, ...]
    windows: tuple[WindowEntry, ...]
    files: dict[str, FileEntry] = field(default_factory=dict)
    key_space: str = "post-rope"
    unread: tuple[int, ...] = ()
    context: int = 0

    @property
    def format(self) -> int:
        """The format version: 2 of a store that is partly read, or whose model has layers of other
        kinds than full attention, or caches something else than a key and a value of one width for
        each KV head, or rotates keys by the length of their context; format 1 can say none of
        these."""
        model = self.model
        return 2 if self.unread or model.layer_kinds or model.cached or self.context else 1

    @property
    def has_states(self) -> bool:
        """Whether every window that is read has the states of some layers."""
        return bool(self.model.state_layers)

    @property
    def read(self) -> tuple[int, ...]:
        """Numbers of the windows that are read, ascending."""
        return tuple(sorted(set(range(len(self.windows))) - set(self.unread)))

    @property
    def tokens_read(self) -> int:
        """Document tokens in the windows that are read."""
        return sum(self.windows[index].end - self.windows[index].start for index in self.read)

    @property
    def store_bytes(self) -> int:
        """Bytes of all files of the store, this one included."""
        return len(self.to_bytes()) + sum(entry.bytes for entry in self.files.values())

    @property
    def spans(self) -> int:
        """Spans of all windows."""
        return sum(window.spans for window in self.windows)

    @property
    def anchors(self) -> int:
        """Anchors of all windows."""
        return sum(window.anchors for window in self.windows)

    def to_json(self) -> dict[str, Any]:
        """The manifest as plain JSON values, without its checksum."""
        plain: dict[str, Any] = json.loads(_dump(asdict(self), indent=None))
        plain["format"] = self.format
        for name in ("unread", "context"):
            if not plain[name]:
                del plain[name]
        for name in ("behaviour", "layer_kinds", "cached", "quantized"):
            if not plain["model"][name]:
                del plain["model"][name]
        for source in plain["sources"]:
            for name in ("sheets", "printed", "near", "imprint"):
                if not source[name]:
                    del source[name]
        return plain

    def to_bytes(self) -> bytes:
        """The bytes of `manifest.json`: sorted keys, ASCII, its own checksum within.

        Raises:
            StoreError: a value that JSON or this format cannot hold.
        """
        plain = self.to_json()
        from_json(plain)
        blank = _dump({**plain, "checksum": _ZEROS}).encode("ascii") + b"\n"
        return blank.replace(_member(_ZEROS), _member(checksum(blank)), 1)


def from_bytes(data: bytes) -> Manifest:
    """Read the bytes of `manifest.json`.

    Raises:
        StoreError: not JSON, of a newer format, a byte of it changed, or a claim that cannot be.
    """
    try:
        plain = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        raise StoreDamagedError("the manifest is damaged (not JSON)") from None
    if not isinstance(plain, dict):
        raise StoreDamagedError("the manifest is damaged (not a table)")
    _check_format(plain)
    stated = plain.pop("checksum", None)
    if not isinstance(stated, str) or not _CHECKSUM.fullmatch(stated):
        raise StoreDamagedError("the manifest is damaged (no checksum)")
    member = _member(stated)
    if data.count(member) != 1 or checksum(data.replace(member, _member(_ZEROS))) != stated:
        raise StoreDamagedError("the manifest is damaged (its checksum differs)")
    return from_json(plain)


def from_json(plain: object) -> Manifest:
    """Build a Manifest from plain JSON values; keys it does not know are passed over.

    Raises:
        StoreError: naming the first claim that is missing, of the wrong type or impossible.
    """
    top = _Table(plain, "")
    _check_format(top.values)
    manifest = Manifest(
        creator=top.text("creator"),
        model=_model(top.table("model")),
        method=top.text("method"),
        settings=top.free("settings"),
        dtype=top.text("dtype"),
        key_space=top.text("key_space"),
        prompt=top.free("prompt"),
        tokens=top.count("tokens"),
        tokenizer_engine=top.text("tokenizer_engine"),
        window_tokens=top.count("window_tokens"),
        sources=tuple(_source(entry) for entry in top.tables("sources")),
        windows=tuple(_window(entry) for entry in top.tables("windows")),
        files={name: _file(entry) for name, entry in top.table("files").named_tables()},
        unread=_unread(top),
        context=top.count("context", least=1) if "context" in top.values else 0,
    )
    if top.values["format"] != manifest.format:
        raise _damaged("format")
    _check_windows(manifest)
    _check_files(manifest)
    return manifest


def _check_format(plain: dict[str, Any]) -> None:
    version = plain.get("format")
    if type(version) is not int or version < 1:
        raise StoreDamagedError("the manifest is damaged (no format version)")
    if version > FORMAT:
        raise FormatError(
            f"the store has format {version}, this sekv reads formats 1 to {FORMAT}: "
            "open it with a newer sekv"
        )


def _check_windows(manifest: Manifest) -> None:
    """Windows follow each other without gaps and end with the document."""
    reached = 0
    for index, window in enumerate(manifest.windows):
        if not (window.start <= reached < window.end) or (index == 0 and window.start):
            raise _damaged(f"windows[{index}]")
        reached = window.end
    if not manifest.windows or reached != manifest.tokens:
        raise _damaged("windows")
    unread = manifest.unread
    if list(unread) != sorted(set(unread)) or len(unread) >= len(manifest.windows):
        raise _damaged("unread")
    for index in unread:
        if index >= len(manifest.windows):
            raise _damaged("unread")
        if manifest.windows[index].spans or manifest.windows[index].anchors:
            raise _damaged(f"windows[{index}]")


def _check_files(manifest: Manifest) -> None:
    """Exactly the files of the windows that are read: no other path can ever be named."""
    expected = {DOCUMENT, SHARED}
    for index in manifest.read:
        expected |= {device_file(index), host_file(index)}
        if manifest.has_states:
            expected.add(states_file(index))
    if set(manifest.files) != expected:
        odd = sorted(set(manifest.files) ^ expected)[0]
        raise _damaged(f"files, at {odd[:80]!r}")


def _unread(table: _Table) -> tuple[int, ...]:
    """Numbers of windows; format 1 knows none, and a key of this name there means nothing."""
    if table.values["format"] < 2 or "unread" not in table.values:
        return ()
    numbers = table.items("unread")
    if not all(type(number) is int and 0 <= number < LARGEST for number in numbers):
        raise _damaged("unread")
    return tuple(numbers)


def _model(table: _Table) -> ModelIdentity:
    return ModelIdentity(
        id=table.text("id"),
        revision=table.text("revision"),
        architecture=table.text("architecture"),
        weights=table.hex("weights"),
        layers=table.count("layers", least=1),
        heads=table.count("heads", least=1),
        kv_heads=table.count("kv_heads", least=1),
        head_dim=table.count("head_dim", least=1),
        rope=table.free("rope"),
        tokenizer=table.hex("tokenizer"),
        transformers=table.text("transformers"),
        behaviour=_behaviour(table),
        layer_kinds=_layer_kinds(table),
        cached=table.count("cached", least=1) if "cached" in table.values else 0,
        quantized=table.text("quantized") if "quantized" in table.values else "",
    )


def _behaviour(table: _Table) -> tuple[float, ...]:
    if "behaviour" not in table.values:
        return ()
    values = table.items("behaviour")
    if not all(type(value) in (int, float) and math.isfinite(value) for value in values):
        raise _damaged(f"{table.place}behaviour")
    return tuple(float(value) for value in values)


def _layer_kinds(table: _Table) -> tuple[str, ...]:
    """The kind of every layer, of which some have full attention and some have not."""
    if "layer_kinds" not in table.values:
        return ()
    kinds = table.items("layer_kinds")
    known = all(isinstance(kind, str) and kind in LAYER_KINDS for kind in kinds)
    if not known or len(kinds) != table.count("layers") or set(kinds) == {FULL}:
        raise _damaged(f"{table.place}layer_kinds")
    if not {FULL, HYBRID} & set(kinds):
        raise _damaged(f"{table.place}layer_kinds")
    return tuple(kinds)


def _source(table: _Table) -> SourceEntry:
    chars = table.count("chars")
    pages: list[tuple[str, int]] = []
    for page in table.items("pages"):
        if not isinstance(page, list) or len(page) != 2 or not isinstance(page[0], str):
            raise _damaged(f"{table.place}pages")
        if type(page[1]) is not int or not (pages[-1][1] if pages else 0) <= page[1] <= chars:
            raise _damaged(f"{table.place}pages")
        pages.append((page[0], page[1]))
    notes = table.items("notes")
    if not all(isinstance(note, str) for note in notes):
        raise _damaged(f"{table.place}notes")
    sheets = tuple(table.items("sheets")) if "sheets" in table.values else ()
    if sheets and len(sheets) != len(pages):
        raise _damaged(f"{table.place}sheets")
    if not all(type(sheet) is int and 0 < sheet < 2**53 for sheet in sheets):
        raise _damaged(f"{table.place}sheets")
    printed = tuple(table.items("printed")) if "printed" in table.values else ()
    if printed and len(printed) != len(pages):
        raise _damaged(f"{table.place}printed")
    if not all(isinstance(number, str) for number in printed):
        raise _damaged(f"{table.place}printed")
    imprint = table.table("imprint").values if "imprint" in table.values else {}
    if not all(isinstance(value, str) for value in imprint.values()):
        raise _damaged(f"{table.place}imprint")
    return SourceEntry(
        path=table.text("path"),
        kind=table.text("kind"),
        sha256=table.hex("sha256"),
        chars=chars,
        pages=tuple(pages),
        notes=tuple(notes),
        sheets=sheets,
        near=table.text("near") if "near" in table.values else "",
        printed=printed,
        imprint=imprint,
    )


def _window(table: _Table) -> WindowEntry:
    start, end = table.count("start"), table.count("end")
    entry = WindowEntry(start, end, table.count("spans"), table.count("anchors"))
    if end <= start or entry.spans > end - start or entry.anchors > end - start:
        raise _damaged(table.place.rstrip("."))
    return entry


def _file(table: _Table) -> FileEntry:
    sums = table.table("tensors").values
    for value in sums.values():
        if not isinstance(value, str) or not _CHECKSUM.fullmatch(value):
            raise _damaged(f"{table.place}tensors")
    header = table.text("header")
    if not _CHECKSUM.fullmatch(header):
        raise _damaged(f"{table.place}header")
    return FileEntry(table.count("bytes"), dict(sums), header)


class _Table:
    """A JSON object whose members are taken out one by one, each as the type it must have."""

    def __init__(self, values: object, place: str) -> None:
        if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
            raise _damaged(place.rstrip(".") or "not a table")
        self.values: dict[str, Any] = values
        self.place = place

    def text(self, name: str) -> str:
        value = self.values.get(name)
        if not isinstance(value, str):
            raise _damaged(self.place + name)
        return value

    def hex(self, name: str) -> str:
        value = self.text(name)
        if value and not _HEX.fullmatch(value):
            raise _damaged(self.place + name)
        return value

    def count(self, name: str, least: int = 0) -> int:
        value = self.values.get(name)
        if type(value) is not int or not least <= value < LARGEST:
            raise _damaged(self.place + name)
        return value

    def items(self, name: str) -> list[Any]:
        value = self.values.get(name)
        if not isinstance(value, list):
            raise _damaged(self.place + name)
        return value

    def table(self, name: str) -> _Table:
        return _Table(self.values.get(name), f"{self.place}{name}.")

    def tables(self, name: str) -> list[_Table]:
        place = self.place + name
        return [_Table(item, f"{place}[{i}].") for i, item in enumerate(self.items(name))]

    def named_tables(self) -> list[tuple[str, _Table]]:
        return [(name, self.table(name)) for name in self.values]

    def free(self, name: str) -> dict[str, Any]:
        """A table whose members are somebody else's: any finite JSON of few levels."""
        value = self.table(name).values
        if not _is_plain(value):
            raise _damaged(self.place + name)
        return value


def _is_plain(value: object, levels: int = DEEPEST) -> bool:
    """Whether a value is finite JSON, nested no deeper than this."""
    if isinstance(value, dict):
        named = all(isinstance(key, str) for key in value)
        return levels > 0 and named and all(_is_plain(item, levels - 1) for item in value.values())
    if isinstance(value, list):
        return levels > 0 and all(_is_plain(item, levels - 1) for item in value)
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, str | int)


def _damaged(place: str) -> StoreDamagedError:
    return StoreDamagedError(f"the manifest is damaged (wrong or missing: {place[:120]})")


def _member(value: str) -> bytes:
    """The line of the manifest's own checksum: nested members are indented deeper."""
    return f'\n "checksum": "{value}"'.encode("ascii")


def _dump(plain: dict[str, Any], indent: int | None = 1) -> str:
    try:
        return json.dumps(plain, sort_keys=True, indent=indent, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise StoreError(f"the manifest cannot be written as JSON: {error}") from None
