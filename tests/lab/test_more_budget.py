"""More budget is never worse: the real model on the sample book, every method that needs no file.

A rule that shared a budget between layers once starved the first ones, so that 20 % of the bytes
answered worse than 10 %. The tiny models of other tests have too few layers to show it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import pytest

from engine.documents.tokens import tokenize
from engine.lab.bench.fidelity import answers
from engine.lab.bench.fidelity.answers import Replies
from engine.lab.bench.questions import Excerpt, Excerpts, load_questions
from engine.models.locate import Located
from engine.models.reader import Reader, load_reader
from repository import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

BUDGETS = ("5%", "10%", "20%", "30%", "50%", "100%")
NOISE = 0.001
"""Nats that may lie between two budgets at which everything is zoomed."""


@pytest.fixture(scope="module")
def reader(smollm2: Located) -> Reader:
    return load_reader(smollm2, device="cpu")


@pytest.fixture(scope="module")
def excerpt(reader: Reader) -> Excerpt:
    """About 1,000 tokens of the book with three questions."""
    questions = load_questions(ROOT / "docs" / "questions" / "sample.jsonl")
    cut = partial(tokenize, tokenizer=reader.tokenizer)
    drawn = Excerpts(questions, ROOT / "docs" / "sample", cut, [1024])
    return next(one for one in drawn if len(one.questions) >= 3)


def asked(
    reader: Reader,
    excerpt: Excerpt,
    folder: Path,
    method: str,
    budgets: Sequence[str],
    truth: Replies | None = None,
) -> list[Replies]:
    """What a method's memory of the excerpt says at each budget, following the truth's words."""
    source = folder / "excerpt.txt"
    source.write_text(excerpt.text, encoding="utf-8")
    asking = answers.Asking("smollm2", source, excerpt.questions, most=0)
    return list(answers.asked(reader, asking, method, budgets, truth))


@pytest.fixture(scope="module")
def truth(reader: Reader, excerpt: Excerpt, tmp_path_factory: pytest.TempPathFactory) -> Replies:
    (replies,) = asked(reader, excerpt, tmp_path_factory.mktemp("full"), "full", ["100%"])
    return replies


@pytest.mark.parametrize("method", ["sekv", "sekv-paper", "sentencekv", "sentkvcompress"])
def test_the_next_token_moves_no_further_from_the_full_cache_s_with_more_budget(
    method: str, reader: Reader, excerpt: Excerpt, truth: Replies, tmp_path: Path
) -> None:
    moved = []
    for budget, replies in zip(
        BUDGETS, asked(reader, excerpt, tmp_path, method, BUDGETS, truth), strict=True
    ):
        counts = answers.counted(replies, truth, excerpt.questions, reader.dtype.itemsize)
        assert max(counts["resident"]) <= float(budget.rstrip("%")) / 100
        moved.append(fmean(counts["kl_nats"]))
    print(method, dict(zip(BUDGETS, moved, strict=True)))
    assert all(more <= less + NOISE for less, more in pairwise(moved))
    assert moved[-1] < 0.05
