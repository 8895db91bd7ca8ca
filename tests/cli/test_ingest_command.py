"""`sekv ingest`: what it hands to the engine and what it prints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.types import (
    IngestOptions,
)
from fake_engine import FakeEngine
from sekv_cli.main import run


def test_ingest_hands_every_option_to_the_engine(fake: FakeEngine, tmp_path: Path) -> None:
    """What the user says is what the engine hears, in the user's order of sources."""
    line = (
        "ingest b.pdf a.txt -o out.sekv --model some/model --revision v2 --method sekv-paper "
        "--device cuda:1 --dtype bfloat16 --chunk-tokens 256 --window 4096 --pages 1-20 "
        "--router r.safetensors --overwrite"
    )
    assert run(line.split()) == 0
    assert fake.calls == [
        (
            "ingest",
            (
                ["b.pdf", "a.txt"],
                Path("out.sekv"),
                IngestOptions(
                    model="some/model",
                    revision="v2",
                    method="sekv-paper",
                    device="cuda:1",
                    dtype="bfloat16",
                    chunk_tokens=256,
                    window=4096,
                    pages="1-20",
                    overwrite=True,
                    router="r.safetensors",
                ),
                None,
            ),
        )
    ]


def test_ingest_defaults_are_the_engine_s_own(fake: FakeEngine) -> None:
    """Two places state defaults, for the help and for callers of the engine; they agree."""
    assert run(["ingest", "book.pdf"]) == 0
    assert fake.calls == [("ingest", (["book.pdf"], None, IngestOptions(), None))]


def test_the_model_may_come_from_the_environment(
    fake: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SEKV_MODEL stands in for --model, and --model wins."""
    monkeypatch.setenv("SEKV_MODEL", "from/environment")
    assert run(["ingest", "a.txt"]) == 0
    assert run(["ingest", "a.txt", "--model", "from/option"]) == 0
    assert [given[2].model for _, given in fake.calls] == ["from/environment", "from/option"]


def test_ingest_reads_a_document_from_stdin(fake: FakeEngine, stdin: Callable[[str], None]) -> None:
    """A source named - is what comes through the pipe."""
    stdin("some text")
    assert run(["ingest", "-"]) == 0
    assert fake.calls[0][1][3] == b"some text"


def test_ingest_reads_a_password_from_stdin(fake: FakeEngine, stdin: Callable[[str], None]) -> None:
    """One line, without its end; spaces belong to the password."""
    stdin(" open sesame \n")
    assert run(["ingest", "locked.pdf", "--password-stdin"]) == 0
    assert fake.calls[0][1][2].password == " open sesame "
    assert fake.calls[0][1][3] is None


def test_ingest_json_is_one_object_with_the_contract_s_keys(
    fake: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    """Progress and notes stay off stdout."""
    assert run(["ingest", "book.pdf", "--json"]) == 0
    captured = capsys.readouterr()
    record = json.loads(captured.out)
    assert captured.out.count("\n") == 1
    assert {
        "store",
        "sources",
        "model",
        "method",
        "tokens",
        "spans",
        "anchors",
        "store_bytes",
        "full_kv_bytes",
        "timing",
        "resumed_tokens",
    } <= record.keys()
    assert record["sources"][0].keys() == {"path", "pages", "chars", "sha256", "notes"}
    assert captured.err == "page 3 has no text\n"


def test_ingest_tells_people_what_it_made(
    fake: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    """The store, its share of the full cache, and the speed of reading."""
    assert run(["ingest", "book.pdf"]) == 0
    shown = capsys.readouterr().out
    assert "book.sekv is ready" in shown
    assert "147 windows of up to 2,048" in shown
    assert "5,000 tokens/s" in shown
    assert "200.0 MB, 20.0 % of the full cache's 1.0 GB" in shown
    assert "1 min 15 s" in shown


def test_a_dry_run_plans_and_does_not_ingest(
    fake: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is written, and the estimates say that they are estimates."""
    assert run(["ingest", "book.pdf", "--dry-run"]) == 0
    assert run(["ingest", "book.pdf", "--dry-run", "--json"]) == 0
    assert [name for name, _ in fake.calls] == ["plan", "plan"]
    shown, record = capsys.readouterr().out.rsplit("{", 1)
    assert "nothing was written" in shown
    assert "about 200.0 MB" in shown
    assert record.endswith("}\n")
