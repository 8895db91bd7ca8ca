"""Long answers: finished thoughts leave the device, a vote shows some, nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.answer import repetition
from engine.attention.long_answer import LongAnswer, LongAnswerLayer
from engine.compression import methods as recipes
from engine.compression.selectors import Transcript
from engine.compression.thoughts import Thoughts
from engine.models.reader import Reader, load_reader
from tiny_books import QUESTION, read, session
from tiny_models import checkpoint

RULE = Thoughts(full=1, top=1, recent=4, shortest=4, longest=8, summary=2, shown=2)
HEADS, KV_HEADS, SIZE = 4, 2, 8


def words(ids: list[int]) -> str:
    return "".join("." if i == 9 else f" w{i}" for i in ids)


def rows(positions: range | list[int]) -> torch.Tensor:
    """Rows [1, Hkv, n, D] that say which live position they are."""
    return torch.tensor(list(positions)).float()[None, None, :, None].expand(1, KV_HEADS, -1, SIZE)


class Played:
    """One layer under an answer that is fed token by token."""

    def __init__(self, rule: Thoughts, question: int = 3):
        self.transcript = Transcript(words)
        self.answer = LongAnswer(rule, self.transcript, 1)
        self.layer: LongAnswerLayer = self.answer.layers[0]
        self.k = torch.empty(1, KV_HEADS, 0, SIZE)
        self.v = self.k
        self.total = 0
        self.feed([1] * question)

    def feed(self, ids: list[int], q: torch.Tensor | None = None) -> None:
        new = rows(range(self.total, self.total + len(ids)))
        self.total += len(ids)
        self.k, self.v = torch.cat([self.k, new], 2), torch.cat([self.v, -new], 2)
        self.transcript.append(ids)
        if q is not None:
            self.answer.vote(self.layer, q)
        self.answer.plan()
        self.k, self.v = self.layer.rows(self.k, self.v)

    @property
    def resident(self) -> list[int]:
        assert torch.equal(self.k, -self.v)
        return [int(x) for x in self.k[0, 0, :, 0]]


def test_a_finished_thought_is_compressed_to_its_summary_once_it_is_old() -> None:
    """Three words and a full stop, then four more tokens: rows 3..6 leave, their last two stay."""
    played = Played(RULE)
    for token in [5, 5, 5, 9]:
        played.feed([token])
    assert played.resident == list(range(7))
    for token in [6, 6, 6, 9]:
        played.feed([token])
    assert played.answer.thoughts == [(3, 7), (7, 11)]
    assert played.answer.compressed == 1
    assert played.resident == [0, 1, 2, 5, 6, 7, 8, 9, 10]
    assert played.layer.away + len(played.resident) == played.total


def test_a_short_sentence_waits_for_the_next_and_an_endless_one_is_cut() -> None:
    played = Played(RULE)
    for token in [5, 9, 5, 9]:
        played.feed([token])
    assert played.answer.thoughts == [(3, 7)]
    for token in [5] * 17:
        played.feed([token])
    assert played.answer.thoughts == [(3, 7), (7, 15), (15, 23)]


def query(position: float, heads: int = HEADS) -> torch.Tensor:
    """A query that likes keys near a position best: distance is not linear in a key of equal
    entries, so it likes the largest (positive) or the smallest (negative)."""
    return torch.full((heads, 1, SIZE), position)


def grown(rule: Thoughts = RULE, thoughts: int = 5) -> Played:
    played = Played(rule)
    for _ in range(thoughts):
        for token in [5, 5, 5, 9]:
            played.feed([token])
    return played


def test_the_thoughts_most_heads_name_are_shown_in_full() -> None:
    """At a sentence's end three heads name the first thought and one the last compressed one: the
    first comes back with all its rows, the other as its summary, the rest are not there."""
    played = grown()
    compressed = played.answer.compressed
    assert compressed == 4
    for token in [5, 5, 5]:
        played.feed([token])
    votes = torch.cat([query(-1.0, 3), query(1.0, 1)])
    played.feed([9], votes)
    assert played.answer.shown == ((0, True), (3, False), (4, False))  # 4 is compressed only now
    assert played.resident == [0, 1, 2, 3, 4, 5, 6, 17, 18, 21, 22, *range(23, 27)]


def test_nothing_changes_within_a_sentence() -> None:
    played = grown()
    shown, resident = played.answer.shown, len(played.resident)
    played.feed([5], query(-1.0))
    assert played.answer.shown == shown
    assert len(played.resident) == resident + 1
    assert played.answer.votes is None


def test_votes_count_over_layers() -> None:
    """One set for the whole model: a layer's favourite loses against that of two others."""
    answer = LongAnswer(RULE, Transcript(words), 3)
    answer.transcript.ids, answer.transcript.ended = [0] * 30, True
    means = torch.arange(3.0)[None, :, None].expand(KV_HEADS, -1, SIZE)
    for layer, liked in enumerate((-1.0, 1.0, 1.0)):
        answer.layers[layer].means = means
        answer.vote(answer.layers[layer], query(liked))
    assert answer.votes is not None
    assert answer.votes.tolist() == [4, 0, 8]


def test_what_is_shown_has_a_bound() -> None:
    """However long the answer, with many heads naming different thoughts."""
    played = grown(replace(RULE, top=9, shown=2), 1000)  # four thousand tokens
    for token in [5, 5, 5]:
        played.feed([token])
    played.feed([9], query(1.0))
    full = sum(whole for _, whole in played.answer.shown)
    assert full == 1
    assert len(played.answer.shown) <= 1 + 2 + 1  # and what was compressed only now
    assert len(played.resident) <= 3 + 4 + 3 * 2 + 4 + RULE.longest


# ---------------------------------------------------------------------------- with a model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint("llama", tmp_path_factory.mktemp("m"), max_position_embeddings=16384)


@pytest.fixture(scope="module")
def reader(model: Path) -> Reader:
    return load_reader(str(model), device="cpu")


def answered(
    tmp_path: Path, model: Path, reader: Reader, rule: Thoughts | None, tokens: int
) -> Any:
    """What a model says at length about a short log; `rule` compresses its answer."""
    name = "compressed" if rule else "plain"
    recipe = replace(recipes.METHODS["sekv"], name=name, output=rule)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(recipes.METHODS, name, recipe)
        store = read(tmp_path / name, model, reader=reader, method=name, device="cpu")
    with (
        session(store, reader, max_new_tokens=tokens, budget="50%", model=str(model)) as asked,
        pytest.MonkeyPatch.context() as patch,
    ):
        # A tiny random model repeats itself, which ends an answer; here it goes on.
        patch.setattr(repetition, "loops", lambda tokens: 0)
        return asked.ask(QUESTION)


def test_thoughts_that_are_all_shown_in_full_change_nothing(
    tmp_path: Path, model: Path, reader: Reader
) -> None:
    """Positions stay, so that rows which left and came back say what they said."""
    rule = Thoughts(full=10**6, top=10**6, recent=16, shortest=8, longest=16, summary=16)
    compressed = answered(tmp_path, model, reader, rule, 80)
    plain = answered(tmp_path, model, reader, None, 80)
    assert compressed.answer == plain.answer
    assert compressed.usage.answer_tokens == 80


def test_compressing_changes_what_is_said_and_what_is_resident(
    tmp_path: Path, model: Path, reader: Reader
) -> None:
    rule = Thoughts(full=1, top=1, recent=16, shortest=8, longest=16, summary=4, shown=2)
    compressed = answered(tmp_path, model, reader, rule, 300)
    plain = answered(tmp_path, model, reader, None, 300)
    assert compressed.answer != plain.answer
    assert compressed.stats["answer_kv_bytes"] < plain.stats["answer_kv_bytes"] * 0.6


@pytest.mark.slow
def test_device_memory_stays_flat_over_four_thousand_tokens(
    tmp_path: Path, model: Path, reader: Reader
) -> None:
    """The plain cache grows with every token; the compressed one, when the window and the thoughts
    in full have their size, by short summaries up to `shown` and a mean key per thought alone."""
    rule = recipes.METHODS["zoomr"].output
    short, long = (answered(tmp_path / str(n), model, reader, rule, n) for n in (2048, 4096))
    plain = answered(tmp_path / "plain", model, reader, None, 4096)
    compressed = [made.stats["answer_kv_bytes"] for made in (short, long)]
    assert rule is not None
    row = plain.stats["answer_kv_bytes"] / 4096
    assert compressed[1] - compressed[0] <= rule.shown * rule.summary * row
    assert plain.stats["answer_kv_bytes"] >= 2.5 * compressed[1]
