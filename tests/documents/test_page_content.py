"""What is on a page, and nothing else: no heading is lost, no form value, no order of reading.

Each kind is shown by a file that once failed (`data`) and by others of the same kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.documents import load
from engine.documents.glyphs import Glyph, Mark, in_reading_order, with_marks
from engine.documents.pdf import chosen_sheets, load_pdf
from engine.documents.types import HEADERS_KEPT
from engine.errors import DocumentError
from tiny_documents import PROSE, painted, said

DATA = Path(__file__).parent / "data"
BODY = [
    ["The guide was Einar Holm.", "He knew the fjord."],
    ["The guide was Solveig Dahl.", "She knew the ice."],
    ["The guide was Nils Berg.", "He knew the snow."],
    ["There was no guide.", "Nobody knew the way."],
    ["The guide was Ane Lie.", "She knew the road."],
]


def pages_of(raw: bytes, **options: object) -> list[str]:
    """The text of each page, by the table of pages."""
    extract = load_pdf(raw, **options)  # type: ignore[arg-type]
    starts = [page.start for page in extract.pages] + [len(extract.text)]
    return [extract.text[a:b] for a, b in pairwise(starts)]


def headed(heads: list[str], gap: float = 14.0, foot: bool = False) -> bytes:
    """A page for each heading: the heading, the body `gap` points below it, a number at the
    foot."""
    return painted(
        [
            said(72, 740, head)
            + said(72, 740 - gap, *BODY[at % len(BODY)])
            + (said(300, 40, str(at + 1)) if foot else "")
            for at, head in enumerate(heads)
        ]
    )


# ------------------------------------------------------- headings that count (report 01)


def test_days_and_chapters_that_count_with_the_pages_stay() -> None:
    (days,) = load([str(DATA / "p_days.pdf")]).sources
    assert [f"Day {day}" in days.text for day in (1, 2, 3, 4)] == [True] * 4
    (chapters,) = load([str(DATA / "p_chap.pdf")]).sources
    for numeral in ("I", "II", "III", "IV", "V"):
        assert f"Chapter {numeral}\n" in chapters.text
    assert days.notes == chapters.notes == ()


TELLING_HEADS = [
    ["Day 1", "Day 2", "Day 3", "Day 4"],
    ["2019", "2020", "2021", "2022"],
    ["I", "II", "III", "IV", "V"],
    ["Section 1.1", "Section 1.2", "Section 1.3", "Section 1.4"],
    ["1. Kapitel", "2. Kapitel", "3. Kapitel", "4. Kapitel"],
    ["Status: approved"] * 4,
    ["Status: approved", "Status: refused", "Status: approved", "Status: approved"],
    ["APPROVED", "REFUSED", "APPROVED", "APPROVED"],
    ["Total", "Total", "Total", "Other", "Other", "Other"],
    [f"Invoice {at}" for at in range(1001, 1013)],
    [f"Table {at}" for at in range(1, 13)],
]


def test_a_heading_that_says_something_of_its_page_stays(subtests: pytest.Subtests) -> None:
    for gap in (14.0, 60.0):
        for heads in TELLING_HEADS:
            with subtests.test(heads=heads, gap=gap):
                for foot in (False, True):
                    pages = pages_of(headed(heads, gap, foot))
                    for head, page in zip(heads, pages, strict=True):
                        assert page.startswith(head + "\n")


LONG = [[*lines, "In the year of the flood.", "Snow lay on the pier.", "Nobody wrote."] for lines in
        BODY]  # fmt: skip
"""Pages of which the lines at the head are none of those at the foot."""


def headed_long(heads: list[str], font: str = "F1") -> list[str]:
    """The text of pages of many lines with these heads, set apart from them."""
    pages = [
        said(72, 740, head, font=font) + said(72, 680, *LONG[at % 5])
        for at, head in enumerate(heads)
    ]
    return pages_of(painted(pages, wide=font == "F2"))


HEADINGS = [
    ["APPROVED"] * 5 + ["REFUSED"],  # what differs on one page says something on each
    ["APPROVED"] * 9 + ["NOT APPROVED"],
    ["Status:approved"] * 4,
    ["Status = approved"] * 4,
    ["1.", "2.", "3.", "4."],
    ["(1)", "(2)", "(3)", "(4)"],
    ["I.", "II.", "III.", "IV."],
    ["1/1", "2/1", "3/1", "4/1"],  # days of January
    ["1 January", "2 January", "3 January"],
    ["A", "B", "C", "D"],
    ["#1", "#2", "#3", "#4"],
    ["No. 1", "No. 2", "No. 3"],
]


def test_headings_of_other_kinds_stay(subtests: pytest.Subtests) -> None:
    for heads in HEADINGS:
        with subtests.test(heads=heads):
            for head, page in zip(heads, headed_long(heads), strict=True):
                assert page.startswith(head + "\n")


CHINESE_HEADS = ["状态：已批准", "状态=已批准", "第一章"]


def test_a_chinese_label_and_what_it_says_stay(subtests: pytest.Subtests) -> None:
    for head in CHINESE_HEADS:
        with subtests.test(head=head):
            heads = [head] * 4 if head != "第一章" else ["第一章", "第二章", "第三章", "第四章"]
            for each, page in zip(heads, headed_long(heads, "F2"), strict=True):
                assert page.startswith(each + "\n")


def test_a_running_header_goes_though_pages_without_it_begin_elsewhere() -> None:
    """Such as the first page of a chapter."""
    pages = [
        (said(72, 760, "The Harbour") if at != 4 else "") + said(72, 700, *LONG[at % 5])
        for at in range(10)
    ]
    texts = pages_of(painted(pages))
    assert [text.startswith("The Harbour\n") for text in texts] == [True] + [False] * 9


def test_what_a_form_says_below_a_line_that_varies_stays() -> None:
    """Only what has nothing beyond it at the edge can be a running line."""
    pages = [
        said(72, 740, f"Order {name}", "Status: approved", "Paid") + said(72, 640, *BODY[at])
        for at, name in enumerate(("Ao", "Bo", "Co"))
    ]
    for page in pages_of(painted(pages)):
        assert "Status: approved\nPaid\n" in page


def test_the_head_of_a_table_that_goes_on_stays() -> None:
    pages = [said(72, 740, "Name  Port  Tons", f"Ida  Kiel  {at}", f"Ada  Oslo  {at}") for at in
             range(5)]  # fmt: skip
    assert all(page.startswith("Name Port Tons\n") for page in pages_of(painted(pages)))


SET_APART = [
    ("Sheet No.", 12, 520),  # after other words it is taken for the page's number there
    *((w, n, x) for w in ("Sheet No.", "Order", "Day") for n, x in ((7, 520), (7, 300), (12, 300))),
]
"""Label, number of pages, and where the value stands across."""


def test_a_value_set_apart_from_its_label_is_no_page_number(subtests: pytest.Subtests) -> None:
    """A heading of two columns; PDFium makes two lines of it where the number is one digit."""
    for words, count, x in SET_APART:
        pages = [
            said(72, 740, words) + said(x, 740, str(at + 1)) + said(72, 680, *BODY[at % 5])
            for at in range(count)
        ]
        with subtests.test(words=words, count=count, x=x):
            for at, text in enumerate(pages_of(painted(pages))):
                assert text.split()[: len(words.split()) + 1] == [*words.split(), str(at + 1)]


def test_running_headers_and_page_numbers_go_and_are_named() -> None:
    pages = [
        said(72, 760, "The Harbour") + said(72, 700, *BODY[at % 5]) + said(300, 30, str(at + 1))
        for at in range(10)
    ]
    raw = painted(pages)
    texts = pages_of(raw)
    assert texts[0] == "The Harbour\n" + "\n".join(BODY[0]) + "\n"
    assert texts[1:] == ["\n".join(BODY[at % 5]) + "\n" for at in range(1, 10)]
    assert load_pdf(raw).notes == (
        "left out at the foot of 10 pages: the page's own number",
        "left out at the head of 9 pages, said once: The Harbour",
        "--keep-headers keeps what was left out",
    )
    kept = load_pdf(raw, keep_headers=True)
    assert kept.text.count("The Harbour") == 10
    assert pages_of(raw, keep_headers=True)[4].endswith("\n5\n")
    assert kept.notes == (HEADERS_KEPT,)


def test_a_header_with_the_pages_number_at_the_margin_goes() -> None:
    def page(at: int) -> str:
        number, words = (520, 72) if at % 2 else (72, 440)
        return (
            said(number, 760, str(at + 12))
            + said(words, 760, "THE QUAY" if at % 2 else "A BOOK OF SHIPS")
            + said(72, 700, *BODY[at % 5])
        )

    labels = "/PageLabels << /Nums [0 << /S /D /St 12 >>] >>"
    texts = pages_of(painted([page(at) for at in range(10)], catalog=labels))
    assert texts[0].startswith("12 A BOOK OF SHIPS\n")
    assert texts[1].startswith("THE QUAY 13\n")
    assert texts[2:] == ["\n".join(BODY[at % 5]) + "\n" for at in range(2, 10)]


@pytest.mark.parametrize("form", ["Page {} of 9", "- {} -", "Seite {}", "{} | Page", "p. {}"])
def test_a_line_that_only_says_which_page_it_is_goes(form: str) -> None:
    pages = [said(72, 700, *BODY[at]) + said(280, 30, form.format(at + 1)) for at in range(5)]
    assert pages_of(painted(pages)) == ["\n".join(lines) + "\n" for lines in BODY]


def test_small_numerals_that_are_the_labels_go() -> None:
    numerals = ["i", "ii", "iii", "iv", "v"]
    pages = [
        said(72, 700, *BODY[at]) + said(300, 30, numeral) for at, numeral in enumerate(numerals)
    ]
    raw = painted(pages, catalog="/PageLabels << /Nums [0 << /S /r >>] >>")
    assert pages_of(raw) == ["\n".join(lines) + "\n" for lines in BODY]


# ------------------------------------------------------------ forms and notes (report 09)


def test_values_of_a_form_stand_beside_their_labels() -> None:
    (form,) = load([str(DATA / "p_form.pdf")]).sources
    assert form.text == "Application form\nSurname: Brandt\nFirst name: Ottilie\nAgrees: [x]\n"
    assert form.notes == ("3 form fields are in the text (page 1)",)
    (note,) = load([str(DATA / "p_annot.pdf")]).sources
    assert note.page_at(note.text.index("the printer was Olsen")) == "1"


FIELDS = [
    # labels to the left, on one row
    "/FT /Tx /T (a) /V (Kiel) /Rect [110 698 200 712]",
    "/FT /Tx /T (b) /V (1912) /Rect [260 698 330 712]",
    # boxes before their labels
    "/FT /Btn /T (c) /V /On /AS /On /Rect [72 668 84 680]",
    "/FT /Btn /T (d) /V /Off /AS /Off /Rect [72 648 84 660]",
    # one of two
    "/FT /Btn /Ff 32768 /T (e) /V /sea /AS /sea /Rect [72 618 84 630]",
    "/FT /Btn /Ff 32768 /T (f) /V /Off /AS /Off /Rect [172 618 184 630]",
    # choices
    "/FT /Ch /Ff 131072 /T (g) /Opt [[(n) (North)] [(s) (South)]] /V (s) /Rect [120 588 200 602]",
    "/FT /Ch /Ff 2097152 /T (h) /Opt [(Coal) (Corn) (Salt)] /V [(Coal) (Salt)] /I [0 2]"
    " /Rect [120 558 200 582]",
    # nothing printed in its row; lines of its own
    "/FT /Tx /Ff 4096 /T (i) /TU (Remarks) /V (Late.\\nVery late.) /Rect [72 480 300 520]",
    # not shown, or secret
    "/FT /Tx /T (j) /V (hidden) /F 2 /Rect [300 480 400 520]",
    "/FT /Tx /Ff 8192 /T (k) /V (secret) /Rect [300 440 400 460]",
    "/FT /Tx /T (l) /Rect [300 400 400 420]",
]
FORM = (
    said(72, 700, "Port:") + said(220, 700, "Year:") + said(90, 670, "Pilot") + said(90, 650, "Tug")
    + said(90, 620, "Sea") + said(190, 620, "Land") + said(72, 590, "Course:")
    + said(72, 566, "Cargo:") + said(72, 300, "End of the form")
)  # fmt: skip


def filled_form() -> bytes:
    first = 6

    def looks(field: str) -> str:
        return f"/AP << /N << /{'sea' if '/sea' in field else 'On'} 99 0 R >> >>"

    return painted(
        [FORM],
        entries={
            0: f"/Annots [{' '.join(f'{first + at} 0 R' for at in range(len(FIELDS) + 2))}]",
        },
        catalog=f"/AcroForm << /Fields [{' '.join(f'{first + at} 0 R' for at in range(12))}] >>",
        objects=[
            *(
                f"<< /Subtype /Widget {field} {looks(field) if '/Btn' in field else ''} >>"
                for field in FIELDS
            ),
            "<< /Subtype /FreeText /Contents (Seen by Olsen.) /Rect [72 340 300 360] >>",
            "<< /Subtype /Text /Contents (a comment) /Rect [500 700 520 720] >>",
        ],
    )


def test_every_kind_of_field_and_a_note_are_read_at_their_place() -> None:
    extract = load_pdf(filled_form())
    assert extract.text.splitlines() == [
        "Port: Kiel Year: 1912",
        "[x] Pilot",
        "[ ] Tug",
        "(x) Sea ( ) Land",
        "Course: South",
        "Cargo: Coal, Salt",
        "Remarks: Late.",
        "Very late.",
        "Seen by Olsen.",
        "End of the form",
    ]
    assert extract.notes == (
        "9 form fields are in the text (page 1)",
        "1 free-text note is in the text (page 1)",
        "1 comment is not in the text (page 1)",
    )


WIDGET = "<< /Type /Annot /Subtype /Widget"


FILLED = [
    ("Name:", "/FT /Tx /T (n) /V <feff00d30066738b>", "Name: Óf王"),
    ("Where:", "/FT /Ch /Ff 393216 /T (g) /Opt [(North)] /V (Elsewhere)", "Where: Elsewhere"),
    ("Sum:", "/FT /Tx /T (n) /V (0)", "Sum: 0"),
    ("Paid:", "/FT /Btn /T (n) /V /Ja /AS /Ja /AP << /N << /Ja 7 0 R >> >>", "Paid: [x]"),
    ("Click:", "/FT /Btn /Ff 65536 /T (b) /MK << /CA (Print) >>", "Click:"),
]


def test_other_fields_are_read_too_also_where_their_form_was_lost(
    subtests: pytest.Subtests,
) -> None:
    """As where pages of a form were joined with others."""
    for printed, field, text in FILLED:
        for catalog in ("/AcroForm << /Fields [6 0 R] >>", ""):
            with subtests.test(printed=printed, catalog=catalog):
                raw = painted(
                    [said(72, 700, printed)],
                    entries={0: "/Annots [6 0 R]"},
                    catalog=catalog,
                    objects=[f"{WIDGET} {field} /Rect [120 698 200 712] >>", "<< >>"],
                )
                assert load_pdf(raw).text == text + "\n"


def test_fields_take_what_is_said_of_their_group() -> None:
    """Two buttons, of which the group names the one that is chosen."""
    button = f"{WIDGET} /Parent 6 0 R /AP << /N << /{{0}} 9 0 R /Off 9 0 R >> >>"
    raw = painted(
        [said(90, 700, "Yes") + said(190, 700, "No")],
        entries={0: "/Annots [7 0 R 8 0 R]"},
        catalog="/AcroForm << /Fields [6 0 R] >>",
        objects=[
            "<< /FT /Btn /Ff 49152 /T (agree) /V /ja /Kids [7 0 R 8 0 R] >>",
            button.replace("{0}", "ja") + " /AS /ja /Rect [72 698 84 710] >>",
            button.replace("{0}", "nein") + " /AS /Off /Rect [172 698 184 710] >>",
            "<< >>",
        ],
    )
    assert load_pdf(raw).text == "(x) Yes ( ) No\n"


def test_a_form_over_a_scan_is_read_with_the_names_of_its_fields() -> None:
    field = "<< /Type /Annot /Subtype /Widget /FT /Tx /T (surname) /V (Brandt) /Rect [9 9 90 20] >>"
    raw = painted(
        [""],
        entries={0: "/Annots [6 0 R]"},
        catalog="/AcroForm << /Fields [6 0 R] >>",
        objects=[field],
    )
    assert load_pdf(raw).text == "surname: Brandt\n"


def test_pypdf_reads_forms_too(monkeypatch: pytest.MonkeyPatch) -> None:
    import engine.documents.pdf as pdf

    run = pdf._run
    monkeypatch.setattr(
        pdf, "_run", lambda reading, raw, library, *rest: library == "pypdf" and run(
            reading, raw, library, *rest
        ),
    )  # fmt: skip
    text = load_pdf((DATA / "p_form.pdf").read_bytes()).text
    for line in ("surname: Brandt", "first: Ottilie", "agree: [x]"):
        assert line in text
    text = load_pdf(filled_form()).text
    assert "h: Coal, Salt" in text
    assert "Seen by Olsen." in text
    assert "secret" not in text
    assert "hidden" not in text


def test_a_value_stands_after_the_nearest_words_of_its_row() -> None:
    row = [Glyph("Port", 10, 0, 30, 10), Glyph(" ", 30, 0, 33, 10), Glyph("Tons", 90, 0, 110, 10)]
    far = [Glyph("Mast", 0, 50, 20, 60)]
    made = with_marks([far, row], [Mark("Kiel", 40, 0, 80, 10, "port")])
    assert ["".join(glyph.text for glyph in line) for line in made] == ["Mast", "Port Kiel Tons"]


# ------------------------------------------------------- orders of reading (report 10)

ARABIC = "هذا مثال على المشكل الذي يواجهني 2019."
HEBREW = "דוח רבעוני: שומר המגדלור הוא דוד כהן, 2019."


def test_right_to_left_lines_are_in_the_order_of_reading() -> None:
    (source,) = load([str(DATA / "rtl.pdf")]).sources
    assert source.text.splitlines() == [
        HEBREW,
        ARABIC,
        "灯塔的看守人是王一。他在那里住了十九年。",
        "Family: 👨\u200d👩\u200d👧 and flag 🇳🇴. office field fluffy.",
    ]


# As one sees them, from left to right, and as one reads them.
SEEN_AND_READ = [
    ("ינועבר חוד", "דוח רבעוני"),
    ("2019 תנשב", "בשנת 2019"),
    ("2020 12.5% דע", "עד 12.5% 2020"),
    ("Windows 10 הלעפהה תכרעמ", "מערכת ההפעלה Windows 10"),
    ("!Office ירצומ (2019) לכ", "כל (2019) מוצרי Office!"),
    ("יווהימ 050-1234567 ןופלט", "טלפון 050-1234567 מיהווי"),
    ("12/05/2019 ךיראת", "תאריך 12/05/2019"),
    ("The word םולש means peace, and ןמא amen.", "The word שלום means peace, and אמן amen."),
    ("يواجهني"[::-1], "يواجهني"),
    ("plain text (1) stays", "plain text (1) stays"),
    ("(2019) םולש", "שלום (2019)"),
    ("50% לע", "על 50%"),
    ("03-1234567 :ןופלט", "טלפון: 03-1234567"),
    ("٢٠١٩ ماع", "عام ٢٠١٩"),
    ("ےہ باتک ہی", "یہ کتاب ہے"),
    ('"םולש" רמא', 'אמר "שלום"'),
    ("2019-2020 תנש", "שנת 2019-2020"),
    (".1 ףיעס", "סעיף 1."),
]


def test_words_numbers_and_brackets_turn_as_they_are_read(subtests: pytest.Subtests) -> None:
    for seen, read in SEEN_AND_READ:
        with subtests.test(seen=seen):
            raw = painted([said(72, 700, seen, font="F2")], wide=True)
            assert load_pdf(raw).text == read + "\n"


@given(st.permutations(range(12)))
def test_the_order_in_the_file_does_not_matter(order: list[int]) -> None:
    """The signs of a line in any order: the eye sees the same."""
    seen = "42 םלוע םולש"
    line = [Glyph(sign, 6.6 * at, 0, 6.6 * at + 6.6, 10) for at, sign in enumerate(seen)]
    assert in_reading_order([[line[at] for at in order]]) == ["שלום עולם 42"]


def test_accents_stay_with_their_letters() -> None:
    line = [
        Glyph("ם", 0, 0, 6, 10), Glyph("ו", 6, 0, 12, 10), Glyph("ל", 12, 0, 18, 10),
        Glyph("ָ", 20, 0, 22, 10), Glyph("ש", 18, 0, 24, 10),
    ]  # fmt: skip
    assert in_reading_order([line]) == ["שָלום"]


LINES = ["The first line of it", "and the second line", "then a third one", "the last line here"]


def test_text_set_sideways_is_read_from_its_first_line(subtests: pytest.Subtests) -> None:
    for turned in (0, 90, 180, 270):
        for angle in (0, 90, 180, 270):
            with subtests.test(angle=angle, turned=turned):
                x, y = {0: (72, 700), 90: (100, 100), 180: (500, 100), 270: (500, 700)}[angle]
                raw = painted([said(x, y, *LINES, angle=angle)], entries={0: f"/Rotate {turned}"})
                assert load_pdf(raw).text.splitlines() == LINES


def test_sideways_text_keeps_out_of_the_upright_text() -> None:
    raw = painted(
        [
            said(72, 760, "A caption over it.")
            + said(500, 700, *LINES, angle=270)
            + said(72, 60, "A remark below it.")
        ]
    )
    assert load_pdf(raw).text.splitlines() == ["A caption over it.", *LINES, "A remark below it."]


def test_a_stamp_in_the_margin_stays_one_line() -> None:
    raw = painted([said(30, 300, "Draft of May", angle=90) + said(72, 700, *PROSE)])
    assert sorted(load_pdf(raw).text.splitlines()) == sorted(["Draft of May", *PROSE])


EMOJI = ["😀", "👍🏽", "🇳🇴", "1️⃣", "❤️"]


def test_emoji_that_only_the_meaning_of_a_glyph_names_are_kept(subtests: pytest.Subtests) -> None:
    for sign in EMOJI:
        with subtests.test(sign=sign):
            meant = sign.encode("utf-16-be").hex()
            marked = f"/Span << /ActualText <feff{meant}> >> BDC {said(105, 700, '?')} EMC "
            raw = painted([said(72, 700, "Hello ") + marked + said(120, 700, "there")])
            assert load_pdf(raw).text == f"Hello {sign} there\n"


# ------------------------------------------------------------- page labels (report 11)


def test_pages_have_the_labels_of_the_file_and_their_sheets() -> None:
    path = str(DATA / "p_labels.pdf")
    (source,) = load([path]).sources
    assert [(page.label, page.sheet) for page in source.pages] == [
        ("i", 1), ("ii", 2), ("iii", 3), ("1", 4), ("2", 5),
    ]  # fmt: skip
    for selection, labels in {
        "ii": ["ii"], "1": ["1"], "#4": ["1"], "ii-1": ["ii", "iii", "1"], "II,2": ["ii", "2"],
        "#1-#2": ["i", "ii"], "#4-5": ["1", "2"], " iii - 2 ": ["iii", "1", "2"],
    }.items():  # fmt: skip
        (source,) = load([path], pages=selection).sources
        assert [page.label for page in source.pages] == labels
    for selection, words in {
        "4": "has no page '4'; its pages are called i, ii, iii, 1, 2, and #1 to #5",
        "vii": "has no page 'vii'",
        "#6": "has 5 pages; --pages asks for page 6",
        "2-i": "'2-i' runs backwards; write them as",
    }.items():
        with pytest.raises(DocumentError) as caught:
            load([path], pages=selection)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)


NUMBERINGS = [
    ("0 << /S /R >> 2 << /S /D >>", "i-2", ["I", "II", "1", "2"]),
    ("0 << /S /A >>", "b-c", ["B", "C"]),
    ("0 << /S /D /St 100 >>", "101", ["101"]),
    ("0 << /S /D /St 100 >>", "#1", ["100"]),
    ("0 << /P (1-) /S /D >>", "1-1-1-3", ["1-1", "1-2", "1-3"]),
    ("0 << /P <feff7b2c> /S /D >>", "第2", ["第2"]),
]


def test_labels_of_every_style_are_pages(subtests: pytest.Subtests) -> None:
    for numbering, selection, labels in NUMBERINGS:
        with subtests.test(numbering=numbering):
            raw = painted(
                [said(72, 700, line) for line in PROSE],
                catalog=f"/PageLabels << /Nums [{numbering}] >>",
            )
            assert [page.label for page in load_pdf(raw, pages=selection).pages] == labels


def test_labels_may_be_anything() -> None:
    labels = ["Cover", "A-1", "A-2", "B", "B"]
    assert chosen_sheets("A-1", 5, labels) == ((2, 2),)
    assert chosen_sheets("A-1-A-2", 5, labels) == ((2, 3),)
    assert chosen_sheets("cover-A-1", 5, labels) == ((1, 2),)
    with pytest.raises(DocumentError, match="several pages 'B'; name the sheet: #4 and #5"):
        chosen_sheets("B", 5, labels)


def test_pages_without_a_label_among_others_are_called_by_their_sheet() -> None:
    labels = "/PageLabels << /Nums [0 << >> 2 << /S /D /P (A-) >>] >>"
    raw = painted([said(72, 700, line) for line in PROSE], catalog=labels)
    assert [page.label for page in load_pdf(raw).pages] == ["#1", "#2", "A-1", "A-2"]
    assert load_pdf(raw, pages="A-2,#1").text == f"{PROSE[0]}\n{PROSE[3]}\n"


def test_labels_that_say_what_the_sheets_say_change_nothing() -> None:
    labels = "/PageLabels << /Nums [0 << /S /D >>] >>"
    raw = painted([said(72, 700, line) for line in PROSE], catalog=labels)
    assert [page.label for page in load_pdf(raw).pages] == ["1", "2", "3", "4"]
    with pytest.raises(DocumentError, match="asks for page 5"):
        load_pdf(raw, pages="5")


# ------------------------------------------------------------- printed numbers


def numbered(feet: Sequence[str], catalog: str = "") -> bytes:
    """A PDF with these numbers at the foot of its pages."""
    pages = [
        said(72, 700, PROSE[at % 4], f"It was day {at} of it.")
        + (said(300, 40, foot) if foot else "")
        for at, foot in enumerate(feet)
    ]
    return painted(pages, catalog=catalog)


def printed(raw: bytes, **how: bool) -> list[str]:
    return [page.printed for page in load_pdf(raw, **how).pages]


def test_a_page_has_the_number_that_is_printed_on_it() -> None:
    feet = ["", "", "ii", "iii", "iv", "1", "2", "- 3 -", "", "5", "6"]
    raw = numbered(feet)
    assert [page.label for page in load_pdf(raw).pages] == [str(at) for at in range(1, 12)]
    # The page between 3 and 5 is page 4; what stands before the first number is no guess.
    numbers = ["", "", "ii", "iii", "iv", "1", "2", "3", "4", "5", "6"]
    assert printed(raw) == numbers
    assert printed(raw, keep_headers=True) == numbers
    assert printed(numbered([foot.upper() for foot in feet]))[2:5] == ["II", "III", "IV"]


def test_a_number_that_is_the_label_already_is_not_said_twice() -> None:
    assert printed(numbered(["1", "2", "3", "4"])) == [""] * 4
    labels = "/PageLabels << /Nums [0 << /S /r >> 4 << /S /D >>] >>"
    raw = numbered(["i", "ii", "iii", "iv", "1", "2", "3", "4"], labels)
    assert printed(raw) == [""] * 8
    # A file whose labels are not what stands on its pages.
    off = "/PageLabels << /Nums [0 << /S /D /St 11 >>] >>"
    pages = load_pdf(numbered(["", "1", "2", "3", "4", "5"], off)).pages
    assert [(page.label, page.sheet, page.printed) for page in pages][:3] == [
        ("11", 1, ""), ("12", 2, "1"), ("13", 3, "2"),
    ]  # fmt: skip


@settings(max_examples=25)
@given(front=st.integers(0, 4), body=st.integers(4, 12), lost=st.sets(st.integers(5, 8)))
def test_printed_numbers_are_those_on_the_pages(front: int, body: int, lost: set[int]) -> None:
    """Whatever the front matter, and whichever pages print none: never another number."""
    feet = [*[""] * front, *map(str, range(1, body + 1))]
    shown = [foot if at not in lost else "" for at, foot in enumerate(feet)]
    for number, foot in zip(printed(numbered(shown)), feet, strict=True):
        assert number in ("", foot)


# ------------------------------------------------------------------ other tools' reports


def test_pages_after_blank_ones_keep_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(painted([said(72, 700, PROSE[0]), "", "", said(72, 700, PROSE[1]), ""]))
    (source,) = load([str(path)]).sources
    assert source.page_at(source.text.index(PROSE[1])) == "4"
    assert source.page_at(source.text.index(PROSE[0])) == "1"


def test_cells_of_a_chinese_table_are_not_split() -> None:
    cells = said(72, 700, "股东名称", font="F2") + said(200, 700, "持股比例", font="F2")
    rows = said(72, 680, "王一", font="F2") + said(200, 680, "百分之三十", font="F2")
    assert (
        load_pdf(painted([cells + rows], wide=True)).text == "股东名称 持股比例\n王一 百分之三十\n"
    )


def test_a_cell_of_one_sign_is_read_though_nobody_has_its_font() -> None:
    """Without outlines a lone sign has no breadth, and PDFium leaves it out."""
    table = said(72, 740, "Table 1") + said(72, 720, "Keepers")
    table += said(72, 700, "姓名", font="F2") + said(200, 700, "性别", font="F2")
    table += said(72, 680, "王一", font="F2") + said(200, 680, "男", font="F2")
    table += said(72, 660, "李", font="F2") + said(200, 660, "女", font="F2")
    rows = load_pdf(painted([table], wide=True)).text.splitlines()
    assert rows[2:] == ["姓名 性别", "王一 男", "李 女"]


@pytest.mark.parametrize("angle", [90, 270])
def test_text_set_sideways_is_read_though_nobody_has_its_font(angle: int) -> None:
    raw = painted([said(300, 400, "灯塔的看守人是王一。", angle=angle, font="F2")], wide=True)
    assert load_pdf(raw).text == "灯塔的看守人是王一。\n"


def test_chinese_set_with_space_between_its_signs_is_not_split() -> None:
    """Characters that are spread over a cell are one word still."""
    spread = "5 Tc " + said(72, 700, "持股比例", font="F2")
    assert load_pdf(painted([spread], wide=True)).text == "持股比例\n"
