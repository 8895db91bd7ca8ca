"""Which line ends part a text, and what stands on one line."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.documents.line_ends import breaks, flat

PROSE = (
    "The enterprise may wish to start with a process of low risk for the\n"
    "first transition, since disruptions will then not have an effect on\n"
    "Boston or on any other place where many people work at the moment."
)
PARTED = [
    (f"2.1 Node Types\n{PROSE}", ["2.1 Node Types", PROSE]),
    (f"Abstract\n{PROSE}", ["Abstract", PROSE]),
    (f"{PROSE}\n\u2022 Which are they, and who\nhas one?\n\u2022 Why?", [
        PROSE, "\u2022 Which are they, and who\nhas one?", "\u2022 Why?",
    ]),
    ("09/18/2015 Boeing Company Long Beach 113\n09/19/2015 Kabam Brea 6 Closure", [
        "09/18/2015 Boeing Company Long Beach 113", "09/19/2015 Kabam Brea 6 Closure",
    ]),
    (f"Zero Trust Architecture\nScott Rose\nOliver Borchert of the\n{PROSE}", [
        "Zero Trust Architecture", "Scott Rose", f"Oliver Borchert of the\n{PROSE}",
    ]),
    ("CHAPTER I. The Harbour\nCHAPTER II. The Storm\nin\nChapter 4 of it", [
        "CHAPTER I. The Harbour", "CHAPTER II. The Storm\nin\nChapter 4 of it",
    ]),
    ("y =\n1\n2\nx\n+ C", ["y =\n1\n2\nx\n+ C"]),
    (PROSE, [PROSE]),
    ("No line ends", ["No line ends"]),
    ("", [""]),
]  # fmt: skip


def parts(text: str) -> list[str]:
    starts = [0, *breaks(text, 0, len(text)), len(text)]
    return [text[a:b].rstrip("\n") for a, b in pairwise(starts)]


def test_headings_items_and_rows_are_parted_and_wrapped_lines_are_not(
    subtests: pytest.Subtests,
) -> None:
    for text, expected in PARTED:
        with subtests.test(text):
            assert parts(text) == expected


def test_a_passage_on_one_line_keeps_its_units_apart() -> None:
    assert flat("Scott Rose\nOliver Borchert\n") == "Scott Rose / Oliver Borchert"
    assert flat("Port\tShips\nBrea\t 6") == "Port | Ships Brea | 6"
    assert flat(PROSE) == PROSE.replace("\n", " ")
    assert flat(" \n ") == ""


@given(text=st.text(st.sampled_from("aB1 .\n\t\u2022-"), max_size=120), data=st.data())
def test_breaks_are_beginnings_of_lines_whatever_part_of_a_text_is_asked(
    text: str, data: st.DataObject
) -> None:
    low = data.draw(st.integers(0, len(text)))
    high = data.draw(st.integers(low, len(text)))
    found = breaks(text, low, high)
    assert found == sorted(set(found))
    assert all(low < at < high and text[at - 1] == "\n" for at in found)
    assert found == [at for at in breaks(text, 0, len(text)) if low < at < high]
    assert flat(text).replace(" / ", " ").replace(" | ", " ").split() == text.split()
