"""A question that is read in chunks is the question; between chunks its reading can be stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.answer import checks
from engine.compression.methods import METHODS
from engine.compression.routers.question_blind import RetrievalHeads
from engine.errors import QuestionError, StoppedError
from engine.memory.retrieval import VOTED_WINDOWS
from engine.models import chunked
from engine.models.reader import Reader, load_reader
from engine.types import Answer, Turn
from tiny_books import log, read, session
from tiny_models import checkpoint

WITHOUT_HEADS = [n for n, m in METHODS.items() if not isinstance(m.router, RetrievalHeads)]
LONG = " ".join(f"How many whales were seen on day {day}?" for day in range(5))
TURNS = tuple(Turn(f"What of day {day}? {LONG}", f"Ship {day}.") for day in range(3))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "CHUNK_TOKENS", 16)


def answered(store: Path, reader: Reader, turns: Any = (), **options: Any) -> Answer:
    with session(store, reader, **options) as opened:
        return opened.ask(LONG, turns=turns)


@pytest.mark.parametrize("turns", [(), TURNS[:1]])
@pytest.mark.parametrize("widen", [1.0, 2.0])
def test_chunks_change_no_answer_where_everything_is_zoomed(
    store: Path,
    reader: Reader,
    monkeypatch: pytest.MonkeyPatch,
    turns: tuple[Turn, ...],
    widen: float,
) -> None:
    """The same tokens, citations and counts as when the question is read by one forward."""
    options: dict[str, Any] = {"full": True, "max_new_tokens": 12, "widen": widen}
    monkeypatch.setattr(chunked, "CHUNK_TOKENS", 10**6)
    whole = answered(store, reader, turns, **options)
    for size in (7, 16, whole.usage.question_tokens - 1, whole.usage.question_tokens):
        monkeypatch.setattr(chunked, "CHUNK_TOKENS", size)
        pieces = answered(store, reader, turns, **options)
        assert pieces.answer == whole.answer
        assert pieces.usage == whole.usage
        assert [(c.start, c.end) for c in pieces.citations] == [
            (c.start, c.end) for c in whole.citations
        ]


def test_logits_behind_chunks_are_those_behind_one_forward(
    store: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = reader.prompt.question(reader.tokenizer, LONG)
    found = []
    for size in (10**6, 16, 5):
        monkeypatch.setattr(chunked, "CHUNK_TOKENS", size)
        with torch.inference_mode(), session(store, reader, full=True) as opened:
            *_, last = chunked.read(reader.model, ids, opened.past.cache(), None)
            found.append(last.logits[0, -1])
    assert torch.allclose(found[0], found[1], atol=1e-4)
    assert torch.allclose(found[0], found[2], atol=1e-4)


@pytest.mark.parametrize("method", WITHOUT_HEADS)
def test_every_method_reads_a_question_in_chunks(
    method: str, model: Path, reader: Reader, tmp_path: Path, small: None
) -> None:
    """Trace and transcript see one question: step 0 leads to the first token."""
    made = read(tmp_path, model, log(5), reader=reader, method=method)
    with session(made, reader, trace=True, max_new_tokens=4) as opened:
        answer = opened.ask(LONG)
        trace = opened.trace()
    assert answer.usage.answer_tokens == 4
    assert answer.usage.recomputed_document_tokens == 0
    assert len(trace["said"]) == 4
    assert {move["step"] for move in trace["moves"]} <= {0, 1, 2, 3}


@pytest.mark.parametrize("turns", [(), TURNS])
def test_reading_stops_between_chunks(
    store: Path, reader: Reader, small: None, turns: tuple[Turn, ...]
) -> None:
    """Whoever asked is gone: of a question and of the turns before it at most one chunk is read."""
    whole = 0

    def never() -> bool:
        nonlocal whole
        whole += 1
        return False

    with session(store, reader, max_new_tokens=1) as opened:
        expected = opened.ask(LONG, turns=turns, stop=never)
    assert whole > len(LONG) / 16
    for after in {1, 2, whole // 2, whole}:
        asked = 0

        def stop(after: int = after) -> bool:
            nonlocal asked
            asked += 1
            return asked >= after

        with session(store, reader, max_new_tokens=1) as opened:
            with pytest.raises(StoppedError):
                opened.ask(LONG, turns=turns, stop=stop)
            assert asked == after
            again = opened.ask(LONG, turns=turns)
        assert again.answer == expected.answer
        assert again.usage == expected.usage


def test_a_vote_for_windows_stops_too(model: Path, tmp_path: Path, small: None) -> None:
    wordless = "Who was he and what did he do? " * 8
    place = checkpoint("llama", tmp_path / "model", max_position_embeddings=1024)
    reader = load_reader(str(place), device="cpu")
    made = read(tmp_path / "store", place, log(20), reader=reader, window=96)
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > 3

    with session(made, reader) as opened:
        assert len(opened.store.manifest.windows) > VOTED_WINDOWS
        with pytest.raises(StoppedError):
            opened.ask(wordless, stop=stop)
        assert opened.memory.shared.votes is None
        assert opened.ask(wordless).stats["windows_by"] == "attention"
    assert asked == 4


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ("w" * (checks.MOST_CHARS + 1), "ingest a long text as a document"),
        ("Who \ud800?", "is not UTF-8 text"),
        (" \n", "is empty"),
    ],
)
def test_what_is_no_question_is_refused_before_anything_is_read(
    question: str, said: str, store: Path, reader: Reader
) -> None:
    with session(store, reader) as opened, pytest.raises(QuestionError, match=said):
        opened.ask(question)
    with session(store, reader) as opened, pytest.raises(QuestionError, match="earlier message"):
        opened.ask("Who?", turns=[Turn("Who?", "\udcff")])
