"""Citations: exact slices, whole sentences, the right page, the best three."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.answer.citations import LONGEST, MOST, DocumentText
from engine.documents import load
from engine.documents.tokens import tokenize
from engine.store.manifest import SourceEntry
from engine.types import Citation
from repository import ROOT
from tiny_books import log, read, session
from tiny_models import checkpoint, tokenizer


def book(*texts: str, words: bool = True, pages: Any = ()) -> DocumentText:
    """A book of some texts; tokens are words with the space before them, or characters."""
    starts, ends, source = [], [], []
    for index, text in enumerate(texts):
        at = 0
        while at < len(text):
            end = at + 1
            while words and end < len(text) and not text[end].isspace():
                end += 1
            starts.append(at)
            ends.append(end)
            source.append(index)
            at = end
    entries = tuple(
        SourceEntry(f"{i}.txt", "text", "", len(text), tuple(pages)) for i, text in enumerate(texts)
    )
    tables = (torch.tensor(column, dtype=torch.int64) for column in (starts, ends, source))
    return DocumentText(entries, tuple(texts), *tables)


def evidence(made: DocumentText, *places: tuple[int, str, float]) -> torch.Tensor:
    """Weight on the token that covers the last character of the first place of some words."""
    weight = torch.zeros(len(made.starts))
    for source, words, amount in places:
        at = made.texts[source].index(words) + len(words.rstrip()) - 1
        inside = (made.source == source) & (made.starts <= at) & (made.ends > at)
        weight[inside] += amount
    return weight


def cited(text: str, words: str) -> str:
    """The one sentence that is cited for evidence on some words."""
    made = book(text)
    (citation,) = made.citations(evidence(made, (0, words, 1.0)))
    assert citation.text == text[citation.start : citation.end]
    assert citation.weight == 1.0
    return citation.text


THREE = "It rained. Zoë saw 3.5 whales! Nobody cared…  Then, at 9, it stopped."


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("It", "It rained."),
        ("rained.", "It rained."),
        (" Zoë", "Zoë saw 3.5 whales!"),
        ("3.5", "Zoë saw 3.5 whales!"),
        ("whales!", "Zoë saw 3.5 whales!"),
        (" Nobody", "Nobody cared…"),
        (" Then,", "Then, at 9, it stopped."),
        ("stopped.", "Then, at 9, it stopped."),
    ],
)
def test_evidence_in_a_sentence_cites_that_sentence(words: str, sentence: str) -> None:
    """Its first token, which begins with the space before it, as well as its last."""
    assert cited(THREE, words) == sentence


@pytest.mark.parametrize(
    ("text", "words", "sentence"),
    [
        (
            "He left. Dr. Seward met Mr. J. Harker. She wept.",
            "met",
            "Dr. Seward met Mr. J. Harker.",
        ),
        ("He left. “Where to?” she asked. He fell.", "asked", "“Where to?” she asked."),
        ("“Go!” “No.” He went.", "“No.”", "“No.”"),
        ('She said "stop." Then he left.', '"stop."', 'She said "stop."'),
        ("A title\n\nThe first line. Rest", "title", "A title"),
        ("A title\n\nThe first line. Rest", "first", "The first line."),
        ("Il pleut. Éric sort. Fin", "Éric", "Éric sort."),
        ("Шёл дождь. Ольга ушла. Да", "ушла", "Ольга ушла."),
        (
            "雨が降った。彼は「行け！」と言った。終わり。",
            "彼は「行け！」",
            "雨が降った。彼は「行け！」と言った。終わり。",
        ),
        ("one 1.5 two. three four", "two.", "one 1.5 two. three four"),
    ],
)
def test_sentences_end_where_people_end_them(text: str, words: str, sentence: str) -> None:
    """Titles, initials and decimals end none; quotes and brackets stay with theirs."""
    assert cited(text, words) == sentence


def test_sentences_without_spaces_are_told_apart() -> None:
    made = book("雨が降った。彼は去った。終わり。", words=False)
    (citation,) = made.citations(evidence(made, (0, "彼は去", 1.0)))
    assert citation.text == "彼は去った。"


def test_evidence_on_white_space_cites_the_sentence_before_it() -> None:
    text = "\n\nIt rained.  \n\nIt stopped."
    made = book(text, words=False)
    for at in (10, 12, 13, 14, 15):
        weight = torch.zeros(len(text))
        weight[at] = 1.0
        assert [c.text for c in made.citations(weight)] in (["It rained."], [])
    weight = torch.zeros(len(text))
    weight[0] = weight[5] = 1.0
    assert [c.text for c in made.citations(weight)] == ["It rained."]


def test_a_sentence_without_end_is_cut_around_the_evidence() -> None:
    text = "word " * 500 + "whale " + "word " * 500
    found = cited(text, "whale")
    assert "whale" in found
    assert len(found) <= LONGEST + len(" whale")


def test_the_best_three_come_first() -> None:
    text = "One sat. Two sat. Three sat. Four sat. Five sat."
    made = book(text)
    weight = evidence(
        made, (0, "Two", 0.4), (0, "Five", 0.3), (0, "One", 0.2), (0, "Four", 0.08), (0, "Three", 1)
    )
    weight[0] = 0.2
    passages = made.citations(weight)
    assert [c.text for c in passages] == ["Three sat.", "One sat. Two sat.", "Five sat."]
    assert len(passages) == MOST
    assert passages[0].weight == pytest.approx(1 / 1.98, abs=1e-4)
    assert passages[1].weight == pytest.approx(0.6 / 1.98, abs=1e-4)


def test_sentences_side_by_side_are_one_passage_where_both_matter() -> None:
    """Not with a gap, not across sources, and not longer than people read."""
    made = book("One sat. Two sat. Three sat.", "One sat.")
    even = [(0, "One", 0.3), (0, "Two", 0.3), (1, "One", 0.3)]
    passages = made.citations(evidence(made, *even))
    assert [(c.source, c.text) for c in passages] == [
        ("0.txt", "One sat. Two sat."),
        ("1.txt", "One sat."),
    ]
    gap = made.citations(evidence(made, (0, "One", 0.3), (0, "Three", 0.3)))
    assert [c.text for c in gap] == ["One sat.", "Three sat."]
    long = book(f"One {'sat ' * 60}sat. Two {'sat ' * 60}sat. Three.")
    apart = long.citations(evidence(long, (0, "One", 0.5), (0, "Two", 0.5)))
    assert len(apart) == 2
    assert all(len(c.text) < LONGEST for c in apart)


def test_a_passage_over_a_page_break_names_both_pages() -> None:
    made = book("One sat. Two sat. Three sat.", pages=(("6", 0), ("7", 12)))
    passages = made.citations(evidence(made, (0, "Two", 0.5), (0, "Three", 0.1)))
    assert [(c.text, c.page) for c in passages] == [("Two sat.", "6-7"), ("Three sat.", "7")]
    named = book("One sat. Two sat.", pages=(("I", 0), ("II", 12)))
    assert named.citations(evidence(named, (0, "Two", 0.5)))[0].page == "I"


def test_no_evidence_no_citation() -> None:
    made = book("One sat. Two sat.")
    assert made.citations(torch.zeros(4)) == ()


@pytest.mark.parametrize(
    ("offset", "label"), [(0, ""), (4, "i"), (8, "i"), (9, "1"), (17, "1"), (18, "2"), (99, "2")]
)
def test_a_page_begins_at_its_first_character(offset: int, label: str) -> None:
    made = book("One sat. Two sat. Three sat.", pages=(("i", 4), ("1", 9), ("2", 18)))
    assert made.page_at(0, offset) == label


def test_a_citation_names_source_and_page() -> None:
    made = book("One sat. Two sat.", "Three sat. Four sat.", pages=(("1", 0), ("2", 9)))
    passages = made.citations(evidence(made, (1, "Four", 0.6), (0, "One", 0.4)))
    assert passages == (
        Citation("1.txt", "2", 11, 20, "Four sat.", 0.6),
        Citation("0.txt", "1", 0, 8, "One sat.", 0.4),
    )


def test_a_citation_of_a_pdf_names_page_and_sheet() -> None:
    made = book("One sat. Two sat. Three sat.", pages=(("ii", 0), ("1", 9), ("2", 18)))
    entry = replace(made.sources[0], kind="pdf", sheets=(2, 3, 4))
    labelled = replace(made, sources=(entry,))
    assert (labelled.pages(0, 0, 8), labelled.sheets(0, 0, 8)) == ("ii", "2")
    assert (labelled.pages(0, 0, 12), labelled.sheets(0, 0, 12)) == ("ii-1", "2-3")
    assert labelled.citations(evidence(made, (0, "Two", 1.0)))[0].sheet == "3"
    # Without labels of its own the label is the sheet; other sources have none.
    plain = book("One sat. Two sat.", pages=(("7", 0), ("8", 9)))
    assert plain.sheets(0, 0, 12) == ""
    plain = replace(plain, sources=(replace(plain.sources[0], kind="pdf"),))
    assert (plain.pages(0, 0, 12), plain.sheets(0, 0, 12)) == ("7-8", "7-8")
    assert plain.printed(0, 0, 12) == ""


def test_a_citation_has_the_number_that_is_printed_on_its_page() -> None:
    made = book("One sat. Two sat. Three sat.", pages=(("1", 0), ("2", 9), ("3", 18)))
    entry = replace(made.sources[0], kind="pdf", printed=("", "i", "ii"))
    made = replace(made, sources=(entry,))
    assert made.citations(evidence(made, (0, "Two", 1.0)))[0].printed == "i"
    assert made.printed(0, 9, 28) == "i-ii"
    assert made.printed(0, 0, 17) == ""  # of one page it is not known


@settings(max_examples=150)
@given(
    words=st.lists(
        st.tuples(
            st.text(st.sampled_from("aBé1-"), min_size=1, max_size=9),
            st.sampled_from([" ", " ", " ", "\n", "; ", ". ", "\n\n", "\t"]),
        ),
        min_size=1,
        max_size=40,
    ),
    times=st.integers(1, 40),
    where=st.floats(0, 0.99),
)
def test_no_passage_begins_or_ends_within_a_word(
    words: list[tuple[str, str]], times: int, where: float
) -> None:
    """However long a sentence is, wherever its lines end; what is in the passage is whole."""
    text = "".join(word + end for word, end in words * times).rstrip()
    made = book(text)
    at = int(where * len(made.starts))
    _, start, end = made._sentence(0, int(made.starts[at]), int(made.ends[at]))
    assert end - start <= LONGEST + 20
    assert start == 0 or text[start - 1].isspace()
    assert end == len(text) or text[end].isspace()


def test_passages_of_a_real_book_are_of_whole_words_and_of_one_section() -> None:
    (source,) = load([str(ROOT / "docs" / "sample" / "dracula.pdf")]).sources
    made = book(source.text, pages=[(page.label, page.start) for page in source.pages])
    made = replace(made, sources=(replace(made.sources[0], kind="pdf"),))
    passages = {
        made._sentence(0, start, end)
        for start, end in zip(made.starts.tolist(), made.ends.tolist(), strict=True)
    }
    assert len(made.headings[0]) == 6
    for _, start, end in passages:
        text = source.text[max(0, start - 1) : end + 1]
        assert not re.match(r"\w\w", text) or start == 0
        assert not re.search(r"\w\w\Z", text)
        for heading in made.headings[0]:
            assert (
                end <= heading.start
                or start >= heading.end
                or (heading.start <= start and end <= heading.end)
            )


def test_lines_of_a_list_of_contents_are_passages_of_their_own() -> None:
    lines = ["CHAPTER I. The Harbour", "CHAPTER II. The Storm", "CHAPTER XIV. The Island"]
    for line in lines:
        assert cited("\n".join(lines), line) == line


def test_a_heading_is_cited_for_what_it_says_and_not_for_what_it_is_about() -> None:
    below = "The harbour was built of stone by the monks in 1410. " * 8
    made = book(f"2 The Harbour\n{below}\n\n3 The Bridge ........ 12\n")
    weight = evidence(made, (0, "2 The Harbour", 0.5), (0, below, 0.3), (0, "12", 0.2))
    cited = lambda said: [c.text for c in made.citations(weight, None, said)]  # noqa: E731
    assert len(cited(None)) == 3
    assert not {"2 The Harbour", "3 The Bridge ........ 12"} & set(cited({"monk"}))
    assert "2 The Harbour" in cited({"harbour"})
    alone = evidence(made, (0, "2 The Harbour", 1.0))
    assert [c.text for c in made.citations(alone, None, {"monk"})] == ["2 The Harbour"]


def test_a_heading_and_what_follows_are_no_passage() -> None:
    below = "The harbour lay quiet in the morning, and nobody had seen the ship come in by night."
    made = book(f"2 The Harbour\n{below}\n{below}")
    passages = made.citations(evidence(made, (0, "2 The Harbour", 0.5), (0, below, 0.5)))
    assert {passage.text for passage in passages} == {"2 The Harbour", below}


@settings(max_examples=80)
@given(text=st.text(st.sampled_from("aB .!?\n”“(Zé。"), min_size=1, max_size=80), data=st.data())
def test_any_evidence_gives_exact_slices_around_it(text: str, data: st.DataObject) -> None:
    made = book(text, words=data.draw(st.booleans()))
    count = len(made.starts)
    weight = torch.tensor(data.draw(st.lists(st.floats(0, 1), min_size=count, max_size=count)))
    passages = made.citations(weight)
    assert len(passages) <= MOST
    assert len({(c.start, c.end) for c in passages}) == len(passages)
    for citation in passages:
        assert 0 <= citation.start < citation.end <= len(text)
        assert citation.text == text[citation.start : citation.end]
        assert citation.text == citation.text.strip()
        assert 0 < citation.weight <= 1


def test_tokens_of_the_model_s_own_tokenizer_find_their_characters(tmp_path: Path) -> None:
    """Bytes of one character each point to the whole character."""
    source = tmp_path / "a.txt"
    source.write_text("It rained. Éa came. Fin", encoding="utf-8")
    tokens = tokenize(load([str(source)]), tokenizer())
    tables = {"starts": tokens.starts, "ends": tokens.ends, "source": tokens.source}
    columns = (torch.from_numpy(tables[name]).long() for name in ("starts", "ends", "source"))
    text = source.read_text(encoding="utf-8")
    made = DocumentText((SourceEntry("a", "text", "", len(text)),), (text,), *columns)
    for byte in range(11, 13):
        weight = torch.zeros(len(tokens))
        weight[byte] = 1.0
        assert [c.text for c in made.citations(weight)] == ["Éa came."]


def test_through_a_store_the_place_looked_at_is_cited(tmp_path: Path) -> None:
    """All evidence on one day's line: exactly this line is cited, from the stored text."""
    model = checkpoint("llama", tmp_path / "model")
    text = log(4)
    with session(read(tmp_path / "store", model, text)) as opened:
        weight = torch.zeros(len(text))
        weight[text.index("day 2") : text.index("day 2") + 20] = 1.0
        (citation,) = opened.book.citations(weight)
    assert citation.text == text.splitlines()[2]
    assert citation.source.endswith("log.txt")
