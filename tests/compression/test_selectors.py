"""When a layer chooses anew, by which query, and what it does not see."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from engine.attention.layer import LayerMemory
from engine.attention.shares import Limits
from engine.compression.codecs.half_rows import HalfRows
from engine.compression.methods import Method
from engine.compression.routers.question_blind import Recency
from engine.compression.routers.span_keys import SpanKey
from engine.compression.selectors import Blocks, Once, SentenceQuery, Transcript, in_turns
from engine.compression.summaries import Mean
from tiny_memory import fixed_spans, layer, plain, rows

HEADS, KV_HEADS, SIZE, TOKENS = 4, 2, 16, 60
SENTENCES = Method(
    "test",
    segmenter=None,  # type: ignore[arg-type]
    summariser=Mean(),
    codec=HalfRows(),
    router=SpanKey(),
    source="test",
    selector=SentenceQuery(recent=4),
)


def memory(recipe: Method, room: float, tokens: int = TOKENS) -> LayerMemory:
    """Spans of ten tokens behind one pinned; `room` bytes to zoom in."""
    k, v = rows(5, KV_HEADS, tokens, SIZE)
    made = layer(k, v, fixed_spans(tokens, 10), recipe=recipe)
    made.limits = Limits(made.fixed_bytes + room, 1.0)
    return made


def ask(made: LayerMemory, seed: int, queries: int, live: int) -> torch.Tensor:
    made_ = torch.Generator().manual_seed(seed)
    q = 2 * torch.randn(HEADS, queries, SIZE, generator=made_)
    k, v = (torch.randn(KV_HEADS, live, SIZE, generator=made_) for _ in range(2))
    made.attend(q, k, v, torch.ones(queries, live, dtype=torch.bool).tril(live - queries))
    return q


def zoomed(made: LayerMemory) -> list[list[int]]:
    return [spans.tolist() for spans in made.zoomed.spans]


ROOM = 2 * 10 * KV_HEADS * (4 * SIZE + 4)  # two spans per head


def words(ids: list[int]) -> str:
    """Token 9 ends a sentence; every other one is a word."""
    return "".join("." if i == 9 else f" w{i}" for i in ids)


# ---------------------------------------------------------------------------- the transcript


def test_sentences_of_the_answer_are_heard_and_the_question_is_one() -> None:
    transcript = Transcript(words)
    transcript.append([1, 9, 2])
    assert (transcript.question, transcript.sentences, transcript.opens) == (3, [], False)
    transcript.append([3])
    assert transcript.opens
    transcript.append([4])
    assert not transcript.opens
    transcript.append([9])
    assert transcript.ended
    assert transcript.sentences == [(3, 6)]
    transcript.append([5])
    assert transcript.opens
    assert not transcript.ended


# ---------------------------------------------------------------------------- the mean query


def test_the_query_is_the_mean_over_the_sentence_so_far() -> None:
    """What is zoomed is what the mean of all its queries would choose, not the newest one."""
    made = memory(SENTENCES, ROOM)
    transcript = made.shared.transcript = Transcript(words)
    transcript.append([1, 2])
    ask(made, 1, 2, 2)
    asked = []
    for place, token in enumerate([3, 4, 5, 6]):
        transcript.append([token])
        asked.append(ask(made, 20 + place, 1, 3 + place)[:, 0])
    mean = torch.stack(asked).mean(0)
    k, _ = rows(5, KV_HEADS, TOKENS, SIZE)
    keys = torch.stack([k[:, a : a + 10].mean(1) for a in range(0, 60, 10)], 1)
    keys[:, 0] = k[:, 1:10].mean(1)
    for head in range(KV_HEADS):
        scores = mean[2 * head : 2 * head + 2] @ keys[head].half().float().T
        best = in_turns(scores[None])[0].argsort(descending=True)[:2]
        assert sorted((best + 1).tolist()) == zoomed(made)[head]
    newest = [asked[-1][2 * h : 2 * h + 2] @ keys[h].half().float().T for h in range(KV_HEADS)]
    other = [
        sorted((in_turns(s[None])[0].argsort(descending=True)[:2] + 1).tolist()) for s in newest
    ]
    assert other != zoomed(made)  # else this test would not tell them apart


def test_a_new_sentence_forgets_the_old_one_s_queries() -> None:
    """And keeps its choice until it has two tokens of its own."""
    made = memory(SENTENCES, ROOM)
    transcript = made.shared.transcript = Transcript(words)
    transcript.append([1, 2, 3])
    ask(made, 3, 3, 3)
    for place, token in enumerate([4, 9]):
        transcript.append([token])
        ask(made, 30 + place, 1, 4 + place)
    before = zoomed(made)
    transcript.append([5])
    ask(made, 40, 1, 6)
    assert zoomed(made) == before
    transcript.append([6])
    ask(made, 40, 1, 7)
    after = zoomed(made)
    fresh = memory(SENTENCES, ROOM)
    fresh.shared.transcript = Transcript(words)
    fresh.shared.transcript.append([1])
    ask(fresh, 40, 1, 1)
    fresh.shared.transcript.append([6])
    ask(fresh, 40, 1, 2)
    assert after == zoomed(fresh)
    assert after != before


def live_weights(made: LayerMemory, seed: int, live: int) -> torch.Tensor:
    """How much each live row counts: the change of the output when its value changes."""
    drawn = torch.Generator().manual_seed(seed)
    q = 2 * torch.randn(HEADS, 1, SIZE, generator=drawn)
    k, v = (torch.randn(KV_HEADS, live, SIZE, generator=drawn) for _ in range(2))
    seen = torch.ones(1, live, dtype=torch.bool)
    choice = made.choice
    base = made.attend(q, k, v, seen)
    change = []
    for row in range(live):
        made.choice = choice
        loud = v.clone()
        loud[:, row] += 1000
        change.append((made.attend(q, k, loud, seen) - base).abs().amax((1, 2)))
    return torch.stack(change, 1)


def test_finished_sentences_become_buckets_that_must_be_chosen() -> None:
    """Older than the recent ones they are seen only if they rank among the document's."""
    made = memory(SENTENCES, 0.0)  # no room: no document span and no bucket is chosen
    transcript = made.shared.transcript = Transcript(words)
    transcript.append([1, 2, 3])
    ask(made, 1, 3, 3)
    for place, token in enumerate([4, 5, 9, 6, 7, 8, 6, 7]):
        transcript.append([token])
        ask(made, 50 + place, 1, 4 + place)
    transcript.append([5])
    influence = live_weights(made, 99, 12)
    bucket = slice(3, 6)
    assert float(influence[:, bucket].max()) == 0.0
    assert bool((influence[:, :3] > 0).all())  # the question
    assert bool((influence[:, 6:] > 0).all())  # what is recent, and the sentence itself
    made.limits = replace(made.limits, cap=math.inf)
    transcript.append([5])
    assert float(live_weights(made, 98, 13)[:, bucket].min()) > 0.0


def test_what_is_not_zoomed_is_not_seen() -> None:
    """No summary stands in: the output is plain attention over pinned, zoomed and live rows."""
    made = memory(SENTENCES, ROOM)
    made.shared.transcript = Transcript(words)
    made.shared.transcript.append([1, 2])
    k, v = rows(5, KV_HEADS, TOKENS, SIZE)
    drawn = torch.Generator().manual_seed(8)
    q = torch.randn(HEADS, 2, SIZE, generator=drawn)
    live_k, live_v = (torch.randn(KV_HEADS, 2, SIZE, generator=drawn) for _ in range(2))
    causal = torch.ones(2, 2, dtype=torch.bool).tril()
    out = made.attend(q, live_k, live_v, causal)
    for head in range(KV_HEADS):
        bounds = made.bounds.tolist()
        seen = torch.zeros(TOKENS, dtype=torch.bool)
        seen[0] = True
        for span in zoomed(made)[head]:
            seen[bounds[span] : bounds[span + 1]] = True
        group = slice(2 * head, 2 * head + 2)
        true = plain(
            q[group],
            torch.cat([k[head : head + 1].half().float(), live_k[head : head + 1]], 1),
            torch.cat([v[head : head + 1].half().float(), live_v[head : head + 1]], 1),
            torch.cat([seen.expand(2, -1), causal], 1),
        )
        torch.testing.assert_close(out[group], true.float(), atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------------------- the others


def test_a_static_choice_never_follows_the_question() -> None:
    """The last spans, whatever is asked, and again after another question."""
    recipe = replace(SENTENCES, router=Recency(), selector=Once())
    made = memory(recipe, ROOM)
    ask(made, 1, 3, 3)
    first = zoomed(made)
    assert first == [[5, 6], [5, 6]]
    ask(made, 2, 1, 4)
    made.release()
    ask(made, 77, 2, 2)
    assert zoomed(made) == first


def test_a_static_ranking_takes_nothing_of_the_budget() -> None:
    made = memory(replace(SENTENCES, router=Recency(), selector=Once()), ROOM)
    assert made.fixed_bytes == made.zoomed.fixed_bytes
    assert made.fixed_bytes == 2 * made.pinned_k.nbytes + 4 * KV_HEADS


def test_alike_heads_choose_together() -> None:
    """By the first head's ranking; else each has its own."""
    made = memory(replace(SENTENCES, selector=Once(alike=True)), ROOM)
    ask(made, 1, 3, 3)
    first, second = zoomed(made)
    assert first == second
    assert len(first) == 2
    made = memory(replace(SENTENCES, selector=Once()), ROOM)
    ask(made, 1, 3, 3)
    assert zoomed(made)[0] == first != zoomed(made)[1]


def drift(made: LayerMemory, steps: int) -> tuple[int, int]:
    """Spans fetched and kept by queries that turn slowly."""
    drawn = torch.Generator().manual_seed(6)
    first, second = (2 * torch.randn(HEADS, 1, SIZE, generator=drawn) for _ in range(2))
    transcript = made.shared.transcript = Transcript(words)
    transcript.append([1])
    for step in range(steps):
        if step:
            transcript.append([2])
        turn = step / steps
        q = math.cos(turn) * first + math.sin(turn) * second
        live = torch.zeros(KV_HEADS, step + 1, SIZE)
        made.attend(q, live, live, torch.ones(1, step + 1, dtype=torch.bool))
    return made.zoomed.traffic.fetched_spans, made.zoomed.traffic.reused_spans


def test_only_newly_selected_sentences_are_fetched() -> None:
    """And the more overlap is enough, the fewer; what stays is counted as reused."""
    counts = {}
    for overlap in (0.0, 0.7, 2.0):
        made = memory(replace(SENTENCES, selector=Blocks(overlap)), ROOM)
        counts[overlap] = drift(made, 12)
        fetched, reused = counts[overlap]
        assert fetched + reused == 12 * 4  # two spans, two heads, every step
    assert counts[0.0][0] == 4  # the first choice stays
    assert counts[0.0][0] < counts[0.7][0] <= counts[2.0][0]


def test_a_sentence_s_end_renews_the_choice() -> None:
    made = memory(replace(SENTENCES, selector=Blocks(0.0)), ROOM)
    transcript = made.shared.transcript = Transcript(words)
    transcript.append([1])
    ask(made, 1, 1, 1)
    first = zoomed(made)
    transcript.append([2])  # opens the answer's first sentence
    ask(made, 2, 1, 2)
    second = zoomed(made)
    transcript.append([3])
    ask(made, 3, 1, 3)
    assert second != first
    assert zoomed(made) == second


def test_rows_take_turns() -> None:
    """Every row's best comes before any row's third, whatever the size of its scores."""
    scores = torch.tensor([[[1.0, 0.9, 0.1, 0.0], [10.0, 30.0, 90.0, 20.0]]])
    worth = in_turns(scores)[0]
    assert sorted(worth.argsort(descending=True)[:3].tolist()) == [0, 1, 2]
    assert worth[3] == worth.min()
    assert torch.equal(in_turns(scores), in_turns(scores * torch.tensor([[[1.0], [1e3]]])))


@pytest.mark.parametrize("overlap", [0.7, 2.0])
def test_choices_begin_anew_with_a_question(overlap: float) -> None:
    made = memory(replace(SENTENCES, selector=Blocks(overlap)), ROOM)
    ask(made, 4, 2, 2)
    first = zoomed(made)
    ask(made, 5, 1, 3)
    made.release()
    ask(made, 4, 2, 2)
    assert zoomed(made) == first
