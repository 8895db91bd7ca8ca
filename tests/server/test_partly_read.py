"""A server of a partly read store reads what questions need, and stays the server of that store."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from engine.ingest import run
from engine.models.reader import Reader
from engine.store.glance import fingerprint
from engine.store.reader import read_manifest
from engine.types import Answer, AskOptions, IngestOptions, Silent
from sekv_cli.server import wire
from sekv_cli.server.warm import Warm
from tiny_books import log

DEFAULTS = AskOptions(device="cpu", max_new_tokens=2)


@pytest.fixture
def store(model: Path, reader: Reader, tmp_path: Path) -> Path:
    """Of a log of six windows, the first read."""
    source = tmp_path / "log.txt"
    source.write_text(log(14), encoding="utf-8")
    run.begin(
        [str(source)],
        tmp_path / "log.sekv",
        IngestOptions(model=str(model), window=160),
        Silent(),
        reader,
    )
    return tmp_path / "log.sekv"


def ask(warm: Warm, question: str, defaults: AskOptions, **own: Any) -> Answer:
    body = {"messages": [{"role": "user", "content": question}], "sekv": own}
    asked = wire.parse(body, ["log"], defaults, 64)
    return warm.submit(asked, lambda piece: None, lambda: False).result().answer


def test_a_question_has_its_windows_read_and_the_store_stays_open(store: Path) -> None:
    with closing(Warm({"log": store}, DEFAULTS, Silent(), 2)) as warm:
        kept = ask(warm, "How many whales on day 9?", DEFAULTS, read=False)
        assert [each.window for each in kept.retrieval] == [0]
        first = ask(warm, "How many whales on day 9?", DEFAULTS)
        assert any(each.read_now for each in first.retrieval)
        assert [held["fingerprint"] for held in warm.held()] == [fingerprint(store)]
        session = warm._stores.peek(store)
        again = ask(warm, "How many whales on day 9?", DEFAULTS)
        assert warm._stores.peek(store) is session
    assert (again.answer, again.citations) == (first.answer, first.citations)
    assert not any(each.read_now for each in again.retrieval)
    assert again.usage.recomputed_document_tokens == 0


def test_a_server_that_is_to_read_nothing_is_not_made_to(store: Path) -> None:
    options = AskOptions(device="cpu", max_new_tokens=2, read=False)
    with closing(Warm({"log": store}, options, Silent(), 2)) as warm:
        ask(warm, "How many whales on day 9?", options, read=True)
    assert read_manifest(store).read == (0,)
