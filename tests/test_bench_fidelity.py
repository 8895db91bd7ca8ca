"""The fidelity benchmark: the reference equals itself, other methods are other rows, and a table
says what the numbers say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.bench import fidelity
from engine.bench.fidelity import Setting, markdown, measure, save
from engine.errors import BudgetError, SekvError
from engine.readers import hf
from engine.types import Silent
from tiny_books import log
from tiny_models import checkpoint


@dataclass(frozen=True)
class Asked:
    text: str
    value: str
    quote: str = ""


@dataclass(frozen=True)
class Drawn:
    document: str
    questions: tuple[Asked, ...]


class Logs:
    """Ship's logs without end, each with three questions; it remembers how many were drawn."""

    drawn = 0

    def __iter__(self) -> Iterator[Drawn]:
        while True:
            Logs.drawn += 1
            text = log(5 + Logs.drawn % 3)
            yield Drawn(text, tuple(Asked(f"What of day {i}?", "9") for i in range(3)))


class NeverRead:
    """Documents that nobody may ask for: what is wrong is known before the first one."""

    def __iter__(self) -> Iterator[Drawn]:
        raise AssertionError("a document was drawn")


SETTING = Setting(
    methods=("full", "sekv", "sekv-paper"), budgets=("15%", "60%"), questions=5, most=3
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint("llama", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def reader(model: Path) -> hf.Reader:
    return hf.load(str(model), device="cpu")


@pytest.fixture(scope="module")
def report(model: Path, reader: hf.Reader) -> dict[str, Any]:
    Logs.drawn = 0
    return measure(reader, str(model), Logs(), SETTING, Silent())


def test_as_many_questions_are_asked_as_were_ordered(report: dict[str, Any]) -> None:
    """Of every method and budget the same ones; no document more is drawn than needed."""
    assert report["documents"] == 2
    assert report["full"]["questions"] == 5
    for budgets in report["methods"].values():
        assert {line["questions"] for line in budgets.values()} == {5}


def test_the_reference_equals_itself(report: dict[str, Any]) -> None:
    for line in report["methods"]["full"].values():
        assert line["same"] == 1.0
        assert line["right"] == report["full"]["right"]
        assert line["resident"] >= 2.0  # float32 rows of every token, over 16-bit ones


def test_another_method_is_another_row(report: dict[str, Any]) -> None:
    methods = report["methods"]
    assert set(methods) == set(SETTING.methods)
    for budget in SETTING.budgets:
        rows = [methods[name][budget] for name in SETTING.methods]
        timeless = [{k: v for k, v in row.items() if k != "median_first_token_s"} for row in rows]
        assert timeless[0] != timeless[1] != timeless[2] != timeless[0]
        for name in ("sekv", "sekv-paper"):
            line = methods[name][budget]
            share = float(budget.rstrip("%")) / 100
            assert 0 < line["resident"] <= line["most_resident"] <= share
            assert 0 <= line["same"] <= 1
            low, high = line["same_interval"]
            assert 0 <= low <= line["same"] <= high <= 1
    assert methods["sekv"]["60%"]["same"] >= methods["sekv"]["15%"]["same"]


def test_a_report_says_how_it_was_made(report: dict[str, Any], model: Path) -> None:
    assert json.loads(json.dumps(report))["setting"]["methods"] == list(SETTING.methods)
    assert report["setting"]["coverage"] == SETTING.coverage
    assert report["model"] == str(model)
    assert len(report["weights"]) == 32


def test_the_table_has_a_row_for_every_method_and_budget(
    report: dict[str, Any], tmp_path: Path
) -> None:
    table = save(report, tmp_path / "out")
    assert table == markdown(report)
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + 3 * 2  # the head, the reference, the rows
    assert len({line.count("|") for line in rows}) == 1
    for method in SETTING.methods:
        for budget in SETTING.budgets:
            assert any(row.startswith(f"| {method} | {budget} |") for row in rows)
    assert (tmp_path / "out" / "table.md").read_text(encoding="utf-8") == table
    assert json.loads(
        (tmp_path / "out" / "results.json").read_text(encoding="utf-8")
    ) == json.loads(json.dumps(report))


def test_answers_are_counted_as_same_and_as_right() -> None:
    """Same: word for word the reference's, quote included. Right: the value is said, or, where
    there is none, that it is not stated."""

    def said(answer: str, quote: str = "") -> Any:
        memory = SimpleNamespace(device_kv_bytes=50, zoomed_spans=2, total_spans=8)
        timing = {"first_token_s": 0.5}
        return SimpleNamespace(answer=answer, quote=quote, memory=memory, timing=timing)

    count = fidelity.Count()
    truth = [said("Nine whales", "q"), said("Ten"), said("not stated in the text"), said("x")]
    answers = [said("Nine whales", "q"), said("ten  goats"), said("NOT stated"), said("x", "y")]
    questions = [Asked("?", "nine"), Asked("?", "Ten Goats"), Asked("?", ""), Asked("?", "z")]
    fidelity._add(count, answers, truth, questions, 400, 4)
    assert (count.questions, count.same, count.right) == (4, 1, 3)
    line = fidelity._line(count)
    assert line["resident"] == line["most_resident"] == 50 / 200
    assert line["zoomed_spans"] == 0.25
    assert line["median_first_token_s"] == 0.5


@pytest.mark.parametrize(
    ("changes", "documents", "kind", "said"),
    [
        ({"methods": ("sekv", "none")}, Logs(), BudgetError, "unknown method 'none'"),
        ({"budgets": ("15%", "much")}, NeverRead(), BudgetError, "budget"),
        ({"coverage": 0.0}, NeverRead(), BudgetError, "coverage"),
        ({}, [], SekvError, "no questions"),
        ({}, [Drawn(log(4), ())], SekvError, "no questions"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    changes: dict[str, Any],
    documents: Any,
    kind: type[SekvError],
    said: str,
    model: Path,
    reader: hf.Reader,
) -> None:
    with pytest.raises(kind, match=said):
        measure(reader, str(model), documents, replace(SETTING, **changes), Silent())
