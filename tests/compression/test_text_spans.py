"""Cuts by text: sentences, punctuation near a length, delimiters that attention marks."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.compression.spans import Segmenter, Spans
from engine.compression.text_spans import (
    Delimiters,
    Punctuated,
    Sentences,
    ends_sentence,
    sentence_ends,
    strengths,
)


def words(text: str) -> list[str]:
    """Tokens as a byte-level vocabulary makes them: a word with the space before it, and marks
    that may be merged with what follows."""
    return re.findall(r"\.\n\n|\.\n|\.[\"”]|\n+| ?\w+|[^\w\s]|\s", text)


def cut(segmenter: Segmenter, pieces: list[str]) -> list[str]:
    spans = segmenter.cut(torch.zeros(len(pieces)), pieces)
    return texts(spans, pieces)


def texts(spans: Spans, pieces: list[str]) -> list[str]:
    edges = spans.bounds.tolist()
    return ["".join(pieces[a:b]) for a, b in pairwise(edges)]


SENTENCES = [
    ("One two. Three four! Five?", ["One two.", " Three four!", " Five?"]),
    (
        "He stopped.\nShe went.\n\nThey slept.",
        ["He stopped.\n", "She went.\n\n", "They slept."],
    ),
    ('"Stop." He ran.', ['"Stop."', " He ran."]),
    ("He said “Stop.” Then he ran.", ["He said “Stop.”", " Then he ran."]),
    (
        "Mr. Hyde met Dr. Jekyll. J. Harker wrote.",
        ["Mr. Hyde met Dr. Jekyll.", " J. Harker wrote."],
    ),
    ("It rose by 3.5 per cent. Then it fell.", ["It rose by 3.5 per cent.", " Then it fell."]),
    (
        "Small firms, e.g. bakers, closed. All did.",
        ["Small firms, e.g. bakers, closed.", " All did."],
    ),
    ("Wait... what? Yes.", ["Wait... what?", " Yes."]),
    ("他来了。她走了！为什么？", ["他来了。", "她走了！", "为什么？"]),
    ("A heading\n\nA paragraph", ["A heading\n\n", "A paragraph"]),
    ("no end at all", ["no end at all"]),
]


def test_sentences_end_where_readers_end_them(subtests: pytest.Subtests) -> None:
    """Also where the mark is merged with a line break or a quote, and in Chinese."""
    for text, sentences in SENTENCES:
        with subtests.test(text=text):
            found = cut(Sentences(), words(text))
            if "..." in text:
                assert "".join(found) == text
                assert found[-1] == " Yes."
            else:
                assert found == sentences


def test_a_character_of_several_tokens_ends_a_sentence_once() -> None:
    """Byte tokens of one character all carry the whole character."""
    pieces = ["他", "来", "。", "。", "。", "她", "走"]
    assert cut(Sentences(), pieces) == ["他来。。。", "她走"]


def test_a_text_without_sentences_is_still_cut() -> None:
    spans = Sentences(longest=8).cut(torch.zeros(30), ["x"] * 30)
    assert int(spans.bounds.diff().max()) <= 8


@pytest.mark.parametrize(
    ("written", "ended"),
    [
        ("The crew saw whales.", True),
        ("The crew saw whales", False),
        ("The crew met Mr.", False),
        ("它来了。", True),
        ("A title\n\n", True),
        ("", False),
        ("One. Two", False),
    ],
)
def test_a_growing_text_tells_when_a_sentence_ends(written: str, ended: bool) -> None:
    assert ends_sentence(written) is ended


def test_ends_are_positions_after_the_mark_and_its_quotes() -> None:
    assert sentence_ends('A. "B." C') == [7]  # "A." is an initial
    assert sentence_ends("It is. So (it is.) Yes") == [6, 18]


def test_punctuation_is_weighed() -> None:
    pieces = ["word", ".", ",", ";", "!”", ".\n\n", " a", "\n", "\n", " and"]
    assert strengths(pieces).tolist() == [0, 0.8, 0.3, 0.5, 0.8, 1.0, 0, 0, 1.0, 0]


def test_the_strongest_mark_in_reach_wins_over_the_nearer_one() -> None:
    """And without any weight on marks the cut is at the target; without one on distance the
    farthest strong mark is as good as the near."""
    pieces = [" w"] * 40
    pieces[9], pieces[13] = ",", "."
    bounds = Punctuated(target=10, slack=4).cut(torch.zeros(40), pieces).bounds
    assert int(bounds[1]) == 14
    near = Punctuated(target=10, slack=4, mark=0.1).cut(torch.zeros(40), pieces).bounds
    assert int(near[1]) == 10
    free = Punctuated(target=10, slack=4, distance=0.0).cut(torch.zeros(40), [" w"] * 40).bounds
    assert int(free[1]) == 6  # nothing to choose by: the first in reach


@settings(max_examples=40)
@given(
    pieces=st.lists(st.sampled_from([" a", ".", ",", "\n\n", ";"]), min_size=1, max_size=120),
    target=st.integers(2, 20),
    slack=st.integers(0, 19),
)
def test_lengths_stay_in_reach(pieces: list[str], target: int, slack: int) -> None:
    slack = min(slack, target - 1)
    spans = Punctuated(target, slack).cut(torch.zeros(len(pieces)), pieces)
    lengths = spans.bounds.diff()
    assert int(lengths.sum()) == len(pieces)
    assert int(lengths.min()) >= 1
    assert int(lengths.max()) <= target + slack
    assert bool((lengths[:-1] >= target - slack).all())


def test_a_block_ends_at_the_delimiter_that_attention_does_not_cross() -> None:
    """The tokens after the comma look back to it and no further; those after the full stop look
    at what stands before it."""
    pieces = [" w"] * 60
    pieces[28], pieces[33] = ".", ","
    near = torch.full((60, 16), 0.5)
    for later in range(1, 16):
        near[33 + later, later] = 1.0
        near[28 + later, later] = 0.0
    spans = Delimiters(target=32, slack=8).cut(torch.zeros(60), pieces, near)
    assert int(spans.bounds[1]) == 34
    swapped = near.clone()
    for later in range(1, 16):
        swapped[33 + later, later] = 0.0
        swapped[28 + later, later] = 1.0
    spans = Delimiters(target=32, slack=8).cut(torch.zeros(60), pieces, swapped)
    assert int(spans.bounds[1]) == 29


def test_the_score_of_a_cut_is_what_it_says() -> None:
    """Mean over the next tokens of the attention on this side less that on the other."""
    near = torch.rand(12, 4, generator=torch.Generator().manual_seed(1)).sort(-1).values
    found = Delimiters(reach=4, alpha=2.0).scores(near)
    by_hand = [sum(float(near[5 + j, j]) - 2 * (1 - float(near[5 + j, j])) for j in (1, 2, 3)) / 3]
    assert found[5] == pytest.approx(by_hand[0], abs=1e-6)
    assert found[11] == 0.0


def test_without_delimiters_blocks_have_their_target_length() -> None:
    spans = Delimiters(target=10, slack=3).cut(torch.zeros(45), ["x"] * 45, torch.rand(45, 16))
    assert spans.bounds.tolist() == [0, 10, 20, 30, 40, 45]


def test_attention_that_was_not_observed_is_not_invented() -> None:
    with pytest.raises(ValueError, match="none was observed"):
        Delimiters().cut(torch.zeros(5), ["."] * 5)
