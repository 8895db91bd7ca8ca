"""CompressKV's retrieval heads and layer errors, measured once per model and kept beside it.

A JSON file, tied to the weights it was measured on; that of the default model ships with this tool.
How it is measured: `lab.train.heads`.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from engine.compression.methods import Method
from engine.compression.params import LayerCalibration
from engine.errors import ReaderError
from engine.store import disk
from engine.types import ModelIdentity

FORMAT = "sekv-heads 1"
NAME = "heads.json"
SHIPPED = Path(__file__).parent / "heads" / "compresskv"


@dataclass(frozen=True)
class Heads:
    """One model's calibration.

    weights: fingerprint. heads: per layer the query heads that look at an answer while it is
    said, best first. scores: per layer and query head, the mean attention to the answer.
    layer_share: what each layer's output loses by compression, as shares of one.
    made: how, for people.
    """

    model: str
    weights: str
    heads: list[list[int]]
    scores: list[list[float]]
    layer_share: list[float]
    made: dict[str, Any]

    def by_layer(self) -> list[LayerCalibration]:
        """Each layer's part, the shares with a mean of one."""
        layers = len(self.heads)
        return [
            LayerCalibration(
                torch.tensor(heads, dtype=torch.int32),
                torch.tensor([share * layers], dtype=torch.float32),
            )
            for heads, share in zip(self.heads, self.layer_share, strict=True)
        ]

    def save(self, path: Path) -> None:
        body = {"format": FORMAT, **asdict(self)}
        disk.put(path, (json.dumps(body, indent=1) + "\n").encode())

    @classmethod
    def load(cls, path: Path, identity: ModelIdentity) -> Heads:
        """The calibration in a file.

        Raises:
            ReaderError: not such a file, or another model's.
        """
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
            if body.pop("format") != FORMAT:
                raise ValueError(f"it is not of format '{FORMAT}'")
            found = cls(**body)
            shapes = len(found.heads), len(found.scores), len(found.layer_share)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ReaderError(f"{path}: no calibration of retrieval heads ({error})") from error
        if found.weights != identity.weights:
            raise ReaderError(
                f"{path} was calibrated on other weights ({found.model}); run: sekv train heads"
            )
        if set(shapes) != {identity.layers} or not all(
            0 <= head < identity.heads for layer in found.heads for head in layer
        ):
            raise ReaderError(
                f"{path}: heads that {identity.id} does not have; run: sekv train heads"
            )
        return found


def needed(recipe: Method, folder: Path, file: str, identity: ModelIdentity) -> Heads | None:
    """The calibration that a method needs, or None.

    Args:
        folder: the model's own.  file: "" for the one in the model's folder, else what ships.
    Raises:
        ReaderError: there is none.
    """
    if not recipe.needs_calibration:
        return None
    path = Path(file) if file else folder / NAME
    if not path.is_file():
        shipped = None if file else _shipped(identity)
        if shipped is not None:
            return shipped
        raise ReaderError(
            f"method {recipe.name} needs this model's retrieval heads and there is no {path}; "
            "make it with: sekv train heads"
        )
    return Heads.load(path, identity)


def _shipped(identity: ModelIdentity) -> Heads | None:
    """What ships with this tool of these weights, if anything."""
    for path in sorted(SHIPPED.glob("*.json")):
        with suppress(ReaderError):  # another model's
            return Heads.load(path, identity)
    return None
