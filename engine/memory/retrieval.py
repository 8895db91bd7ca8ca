"""Retrieval: which passages a question sees of a document of several windows.

Overlapping passages of the store's own text are ranked by their words (`memory.passage_index`).
Only for a question without a word to look for are whole windows chosen, by attention's vote.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import fsum

from torch import Tensor

from engine.attention.view import Stretch
from engine.memory.passage_index import PassageIndex, WordVectors

PASSAGES_SEEN = 2
"""Passages that are seen while a question is answered; see docs/results.md."""

VOTED_WINDOWS = 2
"""Windows that are seen where attention chose them."""

MUCH_ALIKE = 0.3
"""Least cosine^2 of two words of which one is said to be in a text that has the other: forms of one
word, as a rule."""

RANK = 60
"""k of reciprocal rank fusion, where a score is 1 / (k + rank); the value of its source."""

WORDS, ATTENTION, ALL, LAST, OUTLINE = "words", "attention", "all", "last", "outline"
"""By what windows were chosen; the last one where nothing chose any and only one can be seen."""


def fuse(rankings: Iterable[Iterable[int]]) -> list[int]:
    """Reciprocal rank fusion: merges several rankings into one, best first; an item may be in any.

    Source: Cormack, Clarke and Buettcher (SIGIR 2009).
    """
    shares: dict[int, list[float]] = defaultdict(list)
    for ranking in rankings:
        for rank, one in enumerate(ranking, 1):
            shares[one].append(1 / (RANK + rank))
    return sorted(shares, key=lambda one: (-fsum(shares[one]), one))


@dataclass(frozen=True)
class Retrieved:
    """What a question sees of a document, and why.

    windows: those that it sees some of, best first. by: WORDS, ATTENTION, ALL or LAST.
    stretches: what it sees of them, sorted and not overlapping; None: the whole document.
    lexical, attention: scores of windows by their number; empty where they were not computed.
    """

    windows: tuple[int, ...]
    by: str
    stretches: tuple[Stretch, ...] | None = None
    lexical: Mapping[int, float] = field(default_factory=dict)
    attention: Mapping[int, float] = field(default_factory=dict)

    def tokens(self, document: int) -> int:
        """How many tokens are seen of a document of so many."""
        if self.stretches is None:
            return document
        return sum(end - first for first, end in self.stretches)


class Retrieval:
    """Chooses what questions see of one document. windows: where they lie. alone: only one of them
    is seen at a time, since some layers of the model know of one only (`memory.states`)."""

    def __init__(
        self,
        windows: Sequence[Stretch],
        text: Callable[[Stretch], str],
        vectors: WordVectors,
        *,
        alone: bool = False,
    ):
        """See `PassageIndex`; a document of one window has none and is seen whole."""
        self.windows, self.alone = windows, alone
        self._index = PassageIndex(windows, text, vectors) if len(windows) > 1 else None

    def needed(self, queries: Sequence[Sequence[str]]) -> tuple[int, ...]:
        """The windows of the best passages for some queries (see `choose`), read or not."""
        if self._index is None:
            return ()
        best = self._best(self._index, fuse(self._index.scores(words) for words in queries))
        return tuple(dict.fromkeys(self._index.window[one] for one in best))

    def best_in(
        self,
        part: Stretch,
        queries: Sequence[Sequence[str]],
        count: int = PASSAGES_SEEN,
        unread: Collection[int] = (),
    ) -> tuple[Stretch, ...]:
        """The best passages of a part of the document for some queries (see `choose`), cut to that
        part; none where no word of a query is much like one in it, or the document has one
        window."""
        index = self._index
        if index is None:
            return ()
        ranked = fuse(index.scores(words, part, least=MUCH_ALIKE) for words in queries)
        best = [index.passages[one] for one in ranked if index.window[one] not in unread][:count]
        return tuple((max(first, part[0]), min(end, part[1])) for first, end in best)

    def of(self, view: Sequence[Stretch], unread: Collection[int] = ()) -> Retrieved:
        """The windows of tokens that were chosen by headings and pages, those that are read; all
        that is read where nothing of them is."""
        cut = [
            (number, (max(first, start), min(end, stop)))
            for first, end in view
            for number, (start, stop) in enumerate(self.windows)
            if first < stop and start < end and number not in unread
        ]
        if self.alone:
            cut = [each for each in cut if each[0] == cut[0][0]]
        if not cut:
            return self._unchosen(unread)
        windows = tuple(dict.fromkeys(number for number, _ in cut))
        return Retrieved(windows, OUTLINE, joined(stretch for _, stretch in cut))

    def choose(
        self,
        queries: Sequence[Sequence[str]],
        vote: Callable[[], Tensor | None],
        unread: Collection[int] = (),
    ) -> Retrieved:
        """The passages whose words are most like a question's, or what attention votes for.

        Args:
            queries: words of the question, then of what else tells what it is about; their
                rankings are fused.
            vote: votes [W] of attention for windows, None of a memory that has none; asked only
                where no query has a word.
            unread: windows that nobody has read, of which nothing can be seen.
        """
        if self._index is None:
            return self._unchosen(unread)
        found = [self._index.scores(words) for words in queries]
        ranked = [one for one in fuse(found) if self._index.window[one] not in unread]
        if ranked:
            return self._with_words(self._index, self._best(self._index, ranked), found)
        read = self._read(unread)
        votes = vote() if len(read) > 1 else None
        return self._unchosen(unread) if votes is None else self._voted(votes, read)

    def _read(self, unread: Collection[int]) -> list[int]:
        """Numbers of the windows that are read."""
        return [window for window in range(len(self.windows)) if window not in unread]

    def _unchosen(self, unread: Collection[int]) -> Retrieved:
        """All that is read, or as much of it as can be seen."""
        read = self._read(unread)
        if self.alone and len(self.windows) > 1:
            return Retrieved((read[-1],), LAST, (self.windows[read[-1]],))
        return Retrieved(tuple(read), ALL)

    def _best(self, index: PassageIndex, ranked: Sequence[int]) -> Sequence[int]:
        """The passages that are seen, of some that are ranked."""
        if self.alone:
            window = index.window
            ranked = [passage for passage in ranked if window[passage] == window[ranked[0]]]
        return ranked[:PASSAGES_SEEN]

    def _with_words(
        self, index: PassageIndex, best: Sequence[int], found: Sequence[Mapping[int, float]]
    ) -> Retrieved:
        lexical: dict[int, float] = {}
        for passage in best:
            score = max(scores.get(passage, 0.0) for scores in found)
            window = index.window[passage]
            lexical[window] = max(score, lexical.get(window, 0.0))
        stretches = joined(index.passages[passage] for passage in best)
        return Retrieved(tuple(lexical), WORDS, stretches, lexical=lexical)

    def _voted(self, votes: Tensor, read: Sequence[int]) -> Retrieved:
        count = 1 if self.alone else VOTED_WINDOWS
        best = sorted(read, key=lambda window: -float(votes[window]))[:count]
        attention = {window: float(votes[window]) for window in best}
        stretches = joined(self.windows[window] for window in best)
        return Retrieved(tuple(best), ATTENTION, stretches, attention=attention)


def joined(stretches: Iterable[Stretch]) -> tuple[Stretch, ...]:
    """The same tokens as stretches in ascending order, none of which touches another."""
    out: list[Stretch] = []
    for first, end in sorted(stretches):
        if out and first <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], end))
        else:
            out.append((first, end))
    return tuple(out)
