"""A look-up reader held to its document: whatever it chooses, it quotes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.quoting import Guide, Marks, Told, passage, sentences, telling

QUOTE, VALUE, END, NOT, STATED = 0, 1, 2, 3, 4
# Tokens 10 and 20, 11 and 21, ... differ by a leading space alone.
ALIKE = np.array([*range(10), *range(10, 20), *range(10, 20)])
MARKS = Marks(QUOTE, VALUE, END, (NOT, STATED), ALIKE)
FAR = 3


def told(ids: Sequence[int], sentence: Sequence[int]) -> Told:
    """A document of words of one token each; 19 and 29 are marks."""
    words = ~np.isin(ids, [19, 29])
    return Told(np.array(ids, dtype=np.int64), np.array(sentence, dtype=np.int64), words, words)


def guided(ids: list[int], sentence: list[int], *said: int, longest: int = 24) -> Guide:
    """A guide that has taken some tokens, each of which it allowed."""
    guide = Guide(MARKS, told(ids, sentence), longest=longest)
    for token in said:
        assert token in guide.allowed()
        guide.say(token)
    return guide


def run(ids: list[int], choices: list[int]) -> list[int]:
    """Say what `choices` pick among the allowed tokens until the end mark."""
    guide = Guide(MARKS, told(ids, [at // 5 for at in range(len(ids))]), far=FAR)
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


def places(part: list[int], whole: list[int]) -> list[int]:
    """Where a run stands in another, the space before its first token aside."""
    n = len(part)
    return [
        i
        for i in range(len(whole) - n + 1)
        if ALIKE[whole[i]] == ALIKE[part[0]] and whole[i + 1 : i + n] == part[1:]
    ]


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
    pointer = said[: said.index(QUOTE)] if QUOTE in said else said
    pointed = places(pointer, ids)
    assert pointed
    if VALUE not in said:
        return
    quote = said[len(pointer) + 1 : said.index(VALUE)]
    wanted = [passage(np.arange(len(ids)) // 5, place, FAR) for place in pointed]
    assert quote in [ids[start:stop] for start, stop in wanted]
    value = [t for t in said[said.index(VALUE) + 1 :] if t != END]
    assert not value or places(value, quote)


def test_a_pointer_may_begin_where_the_document_has_no_space_before_the_word() -> None:
    assert 20 in guided([10, 11, 12], [0, 0, 0]).allowed()


def test_a_pointer_goes_on_until_one_sentence_is_left_and_that_is_quoted() -> None:
    """However often it stands in that one; and of the quote any run may be the value."""
    guide = guided([10, 11, 12, 10, 11, 13, 10, 11, 13], [0, 0, 0, 1, 1, 1, 1, 1, 1], 10, 11)
    assert guide.allowed().tolist() == [12, 13]
    assert not guide.quoting
    guide.say(13)
    assert guide.quoting
    said = []
    while len(allowed := guide.allowed().tolist()) == 1:
        said += allowed
        guide.say(said[-1])
    assert said == [QUOTE, 10, 11, 13, 10, 11, 13, VALUE]
    assert allowed == [10, 11, 13, 20, 21, 23]
    guide.say(21)
    assert guide.allowed().tolist() == [END, 13]
    guide.say(13)
    assert guide.allowed().tolist() == [END, 10]


@settings(deadline=None)
@given(
    st.lists(st.integers(10, 29), min_size=1, max_size=40),
    st.lists(st.integers(0, 1000), min_size=1, max_size=60),
)
def test_what_is_dictated_is_what_alone_is_allowed(ids: list[int], choices: list[int]) -> None:
    """Taking it at once ends in the same answer as saying it token by token; an answer's end is
    never dictated."""
    guide = Guide(MARKS, told(ids, [at // 5 for at in range(len(ids))]), far=FAR)
    said: list[int] = []
    for choice in choices:
        dictated = guide.dictated()
        assert not guide.dictates
        assert END not in dictated
        said += dictated
        allowed = guide.allowed()
        said.append(int(allowed[choice % len(allowed)]))
        if said[-1] == END:
            break
        guide.say(said[-1])
    alone = Guide(MARKS, told(ids, [at // 5 for at in range(len(ids))]), far=FAR)
    for token in said:
        assert token in alone.allowed()
        if token != END:
            alone.say(token)
    if QUOTE in said:
        assert said.index(VALUE) > said.index(QUOTE) + 1


def test_a_value_does_not_give_the_question_back() -> None:
    """Words of the question are no part of it, unless nothing else stands in the sentence."""
    ids, sentence = [10, 11, 12, 13, 14], [0] * 5
    guide = Guide(MARKS, told(ids, sentence), asked=[[21, 12], [14]])
    for token in (13, QUOTE, *ids, VALUE):
        guide.say(token)
    assert guide.allowed().tolist() == [10, 13, 20, 23]
    guide.say(10)
    assert guide.allowed().tolist() == [END]
    guide = Guide(MARKS, told(ids, sentence), asked=[[20, 11, 12, 13, 14]])
    for token in (13, QUOTE, *ids, VALUE):
        guide.say(token)
    assert guide.allowed().tolist() == [*range(10, 15), *range(20, 25)]


def test_what_a_question_is_about() -> None:
    assert telling("Who is Ann?") == (" Ann", " the Ann", " a Ann", " The Ann")


def test_a_sentence_that_stands_twice_is_quoted_once() -> None:
    """When the pointer has come to its greatest length, or to the end of both."""
    assert guided([10, 11, 12, 10, 11, 12], [0, 0, 0, 1, 1, 1], 10, 11, longest=2).quoting
    guide = guided([10, 11, 12, 10, 11, 13], [0, 0, 1, 2, 2, 3], 10)
    assert not guide.quoting
    guide.say(11)
    assert [int(guide.allowed()[0])] == [QUOTE]


def test_a_sentence_without_an_end_is_quoted_in_part() -> None:
    assert passage(np.array([0, 0, 1, 1, 1, 1, 1, 2]), 4, 1) == (3, 6)
    assert passage(np.array([0, 0, 1, 1, 1, 1, 1, 2]), 4, 9) == (2, 7)


def test_a_refusal_is_said_whole_and_then_ends() -> None:
    assert guided([10], [0], NOT).allowed().tolist() == [STATED]
    assert guided([10], [0], NOT, STATED).allowed().tolist() == [END]


def test_a_document_that_says_not_can_be_pointed_at_all_the_same() -> None:
    guide = guided([NOT, 11], [0, 0], NOT)
    assert guide.allowed().tolist() == [STATED, 11]
    guide.say(11)
    assert guide.quoting


def test_sentences_are_numbered_by_token() -> None:
    """A token that begins with the space between two sentences belongs to the second."""
    text = "Mr. Ash sat. He rose!\n\nIt was 4.5 p.m. then."
    pieces = ["Mr", ".", " Ash", " sat", ".", " He", " rose", "!", "\n\n", "It", " was", " 4"]
    pieces += [".", "5", " p.m.", " then", "."]
    assert "".join(pieces) == text
    ends = np.cumsum([len(piece) for piece in pieces])
    assert sentences(text, ends).tolist() == [0] * 5 + [1] * 4 + [2] * 8


def test_a_refusal_is_weighed_against_all_pointers_together() -> None:
    guide = guided([10, 11, 12], [0, 0, 0])
    scores = np.full(30, -9.0, dtype=np.float32)
    scores[[10, 11, 12]] = 0.0
    scores[NOT] = 1.0  # likelier than each pointer, less likely than the three
    assert NOT not in guide.choices(scores)
    assert guide.choices(scores, reluctance=-1.0).tolist() == [NOT]
    scores[NOT] = 1.5
    assert guide.choices(scores).tolist() == [NOT]
    assert NOT not in guide.choices(scores, reluctance=1.0)
    nothing = Guide(MARKS, told([], []))
    assert nothing.choices(scores, reluctance=99.0).tolist() == [NOT]


def test_no_value_begins_with_a_mark_alone() -> None:
    ids = [10, 19, 12, 19]
    guide = guided(ids, [0] * 4, 10)
    for due in (QUOTE, *ids, VALUE):
        assert guide.allowed().tolist() == [due]
        guide.say(due)
    assert guide.allowed().tolist() == [10, 12, 20, 22]
    guide.say(12)
    assert guide.allowed().tolist() == [END, 19]  # inside one it may stand
    guide.say(19)
    assert guide.allowed().tolist() == [END]  # where nothing else can follow
    marks = guided([19, 19], [0, 0], 19)
    for due in (QUOTE, 19, 19, VALUE):
        marks.say(due)
    assert marks.allowed().tolist() == [19, 29]  # where there is nothing else


def test_a_margin_says_how_much_likelier_a_quote_is() -> None:
    scores = np.full(30, -9.0, dtype=np.float32)
    scores[[10, 11]], scores[NOT] = 1.0, 0.5
    guide = guided([10, 11], [0, 0])
    assert np.isclose(guide.margin(scores), 0.5 + np.log(2), atol=1e-3)


def test_what_stands_between_white_spaces_is_given_whole_or_not_at_all() -> None:
    pieces = ["On", " 1888", "-", "03", ",", " £", "3", ",", "257", " for", " (", "Ann", "'s", ")"]
    pieces += [" inn", "—", "at", " 5", ".", "30", " p", ".", "m", "."]
    text = "".join(pieces)
    ends = np.cumsum([len(piece) for piece in pieces])
    seen = Told.of(text, np.arange(len(pieces)) + 10, ends)
    begins = [pieces[at] for at in np.flatnonzero(seen.begins)]
    assert begins == ["On", " 1888", " £", " for", "Ann", " inn", "at", " 5", " p"]
    closes = [pieces[at] for at in np.flatnonzero(seen.closes)]
    assert closes == ["On", "03", "257", " for", "Ann", "'s", " inn", "at", "30", "m"]
    part = seen.at(slice(5, 9))
    assert part.begins.tolist() == [True, False, False, False]
    both = Told.join([seen.at(slice(0, 5)), seen.at(slice(5, None))])
    assert both.closes.tolist() == seen.closes.tolist()


def test_dashes_in_a_row_part_what_they_stand_between() -> None:
    pieces = ["59", ".", "--", "San", "guine", " man"]
    seen = Told.of("".join(pieces), np.arange(6), np.cumsum([len(piece) for piece in pieces]))
    assert [pieces[at] for at in np.flatnonzero(seen.begins)] == ["59", "San", " man"]
    assert [pieces[at] for at in np.flatnonzero(seen.closes)] == ["59", "guine", " man"]


def test_a_script_without_spaces_has_its_characters() -> None:
    text = "王は1888年"
    seen = Told.of(text, np.arange(7), np.arange(1, 8))
    assert seen.begins.tolist() == [True, True, True, False, False, False, True]
    assert seen.closes.tolist() == [True, True, False, False, False, True, True]


@settings(deadline=None)
@given(st.text(max_size=60), st.integers(1, 4))
def test_of_any_text_as_many_words_begin_as_close(text: str, size: int) -> None:
    """Whatever tokens are: every beginning has an end at or behind it."""
    ends = np.unique(np.append(np.arange(size, len(text), size), len(text)))[: len(text)]
    ends = ends[ends > 0]
    seen = Told.of(text, np.zeros(len(ends), dtype=np.int64), ends)
    for place in np.flatnonzero(seen.begins):
        assert seen.closes[place:].any()
