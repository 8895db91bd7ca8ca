"""The tensors of a store layer by layer, with the model's own bases among them or without."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.compression.params import LayerParams, ModelBases, Tensors, needed
from engine.compression.tensor_names import KEYS, SKETCH, SUMMARIES, VALUES, bits_of, of_layer
from engine.errors import StoreError


@dataclass(frozen=True)
class SharedLayer:
    """What a store keeps once of a layer. prefix: k, v [Hkv, P, D], of the prompt before the
    document."""

    params: LayerParams
    prefix: tuple[Tensor, Tensor]

    def tensors(self, *, with_model: bool = True) -> Tensors:
        k, v = self.prefix
        return {**self.params.tensors(with_model=with_model), "prefix_k": k, "prefix_v": v}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> SharedLayer:
        return cls(LayerParams.of(tensors), (tensors["prefix_k"], tensors["prefix_v"]))


def bit_tables(tensors: Mapping[str, Tensor]) -> Tensors:
    """The tensors of a stored layer that say how many bits components have."""
    names = map(bits_of, (KEYS, VALUES, SKETCH, SUMMARIES))
    return {name: tensors[name] for name in names if name in tensors}


def in_model_bases(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a stored layer is coded in the model's own bases."""
    return "k_order" in tensors


def lacks_bases(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a stored layer needs bases of the model that are not among its tensors."""
    return in_model_bases(tensors) and ModelBases.of(tensors) is None


def with_model_bases(tensors: Tensors, bases: ModelBases | None) -> Tensors:
    """A stored layer with the model's own bases, in its order, where it needs them.

    Raises:
        StoreError: what is stored is no order of the columns.
    """
    if not lacks_bases(tensors):
        return tensors
    found = dict(tensors)
    for name, basis in ((KEYS, needed(bases).keys), (VALUES, needed(bases).values)):
        try:
            found |= basis.in_order(tensors.get(f"{name}_order", torch.empty(0))).tensors(name)
        except ValueError as error:
            raise StoreError(f"tensor '{name}_order' is {error}: ingest again") from None
    return found


def by_layer(tensors: Mapping[str, Tensor], numbers: Iterable[int]) -> list[Tensors]:
    """Tensors `{layer}.{name}` by layer, in the order of the layers' numbers.

    Raises:
        StoreError: one belongs to no layer of these numbers.
    """
    found: dict[str, Tensors] = {str(number): {} for number in numbers}
    for name, tensor in tensors.items():
        number, _, rest = name.partition(".")
        if number not in found or not rest:
            raise StoreError(f"the store holds {name[:80]!r}, which no layer has: ingest again")
        found[number][rest] = tensor
    return list(found.values())


def of_layers(numbers: Iterable[int], layers: Iterable[Mapping[str, Tensor]]) -> Tensors:
    """The other way: tensors of layers with these numbers as `{layer}.{name}`."""
    pairs = zip(numbers, layers, strict=True)
    return {of_layer(i, name): t for i, layer in pairs for name, t in layer.items()}
