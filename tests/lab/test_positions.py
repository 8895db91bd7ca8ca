"""Rows moved to other positions are the rows of a model that read them there."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache

from engine.compression.rope import shift
from engine.documents.tokens import tokenize
from engine.errors import SekvError
from engine.lab.bench import positions
from engine.lab.bench.positions import PositionSetting, ReadTokens, SeenPassages, memories
from engine.lab.bench.questions import Question
from engine.models.reader import Reader
from engine.types import Silent
from json_schemas import valid
from tiny_books import log

IDS = [7 + 5 * i % 90 for i in range(24)]


def keys(reader: Reader, start: int) -> list[torch.Tensor]:
    """Of every layer when the model reads IDS alone from a position on."""
    cache = DynamicCache(config=reader.model.config)
    with torch.inference_mode():
        reader.model.base_model(
            input_ids=torch.tensor([IDS]),
            position_ids=torch.arange(start, start + len(IDS))[None],
            past_key_values=cache,
        )
    return [layer.keys[0] for layer in cache.layers]  # type: ignore[union-attr]


@pytest.mark.parametrize("by", [0, 1, 37, -5])
def test_keys_that_are_shifted_are_those_that_the_model_has_there(reader: Reader, by: int) -> None:
    """In every layer: when all that was read moves together, only distances count."""
    turn = reader.rotation(0, 64)
    for here, there in zip(keys(reader, 9), keys(reader, 9 + by), strict=True):
        torch.testing.assert_close(shift(here, by, *turn), there, atol=1e-4, rtol=1e-4)


def test_a_query_turned_back_sees_the_rows_that_were_not_turned(reader: Reader) -> None:
    turn = reader.rotation(0, 64)
    k, q = keys(reader, 0)[0], torch.randn(2, 3, 16)
    torch.testing.assert_close(
        q @ shift(k, 20, *turn).mT, shift(q, -20, *turn) @ k.mT, atol=1e-4, rtol=1e-4
    )


def read(reader: Reader, ids: list[int]) -> ReadTokens:
    with torch.inference_mode():
        [chunk] = reader.read_window(ids, reader.prefix(), len(ids), [])
    return ReadTokens(list(zip(chunk.k, chunk.v, strict=True)), len(reader.prompt.prefix))


def test_rows_in_one_piece_answer_as_the_model_that_reads_them(reader: Reader) -> None:
    """Word for word, and so do they cut in two and put one behind the other again."""
    question = Question("q", "d", "What of day 2?", "x")
    prompt = reader.prompt.question(reader.tokenizer, question.text)
    ids = torch.tensor([[*reader.prompt.prefix, *IDS, *prompt]])
    with torch.inference_mode():
        plain = reader.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False
        )[0, ids.shape[1] :]
    truth = reader.tokenizer.decode(plain.tolist(), skip_special_tokens=True).strip()
    turn, whole = reader.rotation(0, 256), read(reader, IDS)
    first = len(reader.prompt.prefix)
    pieces = [whole.cut(0, 10), whole.cut(10, len(IDS))]
    for arranged in (
        positions.near([whole], first, 99),
        positions.consecutive(pieces, first, 99),
    ):
        assert arranged.question == first + len(IDS)
        assert positions.said(reader, question, arranged, turn, 6) == truth


def test_pieces_stand_where_they_are_put(reader: Reader) -> None:
    """Another order is other positions and no other rows; what stays is not turned."""
    whole, turn = read(reader, IDS), reader.rotation(0, 256)
    first = len(reader.prompt.prefix)
    early, late = whole.cut(2, 8), whole.cut(15, 20)
    seen = SeenPassages([late, early], [whole], [late, early], [whole], [1, 0], first, 30)
    made = {row: arrangement.of(seen) for row, arrangement in positions.ARRANGEMENTS.items()}
    assert made["passages"].starts == [first + 15, first + 2]
    assert made["passages"].question == first + 30
    assert made["passages-near"].question == first + 20
    assert made["consecutive"].pieces == [early, late]
    assert made["consecutive"].starts == [first, first + 6]
    assert made["nearest"].pieces == [early, late]
    assert made["farthest"].starts == [first, first + 5]
    assert made["farthest"].question == first + 11
    assert made["passage"].pieces == [late]
    layers = list(memories(reader.prefix(), made["passages"], turn))
    k = torch.cat([reader.prefix()[0][0], late.rows[0][0], early.rows[0][0]], 1)
    torch.testing.assert_close(layers[0].k, k)


def test_a_run_asks_every_question_once_and_counts_against_the_first_row(
    model: Path, reader: Reader, tmp_path: Path
) -> None:
    (tmp_path / "log.txt").write_text(log(30), encoding="utf-8")
    asked = [Question(f"q{i}", "log.txt", f"What of day {i}?", "o") for i in (2, 17)]
    asked.append(Question("q3", "log.txt", "Zebras?", "o", kind="paraphrase"))
    setting = PositionSetting(samples=3, most=3, window=400)
    words = partial(tokenize, tokenizer=reader.tokenizer)
    run = partial(
        positions.measure, reader, asked, tmp_path, words, setting, tmp_path / "out", Silent()
    )
    report = run()
    valid("bench", report)
    assert set(report["rows"]) == set(positions.ARRANGEMENTS)
    for line in report["rows"].values():
        assert line["all"]["n"] == 3
        assert line["paraphrase"]["right"] == 0  # none of its words is in the book
        assert line["all"]["more"] == pytest.approx(
            (line["all"]["gained"] - line["all"]["lost"]) / 3
        )
    before = (tmp_path / "out" / "answers.jsonl").read_text(encoding="utf-8")
    assert run() == report
    assert (tmp_path / "out" / "answers.jsonl").read_text(encoding="utf-8") == before
    table = positions.markdown(report)
    assert all(f"| {row}: " in table for row in positions.ARRANGEMENTS)
    with pytest.raises(SekvError, match="no arrangement 'sideways'; known: passages,"):
        positions.measure(
            reader, asked, tmp_path, words, replace(setting, rows=("sideways",)),
            tmp_path / "other", Silent(),
        )  # fmt: skip
    with pytest.raises(SekvError, match="none of these questions"):
        positions.measure(
            reader, [replace(asked[0], kind="unanswerable", answer="")], tmp_path, words, setting,
            tmp_path / "other", Silent(),
        )  # fmt: skip
