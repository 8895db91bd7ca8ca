"""Suites: documents that fill their length, hold their answers, and are the same again; metrics
that give what their definitions say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from engine.errors import SekvError
from engine.lab.bench.suites.official import INFINITEBENCH, LONGBENCH, Official
from engine.lab.bench.suites.ruler import (
    NEEDLES,
    TASKS,
    Library,
    ManyQuestions,
    NeedleGrid,
    Ruler,
    common_words,
    frequent_words,
)
from engine.lab.bench.suites.scores import METRICS, score
from engine.lab.bench.suites.types import Item, fill

LIBRARY = Library([f"The crew of ship {i} went {w} over the water." for i in range(40)
                   for w in ("slowly", "gladly", "boldly")])  # fmt: skip


def words(text: str) -> int:
    return len(text.split())


SUITE = Ruler(LIBRARY, (400, 900), 2, 7)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_fills_its_length_and_states_its_answers(task: str) -> None:
    """And the same item is the same document, another one another."""
    item = next(item for item in SUITE.items if item.task == task and item.tokens == 900)
    sample = SUITE.draw(item, words)
    again = SUITE.draw(item, words)
    other = SUITE.draw(Item(f"{task}/900/1", task, 900), words)
    assert sample == again
    assert sample != other
    assert 900 * 0.75 <= words(sample.document) <= 900
    (ask,) = sample.asks
    assert all(str(answer) in sample.document for answer in ask.answers)
    assert score(ask.metric, f"It is {', '.join(map(str, ask.answers))}.", ask.answers) == 1.0
    assert score(ask.metric, "nothing", ask.answers) == 0.0


def test_there_are_thirteen_tasks() -> None:
    assert len(TASKS) == len(set(TASKS)) == 13
    items = SUITE.items
    assert len(items) == len({item.key for item in items}) == 13 * 2 * 2
    assert {item.task for item in items[:13]} == set(TASKS)  # a short run has all of them


def test_needles_are_as_many_as_the_published_settings_say() -> None:
    """Keys, values of a key, and keys asked about together."""
    for task, setting in NEEDLES.items():
        sample = SUITE.draw(Item(f"{task}/400/0", task, 400), words)
        hidden = re.findall(r"One of the special magic \w+ for (\S+) is: (\S+)\.", sample.document)
        (ask,) = sample.asks
        assert len(ask.answers) == setting.values * setting.queries
        if setting.around != "needles":
            assert len(hidden) == setting.keys * setting.values
            assert len({key for key, _ in hidden}) == setting.keys
        else:
            assert len(hidden) > 20
        asked = [key for key, _ in hidden if key in ask.text]
        assert len(set(asked)) == setting.queries
    assert NEEDLES["niah_multikey_3"].key == NEEDLES["niah_multikey_3"].value == "uuids"
    assert (NEEDLES["niah_multivalue"].values, NEEDLES["niah_multiquery"].queries) == (4, 4)


def test_a_chain_of_variables_can_be_followed() -> None:
    """From the value that is asked about, through every step, to all five names."""
    sample = SUITE.draw(Item("vt/400/0", "vt", 400), words)
    (ask,) = sample.asks
    first = re.search(r"the value (\d+)", ask.text)
    assert first is not None
    steps = re.findall(r"VAR (\w+) = (?:VAR )?(\w+)", sample.document)
    held, found = first[1], []
    for name, source in steps:
        if source == held:
            found.append(name)
            held = name
    assert tuple(found) == ask.answers
    assert len(found) == 5


def test_the_common_words_are_the_common_ones() -> None:
    from collections import Counter
    from random import Random

    document, _, answers = common_words(LIBRARY)(Random(1), 60)
    counts = Counter(re.findall(r"\d+\. (\S+)", document))
    assert set(answers) == {word for word, n in counts.most_common(10)}
    assert {counts[word] for word in answers} == {30}
    assert {n for word, n in counts.items() if word not in answers} == {3}
    document, _, answers = frequent_words(Random(1), 800)
    counts = Counter(word for word in document.split("words. ")[1].split() if word != "....")
    assert [word for word, _ in counts.most_common(3)] == answers


def test_a_needle_stands_at_its_depth() -> None:
    grid = NeedleGrid(LIBRARY, (500,), (0.0, 0.5, 1.0), 1, 3)
    for item in grid.items:
        sample = grid.draw(item, words)
        before = words(sample.document.split("One of the special magic")[0]) / words(
            sample.document
        )
        assert item.depth is not None
        assert abs(before - item.depth) < 0.1
    assert len(grid.items) == 3


def test_one_document_is_asked_twenty_different_questions() -> None:
    suite = ManyQuestions(LIBRARY, (900,), 1, 3)
    sample = suite.draw(suite.items[0], words)
    assert len(sample.asks) == len({ask.text for ask in sample.asks}) == 20
    assert len({ask.answers for ask in sample.asks}) == 20
    for ask in sample.asks:
        key = re.search(r"for (\S+) mentioned", ask.text)
        assert key is not None
        assert f"for {key[1]} is: {ask.answers[0]}." in sample.document


def test_filling_stops_at_the_length_and_at_the_end_of_words() -> None:
    assert fill(lambda n: "w " * n, 100, words) == 100
    assert fill(lambda n: "w " * n, 1, words) == 1
    assert fill(lambda n: "w " * min(n, 7), 100, words) > 7  # it cannot grow, and ends


# ---------------------------------------------------------------------------- metrics


SCORED = [
    ("all_found", "They are 12 and 7.", ["12", "7", "30"], (), 2 / 3),
    ("all_found", "ALPHA", ["alpha"], (), 1.0),
    ("any_found", "in Kelso", ["Arden", "kelso"], (), 1.0),
    ("any_found", "nowhere", ["Arden"], (), 0.0),
    ("qa_f1", "The old mill.", ["an Old Mill"], (), 1.0),
    ("qa_f1", "the old red mill", ["old mill"], (), 0.8),
    ("qa_f1", "", ["old mill"], (), 0.0),
    ("qa_f1_chinese", "他来了。", ["他来"], (), 0.8),
    ("rouge_l", "a b c d", ["a c d e"], (), 0.75),
    ("rouge_l", "x", ["a"], (), 0.0),
    ("rouge_l_chinese", "他 来了", ["他来了"], (), 1.0),
    ("classified", "It is Location or Number", ["Number"], ("Location", "Number"), 0.5),
    ("classified", "Number of speed", ["Number of speed"], ("Number", "Number of speed"), 1.0),
    ("classified", "nothing", ["Number"], ("Number",), 0.0),
    ("retrieved", "Paragraph 3, not 4", ["Paragraph 3"], (), 0.5),
    ("retrieved", "17", [17], (), 1.0),
    ("retrieved", "none", ["Paragraph 3"], (), 0.0),
    ("code_alike", "# note\nreturn x\nmore", ["return x"], (), 1.0),
    ("code_alike", "return y", ["return x"], (), 0.88),
    ("first_number", "It is 0471 or 9", ["0471"], (), 1.0),
    ("first_number", "no", ["0471"], (), 0.0),
    ("word_found", 'The value: "ab-12".', ["ab-12"], (), 1.0),
    ("word_found", "ab-123", ["ab-12"], (), 0.0),
    ("name_found", "It is Jasper.", ["JASPER"], (), 1.0),
    ("last_number", "The value is: 12.", [12], (), 1.0),
    ("last_number", "12 or 13", [12], (), 0.0),
    ("found_value", "about 3.5 m", [3.5], (), 1.0),
    ("found_value", "4 or 5", [5], (), 0.0),
    ("values_until_wrong", "1, 4, 9, 8", [1, 4, 8, 8], (), 0.5),
    ("choice", "B. because", ["B"], (), 1.0),
    ("choice", "I think the answer is C", ["C"], (), 1.0),
    ("choice", "Maybe D then", ["C"], (), 0.0),
    ("choice", "", ["C"], (), 0.0),
    ("named_choice", "A. foo", ["bar", "A"], (), 1.0),
    ("named_choice", "The answer is: bar", ["bar", "A"], (), 1.0),
    ("named_choice", "The answer is: baz", ["bar", "A"], (), 0.0),
]


def test_metrics_give_what_they_define(subtests: pytest.Subtests) -> None:
    for metric, said, answers, extra, right in SCORED:
        with subtests.test(metric=metric, said=said):
            assert score(metric, said, answers, extra) == pytest.approx(right, abs=1e-6)


def test_every_official_set_has_a_known_metric() -> None:
    for sets in (LONGBENCH, INFINITEBENCH):
        assert {chosen.metric for chosen in sets.values()} <= set(METRICS)
        assert all("{context}" in chosen.prompt for chosen in sets.values())
    assert (len(LONGBENCH), len(INFINITEBENCH)) == (21, 12)


# ---------------------------------------------------------------------------- official files


def lines(folder: Path, name: str, *entries: Any) -> Path:
    folder.mkdir(exist_ok=True)
    body = "".join(e if isinstance(e, str) else json.dumps(e) + "\n" for e in entries)
    (folder / f"{name}.jsonl").write_text(body, encoding="utf-8")
    return folder


def test_longbench_lines_become_documents_and_questions(tmp_path: Path) -> None:
    line = {
        "context": "A {text}.",
        "input": "Who?",
        "answers": ["Ann", "Anna"],
        "all_classes": None,
    }
    shot = {"context": "Ex", "input": "Q", "answers": ["X"], "all_classes": ["X", "Y"]}
    lines(tmp_path, "hotpotqa", line, "\n", line, line)
    suite = Official("longbench", lines(tmp_path, "trec", shot), 2)
    assert [item.key for item in suite.items] == ["hotpotqa/1", "hotpotqa/3", "trec/1"]
    sample = suite.draw(suite.items[0], words)
    (ask,) = sample.asks
    assert sample.document.endswith("The following are given passages.\nA {text}.")
    assert ask.text.startswith("Answer the question based on the given passages.")
    assert ask.text.endswith("Question: Who?\nAnswer:")
    assert (ask.answers, ask.metric, ask.most, ask.first_line) == (
        ("Ann", "Anna"),
        "qa_f1",
        32,
        False,
    )
    (shots,) = suite.draw(suite.items[2], words).asks
    assert (shots.extra, shots.first_line) == (("X", "Y"), True)


def test_infinitebench_lines_too(tmp_path: Path) -> None:
    lines(tmp_path, "passkey", {"context": "c", "input": "What?", "answer": "71432"})
    options = {
        "context": "c",
        "input": "Why?",
        "answer": "two",
        "options": ["one", "two", "3", "4"],
    }
    lines(tmp_path, "longbook_choice_eng", options)
    lines(tmp_path, "code_debug", {**options, "answer": ["two"]})
    run = {"context": "def func_1...", "input": "Return value of func_1(-3)", "answer": 5}
    lines(tmp_path, "code_run", run)
    find = {"context": "[1, 2]", "input": "The largest number of it", "answer": 2}
    suite = Official("infinitebench", lines(tmp_path, "math_find", find), 5)
    asks = {item.task: suite.draw(item, words).asks[0] for item in suite.items}
    assert asks["passkey"].answers == ("71432",)
    assert asks["longbook_choice_eng"].answers == ("B",)
    assert "C. 3" in asks["longbook_choice_eng"].text
    assert asks["code_debug"].answers == ("two", "B")
    assert "the return value of func_1(-3)." in asks["code_run"].text
    item = next(item for item in suite.items if item.task == "math_find")
    assert suite.draw(item, words).document.startswith(
        "What is the largest number in the following"
    )


@pytest.mark.parametrize(
    ("name", "entries", "tasks", "said"),
    [
        ("qasper", ['{"context": 1}\n', "broken\n"], (), "line 1: no field 'input'"),
        (
            "qasper",
            [{"context": "c", "input": "i", "answers": ["a"]}, "{broken\n"],
            (),
            "line 2: not JSON",
        ),
        ("qasper", ["[1]\n"], (), "line 1: no field 'context'"),
        ("qasper", [{"context": "c", "input": "i", "answers": []}], (), "line 1: field 'answers'"),
        ("trec", [{"context": "c", "input": "i", "answers": ["a"]}], (), "no field 'all_classes'"),
        ("other", ["{}\n"], (), "none of longbench's files .* get the official files from https"),
        ("qasper", ["{}\n"], ("lcc",), r"no lcc\.jsonl"),
        ("qasper", ["{}\n"], ("none",), "no set 'none'; known: narrativeqa"),
    ],
)
def test_what_is_missing_or_broken_is_named(
    tmp_path: Path, name: str, entries: list[Any], tasks: tuple[str, ...], said: str
) -> None:
    lines(tmp_path, name, *entries)
    with pytest.raises(SekvError, match=said):
        Official("longbench", tmp_path, 5, tasks)
