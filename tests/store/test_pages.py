"""Pages of a stored source by their names."""

from __future__ import annotations

import pytest

from engine.errors import DocumentError
from engine.store.manifest import SourceEntry
from engine.store.pages import select

BOOK = SourceEntry(
    path="book.pdf", kind="pdf", sha256="0" * 64, chars=50,
    pages=(("1", 0), ("2", 10), ("3", 20), ("4", 30), ("5", 40)),
    printed=("", "i", "ii", "1", "2"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("selection", "starts"),
    [
        ("2", [10]),
        ("ii", [20]),  # no page has that label, one prints it
        ("i-ii,5", [10, 20, 40]),
        ("1", [0]),  # a label comes before what is printed
        ("i-4", [10, 20, 30]),
        ("II", [20]),
        ("#3", [20]),
        ("#2-#03", [10, 20]),
    ],
)  # fmt: skip
def test_a_page_is_named_by_its_label_or_what_it_prints(selection: str, starts: list[int]) -> None:
    assert [page.start for page in select(BOOK, selection)] == starts


def test_a_name_that_no_page_has_is_refused() -> None:
    with pytest.raises(DocumentError, match=r"book\.pdf has no page 'iii'; its first is '1'"):
        select(BOOK, "iii")
