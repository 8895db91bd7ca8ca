"""The page of `inspect --html`: what is in it, and that nothing in a document can act in it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.types import ZoomView
from pages import HEADS, LAYERS, report
from sekv_cli import page

PLAIN = "The keeper is called Ana. It rained, and nobody came that evening. " * 5
HOSTILE = "</script><script>alert(1)</script><!-- <b>&amp; {{ 7*7 }} {% x %}'\" \u2028 ]]> "


def embedded(html: str) -> dict[str, Any]:
    """The data as the page's script gets it: the text of the one data element."""
    (body,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', html, re.S)
    found: dict[str, Any] = json.loads(body)
    return found


def test_a_page_holds_text_spans_and_answer() -> None:
    data = embedded(page.render("a/b.sekv", report([PLAIN, "Short."]), [PLAIN, "Short."]))
    assert data["store"] == "b.sekv"
    assert [source["text"] for source in data["sources"]] == [PLAIN, "Short."]
    assert data["sources"][0]["pages"][1] == ["p. 2", 100]
    spans = data["spans"]
    assert spans["source"][-1] == 1
    assert (spans["start"][1], spans["end"][1]) == (12, 24)
    assert set(spans["anchor"]) == {0, 1}
    asked = data["asked"]
    assert (asked["question"], asked["answer"]) == ("Who?", "Ana")
    assert asked["said"] == [" A", "na", "\n"]
    assert asked["citations"] == [[0, 12, 24, "p. 1"]]
    assert asked["rates"] == [[2] * (LAYERS * HEADS)] * 3
    assert asked["moved"] == [[3000, 6, 0], [0, 0, 0], [0, 0, 0]]
    assert asked["reads"][2][:4] == [len(spans["start"]) - 1, 0, 5000, 2000]


def test_a_page_tells_what_was_in_memory_for_the_answer() -> None:
    """By kind, each with its part of the whole; what took nothing is left out."""
    made = replace(report([PLAIN]), resident={"sketches": 250, "zoomed_rows": 750, "states": 0})
    assert embedded(page.render("b.sekv", made, [PLAIN]))["asked"]["resident"] == [
        ["sketches", "250 B", 0.25],
        ["coded rows of zoomed spans", "750 B", 0.75],
        ["together", "1.0 kB, 25.0 % of the full cache", 0],
    ]
    assert embedded(page.render("b.sekv", report([PLAIN]), [PLAIN]))["asked"]["resident"] == []


def test_sixty_pages_are_less_than_a_megabyte() -> None:
    """With more decisions than are listed, of a model of 90 KV heads, and spans of a line."""
    text = (PLAIN * 700)[: 60 * 3700]
    made = report([text], size=64)
    decisions = tuple(
        ZoomView(3000 + n % 60, n // 60 % 30, n // 1800 % 3, n // 5400, 0.1234, 0.0123)
        for n in range(page.MOST_READS + 5400)
    )
    made = replace(made, zoom=decisions, said=(" word",) * 64)
    made.manifest["model"].update(layers=30, kv_heads=3)
    html = page.render("b.sekv", made, [text])
    assert sum(map(len, embedded(html)["asked"]["reads"])) == 4 * page.MOST_READS
    assert len(html.encode()) < 1_000_000


def test_without_a_question_the_page_is_of_the_store_alone() -> None:
    assert embedded(page.render("b.sekv", report([PLAIN], asked=False), [PLAIN]))["asked"] is None


@pytest.mark.parametrize("where", ["text", "said", "question", "store"])
def test_a_document_cannot_leave_its_place(where: str) -> None:
    """Script ends, comments, entities and template marks arrive as the characters they are."""
    text = HOSTILE * 3 if where == "text" else PLAIN
    made = report([text])
    if where != "text":
        made = replace(made, said=(HOSTILE,) * 3, question=HOSTILE, answer=HOSTILE)
    html = page.render(HOSTILE.replace("/", "") if where == "store" else "b.sekv", made, [text])
    plain = page.render("b.sekv", report([PLAIN]), [PLAIN])
    for tag in ("<script", "</script", "<!--", "<b>"):
        assert html.count(tag) == plain.count(tag)
    data = embedded(html)
    assert data["sources"][0]["text"] == text
    if where != "text":
        assert data["asked"]["question"] == HOSTILE
        assert data["asked"]["said"] == [HOSTILE] * 3


def test_the_page_asks_no_network_for_anything() -> None:
    """No address but the empty icon; a policy that allows its own script and style alone."""
    html = page.render("b.sekv", report([PLAIN]), [PLAIN])
    assert re.findall(r'(?:src|href|action)="([^"]*)"', html) == ["data:,"]
    assert not re.search(r"https?://|@import|url\(", html)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'; ")
    for element in ("style", "script"):
        (body,) = re.findall(rf"<{element}>(.*?)</{element}>", html, re.S)
        assert f"{element}-src 'sha256-{page._hash(body)}'" in policy[1]


@settings(max_examples=40)
@given(text=st.text(st.sampled_from("aé雨🐋\n\ud800"), min_size=1, max_size=60))
def test_places_are_those_that_scripts_count(text: str) -> None:
    """Characters beyond the first plane are two units in a browser, and one here."""
    data = page.contents("b.sekv", report([text], asked=False, size=5), [text])
    units = data["sources"][0]["text"].encode("utf-16-le")
    shown = [
        units[2 * a : 2 * b].decode("utf-16-le")
        for a, b in zip(data["spans"]["start"], data["spans"]["end"], strict=True)
    ]
    clean = text.replace("\ud800", "?")
    assert shown == [clean[at : at + 5] for at in range(0, len(text), 5)]


def test_pages_are_called_as_citations_call_them() -> None:
    made = report([PLAIN], asked=False)
    (entry,) = made.manifest["sources"]
    entry |= {"kind": "pdf", "pages": [["1", 0], ["2", 9]], "printed": ["", "i"]}
    shown = page.contents("b.sekv", made, [PLAIN])["sources"][0]["pages"]
    assert shown == [["p. 1", 0], ["p. 2 (printed i)", 9]]
    entry |= {"pages": [["i", 0], ["1", 9]], "sheets": [1, 2], "printed": []}
    shown = page.contents("b.sekv", made, [PLAIN])["sources"][0]["pages"]
    assert shown == [["p. i (sheet 1)", 0], ["p. 1 (sheet 2)", 9]]


def test_a_source_without_text_is_shown_by_its_spans() -> None:
    made = report([PLAIN, "Kept."], asked=False)
    data = page.contents("b.sekv", made, ["", "Kept."])
    text, spans = data["sources"][0]["text"], data["spans"]
    assert text.startswith("[span 0, tokens 0 to 4]\n[span 1, ")
    assert text[spans["start"][1] : spans["end"][1]] == "[span 1, tokens 4 to 8]\n"
    assert data["sources"][0]["pages"][:2] == [["p. 1", 0], ["p. 2", spans["start"][9]]]
    assert data["sources"][1]["text"] == "Kept."


def test_the_same_file_twice_is_two_sources() -> None:
    made = report([PLAIN, PLAIN], asked=False)
    spans = tuple(replace(span, source="folder/0.txt") for span in made.spans)
    made.manifest["sources"][1]["path"] = "folder/0.txt"
    data = page.contents("b.sekv", replace(made, spans=spans), [PLAIN, PLAIN])
    assert data["spans"]["source"] == [0] * (len(spans) // 2) + [1] * (len(spans) // 2)


def test_a_page_of_very_many_decisions_lists_the_heaviest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates still count all of them."""
    monkeypatch.setattr(page, "MOST_READS", 4)
    made = report([PLAIN])
    light = tuple(ZoomView(2, 0, 0, 0, 0.1, 0.01) for _ in range(50))
    data = page.contents("b.sekv", replace(made, zoom=light + made.zoom), [PLAIN])["asked"]
    assert sum(len(flat) for flat in data["reads"]) == 4 * 4
    assert 2 not in [flat[i] for flat in data["reads"] for i in range(0, len(flat), 4)]
    assert data["rates"][0][0] == 52
    assert data["decisions"] == 50 + len(made.zoom)
