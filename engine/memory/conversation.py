"""Compresses old turns of a conversation like the document, and puts them behind it in memory.

A turn is read once, after the document and the turns before it. The document's method, with the
document's bases, then turns its keys and values into anchors, sketches, summaries and codes. Its
spans are routed and counted in the budget like the document's. Nothing is written to disk.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from engine.attention.layer_states import States, nbytes
from engine.attention.memory_cache import MemoryCache
from engine.attention.view import Segment, View
from engine.compression.encode import compress_layer, segment
from engine.compression.params import needed
from engine.compression.routers import two_level
from engine.compression.spans import COMPRESSED
from engine.memory.open import Memory
from engine.models import chunked
from engine.models.chunked import Stop
from engine.models.reader import Reader
from engine.types import Turn

SHARE = 0.0625
"""Share of the budget that compressed turns may take while none of them is zoomed."""

POSITIONS = 0.25
"""Share of the positions behind the document that compressed turns may take."""

MOST_HELD = 1 << 28
"""Bytes of compressed turns that are kept of other conversations than the newest."""


Retrieve = Callable[[Sequence[str], list[int], Stop | None], object]
"""Hides everything of a long document but the passages retrieved for these search texts, whose
token ids are the second argument."""


@dataclass(frozen=True)
class CompressedTurn:
    """A turn that was read. tokens: positions it takes. layers: what each keeps of it that has a
    memory. states: what the others keep of everything up to its end."""

    tokens: int
    layers: list[Segment]
    states: States

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers) + nbytes(self.states)


class Conversation:
    """The compressed turns of conversations over one memory.

    A compressed turn depends on the turns before it and on nothing else. It is cached by their text
    and reused by every conversation that begins with them.

    length: positions that prefix, document and the turns recalled last take together. shown: of
    these turns, how many are still there. window: behind which window of the document the question
    stands, of a model with layers that keep a state of one; the last one at first.
    """

    def __init__(self, reader: Reader, memory: Memory, retrieve: Retrieve):
        self._reader, self._memory, self._retrieve = reader, memory, retrieve
        self._held: OrderedDict[tuple[Turn, ...], CompressedTurn] = OrderedDict()
        self.length, self.shown = memory.length, 0
        self.window = 0 if memory.states is None else memory.states.last
        self._states: States | None = None

    @property
    def compresses(self) -> bool:
        """Whether turns can be compressed by the document's method: not where everything is exact,
        or where spans are ranked by what a window's own end looked at, or where each question may
        stand behind another window, whose states have not seen the turns before."""
        recipe = self._memory.layers[0].recipe
        return (
            (self._memory.states is None or self._memory.shared.windows == 1)
            and all(len(layer.view.spans) and not layer.full for layer in self._memory.layers)
            and not recipe.selector.static
            and not recipe.observe.rows
            and not recipe.observe.reach
        )

    def stand_behind(self, window: int) -> None:
        """Ask behind this window of the document, which has several; no turns are recalled then."""
        if self._memory.states is not None and self._memory.shared.windows > 1:
            self.window, self.length = window, self._memory.states.length(window)

    def cache(self) -> MemoryCache:
        """An empty cache behind what was recalled.

        Raises:
            StoreError: the states of other layers are damaged.
        """
        memory, text = self._memory, self._reader.tokenizer.decode
        others = None
        if memory.states is not None:
            states = memory.states.behind(self.window) if self._states is None else self._states
            others = memory.states.others(states)
        return self._reader.cache_behind(
            memory.layers, self.length, memory.shared, text=text, others=others
        )

    def recall(self, turns: Sequence[Turn], stop: Stop | None = None) -> None:
        """Put these turns, and no others, behind the document; reads those that are new.

        If they take more than `SHARE` of the budget, only the newest are shown; if positions run
        out, the conversation begins anew at a later turn.

        Raises:
            StoppedError: `stop` said so.
        """
        prompt, tokenizer = self._reader.prompt, self._reader.tokenizer
        most = POSITIONS * (self._reader.max_positions - self._memory.length)
        lengths = [len(prompt.turn(tokenizer, turn, first=not i)) for i, turn in enumerate(turns)]
        kept = tuple(turns[beginning(lengths, most) :])
        chain: list[CompressedTurn] = []
        for count in range(1, len(kept) + 1):
            if kept[:count] not in self._held:
                chunked.check(stop)
                self._show(chain)
                turn = kept[count - 1]
                ids = prompt.turn(tokenizer, turn, first=count == 1)
                self._retrieve([f"{turn.question} {turn.answer}"], ids, stop)
                self._held[kept[:count]] = self._read(ids, stop)
            self._held.move_to_end(kept[:count])
            chain.append(self._held[kept[:count]])
        self._show(chain)
        self._forget(keep=len(chain))

    def _show(self, chain: list[CompressedTurn]) -> None:
        """Let the newest turns that fit follow the document, in place of any that did."""
        layers = self._memory.layers
        left = [SHARE * min(layer.limits.cap for layer in layers)] * len(layers)
        first = len(chain)
        while first:
            sizes = (segment.device_bytes for segment in chain[first - 1].layers)
            left = [room - size for room, size in zip(left, sizes, strict=True)]
            if min(left) < 0:
                break
            first -= 1
        self.shown = len(chain) - first
        self.length = self._memory.length + sum(turn.tokens for turn in chain)
        self._states = chain[-1].states if chain else None
        for index, layer in enumerate(layers):
            layer.follow([turn.layers[index] for turn in chain[first:]])

    def _read(self, ids: list[int], stop: Stop | None) -> CompressedTurn:
        """Read a turn behind what is shown, and compress it layer by layer."""
        cache = self.cache()
        surprisal = self._reader.read_behind(ids, cache, stop)
        pieces = [self._reader.tokenizer.decode([token]) for token in ids]
        recipe = replace(self._memory.layers[0].recipe, sinks=0)
        spans = segment(recipe, surprisal, pieces, last=False)
        everything = View.of(
            torch.arange(len(spans.kind)), spans.bounds, torch.zeros_like(spans.bounds)
        )
        compressed = spans.kind == COMPRESSED
        _, rows = everything.pick(compressed)
        layers = []
        for layer, live in zip(self._memory.layers, cache.live.values(), strict=True):
            assert live.keys is not None
            assert live.values is not None
            k, v = live.keys[0].cpu(), live.values[0].cpu()
            params = layer.params.to(torch.device("cpu"))
            made = compress_layer(recipe, k, v, surprisal, spans, params)
            tables = made.device.tables
            if layer.index.has_span_level:
                tables = two_level.build(tables, params, spans.bounds)
            tables = tables.pick(rows, compressed)
            exact = needed(made.device.exact)
            layers.append(Segment(spans.bounds, compressed, exact, tables, made.records))
        return CompressedTurn(len(ids), layers, cache.states())

    def _forget(self, keep: int) -> None:
        """Drop what was not recalled for longest until the others take no more than they may."""
        others = [turn.nbytes for turn in self._held.values()][: len(self._held) - keep]
        while sum(others) > MOST_HELD:
            self._held.popitem(last=False)
            del others[0]


def beginning(lengths: Sequence[int], most: float) -> int:
    """The turn a conversation begins at, so that its turns take at most `most` tokens.

    Where they would take more it moves on until they take half of that: turns keep their
    positions, so that those behind the new beginning are read again, which must be rare.
    """
    first = total = 0
    for length in lengths:
        total += length
        if total > most:
            while total > most / 2:
                total -= lengths[first]
                first += 1
    return first
