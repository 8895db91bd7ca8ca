"""Steps that are done again with more room: which, to what effect, and what is left of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.attention import widen
from engine.attention.coverage import Coverage
from engine.attention.shared import Shared
from engine.attention.widen import Retry, can_retry
from engine.compression.selectors import ByShare, Once
from engine.errors import BudgetError
from engine.models.reader import Reader
from engine.types import AskOptions
from tiny_books import QUESTION, log, read, session

TOKENS = 6


@pytest.fixture(scope="module")
def store(model: Path, reader: Reader, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return read(tmp_path_factory.mktemp("store"), model, log(14), reader=reader)


def asked(store: Path, reader: Reader, **options: Any) -> Any:
    """The answer, what the memory was at its end, and the trace."""
    with session(store, reader, trace=True, max_new_tokens=TOKENS, **options) as opened:
        answer = opened.ask(QUESTION)
        shared = opened.memory.shared
        assert shared.width == 1.0
        return answer, shared.device_bytes, opened.trace()


def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """No lead is enough."""
    monkeypatch.setattr(widen, "MARGIN", float("inf"))


def never(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(widen, "MARGIN", 0.0)


def timeless(answer: Any) -> Any:
    same = {"widened_steps": 0, "first_text_s": 0.0}
    return replace(answer, timing={}, stats={**answer.stats, **same})


def test_a_budget_is_kept_unless_it_may_be_widened(
    store: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A factor of one, or no step that is unsure, changes nothing at all."""
    plain, _, trace = asked(store, reader, budget="15%")
    never(monkeypatch)
    sure, _, sure_trace = asked(store, reader, budget="15%", widen=3.0)
    assert plain.stats["widened_steps"] == sure.stats["widened_steps"] == 0
    assert timeless(sure) == timeless(plain)
    assert sure_trace == trace
    always(monkeypatch)
    kept, _, _ = asked(store, reader, budget="15%", widen=1.0)
    assert timeless(kept) == timeless(plain)


def test_with_every_step_wider_the_answer_is_that_of_a_wider_budget(
    store: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its words, evidence, decisions and coverage are those of the second tries alone."""
    always(monkeypatch)
    wide, after, trace = asked(store, reader, budget="20%", widen=2.0)
    # The same sketches, pinned rows and summaries with twice the room: as if nothing had been tried
    # with less.
    with session(store, reader, budget="20%", trace=True, max_new_tokens=TOKENS) as opened:
        opened.memory.shared.width = 2.0
        twice = opened.ask(QUESTION)
        expected = opened.trace()
    assert wide.stats["widened_steps"] == wide.usage.answer_tokens == TOKENS
    assert (wide.answer, wide.citations) == (twice.answer, twice.citations)
    assert trace["zoom"] == expected["zoom"]
    assert trace["said"] == expected["said"]
    for name in ("estimated_coverage", "least_coverage", "answer_kv_bytes"):
        assert wide.stats[name] == twice.stats[name]
    assert wide.usage == twice.usage
    assert wide.memory.device_kv_bytes >= after


def test_the_peak_is_told_and_the_next_step_is_back_within_the_budget(
    store: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, _, _ = asked(store, reader, budget="15%")
    allowed = plain.memory.device_kv_bytes
    tries = iter([True] + [False] * TOKENS)
    monkeypatch.setattr(Retry, "unsure", lambda *_: next(tries))
    wide, after, trace = asked(store, reader, budget="15%", widen=2.0)
    assert wide.stats["widened_steps"] == 1
    assert allowed < wide.memory.device_kv_bytes <= 2 * allowed * 1.05
    assert after <= allowed
    spans = [sum(each["step"] == step for each in trace["zoom"]) for step in range(TOKENS)]
    assert spans[0] > max(spans[1:])


def test_an_unsure_step_is_one_without_a_lead_or_short_of_its_coverage() -> None:
    shared = Shared(torch.tensor([0, 1]), 1)
    close, clear = torch.tensor([1.0, 0.5, -3.0]), torch.tensor([9.0, 0.5, -3.0])

    def unsure(logits: torch.Tensor, on_summaries: float, coverage: float) -> bool:
        shared.coverage = Coverage()
        shared.coverage.note(0, torch.full((1, 2, 1), 0.9))  # of an earlier step: does not count
        one = Retry(shared, 2.0, coverage)
        one.begin()
        shared.coverage.note(0, torch.full((1, 2, 1), on_summaries))
        return one.unsure(logits)

    assert unsure(close, 0.2, 1.0)
    assert not unsure(close, 0.0, 1.0)  # everything was exact: more room gives nothing
    assert not unsure(clear, 0.2, 1.0)  # a coverage of one fills the budget and promises nothing
    assert unsure(clear, 0.2, 0.9)
    assert not unsure(clear, 0.2, 0.8 - 1e-6)


def test_coverage_is_told_apart_by_step() -> None:
    whole = Coverage()
    whole.note(0, torch.full((2, 3, 1), 0.4))
    before = whole.copy()
    whole.note(0, torch.full((2, 1, 1), 0.1))
    whole.note(1, torch.full((2, 1, 1), 0.3))
    since = whole.since(before)
    assert since.least == pytest.approx(0.7)
    assert since.mean == pytest.approx(0.8)
    assert before.mean == pytest.approx(0.6)
    assert whole.since(whole.copy()).least == 1.0


def test_a_store_that_is_whole_has_nothing_to_widen(
    store: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    always(monkeypatch)
    answer, _, _ = asked(store, reader, full=True, widen=4.0)
    assert answer.stats["widened_steps"] == 0


@pytest.mark.parametrize(("method", "widen"), [("snapkv", 2.0), ("zoomr", 2.0)])
def test_a_method_that_keeps_what_a_step_did_is_not_widened(
    method: str, widen: float, model: Path, reader: Reader, tmp_path: Path
) -> None:
    assert can_retry(ByShare())
    assert not can_retry(Once())
    made = read(tmp_path, model, log(4), reader=reader, method=method)
    with pytest.raises(BudgetError, match="cannot do a step again"):
        session(made, reader, widen=widen)
    with (
        session(made, reader) as opened,
        pytest.raises(BudgetError, match="cannot do a step again"),
    ):
        opened.retune(AskOptions(widen=widen))


@pytest.mark.parametrize("widen", [0.5, float("nan"), float("inf")])
def test_a_factor_is_one_or_more(widen: float, store: Path, reader: Reader) -> None:
    with pytest.raises(BudgetError, match="widen"):
        session(store, reader, widen=widen)
