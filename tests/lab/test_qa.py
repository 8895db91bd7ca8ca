"""Natural questions: each asked once on a text that holds its evidence, scored by exact rules, and
beside what plain transformers says to the same prompt."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.documents.tokens import Tokens
from engine.errors import DocumentError
from engine.lab.bench import claims, page, qa_report
from engine.lab.bench.compare import ComparisonSetting, measure
from engine.lab.bench.log import ANSWERS
from engine.lab.bench.peers.plain import PLAIN
from engine.lab.bench.questions import Excerpts, Question, choose, find
from engine.lab.bench.suites.qa import NaturalQuestions
from engine.lab.bench.suites.scores import contains, exact_match, qa_f1
from engine.lab.bench.suites.types import Ask
from engine.models.reader import Reader
from engine.types import Answer, Citation, MemoryUse, Silent, Usage
from json_schemas import valid
from sekv_cli.main import run
from tiny_books import log, words_of

KINDS = ("lexical", "paraphrase", "unanswerable")


def question(number: int, document: str, day: int, kind: str = "lexical") -> Question:
    """About a day of a ship's log; its evidence names the day."""
    if kind == "unanswerable":
        return Question(f"{document}-{number}", document, f"Who was {day}?", "", kind=kind)
    evidence = f"On day {day} the crew of ship {day * 7 % 13}"
    return Question(
        f"{document}-{number}", document, f"What of {day}?", str(day * 7 % 13), ("no such",),
        evidence, kind,
    )  # fmt: skip


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ship's logs of other lengths."""
    folder = tmp_path_factory.mktemp("documents")
    for name, days in (("a.txt", 30), ("b.txt", 7)):
        (folder / name).write_text(log(days), encoding="utf-8")
    return folder


# ---------------------------------------------------------------------------- which are asked


@given(
    kinds=st.lists(st.tuples(st.sampled_from(KINDS), st.sampled_from("abc")), max_size=40),
    count=st.integers(1, 40),
    seed=st.integers(0, 9),
)
def test_questions_are_chosen_evenly_over_kinds_and_documents(
    kinds: list[tuple[str, str]], count: int, seed: int
) -> None:
    every = [question(i, document, i, kind) for i, (kind, document) in enumerate(kinds)]
    chosen = choose(every, count, seed)
    assert len(chosen) == min(count, len(every))
    assert chosen == [one for one in every if one in chosen]
    assert choose(every, count, seed) == chosen
    there = Counter(one.kind for one in every)
    taken = Counter(one.kind for one in chosen)
    for kind in there:  # no kind is ahead of one of which there is more to take
        behind = [taken[other] for other in there if taken[other] < there[other]]
        assert all(taken[kind] <= least + 1 for least in behind)
        mine = Counter(one.document for one in chosen if one.kind == kind)
        left = {o.document for o in every if o.kind == kind and o not in chosen}
        assert all(mine[one] <= mine[other] + 1 for one in mine for other in left)


def test_another_seed_chooses_other_questions() -> None:
    every = [question(i, "a", i) for i in range(30)]
    assert choose(every, 5, 0) != choose(every, 5, 1)


# ---------------------------------------------------------------------------- on what


@given(
    days=st.lists(st.integers(0, 29), unique=True, min_size=1, max_size=20),
    short=st.lists(st.integers(0, 6), unique=True, max_size=7),
    without=st.integers(0, 11),
    lengths=st.lists(st.integers(8, 600), min_size=1, max_size=3),
    most=st.integers(1, 4),
    seed=st.integers(0, 99),
)
@settings(max_examples=60)
def test_every_question_is_asked_once_on_a_text_that_holds_its_evidence(
    shelf: Path,
    days: list[int],
    short: list[int],
    without: int,
    lengths: list[int],
    most: int,
    seed: int,
) -> None:
    every = [question(i, "a.txt", day) for i, day in enumerate(days)]
    every += [question(i, "b.txt", day) for i, day in enumerate(short)]
    every += [question(90 + i, "a.txt", i, "unanswerable") for i in range(without)]
    for unanswerable in (False, True):
        plan = Excerpts(every, shelf, words_of, lengths, seed, most, unanswerable=unanswerable)
        excerpts = list(plan)
        asked = [one for excerpt in excerpts for one in excerpt.questions]
        wanted = [one for one in every if one.answerable or unanswerable]
        assert sorted(one.id for one in asked) == sorted(one.id for one in wanted)
        for excerpt in excerpts:
            assert 1 <= len(excerpt.questions) <= most
            whole = (shelf / excerpt.document).read_text(encoding="utf-8")
            assert whole[excerpt.start :].startswith(excerpt.text)
            assert len(excerpt.text) <= 5 * max(lengths)
            assert len(excerpt.text) >= min(len(whole), 5 * min(lengths)) - 4
            for one in excerpt.questions:
                assert one.document == excerpt.document
                assert not one.answerable or find(excerpt.text, one.evidence)
        assert list(plan) == excerpts  # a second look begins anew


def test_a_character_of_several_tokens_is_not_cut(tmp_path: Path) -> None:
    """Tokens that share a character stay together at the beginning of the evidence."""
    (tmp_path / "d.txt").write_text("☃☃ evidence here", encoding="utf-8")
    one = Question("q", "d.txt", "?", "x", evidence="☃ evidence")

    def split(document: Any) -> Tokens:
        starts = np.array([0, 0, 0, 1, 1, 1, *range(2, 16)])
        none = np.zeros(len(starts))
        columns = (none, starts, starts + 1, none)
        return Tokens(*(a.astype(np.int32) for a in columns), "tokenizers")

    for seed in range(20):
        (excerpt,) = Excerpts([one], tmp_path, split, (12,), seed)
        assert "☃ evidence" in excerpt.text
    with pytest.raises(DocumentError, match="the evidence of q has 12 tokens, more than 11"):
        list(Excerpts([one], tmp_path, split, (11,)))


def test_evidence_that_is_not_there_is_named(shelf: Path) -> None:
    lost = Question("q7", "a.txt", "?", "x", evidence="no such words")
    for length in (50, 0):
        with pytest.raises(DocumentError, match=r"a\.txt does not hold the evidence of q7"):
            NaturalQuestions([lost], shelf, words_of, length, 0)


# ---------------------------------------------------------------------------- what is right


@pytest.mark.parametrize(
    ("said", "right", "exact", "inside"),
    [
        ("Hunter’s Lodge", "Hunter's lodge", True, True),
        ("It was the Hunter's Lodge.", "Hunter’s Lodge", False, True),
        ("“Ten”", "ten", True, True),
        ("often", "ten", False, False),
        ("ten men", "ten mental", False, False),
        ("", "ten", False, False),
    ],
)
def test_words_are_compared_and_not_their_signs(
    said: str, right: str, exact: bool, inside: bool
) -> None:
    assert exact_match(said, [right]) == exact
    assert contains(said, [right]) == inside
    assert qa_f1(said, [right], ()) == (1.0 if exact else pytest.approx(qa_f1(said, [right], ())))


TEXT = "Nothing here. On day 3 the crew saw nine whales. Nothing there."


def answer(words: str, *cited: str, supported: bool = True, support: float = 1.0) -> Answer:
    places = [(TEXT.index(text), text) for text in cited]
    citations = tuple(Citation("d", "", at, at + len(text), text, 0.3) for at, text in places)
    return Answer(
        "?", words, citations, Usage(9, 0, 3, 2), MemoryUse(1, 2, 0, 0, 0), {},
        supported=supported, support=support,
    )  # fmt: skip


ASK = Ask("?", ("nine", "9 whales"), "contains", 8, id="q1", kind="lexical",
          evidence="the crew saw\nnine whales")  # fmt: skip
WITHOUT = Ask("?", (), "contains", 8, id="q2", kind="unanswerable")


@pytest.mark.parametrize(
    ("given_answer", "cites", "values"),
    [
        (
            answer("Nine.", "saw nine", "Nothing here."),
            True,
            {"contains": 1, "exact": 1, "f1": 1, "evidence_1": 1, "evidence_3": 1, "kept": 1,
             "refused": 0},
        ),
        (
            answer("nine of them", "Nothing here.", "Nothing there.", "whales", supported=False),
            True,
            {"contains": 1, "exact": 0, "f1": 0.5, "evidence_1": 0, "evidence_3": 1, "kept": 0,
             "refused": 1},
        ),
        (
            answer("ten", "Nothing here.", "On day 3 ", " Nothing there.", "whales"),
            True,
            {"contains": 0, "exact": 0, "f1": 0, "evidence_1": 0, "evidence_3": 0, "kept": 0,
             "refused": 0},
        ),
        (
            answer("nine"),
            False,
            {"contains": 1, "exact": 1, "f1": 1, "evidence_1": None, "evidence_3": None,
             "kept": None, "refused": None},
        ),
    ],
)  # fmt: skip
def test_an_answer_is_measured_by_its_words_its_citations_and_its_refusal(
    given_answer: Answer, cites: bool, values: dict[str, float | None]
) -> None:
    logged = qa_report.measured([(ASK, given_answer), (WITHOUT, given_answer)], TEXT, cites=cites)
    assert {name: pair[0] for name, pair in logged["measures"].items()} == values
    without = {name: pair[1] for name, pair in logged["measures"].items()}
    assert without == {**dict.fromkeys(values), "refused": values["refused"]}
    assert logged["questions"] == ["q1", "q2"]


def test_questions_of_other_suites_are_not_measured() -> None:
    other = Ask("?", ("9",), "all_found", 8)
    assert qa_report.measured([(other, answer("9"))], TEXT, cites=True) == {}


def logged(row: str, said: list[Answer], *, cites: bool, task: str = "d") -> dict[str, Any]:
    """What a run keeps of answers to ASK, but for the last, which is to WITHOUT."""
    asked = [ASK] * (len(said) - 1) + [WITHOUT]
    pairs = list(zip(asked, said, strict=True))
    return {
        "row": row, "task": task, "answers": [one.answer for one in said],
        **qa_report.measured(pairs, TEXT, cites=cites),
    }  # fmt: skip


def test_a_report_sums_up_by_kind_beside_plain_transformers() -> None:
    """Which answers are the same, evidence where the plain model is right, what refusing costs."""
    plain = [answer("nine"), answer("ten"), answer("nine!"), answer("x")]
    mine = [
        answer("nine", "whales", support=0.9),
        answer("Ten", "Nothing here.", support=0.5),
        answer("9 whales", "Nothing here.", supported=False, support=0.2),
        answer("x", supported=False, support=0.4),
    ]
    entries = {
        ("k", PLAIN): logged(PLAIN, plain, cites=False),
        ("k", "m"): logged("m", mine, cites=True),
    }
    rows = [{"row": name, "scores": {"k": []}} for name in (PLAIN, "m")]
    report: dict[str, Any] = {"rows": rows, "tasks": {"k": "d"}}
    qa_report.add(report, entries)
    first, second = rows
    assert list(second["by_kind"]) == ["answerable", "lexical", "unanswerable"]
    lexical: Any = second["by_kind"]["lexical"]  # type: ignore[index]
    assert (lexical["contains"]["n"], lexical["contains"]["mean"]) == (3, 2 / 3)
    assert 0 < lexical["contains"]["low"] < 2 / 3 < lexical["contains"]["high"] < 1
    assert lexical["same"]["mean"] == 1 / 3
    assert lexical["refused"]["mean"] == lexical["evidence_3"]["mean"] == 1 / 3
    where: Any = second["evidence_3_where_plain_right"]
    assert (where["n"], where["mean"]) == (2, 0.5)
    assert first["evidence_3_where_plain_right"] is first["refusals"] is None
    refusals: Any = second["refusals"]
    assert (refusals["caught"], refusals["right_lost"]) == (1, 0.5)
    assert refusals["at"]["0.8"] == {"support": 0.4, "right_lost": 0.5}
    for claim, holds in {
        f"{PLAIN}:same >= 1": True,
        "m:same <= 0.5": True,
        "m:same >= 0.6": False,
        "m:caught >= 1": True,
        "m:wrongly_refused < 0.34": True,
        "m:kept >= 0.4": False,
        "m:lexical > 0.6": True,
        f"m:contains >= {PLAIN}:contains": True,
    }.items():
        assert claims.check(claim, report).holds is holds, claim


def test_support_thresholds_catch_the_share_they_say() -> None:
    """Of five without an answer four have little support; right answers have more, but for one."""
    entries = {}
    for i, (right, without) in enumerate(zip([0.05, 0.6, 0.7, 0.8, 0.9],
                                             [0.1, 0.1, 0.2, 0.3, 0.95], strict=True)):  # fmt: skip
        said = [answer("nine", support=right), answer("x", support=without)]
        entries[f"k{i}", "m"] = logged("m", said, cites=True)
    rows: Any = [{"row": "m", "scores": {f"k{i}": [] for i in range(5)}}]
    qa_report.add({"rows": rows, "tasks": {}}, entries)
    at = rows[0]["refusals"]["at"]
    assert at["0.8"] == {"support": 0.3, "right_lost": 0.2}
    assert at["0.9"] == {"support": 0.95, "right_lost": 1.0}
    assert (rows[0]["refusals"]["caught"], rows[0]["refusals"]["right_lost"]) == (0, 0)


# ---------------------------------------------------------------------------- the run


QUESTIONS = [
    question(0, "a.txt", 3), question(1, "a.txt", 21, "paraphrase"), question(2, "b.txt", 5),
    question(3, "a.txt", 9, "unanswerable"), question(4, "b.txt", 2, "unanswerable"),
]  # fmt: skip
SETTING = ComparisonSetting((PLAIN, "full", "snapkv", "sekv"), ("10%", "all"), most=6)


def suite_of(reader: Reader, shelf: Path, length: int = 400) -> NaturalQuestions:
    from functools import partial

    from engine.documents.tokens import tokenize

    cut = partial(tokenize, tokenizer=reader.tokenizer)
    return NaturalQuestions(QUESTIONS, shelf, cut, length, 0)


@pytest.fixture(scope="module")
def report(
    model: Path, reader: Reader, shelf: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("qa")
    return measure(reader, str(model), suite_of(reader, shelf), SETTING, out, Silent())


def test_the_full_cache_says_word_for_word_what_plain_transformers_says(
    report: dict[str, Any],
) -> None:
    """And a tenth of the rows does not, so that the claim can fail."""
    assert claims.check("full:same >= 1", report).holds
    assert not claims.check("snapkv@10%:same >= 1", report).holds
    rows = {row["row"]: row for row in report["rows"]}
    assert list(rows) == [PLAIN, "full", "snapkv@10%", "snapkv@all", "sekv@10%", "sekv@all"]
    assert sum(map(len, rows["full"]["measures"]["same"].values())) == len(QUESTIONS)
    assert 1.9 < rows[PLAIN]["resident_share"] <= rows["full"]["resident_share"] < 2.2
    assert rows["sekv@10%"]["resident_share"] <= 0.1 < rows["sekv@all"]["resident_share"]


def test_a_table_has_a_line_for_every_row_and_kind(report: dict[str, Any]) -> None:
    table = page.markdown(report)
    lines = [line for line in table.splitlines() if line.startswith("| ")]
    assert len(lines) == 1 + 6 * 4
    assert len({line.count("|") for line in lines}) == 1
    assert "| full | all | unanswerable | 2 | - | - | - | - | - | 0.0 (0.0-65.8) | 100.0" in table
    assert "| paraphrase | 1 |" in table
    assert "<h1>Suite qa</h1>" in page.html([(report, page.charts(report))])
    again = json.loads(json.dumps(report))
    assert again["rows"] == report["rows"]


def test_a_whole_document_is_read_once_and_its_store_is_kept(
    model: Path, reader: Reader, shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows as given; a run that goes on opens the stores of the one before."""
    setting = ComparisonSetting(("sekv",), ("20%",), most=2, window=300)
    suite = suite_of(reader, shelf, 0)
    assert [item.task for item in suite.items] == ["a.txt", "b.txt"]
    made = measure(reader, str(model), suite, setting, tmp_path, Silent())
    (row,) = made["rows"]
    assert row["tokens"] == sum(map(len, (log(30), log(7)))) / 2
    assert sum(map(len, row["measures"]["contains"].values())) == 3
    stores = sorted(path.parent.name for path in tmp_path.glob("stores/*/*.sekv"))
    assert stores == sorted(item.key for item in suite.items)
    lines = (tmp_path / ANSWERS).read_text().splitlines()
    (tmp_path / ANSWERS).write_text(lines[0] + "\n")

    def refused(*_: Any, **__: Any) -> Any:
        raise AssertionError("a document was read again")

    monkeypatch.setattr(Reader, "read_window", refused)
    again = measure(reader, str(model), suite, setting, tmp_path, Silent())
    assert again["rows"][0]["scores"] == row["scores"]
    wider = ComparisonSetting(("sekv",), ("20%",), most=2, window=600)
    with pytest.raises(AssertionError, match="read again"):
        measure(reader, str(model), suite, wider, tmp_path / "wider", Silent())


def test_a_document_that_is_too_long_for_the_plain_model_is_said(
    model: Path, reader: Reader, shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "max_positions", 900)
    setting = ComparisonSetting((PLAIN,), (), most=2, window=300)
    made = measure(reader, str(model), suite_of(reader, shelf, 0), setting, tmp_path, Silent())
    assert made["rows"] == []
    assert "tokens and the model 900 positions (1 of 2 documents)" in made["skipped"][0]["why"]


# ---------------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The questions as JSON lines."""
    path = tmp_path_factory.mktemp("questions") / "q.jsonl"
    lines = [
        {"id": q.id, "document": q.document, "question": q.text, "answer": q.answer,
         "aliases": q.aliases, "evidence": q.evidence, "kind": q.kind}
        for q in QUESTIONS
    ]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_the_command_asks_beside_plain_transformers_and_holds_claims(
    model: Path, shelf: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["bench", "--questions", str(file), "--documents", str(shelf), "--model", str(model)]
    line += ["--method", "full", "--budget", "all", "--length", "300", "--samples", "4"]
    line += ["--max-new-tokens", "4", "--device", "cpu", "--out", str(tmp_path)]
    assert run([*line, "--json", "--assert", "full:same >= 1"]) == 0
    made = valid("bench", capsys.readouterr().out)
    assert [row["row"] for row in made["rows"]] == [PLAIN, "full"]
    assert sum(map(len, made["rows"][1]["measures"]["same"].values())) == 4
    assert run([*line, "--assert", "full:same < 1"]) == 1
    assert "does not hold: full:same < 1" in (tmp_path / "table.md").read_text()
    shown = capsys.readouterr().out
    assert "does not hold: full:same < 1" in shown
    assert shown.endswith(f"results.json, this table and its charts are in {tmp_path}\n")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--suite qa", "the qa suite asks natural questions; name their file and the folder"),
        ("--suite qa --questions nowhere --documents docs", "cannot read questions from nowhere"),
        ("--questions Q --documents docs", "there is no a.txt in docs; name its folder"),
        ("--questions Q --documents docs --length 1,2", "the qa suite takes one --length"),
        ("--questions Q --documents docs --scope book --length 9", "none with --scope book"),
        ("--questions Q --documents docs --budget 0%", "'0%' is neither a share"),
        ("--questions Q --documents docs --method none", "unknown method 'none'"),
    ],
)
def test_bad_input_is_one_line(
    line: str, said: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(file) if word == "Q" else word for word in line.split()]
    assert run(["bench", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
