"""A server of a partly read store reads what questions need, and stays the server of that store."""

from __future__ import annotations

import asyncio
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from asgi import exchange, question
from engine.ingest import run
from engine.models.reader import Reader
from engine.store.glance import fingerprint
from engine.store.reader import read_manifest
from engine.types import Answer, AskOptions, IngestOptions, Silent
from sekv_cli.progress import Nothing
from sekv_cli.server import app, wire
from sekv_cli.server.answering import ServerLimits
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
    with closing(Warm({"log": store}, DEFAULTS, Nothing(), 2)) as warm:
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
    with closing(Warm({"log": store}, options, Nothing(), 2)) as warm:
        ask(warm, "How many whales on day 9?", options, read=True)
    assert read_manifest(store).read == (0,)


class Log(Nothing):
    """What a server writes on stderr."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.stages: list[str] = []

    def start(self, stage: str, total: int, unit: str) -> None:
        self.stages.append(stage)

    def note(self, line: str) -> None:
        self.lines.append(line)


NEEDS = "the question needs 2 of 6 windows that have not been read yet"


def test_a_server_tells_its_log_and_its_own_user_that_it_reads(store: Path) -> None:
    """Clients of the API get the answer alone."""
    log, body = Log(), question("How many whales on day 9?", stream=True, max_tokens=2)
    with closing(Warm({"book": store}, DEFAULTS, log, 2)) as warm:
        made = app.build(warm, DEFAULTS, ServerLimits(60, 3))
        assert "book: 1 of 6 windows are read; questions have read what they need" in log.lines
        own = asyncio.run(exchange(made, body, own=True)).body
        assert f"book: {NEEDS}" in log.lines
        assert "reading 2 of 6 windows" in log.stages
        assert own.startswith(b"data: ")
        assert own.count(f": {NEEDS}\n\n".encode()) == 1
        assert own.index(NEEDS.encode()) < own.index(b'"content": "', 200)
        body = question("How many whales on day 13?", stream=True, max_tokens=2)
        others = asyncio.run(exchange(made, body)).body
        assert log.lines[-1].startswith("book: the question needs ")
        assert b"the question needs" not in others
        assert others.endswith(b"data: [DONE]\n\n")
        whole = asyncio.run(exchange(made, question("How many whales?", max_tokens=2)))
        assert whole.json["choices"][0]["message"]["content"]


def test_what_a_server_reads_nothing_for_is_told_when_it_starts(store: Path) -> None:
    log, options = Log(), replace(DEFAULTS, read=False)
    with closing(Warm({"book": store}, options, log, 2)):
        assert "book: 1 of 6 windows are read; questions see only these" in log.lines
