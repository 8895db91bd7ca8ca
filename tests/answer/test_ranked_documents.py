"""A library's question goes to the document with the best passage, names counted once more."""

from __future__ import annotations

from collections.abc import Sequence

from engine.answer.ranked_documents import PASSAGES_LOOKED_AT, rank_documents
from engine.documents.words import names
from engine.store.catalogue import Found

PASSAGES = {
    "harker": [Found("dracula", 5, 9, 3.0), Found("voyage", 2, 4, 1.0)],
    "ship": [Found("voyage", 0, 4, 4.0), Found("dracula", 0, 4, 2.0)],
    "sea": [Found("voyage", 6, 8, 6.0)],
}


def find(words: Sequence[str], most: int) -> list[Found]:
    """The passages of the first word that has any, as if no other were known."""
    assert most == PASSAGES_LOOKED_AT
    return next((PASSAGES[word] for word in words if word in PASSAGES), [])


def test_the_best_passage_decides_and_is_kept() -> None:
    assert rank_documents(["which ship"], find) == {
        "voyage": Found("voyage", 0, 4, 4.0),
        "dracula": Found("dracula", 0, 4, 2.0),
    }
    assert rank_documents(["nothing"], find) == {}


def test_names_count_half_as_much_again() -> None:
    """The voyage's 4 + 0.5 x 1 against 2 + 0.5 x 3; with 3 for the ship it would be level."""
    found = rank_documents(["which ship of Harker"], find)
    assert list(found) == ["voyage", "dracula"]
    with_less = {**PASSAGES, "ship": [Found("voyage", 0, 4, 2.9), Found("dracula", 0, 4, 2.0)]}
    found = rank_documents(
        ["which ship of Harker"], lambda words, _: with_less[words[0]] if words else []
    )
    assert list(found) == ["dracula", "voyage"]
    assert found["dracula"] == Found("dracula", 0, 4, 2.0)  # its best passage for all words


def test_a_document_that_names_alone_find_is_ranked_too() -> None:
    found = rank_documents(["which sea of Harker"], find)
    assert list(found) == ["voyage", "dracula"]
    assert found["dracula"] == Found("dracula", 5, 9, 3.0)


def test_of_two_texts_the_one_that_fits_better_counts() -> None:
    assert rank_documents(["which sea", "which ship"], find)["voyage"].score == 6.0


def test_names_are_words_with_a_capital_that_say_something() -> None:
    assert names("Who was Mr. Harker's host in Klausenburgh, and When?") == [
        "mr",
        "harker",
        "klausenburgh",
    ]
    assert names("what is it") == []
