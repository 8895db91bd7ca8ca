"""Texts that end an answer: nothing of them is said, and nothing that may become one is shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.answer import stop_marks
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
