"""docs/schemas says what --json prints: made from the types, and every output keeps to it."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from json_schemas import valid
from sekv_cli.main import run
from sekv_cli.schemas import schemas
from tiny_books import TEXT


def test_every_schema_is_one(subtests: pytest.Subtests) -> None:
    for name, schema in schemas().items():
        with subtests.test(name=name):
            jsonschema.Draft202012Validator.check_schema(schema)


def test_every_output_keeps_to_its_schema(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    subtests: pytest.Subtests,
) -> None:
    """One after the other, as a user would; those of models, train, serve and bench, and what a
    library says of documents that it reads, are checked where these commands are tested."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEKV_MODEL", str(model))
    Path("book.txt").write_text(TEXT)
    Path("many").mkdir()
    Path("many/one.txt").write_text(TEXT)
    Path("library").mkdir()
    Path(".dead.sekv.work").mkdir()  # what `gc` finds
    Path(".dead.sekv.lock").touch()
    for name, line, code in (
        ("ingest-dry-run", "ingest book.txt --dry-run", 0),
        ("ingest", "ingest book.txt", 0),
        ("ingest", "ingest book.txt --update", 0),
        ("ingest", "ingest many/one.txt -o library/one.sekv", 0),
        ("ingest-library", "ingest many -o library", 0),  # unchanged: no process is started
        ("ask", "ask book.sekv Who? --no-server", 0),
        ("inspect", "inspect book.sekv", 0),
        ("inspect", "inspect book.sekv -q Who?", 0),
        ("text", "text book.sekv", 0),
        ("verify", "verify book.sekv", 0),
        ("list", "list", 0),
        ("models", "models", 0),
        ("config", "config", 0),
        ("list", "list library", 0),
        ("ask", "ask library whales? --no-server", 0),
        ("mv", "mv book.sekv moved.sekv", 0),
        ("rm", "rm moved.sekv", 0),
        ("gc", "gc --dry-run", 0),
    ):
        with subtests.test(line=line):
            assert run([*line.split(), "--json"]) == code
            valid(name, capsys.readouterr().out)
    for line in ("ask nosuch Who?", "ingest nosuch.pdf", "list nosuch", "ask --bugdet", "inspct"):
        with subtests.test(line=line):
            assert run([*line.split(), "--json"]) == 2
            captured = capsys.readouterr()
            assert captured.out == ""
            assert json.loads(captured.err) == valid("error", captured.err)
