"""Which document of many answers a question, by words alone: the rule of libraries, and of what
measures them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from engine.documents.words import content_words, names
from engine.store.catalogue import Found

NAMES = 0.5
"""What the best passage for a question's names counts beside the best one for all its words. A
question that says its matter in other words still says whom it is about; see docs/results.md."""

PASSAGES_LOOKED_AT = 200
"""Best passages of the whole library by which documents are ranked."""

Find = Callable[[Sequence[str], int], Iterable[Found]]
"""The passages that have any of some words, best first, so many at most."""


def rank_documents(texts: Iterable[str], find: Find) -> dict[str, Found]:
    """The best passage of every document that has words of the texts, the best document first.

    A document is worth what it is for the text that fits it best.
    """
    worth: dict[str, float] = {}
    best: dict[str, Found] = {}
    for text in texts:
        passages = _best_of_each(find(content_words(text), PASSAGES_LOOKED_AT))
        named = _best_of_each(find(names(text), PASSAGES_LOOKED_AT))
        for store, found in {**named, **passages}.items():
            of_words = passages[store].score if store in passages else 0.0
            of_names = named[store].score if store in named else 0.0
            worth[store] = max(worth.get(store, 0.0), of_words + NAMES * of_names)
            if store not in best or found.score > best[store].score:
                best[store] = found
    return {store: best[store] for store in sorted(best, key=lambda one: (-worth[one], one))}


def _best_of_each(passages: Iterable[Found]) -> dict[str, Found]:
    """The first passage of every document."""
    best: dict[str, Found] = {}
    for found in passages:
        best.setdefault(found.store, found)
    return best
