"""From episodes to tensors: lengths, windows, questions, targets and their weights.

What the episodes say is not decided here. A batch depends only on the seed, the step,
the rank and the progress of training, so a resumed run sees the same batches.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from engine.quoting import Guide, Marks, Told, passage
from engine.train.reader.episodes import Episode, Question
from engine.train.reader.layout import Layout, positions
from engine.train.reader.opening import openings
from engine.train.reader.tokenizer import (
    ANSWER,
    BOS,
    DOCUMENT,
    END,
    NOT_STATED,
    PAD,
    QUESTION,
    SPECIALS,
    VALUE,
    ask,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tokenizers import Tokenizer
    from torch import Tensor

_SENTENCE = re.compile(r"[^.!?]+[.!?]+[\"')]*(?=\s)")
# Tokens of a question with its answer; most are short.
_WIDTHS = (36, 40, 44, 48, 52, 60, 72, 96)
_WORD = re.compile(r"\S+")
_ID = {name: number for number, name in enumerate(SPECIALS)}
_SYSTEM = (
    "Answer from the document alone.",
    "You read one document and quote it.",
    "Quote the sentence that answers, then give the value.",
    "If the document does not state it, say so.",
    "Be exact.",
)


class Source(Protocol):
    """Where episodes come from; see `episodes.Episodes`."""

    def sample(
        self,
        tokens: int,
        *,
        rng: Random,
        questions: int,
        ease: float,
        facts: int | None = None,
        asks: int = 1,
        kind: str | None = None,
    ) -> Episode:
        """One episode of about so many document tokens and at most so many questions."""


@dataclass(frozen=True)
class Curriculum:
    """How the task grows with progress, from 0 to 1.

    stages: (start, tokens of a document, most windows) in rising order.
    budget: tokens of a batch and process, questions counted.
    recall: share of batches that are look-ups of random tokens, until `formed`; then `rest`.
    find: share of batches that give a few words and want the sentence they stand in, until
        `found`; then half of it. Asking in other words is too hard to begin with.
    ease: (start, end, least): all of what makes facts hard is left out until `start`, then less
        and less until at `end` the share `least` is; see `Episodes.sample`.
    plain: share of texts with inserted facts alone, many at once; the others ask prose too.
    jump: share of batches whose questions stand further off, to `reach` tokens.
    """

    stages: tuple[tuple[float, tuple[int, ...], int], ...] = (
        (0.00, (256,), 1),
        (0.10, (256, 512), 2),
        (0.35, (256, 512, 1024), 4),
        (0.60, (256, 512, 512, 1024), 4),
        (0.80, (512, 512, 1024, 2048), 8),
    )
    budget: int = 5120
    recall: float = 0.25
    formed: float = 0.03
    rest: float = 0.05
    find: float = 0.3
    found: float = 0.12
    ease: tuple[float, float, float] = (0.25, 0.75, 0.1)
    plain: float = 0.7
    jump: float = 0.3
    reach: int = 16384
    questions: int = 24
    longest: int = 112
    window: int = 2048

    def easy(self, progress: float) -> float:
        """The share of hardness left out at this progress."""
        start, end, least = self.ease
        gone = min(1.0, max(0.0, (progress - start) / (end - start)))
        return 1.0 - gone * (1.0 - least)


@dataclass(frozen=True)
class Batch:
    """Rows laid out for the model, and what they are to predict.

    ids, positions: [B, total] int64.  targets: [B, total, A] int64, the tokens that are right,
    that of the text first, -1 where there are fewer.  weights: [B, total] float32, 0 where a
    token predicts nothing.  marks: [B, total] int64, the kind of the prediction, see MARKS.
    answers: [B, total] int64, 1 + the number of the question inside the row, 0 elsewhere.
    """

    ids: Tensor
    positions: Tensor
    targets: Tensor
    weights: Tensor
    marks: Tensor
    answers: Tensor
    layout: Layout


MARKS = ("text", "first", "pointer", "value", "recall")


@dataclass(frozen=True)
class _Aim:
    """What a row should be: tokens and windows of its text, questions, the longest, ease."""

    length: int
    windows: int
    questions: int
    longest: int
    ease: float


@dataclass(frozen=True)
class _Branch:
    """A question and its answer. also: what else is right at some of its tokens, by index."""

    ids: list[int]
    also: dict[int, list[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Row:
    windows: list[list[int]]
    branches: list[_Branch]
    recall: bool = False


def cut(ids: Sequence[int], ends: set[int], sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Cut tokens into windows, at a sentence's end where one is near.

    Args:
        ids: tokens.  ends: token ids that end a sentence or a line.
        sizes: the most tokens of each window, in order.
    Returns:
        [start, stop) of each window; text beyond the last window is left out.
    """
    found = []
    start = 0
    for size in sizes:
        stop = min(start + size, len(ids))
        if stop < len(ids):
            for back in range(stop, max(start + 1, stop - 96), -1):
                if ids[back - 1] in ends:
                    stop = back
                    break
        if stop > start:
            found.append((start, stop))
        start = stop
    return found


class Batches(Dataset[Any]):
    """Batches by (step, progress). Source and tokenizer are those of one process."""

    def __init__(
        self, source: Source, tokenizer: Tokenizer, curriculum: Curriculum, seed: int, rank: int
    ) -> None:
        self.source, self.tokenizer, self.curriculum = source, tokenizer, curriculum
        self.seed, self.rank = seed, rank
        vocabulary = tokenizer.get_vocab()
        self.size = len(vocabulary)
        self.refusal = tokenizer.encode(f" {NOT_STATED}", add_special_tokens=False).ids
        refusal = tuple(self.refusal)
        self.marks = Marks.of(tokenizer, _ID[DOCUMENT], _ID[VALUE], _ID[END], refusal)
        names = {number: text for text, number in vocabulary.items()}
        # Of each token the one with a space before it, where there is one.
        self.spaced = [vocabulary.get("Ġ" + names[n], n) for n in range(self.size)]
        self.articles = {vocabulary.get(f"Ġ{word}", -1) for word in ("a", "an", "the")}
        self.ends = {
            number
            for text, number in vocabulary.items()
            if number >= len(SPECIALS) and (text[-1] in ".!?Ċ" or text.endswith(('."', '?"')))
        }

    def __getitem__(self, key: tuple[int, float]) -> Batch:
        """The batch of a step at a progress between 0 and 1."""
        step, progress = key
        shape = Random(f"{self.seed} {step}")  # the same for every process
        rng = Random(f"{self.seed} {step} {self.rank}")
        c = self.curriculum
        stage = [s for s in c.stages if s[0] <= progress][-1]
        length = shape.choice(stage[1])
        recall = shape.random() < (c.recall if progress < c.formed else c.rest)
        windows = 1
        if stage[2] > 1 and (length > c.window or shape.random() < 0.5):
            windows = shape.randint(2, stage[2])
            windows = max(min(windows, length // 128), -(-length // c.window))
        system = shape.choice(_SYSTEM) if shape.random() < 0.05 else ""
        jump = shape.random() < c.jump
        questions = min(c.questions, max(8, length // 20))
        # Questions of one length together, so that little of a batch is padding.
        longest = min(shape.choice(_WIDTHS), c.longest)
        rows = max(1, round(c.budget / (length + questions * longest)))
        find = shape.random() < (c.find if progress < c.found else c.find / 2)
        make = self._recall if recall else self._find if find else self._episode
        aim = _Aim(length, windows, questions, longest, c.easy(progress))
        made = _even([make(aim, rng) for _ in range(rows)])
        return self.collate(made, rng, system, c.reach if jump else 0)

    def _recall(self, aim: _Aim, rng: Random) -> _Row:
        length = min(aim.length, 512)
        draw = np.random.default_rng(rng.getrandbits(63))
        pool = draw.integers(len(SPECIALS), self.size, size=draw.integers(60, 2000))
        ids = [int(i) for i in draw.choice(pool, size=length)]
        branches = []
        for _ in range(aim.questions):
            at = rng.randrange(length - 16)
            known, span = rng.randint(3, 5), ids[at : at + 14]
            asked = [_ID[QUESTION], *span[:known], _ID[ANSWER], *span, _ID[END]]
            branches.append(_Branch(asked if rng.random() < 0.5 else span))
        return _Row([ids], branches, recall=True)

    def _find(self, aim: _Aim, rng: Random) -> _Row:
        size = round(1.2 * aim.length)
        document = self.source.sample(size, rng=rng, questions=1, ease=aim.ease).document
        told = [m[0].strip() for m in _SENTENCE.finditer(document)]
        told = [one for one in told if 8 <= one.count(" ") <= 40 and "\n\n" not in one]
        asked = []
        for one in rng.sample(told, min(2 * aim.questions, len(told))):
            words = [(m.start(), m.end()) for m in _WORD.finditer(one)]
            count = rng.randint(3, 7)
            first = rng.randrange(1, max(2, len(words) - count - 2))
            piece = words[first : first + count]
            after = words[first + count : first + count + 2]
            if not after or document.count(one) > 1:
                continue
            said = " ".join(one[a:b] for a, b in piece if rng.random() < 0.85)
            draw = rng.random()
            if draw < 0.5:
                asked.append(Question(said, one, one[after[0][0] : after[-1][1]], "find"))
                continue
            # What stands before the quote is as often wanted as what follows, and harder to find.
            size = rng.randint(1, min(3, first))
            start = first - size if draw < 0.75 else 0
            value = one[words[start][0] : words[start + size - 1][1]]
            text = f"What comes before {said}?" if draw < 0.75 else f"How does {said} begin?"
            asked.append(Question(text, one, value, "find"))
        episode = Episode(document, tuple(asked))
        row = self.lay(episode, self._sizes(aim, rng), 4 * aim.questions, aim.longest)
        return _alike(row, aim.questions, aim.longest)

    def _episode(self, aim: _Aim, rng: Random) -> _Row:
        # Many questions on one text: its tokens are read once for all of them.
        plain = rng.random() < self.curriculum.plain
        episode = self.source.sample(
            round(1.2 * aim.length),
            rng=rng,
            questions=4 * aim.questions,
            ease=aim.ease,
            facts=min(rng.choice((2, 4, 6, 8, 8, 12, 16)), aim.length // 32) if plain else None,
            asks=4,  # more than are kept, so that those kept are of one length
            kind="facts" if plain else None,
        )
        row = self.lay(episode, self._sizes(aim, rng), 4 * aim.questions, aim.longest)
        return _alike(row, aim.questions, aim.longest)

    def _sizes(self, aim: _Aim, rng: Random) -> list[int]:
        if aim.windows == 1:
            return [aim.length]
        # Uneven windows, so that the question's distance to each one varies.
        even = min(aim.length // aim.windows, self.curriculum.window)
        sizes = [rng.randint(even * 3 // 4, even) for _ in range(aim.windows)]
        sizes[rng.randrange(aim.windows)] = even
        return sizes

    def lay(self, episode: Episode, sizes: Sequence[int], questions: int, longest: int) -> _Row:
        """Tokenise an episode; questions whose sentence is cut or left out are dropped.

        Args:
            sizes: the most tokens of each window.
            questions: at most so many.
            longest: tokens of a question with its answer.
        """
        encoded = self.tokenizer.encode(episode.document, add_special_tokens=False)
        spans = cut(encoded.ids, self.ends, sizes)
        starts, stops = np.array(encoded.offsets, dtype=np.int64).reshape(-1, 2).T
        held = [(starts[a], stops[b - 1]) for a, b in spans]
        ids = np.array(encoded.ids, dtype=np.int64)
        told = Told.of(episode.document, ids, stops)
        asked = self.tokenizer.encode_batch(
            [ask(one.text) for one in episode.questions], add_special_tokens=False
        )
        branches = []
        for number, (one, question) in enumerate(zip(episode.questions, asked, strict=True)):
            answer: _Branch | None = _Branch(self.refusal)
            if one.quote:
                at = episode.document.find(one.quote)
                if not any(a <= at and at + len(one.quote) <= b for a, b in held):
                    continue
                begins = openings(one.text, one.quote, one.value, episode.document)
                places = np.searchsorted(stops, [at + begin for begin in begins], side="right")
                value = at + one.quote.find(one.value)
                first = int(np.searchsorted(stops, value, side="right"))
                last = int(np.searchsorted(stops, value + len(one.value), side="left")) + 1
                # The best beginning half of the time, for the way on from there is shortest.
                chosen = (number // 2) % len(places) if number % 2 else 0
                answer = self._answer(told, places.tolist(), chosen, first, last)
            if answer and len(question.ids) + len(answer.ids) < longest:
                asks = len(question.ids)
                also = {asks + index: tokens for index, tokens in answer.also.items()}
                branches.append(_Branch([*question.ids, *answer.ids, _ID[END]], also))
        return _Row([encoded.ids[a:b] for a, b in spans], branches[:questions])

    def _answer(
        self,
        told: Told,
        places: list[int],
        chosen: int,
        value: int,
        last: int,
    ) -> _Branch | None:
        """Pointer, quote and value as `engine.quoting` would have them; None if it could not.

        Args:
            places: tokens where the pointer may begin.  chosen: which of them it does.
            value, last: tokens [value, last) of the value.
        """
        guide, ids = Guide(self.marks, told), told.ids
        place = places[chosen]
        start, stop = passage(told.sentence, place, guide.far)
        if not start <= value < last <= stop:
            return None
        pointer = [self.spaced[ids[place]]]
        guide.say(pointer[0])
        # Now and then longer than need be, for in a longer document it would need be.
        spare = int(ids[place]) % 4
        while place + len(pointer) < stop and (not guide.quoting or len(pointer) <= spare):
            pointer.append(int(ids[place + len(pointer)]))
            if not guide.quoting:
                guide.say(pointer[-1])
        quote = ids[start:stop].tolist()
        said = [*pointer, _ID[DOCUMENT], *quote, _ID[VALUE]]
        also = {0: [self.spaced[ids[one]] for one in places if start <= one < stop]}
        # A value is as right with its article as without.
        if value > start and int(ids[value - 1]) in self.articles:
            also[len(said)] = [int(ids[value - 1])]
        elif value + 1 < last and int(ids[value]) in self.articles:
            also[len(said)] = [int(ids[value + 1])]
        return _Branch([*said, *ids[value:last].tolist()], also)

    def collate(self, rows: Sequence[_Row], rng: Random, system: str, reach: int) -> Batch:
        """Pad rows to one shape, place them and weigh what they predict."""
        prefix = self.tokenizer.encode(f"{BOS}{system}{DOCUMENT}", add_special_tokens=False).ids
        k = max(len(row.windows) for row in rows)
        w = max(len(window) for row in rows for window in row.windows)
        m = max(1, max(len(row.branches) for row in rows))
        q = max((len(branch.ids) for row in rows for branch in row.branches), default=1)
        p, b = len(prefix), len(rows)
        total = p + k * w + m * q
        ids = np.full((b, total), _ID[PAD], dtype=np.int64)
        ids[:, :p] = prefix
        weights = np.zeros((b, total), dtype=np.float32)
        marks = np.zeros((b, total), dtype=np.int64)
        answers = np.zeros((b, total), dtype=np.int64)
        also: list[tuple[int, int, list[int]]] = []
        present = np.zeros((b, p + k * w), dtype=bool)
        present[:, :p] = True
        draw = np.random.default_rng(rng.getrandbits(63))
        lengths = np.zeros(b, dtype=np.int64)
        for r, row in enumerate(rows):
            lengths[r] = max(map(len, row.windows))
            for i, window in enumerate(row.windows):
                at, n = p + i * w, len(window)
                ids[r, at : at + n] = window
                present[r, at : at + n] = True
                if not row.recall:
                    weights[r, at : at + n - 1] = 0.1 * (draw.random(n - 1) < 0.06)
            for i, branch in enumerate(row.branches):
                at, n = p + k * w + i * q, len(branch.ids)
                ids[r, at : at + n] = branch.ids
                weigh = _weigh_recall if row.recall else _weigh
                weights[r, at : at + n - 1], marks[r, at : at + n - 1] = weigh(branch.ids, draw)
                also += [(r, at + index - 1, tokens) for index, tokens in branch.also.items()]
                scored = weights[r, at : at + n - 1] >= 1
                answers[r, at : at + n - 1][scored] = i + 1
        right = [list(dict.fromkeys([int(ids[r, at + 1]), *more])) for r, at, more in also]
        targets = np.full((b, total, max(map(len, right), default=1)), -1, dtype=np.int64)
        targets[:, :, 0] = np.roll(ids, -1, axis=1)
        for (r, at, _), tokens in zip(also, right, strict=True):
            targets[r, at, : len(tokens)] = tokens
        layout = Layout(p, k, w, m, q, torch.from_numpy(present))
        # Distances of all magnitudes; the text itself need not be that long.
        far = [int(reach ** rng.random()) - 1 if reach else 0 for _ in rows]
        place = positions(layout, torch.from_numpy(lengths), torch.tensor(far))
        return Batch(
            ids=torch.from_numpy(ids),
            positions=place,
            targets=torch.from_numpy(targets),
            weights=torch.from_numpy(weights),
            marks=torch.from_numpy(marks),
            answers=torch.from_numpy(answers),
            layout=layout,
        )


def _alike(row: _Row, questions: int, longest: int) -> _Row:
    """Keep the questions that fill a batch of width `longest` best."""
    fitting = [branch for branch in row.branches if len(branch.ids) <= longest]
    fitting.sort(key=lambda branch: len(branch.ids), reverse=True)
    return _Row(row.windows, fitting[:questions])


def _even(rows: list[_Row]) -> list[_Row]:
    """Cut all rows to the number of questions that most of them have."""
    count = sorted(len(row.branches) for row in rows)[len(rows) // 3]
    return [_Row(row.windows, row.branches[: max(4, count)], row.recall) for row in rows]


def _weigh(branch: list[int], draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Weights and marks of the predictions inside one question and its answer.

    What a guide says in the reader's place weighs nothing.
    """
    n = len(branch)
    answer = branch.index(_ID[ANSWER])
    weights = np.zeros(n - 1, dtype=np.float32)
    marks = np.zeros(n - 1, dtype=np.int64)
    weights[:answer] = 0.1 * (draw.random(answer) < 0.25)
    weights[answer:] = 3.0
    weights[answer] = 5.0
    marks[answer:] = MARKS.index("pointer")
    if _ID[VALUE] in branch:
        quote = branch.index(_ID[DOCUMENT], answer)
        value = branch.index(_ID[VALUE], quote)
        weights[quote - 1 : value] = 0.0
        weights[value] = 5.0
        marks[quote - 1 : value] = 0
        marks[value:] = MARKS.index("value")
    marks[answer] = MARKS.index("first")
    return weights, marks


def _weigh_recall(branch: list[int], draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    n = len(branch)
    known = branch.index(_ID[ANSWER]) if _ID[ANSWER] in branch else 3
    weights = np.zeros(n - 1, dtype=np.float32)
    weights[known:] = 1.0
    return weights, np.full(n - 1, MARKS.index("recall"))


class Order:
    """Asks for steps in order, each with the progress of the moment it is asked for."""

    def __init__(self, start: int, progress: list[float]) -> None:
        self.start, self.progress = start, progress

    def __iter__(self) -> Iterator[tuple[int, float]]:
        """Endless (step, progress); `progress[0]` is kept up to date by the training loop."""
        step = self.start
        while True:
            yield step, self.progress[0]
            step += 1


def whole(batches: list[Batch]) -> Batch:
    """A batch is already whole; the loader must not stack it."""
    return batches[0]


def loader(batches: Batches, order: Order, workers: int) -> DataLoader[Any]:
    """Batches made ahead in a process of their own, or in this one if workers is 0."""
    return DataLoader(
        batches,
        batch_size=1,
        sampler=order,
        num_workers=workers,
        collate_fn=whole,
        prefetch_factor=3 if workers else None,
    )
