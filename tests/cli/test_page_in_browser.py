"""The page in a real browser: no errors, the slider, the search and the keys do what they say.

Needs `pip install .[browser]` and Chromium (`apt-get install chromium`, or SEKV_CHROMIUM names
one): pytest tests/cli/test_page_in_browser.py -m browser
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pages import report
from sekv_cli import page as pages

pytestmark = pytest.mark.browser

CHROMIUM = os.environ.get("SEKV_CHROMIUM") or shutil.which("chromium")
TEXT = "".join(
    f"The keeper of lighthouse {i} is called Ana </script> & so on; it rained.\n"
    for i in range(9000)
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("there is no chromium; apt-get install chromium or set SEKV_CHROMIUM")
    api = pytest.importorskip("playwright.sync_api", reason="pip install .[browser]")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of 660,000 characters in 55,000 spans."""
    file = tmp_path_factory.mktemp("page") / "book.html"
    file.write_text(pages.render("book.sekv", report([TEXT]), [TEXT]), encoding="utf-8")
    return file


@pytest.fixture
def shown(browser: Any, file: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The open page; whatever it complains about fails the test that looked at it."""
    width, height = getattr(request, "param", (1200, 800))
    opened = browser.new_page(viewport={"width": width, "height": height})
    opened.set_default_timeout(60_000)
    said: list[str] = []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda r: said.append(r.url) if r.url.startswith("http") else None)
    opened.goto(file.as_uri())
    yield opened
    opened.close()
    assert said == []


ON_SCREEN = """() => {
    const b = document.getElementById("book").getBoundingClientRect();
    return [...document.querySelectorAll(".span")].filter((e) => {
        const r = e.getBoundingClientRect(); return r.bottom > b.top && r.top < b.bottom;
    }).map((e) => e.textContent).join("");
}"""
"""The words of the spans inside the window of the text."""


def until_on_screen(shown: Any, words: str) -> None:
    """Wait for words inside the window of the text: blocks around a place are filled and emptied
    after a jump to it, and move it until they have settled."""
    shown.wait_for_function(f"(words) => ({ON_SCREEN})().includes(words)", arg=words)


def test_it_opens_at_the_evidence_with_few_nodes(shown: Any) -> None:
    """The first citation is in sight; of a long book only what is near exists."""
    assert shown.title().startswith("book.sekv")
    assert shown.locator("#answer").inner_text() == "Ana"
    assert shown.locator("mark.cited").first.is_visible()
    until_on_screen(shown, "lighthouse 0 is called Ana </script> & so on")
    assert shown.locator(".span").count() < 4000
    assert shown.locator("#heat div").count() == 6


def test_the_slider_lights_what_each_token_read(shown: Any) -> None:
    """Token 1 reads span 1 most, token 3 the last span of the book; the text follows."""
    shown.locator("#step").focus()
    shown.keyboard.press("ArrowRight")
    assert "Token 1 of 3: A" in shown.locator("#step-label").inner_text()
    heat = "e => Number(e.style.getPropertyValue('--heat'))"
    assert shown.locator('.span[data-span="1"]').first.evaluate(heat) == 1
    shown.keyboard.press("End")
    shown.wait_for_function("() => document.querySelector('.span[data-span=\"1\"]') === null")
    assert "Token 3 of 3" in shown.locator("#step-label").inner_text()
    until_on_screen(shown, "lighthouse 8999")
    shown.locator("#tokens span").nth(0).click()
    assert "Token 1 of 3" in shown.locator("#step-label").inner_text()
    assert "50 %" in shown.locator("#passages li").first.inner_text()
    shown.keyboard.press("j")
    assert shown.locator("#passages button[aria-current=true]").count() == 1


def test_a_passage_tells_who_read_it(shown: Any) -> None:
    shown.locator('.span[data-span="1"]').first.click()
    assert "6 of 6 layers and heads for 3 of 3 tokens" in shown.locator("#readers").inner_text()
    assert "Who read the passage" in shown.locator("#heat-title").text_content()
    shown.locator("#drop").click()
    assert shown.locator("#passage").is_hidden()


def test_the_search_finds_a_phrase_anywhere(shown: Any) -> None:
    """From the keyboard, over line ends, to a place far away and back."""
    shown.locator("#book").focus()
    shown.keyboard.press("/")
    shown.keyboard.type("rained. the keeper of LIGHTHOUSE 7654")
    shown.keyboard.press("Enter")
    shown.locator("mark.hit.now").first.wait_for()
    assert shown.locator("#found").inner_text() == "1 / 1"
    until_on_screen(shown, "lighthouse 7654")
    shown.keyboard.press("Escape")
    assert shown.locator("mark.hit").count() == 0
    shown.locator("#query").fill("no such words")
    shown.keyboard.press("Enter")
    assert shown.locator("#found").inner_text() == "none"


def test_scrolling_and_the_minimap_reach_the_end(shown: Any) -> None:
    shown.evaluate("() => { const b = document.getElementById('book'); b.scrollTop = 1e9; }")
    shown.wait_for_function("() => document.querySelector('.block:last-child .span') !== null")
    until_on_screen(shown, "lighthouse 8999")
    shown.locator("#map").focus()
    shown.keyboard.press("Home")
    shown.wait_for_function("() => document.querySelector('.span[data-span=\"0\"]') !== null")
    assert shown.locator("#map").get_attribute("aria-valuenow") == "0"


@pytest.mark.parametrize("shown", [(390, 800)], indirect=True)
def test_a_phone_sees_the_text_first_and_the_details_at_a_touch(shown: Any) -> None:
    assert not shown.locator("#side").is_visible()
    assert shown.evaluate("document.documentElement.scrollWidth") <= 390
    assert shown.locator("#book").bounding_box()["width"] > 300
    shown.locator("#open-side").click()
    assert shown.locator("#passages").is_visible()
    shown.locator("#passages button").last.click()
    assert not shown.locator("#side").is_visible()
    until_on_screen(shown, "lighthouse 8999")


MOVES = """async () => {
    const book = document.getElementById("book"), query = document.getElementById("query");
    const frame = () => new Promise((done) =>
        requestAnimationFrame(() => requestAnimationFrame(done)));
    const timed = async (act) => {
        const at = performance.now();
        act();
        await frame();
        return performance.now() - at;
    };
    const middle = (times) => times.sort((a, b) => a - b)[times.length >> 1];
    const jumps = [], searches = [];
    for (const share of [0.9, 0.1, 0.5, 0.99, 0.3, 0.7, 0.0]) {
        jumps.push(await timed(() => { book.scrollTop = share * book.scrollHeight; }));
    }
    for (const words of ["the", "and", "of", "in", "it"]) {
        query.value = words;
        searches.push(await timed(() => query.form.requestSubmit()));
    }
    const hits = document.querySelectorAll("mark.hit").length;
    return { jump: middle(jumps), search: middle(searches), hits };
}"""
"""Milliseconds until two frames are drawn after a jump through the book, and after a search."""


@pytest.mark.skipif("SEKV_PAGE" not in os.environ, reason="SEKV_PAGE names no page to measure")
def test_figures_of_a_page(browser: Any, file: Path, tmp_path: Path) -> None:
    """A named page beside a small one: its size, what it complains about, and how long the same
    jumps and searches take, of which only the ratio is meant to be quoted."""
    small = tmp_path / "small.html"
    small.write_text(pages.render("book.sekv", report([TEXT[:9000]]), [TEXT[:9000]]), "utf-8")
    named = Path(os.environ["SEKV_PAGE"]).resolve()
    assert named.stat().st_size < 20_000_000
    said: list[str] = []
    times = {}
    for page in (small, named):
        shown = browser.new_page(viewport={"width": 1200, "height": 800})
        shown.set_default_timeout(120_000)
        shown.on("console", lambda message: said.append(message.text))
        shown.on("pageerror", lambda error: said.append(str(error)))
        shown.goto(page.as_uri())
        shown.wait_for_selector(".span")
        times[page] = shown.evaluate(MOVES)
        assert times[page]["hits"] > 0
        assert shown.locator(".span").count() < 6000
        shown.close()
    assert said == []
    ratios = ", ".join(
        f"{what} {times[named][what] / times[small][what]:.1f} times" for what in ("jump", "search")
    )
    print(
        f"\n{named.stat().st_size / 1e6:.1f} MB against {small.stat().st_size / 1e6:.1f}: {ratios}"
    )


@pytest.mark.skipif("SEKV_PAGE" not in os.environ, reason="SEKV_PAGE names no page to picture")
def test_pictures_of_a_page(browser: Any, tmp_path: Path) -> None:
    """Those of docs/pictures: SEKV_PAGE=page.html SEKV_PICTURES=docs/pictures, by name."""
    folder = Path(os.environ.get("SEKV_PICTURES", tmp_path))
    for name, width, height in (("page", 1280, 800), ("page-phone", 390, 760)):
        shown = browser.new_page(viewport={"width": width, "height": height})
        shown.goto(Path(os.environ["SEKV_PAGE"]).resolve().as_uri())
        shown.wait_for_selector(".span")
        shown.wait_for_timeout(1000)
        shown.screenshot(path=folder / f"{name}.png")
        shown.close()
        assert (folder / f"{name}.png").stat().st_size < 400_000
