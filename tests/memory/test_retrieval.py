"""Which passages a question sees: words alike, fused rankings, and attention's vote."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.memory.passage_index import WORDS_AT_ONCE, PassageIndex
from engine.memory.retrieval import (
    ALL,
    ATTENTION,
    PASSAGES_SEEN,
    VOTED_WINDOWS,
    WORDS,
    Retrieval,
    Retrieved,
    fuse,
    joined,
)
from engine.store.passages import PASSAGE, STEP, passages
from letter_vectors import letter_vectors

BOOK = [
    "It rained, and the horses were led into the barn. " * 30,
    "The captain warned the crew of ice. " + "It rained again. " * 80,
    "Zoë sold the vineyard for eleven thousand crowns. " + "It rained. " * 90,
    "It rained, and nobody went out. " * 40,
    "It rained there. " * 70 + "In Lübeck the organ was paid for.",
    "It rained on the last day as well. " * 30,
]
RANKINGS = st.lists(st.lists(st.integers(0, 9), unique=True, max_size=8), max_size=4)
STRETCHES = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9)), max_size=6).map(
    lambda pairs: [(first, first + length) for first, length in pairs]
)


def book(texts: list[str]) -> tuple[list[tuple[int, int]], Callable[[tuple[int, int]], str]]:
    """Windows and the text of a stretch, as if every character were a token."""
    ends = list(accumulate(map(len, texts)))
    whole = "".join(texts)
    return list(pairwise([0, *ends])), lambda stretch: whole[slice(*stretch)]


def retrieval(texts: list[str], *, alone: bool = False) -> Retrieval:
    return Retrieval(*book(texts), letter_vectors, alone=alone)


def windows_with(texts: list[str], *words: str) -> list[int]:
    index = PassageIndex(*book(texts), letter_vectors)
    return list(dict.fromkeys(index.window[passage] for passage in index.scores(words)))


def no_vote() -> torch.Tensor:
    raise AssertionError("attention is not asked where words are found")


@pytest.mark.parametrize(
    ("words", "window"),
    [
        (["warns", "captains"], 1),  # other forms of the words
        (["zoe", "selling"], 2),  # without its accent
        (["organ"], 4),
        (["LÜBECK"], 4),
        (["horse", "unheard"], 0),
        (["rained", "ice"], 1),  # a rare word counts more than a common one
    ],
)
def test_the_window_with_the_words_comes_first(words: list[str], window: int) -> None:
    assert windows_with(BOOK, *words)[0] == window


def test_a_word_that_means_the_same_is_found() -> None:
    """By vectors, where no letter is the same; the word itself counts more."""
    means = {"ship": 0, "vessel": 0, "boat": 0, "cow": 1, "rain": 2}
    texts = [
        "The cow ate in the rain. ",
        "A vessel left in the rain. ",
        "The ship sank in the rain. ",
    ]

    def meaning(words: Sequence[str]) -> torch.Tensor:
        made = torch.zeros(len(words), 64)
        for row, word in enumerate(words):
            made[row, means.get(word, 3)] = 1.0
            made[row, 4 + zlib.crc32(word.encode()) % 60] = 0.5
        return made

    index = PassageIndex(*book(texts), meaning)
    scores = index.scores(["boat"])
    assert sorted(list(scores)[:2]) == [1, 2]
    assert scores[1] > 2 * scores.get(0, 0.0)
    assert list(index.scores(["vessel"]))[:2] == [1, 2]


def test_without_words_nothing_is_found() -> None:
    assert windows_with(BOOK) == []
    assert windows_with(BOOK, "the", "?!", "") == []
    assert windows_with(["... ", "!? "], "ice") == []


def test_a_passage_without_words_is_found_by_none() -> None:
    """A table of figures is no such passage, a rule of dashes is."""
    assert set(windows_with(["Ice. ", "---- ", "1910 "], "ice", "1910")) == {0, 2}


@given(st.lists(st.text(max_size=40), min_size=1, max_size=6), st.lists(st.text(max_size=12)))
def test_scores_are_numbers_for_any_text(texts: list[str], words: list[str]) -> None:
    found = windows_with([f"{text} " for text in texts], *words)
    assert set(found) <= set(range(len(texts)))
    scores = PassageIndex(*book([f"{text} " for text in texts]), letter_vectors).scores(words)
    assert all(score > 0 for score in scores.values())  # and no NaN
    assert list(scores.values()) == sorted(scores.values(), reverse=True)


def test_a_question_is_worth_what_its_words_are_however_many() -> None:
    index = PassageIndex(*book(BOOK), letter_vectors)
    words = ["ice", "organ", "vineyard", *(f"word{number}" for number in range(2 * WORDS_AT_ONCE))]
    whole, parts = index.scores(words), [index.scores([word]) for word in words]
    for passage, score in whole.items():
        assert score == pytest.approx(sum(part.get(passage, 0.0) for part in parts), rel=1e-3)


def test_scripts_without_spaces_are_found_by_their_characters() -> None:
    texts = ["昨日は雨が降った。", "村の橋は石でできている。"]
    assert windows_with(texts, "橋は何でできていますか")[0] == 1


@given(st.integers(0, 50), st.integers(1, 5 * PASSAGE), st.data())
def test_every_stretch_of_half_a_passage_lies_within_one(
    first: int, length: int, data: st.DataObject
) -> None:
    """So that no statement of that length is cut in two."""
    found = passages((first, first + length))
    assert found[0][0] == first
    assert found[-1][1] == first + length
    assert all(0 < end - start <= PASSAGE for start, end in found)
    size = min(length, STEP)
    place = data.draw(st.integers(first, first + length - size))
    assert any(start <= place and place + size <= end for start, end in found)


@given(STRETCHES)
def test_joined_stretches_have_the_same_tokens_in_order_and_apart(
    stretches: list[tuple[int, int]],
) -> None:
    made = joined(stretches)
    assert [t for pair in made for t in range(*pair)] == sorted(
        {t for pair in stretches for t in range(*pair)}
    )
    assert all(end < start for (_, end), (start, _) in pairwise(made))


@given(RANKINGS)
def test_a_fused_ranking_has_everything_once(rankings: list[list[int]]) -> None:
    assert sorted(fuse(rankings)) == sorted({one for ranking in rankings for one in ranking})


@given(st.lists(st.integers(0, 9), unique=True), st.integers(1, 4))
def test_rankings_that_agree_stay_as_they_are(ranking: list[int], times: int) -> None:
    assert fuse([ranking] * times) == ranking


@given(RANKINGS)
def test_the_order_of_rankings_does_not_matter(rankings: list[list[int]]) -> None:
    assert fuse(rankings) == fuse(rankings[::-1])


@given(RANKINGS)
def test_what_is_before_another_in_every_ranking_is_before_it_in_the_end(
    rankings: list[list[int]],
) -> None:
    fused = fuse(rankings)
    for a in fused:
        for b in fused:
            if all(
                a in ranking and (b not in ranking or ranking.index(a) < ranking.index(b))
                for ranking in rankings
            ):
                assert a == b or fused.index(a) < fused.index(b)


def test_the_best_passages_are_seen_and_their_windows_named_best_first() -> None:
    windows, text = book(BOOK)
    chosen = retrieval(BOOK).choose([["organ", "lubeck", "ice"]], no_vote)
    assert chosen.by == WORDS
    assert chosen.windows[0] == 4
    assert 1 in PassageIndex(windows, text, letter_vectors).window
    assert chosen.stretches is not None
    seen = " ".join(map(text, chosen.stretches))
    assert "In Lübeck the organ was paid for." in seen
    assert len(seen) <= PASSAGES_SEEN * (PASSAGE + 1)
    scores = [chosen.lexical[window] for window in chosen.windows]
    assert scores == sorted(scores, reverse=True)


def test_a_question_that_says_nothing_itself_is_led_by_the_turn_before_it() -> None:
    chosen = retrieval(BOOK).choose([["she", "much"], ["vineyard", "much"]], no_vote)
    assert chosen.windows[0] == 2


def test_where_a_question_has_no_word_attention_votes_for_windows() -> None:
    windows, _ = book(BOOK)
    votes = torch.tensor([0.0, 3.0, 1.0, 5.0, 2.0, 4.0])
    chosen = retrieval(BOOK).choose([["?"]], lambda: votes)
    best = (3, 5, 1, 4)[:VOTED_WINDOWS]
    assert chosen == Retrieved(
        best,
        ATTENTION,
        joined(windows[window] for window in best),
        attention={window: float(votes[window]) for window in best},
    )


def test_without_words_and_votes_all_windows_are_seen() -> None:
    chosen = retrieval(BOOK).choose([["?"]], lambda: None)
    assert chosen == Retrieved(tuple(range(6)), ALL)


def test_a_document_of_one_window_has_no_index_and_is_seen_whole() -> None:
    windows, _ = book(BOOK[:1])
    one = Retrieval(windows, lambda stretch: pytest.fail("asked for its text"), letter_vectors)
    assert one.choose([["organ"]], no_vote) == Retrieved((0,), ALL)


def test_alone_a_window_is_seen_with_no_other_however_it_was_chosen(
    subtests: pytest.Subtests,
) -> None:
    """As models need it whose layers keep a state of one window."""
    windows, _ = book(BOOK)
    alone = retrieval(BOOK, alone=True)
    asked = [["ice", "crowns", "organ", "horse"]]
    votes = torch.tensor([0.1, 0.2, 0.9, 0.3, 0.8, 0.0])
    ways = {
        "words": (alone.choose(asked, no_vote), None),
        "attention": (alone.choose([[]], lambda: votes), 2),
        "nothing": (alone.choose([[]], lambda: None), 5),
        "nothing of what is read": (alone.choose([[]], lambda: None, unread=[5]), 4),
        "an outline": (alone.of([(0, windows[1][1])]), 0),
        "an outline of nothing read": (alone.of([windows[1]], unread=[1]), 5),
    }
    for way, (found, expected) in ways.items():
        with subtests.test(way=way):
            (seen,) = found.windows
            assert expected in (None, seen)
            assert found.stretches is not None
            first, end = windows[seen]
            assert all(first <= a < b <= end for a, b in found.stretches)
    assert len(retrieval(BOOK).choose(asked, no_vote).windows) == 2
