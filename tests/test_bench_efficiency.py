"""The efficiency benchmark: every contender takes part, bytes are counted, ratios are ratios."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.bench.efficiency import QUESTION, Setting, _reprefill, markdown, measure
from engine.readers import hf
from engine.types import Silent
from tiny_books import log, session
from tiny_books import report as ingested

SETTING = Setting(lengths=(300, 700), budget="30%", rounds=2, window=400)
TEXT = log(16)


@dataclass
class Told(Silent):
    done: int = 0
    total: int = 0

    def start(self, stage: str, total: int, unit: str) -> None:
        self.total = total

    def advance(self, done: int) -> None:
        self.done += done


@pytest.fixture(scope="module")
def told() -> Told:
    return Told()


@pytest.fixture(scope="module")
def report(model: Path, reader: hf.Reader, told: Told) -> dict[str, Any]:
    return measure(reader, str(model), TEXT, SETTING, told)


def test_every_contender_is_timed_in_every_round(report: dict[str, Any], told: Told) -> None:
    assert told.done == told.total == 4
    assert [row["asked_tokens"] for row in report["lengths"]] == [300, 700]
    for row in report["lengths"]:
        assert row["tokens"] == row["asked_tokens"]
        assert set(row["all_s"]) == {"prefill", "read", "fold", "write", "reprefill", "open"}
        for name, times in row["all_s"].items():
            assert len(times) == SETTING.rounds
            assert all(seconds > 0 for seconds in times)
            assert row["median_s"][name] == statistics.median(times)
    assert [row["windows"] for row in report["lengths"]] == [1, 2]


def test_ratios_are_those_of_the_medians(report: dict[str, Any]) -> None:
    for row in report["lengths"]:
        median = row["median_s"]
        assert row["fold_and_write_over_prefill"] == pytest.approx(
            (median["fold"] + median["write"]) / median["prefill"]
        )
        assert row["reprefill_over_open"] == pytest.approx(median["reprefill"] / median["open"])


def test_bytes_are_those_of_a_real_ingest_and_answer(
    report: dict[str, Any], model: Path, reader: hf.Reader, tmp_path: Path
) -> None:
    row = report["lengths"][0]
    made = ingested(tmp_path, model, TEXT[:300], reader=reader, window=400)
    # The manifest tells the path of the source, and nothing else differs.
    assert row["store_bytes"] == pytest.approx(made.store_bytes, abs=400)
    with session(Path(made.store), reader, budget="30%", max_new_tokens=1) as opened:
        resident = opened.ask(QUESTION).memory.device_kv_bytes
    assert row["resident_bytes"] == resident
    cache = 2 * 3 * 2 * 16 * 300 * 2
    assert row["resident_over_16_bit_cache"] == pytest.approx(resident / cache)
    assert row["resident_over_16_bit_cache"] <= 0.3
    assert row["store_over_16_bit_cache"] == pytest.approx(row["store_bytes"] / cache)


def test_the_contender_is_the_plain_full_cache(
    reader: hf.Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In chunks, at the right positions: its last logits are those of one plain forward."""
    seen: list[Any] = []
    forward = type(reader.model).forward

    def watch(*args: Any, **kwargs: Any) -> Any:
        out = forward(*args, **kwargs)
        seen.append((kwargs["input_ids"], out.logits))
        return out

    monkeypatch.setattr(type(reader.model), "forward", watch)
    text = log(20)
    assert _reprefill(reader, text) > 0
    assert len(seen) == 2
    monkeypatch.undo()
    ids = torch.cat([piece for piece, _ in seen], 1)
    prompt = reader.prompt.question(reader.tokenizer, QUESTION)
    assert ids[0].tolist()[-len(prompt) :] == prompt
    assert ids.shape[1] == 1 + len(text) + len(prompt)
    with torch.inference_mode():
        whole = reader.model(input_ids=ids).logits[0, -1]
    torch.testing.assert_close(seen[-1][1][0, -1], whole, atol=1e-4, rtol=1e-4)


def test_a_report_says_how_it_was_made(report: dict[str, Any], model: Path) -> None:
    plain = json.loads(json.dumps(report))
    assert plain["model"] == str(model)
    assert plain["setting"]["lengths"] == list(SETTING.lengths)
    assert plain["threads"] == torch.get_num_threads()


def test_the_table_has_a_row_for_every_length(report: dict[str, Any]) -> None:
    lines = markdown(report).splitlines()
    rows = [line for line in lines if line.startswith("| ")]
    assert len(rows) == 1 + 2
    assert len({row.count("|") for row in rows}) == 1
    assert rows[1].startswith("| 300 | 1 |")
    assert rows[2].startswith("| 700 | 2 |")
