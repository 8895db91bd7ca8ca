"""Real books, manuals and papers load, or say in one line why not.

The collection is no part of the project: SEKV_TEST_DATA names it, and without
it these tests are skipped. Outcomes are pinned, so that an improvement to one
format that hurts another shows.
"""

from __future__ import annotations

import json
import resource
import time
from functools import cache

import pytest

import engine.documents.pdf as pdf
from engine.documents import Source, load
from engine.errors import DocumentError
from repository import COLLECTION as DATA

FILES = sorted(path.relative_to(DATA).as_posix() for path in DATA.rglob("*") if path.is_file())

pytestmark = pytest.mark.skipif(not FILES, reason="no collection of documents (SEKV_TEST_DATA)")

PAGES = {
    "pdfs/acl_N18-3011_twocolumn.pdf": 8,
    "pdfs/ca_warn_report_table.pdf": 16,
    "pdfs/calculus_made_easy_pg33283.pdf": 293,
    "pdfs/dracula_pg345_print.pdf": 318,
    "pdfs/malformed_pdfplumber932.pdf": 1,
    "pdfs/nist_sp800-207_zero_trust.pdf": 59,
    "pdfs/outline_toc_small.pdf": 4,
    "pdfs/pypdf_multicolumn_small.pdf": 3,
    "pdfs/riscv_isa_vol1_20191213.pdf": 238,
    "other/moby-dick_epub3.epub": 141,
    "other/complete_angler_pg9198.html": 21,
    "other/addams-hull_house.md": 21,
    "other/fedramp_ssp_template_v2.1.docx": 389,
}
REFUSED = {
    "pdfs/derived_scan_dracula_p10-21_notext.pdf": "no text layer on pages 1-12",
    "pdfs/encrypted_pw_openpassword.pdf": "is encrypted; give its password with --password-stdin",
    "pdfs/malformed_empty_0bytes.pdf": "is empty",
    "pdfs/malformed_header_only.pdf": "is malformed",
    "pdfs/scan_huckfinn_p22_notext.pdf": "no text layer on page 1;",
    "pdfs/scan_linn_twocolumn_notext.pdf": "no text layer on page 1;",
}
PHRASES = [
    ("pdfs/dracula_pg345_print.pdf", "6", "It is the eve of St. George’s Day"),
    ("pdfs/riscv_isa_vol1_20191213.pdf", "63", "The F extension adds 32 floating-point registers"),
    ("pdfs/calculus_made_easy_pg33283.pdf", "8", "An ox might worry about a flea"),
    ("other/moby-dick_epub3.epub", "Chapter 1. Loomings.", "Call me Ishmael."),
    ("other/moby-dick_epub3.epub", "Epilogue", "It was the devious-cruising Rachel"),
    ("other/complete_angler_pg9198.html", "CHAP. II.", "Viat. My friend Piscator"),
    (
        "other/addams-hull_house.md",
        "CHAPTER II - INFLUENCE OF LINCOLN",
        "I suppose all the children who were born about the time of the Civil War",
    ),
    (
        "other/fedramp_ssp_template_v2.1.docx",
        "Who should use this document?",
        "This document is intended to be used by",
    ),
]


SECONDS: dict[str, float] = {}


@cache
def source(name: str) -> Source:
    start = time.monotonic()
    (found,) = load([str(DATA / name)]).sources
    SECONDS[name] = time.monotonic() - start
    return found


@pytest.mark.parametrize("name", FILES)
def test_every_file_loads_or_gives_one_clear_line(name: str) -> None:
    if name in REFUSED:
        with pytest.raises(DocumentError) as caught:
            source(name)
        message = str(caught.value)
        assert message.startswith(f"{DATA / name} ")
        assert REFUSED[name] in message
        assert "\n" not in message
        return
    found = source(name)
    starts = [page.start for page in found.pages]
    assert starts == sorted(starts)
    assert not starts or (starts[0] == 0 and starts[-1] <= len(found.text))
    assert "\r" not in found.text
    if name in PAGES:
        assert len(found.pages) == PAGES[name]
    if name.startswith("books/"):
        assert found.text == (DATA / name).read_bytes().decode()


@pytest.mark.parametrize(("name", "label", "phrase"), PHRASES)
def test_known_phrases_stand_on_their_pages(name: str, label: str, phrase: str) -> None:
    found = source(name)
    assert found.page_at(found.text.index(phrase)) == label


def test_evidence_of_the_questions_is_where_they_say() -> None:
    lines = (DATA / "qa" / "shared_questions.jsonl").read_text(encoding="utf-8").splitlines()
    for question in map(json.loads, lines):
        found = source(question["doc"])
        if found.kind == "text":
            start, end = question["char_start"], question["char_end"]
            assert found.text[start:end] == question["answer"]
            continue
        page = [entry.sheet for entry in found.pages].index(question["page"])
        start = found.pages[page].start
        end = found.pages[page + 1].start
        assert question["evidence"] in found.text[start:end], question["id"]


def test_an_encrypted_file_opens_with_its_password() -> None:
    path = DATA / "pdfs" / "encrypted_pw_openpassword.pdf"
    (found,) = load([str(path)], password="openpassword").sources
    assert len(found.text.split()) == 100


def test_columns_are_read_one_after_the_other() -> None:
    """The first lines of both columns, in an order that only whole columns give."""
    text = source("pdfs/acl_N18-3011_twocolumn.pdf").text
    places = [
        text.index(phrase)
        for phrase in (
            "We describe a deployed scalable system",  # left column
            "1 Introduction",
            "Which papers discuss the effects of Ranibizumab",
            "We describe methods used in a scalable deployed production system",  # right column
            "many domains and applications",  # the next page
        )
    ]
    assert places == sorted(places)


def test_running_headers_are_gone_and_sentences_are_whole() -> None:
    riscv = source("pdfs/riscv_isa_vol1_20191213.pdf").text
    # On 200 pages; where a table begins close below it, it stays.
    assert riscv.count("Volume I: RISC-V Unprivileged ISA V20191213") < 30
    acl = source("pdfs/acl_N18-3011_twocolumn.pdf").text
    assert "many papers are provided with incomplete metadata" in " ".join(acl.split())
    assert "\ufffe" not in acl
    table = source("pdfs/ca_warn_report_table.pdf")
    assert table.notes == ()


def test_a_book_of_318_pages_takes_seconds() -> None:
    source("pdfs/dracula_pg345_print.pdf")
    # 1 s on an idle core; ten times that is still far from reading it with pypdf.
    assert SECONDS["pdfs/dracula_pg345_print.pdf"] < 12


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_both_libraries_for_pdfs_read_the_same_pages() -> None:
    """PDFium and pypdf side by side; `-s` shows seconds of processor time and characters."""
    print("\nfile | pages | PDFium s | pypdf s | PDFium characters | pypdf characters")
    for name in [name for name in PAGES if name.endswith(".pdf")]:
        raw = (DATA / name).read_bytes()
        line: list[object] = [name.removeprefix("pdfs/"), PAGES[name]]
        lengths = []
        for library in ("pdfium", "pypdf"):
            before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
            reading = pdf._read(raw, library, (), None, time.monotonic() + 900)
            line.append(round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before, 2))
            texts = [page["text"] for page in reading.pages.values()]
            lengths.append(sum(len(text.replace(" ", "")) for text in texts))
            assert reading.count == PAGES[name]
        print(*line, *lengths, sep=" | ")
