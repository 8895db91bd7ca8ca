"""Questions to a library beside those to their own documents, with a tiny model."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from engine.errors import DocumentError, SekvError
from engine.lab.bench import library
from engine.lab.bench.library import ALONE, LIBRARY, LibrarySetting
from engine.lab.bench.questions import Question
from engine.models.reader import Reader
from engine.store.reader import read_manifest
from engine.types import Citation, Silent
from json_schemas import valid
from sekv_cli.main import run as sekv
from tiny_books import log

WALRUS = "A walrus slept on the ice all winter, and nobody woke it.\n"

pytestmark = pytest.mark.usefixtures("instant_disk")


def asked(number: int, document: str, text: str, evidence: str, kind: str = "lexical") -> Question:
    return Question(f"q{number}", document, text, "ice", (), evidence, kind)


QUESTIONS = [
    asked(1, "walrus.md", "Where did the walrus sleep?", "walrus slept on the ice"),
    asked(2, "deep/log.txt", "What was seen on day 7 by ship 10?", "On day 7 the crew of ship 10"),
    # Its words are the other document's.
    asked(3, "walrus.md", "Which crew of ships saw rain?", "nobody woke it", "paraphrase"),
    Question("q4", "walrus.md", "Who sang?", "", kind="unanswerable"),
]


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    folder = tmp_path / "documents"
    (folder / "deep").mkdir(parents=True)
    (folder / "walrus.md").write_text(WALRUS + log(3))
    (folder / "deep" / "log.txt").write_text(log(30))
    (folder / "broken.pdf").write_bytes(b"%PDF-1.4 nothing")
    (folder / "nothing.txt").write_text("")
    return folder


def test_both_rows_are_of_the_same_questions_and_a_wrong_document_costs_the_evidence(
    documents: Path, tmp_path: Path, model: Path, reader: Reader
) -> None:
    setting = LibrarySetting(most=2, window=160, budget="100%")
    out = tmp_path / "out"
    measure = partial(
        library.measure, reader, str(model), QUESTIONS, documents, setting, out, Silent()
    )
    report = measure()
    valid("bench", json.dumps(report))
    assert (report["documents"], report["questions"]) == (2, 3)
    alone, found = report["rows"][ALONE], report["rows"][LIBRARY]
    assert {kind: line["n"] for kind, line in found.items()} == {
        "all": 3,
        "lexical": 2,
        "paraphrase": 1,
    }
    assert alone["all"]["document"]["mean"] == 1
    assert found["lexical"]["document"]["mean"] == 1
    assert found["paraphrase"]["document"]["mean"] == 0
    entries = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()[1:]]
    by = {(entry["key"], entry["row"]): entry for entry in entries}
    assert by["q3", LIBRARY]["store"] == "deep/log.sekv"
    assert by["q3", LIBRARY]["evidence_1"] == 0
    more = sum(
        by[f"q{n}", LIBRARY]["evidence_3"] - by[f"q{n}", ALONE]["evidence_3"] for n in (1, 2, 3)
    )
    assert report["points"]["mean"] == pytest.approx(more / 3)
    assert read_manifest(out / "library" / "deep" / "log.sekv").unread  # only what was needed
    table = library.markdown(report)
    assert "| the library | 1 paraphrase | 0.0 (0-79) |" in table

    before = (out / "answers.jsonl").read_bytes()
    assert measure() == report
    assert (out / "answers.jsonl").read_bytes() == before


def test_evidence_counts_in_the_right_document_alone() -> None:

    def answer(*stores: str) -> Any:
        cited = [Citation("s", "", 5, 9, "text", 0.5, store=store) for store in stores]
        return type("Answered", (), {"answer": "on ice", "store": "b.sekv", "citations": cited})()

    entry = partial(library._entry, QUESTIONS[0], LIBRARY)
    wrong = entry(answer("b.sekv", "b.sekv", "a.sekv", "a.sekv"), "a.sekv", (8, 20))
    assert (wrong["document"], wrong["evidence_1"], wrong["evidence_3"]) == (0, 0, 1)
    late = entry(answer("b.sekv", "b.sekv", "b.sekv", "a.sekv"), "a.sekv", (8, 20))
    assert (late["evidence_3"], late["contains"]) == (0, 1)
    beside = entry(answer("a.sekv"), "a.sekv", (9, 20))
    assert beside["evidence_3"] == 0
    nothing = entry(None, "a.sekv", (8, 20))
    assert (nothing["document"], nothing["evidence_3"], nothing["contains"]) == (0, 0, 0)


def test_what_cannot_be_measured_is_one_line(
    documents: Path, tmp_path: Path, model: Path, reader: Reader
) -> None:
    def measure(*questions: Question) -> Any:
        setting, out = LibrarySetting(), tmp_path / "out"
        return library.measure(reader, str(model), questions, documents, setting, out, Silent())

    with pytest.raises(SekvError, match="none of these questions"):
        measure(QUESTIONS[3])
    with pytest.raises(DocumentError, match=r"no lost\.txt in"):
        measure(asked(5, "lost.txt", "Who?", "x"))
    with pytest.raises(DocumentError, match="empty"):
        measure(asked(6, "nothing.txt", "Who?", "x"))


def test_the_command_runs_the_suite(
    documents: Path, tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = QUESTIONS[0]
    line = {"id": one.id, "document": one.document, "question": one.text, "answer": one.answer}
    (tmp_path / "q.jsonl").write_text(json.dumps({**line, "evidence": one.evidence}) + "\n")
    command = ["bench", "--suite", "library", "--model", str(model), "--window", "160"]
    command += ["--questions", str(tmp_path / "q.jsonl"), "--documents", str(documents)]
    command += ["--max-new-tokens", "2", "-o", str(tmp_path / "out")]
    assert sekv(command) == 0
    assert "a library of 2 documents" in capsys.readouterr().out
    assert sekv([*command, "--budget", "5%,10%"]) == 2
    assert "takes one --budget" in capsys.readouterr().err
