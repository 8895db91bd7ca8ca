"""Retrieval heads: a head that looks at the needle while it is said is found, and only it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from engine.errors import TrainError
from engine.lab.train.heads import (
    Errors,
    HeadSetting,
    Needle,
    Scores,
    attention_rows,
    calibrate,
    hide,
)
from engine.models.compresskv_heads import Heads
from engine.models.reader import Reader
from engine.types import Silent
from json_schemas import valid
from sekv_cli.main import run
from tiny_books import log

SIZE, TOKENS, SAID = 8, 60, 5


def staged(looker: int) -> tuple[Needle, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Four query heads over two KV heads; one of them looks at tokens 20..24 while they are said,
    the others at the first token."""
    k = torch.zeros(2, TOKENS, SIZE)
    k[:, 20:25, 0], k[:, 0, 1] = 1.0, 1.0
    q = torch.zeros(4, TOKENS, SIZE)
    q[..., 1] = 40.0
    q[looker, :, :2] = torch.tensor([40.0, 0.0])
    v = torch.randn(2, TOKENS, SIZE, generator=torch.Generator().manual_seed(1))
    return Needle([0] * TOKENS, 20, 25, SAID), q, k, v


@pytest.mark.parametrize("looker", range(4))
def test_the_head_that_looks_at_the_needle_is_found(looker: int) -> None:
    needle, q, k, v = staged(looker)
    score = torch.zeros(1, 4)
    Scores(score, needle).observe(0, q, k, v)
    assert int(score[0].argmax()) == looker
    assert float(score[0, looker]) == pytest.approx(SAID, rel=1e-3)  # all mass, in every row
    others = [head for head in range(4) if head != looker]
    assert float(score[0, others].max()) < 0.01


def test_a_layer_that_needs_few_tokens_loses_nothing() -> None:
    """Its heads look at five tokens: kept by the right heads, lost by the wrong ones."""
    needle, q, k, v = staged(2)
    lost = {}
    for heads in ([[2, 0]], [[0]]):
        error = torch.zeros(1)
        Errors(error, needle, heads, rows=6).observe(0, q, k, v)
        lost[heads[0][0]] = float(error[0])
    assert lost[2] < 0.01
    assert lost[0] > 0.3
    error = torch.zeros(1)
    Errors(error, needle, [[0]], rows=TOKENS).observe(0, q, k, v)
    assert float(error[0]) == pytest.approx(0.0, abs=1e-4)


def test_rows_attend_to_what_was_before_them() -> None:
    q, k = torch.randn(4, 3, SIZE), torch.randn(2, 10, SIZE)
    share = attention_rows(q, k)
    assert torch.allclose(share.sum(-1), torch.ones(4, 3))
    assert float(share[:, 0, 8:].max()) == 0.0
    assert float(share[:, 2, 9].min()) > 0.0


def test_a_needle_stands_where_it_should_and_is_said_last(reader: Reader) -> None:
    from random import Random

    filler = reader.tokenizer.encode(log(30), add_special_tokens=False)
    needle = hide(reader, filler, 300, 0.5, Random(1))
    fact = reader.tokenizer.decode(needle.ids[needle.start : needle.end])
    assert fact.startswith(" The number on the ")
    assert needle.start == len(reader.prompt.prefix) + 150
    said = reader.tokenizer.decode(needle.ids[-needle.said + 1 :])
    assert fact.startswith(said)
    assert "Question: What is the number on the " in reader.tokenizer.decode(needle.ids)


def test_a_calibration_is_the_same_twice_and_comes_back(reader: Reader, tmp_path: Path) -> None:
    setting = HeadSetting(lengths=(64, 100_000), depths=(0.2, 0.8), each=1, heads=2, rows=8)
    made = calibrate(reader, log(30), setting, Silent())
    assert made == calibrate(reader, log(30), setting, Silent())
    made.save(tmp_path / "heads.json")
    assert Heads.load(tmp_path / "heads.json", reader.identity) == made
    assert made.made["lengths"] == [64]  # the model does not hold the other
    assert sum(made.layer_share) == pytest.approx(1.0, abs=1e-4)
    for heads, scores in zip(made.heads, made.scores, strict=True):
        assert heads == sorted(range(4), key=lambda head: -scores[head])[:1]


def test_too_little_text_is_one_line(reader: Reader) -> None:
    with pytest.raises(TrainError, match="10 tokens"):
        calibrate(reader, "ten tokens", HeadSetting(), Silent())


def test_the_command_writes_beside_the_model(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    books = tmp_path / "books"
    books.mkdir()
    (books / "log.txt").write_text(log(40))
    own = shutil.copytree(model, tmp_path / "model")
    line = ["train", "heads", "--text", str(books), "--model", str(own), "--needles", "1"]
    assert run([*line, "--device", "cpu", "--json"]) == 0
    printed = valid("train-heads", capsys.readouterr().out)
    assert printed["heads"] == str(own / "heads.json")
    assert json.loads((own / "heads.json").read_text())["format"] == "sekv-heads 1"
    assert run(["train", "heads", "--text", str(tmp_path / "none")]) == 2
    assert "there is no folder" in capsys.readouterr().err
