"""Sources are recognised, decoded and refused: everything about `load` that no format owns."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import engine.documents as documents
from engine.documents import Page, Source, load
from engine.documents.text import decode
from engine.errors import DocumentError
from tiny_documents import encrypted, make_docx, make_epub, make_pdf, para

DATA = Path(__file__).parent / "data"
FRENCH = "Où est passé le garçon ? Il était à l'école, près de la forêt. Noël approche déjà."
RUSSIAN = "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива."
POLISH = "Zażółć gęślą jaźń. Książę wyszedł z zamku i powiedział: nie ma już żadnej nadziei."
JAPANESE = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。"


def one(path: Path | str, **options: object) -> Source:
    (source,) = load([str(path)], **options).sources  # type: ignore[arg-type]
    return source


def refusal(path: Path | str, **options: object) -> str:
    """The one line that `load` answers with."""
    with pytest.raises(DocumentError) as caught:
        load([str(path)], **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_text_is_the_file_with_unix_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("one\r\ntwo\rthree\n “four”\t\v".encode())
    source = one(path)
    assert source.text == "one\ntwo\nthree\n “four”\t\v"
    assert source.kind == "text"
    assert source.pages == ()
    assert source.notes == ()
    assert source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert source.page_at(3) == ""


@pytest.mark.parametrize(
    ("text", "starts"),
    [
        ("one\fsecond\n\f", [0, 4]),  # as pdftotext writes them, with one at the end
        ("one\n\fsecond", [0, 5]),
        ("one\f", [0]),
        ("\fone\f\f\ffour", [0, 1, 5, 6, 7]),  # blank pages are pages
        ("one\r\n\ftwo\f\r\n \r\n", [0, 5]),
        ("no form feed", []),
    ],
)
def test_form_feeds_begin_pages(text: str, starts: list[int], tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode())
    for source in (one(path), load(["-"], stdin=io.BytesIO(text.encode())).sources[0]):
        assert [page.start for page in source.pages] == starts
        assert [page.label for page in source.pages] == [
            str(number + 1) for number in range(len(starts))
        ]
        assert source.text == text.replace("\r\n", "\n")


def test_sources_keep_their_order_and_stdin_is_one_of_them(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / f"{name}.txt").write_text(name)
    paths = [str(tmp_path / "b.txt"), "-", str(tmp_path / "a.txt")]
    document = load(paths, stdin=io.BytesIO("café".encode()))
    assert [source.text for source in document.sources] == ["b", "café", "a"]
    assert [source.path for source in document.sources] == paths


def test_page_at_finds_the_page_that_holds_a_character() -> None:
    pages = (Page("1", 0), Page("2", 4), Page("3", 4), Page("4", 9))
    source = Source("x.pdf", "pdf", "abc\ndefg\nh", pages, "")
    assert [source.page_at(at) for at in (0, 3, 4, 8, 9, 10)] == ["1", "1", "3", "3", "4", "4"]
    with pytest.raises(ValueError, match="outside"):
        source.page_at(11)
    with pytest.raises(ValueError, match="outside"):
        source.page_at(-1)


def test_what_cannot_be_read_is_named_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "blank.md").write_text(" \n\t\n")
    (tmp_path / "tool.txt").write_bytes(b"\x7fELF\x02\x01\x01\0\0\0\x03\0>\0")
    (tmp_path / "noise").write_bytes(bytes(range(1, 32)) * 20)
    (tmp_path / "paper.txt").write_bytes(b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n\0\0\0")
    (tmp_path / "old.docx").write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600))
    expected = {
        "nowhere.pdf": "does not exist",
        ".": "is a directory",
        "empty.txt": "is empty",
        "blank.md": "holds no text",
        "tool.txt": "binary, not text",
        "noise": "binary, not text",
        "paper.txt": "name it .pdf",
        "old.docx": "save it as plain .docx",
        "nul\0.txt": "cannot be read",
    }
    for name, reason in expected.items():
        message = refusal(str(tmp_path / name))
        assert reason in message, message
        assert str(tmp_path) in message


def test_bad_requests_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("text")
    with pytest.raises(DocumentError, match="no source"):
        load([])
    with pytest.raises(DocumentError, match="twice"):
        load(["-", "-"], stdin=io.BytesIO(b"x"))
    assert "none of the sources is one" in refusal(path, pages="1-2")


def test_a_source_beyond_the_limit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("x" * 100)
    monkeypatch.setattr(documents, "MAX_CHARS", 99)
    assert "more than 99 characters" in refusal(path)
    monkeypatch.setattr(documents, "MAX_SOURCE_BYTES", 99)
    assert "larger than" in refusal(path)


def test_content_decides_where_the_name_does_not(tmp_path: Path) -> None:
    def zipped(member: str) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr(member, "<x/>")
        return buffer.getvalue()

    kinds = {
        b"<!DOCTYPE html><p>hello": "html",
        b"\xef\xbb\xbf  <?xml version='1.0'?>\n<html><body>hello</body></html>": "html",
        b"# not taken for Markdown": "text",
        b"a < b, not markup <html": "text",
    }
    for content, kind in kinds.items():
        (tmp_path / "thing").write_bytes(content)
        assert one(tmp_path / "thing").kind == kind
        assert load(["-"], stdin=io.BytesIO(content)).sources[0].kind == kind
    for content, words in (
        (zipped("data.csv"), "no EPUB or DOCX"),
        (zipped("META-INF/container.xml"), "container names no package"),
        (zipped("word/document.xml"), "holds no text"),
        (b"%PDF-1.4 nothing", "malformed"),
        (b"PK\x03\x04 torn", "damaged"),
    ):
        (tmp_path / "thing.bin").write_bytes(content)
        assert words in refusal(tmp_path / "thing.bin")


ENCODED = [
    (FRENCH, "utf-8"),
    (FRENCH, "utf-8-sig"),
    (FRENCH, "utf-16"),
    (FRENCH, "utf-16-le"),
    (RUSSIAN, "utf-16-be"),
    (FRENCH, "utf-32"),
    (FRENCH, "latin-1"),
    ("“It’s fine,” he said — £5 or €6…", "cp1252"),
    ("caf\xe9", "latin-1"),
    ("Café crème, déjà vu à l'hôtel.", "latin-1"),
    ("São ações não há. É à mão.", "cp1252"),
    ("Rødgrød på ø, æ å.", "cp1252"),
    ("Ο φύλακας του φάρου είναι ο Νίκος", "cp1253"),
    (RUSSIAN, "cp1251"),
    (RUSSIAN, "koi8-r"),
    (POLISH, "cp1250"),
    (JAPANESE, "shift_jis"),
    (JAPANESE, "euc-jp"),
]


def test_common_encodings_are_recognised(subtests: pytest.Subtests) -> None:
    for text, encoding in ENCODED:
        with subtests.test(encoding=encoding, text=text):
            found, notes = decode(text.encode(encoding))
            assert found == text
            # A guess is always told; what the bytes prove is not.
            assert bool(notes) == (not encoding.startswith("utf"))


def test_lines_of_two_encodings_are_each_read_as_they_are() -> None:
    (mixed,) = load([str(DATA / "t_mixed.txt")]).sources
    assert mixed.text.splitlines()[0] == "Café crème — first line is UTF-8."
    assert mixed.text.splitlines()[1:] == ["Café crème, second line is Latin-1."] * 3
    assert mixed.notes == ("3 lines are not UTF-8 as the others; encoding guessed: cp1252",)


@pytest.mark.parametrize(
    ("first", "then", "encoding"),
    [(FRENCH, FRENCH, "cp1252"), (RUSSIAN, RUSSIAN, "cp1251"), (JAPANESE, FRENCH, "latin-1")],
)
def test_joined_files_of_two_encodings(first: str, then: str, encoding: str) -> None:
    text, notes = decode(f"{first}\n".encode() + then.encode(encoding) + f"\n{first}".encode())
    assert text == f"{first}\n{then}\n{first}"
    assert len(notes) == 1


LINE_ENDS = ["\n", "\r\n", "\r"]


def test_lines_of_two_encodings_may_end_as_on_any_system(subtests: pytest.Subtests) -> None:
    for end in LINE_ENDS:
        with subtests.test(end=end):
            line = f"Café crème, déjà vu à l'hôtel.{end}"
            text, notes = decode(line.encode() + line.encode("latin-1"))
            assert text == "Café crème, déjà vu à l'hôtel.\n" * 2
            assert notes == ("1 line is not UTF-8 as the others; encoding guessed: cp1252",)


def test_bytes_added_to_utf16_are_not_read_as_ideographs() -> None:
    """As where one program begins a file and another goes on."""
    for encoding in ("utf-16", "utf-16-be"):
        mark = b"\xfe\xff" if encoding == "utf-16-be" else b""
        with pytest.raises(DocumentError, match="goes on in single bytes"):
            decode(mark + FRENCH.encode(encoding) + b"\nThe keeper is Ana.\n")
    assert decode(f"{CHINESE}\n".encode("utf-16"))[0] == f"{CHINESE}\n"
    with pytest.raises(DocumentError, match="binary, not text"):
        decode(FRENCH.encode() + "\nThe keeper is Ana.".encode("utf-16-le"))


def test_the_sign_with_which_dos_ended_files_makes_none_binary() -> None:
    assert decode(b"The keys.\r\n\x1a") == ("The keys.\n\x1a", ())


NAMES = ["a.html", "a.md", "a.csv", "a"]


def test_utf16_without_a_mark_is_known_under_any_name(
    tmp_path: Path, subtests: pytest.Subtests
) -> None:
    for name in NAMES:
        with subtests.test(name=name):
            (tmp_path / name).write_bytes("Name;Ort\r\nÅsa;Kiel\r\n".encode("utf-16-le"))
            assert one(tmp_path / name).text.split() == ["Name;Ort", "Åsa;Kiel"]


def test_what_only_looks_like_utf8_is_not_taken_for_it() -> None:
    """A capital with an accent and a hard space are, byte for byte, a character of UTF-8."""
    text = f"LIBERTÉ\xa0!\n{FRENCH}\n"
    assert decode(text.encode("latin-1"))[0] == text


CHINESE = "灯塔的看守人是王一。他在那里住了十九年。"


IN_MANY_SCRIPTS = [
    CHINESE,
    f"{CHINESE}\n" * 3 + "in 1912",
    JAPANESE,
    RUSSIAN,
    "Ελλάδα 1912",
    "שלום עולם 42",
    "안녕하세요 세계 여러분",
    FRENCH,
]


def test_utf16_without_a_mark_is_known_by_what_it_says(subtests: pytest.Subtests) -> None:
    for encoding in ("utf-16-le", "utf-16-be"):
        for text in IN_MANY_SCRIPTS:
            with subtests.test(encoding=encoding, text=text):
                assert decode(text.encode(encoding)) == (text, ())


@given(st.binary(min_size=40, max_size=400))
def test_noise_is_not_taken_for_utf16(raw: bytes) -> None:
    noise = b"\0" + hashlib.sha512(raw).digest() * 4 + b"\0"
    with pytest.raises(DocumentError, match="binary, not text"):
        decode(noise)


def test_a_damaged_byte_does_not_turn_utf8_into_another_encoding() -> None:
    raw = (FRENCH * 20).encode()
    text, notes = decode(raw[:50] + b"\xff" + raw[50:])
    assert text.replace("\ufffd", "") == FRENCH * 20
    assert notes == ("1 invalid bytes in UTF-8 text were replaced",)


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"])))
def test_valid_utf8_is_never_guessed(text: str) -> None:
    assert decode(text.encode()) == (text.removeprefix("\ufeff"), ())


@given(st.binary(max_size=300))
def test_any_bytes_give_text_or_one_clear_line(raw: bytes) -> None:
    try:
        text, _ = decode(raw)
    except DocumentError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert "\r" not in text
        text.encode()  # no lone surrogates: every text can be stored


NO_TEXT = [
    (b"{\\rtf1\\ansi The keeper is \\b Ottilie\\b0 .}", "is RTF"),
    (b"\n  {\\rtf1 x}", "is RTF"),
    (b"\xef\xbb\xbf{\\rtf1 x}", "is RTF"),
    (b"%!PS-Adobe-3.0\n/Helvetica findfont", "is PostScript"),
]


def test_what_only_looks_like_text_is_refused_with_what_to_do(
    tmp_path: Path, subtests: pytest.Subtests
) -> None:
    for content, words in NO_TEXT:
        for name in ("a.rtf", "a.doc", "a.txt", "a.md", "a"):
            with subtests.test(name=name, content=content):
                (tmp_path / name).write_bytes(content)
                message = refusal(tmp_path / name)
                assert words in message
                assert "first" in message
    assert "is RTF" in refusal(DATA / "t_rtf.rtf")


def test_half_a_character_is_replaced_and_said() -> None:
    (source,) = load(["-"], stdin=io.BytesIO(b"<html><meta charset=unicode_escape>a\\ud83d\xe9"
                                             b"<h1>b\\udc00c</h1>d")).sources  # fmt: skip
    source.text.encode()
    "".join(page.label for page in source.pages).encode()
    assert source.text.startswith("a\ufffdé")


def test_a_page_is_never_borrowed_from_the_source_before(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(make_pdf([["one"], ["two"]]))
    (tmp_path / "b.txt").write_text("three")
    (tmp_path / "c.txt").write_text("four\ffive")
    document = load([str(tmp_path / name) for name in ("a.pdf", "b.txt", "c.txt", "a.pdf")])
    found = [source.page_at(len(source.text) - 1) for source in document.sources]
    assert found == ["2", "", "2", "2"]
    assert [source.page_at(0) for source in document.sources] == ["1", "", "1", "1"]


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.html", "a.docx", "a.pdf", "a.epub"])
def test_the_last_sentence_of_a_huge_file_is_in_its_text(name: str, tmp_path: Path) -> None:
    line = "The harbour lay quiet in the morning and nobody came. "
    last = "The keeper was Ottilie Brandt."
    many = 4_000
    raw = {
        "a.txt": (line * many * 10 + last).encode(),
        "a.md": ("# One\n\n" + (line + "\n\n") * many + last).encode(),
        "a.html": (f"<p>{line}</p>" * many * 4 + f"<p>{last}").encode(),
        "a.docx": make_docx(para(line) * many + para(last)),
        "a.pdf": make_pdf([[line] * 40] * (many // 100) + [[line, last]]),
        "a.epub": make_epub({f"{at}.xhtml": f"<p>{line * 50}</p>" for at in range(many // 50)}
                            | {"z.xhtml": f"<p>{last}</p>"}, {}, ""),
    }[name]  # fmt: skip
    (tmp_path / name).write_bytes(raw)
    assert one(tmp_path / name).text.rstrip().endswith(last)


def test_a_pdf_that_only_its_owner_has_a_password_for_opens(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(encrypted(make_pdf([["The keeper."]]), "", owner="sesame"))
    assert one(path).text == "The keeper.\n"
    path.write_bytes(encrypted(make_pdf([["The keeper."]]), "open", owner="sesame"))
    assert "--password-stdin" in refusal(path)
    for password in ("open", "sesame"):
        assert one(path, password=password).text == "The keeper.\n"


def test_a_scan_and_pages_beyond_the_last_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(make_pdf([[], []]))
    assert "has no text layer on pages 1-2; it needs OCR first" in refusal(path)
    path.write_bytes(make_pdf([["one"]] * 422))
    assert "has 422 pages; --pages asks for page 423" in refusal(path, pages="421-423")
    assert one(path, pages="421-422").pages[0].label == "421"


def test_importing_documents_imports_no_library() -> None:
    code = (
        "import sys, engine.documents; print(*{'pypdf', 'pypdfium2', 'lxml', 'numpy', 'torch',"
        " 'charset_normalizer', 'markdown_it'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
