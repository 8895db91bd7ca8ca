"""State that all layers of a memory share: document, question, and counts of what is resident."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine.attention.copies import Copies, InPlace, OnStream
from engine.attention.coverage import Coverage
from engine.attention.step import Watcher
from engine.compression.selectors import Transcript

if TYPE_CHECKING:
    from engine.attention.layer import LayerMemory


@dataclass
class Shared:
    """What all layers know of the document. bounds: int64 [S + 1] sums of the spans' lengths.
    windows: how many the document has. starts: [S] the document token each span begins at, and
    tokens: N of the document; where all its windows are read both follow from `bounds`.

    votes: float [L, H, W] while the rows of a question vote for windows, else None; L counts all
    layers of the model. layers: those with a memory, in order. peak_bytes: the most that was
    resident at once. working_bytes: the most that one layer took beside it for one forward.
    recomputed_tokens: of the document, that the model read once more while it answered.
    reserved: bytes per layer that the turns of a conversation take from the room to zoom.
    width: multiple of the budget that is allowed now; above 1 while a step is done again.
    coverage: since the question was asked.
    transcript: the question that is being answered, and the answer so far.
    estimates: whether watchers want what the router estimates even where nothing is to be chosen.
    question_tokens: of the question that is being answered; the turns before it are none of them.
    asking: number of the layer whose queries are attended with now; it may look at the memory of
    another one. copies: to every device that a layer is on.
    """

    bounds: Tensor
    windows: int
    watchers: list[Watcher] = field(default_factory=list)
    votes: Tensor | None = None
    layers: list[LayerMemory] = field(default_factory=list)
    peak_bytes: int = 0
    working_bytes: int = 0
    recomputed_tokens: int = 0
    reserved: int = 0
    width: float = 1.0
    coverage: Coverage = field(default_factory=Coverage)
    transcript: Transcript = field(default_factory=Transcript)
    estimates: bool = True
    question_tokens: int = 1
    asking: int = -1
    starts: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    tokens: int = 0
    copies: dict[torch.device, Copies] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.spans = len(self.bounds) - 1
        if not self.tokens:
            self.starts, self.tokens = self.bounds[:-1], int(self.bounds[-1])

    def copies_to(self, device: torch.device) -> Copies:
        """One for all layers on a device."""
        if device not in self.copies:
            self.copies[device] = OnStream(device) if device.type == "cuda" else InPlace()
        return self.copies[device]

    @property
    def device_bytes(self) -> int:
        """Bytes of all layers on their devices now."""
        return sum(layer.device_bytes for layer in self.layers)

    def note_bytes(self) -> None:
        """Remember the most that was ever resident at once."""
        self.peak_bytes = max(self.peak_bytes, self.device_bytes)
