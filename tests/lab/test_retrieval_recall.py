"""Is the evidence among what a question would read? Nothing is read to measure it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.lab.bench import retrieval
from engine.lab.bench.questions import Question
from engine.models.reader import Reader
from engine.store.passages import PASSAGE
from json_schemas import valid
from letter_vectors import letter_vectors
from sekv_cli.main import run
from tiny_books import log, words_of


def asked(number: int, text: str, kind: str = "lexical") -> Question:
    day = f"On day {number} the crew of ship"
    return Question(str(number), "log.txt", text, str(number * 7 % 13), (), day, kind)


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    (tmp_path / "log.txt").write_text(log(60), encoding="utf-8")
    return tmp_path


def test_recall_counts_windows_with_a_part_and_passages_with_all_of_the_evidence(
    shelf: Path,
) -> None:
    questions = [
        asked(58, "What was seen on day 58?"),
        asked(44, "Who sang?", "paraphrase"),
        Question("none", "log.txt", "Who sang?", "", kind="unanswerable"),
    ]
    made = retrieval.measure(questions, shelf, words_of, letter_vectors, (40, 4096))
    valid("bench", json.dumps(made))
    assert made["questions"] == 2
    rows = {(row["window"], row["by"]): row for row in made["recall"]}
    assert len(rows) == 4
    small, large = rows[40, "BM25"], rows[4096, "BM25"]
    alike = rows[40, "words alike"]
    assert alike["lexical"] == small["lexical"]
    assert small["lexical"] == {
        "questions": 1,
        "windows": dict.fromkeys(retrieval.COUNTS, 1.0),
        "passages": dict.fromkeys(retrieval.COUNTS, 1.0),
    }
    assert large["lexical"]["windows"][1] == 1.0
    assert small["paraphrase"]["windows"] == dict.fromkeys(retrieval.COUNTS, 0.0)
    assert small["paraphrase"]["passages"] == dict.fromkeys(retrieval.COUNTS, 0.0)
    table = retrieval.markdown(made)
    assert "| 40 | BM25 | 1 lexical | 100 / 100 / 100 / 100 % | 100 / 100 / 100 / 100 % |" in table
    assert "| 40 | BM25 | 1 paraphrase | 0 / 0 / 0 / 0 % | 0 / 0 / 0 / 0 % |" in table


def test_the_suite_reads_nothing(
    shelf: Path, model: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Reader, "read_window", lambda *_: pytest.fail("it was read"))
    line = {
        "id": "1",
        "document": "log.txt",
        "question": "What of day 31?",
        "answer": "9",
        "evidence": "On day 31 the crew of ship 9",
        "kind": "lexical",
    }
    questions = tmp_path / "q.jsonl"
    questions.write_text(json.dumps(line) + "\n", encoding="utf-8")
    arguments = f"bench --suite retrieval --model {model} --questions {questions} --documents "
    out = tmp_path / "out"
    assert run([*arguments.split(), str(shelf), "--length", str(PASSAGE), "-o", str(out)]) == 0
    assert f"| {PASSAGE} | words alike | 1 lexical |" in capsys.readouterr().out
    assert json.loads((out / "results.json").read_text())["questions"] == 1
