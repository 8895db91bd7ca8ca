"""How what a question sees of a long document stands to the question and to itself.

A document of several windows was read at the same positions again and again. What is seen of it can
stand there, or be moved behind one another and towards the question by turning keys; it can be
passages or whole windows; it can have been read behind more of the text, or anew. Rows are exact
here, so that nothing but their place differs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from engine.attention.resident import row_scores
from engine.attention.shared import Shared
from engine.attention.softmax import merge_resolutions
from engine.compression.observation import Observe
from engine.compression.rope import shift
from engine.compression.scores import NEG_INF, group_queries
from engine.compression.terms import PLAIN, Terms
from engine.documents import load
from engine.documents.words import content_words
from engine.errors import SekvError
from engine.ingest.windows import cut_windows, longest_window
from engine.lab.bench.bootstrap import interval, wilson
from engine.lab.bench.log import Log
from engine.lab.bench.questions import Question, choose
from engine.lab.bench.suites.scores import contains
from engine.memory.passage_index import PassageIndex
from engine.memory.retrieval import PASSAGES_SEEN, joined
from engine.models import chunked

if TYPE_CHECKING:
    from engine.attention.view import Stretch
    from engine.documents import Document
    from engine.documents.tokens import Tokens
    from engine.models.reader import Reader
    from engine.types import Progress

FORMAT = "sekv-positions-bench 1"

CHUNK = 1024
"""Tokens of one forward, as many as ingest reads at once."""

BEFORE = 1024
"""Tokens before a passage that it is read behind at least, where windows overlap by half."""

Rows = list[tuple[Tensor, Tensor]]
"""Keys and values [Hkv, n, D] by layer."""


@dataclass(frozen=True)
class ReadTokens:
    """Tokens that are seen together. start: the position that they were read at."""

    rows: Rows
    start: int

    def __len__(self) -> int:
        return int(self.rows[0][0].shape[1])

    def cut(self, first: int, end: int) -> ReadTokens:
        """Some of the tokens, by their number in here."""
        rows = [(k[:, first:end], v[:, first:end]) for k, v in self.rows]
        return ReadTokens(rows, self.start + first)


@dataclass(frozen=True)
class Arranged:
    """Where the pieces that are seen stand. starts: position of each. question: of the question."""

    pieces: Sequence[ReadTokens]
    starts: Sequence[int]
    question: int


def parallel(pieces: Sequence[ReadTokens], first: int, longest: int) -> Arranged:
    """Where they were read; the question behind the longest window, which is what `ask` does."""
    return Arranged(pieces, [piece.start for piece in pieces], first + longest)


def near(pieces: Sequence[ReadTokens], first: int, longest: int) -> Arranged:
    """Where they were read; the question right behind the last of them."""
    starts = [piece.start for piece in pieces]
    return Arranged(pieces, starts, max(s + len(p) for s, p in zip(starts, pieces, strict=True)))


def consecutive(pieces: Sequence[ReadTokens], first: int, longest: int) -> Arranged:
    """One behind another in this order, from behind the prompt's prefix."""
    starts = [first]
    for piece in pieces:
        starts.append(starts[-1] + len(piece))
    return Arranged(pieces, starts[:-1], starts[-1])


@dataclass(frozen=True)
class SeenPassages:
    """What a question may see, best first: passages, the windows that hold them, the passages as
    they are read behind more of the text, and all passages read anew as one text. What no
    arrangement asks for is left empty.

    order: the passages' numbers in the order of the document. first: tokens of the prompt's prefix.
    longest: of the document's windows.
    """

    passages: Sequence[ReadTokens]
    windows: Sequence[ReadTokens]
    overlapping: Sequence[ReadTokens]
    anew: Sequence[ReadTokens]
    order: Sequence[int]
    first: int
    longest: int


@dataclass(frozen=True)
class Arrangement:
    """part: of `SeenPassages`. place: where its pieces stand. order: "best" first, "worst" first,
    "document" for its order, "alone" for the best one and no other. what: for people."""

    part: str
    place: Callable[[Sequence[ReadTokens], int, int], Arranged]
    what: str
    order: str = "best"

    def of(self, seen: SeenPassages) -> Arranged:
        """The pieces and where they stand."""
        pieces: Sequence[ReadTokens] = getattr(seen, self.part)
        if self.order == "document":
            pieces = [pieces[number] for number in seen.order]
        elif self.order == "worst":
            pieces = pieces[::-1]
        elif self.order == "alone":
            pieces = pieces[:1]
        return self.place(pieces, seen.first, seen.longest)


ARRANGEMENTS = {
    "passages": Arrangement("passages", parallel, "passages, where they were read: what ask does"),
    "passages-near": Arrangement("passages", near, "the same, the question right behind"),
    "consecutive": Arrangement(
        "passages", consecutive, "one behind another, in the document's order", "document"
    ),
    "nearest": Arrangement(
        "passages", consecutive, "one behind another, the best one next to the question", "worst"
    ),
    "farthest": Arrangement("passages", consecutive, "one behind another, the best one first"),
    "passage": Arrangement("passages", parallel, "the best passage, where it was read", "alone"),
    "passage-near": Arrangement(
        "passages", consecutive, "the best passage, next to the question", "alone"
    ),
    "anew": Arrangement("anew", near, "the passages read anew, as one text"),
    "windows": Arrangement("windows", parallel, "whole windows, where they were read"),
    "windows-nearest": Arrangement(
        "windows", consecutive, "whole windows, the best one next to the question", "worst"
    ),
    "overlapping": Arrangement(
        "overlapping", parallel, "passages of windows that overlap by half, where they were read"
    ),
    "overlapping-nearest": Arrangement(
        "overlapping", consecutive, "the same, the best one next to the question", "worst"
    ),
}
"""What is compared. Others are compared with the first that is asked for."""


@dataclass(frozen=True)
class PositionSetting:
    """samples: questions, drawn evenly over kinds and documents. most: tokens of an answer. rows:
    of ARRANGEMENTS."""

    rows: tuple[str, ...] = tuple(ARRANGEMENTS)
    samples: int = 100
    most: int = 24
    window: int = 0
    seed: int = 0


def measure(
    reader: Reader,
    questions: Sequence[Question],
    documents: Path,
    tokenize: Callable[[Document], Tokens],
    setting: PositionSetting,
    folder: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Ask every question with every arrangement. What `folder` already holds is not asked again.

    Raises:
        ReaderError: the model does not turn its keys as RoPE does, all components alike.
        SekvError: no question has an answer, an unknown arrangement, or the folder holds another
            run's answers.
    """
    unknown = [row for row in setting.rows if row not in ARRANGEMENTS]
    if unknown or not setting.rows:
        raise SekvError(f"no arrangement '{', '.join(unknown)}'; known: {', '.join(ARRANGEMENTS)}")
    chosen = choose([q for q in questions if q.answerable], setting.samples, setting.seed)
    if not chosen:
        raise SekvError("none of these questions has an answer; name others with --questions")
    log = Log.open(folder, _head(reader, setting))
    turn = reader.rotation(0, reader.max_positions)
    progress.start("asking", len(chosen), "questions")
    for name in dict.fromkeys(question.document for question in chosen):
        mine = [question for question in chosen if question.document == name]
        if any((q.id, row) not in log.entries for q in mine for row in setting.rows):
            book = _Book.of(reader, documents / name, tokenize, setting)
            _ask_book(book, mine, setting.rows, turn, log)
            progress.advance(len(mine))
        else:
            progress.resume(len(mine))
    return {
        "suite": "positions",
        "model": reader.identity.id,
        "weights": reader.identity.weights,
        "questions": len(chosen),
        "rows": {row: _line(row, setting.rows[0], chosen, log) for row in setting.rows},
    }


def _head(reader: Reader, setting: PositionSetting) -> dict[str, Any]:
    """What a run has to have in common with an earlier one to go on where that stopped."""
    return {
        "format": FORMAT,
        "weights": reader.identity.weights,
        "dtype": reader.dtype_name,
        "most": setting.most,
        "window": setting.window,
    }


@dataclass(frozen=True)
class _Book:
    """A document as it is searched and read."""

    reader: Reader
    text: str
    tokens: Tokens
    index: PassageIndex
    most: int

    @classmethod
    def of(
        cls,
        reader: Reader,
        path: Path,
        tokenize: Callable[[Document], Tokens],
        setting: PositionSetting,
    ) -> _Book:
        document = load([str(path)])
        text, tokens = document.sources[0].text, tokenize(document)
        longest = longest_window(reader.max_positions, setting.window, reader.reads_well)
        windows = list(pairwise(cut_windows(document, tokens, longest).bounds))

        def words_of(stretch: Stretch) -> str:
            return text[int(tokens.starts[stretch[0]]) : int(tokens.ends[stretch[1] - 1])]

        index = PassageIndex(windows, words_of, reader.word_vectors)
        return cls(reader, text, tokens, index, setting.most)

    @torch.inference_mode()
    def read(self, first: int, end: int) -> ReadTokens:
        """Tokens [first, end) in one context behind the prompt's prefix."""
        reader = self.reader
        ids = self.tokens.ids[first:end].tolist()
        chunks = list(reader.read_window(ids, reader.prefix(), CHUNK, [], Observe()))
        rows = [
            (
                torch.cat([chunk.k[layer] for chunk in chunks], 1),
                torch.cat([chunk.v[layer] for chunk in chunks], 1),
            )
            for layer in range(reader.layers)
        ]
        return ReadTokens(rows, len(reader.prompt.prefix))

    def seen(self, question: Question, parts: Collection[str]) -> SeenPassages | None:
        """What the words of a question find, read as far as these parts of `SeenPassages` need it;
        None where they find nothing."""
        found = list(self.index.scores(content_words(question.text)))[:PASSAGES_SEEN]
        if not found:
            return None
        passages = self._joined(found)
        ends = {window: self.index.windows[window][1] for window, _, _ in passages}
        if "windows" not in parts:
            for window, _, _ in passages:
                ends[window] = max(end for one, _, end in passages if one == window)
        starts = {window: self.index.windows[window][0] for window in ends}
        read = {window: self.read(starts[window], end) for window, end in ends.items()}
        pieces, overlapping = [], []
        for window, first, end in passages:
            start = starts[window]
            pieces.append(read[window].cut(first - start, end - start))
            if "overlapping" in parts:
                before = min(start, max(0, first - BEFORE))
                behind = read[window] if before == start else self.read(before, end)
                overlapping.append(behind.cut(first - before, end - before))
        order = sorted(range(len(passages)), key=lambda number: passages[number][1])
        text = [passages[number][1:] for number in order]
        return SeenPassages(
            passages=pieces,
            windows=list(read.values()),
            overlapping=overlapping,
            anew=[self._anew(text)] if "anew" in parts else [],
            order=order,
            first=len(self.reader.prompt.prefix),
            longest=max(end - first for first, end in self.index.windows),
        )

    def _joined(self, found: Sequence[int]) -> list[tuple[int, int, int]]:
        """Windows and tokens of passages, best first; those of one window that touch are one."""
        rank = {self.index.passages[passage]: place for place, passage in enumerate(found)}
        window = {self.index.passages[passage]: self.index.window[passage] for passage in found}
        made = []
        for one in dict.fromkeys(window.values()):
            mine = [passage for passage in rank if window[passage] == one]
            for first, end in joined(mine):
                best = min(rank[p] for p in mine if first <= p[0] and p[1] <= end)
                made.append((best, one, first, end))
        return [(one, first, end) for _, one, first, end in sorted(made)]

    @torch.inference_mode()
    def _anew(self, stretches: Sequence[Stretch]) -> ReadTokens:
        """Stretches read as one text."""
        ids = [token for a, b in stretches for token in self.tokens.ids[a:b].tolist()]
        prefix = self.reader.prefix()
        [chunk] = self.reader.read_window(ids, prefix, len(ids), [], Observe())
        return ReadTokens(list(zip(chunk.k, chunk.v, strict=True)), len(self.reader.prompt.prefix))


def _ask_book(
    book: _Book,
    questions: Sequence[Question],
    rows: Sequence[str],
    turn: tuple[Tensor, Tensor],
    log: Log,
) -> None:
    for question in questions:
        missing = [row for row in rows if (question.id, row) not in log.entries]
        parts = {ARRANGEMENTS[row].part for row in missing}
        seen = book.seen(question, parts) if missing else None
        for row in missing:
            answer = ""
            if seen is not None:
                arranged = ARRANGEMENTS[row].of(seen)
                answer = said(book.reader, question, arranged, turn, book.most)
            right = float(contains(answer, (question.answer, *question.aliases)))
            log.put({"key": question.id, "row": row, "right": right, "answer": answer})


# ---------------------------------------------------------------------------- attention


class PlacedRows:
    """One layer: exact rows at the positions that were chosen for them."""

    def __init__(self, k: Tensor, v: Tensor):
        """k, v: [Hkv, P, D], keys already turned."""
        self.k, self.v = k, v

    def attend(
        self,
        q: Tensor,
        live_k: Tensor,
        live_v: Tensor,
        seen: Tensor | None,
        terms: Terms = PLAIN,
    ) -> Tensor:
        """See `LayerMemory.attend`."""
        terms.check_plain("the comparison of positions")
        rows, size = q.shape[1], q.shape[2]
        q = group_queries(q, len(self.k))
        live = row_scores(q, live_k)
        if seen is not None:
            live = live.masked_fill(~seen.repeat(q.shape[1] // rows, 1), NEG_INF)
        out, _ = merge_resolutions([row_scores(q, self.k), live], [self.v, live_v])
        return out.reshape(-1, rows, size)


def memories(prefix: Rows, arranged: Arranged, turn: tuple[Tensor, Tensor]) -> Iterator[PlacedRows]:
    """The layers of what is seen.

    turn: cos, sin [m, D] of all positions; see `rope.shift`.
    """
    for layer, (first_k, first_v) in enumerate(prefix):
        keys, values = [first_k.float()], [first_v.float()]
        for piece, start in zip(arranged.pieces, arranged.starts, strict=True):
            k, v = piece.rows[layer]
            keys.append(shift(k.float(), start - piece.start, *turn))
            values.append(v.float())
        yield PlacedRows(torch.cat(keys, 1), torch.cat(values, 1))


@torch.inference_mode()
def said(
    reader: Reader, question: Question, arranged: Arranged, turn: tuple[Tensor, Tensor], most: int
) -> str:
    """The greedy answer to a question behind what is seen."""
    layers = list(memories(reader.prefix(), arranged, turn))
    shared = Shared(torch.tensor([0, 1]), 1)
    cache = reader.cache_behind(layers, arranged.question, shared)
    given = reader.prompt.question(reader.tokenizer, question.text)
    ends = {reader.tokenizer.eos_token_id, *reader.prompt.ends}
    words: list[int] = []
    while len(words) < most:
        *_, out = chunked.read(reader.model, given, cache, None)
        word = int(out.logits[0, -1].argmax())
        if word in ends:
            break
        words.append(word)
        given = [word]
    text: str = reader.tokenizer.decode(words)
    for stop in reader.prompt.stops:
        text = text.partition(stop)[0]
    return text.strip()


# ---------------------------------------------------------------------------- results


def _line(row: str, first: str, questions: Sequence[Question], log: Log) -> dict[str, Any]:
    """Right answers of an arrangement, by kind of question and of all, and how many more than with
    another one, question by question."""
    kinds = {"all": list(questions)}
    for question in questions:
        kinds.setdefault(question.kind, []).append(question)
    line: dict[str, Any] = {}
    for kind, group in kinds.items():
        right = [log.entries[q.id, row]["right"] for q in group]
        apart: dict[str, list[float]] = {}
        for q, mine in zip(group, right, strict=True):
            apart.setdefault(q.document, []).append(mine - log.entries[q.id, first]["right"])
        line[kind] = {
            "n": len(group),
            "right": sum(right) / len(group),
            "interval": wilson(round(sum(right)), len(group)),
            "more": sum(map(sum, apart.values())) / len(group),
            "more_interval": interval(list(apart.values())),
            "gained": sum(x > 0 for each in apart.values() for x in each),
            "lost": sum(x < 0 for each in apart.values() for x in each),
        }
    return line


def markdown(report: dict[str, Any]) -> str:
    """The report as a table."""
    kinds = list(next(iter(report["rows"].values())))
    lines = [
        f"{report['questions']} answerable questions on whole documents, model "
        f"{report['model']}; right answers in per cent, 95 % intervals in brackets; more: points "
        "above the first row, question by question, bootstrap over documents",
        "",
        f"| what is seen | {' | '.join(kinds)} | more | gained / lost |",
        "|---|" + "---|" * (len(kinds) + 2),
    ]
    for row, line in report["rows"].items():
        cells = []
        for kind in kinds:
            low, high = line[kind]["interval"]
            share = 100 * line[kind]["right"]
            cells.append(f"{share:.1f} ({100 * low:.0f}-{100 * high:.0f}) of {line[kind]['n']}")
        every = line["all"]
        low, high = every["more_interval"]
        cells.append(f"{100 * every['more']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})")
        cells.append(f"{every['gained']} / {every['lost']}")
        lines.append(f"| {row}: {ARRANGEMENTS[row].what} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
