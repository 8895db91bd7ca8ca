"""Stores from the outside: which there are, whether they fit a model, whether sources changed.

What it is: questions that the manifest alone answers, torch-free. What it is not: it reads no
tensor.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import StoreError
from engine.manifest import NAME
from engine.store.reader import Store

if TYPE_CHECKING:
    from engine.manifest import Manifest, ModelIdentity

_BLOCK = 1 << 20


@dataclass(frozen=True)
class StoreSummary:
    """One line of `sekv list`. bytes: of all files. problem: "" or why the store cannot be read."""

    path: str
    model: str
    method: str
    tokens: int
    windows: int
    spans: int
    bytes: int
    sources: tuple[str, ...]
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def list_stores(folder: Path) -> list[StoreSummary]:
    """The stores directly in `folder`, by name; those that cannot be read say why.

    Raises:
        StoreError: there is no such folder.
    """
    try:
        candidates = sorted(folder.iterdir())
    except OSError as error:
        raise StoreError(f"cannot list {folder}: {error.strerror}") from None
    return [_summary(path) for path in candidates if _looks_like_a_store(path)]


def check_sources(manifest: Manifest, base: Path | None = None) -> list[str]:
    """One line per source that changed or is missing since; relative paths start at `base`."""
    found = []
    for source in manifest.sources:
        if source.path == "-" or source.kind == "stdin" or not source.sha256:
            continue
        try:
            digest = _sha256((base or Path()) / source.path)
        except OSError:
            found.append(f"{source.path} is no longer there; the store still holds its text")
            continue
        if digest != source.sha256:
            found.append(f"{source.path} changed since it was read: ingest again to read it anew")
    return found


def compare_identity(stored: ModelIdentity, other: ModelIdentity) -> str:
    """Why `other` cannot use a store made with `stored`, in one line naming both; "" if it can.

    The names and revisions may differ: the weights' fingerprint decides. Of two transformers
    releases only the major numbers must agree.
    """
    checks = (
        ("weights", stored.weights, other.weights),
        ("a tokenizer", stored.tokenizer, other.tokenizer),
        ("the architecture", stored.architecture, other.architecture),
        ("a shape", _shape(stored), _shape(other)),
        ("rope settings", stored.rope, other.rope),
        ("transformers", _major(stored.transformers), _major(other.transformers)),
    )
    for what, ours, theirs in checks:
        if ours != theirs:
            return (
                f"the store was made by {_name(stored)} with {what} {_short(ours)}, "
                f"{_name(other)} has {_short(theirs)}: "
                "name the model it was made with, or ingest again"
            )
    return ""


def _summary(path: Path) -> StoreSummary:
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
            )
    except StoreError as error:
        return StoreSummary(str(path), "", "", 0, 0, 0, 0, (), str(error))


def _looks_like_a_store(path: Path) -> bool:
    if not path.is_dir() or path.name.startswith("."):
        return False
    return path.suffix == ".sekv" or (path / NAME).is_file()


def _sha256(path: Path) -> str:
    state = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            state.update(block)
    return state.hexdigest()


def _shape(model: ModelIdentity) -> str:
    return f"{model.layers}x{model.heads}/{model.kv_heads}x{model.head_dim}"


def _major(release: str) -> str:
    return release.split(".")[0]


def _name(model: ModelIdentity) -> str:
    return f"{model.id}@{model.revision[:12]}" if model.revision else model.id


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
