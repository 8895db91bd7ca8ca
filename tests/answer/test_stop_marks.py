"""Texts that end an answer: nothing of them is said, and nothing that may become one is shown."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.answer import stop_marks
from engine.answer.repetition import begins, looping_item, may_begin, whole_sentences
from engine.errors import OptionError
from engine.models.reader import Reader
from engine.types import Answer
from fake_model import scripted
from tiny_books import QUESTION, session

SHORT_TEXTS = st.text("abc", max_size=12)
MARKS = st.lists(st.text("abc", min_size=1, max_size=4), max_size=3)


@given(SHORT_TEXTS, MARKS)
def test_what_is_before_the_first_mark_holds_none(text: str, marks: list[str]) -> None:
    kept, ended = stop_marks.cut(text, marks)
    assert ended == any(mark in text for mark in marks)
    assert text.startswith(kept)
    assert ended or kept == text
    assert not any(mark in kept for mark in marks)


@given(st.lists(st.text("abc", min_size=1, max_size=4), max_size=6), MARKS)
def test_what_was_shown_is_never_taken_back(pieces: list[str], marks: list[str]) -> None:
    """Token by token until one ends it: what is shown begins what is answered at last."""
    text, shown, ended = "", "", False
    for piece in pieces:
        text += piece
        kept, ended = stop_marks.cut(text, marks)
        if ended:
            break
        now = stop_marks.safe(kept, marks)
        assert now.startswith(shown)
        shown = now
    assert stop_marks.cut(text, marks)[0].startswith(shown)


LISTS = [
    ("1. A. 2. The old red mill. 3. The old red mill. 4. The", "1. A. 2. The old red mill. "),
    ("They are:\n1. a b c d\n2. e f g h\n3. A b c d\n4. e", "They are:\n1. a b c d\n2. e f g h\n"),
    ("1) The X 2) The X 3) The X 4) The X", "1) The X 2) The X "),
]  # fmt: skip
NO_LOOPS = [
    "1. Yes 2. No 3. Yes 4. No 5.",
    "1. The red house 2. The red house on the hill 3. The",
    "1. The old red mill. 2. The old red mill.",  # the second may go on yet
    "1. the old red mill 1. the old red mill 1. The",  # two lists
    "On page 3. of it stands 12. And so on.",
    "1. 2. 3. 4. 5. 6.",
    "",
]


def test_a_numbered_list_that_says_its_items_again_is_a_loop(subtests: pytest.Subtests) -> None:
    for text, kept in LISTS:
        with subtests.test(text):
            assert text[: looping_item(text)] == kept
    for text in NO_LOOPS:
        with subtests.test(text):
            assert looping_item(text) == len(text)


SENTENCE = "The queen is also seated on her throne."


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (f"{SENTENCE} She laughs. {SENTENCE}", f"{SENTENCE} She laughs. "),
        (f"“{SENTENCE}” He ran.\n\nThe  queen is also\nseated on her throne.", None),
        (f"{SENTENCE}\n\n{SENTENCE.upper()}", f"{SENTENCE}\n\n"),
        (f"{SENTENCE} She laughs. {SENTENCE[:-1]}", None),  # it may go on yet
        (f"{SENTENCE} {SENTENCE[:-1]} in Spain.", None),
        ("Yes, he did. And she? Yes, he did.", None),
        ("It fell in 1910. It fell in 1910.", None),
        (SENTENCE, None),
        ("", None),
    ],
)
def test_a_sentence_said_again_is_the_end(text: str, kept: str | None) -> None:
    assert text[: begins(text)] == (text if kept is None else kept)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("It is a mill. This", "It is a mill. "),
        ("It is a mill.", "It is a mill."),
        ("a day and a day", "a day and a day"),
        ("“Go!” he said", "“Go!” "),
        ("", ""),
    ],
)
def test_of_a_loop_no_half_sentence_is_left(text: str, kept: str) -> None:
    assert whole_sentences(text) == kept


@given(st.lists(st.sampled_from([SENTENCE, "She laughs.", "The queen is gone.", "1. Tea", "Why?"])))
def test_nothing_is_shown_that_is_taken_back(sentences: list[str]) -> None:
    """Character by character, until a sentence is said again."""
    text, shown = " ".join(sentences), ""
    for end in range(len(text) + 1):
        said = text[:end]
        kept = said[: begins(said)]
        assert kept.startswith(shown)
        if kept != said:
            break
        now = said[: may_begin(said)]
        assert now.startswith(shown) or shown.startswith(now)
        shown = max(shown, now, key=len)


@given(st.lists(st.sampled_from(["a b c d", "e f g h i", "j"]), max_size=9))
def test_what_is_kept_of_a_list_has_no_long_item_twice(items: list[str]) -> None:
    text = "".join(f"{number}. {item}\n" for number, item in enumerate(items, 1)) + "99. end"
    kept = text[: looping_item(text)]
    assert kept.count("a b c d") <= 1
    assert kept.count("e f g h i") <= 1
    assert "j\n" * 3 not in re.sub(r"\d+\. ", "", kept)


def test_an_answer_ends_where_its_list_loops(store: Path, reader: Reader) -> None:
    said = "1. It saw nine whales. 2. It saw nine whales. 3. It saw nine whales. 4. It saw"
    with (
        session(store, reader, max_new_tokens=len(said)) as opened,
        scripted(reader) as queue,
    ):
        queue.extend(reader.tokenizer.encode(said, add_special_tokens=False))
        answer = opened.ask(QUESTION)
    assert answer.answer == "1. It saw nine whales."
    assert not answer.cut_short
    assert answer.usage.answer_tokens < len(said)


def test_an_answer_ends_before_a_mark_and_nothing_is_cut_short(store: Path, reader: Reader) -> None:
    said = "In May the crew saw nine whales."
    shown: list[str] = []

    def answered(*marks: str) -> Answer:
        shown.clear()
        with (
            session(store, reader, max_new_tokens=len(said), stop=marks) as opened,
            scripted(reader) as queue,
        ):
            queue.extend(reader.tokenizer.encode(said, add_special_tokens=False))
            return opened.ask(QUESTION, shown.append)

    for whole in (answered(), answered("never said")):
        assert whole.answer == said
        assert whole.cut_short
    ended = answered("never said", "crew")
    assert ended.answer == "".join(shown) == "In May the"
    assert ended.usage.answer_tokens == len("In May the crew")
    assert not ended.cut_short


@pytest.mark.parametrize("marks", [("",), ("x",) * 5, ("x" * 257,), ("\ud800",)])
def test_marks_are_a_few_short_texts(marks: tuple[str, ...], store: Path, reader: Reader) -> None:
    with pytest.raises(OptionError, match="stop: it takes up to 4 texts"):
        session(store, reader, stop=marks)
