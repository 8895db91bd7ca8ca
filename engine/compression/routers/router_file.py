"""A trained router: one safetensors file that belongs to one model.

It holds what the training code has learnt, layer by layer, for the routers, codecs and bases that
use it. The weights in it act while a document is compressed; a store keeps what a question needs.
No training here, and no model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from engine.compression.codecs.base import Codec
from engine.compression.codecs.shared_basis import SharedBasis
from engine.compression.params import ModelBases, RankGates, Tensors, TrainedLayer, ZoomWeights
from engine.compression.routers.base import Router
from engine.compression.routers.sketch import MeanKey, Sketch
from engine.compression.routers.trained_spans import SpanZoom
from engine.compression.stored_layers import of_layers
from engine.errors import RouterError
from engine.types import ModelIdentity

NAME = "router.safetensors"
"""A file of this name in a model's folder is that model's router."""

NONE = "none"
"""Asked for in place of a file: route without training."""

REMEDY = "make it anew with `sekv train`, or route without it: --router none"

FORMAT = "sekv-router 2"
COMMON = "common"
SPAN, SKETCH = "span", "sketch"
FORMS = (SPAN, SKETCH)
"""SPAN: the published projections, thresholds and gates. SKETCH: the model's own bases, in which
the sketch of every key and the codes are kept."""


@dataclass(frozen=True)
class Owner:
    """The model that a router was trained for; a part of `ModelIdentity`."""

    id: str
    weights: str
    layers: int
    heads: int
    kv_heads: int
    head_dim: int

    @classmethod
    def of(cls, identity: ModelIdentity) -> Owner:
        return cls(**{name: getattr(identity, name) for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class TrainedRouter:
    """What was learnt. layers: what the parts of a method are given while they compress.

    fingerprint: of the file. record: how it was trained.
    """

    owner: Owner
    layers: list[TrainedLayer]
    fingerprint: str
    record: dict[str, Any]

    @property
    def forms(self) -> tuple[str, ...]:
        """The forms in the file, of `FORMS`."""
        first = self.layers[0]
        parts = ((SPAN, first.zoom), (SKETCH, first.bases))
        return tuple(form for form, part in parts if part is not None)

    def pays(self, choice: Router) -> bool:
        """Whether on held-out text it found more than the untrained router of the same bytes,
        those of bases that a document pays for among them."""
        form = SPAN if isinstance(choice, MeanKey) else SKETCH
        row = self.record.get("found", {}).get(form, {})
        return bool(row.get("trained", 0.0) > row.get("untrained", 0.0))

    def in_place_of(self, choice: Router) -> Router | None:
        """The trained router that stands for an untrained one; None where none was learnt."""
        learnt = self.layers[0].zoom
        if not isinstance(choice, MeanKey) or learnt is None:
            return None
        _, projections, rank, _ = learnt.w.shape
        return SpanZoom(self.fingerprint, learnt.tau.shape[1], projections, rank)

    def lends_to(self, codec: Codec, choice: Router) -> SharedBasis | None:
        """The codec that may use the model's own bases; None where none were learnt, or where
        sketch and codes do not share one."""
        if isinstance(codec, SharedBasis) and codec.bits < 32 and isinstance(choice, Sketch):
            return replace(codec, model=self.fingerprint) if SKETCH in self.forms else None
        return None


def save(
    path: Path,
    owner: Owner,
    layers: Sequence[TrainedLayer],
    gates: RankGates | None,
    record: dict[str, Any],
) -> None:
    """Write a router. layers: without gates, which are the same in every layer."""
    tensors = of_layers(range(len(layers)), (layer.tensors() for layer in layers))
    if gates is not None:
        tensors |= {f"{COMMON}.{name}": tensor for name, tensor in gates.tensors().items()}
    claims = {"format": FORMAT, "owner": asdict(owner), "record": record}
    path.parent.mkdir(parents=True, exist_ok=True)
    layout = torch.contiguous_format  # and each of its own memory, as the file format wants it
    own = {name: tensor.clone(memory_format=layout) for name, tensor in tensors.items()}
    put(path, own, json.dumps(claims, sort_keys=True))


def put(path: Path, tensors: Tensors, claims: str) -> None:
    """Write tensors and what they say of themselves; the name changes hands when all is on disk."""
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata={"sekv": claims})
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def load(path: Path) -> TrainedRouter:
    """Read a router file.

    Raises:
        RouterError: missing, no router, damaged, or of a newer format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            claims = json.loads((file.metadata() or {}).get("sekv", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if claims.get("format") != FORMAT:
            raise RouterError(f"{path} is no router file of this sekv (format {FORMAT}); {REMEDY}")
        owner = Owner(**claims["owner"])
        if min(owner.layers, owner.heads, owner.kv_heads, owner.head_dim) < 1:
            raise ValueError("its model has no shape")
        record = dict(claims["record"])
        layers = [TrainedLayer.of(_of_layer(tensors, index)) for index in range(owner.layers)]
    except FileNotFoundError:
        raise RouterError(f"there is no router file {path}; make one with `sekv train`") from None
    except (SafetensorError, OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise RouterError(f"{path} is no router file, or is damaged ({error}); {REMEDY}") from error
    fingerprint = xxhash.xxh3_128_hexdigest(path.read_bytes())
    router = TrainedRouter(owner, layers, fingerprint, record)
    _check_shapes(path, router)
    return router


def find(requested: str, folder: Path, identity: ModelIdentity) -> tuple[TrainedRouter | None, str]:
    """The router to use with a model, and a remark worth a line ("" for none).

    Args:
        requested: a file, `NONE`, or "" for the one in the model's own `folder`, if it fits.
    Raises:
        RouterError: the file asked for is no router, or that of another model.
    """
    if requested == NONE:
        return None, ""
    path = Path(requested) if requested else folder / NAME
    if not requested and not path.is_file():
        return None, ""
    router = load(path)
    if router.owner.weights == identity.weights:
        return router, ""
    if requested:
        raise RouterError(
            f"{path} was trained for {router.owner.id} ({router.owner.weights[:8]}), not for "
            f"{identity.id} ({identity.weights[:8]}); train one with `sekv train`"
        )
    return None, f"{path.name} beside the model is of other weights; routing without training"


def _of_layer(tensors: Tensors, layer: int) -> Tensors:
    """Those of one layer and those that all have in common, by the rest of their names."""
    found = {}
    for name, tensor in tensors.items():
        place, _, rest = name.partition(".")
        if place in (str(layer), COMMON):
            found[rest] = tensor
    return found


def _check_shapes(path: Path, router: TrainedRouter) -> None:
    """Every layer must hold what its forms need, in the shapes that the owner has."""
    for layer in router.layers:
        right = bool(router.forms)
        if SPAN in router.forms:
            right &= layer.zoom is not None and _fits_heads(layer.zoom, router.owner)
        if SKETCH in router.forms:
            right &= layer.bases is not None and _fit_rows(layer.bases, router.owner)
        if not right:
            raise RouterError(
                f"{path} is damaged: a layer's tensors are missing or misshapen; {REMEDY}"
            )


def _fits_heads(zoom: ZoomWeights, owner: Owner) -> bool:
    w, tau = (owner.kv_heads, None, None, owner.head_dim), owner.heads // owner.kv_heads
    return _shaped(zoom.w, w) and _shaped(zoom.tau, (owner.kv_heads, tau))


def _fit_rows(bases: ModelBases, owner: Owner) -> bool:
    shape = (owner.kv_heads, owner.head_dim, owner.head_dim)
    return all(
        _shaped(basis.columns, shape) and _shaped(basis.scale, shape[:2])
        for basis in (bases.keys, bases.values)
    )


def _shaped(tensor: Tensor, shape: tuple[int | None, ...]) -> bool:
    return tensor.dim() == len(shape) and all(
        want in (None, have) for want, have in zip(shape, tensor.shape, strict=True)
    )
