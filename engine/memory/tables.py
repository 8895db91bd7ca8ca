"""The span tables of all windows of a store, joined, and the tensors that came with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine.compression.encode import pinned_tokens
from engine.compression.params import Tensors
from engine.compression.span_tables import DeviceLayer
from engine.compression.stored_layers import by_layer
from engine.store.records import SPAN_TABLE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.store.manifest import Manifest


@dataclass(frozen=True)
class Tables:
    """Where the spans of all windows are, and what the device sections hold of each layer.

    bounds [S + 1] document tokens, kind [S], window [S], pinned [P] document tokens of the
    stored exact rows, pinned_span [P] their spans. layers: per layer that of every window.
    """

    bounds: Tensor
    kind: Tensor
    window: Tensor
    surprisal: Tensor
    pinned: Tensor
    pinned_span: Tensor
    layers: list[list[DeviceLayer]]

    @classmethod
    def of(cls, manifest: Manifest, sections: list[Tensors], key_names: Sequence[str]) -> Tables:
        """From device sections that were checked. key_names: see `Router.key_names`."""
        bounds, kinds, windows, surprisal, pinned = (
            [torch.zeros(1, dtype=torch.int64)],
            [],
            [],
            [],
            [],
        )
        for index, (entry, section) in enumerate(zip(manifest.windows, sections, strict=True)):
            local = section["bounds"].long()
            bounds.append(local[1:] + entry.start)
            kinds.append(section["kind"])
            windows.append(torch.full((entry.spans,), index))
            surprisal.append(section["surprisal"].float())
            pinned.append(pinned_tokens(local, section["kind"]) + entry.start)
        windows_of_layers = [
            _layers(section, manifest.model.layers, key_names) for section in sections
        ]
        joined = torch.cat(bounds)
        tokens = torch.cat(pinned)
        return cls(
            joined,
            torch.cat(kinds),
            torch.cat(windows),
            torch.cat(surprisal),
            tokens,
            torch.searchsorted(joined, tokens, right=True) - 1,
            list(map(list, zip(*windows_of_layers, strict=True))),
        )

    def layer(self, index: int) -> DeviceLayer:
        """One layer, all windows joined."""
        return DeviceLayer.joined(self.layers[index])

    def pinned_span_mask(self, spans: Tensor) -> Tensor:
        """Which stored exact rows belong to `spans`."""
        return torch.isin(self.pinned_span, spans)


def _layers(section: Tensors, layers: int, key_names: Sequence[str]) -> list[DeviceLayer]:
    """Every layer of a window."""
    rest = {name: tensor for name, tensor in section.items() if name not in SPAN_TABLE}
    return [DeviceLayer.of(tensors, key_names) for tensors in by_layer(rest, layers)]
