"""A look-up reader held to its document: whatever it chooses, it quotes."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.quoting import Guide, Marks, sentences

VALUE, END, NOT, STATED = 0, 1, 2, 3
# Tokens 10 and 20, 11 and 21, ... differ by a leading space alone.
ALIKE = np.array([*range(10), *range(10, 20), *range(10, 20)])
MARKS = Marks(VALUE, END, (NOT, STATED), ALIKE)


FAR = 3


def run(ids: list[int], choices: list[int]) -> list[int]:
    """Say what `choices` pick among the allowed tokens until the end mark."""
    guide = Guide(MARKS, np.array(ids), np.arange(len(ids)) // 5, far=FAR)
    said: list[int] = []
    for choice in choices:
        allowed = guide.allowed()
        assert len(allowed)
        token = int(allowed[choice % len(allowed)])
        said.append(token)
        if token == END:
            break
        guide.say(token)
    return said


def stands_in(part: list[int], whole: list[int]) -> bool:
    """Whether a run stands in another, the space before its first token aside."""
    n = len(part)
    return any(
        ALIKE[whole[i]] == ALIKE[part[0]] and whole[i + 1 : i + n] == part[1:]
        for i in range(len(whole) - n + 1)
    )


@settings(deadline=None)
@given(
    st.lists(st.integers(10, 29), min_size=1, max_size=40),
    st.lists(st.integers(0, 1000), min_size=1, max_size=60),
)
def test_whatever_is_chosen_the_quote_and_the_value_stand_there(
    ids: list[int], choices: list[int]
) -> None:
    said = run(ids, choices)
    if said[0] == NOT:
        assert said == [NOT, STATED, END][: len(said)]
        return
    quote = said[: said.index(VALUE)] if VALUE in said else said
    assert stands_in(quote, ids)
    if VALUE in said:
        value = [t for t in said[said.index(VALUE) + 1 :] if t != END]
        n = len(quote)
        told = [i for i in range(len(ids)) if stands_in(quote, ids[i : i + n])]
        around = [
            ids[max(i - FAR, i // 5 * 5) : min(i + n + FAR, (i + n - 1) // 5 * 5 + 5)] for i in told
        ]
        assert not value or any(stands_in(value, near) for near in around)


def test_a_quote_may_begin_where_the_document_has_no_space_before_the_word() -> None:
    guide = Guide(MARKS, np.array([10, 11, 12]), np.zeros(3))
    assert 20 in guide.allowed()
    guide.say(20)
    assert guide.allowed().tolist() == [VALUE, 11]


def test_a_run_that_stands_twice_may_go_on_in_either_way() -> None:
    guide = Guide(MARKS, np.array([10, 11, 12, 10, 11, 13]), np.zeros(6))
    for token in (10, 11):
        guide.say(token)
    assert guide.allowed().tolist() == [VALUE, 12, 13]


def test_a_refusal_is_said_whole_and_then_ends() -> None:
    guide = Guide(MARKS, np.array([10]), np.zeros(1))
    guide.say(NOT)
    assert guide.allowed().tolist() == [STATED]
    guide.say(STATED)
    assert guide.allowed().tolist() == [END]


def test_a_document_that_says_not_can_be_quoted_all_the_same() -> None:
    guide = Guide(MARKS, np.array([NOT, 11]), np.zeros(2))
    guide.say(NOT)
    assert guide.allowed().tolist() == [VALUE, STATED, 11]


def test_a_long_quote_must_come_to_its_value() -> None:
    guide = Guide(MARKS, np.arange(10, 20), np.zeros(10), longest=3)
    for token in (10, 11, 12):
        guide.say(token)
    assert guide.allowed().tolist() == [VALUE]


def test_a_value_stands_in_the_sentence_of_its_quote() -> None:
    """Before the quote or after it, but in no other sentence."""
    guide = Guide(MARKS, np.arange(10, 20), np.array([0, 0, 1, 1, 1, 1, 1, 2, 2, 2]))
    for token in (14, 15, VALUE):
        guide.say(token)
    assert guide.allowed().tolist() == [*range(12, 17), *range(22, 27)]
    guide.say(12)
    assert guide.allowed().tolist() == [END, 13]


def test_a_value_stands_not_far_from_its_quote() -> None:
    guide = Guide(MARKS, np.arange(10, 20), np.zeros(10), far=2)
    for token in (14, 15, VALUE):
        guide.say(token)
    assert guide.allowed().tolist() == [12, 13, 14, 15, 16, 17, 22, 23, 24, 25, 26, 27]


def test_sentences_are_numbered_by_token() -> None:
    """A token that begins with the space between two sentences belongs to the second."""
    text = "Mr. Ash sat. He rose!\n\nIt was 4.5 p.m. then."
    pieces = ["Mr", ".", " Ash", " sat", ".", " He", " rose", "!", "\n\n", "It", " was", " 4"]
    pieces += [".", "5", " p.m.", " then", "."]
    assert "".join(pieces) == text
    ends = np.cumsum([len(piece) for piece in pieces])
    assert sentences(text, ends).tolist() == [0] * 5 + [1] * 4 + [2] * 8
