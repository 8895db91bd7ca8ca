"""What a question sees of a document: everything else is hidden in all layers of its memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from engine.attention.view import Stretch
from engine.documents.words import content_words
from engine.memory.conversation import Conversation
from engine.memory.open import Memory
from engine.memory.retrieval import Retrieval, Retrieved
from engine.models import chunked
from engine.models.chunked import Stop
from engine.models.reader import Reader
from engine.store.manifest import Manifest
from engine.types import Turn


@dataclass(frozen=True)
class Sought:
    """What a question is about.

    texts: search texts: the question, and the turn before it joined with the question.
    view: the tokens that are to be seen, where it is not words that choose.
    """

    texts: Sequence[str]
    view: tuple[Stretch, ...] | None = None

    @property
    def queries(self) -> list[list[str]]:
        """The words of each text."""
        return [content_words(text) for text in self.texts]


class Focus:
    """A memory, and what is seen of it. past: the conversation behind the document."""

    def __init__(
        self,
        reader: Reader,
        memory: Memory,
        manifest: Manifest,
        retrieval: Retrieval,
        heads: torch.Tensor | None,
    ):
        """heads: how much each head looks at evidence, [L, H]; None where that is not measured."""
        self.memory, self.past = memory, Conversation(reader, memory, self._recall)
        self._reader, self._manifest = reader, manifest
        self._retrieval, self._heads = retrieval, heads

    def on(self, sought: Sought, prompt: list[int], stop: Stop | None = None) -> Retrieved:
        """Hide everything of a long document but the retrieved passages, in all layers.

        prompt: token ids of the question, which vote where there is no word to look for.

        Raises:
            StoppedError: `stop` said so.
        """
        unread = self._manifest.unread
        if sought.view is not None:
            retrieved = self._retrieval.of(sought.view, unread)
        else:
            vote = lambda: self._vote(prompt, stop)  # noqa: E731
            retrieved = self._retrieval.choose(sought.queries, vote, unread)
        for layer in self.memory.layers:
            layer.focus(retrieved.stretches)
        self.past.stand_behind(retrieved.windows[0])
        return retrieved

    def _recall(self, texts: Sequence[str], prompt: list[int], stop: Stop | None) -> Retrieved:
        """What a turn of the conversation sees while it is read."""
        return self.on(Sought(texts), prompt, stop)

    def _vote(self, prompt: list[int], stop: Stop | None) -> torch.Tensor | None:
        """Votes of a prompt's rows for windows, [W], by the router's estimates for their spans;
        None where no router runs. Heads count by how much they look at evidence."""
        shared, first = self.memory.shared, self.memory.layers[0]
        if first.full or not len(first.view.spans):
            return None
        shared.votes = torch.zeros(self._reader.layers, self._manifest.model.heads, shared.windows)
        try:
            for _ in chunked.read(self._reader.model, prompt, self.past.cache(), stop):
                pass
            importance = torch.ones(shared.votes.shape[:2]) if self._heads is None else self._heads
            return torch.einsum("lhw,lh->w", shared.votes, importance)
        finally:
            shared.votes = None


def search_texts(question: str, turns: Sequence[Turn]) -> list[str]:
    """The question, and the latest turn joined with it, since a question may refer to that turn."""
    if not turns:
        return [question]
    return [question, f"{turns[-1].question} {turns[-1].answer} {question}"]
