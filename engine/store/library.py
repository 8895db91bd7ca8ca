"""Stores from the outside: which there are, whether they fit a model, whether sources changed.

Questions that the manifest alone answers. torch-free.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import ObjectMissingError, StoreError
from engine.object_storage import Address, ObjectUrl, address, bucket, is_url
from engine.store.folders import begun_below, looks_like_a_store, stamps, stores_below
from engine.store.manifest import NAME
from engine.store.reader import Store

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from engine.store.manifest import Manifest, SourceEntry
    from engine.types import ModelIdentity

SAME_BEHAVIOUR = {"float32": 0.02, "float16": 0.2, "bfloat16": 0.2}
"""Nats by which two readings of the probe may differ, on average over its tokens, where the coarser
of both computed in this dtype: several times what its rounding costs."""


@dataclass(frozen=True)
class StoreSummary:
    """One line of `sekv list`. bytes: of all files. problem: "" or why the store cannot be read.
    tokens_read, windows_read: how much of it the model has read; all but of a partly read store.
    changed: when it got its present content, in UTC (ISO 8601); "" where that is not known.
    """

    path: str
    model: str
    method: str
    tokens: int
    windows: int
    spans: int
    bytes: int
    sources: tuple[str, ...]
    problem: str = ""
    tokens_read: int = 0
    windows_read: int = 0
    changed: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def list_stores(folder: Address) -> list[StoreSummary]:
    """The stores of a folder at any depth, or the one store that `folder` is, by name; those that
    cannot be read say why, and so do those that are being made.

    Raises:
        StoreError: there is no such folder.
        ObjectStorageError: the object store cannot be reached or refuses.
    """
    if isinstance(folder, ObjectUrl):
        if folder.name.endswith(".sekv"):
            return [_summary(folder)]
        return [_summary(folder / name) for name in sorted(stamps(folder))]
    if looks_like_a_store(folder):
        return [_summary(folder)]
    try:
        os.scandir(folder).close()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise StoreError(f"cannot list {folder}: {reason}") from None
    return [_summary(path) for path in sorted({*stores_below(folder), *begun_below(folder)})]


def sources_named(paths: Sequence[str], name: str) -> list[int]:
    """The numbers of the sources that a name means: it is their path, else the end of it."""
    found = [at for at, path in enumerate(paths) if path == name]
    return found or [at for at, path in enumerate(paths) if path.endswith(f"/{name}")]


def check_sources(manifest: Manifest, store: Address) -> list[str]:
    """One line per source that is not what was read, or is not found.

    A source is looked for where it was read, wherever this is asked from. A file that merely has
    its name elsewhere is never taken for it: there only the right content counts. Of a store in an
    object store nobody knows where the files were that it was made from; those are left out.

    Args:
        store: the store's own path or URL.
    Raises:
        ObjectStorageError: the object store of a source cannot be reached or refuses.
    """
    found: list[str] = []
    for source in manifest.sources:
        if source.path == "-" or source.kind == "stdin" or not source.sha256:
            continue
        if is_url(source.path):
            found += _check_object(source)
            continue
        if isinstance(store, ObjectUrl):
            continue
        path, near = Path(source.path), source.near
        beside = Path(os.path.realpath(store)).parent
        places = [place_of(source.path, near, store)]
        if not path.is_absolute():
            places.append(beside / path.name)
            if not near:  # a store made before it was told where its sources lie
                places.append(path)
        digests = [sha256_of(place) for place in places]
        if source.sha256 in digests:
            continue
        kept = "the store still holds its text"
        where = os.path.normpath(places[0])
        if not near and not path.is_absolute():
            found.append(f"{path} is not found beside the store; {kept}")
        elif not digests[0]:
            moved = ", or the store was moved away from it" if near else ""
            found.append(f"{path} is no longer there ({where}){moved}; {kept}")
        elif near:
            found.append(
                f"{path} ({where}) is not what was read: it changed since, or the store was moved "
                "away from it; ingest again to read it anew"
            )
        else:
            found.append(f"{path} changed since it was read: ingest again to read it anew")
    return found


def place_of(path: str, near: str, store: Path) -> Path:
    """Where a source lies by what the store at this path says of it, see `SourceEntry`."""
    return Path(os.path.realpath(store)).parent / (near or path)


def compare_identity(stored: ModelIdentity, other: ModelIdentity, dtypes: tuple[str, str]) -> str:
    """Why `other` cannot use a store made with `stored`, in one line naming both; "" if it can.

    The names and revisions may differ: the weights' fingerprint decides. So may the transformers
    release, as long as it computes the same from fixed tokens; where a store does not say what it
    computed, the major numbers must agree.

    Args:
        dtypes: what each of them computes in.
    """
    checks = (
        ("weights", stored.weights, other.weights),
        ("a tokenizer", stored.tokenizer, other.tokenizer),
        ("the architecture", stored.architecture, other.architecture),
        ("a shape", _shape(stored), _shape(other)),
        ("rope settings", stored.rope, other.rope),
        ("transformers", *_releases(stored, other)),
    )
    for what, ours, theirs in checks:
        if ours != theirs:
            return (
                f"the store was made by {_name(stored)} with {what} {_short(ours)}, "
                f"{_name(other)} has {_short(theirs)}: "
                "name the model it was made with, or ingest again"
            )
    apart = _apart(stored.behaviour, other.behaviour)
    if apart > max(SAME_BEHAVIOUR.get(dtype, 0.0) for dtype in dtypes):
        return (
            f"the store was made by {_name(stored)} under transformers {stored.transformers}, "
            f"{_name(other)} under transformers {other.transformers} computes something else from "
            f"the same tokens ({apart:.2f} nats apart): use transformers {stored.transformers}, "
            "or ingest again"
        )
    return ""


def digest_of(source: str) -> str:
    """The SHA-256 of a source's bytes, in a file or in an object store; "" where there is none.

    Raises:
        ObjectStorageError: its object store cannot be reached or refuses.
    """
    place = address(source)
    if isinstance(place, Path):
        return sha256_of(place)
    try:
        return hashlib.sha256(bucket(place).read(place.key)[0]).hexdigest()
    except ObjectMissingError:
        return ""


def _check_object(source: SourceEntry) -> Iterator[str]:
    """What is to be said of a source in an object store, which is read for it."""
    digest = digest_of(source.path)
    if not digest:
        yield f"{source.path} is no longer there; the store still holds its text"
    elif digest != source.sha256:
        yield f"{source.path} changed since it was read: ingest again to read it anew"


def _summary(path: Address) -> StoreSummary:
    try:
        with Store.open(path) as store:
            manifest = store.manifest
            return StoreSummary(
                path=str(path),
                model=manifest.model.id,
                method=manifest.method,
                tokens=manifest.tokens,
                windows=len(manifest.windows),
                spans=manifest.spans,
                bytes=store.size(),
                sources=tuple(source.path for source in manifest.sources),
                tokens_read=manifest.tokens_read,
                windows_read=len(manifest.read),
                changed=_changed(path),
            )
    except StoreError as error:
        return StoreSummary(str(path), "", "", 0, 0, 0, 0, (), str(error))


def _changed(path: Address) -> str:
    """When the manifest of a store was written, which is written last."""
    if isinstance(path, ObjectUrl):
        written = bucket(path).head(f"{path.key}/{NAME}").changed
    else:
        written = datetime.fromtimestamp((path / NAME).stat().st_mtime, UTC)
    return written.astimezone(UTC).isoformat(timespec="seconds")


def sha256_of(path: Path) -> str:
    """The hash of a file's bytes, "" where there is no such file."""
    try:
        if not path.is_file():  # a pipe would be waited for
            return ""
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return ""


def _shape(model: ModelIdentity) -> str:
    kinds = f" {','.join(model.layer_kinds)}" if model.layer_kinds else ""
    return f"{model.layers}x{model.heads}/{model.kv_heads}x{model.head_dim}{kinds}"


def _releases(stored: ModelIdentity, other: ModelIdentity) -> tuple[str, str]:
    """What of two releases of transformers must agree: nothing where behaviour can be compared."""
    if stored.behaviour and other.behaviour:
        return "", ""
    return stored.transformers.split(".")[0], other.transformers.split(".")[0]


def _apart(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Mean distance of two readings of the probe in nats; 0 where there is nothing to compare."""
    if not one or not other:
        return 0.0
    if len(one) != len(other):
        return float("inf")
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) / len(one)


def _name(model: ModelIdentity) -> str:
    return f"{model.id}@{model.revision[:12]}" if model.revision else model.id


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
