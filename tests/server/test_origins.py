"""Web pages that may ask from a browser, and a folder of stores behind one server."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from asgi import Worker, question
from engine.errors import OptionError, StoreDamagedError
from engine.models.reader import Reader
from engine.types import AskOptions
from sekv_cli.main import run
from sekv_cli.progress import Nothing
from sekv_cli.serve import _origins, _stores_of
from sekv_cli.server import app, wire
from sekv_cli.server.answering import ServerLimits
from sekv_cli.server.warm import Warm
from tiny_books import QUESTION

PAGE = "http://localhost:3000"


def asking(origins: list[str], token: str = "") -> TestClient:
    built = app.build(Worker(), AskOptions(), ServerLimits(60, 100), token, None, origins)
    return TestClient(built, base_url="http://localhost")


def preflight(client: TestClient, origin: str) -> Any:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    return client.options("/v1/chat/completions", headers=headers)


def test_a_page_that_is_named_may_ask_and_no_other() -> None:
    client = asking([PAGE], "secret")
    allowed = preflight(client, PAGE)
    assert allowed.status_code == 200
    assert allowed.headers["Access-Control-Allow-Origin"] == PAGE
    assert "authorization" in allowed.headers["Access-Control-Allow-Headers"].lower()
    other = preflight(client, "http://evil.example")
    assert other.status_code == 400
    assert "Access-Control-Allow-Origin" not in other.headers
    refused = client.post("/v1/chat/completions", json=question(), headers={"Origin": PAGE})
    assert refused.status_code == 401  # the page reads why: without the header it could not
    assert refused.headers["Access-Control-Allow-Origin"] == PAGE


def test_without_the_option_no_page_may_ask() -> None:
    plain = preflight(asking([]), PAGE)
    assert plain.status_code == 405
    assert "Access-Control-Allow-Origin" not in plain.headers


def test_any_page_needs_a_token_and_an_origin_is_no_address() -> None:
    assert _origins([PAGE, "*"], "secret") == [PAGE, "*"]
    for wrong, token in (("*", ""), (f"{PAGE}/", ""), ("localhost:3000", ""), ("http://", "x")):
        with pytest.raises(OptionError, match="cors"):
            _origins([wrong], token)


def test_stores_of_a_folder_are_opened_when_they_are_asked(
    store: Path, reader: Reader, tmp_path: Path
) -> None:
    """One that is damaged is no reason for the others not to answer."""
    for name in ("one.sekv", "deep/two.sekv", "broken.sekv"):
        shutil.copytree(store, tmp_path / name)
    (tmp_path / "broken.sekv" / "manifest.json").write_text("{}")
    found = _stores_of(tmp_path, [tmp_path / "one.sekv"])
    assert [path.name for path in found if isinstance(path, Path)] == ["broken.sekv", "two.sekv"]
    names = {path.name.removesuffix(".sekv"): path for path in [tmp_path / "one.sekv", *found]}
    options = AskOptions(device="cpu", max_new_tokens=2)
    warm = Warm(names, options, Nothing(), 4, later=["two", "broken"])
    try:
        assert warm.facts("one") is not None
        assert warm.facts("two") is None
        asked = wire.parse(question(QUESTION, model="two"), list(names), options, 10)
        assert warm.submit(asked, lambda _: None, lambda: False).result().answer.usage
        assert warm.facts("two") is not None
        asked = wire.parse(question(QUESTION, model="broken"), list(names), options, 10)
        with pytest.raises(StoreDamagedError):
            warm.submit(asked, lambda _: None, lambda: False).result()
    finally:
        warm.close()


def test_a_server_needs_something_to_serve(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = (
        (["serve"], "no store to serve"),
        (["serve", "--store-dir", str(tmp_path)], "no store to serve"),
        (["serve", "--store-dir", str(tmp_path / "nosuch")], "no folder"),
    )
    for line, expected in cases:
        assert run(line) == 2
        assert expected in capsys.readouterr().err
