"""Which passages of a document are about a question, by the words of both.

Every word of the question looks for the word of a passage that means most nearly the same: the
greatest cosine of their vectors, as late interaction has it (ColBERT, Khattab and Zaharia, SIGIR
2020), with the input embeddings of the model itself for vectors, and the word's rarity for weight.
So "ships" finds "ship" and "boat" as well; measured beside BM25 in docs/results.md.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from engine.attention.view import Stretch
from engine.documents.words import content_words
from engine.store.passages import passages, spaced

WordVectors = Callable[[Sequence[str]], Tensor]
"""Vectors of words, float [n, D]."""

WORDS_AT_ONCE = 64
"""Words of a question that are compared at once: some questions are pages long."""

_MARKS = re.compile("[\u0300-\u036f]")
"""Accents, which a question may leave out."""


class Passages:
    """The passages of windows.

    windows, passages: where they lie, in order. window: the number of each passage's window.
    """

    def __init__(self, windows: Sequence[Stretch]):
        self.windows = windows
        parts = [(passage, number) for number, w in enumerate(windows) for passage in passages(w)]
        self.passages = [passage for passage, _ in parts]
        self.window = [number for _, number in parts]


class PassageIndex(Passages):
    """The words of passages, and their vectors."""

    def __init__(
        self, windows: Sequence[Stretch], text: Callable[[Stretch], str], vectors: WordVectors
    ):
        """text: of a stretch of the document.  vectors: of words, of which it is asked at once."""
        super().__init__(windows)
        self._vectors = vectors
        self._vocabulary: dict[str, int] = {}
        numbers = [
            {self._vocabulary.setdefault(word, len(self._vocabulary)) for word in words}
            for words in (_words([text(passage)]) for passage in self.passages)
        ]
        # Nothing is like the word behind the last, which every passage has, so that none is empty.
        nothing = len(self._vocabulary)
        self._words = np.array([n for some in numbers for n in (*sorted(some), nothing)], np.int32)
        self._first = np.cumsum([0, *(len(some) + 1 for some in numbers[:-1])])
        times = np.bincount(self._words, minlength=nothing + 1)[:-1]
        self._rarity = _rarity(times, len(numbers)).astype(np.float32)
        raw = vectors(list(self._vocabulary)) if nothing else torch.zeros(0, 1)
        # What all words have in common says nothing (Mu and Viswanath, ICLR 2018).
        self._mean = raw.mean(0) if nothing else raw.sum(0)
        self._known = _directions(raw - self._mean)

    def scores(
        self, words: Iterable[str], within: Stretch | None = None, *, least: float = 0.0
    ) -> dict[int, float]:
        """How well each passage answers to the words, by its number, best first: the sum over
        words of rarity x cosine^2 to the most similar word of the passage.

        within: a part of the document; passages of which less than half lies in it are left out.
        least: cosine^2 that one word at least must have to one of a passage.
        """
        wanted = list(dict.fromkeys(_words(words)))
        if not wanted or not self._vocabulary:
            return {}
        unheard = _rarity(np.zeros(1), len(self.passages)).astype(np.float32)
        rarity = np.append(self._rarity, unheard)  # the last is of words that are not there
        total = np.zeros(len(self.passages), np.float32)
        nearest = np.zeros_like(total)
        for start in range(0, len(wanted), WORDS_AT_ONCE):
            some = wanted[start : start + WORDS_AT_ONCE]
            for word, alike in zip(some, self._likeness(some), strict=True):
                best = np.maximum.reduceat(alike[self._words], self._first)
                total += rarity[self._number(word)] * best
                np.maximum(nearest, best, out=nearest)
        total[nearest < least] = 0.0
        order = np.argsort(-total, kind="stable").tolist()
        return {
            one: float(total[one])
            for one in order
            if total[one] > 0 and (within is None or self._in(one, within))
        }

    def _likeness(self, wanted: Sequence[str]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        """Of words to every word of the document and to the one behind them, [n, W + 1], 0 to 1."""
        theirs = _directions(self._vectors(wanted) - self._mean)
        cosine = (theirs @ self._known.T).float().clamp_(0, 1).square_()
        for row, word in enumerate(wanted):
            if (at := self._number(word)) >= 0:
                cosine[row, at] = 1.0
        return torch.nn.functional.pad(cosine, (0, 1)).numpy()

    def _number(self, word: str) -> int:
        return self._vocabulary.get(word, -1)

    def _in(self, passage: int, part: Stretch) -> bool:
        """Whether half of a passage lies in a part of the document, or all of the part in it."""
        (first, end), (start, stop) = self.passages[passage], part
        shared = min(end, stop) - max(first, start)
        return shared > 0 and 2 * shared >= min(end - first, 2 * (stop - start))


def _words(texts: Iterable[str]) -> list[str]:
    """The words of texts without accents, but for stop words; in scripts without spaces every
    character is one."""
    plain = _MARKS.sub("", unicodedata.normalize("NFKD", " ".join(texts)))
    return content_words(spaced(unicodedata.normalize("NFC", plain)))


def _rarity(times: np.ndarray, passages: int) -> np.ndarray:
    """Inverse document frequency of words in so many of the passages, as BM25 has it."""
    return np.log1p((passages - times + 0.5) / (times + 0.5))


def _directions(vectors: Tensor) -> Tensor:
    """Unit vectors; 16 bits, for a large model has long ones and a book thousands of words."""
    return torch.nn.functional.normalize(vectors.float(), dim=1).bfloat16()
