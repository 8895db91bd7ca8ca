"""What becomes of every architecture of the installed transformers that continues text. Not a test.

`python tests/support/architectures.py` walks over all of them, some minutes, and writes what it
finds to `tests/models/architectures.json`; tests and docs/models.md are held against that. With the
names of some it walks over these again.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
)

from engine.errors import ReaderError
from engine.ingest import parity
from engine.models.load import check_supported
from engine.models.reader import Reader, load_reader
from tiny_architectures import auto_class, configuration, save

FOUND = Path(__file__).parents[1] / "models" / "architectures.json"
SERVED, REFUSED, UNTESTED = "served", "refused", "untested"
KINDS = tuple(sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES}))


LOADING = "cannot load model"
"""How what the library itself says begins, of a tiny checkpoint that its code cannot run."""


@dataclass(frozen=True)
class Outcome:
    """What became of an architecture. difference: in a logit, of a tiny checkpoint whose logits
    went up to `largest`. detail: why it is refused, or could not be tested."""

    outcome: str
    detail: str = ""
    difference: float | None = None
    largest: float | None = None


def by_configuration(kind: str) -> str:
    """Why an architecture is refused by its configuration alone, "" where it is let in: by a small
    one, or the usual one where no small one is known."""
    try:
        config = configuration(kind)
    except Exception:
        try:
            config = CONFIG_MAPPING[kind]()
        except Exception:
            return ""
    try:
        check_supported(config)
    except ReaderError as error:
        return str(error)
    return ""


def walk(kind: str, folder: Path) -> Outcome:
    """Save a tiny checkpoint of an architecture into a folder, load it and check its logits."""
    refused = by_configuration(kind)
    if refused:
        return Outcome(REFUSED, refused)
    try:
        save(configuration(kind), folder)
    except Exception as error:  # whatever the library says to sizes that it was not made for
        return Outcome(UNTESTED, f"no tiny checkpoint: {_line(error)}")
    try:
        reader = load_reader(str(folder), device="cpu")
        found = parity.check(reader)
    except ReaderError as error:
        said = str(error).replace(str(folder), kind)
        return Outcome(UNTESTED if said.startswith(LOADING) else REFUSED, said)
    if not found.passed:
        return Outcome(REFUSED, found.reason)
    difference = max(found.difference, _from_whole(reader, folder))
    return Outcome(SERVED, "", float(f"{difference:.1e}"), float(f"{found.largest:.1e}"))


def _from_whole(reader: Reader, folder: Path) -> float:
    """How far the logits of what was loaded are from those of the whole checkpoint, without any
    memory; of a text model they are the same thing."""
    whole = auto_class(AutoConfig.from_pretrained(folder)).from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    ids = torch.tensor([reader.probe_ids])
    with torch.inference_mode():
        apart = whole(input_ids=ids).logits - reader.model(input_ids=ids).logits
    return float(apart.abs().max())


def known() -> dict[str, Outcome]:
    """What the last walk found."""
    body = json.loads(FOUND.read_text(encoding="utf-8"))
    return {kind: Outcome(**entry) for kind, entry in body["architectures"].items()}


def release() -> str:
    """Of transformers, at the last walk."""
    return str(json.loads(FOUND.read_text(encoding="utf-8"))["transformers"])


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:160]


def main(asked: Sequence[str]) -> None:
    found = {kind: asdict(before) for kind, before in known().items() if kind in KINDS and asked}
    for kind in asked or KINDS:
        with tempfile.TemporaryDirectory() as folder:
            found[kind] = asdict(walk(kind, Path(folder)))
        print(kind, found[kind], file=sys.stderr, flush=True)
        body = {
            "transformers": transformers.__version__,
            "architectures": dict(sorted(found.items())),
        }
        FOUND.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
