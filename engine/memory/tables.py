"""The span tables of all windows of a store, joined, and the tensors that came with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine.compression.encode import pinned_tokens
from engine.compression.params import Tensors
from engine.compression.ranges import gather_ranges
from engine.compression.span_tables import DeviceLayer
from engine.compression.stored_layers import by_layer
from engine.store.records import SPAN_TABLE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.store.manifest import Manifest


@dataclass(frozen=True)
class Tables:
    """Where the spans of all windows that are read are, and what the device sections hold of each
    layer.

    bounds [S + 1] sums of the spans' lengths, starts [S] the document token each begins at, kind
    [S], window [S], surprisal of their tokens, pinned [P] document tokens of the stored exact
    rows, pinned_span [P] their spans. layers: per layer with a memory that of every window.
    tokens: N of the document.
    """

    bounds: Tensor
    starts: Tensor
    kind: Tensor
    window: Tensor
    surprisal: Tensor
    pinned: Tensor
    pinned_span: Tensor
    layers: list[list[DeviceLayer]]
    tokens: int

    @classmethod
    def of(cls, manifest: Manifest, sections: list[Tensors], key_names: Sequence[str]) -> Tables:
        """From device sections that were checked, one for every window that is read.

        key_names: see `Router.key_names`.
        """
        lengths, starts, kinds, windows, surprisal, pinned = [], [], [], [], [], []
        for index, section in zip(manifest.read, sections, strict=True):
            entry, local = manifest.windows[index], section["bounds"].long()
            lengths.append(local.diff())
            starts.append(local[:-1] + entry.start)
            kinds.append(section["kind"])
            windows.append(torch.full((entry.spans,), index))
            surprisal.append(section["surprisal"].float())
            pinned.append(pinned_tokens(local, section["kind"]) + entry.start)
        windows_of_layers = [
            _layers(section, manifest.model.memory_layers, key_names) for section in sections
        ]
        sizes, begins, tokens = torch.cat(lengths), torch.cat(starts), torch.cat(pinned)
        return cls(
            torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]),
            begins,
            torch.cat(kinds),
            torch.cat(windows),
            torch.cat(surprisal),
            tokens,
            torch.searchsorted(begins, tokens, right=True) - 1,
            list(map(list, zip(*windows_of_layers, strict=True))),
            manifest.tokens,
        )

    def layer(self, index: int) -> DeviceLayer:
        """One layer, all windows joined."""
        return DeviceLayer.joined(self.layers[index])

    @property
    def ends(self) -> Tensor:
        """[S] the document token behind each span."""
        return self.starts + self.bounds.diff()

    def tokens_read(self) -> Tensor:
        """The document tokens of all spans, ascending."""
        return gather_ranges(self.starts, self.bounds.diff())

    def pinned_span_mask(self, spans: Tensor) -> Tensor:
        """Which stored exact rows belong to `spans`."""
        return torch.isin(self.pinned_span, spans)


def _layers(
    section: Tensors, numbers: Sequence[int], key_names: Sequence[str]
) -> list[DeviceLayer]:
    """Every layer of a window."""
    rest = {name: tensor for name, tensor in section.items() if name not in SPAN_TABLE}
    return [DeviceLayer.of(tensors, key_names) for tensors in by_layer(rest, numbers)]
