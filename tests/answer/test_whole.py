"""Questions about the whole: which are recognised, and what is said without the model."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from engine.answer import whole
from engine.answer.outlook import CANNOT_COUNT, MOST_SEEN, OPENING, PARTS_SEEN, Outlook
from engine.documents.outline import headings
from engine.ingest import run
from engine.models.reader import Reader
from engine.store.reader import read_manifest
from engine.types import IngestOptions, Silent
from fake_model import scripted
from repository import ROOT
from tiny_books import session

QUESTIONS = ROOT / "docs" / "questions"
NATURAL = ("books.jsonl", "documents.jsonl", "sample.jsonl")


def questions(*files: str) -> list[dict[str, str]]:
    lines = (line for name in files for line in (QUESTIONS / name).read_text().splitlines())
    return [json.loads(line) for line in lines]


def recognised(question: str) -> str:
    return "part" if whole.part_of(question) else whole.kind_of(question)


def test_precision_and_recall_of_the_recogniser() -> None:
    """`-s` prints both. The questions were written before the forms were tried on them."""
    asked = [(entry["kind"], recognised(entry["question"])) for entry in questions("whole.jsonl")]
    facts = [recognised(entry["question"]) for entry in questions(*NATURAL)]
    right = sum(kind == found for kind, found in asked)
    claimed = sum(bool(found) for _, found in asked) + sum(map(bool, facts))
    print(f"recall {right} of {len(asked)}, precision {right} of {claimed}", Counter(asked))
    assert len(facts) == 378
    assert not any(facts)  # no question for a fact is taken for one about the whole
    assert right >= 85
    assert claimed - right == 0


BOOK = "".join(
    f"CHAPTER {number}. {title}\n\n{'It rained on all of them, and nobody spoke. ' * 40}\n\n"
    for number, title in (("I", "The Harbour"), ("II", "The Storm"), ("III", "The Island"))
)


def test_lines_in_the_shape_of_headings_are_headings_and_lists_of_contents_are_none() -> None:
    contents = "CHAPTER I. The Harbour\nCHAPTER II. The Storm\nCHAPTER III. The Island\n\n"
    found = headings(contents + BOOK, (), "text")
    assert [(h.number, h.title) for h in found] == [
        ("I", "CHAPTER I. The Harbour"),
        ("II", "CHAPTER II. The Storm"),
        ("III", "CHAPTER III. The Island"),
    ]
    for heading in found:
        assert (contents + BOOK)[heading.start : heading.end] == heading.title
        assert heading.start >= len(contents)


def test_marked_headings_are_taken_as_they_are() -> None:
    found = headings("Anna\n\ntext\n\nBerta\n\ntext", (("Anna", 0), ("", 4), ("Berta", 12)), "html")
    assert [heading.title for heading in found] == ["Anna", "Berta"]


def test_what_runs_through_the_pages_is_no_heading() -> None:
    text = "".join(f"CHAPTER IV\n\n{'words and more words. ' * 60}\n\n" for _ in range(9))
    assert headings(text, (), "pdf") == ()


@pytest.fixture
def store(model: Path, reader: Reader, tmp_path: Path) -> Path:
    """A book of three chapters in many windows, the first of which is read."""
    (tmp_path / "book.txt").write_text(BOOK, encoding="utf-8")
    options = IngestOptions(model=str(model), window=400)
    run.begin([str(tmp_path / "book.txt")], tmp_path / "book.sekv", options, Silent(), reader)
    return tmp_path / "book.sekv"


SAID = [
    (
        "List the chapters.",
        "CHAPTER I. The Harbour\nCHAPTER II. The Storm\nCHAPTER III. The Island",
    ),
    ("How many chapters are there?", "There are 3 headings in it."),
    ("How many pages does it have?", "It has no pages; it has 1,092 words."),
    ("How many words are in this text?", "It has 1,092 words, 5,358 characters."),
    ('How often does "rained" occur?', "“rained” occurs 120 times in it."),
    ("How many people die in the whole book?", CANNOT_COUNT),
    ("Summarise chapter 9.", "No chapter 9 is found among the headings and pages."),
    ("What is on page 3?", "No page 3 is found among the headings and pages."),
]


def test_facts_of_the_outline_are_said_without_the_model(
    store: Path, reader: Reader, subtests: pytest.Subtests
) -> None:
    with session(store, reader) as book:
        for question, said in SAID:
            with subtests.test(question):
                told: list[str] = []
                answer = book.ask(question, told.append)
                assert (answer.answer, "".join(told)) == (said, said)
                assert answer.usage.answer_tokens == 0
                for citation in answer.citations:
                    assert BOOK[citation.start : citation.end] == citation.text
    assert read_manifest(store).read == (0,)


def test_a_question_about_a_chapter_sees_that_chapter(store: Path, reader: Reader) -> None:
    first, end = (BOOK.index(f"CHAPTER {number}.") for number in ("II", "III"))
    with session(store, reader) as book:
        answer = book.ask("Summarise chapter 2.")
        assert answer.stats["windows_by"] == "outline"
        assert answer.stats["tokens_seen"] <= MOST_SEEN
        for citation in answer.citations:
            assert first <= citation.start < end
        (part,) = [whole.part_of("Summarise chapter two, and chapter II")]
        assert part is not None
        assert book._outlook.place_of(part) == (0, first, end)


def test_a_page_is_found_by_its_label_its_printed_number_or_its_sheet(
    store: Path, reader: Reader, subtests: pytest.Subtests
) -> None:
    pages = (("1", 0), ("2", 100), ("3", 200))
    with session(store, reader) as opened:
        book = opened._outlook._book
        printed = replace(book.sources[0], kind="pdf", pages=pages, printed=("", "i", "1"))
        labelled = replace(
            book.sources[0], kind="pdf", pages=(("i", 0), ("1", 100), ("2", 200)), sheets=(1, 2, 3)
        )
        for entry, question, start in (
            (printed, "What is on page 1?", 0),
            (printed, "What is on page i?", 100),
            (printed, "What is on printed page 1?", 200),
            (printed, "What is on sheet 3?", 200),
            (labelled, "What is on page 1?", 100),
            (labelled, "What is on sheet 1?", 0),
            (labelled, "What is on page 3?", None),
        ):
            with subtests.test(question, labelled=entry is labelled):
                part = whole.part_of(question)
                assert part is not None
                outlook = Outlook(replace(book, sources=(entry,)), opened._outlook._retrieval)
                place = outlook.place_of(part)
                assert (place and place[1]) == start


OTHERS = """Who wrote the letter to Mina?
Who wrote the report about the fire?
Who is it?
Who is by the door?
What is the title of the song that Lucy sings?
What is the name of the ship?
What is it called when a ship runs aground?
When was the castle built?
When did it happen?
What did the author eat?
Which author does the paper cite for beam search?
When was the first edition of the atlas printed?
What is the name of the author's dog?
Who is the publisher that the hero visits in Leeds?
What date is on the letter?
Who issued the warrant?
Where is the book?
Which book does he read?
Which version of TLS is required?
Who edited the newspaper?"""


def test_facts_near_to_those_of_a_title_page_are_searched_for(subtests: pytest.Subtests) -> None:
    for question in OTHERS.splitlines():
        with subtests.test(question):
            assert recognised(question) == ""
    # Behind another question "it" is what was spoken of, and "this book" is still the book.
    assert whole.kind_of("Who wrote it?", follows=True) == ""
    assert whole.kind_of("Who wrote this book?", follows=True) == whole.AUTHOR


FRONTS = [
    # kind of source, its metadata, its first lines, the question, what is said, and what is cited
    ("text", {}, "# Title: The Quay\nAuthor: Anna Berg\n", "Who wrote this?", "Author: Anna Berg",
     "Author: Anna Berg"),
    ("text", {}, "**Title:** The Quay\n", "What is the title?", "Title: The Quay",
     "Title:** The Quay"),
    ("text", {}, "The Quay\nDate: 3 May 1910\n", "When was this published?", "Date: 3 May 1910",
     "Date: 3 May 1910"),
    ("pdf", {"title": "the quay"}, "THE  QUAY\nby Anna\n", "What is this document called?",
     "Title: the quay", "THE  QUAY"),
    ("pdf", {"author": "katlee"}, "The Quay\nby Anna\n", "Who wrote this?", None, None),
    ("pdf", {"author": "Anna"}, "The Quay\n", "Who wrote this?",
     "Author: Anna (in the file's own description)", None),
    ("pdf", {"author": "Anna Berg;Ben Ohm"}, "The Quay\n", "Who wrote this?",
     "Author: Anna Berg; Ben Ohm (in the file's own description)", None),
    ("pdf", {"title": "quay-final.doc"}, "Rain\n", "What is the title?", None, None),
    ("epub", {"author": "Anna"}, "The Quay\nby A.\n", "Who is the author of this book?",
     "Author: Anna (in the file's own description)", None),
    ("epub", {}, "The Quay\n", "Who is the author of this book?", None, None),
    ("text", {}, "The Quay. The author: he said.\n", "Who edited this book?", None, None),
]  # fmt: skip


def test_who_made_a_document_is_said_as_it_says_it_itself(
    store: Path, reader: Reader, subtests: pytest.Subtests
) -> None:
    with session(store, reader) as opened:
        book, retrieval = opened._outlook._book, opened._outlook._retrieval
        for kind, imprint, first, question, text, cited in FRONTS:
            with subtests.test(question, first=first):
                entry = replace(book.sources[0], kind=kind, imprint=imprint)
                one = replace(book, sources=(entry,), texts=(first + BOOK,))
                said = Outlook(one, retrieval).said(question, whole.kind_of(question))
                assert (said and said.text) == text
                quoted = [each.text for each in said.citations] if said else []
                assert quoted == ([cited] if cited else [])


def test_a_date_that_the_first_page_lacks_is_not_stated(store: Path, reader: Reader) -> None:
    """However well its other words are those of the page."""
    assert whole.invents_figures("It was published in 1863.", "Published on 3 May 1910")
    assert whole.invents_figures("On August 20, 2020.", "August 2020")
    assert not whole.invents_figures("In May 1910, the 3rd.", "Published on 03 May 1910")
    made_up = "It rained in 1863"
    with session(store, reader, max_new_tokens=len(made_up)) as book:
        book.ask("When was this book published?")  # has the windows read that it needs
        with scripted(reader) as queue:
            queue.extend(reader.tokenizer.encode(made_up, add_special_tokens=False))
            answer = book.ask("When was this book published?")
    assert (answer.answer, answer.supported) == (made_up, False)


def test_what_no_line_says_is_read_from_the_first_page(store: Path, reader: Reader) -> None:
    """The passages with the words of the question are of no use: a list of works cited has them."""
    with session(store, reader) as book:
        answer = book.ask("Who wrote this book?")
        assert answer.stats["windows_by"] == "outline"
        assert answer.stats["tokens_seen"] == OPENING
        assert answer.stats["judged"] is True
        assert all(
            citation.start < len(book.book.text_of((0, OPENING))) for citation in answer.citations
        )


def test_what_a_document_is_about_is_answered_from_beginnings(store: Path, reader: Reader) -> None:
    """A partly read store has at most four windows read for it."""
    with session(store, reader) as book:
        about = book.ask("What is this book about?")
        view = book._outlook.view("What is this book about?", whole.ABOUT)
        assert view is not None
        assert view[0][0] == 0
        assert view[0][1] >= OPENING
        assert about.stats["windows_by"] == "outline"
        assert about.stats["judged"] is False
        assert about.usage.recomputed_document_tokens == 0
        read = {each.window for each in about.retrieval if each.read_now}
        assert 0 < len(read) <= 4
    with session(store, reader, whole=True) as book:
        forced = book.ask("Rain?")
        assert forced.stats["windows_by"] == "outline"
        assert not any(each.read_now for each in forced.retrieval)


def test_numbers_in_any_writing_are_the_same() -> None:
    from engine.answer.outlook import _numeral

    same = [("IV", "4"), ("four", "4"), ("iv", "4"), ("XL", "40"), ("4.2", "4.2"), ("B", "B")]
    for written, figures in same:
        assert _numeral(written) == figures
    assert re.fullmatch(r"\d+", _numeral("XXVII"))


TOPICS = [
    ("Summarise chapter 2.", []),
    ("What happens in chapter 7?", []),
    ("What is on page 12?", []),
    ("Give me a short overview of section 4.2.", []),
    ("Who speaks first in chapter 2?", ["speaks", "first"]),
    ("What does section 4.2 say about interrupts?", ["interrupts"]),
]


def test_what_is_asked_for_in_a_part_is_told_from_asking_for_the_part(
    subtests: pytest.Subtests,
) -> None:
    for question, topic in TOPICS:
        with subtests.test(question):
            assert whole.part_of(question) is not None
            assert whole.topic_of(question) == topic


RAIN = "It rained on all of them, and nobody spoke a word. "
PARROTS = "".join(
    f"CHAPTER {number}. {title}\n\n{RAIN * 90}The parrot of {owner} was {colour}. {RAIN * 60}\n\n"
    for number, title, owner, colour in (
        ("I", "The Harbour", "Anna", "green"),
        ("II", "The Storm", "Berta", "red"),
        ("III", "The Island", "Carla", "blue"),
    )
)


@pytest.fixture
def parrots(model: Path, reader: Reader, tmp_path: Path) -> Path:
    """Three chapters of several windows each, with one sentence that differs; the first is read."""
    (tmp_path / "parrots.txt").write_text(PARROTS, encoding="utf-8")
    options = IngestOptions(model=str(model), window=400)
    run.begin([str(tmp_path / "parrots.txt")], tmp_path / "p.sekv", options, Silent(), reader)
    return tmp_path / "p.sekv"


def test_a_fact_asked_of_a_part_is_searched_within_it(parrots: Path, reader: Reader) -> None:
    with session(parrots, reader) as book:
        question = "Which colour had the parrot in chapter 2?"
        view = book._outlook.view(question, "")
        assert view is not None
        seen = " ".join(map(book.book.text_of, view))
        assert "parrot of Berta was red" in seen
        assert "Anna" not in seen
        assert "Carla" not in seen
        assert len(seen) < len(RAIN * 150) / 2
        answer = book.ask(question)
        assert answer.stats["windows_by"] == "outline"
        assert {each.window for each in answer.retrieval if each.read_now}
        none = book._outlook.view("What of submarines in chapter 2?", "")
        assert none == book._outlook.view("Summarise chapter 2.", "")
        first = book._outlook.view("Whose parrot comes first in chapter 2?", "")
        assert first is not None
        assert book.book.text_of(first[0]).startswith("CHAPTER II.")


def test_of_each_part_the_passage_with_its_own_words_is_seen(parrots: Path, reader: Reader) -> None:
    """Of what is read; beginnings are what is read for it."""
    with session(parrots, reader) as book:
        view = book._outlook.view("What is it about?", whole.ABOUT)
        assert view is not None
        beginnings = book._outlook.needed("What is it about?", whole.ABOUT)
        assert beginnings is not None
        for first, end in beginnings:
            assert any(a <= first and end <= b for a, b in view)
        more = sum(b - a for a, b in view) - sum(b - a for a, b in beginnings)
        assert more > 0
        unread = range(1, len(book.store.manifest.windows))
        read = book._outlook.view("What is it about?", whole.ABOUT, unread)
        last = book.store.manifest.windows[0].end
        assert read is not None
        assert [each for each in read if each[0] >= last] == [
            each for each in beginnings if each[0] >= last
        ]


NAMES = ("Ada", "Bea", "Cleo", "Dora", "Edda", "Fay")


def test_a_document_without_headings_has_parts_of_one_length(
    model: Path, reader: Reader, tmp_path: Path
) -> None:
    words = " ".join(f"{RAIN * 20}{name} {name} {name} sang. {RAIN * 20}" for name in NAMES)
    (tmp_path / "plain.txt").write_text(words, encoding="utf-8")
    options = IngestOptions(model=str(model), window=400)
    run.begin([str(tmp_path / "plain.txt")], tmp_path / "p.sekv", options, Silent(), reader)
    with session(tmp_path / "p.sekv", reader) as book:
        assert book._outlook.headings == ()
        assert len(book._outlook._parts) == PARTS_SEEN == len(NAMES)
        view = book._outlook.view("What is it about?", whole.ABOUT)
        assert view is not None
        seen = " ".join(map(book.book.text_of, view))
        assert [name for name in NAMES if name not in seen] == []
