"""Window retrieval on natural questions: is the evidence among what would be read?

Documents are tokenized and cut as `ingest` cuts them, and asked through the same index as by `sekv
ask`. Of the model its word vectors are used; it reads nothing.
"""

from __future__ import annotations

import sqlite3
import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, islice, pairwise, product
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from engine.answer.ranked_documents import rank_documents
from engine.documents import load
from engine.documents.words import content_words
from engine.ingest.collect import collect
from engine.ingest.windows import cut_windows
from engine.lab.bench.questions import Question, placed
from engine.memory.passage_index import PassageIndex, Passages, WordVectors
from engine.store.catalogue import Found
from engine.store.passages import make_table, query, spaced

if TYPE_CHECKING:
    from engine.attention.view import Stretch
    from engine.documents import Document
    from engine.documents.tokens import Tokens

COUNTS = (1, 2, 4, 8)
"""How many windows or passages are read."""


class Bm25(Passages):
    """BM25 over passages, by SQLite's FTS5: what a library ranks its documents by, and what
    `PassageIndex` is measured beside."""

    def __init__(self, windows: Sequence[Stretch], text: Callable[[Stretch], str]):
        super().__init__(windows)
        self._index = sqlite3.connect(":memory:")
        make_table(self._index, "content='',")
        rows = ((number, spaced(text(passage))) for number, passage in enumerate(self.passages))
        self._index.executemany("INSERT INTO passages(rowid, text) VALUES (?, ?)", rows)

    def scores(self, words: Iterable[str]) -> dict[int, float]:
        """Of the passages that have any of the words, by their number, best first."""
        wanted = query(words)
        ranked = "SELECT rowid, -rank FROM passages WHERE passages MATCH ? ORDER BY rank, rowid"
        return dict(self._index.execute(ranked, [wanted]).fetchall()) if wanted else {}


_Index = PassageIndex | Bm25


@dataclass(frozen=True)
class Ranked:
    """One question. windows: rank, from 0, of the first window that has a part of the evidence.
    passages: how many of the best passages hold all of it together. None: not found at all."""

    question: Question
    windows: int | None
    passages: int | None


def measure(
    questions: Sequence[Question],
    documents: Path,
    tokenize: Callable[[Document], Tokens],
    vectors: WordVectors,
    sizes: Sequence[int],
) -> dict[str, Any]:
    """Recall of the evidence by window size, kind of question and what is read.

    Args:
        documents: the folder that the questions' documents are named from. Others beside or below
            them stand in the library too, and nothing is asked of those.
        vectors: of words, see `PassageIndex`.
        sizes: tokens of a window.
    Raises:
        DocumentError: a document is not there or cannot be read, or does not hold the evidence of
            a question.
    """
    answerable = [question for question in questions if question.answerable]
    makers: dict[str, Callable[[list[Stretch], Callable[[Stretch], str]], _Index]] = {
        "words alike": partial(PassageIndex, vectors=vectors),
        "BM25": Bm25,
    }
    ranked: dict[tuple[int, str], list[Ranked]] = defaultdict(list)
    build, search, longest = 0.0, [], 0
    shelf: list[_Shelved] = []
    named = list(dict.fromkeys(question.document for question in answerable))
    for name in [*named, *_others(documents, named)]:
        document = load([str(documents / name)])
        text, tokens = document.sources[0].text, tokenize(document)

        def words_of(stretch: Stretch, text: str = text, tokens: Tokens = tokens) -> str:
            return text[int(tokens.starts[stretch[0]]) : int(tokens.ends[stretch[1] - 1])]

        bounds = cut_windows(document, tokens, sizes[-1]).bounds
        shelf.append(_Shelved(name, list(pairwise(bounds)), words_of))
        if name not in named:
            continue
        longest = max(longest, len(tokens))
        for size, (by, make) in product(sizes, makers.items()):
            bounds = cut_windows(document, tokens, size).bounds
            at = time.process_time()
            index = make(list(pairwise(bounds)), words_of)
            built = time.process_time() - at
            for question in answerable:
                if question.document != name:
                    continue
                start, end = placed(question, text)
                first = int((tokens.ends <= start).sum())
                place = first, int((tokens.starts < end).sum())
                at = time.process_time()
                found = list(index.scores(content_words(question.text)))
                if isinstance(index, PassageIndex):
                    search.append(time.process_time() - at)
                    build = max(build, built)
                ranked[size, by].append(_rank(question, index, found, place))
    return {
        "suite": "retrieval",
        "questions": len(answerable),
        "longest_tokens": longest,
        "index_s": round(build, 3),
        "question_s": round(median(search), 5),
        "recall": [_row(size, by, found) for (size, by), found in ranked.items()],
        "library": _library(shelf, answerable),
    }


def _others(folder: Path, named: Sequence[str]) -> list[str]:
    """The documents of a folder that no question is of, by their paths below it."""
    found = collect([str(folder)]).documents
    names = (Path(wanted.source).relative_to(folder).as_posix() for wanted in found)
    return [name for name in names if name not in named]


@dataclass(frozen=True)
class _Shelved:
    """A document among others. windows: where they lie in it. words: of a stretch of it."""

    name: str
    windows: list[Stretch]
    words: Callable[[Stretch], str]


def _library(shelf: Sequence[_Shelved], questions: Sequence[Question]) -> dict[str, Any]:
    """How often the document that a library would ask is the right one, and how often that is among
    the best three, by kind of question."""
    starts = [0, *accumulate(each.windows[-1][1] for each in shelf)]
    windows = [
        (start + first, start + end)
        for start, each in zip(starts, shelf, strict=False)
        for first, end in each.windows
    ]

    def words_of(stretch: Stretch) -> str:
        number = bisect_right(starts, stretch[0]) - 1
        return shelf[number].words((stretch[0] - starts[number], stretch[1] - starts[number]))

    index = Bm25(windows, words_of)

    def find(words: Sequence[str], most: int) -> Iterator[Found]:
        for passage, score in islice(index.scores(words).items(), most):
            first, end = index.passages[passage]
            yield Found(shelf[bisect_right(starts, first) - 1].name, first, end, score)

    ranks = defaultdict(list)
    for question in questions:
        named = list(rank_documents([question.text], find))
        ranks[question.kind].append(
            named.index(question.document) if question.document in named else None
        )
    rows = {
        kind: {"questions": len(group), "first": _share(group, 0), "three": _share(group, 2)}
        for kind, group in sorted(ranks.items())
    }
    return {"documents": len(shelf), "passages": len(index.passages), **rows}


def _rank(question: Question, index: _Index, found: list[int], place: Stretch) -> Ranked:
    """Where evidence stands among passages, best first. place: its tokens."""
    first, end = place
    windows = list(dict.fromkeys(index.window[passage] for passage in found))
    holds = [index.windows[window] for window in windows]
    rank = next((rank for rank, (a, b) in enumerate(holds) if a < end and b > first), None)
    missing = set(range(first, end))
    for count, passage in enumerate(found, 1):
        missing.difference_update(range(*index.passages[passage]))
        if not missing:
            return Ranked(question, rank, count)
    return Ranked(question, rank, None)


def _row(size: int, by: str, ranked: Sequence[Ranked]) -> dict[str, Any]:
    kinds = defaultdict(list)
    for each in ranked:
        kinds[each.question.kind].append(each)
    row: dict[str, Any] = {"window": size, "by": by}
    for kind, group in sorted(kinds.items()):
        row[kind] = {
            "questions": len(group),
            "windows": {count: _share([r.windows for r in group], count - 1) for count in COUNTS},
            "passages": {count: _share([r.passages for r in group], count) for count in COUNTS},
        }
    return row


def _share(ranks: Sequence[int | None], most: int) -> float:
    return round(sum(rank is not None and rank <= most for rank in ranks) / len(ranks), 4)


def markdown(made: dict[str, Any]) -> str:
    """The report as a table."""
    heads = [f"{count}" for count in COUNTS]
    lines = [
        f"{made['questions']} answerable questions. The index of the longest document "
        f"({made['longest_tokens']:,} tokens at most) took {made['index_s']:.2f} s, a question "
        f"{1000 * made['question_s']:.1f} ms.",
        "",
        "| tokens of a window | ranked by | questions | "
        f"evidence in the best {' / '.join(heads)} windows | "
        f"whole in the best {' / '.join(heads)} passages |",
        "|---|---|---|---:|---:|",
    ]
    for row in made["recall"]:
        for kind in (name for name in row if name not in ("window", "by")):
            shares = [
                " / ".join(f"{100 * share:.0f}" for share in row[kind][what].values())
                for what in ("windows", "passages")
            ]
            count = row[kind]["questions"]
            size, by = row["window"], row["by"]
            lines.append(f"| {size} | {by} | {count} {kind} | {shares[0]} % | {shares[1]} % |")
    library = made["library"]
    lines += ["", f"All {library['documents']} documents in one index: the right one is"]
    lines += [
        f"- of {row['questions']} {kind} questions first in {100 * row['first']:.0f} %, among the "
        f"first three in {100 * row['three']:.0f} %"
        for kind, row in library.items()
        if isinstance(row, dict)
    ]
    return "\n".join(lines) + "\n"
