"""A document read by the model once, for every method that compresses it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from engine.compression.observation import Observe
from engine.models.reader import NOTHING, Reader
from engine.models.window_chunk import Chunk

if TYPE_CHECKING:
    from torch import Tensor

    from engine.compression.methods import Method

Made = TypeVar("Made")


class ReadOnce(Reader):
    """A reader that remembers the last document's chunks, so that every method gets the same ones
    and none waits for them again; what any method observes is observed.

    reader: the one that reads; model, tokenizer and prompt are its own.
    """

    def __init__(self, reader: Reader, observe: Observe):
        super().__init__(
            reader.model, reader.tokenizer, reader.identity, reader.prompt, reader.located
        )
        self.reader, self._observe, self.terms = reader, observe, reader.terms
        self._before: list[tuple[Tensor, Tensor]] | None = None
        self._chunks: dict[tuple[int, ...], list[Chunk]] = {}
        self._kept: dict[Hashable, Any] = {}

    @classmethod
    def of(cls, reader: Reader, recipes: Sequence[Method]) -> ReadOnce:
        """One that observes what any of these methods asks for."""
        rows = max((recipe.observe.rows for recipe in recipes), default=0)
        reach = max((recipe.observe.reach for recipe in recipes), default=0)
        spread = max((recipe.observe.spread for recipe in recipes), default=0)
        return cls(reader, Observe(rows, reach, spread))

    def forget(self) -> None:
        """Let go of the document; the next one is another."""
        self._chunks.clear()
        self._kept.clear()

    def kept(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What was made of the document under this key, made once."""
        if key not in self._kept:
            self._kept[key] = make()
        made: Made = self._kept[key]
        return made

    def prefix(self) -> list[tuple[Tensor, Tensor]]:
        if self._before is None:
            self._before = self.reader.prefix()
            self._behind_prefix = self.reader._behind_prefix
        return self._before

    def read_window(
        self,
        ids: list[int],
        prefix: list[tuple[Tensor, Tensor]],
        chunk_tokens: int,
        done: list[Chunk],
        observe: Observe = NOTHING,
    ) -> Iterator[Chunk]:
        key = (chunk_tokens, *ids)
        if done or not self._observe.covers(observe):
            yield from self.reader.read_window(ids, prefix, chunk_tokens, done, observe)
            return
        if key not in self._chunks:
            read = self.reader.read_window(ids, prefix, chunk_tokens, [], self._observe)
            self._chunks[key] = list(read)
        for chunk in self._chunks[key]:  # whoever compresses them empties the lists
            yield replace(chunk, k=list(chunk.k), v=list(chunk.v))
