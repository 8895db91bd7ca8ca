"""Support: which words a passage shares with a question, and what is made of all signals."""

from __future__ import annotations

import math
from dataclasses import astuple, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.answer.overlap import overlap, rarities, stem_list, stems
from engine.answer.support import CALIBRATED, WORDS_ALONE, Calibration, Signals, refuses
from engine.lab.bench import support
from engine.lab.bench.questions import Question
from engine.lab.bench.support import SupportRow, SupportSetting
from engine.models.reader import Reader
from engine.types import Silent
from json_schemas import valid
from tiny_books import log

NOTHING = Signals(0, math.log(0.01))


# ---------------------------------------------------------------------------- words


def test_forms_of_a_word_are_one_and_stop_words_are_none() -> None:
    assert stems("Who warned them?") == {"warn"} == stems("He WARNS.") == stems("warning")
    assert stems("What is it?") == set()
    assert stem_list("Rain, then whales and rain") == ["rain", "then", "whal"]
    assert stems("thirteen mules") == stems("13 mule") == {"13", "mul"}
    assert stems("Zoë's 13,000 whales") == {"zoë", "13", "000", "whal"}
    assert stems("king, ring, need") == {"king", "ring", "need"}


def test_rare_words_tell_more() -> None:
    text = ("the ship sailed. " * 50 + "a whale came. ").lower()
    result = rarities({"ship", "whal", "zebra"}, text)
    assert result["zebra"] > result["whal"] > result["ship"] > 0


def test_overlap_is_the_share_of_rarity_found() -> None:
    wanted = {"whal": 3.0, "ship": 1.0}
    assert overlap(wanted, "A whale!") == 0.75
    assert overlap(wanted, "Whales and ships") == 1.0
    assert overlap(wanted, "Rain") == 0.0
    assert overlap({}, "Rain") == 0.0


@settings(max_examples=100)
@given(question=st.text(max_size=30), text=st.text(max_size=60))
def test_any_text_has_an_overlap_between_none_and_all(question: str, text: str) -> None:
    wanted = rarities(stems(question), text.lower())
    assert all(math.isfinite(result) and result > 0 for result in wanted.values())
    assert 0 <= overlap(wanted, text) <= 1 + 1e-12


# ---------------------------------------------------------------------------- support


def test_support_is_the_logistic_function_of_the_weighted_signals() -> None:
    made = Calibration(-1.0, (2.0, 0.0), 0.5)
    assert made.support(NOTHING) == pytest.approx(1 / (1 + math.e))
    assert made.support(Signals(0.5, 9)) == 0.5
    assert made.support(replace(NOTHING, words=1e9)) <= 1.0
    assert made.support(replace(NOTHING, words=-1e9)) >= 0.0


def test_more_evidence_never_supports_less() -> None:
    """Of what ships: attention on the document and shared words speak for an answer."""
    poor = Signals(0.2, math.log(0.02))
    assert CALIBRATED.support(replace(poor, words=0.9)) > CALIBRATED.support(poor)
    assert CALIBRATED.support(replace(poor, held=math.log(0.3))) > CALIBRATED.support(poor)
    assert 0 < CALIBRATED.least < 1


def test_without_measured_heads_nothing_is_denied() -> None:
    assert WORDS_ALONE.least == 0
    assert WORDS_ALONE.support(NOTHING) < WORDS_ALONE.support(replace(NOTHING, words=1))


@pytest.mark.parametrize(
    "answer",
    [
        "The document does not mention this.",
        "the text doesn't say who it was",
        "Not stated in the document.",
        "It is not specified.",
        "There is no information about that.",
        "it does not say how old he was",
        "unanswerable",
    ],
)
def test_a_model_that_refuses_is_taken_at_its_word(answer: str) -> None:
    assert refuses(answer)


@pytest.mark.parametrize(
    "answer",
    ["Marta", "He does not say a word to her.", "There is no moon", "not far from the inn", ""],
)
def test_an_answer_with_a_negation_is_an_answer(answer: str) -> None:
    assert not refuses(answer)


# ---------------------------------------------------------------------------- fitting


def row(number: int, answerable: bool, **signals: float) -> SupportRow:
    result = replace(NOTHING, **signals)
    return SupportRow(str(number), f"book{number % 7}", answerable, answerable, "x", 1, result)


def test_fitting_finds_the_signal_that_tells() -> None:
    """`held` parts the two kinds, `words` is noise; a fifth of the unanswerable stay."""
    noise = torch.rand(80, generator=torch.Generator().manual_seed(0)).tolist()
    rows = [
        row(i, i % 2 == 0, held=0.3 + 0.2 * (i % 2 == 0) + noise[i] / 10, words=noise[-i])
        for i in range(80)
    ]
    made = support.fit(rows)
    slopes = dict(zip(vars(NOTHING), made.slopes, strict=True))
    assert slopes["held"] > 10 * abs(slopes["words"])
    scores = [made.support(one.signals) for one in rows if not one.answerable]
    assert sum(score < made.least for score in scores) == round(support.CAUGHT * len(scores))
    assert all(made.support(one.signals) >= made.least for one in rows if one.answerable)


def test_held_out_rows_come_from_documents_that_were_not_fitted_on() -> None:
    rows = [row(i, i % 2 == 0, held=float(i % 2 == 0)) for i in range(42)]
    result = support.held_out(rows, 5)
    assert sorted(one.id for one, _ in result) == sorted(one.id for one in rows)
    odd = [replace(one, signals=replace(NOTHING, held=99.0)) for one in rows[::7]]
    again = dict(support.held_out([*[r for r in rows if r.document != "book0"], *odd], 7))
    assert len(again) == 36 + len(odd)


def test_questions_of_one_document_are_held_out_one_by_one() -> None:
    rows = [replace(row(i, i % 2 == 0, held=float(i % 2 == 0)), document="a") for i in range(20)]
    assert len(support.held_out(rows, 5)) == 20


def test_the_area_is_the_chance_to_be_in_order() -> None:
    assert support.area([3, 2], [1, 0]) == 1.0
    assert support.area([1], [1]) == 0.5
    assert support.area([0], [1]) == 0.0


def test_the_suite_asks_everything_once_and_goes_on_where_it_stopped(
    reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEKV_CACHE", str(tmp_path / "cache"))
    (tmp_path / "log.txt").write_text(log(40))
    asked = [
        Question("1", "log.txt", "How many whales on day 3?", "9", evidence="ship 8 saw 9 whales"),
        Question("2", "log.txt", "How many on day 30?", "27", evidence="ship 2 saw 27 whales"),
        Question("3", "log.txt", "What was the captain called?", "", kind="unanswerable"),
    ]
    setting = SupportSetting(tokens=300, answer=3)
    made = support.measure(reader, [(asked, tmp_path)], setting, tmp_path / "out", Silent())
    valid("bench", made)
    assert (made["questions"], made["answerable"]) == (3, 2)
    lines = (tmp_path / "out" / "support.jsonl").read_text()
    assert len(lines.splitlines()) == 3
    again = support.measure(reader, [(asked, tmp_path)], setting, tmp_path / "out", Silent())
    assert again == made
    assert (tmp_path / "out" / "support.jsonl").read_text() == lines
    assert "| unanswerable caught |" in support.markdown(made)
    for one in support._kept(tmp_path / "out" / "support.jsonl"):
        assert all(math.isfinite(value) for value in astuple(one.signals))
        assert math.log(0.01) <= one.signals.held <= math.log(1.01)
