"""PDF pages become text with exact offsets; broken and hostile files become one line."""

from __future__ import annotations

import random
import time
import zlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import engine.documents.pdf as pdf
from engine.documents import load
from engine.documents.glyphs import Place
from engine.documents.layout import BROKEN, Line, drop_running, join_words, joined, regular
from engine.documents.pdf import chosen_sheets, load_pdf, name_pages
from engine.errors import DocumentError
from tiny_documents import PROSE, encrypted, make_pdf

if TYPE_CHECKING:
    from pathlib import Path

    from engine.documents.types import Extract


def page(extract: Extract, label: str) -> str:
    """The text of one page, by the table of pages alone."""
    starts = [entry.start for entry in extract.pages] + [len(extract.text)]
    at = [entry.label for entry in extract.pages].index(label)
    return extract.text[starts[at] : starts[at + 1]]


def refusal(raw: bytes, **options: object) -> str:
    with pytest.raises(DocumentError) as caught:
        load_pdf(raw, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_each_page_starts_where_the_table_says() -> None:
    extract = load_pdf(make_pdf([[line] for line in PROSE]))
    assert extract.text == "".join(line + "\n" for line in PROSE)
    assert [entry.label for entry in extract.pages] == ["1", "2", "3", "4"]
    assert [page(extract, entry.label) for entry in extract.pages] == [x + "\n" for x in PROSE]
    assert extract.notes == ()


def test_selected_pages_keep_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(make_pdf([[line] for line in PROSE]))
    (source,) = load([str(path)], pages="4,2-3,2").sources
    assert source.text == "\n".join(PROSE[1:]) + "\n"
    assert [source.page_at(source.text.index(line)) for line in PROSE[1:]] == ["2", "3", "4"]
    with pytest.raises(DocumentError, match=r"a\.pdf has 4 pages; --pages asks for page 5"):
        load([str(path)], pages="1-5")


MALFORMED = ["0", "3-1", "a", "1-", "-3", "1-2-3", "٣", "1.5", "#", "#0", "#2-1"]


def test_malformed_selections_are_refused(tmp_path: Path, subtests: pytest.Subtests) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(make_pdf([PROSE[:1]] * 4))
    for selection in MALFORMED:
        with (
            subtests.test(selection=selection),
            pytest.raises(DocumentError, match="write them as 1-20,25"),
        ):
            chosen_sheets(selection, 99)
    for empty in ("", "1,,2", ","):
        with (
            subtests.test(pages=empty),
            pytest.raises(DocumentError, match="write them as 1-20,25"),
        ):
            load([str(path)], pages=empty)


@given(st.sets(st.integers(1, 60), min_size=1))
def test_a_selection_names_the_same_pages_however_it_is_written(numbers: set[int]) -> None:
    shuffled = random.Random(0).sample(sorted(numbers), len(numbers))
    ranges = chosen_sheets(", ".join(map(str, shuffled)), 60)
    assert [n for first, last in ranges for n in range(first, last + 1)] == sorted(numbers)
    assert chosen_sheets(",".join(f"{a}-{b}" for a, b in ranges), 60) == ranges
    assert chosen_sheets(",".join(f"#{a}-#{b}" for a, b in ranges), 60) == ranges


def test_page_lists_are_short() -> None:
    assert name_pages([7]) == "page 7"
    assert name_pages([4, 5, 6, 9]) == "pages 4-6 and 9"
    assert name_pages(list(range(1, 60, 2))) == "pages 1, 3, 5, 7, 9, 11, 13, 15 and 22 more"


def test_pages_without_text_are_noted_and_only_all_of_them_refused() -> None:
    extract = load_pdf(make_pdf([PROSE[:1], [], [], PROSE[1:2], []]))
    assert extract.notes == ("pages 2-3 and 5 have no text layer",)
    assert page(extract, "2") == ""
    assert page(extract, "4") == PROSE[1] + "\n"
    message = refusal(make_pdf([[], []]))
    assert "no text layer on pages 1-2" in message
    assert "OCR" in message


def test_encrypted_files_open_with_their_password_only() -> None:
    raw = encrypted(make_pdf([PROSE]), "sesame")
    assert "--password-stdin" in refusal(raw)
    assert "does not open it" in refusal(raw, password="wrong")
    assert load_pdf(raw, password="sesame").text.startswith(PROSE[0])


def test_what_is_no_pdf_is_refused() -> None:
    assert "does not begin with %PDF" in refusal(b"Dear Sir,\n")
    assert "malformed" in refusal(b"%PDF-1.4\n%%EOF\n")
    assert "malformed" in refusal(make_pdf([PROSE])[:200])


def test_pypdf_reads_what_pdfium_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other library is the fallback for a whole file, and for single pages."""
    raw = make_pdf([[line] for line in PROSE])
    run = pdf._run

    def blind(reading: pdf._Reading, data: bytes, library: str, *rest: object) -> bool:
        return library == "pypdf" and run(reading, data, library, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(pdf, "_run", blind)
    extract = load_pdf(raw)
    assert extract.text == "".join(line + "\n" for line in PROSE)
    assert extract.notes == ("PDFium could not open it; read with pypdf",)

    def poor(reading: pdf._Reading, data: bytes, library: str, *rest: object) -> bool:
        done = run(reading, data, library, *rest)  # type: ignore[arg-type]
        if library == "pdfium":
            del reading.pages[3]
            reading.lost.append(3)
        return done

    monkeypatch.setattr(pdf, "_run", poor)
    extract = load_pdf(raw)
    assert page(extract, "3") == PROSE[2] + "\n"
    assert extract.notes == ("PDFium could not read page 3; read with pypdf",)


def test_a_page_that_ends_the_process_costs_only_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Crash or hang, the pages before and after it are read, and it is named."""
    source = pdf._WORKER.read_text()
    for trouble in ("os.kill(os.getpid(), 9)", "time.sleep(60)"):
        worker = tmp_path / "worker.py"
        worker.write_text(
            source.replace(
                "def _give(number",
                "def _give(number, text, request, **more):\n    import os, time\n"
                f"    if number == 2:\n        {trouble}\n"
                "    _real(number, text, request, **more)\n\ndef _real(number",
            )
        )
        monkeypatch.setattr(pdf, "_WORKER", worker)
        monkeypatch.setattr(pdf, "PAGE_SECONDS", 1)
        extract = load_pdf(make_pdf([[line] for line in PROSE]))
        assert page(extract, "1") + page(extract, "3") == f"{PROSE[0]}\n{PROSE[2]}\n"
        assert extract.notes == ("page 2 cannot be read and is left out",)


def test_too_many_pages_and_too_much_text_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = make_pdf([[line] for line in PROSE])
    monkeypatch.setattr(pdf, "MAX_PAGES", 3)
    assert "at most 3 are read at once; select some with --pages" in refusal(raw)
    assert load_pdf(raw, pages="2-4").text.startswith(PROSE[1])
    monkeypatch.setattr(pdf, "MAX_PAGES", 4)
    monkeypatch.setattr(pdf, "MAX_CHARS", 50)
    assert "too much text (page 2" in refusal(raw)


def test_a_page_tree_that_lies_is_neither_believed_nor_followed_for_ever() -> None:
    raw = make_pdf([PROSE[:1]])
    assert len(load_pdf(raw.replace(b"/Count 1 ", b"/Count 1000000000 ")).pages) == 1
    assert "damaged" in refusal(raw.replace(b"/Kids [4 0 R]", b"/Kids [2 0 R]"))


def test_a_decompression_bomb_ends_within_its_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pdf, "PAGE_SECONDS", 1)
    stream = zlib.compress(b"q " * 40_000_000, 9)
    raw = make_pdf([["x"]]).split(b"<< /Length", 1)[0]
    raw += b"<< /Length %d /Filter /FlateDecode >>\nstream\n" % len(stream) + stream
    raw += b"\nendstream\nendobj\ntrailer << /Root 1 0 R >>\n"
    start = time.monotonic()
    assert refusal(raw)
    assert time.monotonic() - start < 30


def test_damaged_files_never_give_a_traceback() -> None:
    """Flipped bytes, cut ends: text, or one line. Two libraries, each in its own process."""
    rng = random.Random(1)
    good = make_pdf([PROSE, PROSE])
    for _ in range(5):
        raw = bytearray(good)
        for _ in range(rng.choice((1, 4, 30))):
            raw[rng.randrange(9, len(raw))] = rng.randrange(256)
        cut = bytes(raw[: rng.choice((len(raw), rng.randrange(200, len(raw))))])
        try:
            extract = load_pdf(cut)
        except DocumentError as error:
            assert "\n" not in str(error)  # noqa: PT017
        else:
            assert extract.pages[0].start == 0
            extract.text.encode()


def test_characters_are_made_regular() -> None:
    text = regular("one  \r\ntwo\x02three ﬁn \x0f\r\n\r\n\r\n\r\nend\r\n")
    assert joined(text.split("\n")) == f"one\ntwo{BROKEN}three fin \ufffd\n\nend"
    cut = joined(["a line-", "end, pages 84-", "91"])
    assert cut == f"a line{BROKEN}end, pages 84-\n91"
    # Arabic letters as they look in a word are the letters; the one sign for "la" is two.
    assert regular("\ufef3\ufeee\ufe9f \ufefb \ufb2a") == "يوج لا ש\u05c1"


def test_cut_words_are_mended_as_the_document_writes_them() -> None:
    cut = f"maxi{BROKEN}mize the real{BROKEN}time deci{BROKEN}sion{BROKEN}making of well{BROKEN}fed"
    rest = "They maximize. In real-time. A decision in the making; well, he fed it."
    assert join_words([cut, rest])[0] == "maximize the real-time decision-making of well-fed"
    stays = f"MED{BROKEN}LINE, RISC{BROKEN}compatible, Jimeno{BROKEN}Yepes, us{BROKEN}"
    assert join_words([stays]) == ["MED-LINE, RISC-compatible, Jimeno-Yepes, us-"]
    assert join_words([f"www.a.org/us{BROKEN}cert"]) == ["www.a.org/us-cert"]


def test_a_pdf_has_the_title_and_author_of_its_own_description() -> None:
    import io

    import pypdf

    out, plain = io.BytesIO(), make_pdf([PROSE])
    writer = pypdf.PdfWriter(clone_from=pypdf.PdfReader(io.BytesIO(plain)))
    writer.add_metadata({"/Title": "The Quay ", "/Author": "Änna\nBerg", "/Subject": "x"})
    writer.write(out)
    assert load_pdf(out.getvalue()).imprint == {"title": "The Quay", "author": "Änna Berg"}
    assert load_pdf(plain).imprint == {}


def test_without_places_only_a_number_at_the_foot_is_taken_away() -> None:
    pages = [f"The Harbour\n{at + 1}\n{line}\n{at + 1}" for at, line in enumerate(PROSE)]
    lines = [[Line(line) for line in page.split("\n")] for page in pages]
    kept, removed, printed = drop_running(lines)
    assert printed == ["1", "2", "3", "4"]
    assert kept == [page.split("\n")[:-1] for page in pages]
    assert [(line.text, line.pages, line.top) for line in removed] == [("", 4, False)]


def test_figures_and_dates_of_a_table_are_no_page_numbers() -> None:
    rows = ["06/22/2015", "17", "I", "3.1 Results", "4,096"]
    pages = [[row, text, row] for row, text in zip(rows, [*PROSE, PROSE[0]], strict=True)]
    none = [""] * 5
    assert drop_running([[Line(line) for line in page] for page in pages]) == (pages, [], none)
    dates = [["07/01/2015", text] for text in PROSE]
    assert drop_running([[Line(line) for line in page] for page in dates]) == (dates, [], none[:4])


@settings(max_examples=50)
@given(st.lists(st.text(alphabet=f"ab1 -{BROKEN}\n", max_size=40), max_size=6))
def test_cleaning_only_takes_away(pages: list[str]) -> None:
    """No step invents text: what remains was there, in that order, hyphens aside."""
    lines = [
        [
            Line(line, Place(0.1, 0.9, at / 50, at / 50 + 0.01, 0.1, 0.1))
            for at, line in enumerate(page.split("\n"))
        ]
        for page in pages
    ]
    kept, _, _ = drop_running(lines)
    cleaned = join_words(["\n".join(page) for page in kept])
    for before, after in zip(pages, cleaned, strict=True):
        rest = iter(before.replace(BROKEN, "-"))
        assert all(sign in rest for sign in after)
        assert BROKEN not in after


def test_a_long_word_without_spaces_is_no_trap() -> None:
    start = time.monotonic()
    join_words(["字" * 300_000 + BROKEN + "a" * 300_000])
    assert time.monotonic() - start < 5
