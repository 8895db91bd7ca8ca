"""What becomes of every causal architecture of the installed transformers. Not a test itself.

`python tests/support/architectures.py` walks over all of them, some minutes, and writes what it
finds to `tests/models/architectures.json`; tests and docs/models.md are held against that.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import transformers
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from engine.errors import ReaderError
from engine.ingest import parity
from engine.models.load import check_supported
from engine.models.reader import load_reader
from tiny_architectures import configuration, save

FOUND = Path(__file__).parents[1] / "models" / "architectures.json"
SERVED, REFUSED, UNTESTED = "served", "refused", "untested"
TINY_FAILS = (ValueError, TypeError, AttributeError, LookupError, RuntimeError)
"""What a library's configuration or model may say to sizes that it was not made for."""
KINDS = tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))


@dataclass(frozen=True)
class Outcome:
    """What became of an architecture. difference: in a logit, of a tiny checkpoint whose logits
    went up to `largest`. detail: why it is refused, or could not be tested."""

    outcome: str
    detail: str = ""
    difference: float | None = None
    largest: float | None = None


def by_configuration(kind: str) -> str:
    """Why an architecture with its default configuration is refused, "" where it is let in."""
    try:
        check_supported(CONFIG_MAPPING[kind]())
    except ReaderError as error:
        return str(error)
    except (ValueError, TypeError, AttributeError) as error:
        return f"its default configuration is none: {_line(error)}"
    return ""


def walk(kind: str, folder: Path) -> Outcome:
    """Save a tiny checkpoint of an architecture into a folder, load it and check its logits."""
    refused = by_configuration(kind)
    if refused:
        return Outcome(REFUSED, refused)
    try:
        config = configuration(kind)
        if config.get_text_config() is not config:
            return Outcome(UNTESTED, "a wrapper around a text model, which is not built tiny here")
        check_supported(config)
        save(config, folder)
    except (ReaderError, *TINY_FAILS) as error:
        return Outcome(UNTESTED, f"no tiny checkpoint: {_line(error)}")
    try:
        found = parity.check(load_reader(str(folder), device="cpu"))
    except ReaderError as error:
        return Outcome(REFUSED, str(error))
    if not found.passed:
        return Outcome(REFUSED, found.reason)
    return Outcome(SERVED, "", float(f"{found.difference:.1e}"), float(f"{found.largest:.1e}"))


def known() -> dict[str, Outcome]:
    """What the last walk found."""
    body = json.loads(FOUND.read_text(encoding="utf-8"))
    return {kind: Outcome(**entry) for kind, entry in body["architectures"].items()}


def release() -> str:
    """Of transformers, at the last walk."""
    return str(json.loads(FOUND.read_text(encoding="utf-8"))["transformers"])


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:160]


def main() -> None:
    found = {}
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            found[kind] = asdict(walk(kind, Path(folder)))
        print(kind, found[kind], file=sys.stderr, flush=True)
    body = {"transformers": transformers.__version__, "architectures": found}
    FOUND.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
