"""A server of a library: stores opened when they are asked, within a memory, and counted."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asgi import Exchange, exchange
from engine.models.reader import Reader
from engine.types import AskOptions
from sekv_cli.progress import Nothing
from sekv_cli.server import app
from sekv_cli.server.answering import ServerLimits
from sekv_cli.server.warm import Warm
from tiny_books import log, read

TEXTS = {
    "organ": "The organ in the church was paid for by a baker.\n" + log(2),
    "deep/comet": "A comet stood over the harbour for nine nights.\n" + log(2),
    "vineyard": "The vineyard was sold for eleven crowns.\n" + log(2),
}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory, model: Path, reader: Reader) -> Path:
    folder = tmp_path_factory.mktemp("shelf")
    for name, text in TEXTS.items():
        made = read(folder / "sources" / name, model, text, reader=reader)
        (folder / "library" / name).parent.mkdir(parents=True, exist_ok=True)
        made.rename(folder / "library" / f"{name}.sekv")
    return folder / "library"


class Served:
    """A server without sockets."""

    def __init__(self, library: Path, memory: int) -> None:
        options = AskOptions(max_new_tokens=3)
        libraries = {"library": library}
        self.warm = Warm({}, options, Nothing(), 8, libraries=libraries, memory=memory)
        self._app = app.build(self.warm, options, ServerLimits(60, 8))

    def get(self, path: str, body: Any = None, *, own: bool = False) -> Exchange:
        return asyncio.run(exchange(self._app, body, path=path, own=own))

    def ask(self, model: str, question: str) -> Exchange:
        body = {"model": model, "messages": [{"role": "user", "content": question}]}
        return self.get("/v1/chat/completions", body)

    def numbers(self) -> dict[str, float]:
        """Every sample of /metrics, by its name with labels."""
        page = self.get("/metrics").body.decode()
        return {
            line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
            for line in page.splitlines()
            if not line.startswith("#")
        }


@pytest.fixture(scope="module")
def served(library: Path) -> Iterator[Served]:
    made = Served(library, 10**12)
    yield made
    made.warm.close()


def test_the_library_and_its_stores_are_models(served: Served) -> None:
    listed = [entry["id"] for entry in served.get("/v1/models").json["data"]]
    assert listed == ["library", "library/deep/comet", "library/organ", "library/vineyard"]
    one = served.get("/v1/models/library/vineyard").json
    assert one["sekv"]["document_tokens"] == len(TEXTS["vineyard"])
    assert served.get("/v1/models/library/nothing").status == 404


def test_a_library_answers_from_the_document_with_the_words(served: Served) -> None:
    answer = served.ask("library", "Who paid for the organ?")
    assert answer.status == 200
    assert answer.json["sekv"]["store"] == "organ.sekv"
    assert answer.json["model"] == "library"
    alone = served.ask("library/organ", "Who paid for the organ?")
    assert alone.json["choices"] == answer.json["choices"]
    assert alone.json["sekv"]["store"] == ""


def test_a_question_that_no_document_has_words_of_is_the_request_s_fault(served: Served) -> None:
    answer = served.ask("library", "Zeppelin?")
    assert answer.status == 400
    assert answer.error["param"] == "messages"


def test_the_user_s_own_commands_find_the_library(served: Served, library: Path) -> None:
    assert served.get("/sekv/stores", own=True).json == [
        {"name": "library", "path": str(library), "fingerprint": "library"}
    ]


def test_health_and_readiness_are_told_apart(served: Served) -> None:
    assert served.get("/health").json == {"status": "ok", "waiting": 0}
    ready = served.get("/ready")
    assert (ready.status, ready.json) == (200, {"status": "ready"})


LINE = re.compile(r'(# (HELP|TYPE) sekv_\w+ .+|sekv_\w+(\{\w+="[^"]*"\})? [0-9.e+-]+)')


def test_metrics_count_what_happened(served: Served) -> None:
    page = served.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert all(LINE.fullmatch(line) for line in page.body.decode().splitlines())
    before = served.numbers()
    served.ask("library/organ", "Who paid?")
    served.ask("library/organ", "Who paid?")
    served.ask("library", "Zeppelin?")
    after = served.numbers()

    def more(name: str) -> float:
        return after[name] - before[name]

    answered = 'sekv_questions_total{outcome="answered"}'
    not_stated = 'sekv_questions_total{outcome="not_stated"}'
    assert more(answered) + more(not_stated) == 2
    assert more('sekv_questions_total{outcome="refused"}') == 1
    assert more("sekv_first_token_seconds_count") == 2
    assert more('sekv_first_token_seconds_bucket{le="+Inf"}') == 2
    assert more("sekv_answer_tokens_total") == 6
    assert more("sekv_store_hits_total") >= 1
    assert after["sekv_open_stores"] >= 1
    assert after["sekv_resident_bytes"] == served.warm.now()["sekv_resident_bytes"] > 0


def test_stores_that_were_not_used_are_closed_where_memory_is_short(library: Path) -> None:
    served = Served(library, 1)
    try:
        for name in ("organ", "vineyard", "deep/comet", "organ"):
            assert served.ask(f"library/{name}", "How many whales?").status == 200
            assert served.numbers()["sekv_open_stores"] == 1
        assert served.numbers()["sekv_store_misses_total"] >= 4
    finally:
        served.warm.close()


def test_a_store_that_came_is_served_and_one_that_went_is_not(
    library: Path, tmp_path: Path
) -> None:
    own = Path(shutil.copytree(library, tmp_path / "library"))
    served = Served(own, 10**9)
    try:
        (own / "organ.sekv").rename(own / "church.sekv")
        assert (
            served.ask("library", "Who paid for the organ?").json["sekv"]["store"] == "church.sekv"
        )
        listed = [entry["id"] for entry in served.get("/v1/models").json["data"]]
        assert "library/church" in listed
        assert "library/organ" not in listed
        assert served.ask("library/organ", "Who?").status == 404
    finally:
        served.warm.close()
