"""Headings: of real books and a manual, and the lines that only look like one."""

from __future__ import annotations

import pytest

from engine.documents import load
from engine.documents.outline import headings
from repository import COLLECTION

BOOKS = COLLECTION / "books"
BODY = "It rained on all of them,\nand nobody spoke a word.\n" * 20

REAL = [  # file, how many headings, some of them by their place
    ("carroll-alice", 12, {0: "CHAPTER I. Down the Rabbit-Hole"}),  # and no CHORUS
    ("austen-emma", 55, {0: "CHAPTER I", -1: "CHAPTER XIX"}),  # and no CHARADE
    ("austen-sense", 50, {0: "CHAPTER 1", -1: "CHAPTER 50"}),
    ("chesterton-thursday", 15, {1: "CHAPTER II. THE SECRET OF GABRIEL SYME"}),
    ("chesterton-brown", 12, {0: "I. The Absence of Mr Glass"}),
    ("melville-moby_dick", 149, {2: "CHAPTER 1. Loomings.", 3: "CHAPTER 2. The Carpet-Bag."}),
    ("milton-paradise", 12, {0: "Book I", -1: "Book XII"}),
]


@pytest.mark.skipif(not BOOKS.is_dir(), reason="no collection of documents (SEKV_TEST_DATA)")
def test_chapters_of_real_books_are_found_with_their_titles(subtests: pytest.Subtests) -> None:
    for name, count, some in REAL:
        with subtests.test(name):
            text = (BOOKS / f"{name}.txt").read_text(encoding="utf-8")
            found = headings(text, (), "text")
            assert len(found) == count
            assert {place: found[place].title for place in some} == some
            for heading in found:
                assert text[heading.start] == heading.title[0]


MANUAL = COLLECTION / "pdfs" / "riscv_isa_vol1_20191213.pdf"


@pytest.mark.skipif(not MANUAL.is_file(), reason="no collection of documents (SEKV_TEST_DATA)")
def test_chapters_of_a_manual_are_found_with_titles_of_several_lines() -> None:
    source = load([str(MANUAL)]).sources[0]
    found = headings(source.text, (), source.kind)
    chapters = {h.number: h.title for h in found if h.title.startswith("Chapter")}
    assert list(chapters) == [str(number) for number in range(1, 29)]
    assert chapters["1"] == "Chapter 1. Introduction"
    assert chapters["7"] == (
        "Chapter 7. “M” Standard Extension for Integer Multiplication and Division, Version 2.0"
    )
    assert {"2.1", "2.4", "14.1"} <= {heading.number for heading in found}


LINES = [  # a text, and the titles of its headings
    (f"CHAPTER 4\n\nThe Old Sea-Dog\n\n{BODY}", ["CHAPTER 4. The Old Sea-Dog"]),
    (f"CHAPTER 4\n\nHe said so.\n\n{BODY}", ["CHAPTER 4"]),
    (f"Chapter 4\n{BODY}", ["Chapter 4"]),
    (f"Chapter 4 describes this at length.\n{BODY}", []),
    (f"{BODY}\nPREFACE\n\n{BODY}", ["PREFACE"]),
    (f"{BODY}\nCHORUS.\n\n{BODY}\nCHORUS.\n\n{BODY}", []),
    (f"{BODY}\nA SONG\n\nMy first is wet,\nMy second dry,\nMy whole a net.\n\n{BODY}", []),
    (f"{BODY} as shown in\nSection 3.2.1) or access resources by a portal\n{BODY}", []),
    ("Chapter 4 . . . . . 12\nChapter 5 . . . . . 19\n", []),
]


def test_lines_that_only_look_like_headings_are_none(subtests: pytest.Subtests) -> None:
    for text, titles in LINES:
        with subtests.test(text[:40]):
            assert [heading.title for heading in headings(text, (), "text")] == titles
