"""The span tables of all windows of a store, joined, and the tensors that came with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine.compression.encode import pinned_tokens

if TYPE_CHECKING:
    from engine.store.manifest import Manifest


@dataclass(frozen=True)
class Tables:
    """Span tables of all windows joined, and the device sections they came with.

    bounds [S + 1] document tokens, kind [S], window [S], pinned [P] document tokens of the
    stored exact rows, pinned_span [P] their spans.
    """

    bounds: Tensor
    kind: Tensor
    window: Tensor
    surprisal: Tensor
    pinned: Tensor
    pinned_span: Tensor
    sections: list[dict[str, Tensor]]

    @classmethod
    def of(cls, manifest: Manifest, sections: list[dict[str, Tensor]]) -> Tables:
        """From device sections that were checked."""
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
        joined = torch.cat(bounds)
        tokens = torch.cat(pinned)
        return cls(
            joined,
            torch.cat(kinds),
            torch.cat(windows),
            torch.cat(surprisal),
            tokens,
            torch.searchsorted(joined, tokens, right=True) - 1,
            sections,
        )

    def layer(self, index: int) -> dict[str, Tensor]:
        """One layer's device tensors, all windows joined along dimension 1."""
        prefix = f"{index}."
        return {
            n.removeprefix(prefix): torch.cat([s[n] for s in self.sections], 1)
            for n in self.sections[0]
            if n.startswith(prefix) and not n.endswith(".error.s")  # said to people alone
        }

    def pinned_span_mask(self, spans: Tensor) -> Tensor:
        """Which stored exact rows belong to `spans`."""
        return torch.isin(self.pinned_span, spans)
