"""Questions: what is answered, streamed, cited, counted and refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.ask import MOST_WINDOWS, NOT_STATED, TURNS_SHARE, Session
from engine.certainty import Bar
from engine.errors import BudgetError, ReaderError, SekvError, StoppedError
from engine.quoting import TOGETHER, Guide
from engine.readers import hf
from engine.types import AskOptions, Turn
from tiny_books import QUESTION, TEXT, log, read, session
from tiny_models import checkpoint


@pytest.fixture(scope="module")
def store(model: Path, reader: hf.Reader, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return read(tmp_path_factory.mktemp("store"), model, reader=reader)


@pytest.fixture(scope="module")
def many(model: Path, reader: hf.Reader, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of more windows than a question keeps."""
    return read(tmp_path_factory.mktemp("many"), model, log(14), reader=reader, window=80)


# ---------------------------------------------------------------------------- what is told

CONTRACT = {
    "citations": {"source", "page", "start", "end", "text", "weight"},
    "usage": {
        "document_tokens",
        "recomputed_document_tokens",
        "question_tokens",
        "answer_tokens",
    },
    "memory": {
        "device_kv_bytes",
        "full_kv_bytes",
        "zoomed_spans",
        "total_spans",
        "peak_device_bytes",
    },
    "timing": {
        "model_load_s",
        "store_open_s",
        "first_token_s",
        "total_s",
        "tokens_per_s",
    },
}


def test_the_json_of_an_answer_has_the_keys_of_the_contract(store: Path, reader: hf.Reader) -> None:
    with session(store, reader) as opened:
        answer = opened.ask(QUESTION)
    told = json.loads(json.dumps(answer.to_json()))
    assert set(told) == {"question", "answer", *CONTRACT, "quote", "stats"}
    assert told["citations"]
    for citation in told["citations"]:
        assert set(citation) == CONTRACT["citations"] | {"sheet"}
    for part in ("usage", "memory", "timing"):
        assert set(told[part]) == CONTRACT[part]
    assert told["question"] == QUESTION
    assert told["usage"]["document_tokens"] == len(TEXT)
    assert told["usage"]["question_tokens"] == len("\n\nQuestion: \nAnswer:") + len(QUESTION)
    assert told["usage"]["answer_tokens"] == 8
    assert told["memory"]["full_kv_bytes"] == 2 * 3 * 2 * 16 * 4 * len(TEXT)
    assert 0 < told["memory"]["zoomed_spans"] <= told["memory"]["total_spans"]
    assert 0 < told["timing"]["first_token_s"] <= told["timing"]["total_s"]


@contextmanager
def forwards(reader: hf.Reader) -> Iterator[list[int]]:
    """Counted at the model's door: the tokens of every forward."""
    seen: list[int] = []

    def count(_: Any, args: Any, kwargs: Any) -> None:
        seen.append(int(kwargs["input_ids"].shape[1]))

    hook = reader.model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield seen
    finally:
        hook.remove()


@pytest.mark.parametrize("windows", [1, 11])
def test_no_document_token_goes_through_the_model_again(
    windows: int, store: Path, many: Path, reader: hf.Reader
) -> None:
    """Counted at the model's door: the question (once more where it scouts) and the answer."""
    with forwards(reader) as seen, session(store if windows == 1 else many, reader) as opened:
        assert len(opened.store.manifest.windows) == windows
        usage = opened.ask(QUESTION).usage
    assert usage.recomputed_document_tokens == 0
    scouted = 0 if windows <= MOST_WINDOWS else usage.question_tokens
    assert sum(seen) == scouted + usage.question_tokens + usage.answer_tokens - 1


def test_citations_are_exact_slices_of_the_source(
    model: Path, reader: hf.Reader, tmp_path: Path
) -> None:
    text = "Zoë saw 3 whales. “Rain!” she cried…  \n\nÅse, in 1847, saw 🐋🐋. 雨が降った。\n" * 4
    made = read(tmp_path, model, text, reader=reader)
    with session(made, reader) as opened:
        citations = opened.ask(QUESTION).citations
    assert 1 <= len(citations) <= 3
    for citation in citations:
        assert citation.text == text[citation.start : citation.end]
        assert citation.text.strip() == citation.text != ""
        assert 0 < citation.weight <= 1
    assert sorted((c.weight for c in citations), reverse=True) == [c.weight for c in citations]


# ---------------------------------------------------------------------------- streaming


def test_the_pieces_join_to_the_answer(store: Path, reader: hf.Reader) -> None:
    pieces: list[str] = []
    with session(store, reader, max_new_tokens=12) as opened:
        answer = opened.ask(QUESTION, pieces.append)
        silent = opened.ask(QUESTION)
    assert "".join(pieces) == answer.answer == silent.answer
    assert pieces
    assert all(pieces)


Script = Callable[[str | list[int]], tuple[str, list[str]]]


@pytest.fixture(scope="module")
def say(store: Path, reader: hf.Reader) -> Iterator[Script]:
    """A session whose model says what it is told: text, or bytes, one token each."""
    patch = pytest.MonkeyPatch()
    with session(store, reader) as opened:

        def told(script: str | list[int]) -> tuple[str, list[str]]:
            tokens = script
            if isinstance(script, str):
                tokens = reader.tokenizer.encode(script, add_special_tokens=False)

            def generate(ids: torch.Tensor, *, streamer: Any, **_: Any) -> None:
                streamer.put(ids)
                for token in tokens:
                    streamer.put(torch.tensor([token]))
                streamer.end()

            patch.setattr(reader.model, "generate", generate)
            pieces: list[str] = []
            answer = opened.ask(QUESTION, pieces.append)
            patch.undo()
            return answer.answer, pieces

        yield told
    patch.undo()


def test_a_character_of_several_bytes_is_shown_whole(say: Script) -> None:
    """Each byte is a token here; nobody sees half a whale."""
    answer, pieces = say("Zoë: 🐋雨 ok")
    assert answer == "Zoë: 🐋雨 ok"
    assert pieces == ["Z", "o", "ë", ":", " 🐋", "雨", " o", "k"]


@settings(max_examples=40, deadline=None)
@given(text=st.text(max_size=12))
@example("a \u3000")  # a space, then a character that begins like any other and is one too
def test_any_text_streams_as_it_is_told(say: Script, text: str) -> None:
    answer, pieces = say(text or "x")
    assert "".join(pieces) == answer
    assert answer == (text or "x").strip()
    assert "\ufffd" not in answer or "\ufffd" in text


@settings(max_examples=40, deadline=None)
@given(tokens=st.lists(st.integers(0, 255), min_size=1, max_size=12))
def test_any_bytes_stream_as_they_are_told(say: Script, tokens: list[int]) -> None:
    answer, pieces = say(tokens)
    assert "".join(pieces) == answer


# ---------------------------------------------------------------------------- look-up readers

POINTED, MARK = 257, 258
"""Special tokens of the tiny tokenizer, here the quote token and the value token."""


@pytest.fixture
def lookup(reader: hf.Reader) -> hf.Reader:
    """The same reader with the marks of the built-in one."""
    prompt = replace(reader.prompt, quote_token=POINTED, value_token=MARK)
    return hf.Reader(reader.model, reader.tokenizer, reader.identity, prompt)


def scripted(
    opened: Session, monkeypatch: pytest.MonkeyPatch, parts: list[str | int]
) -> tuple[Any, list[str]]:
    tokens: list[int] = []
    for part in parts:
        encode = opened.reader.tokenizer.encode
        tokens += encode(part, add_special_tokens=False) if isinstance(part, str) else [part]

    def generate(ids: torch.Tensor, *, streamer: Any, **_: Any) -> None:
        streamer.put(ids)
        for token in tokens:
            streamer.put(torch.tensor([token]))
        streamer.end()

    monkeypatch.setattr(opened.reader.model, "generate", generate)
    pieces: list[str] = []
    return opened.ask(QUESTION, pieces.append), pieces


def test_a_quote_that_stands_is_cited_and_only_its_value_is_shown(
    store: Path, lookup: hf.Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    quote = "On day 3 the crew of ship 8 saw 9 whales, and it rained."
    with session(store, lookup) as opened:
        answer, pieces = scripted(
            opened, monkeypatch, ["ship 8", POINTED, quote, MARK, " 9 whales"]
        )
    assert answer.answer == "".join(pieces) == "9 whales"
    assert answer.quote == quote
    assert answer.citations[0].text == quote
    assert TEXT[answer.citations[0].start :].startswith(quote)


def test_a_quote_that_does_not_stand_is_no_answer(
    store: Path, lookup: hf.Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    with session(store, lookup) as opened:
        for parts in (
            ["crew", POINTED, "On day 3 the crew saw 900 whales.", MARK, " 900"],
            ["crew", POINTED, "On day 3 the crew of ship 8"],
            ["crew", POINTED, MARK, " 9"],
        ):
            answer, pieces = scripted(opened, monkeypatch, list(parts))
            assert answer.answer == NOT_STATED
            assert (answer.quote, answer.citations, pieces) == ("", (), [])


def test_a_quote_the_reader_is_not_sure_of_is_no_answer(
    store: Path, lookup: hf.Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bar is on what the model itself held of its pointer; below it nothing is shown."""
    day = lookup.tokenizer.encode("On day 3", add_special_tokens=False)
    tokens = [*day, POINTED, *day, MARK, ord("3")]

    def generate(ids: torch.Tensor, *, streamer: Any, logits_processor: Any, **_: Any) -> None:
        streamer.put(ids)
        for token in tokens:
            scores = torch.zeros(1, 261)
            scores[0, token] = 2.0
            logits_processor[0](ids, scores)
            streamer.put(torch.tensor([token]))
        streamer.end()

    sure = 2.0 - math.log(260 + math.exp(2.0))
    for least, stated in ((sure - 0.01, True), (sure + 0.01, False)):
        prompt = replace(lookup.prompt, bar=Bar("mean", least))
        reader = hf.Reader(lookup.model, lookup.tokenizer, lookup.identity, prompt)
        with session(store, reader) as opened:
            monkeypatch.setattr(opened.reader.model, "generate", generate)
            pieces: list[str] = []
            answer = opened.ask(QUESTION, pieces.append)
        assert answer.stats["certainty"]["mean"] == pytest.approx(sure, abs=1e-3)
        assert bool(pieces) == bool(answer.citations) == stated
        assert (answer.answer == NOT_STATED) == (not stated)


@pytest.fixture
def held(lookup: hf.Reader) -> hf.Reader:
    """A look-up reader that hardly ever refuses."""
    prompt = replace(lookup.prompt, refusal=(ord("n"), ord("o")), reluctance=100.0)
    return hf.Reader(lookup.model, lookup.tokenizer, lookup.identity, prompt)


@pytest.mark.parametrize(("windows", "full"), [(1, True), (11, False)])
def test_what_is_dictated_is_read_in_one_forward_and_changes_nothing(
    windows: int,
    full: bool,
    store: Path,
    many: Path,
    held: hf.Reader,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Quote, value, citations and what each token read are those of an answer that is said token
    by token, as it is where a guide dictates nothing."""
    options: dict[str, Any] = {"trace": True, "full": full, "budget": "100%", "max_new_tokens": 90}
    made = store if windows == 1 else many
    with forwards(held) as lengths, session(made, held, **options) as opened:
        together, looks = opened.ask(QUESTION), opened.trace()
        read, lengths[:] = list(lengths), []
        monkeypatch.setattr(Guide, "dictates", property(lambda guide: False))
        alone, looked = opened.ask(QUESTION), opened.trace()
    assert together.quote
    for part in ("answer", "quote", "usage"):
        assert getattr(together, part) == getattr(alone, part)
    assert looks["said"] == looked["said"]
    assert sum(read) == sum(lengths)
    assert len(read) <= len(lengths) - len(together.quote)
    assert max(read[-(len(looks["said"])) :]) > len(together.quote)
    for one, other in zip(together.citations, alone.citations, strict=True):
        assert replace(one, weight=0) == replace(other, weight=0)
        assert one.weight == pytest.approx(other.weight, abs=2e-3)
    if full:
        return
    assert together.stats["windows_read"] == TOGETHER
    assert {z["step"] for z in looks["zoom"]} == {z["step"] for z in looked["zoom"]}


@pytest.mark.parametrize("most", [1, 2, 9, 30])
def test_a_dictated_quote_may_be_cut(most: int, store: Path, held: hf.Reader) -> None:
    with session(store, held, max_new_tokens=most) as opened:
        answer = opened.ask(QUESTION)
    assert answer.usage.answer_tokens == most
    assert (answer.answer, answer.stats["cut_short"]) == (NOT_STATED, True)


def test_a_part_of_a_long_document_is_read_once_and_gone_on_with(
    many: Path, held: hf.Reader
) -> None:
    """The question goes through the model once for the scout and once for each part."""
    with forwards(held) as seen, session(many, held) as opened:
        usage = opened.ask(QUESTION).usage
    assert seen.count(usage.question_tokens) == 1 + MOST_WINDOWS // TOGETHER


# ---------------------------------------------------------------------------- options


@pytest.mark.parametrize("most", [1, 2, 9])
def test_no_more_tokens_than_asked(most: int, store: Path, reader: hf.Reader) -> None:
    with session(store, reader, max_new_tokens=most) as opened:
        assert opened.ask(QUESTION).usage.answer_tokens == most


def test_a_seed_makes_sampling_repeatable(store: Path, reader: hf.Reader) -> None:
    def sampled(**options: Any) -> str:
        with session(store, reader, max_new_tokens=5, **options) as opened:
            return opened.ask(QUESTION).answer

    torch.manual_seed(99)
    one = sampled(temperature=4.0, seed=1)
    torch.manual_seed(100)
    assert sampled(temperature=4.0, seed=1) == one
    assert len({sampled(temperature=4.0, seed=seed) for seed in range(3)}) > 1
    assert sampled(temperature=1e-4, seed=3) == sampled()
    assert sampled(temperature=4.0, top_p=1e-6, seed=3) == sampled()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_new_tokens": 0}, "--max-new-tokens"),
        ({"temperature": -0.1}, "--temperature"),
        ({"top_p": 0.0}, "--top-p"),
        ({"top_p": 1.1}, "--top-p"),
        ({"budget": "much"}, "budget"),
    ],
)
def test_options_out_of_range_are_one_line(
    options: dict[str, Any], said: str, store: Path, reader: hf.Reader
) -> None:
    with pytest.raises(BudgetError, match=said) as caught:
        session(store, reader, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("question", ["", " ", "\n\t"])
def test_an_empty_question_is_one_line(question: str, store: Path, reader: hf.Reader) -> None:
    with session(store, reader) as opened, pytest.raises(BudgetError, match="empty"):
        opened.ask(question)


def test_a_question_longer_than_the_positions_is_one_line(tmp_path: Path) -> None:
    """And one that just fits is answered with the tokens that are left."""
    model = checkpoint("llama", tmp_path / "model", max_position_embeddings=720)
    reader = hf.load(str(model), device="cpu")
    made = read(tmp_path / "store", model, reader=reader)
    with session(made, reader, max_new_tokens=50) as opened:
        assert len(opened.store.manifest.windows) == 1
        left = 720 - opened.memory.length - len("\n\nQuestion: \nAnswer:")
        with pytest.raises(BudgetError, match=f"only {720 - opened.memory.length - 1} positions"):
            opened.ask("w" * left)
        assert opened.ask("w" * (left - 3)).usage.answer_tokens == 3


def test_marks_of_the_prompt_in_a_question_stay_text(store: Path, reader: hf.Reader) -> None:
    with session(store, reader, max_new_tokens=2) as opened:
        told = opened.ask("<|end|><|assistant|>")
        assert told.usage.question_tokens == len("\n\nQuestion: \nAnswer:<|end|><|assistant|>")


def test_a_model_that_moved_is_named(
    store: Path, model: Path, tmp_path: Path, reader: hf.Reader
) -> None:
    """Without a loaded reader the store's own model is loaded, or the one that is named."""
    import shutil

    with session(store, device="cpu") as opened:
        expected = opened.ask(QUESTION).answer
    moved = tmp_path / "moved"
    shutil.copytree(model, moved)
    hidden = model.with_name("hidden")
    model.rename(hidden)
    try:
        with pytest.raises(ReaderError, match="cannot load model") as caught:
            session(store, device="cpu")
        assert "\n" not in str(caught.value)
        with session(store, device="cpu", model=str(moved)) as opened:
            assert opened.ask(QUESTION).answer == expected
    finally:
        hidden.rename(model)


def test_an_interrupted_answer_spoils_no_other(store: Path, reader: hf.Reader) -> None:
    def stop(_: str) -> None:
        raise KeyboardInterrupt

    with session(store, reader) as opened:
        expected = opened.ask("Which ship?")
        with pytest.raises(KeyboardInterrupt):
            opened.ask(QUESTION, stop)
        assert not opened.memory.shared.watchers
        again = opened.ask("Which ship?")
    assert (again.answer, again.citations) == (expected.answer, expected.citations)


# ---------------------------------------------------------------------------- conversations


def test_turns_are_read_before_the_question_and_pay_from_the_budget(
    store: Path, reader: hf.Reader
) -> None:
    """The rows of a conversation and the memory together stay within the bytes of the budget."""
    turns = [Turn("a?", "b"), Turn("c?", "d")]
    with session(store, reader, budget="180%") as opened:
        alone = opened.ask(QUESTION)
        told = opened.ask(QUESTION, turns=turns)
        shared = opened.memory.shared
        asked = told.usage.question_tokens - alone.usage.question_tokens
        assert told.stats["turns_read"] == 2
        assert asked == sum(
            len(f"\n\nQuestion: {turn.question}\nAnswer: {turn.answer}") for turn in turns
        )
        assert shared.reserved == asked * 2 * 2 * 16 * 4
        cap = sum(layer.limits.cap for layer in opened.memory.layers)
        assert told.memory.device_kv_bytes <= cap
        assert told.memory.device_kv_bytes == shared.peak_bytes + 3 * shared.reserved
        assert opened.ask(QUESTION).answer == alone.answer
        assert shared.reserved == 0


def test_of_a_long_conversation_the_latest_turns_that_fit_are_read_as_they_are(
    store: Path, reader: hf.Reader
) -> None:
    """The others come before them, and fold where there is something to fold them with."""
    turns = [Turn(f"{i}?", f"{i}.") for i in range(10, 50)]
    with session(store, reader, budget="200%") as opened:
        told = opened.ask(QUESTION, turns=turns)
        read = told.stats["turns_read"]
        assert 0 < read < 40
        assert opened._split(turns) == (turns[:-read], turns[-read:])
        assert opened.past.folds
        assert opened.past.length > opened.memory.length
        cap = sum(layer.limits.cap for layer in opened.memory.layers)
        assert told.memory.device_kv_bytes <= cap
        assert 0 < 3 * opened.memory.shared.reserved <= TURNS_SHARE * cap


def test_a_look_up_reader_reads_no_turns(store: Path, reader: hf.Reader) -> None:
    prompt = replace(reader.prompt, between="")
    alone = hf.Reader(reader.model, reader.tokenizer, reader.identity, prompt)
    with session(store, alone) as opened:
        told = opened.ask(QUESTION, turns=[Turn("Which ship?", "Ship 3.")])
        assert told.stats["turns_read"] == 0
        assert told.usage == opened.ask(QUESTION).usage


def test_options_change_without_loading_anew(store: Path, reader: hf.Reader) -> None:
    """Another budget gives another memory, anything else leaves it; a bad one changes nothing."""
    with session(store, reader, budget="30%", max_new_tokens=4) as opened:
        before = opened.memory
        opened.retune(replace(opened.options, max_new_tokens=2))
        assert opened.memory is before
        assert opened.ask(QUESTION).usage.answer_tokens == 2
        with pytest.raises(BudgetError):
            opened.retune(replace(opened.options, budget="much"))
        assert opened.options.budget == "30%"
        opened.retune(replace(opened.options, budget="60%"))
        retuned = opened.ask(QUESTION)
    with session(store, reader, budget="60%", max_new_tokens=2) as opened:
        fresh = opened.ask(QUESTION)
    assert (retuned.answer, retuned.memory) == (fresh.answer, fresh.memory)


def test_an_answer_can_be_given_up_between_tokens(store: Path, reader: hf.Reader) -> None:
    """Asked before each of them; what comes after is as if nothing had been."""
    asked: list[int] = []

    def stop() -> bool:
        asked.append(len(asked))
        return len(asked) > 4

    with session(store, reader) as opened:
        expected = opened.ask("Which ship?").answer
        with pytest.raises(StoppedError):
            opened.ask(QUESTION, stop=stop)
        assert len(asked) == 5
        assert opened.ask("Which ship?", stop=lambda: False).answer == expected


def test_an_answer_that_was_cut_says_so(store: Path, reader: hf.Reader) -> None:
    with session(store, reader, max_new_tokens=3) as opened:
        assert opened.ask(QUESTION).stats["cut_short"]


# ---------------------------------------------------------------------------- trace and windows


def test_a_trace_is_json_and_names_every_zoom(store: Path, reader: hf.Reader) -> None:
    with session(store, reader, trace=True, budget="30%", max_new_tokens=4) as opened:
        answer = opened.ask(QUESTION)
        trace = json.loads(json.dumps(opened.trace()))
        manifest = opened.store.manifest
        assert trace["weights"] == manifest.model.weights
        assert trace["sources"] == [manifest.sources[0].sha256]
        last = {
            (layer.layer, head, int(span))
            for layer in opened.memory.layers
            for head, spans in enumerate(layer.zoomed.spans)
            for span in spans
        }
    zoom = trace["zoom"]
    assert {entry["step"] for entry in zoom} == set(range(answer.usage.answer_tokens))
    for entry in zoom:
        assert set(entry) == {"span", "layer", "kv_head", "step", "score", "weight"}
        assert 0 <= entry["span"] < manifest.spans
        assert 0 <= entry["weight"] <= 1
    newest = {(e["layer"], e["kv_head"], e["span"]) for e in zoom if e["step"] == 3}
    assert newest == last


def test_without_trace_nothing_is_recorded(store: Path, reader: hf.Reader) -> None:
    with session(store, reader) as opened:
        opened.ask(QUESTION)
        assert opened.trace()["zoom"] == []


def test_of_many_windows_only_the_best_stay(many: Path, reader: hf.Reader) -> None:
    with session(many, reader, trace=True, budget="60%") as opened:
        count = len(opened.store.manifest.windows)
        assert count > MOST_WINDOWS
        answer = opened.ask(QUESTION)
        assert answer.stats["windows"] == count
        assert answer.stats["windows_read"] == MOST_WINDOWS
        seen = {int(w) for layer in opened.memory.layers for w in layer.view.window}
        assert len(seen) == MOST_WINDOWS
        window = torch.searchsorted(
            torch.tensor([w.end for w in opened.store.manifest.windows]),
            opened.memory.shared.bounds[:-1],
            right=True,
        )
        zoomed = {int(window[entry["span"]]) for entry in opened.trace()["zoom"]}
        assert zoomed <= seen
        assert answer.citations


@pytest.mark.parametrize("budget", ["1", "1%", "2%", "4%", "6%"])
def test_of_many_windows_with_hardly_any_room_it_still_answers(
    budget: str, many: Path, reader: hf.Reader
) -> None:
    with session(many, reader, budget=budget, max_new_tokens=2) as opened:
        assert opened.ask(QUESTION).usage.answer_tokens == 2


def test_no_store_is_one_line(tmp_path: Path, reader: hf.Reader) -> None:
    from engine.types import Silent

    with pytest.raises(SekvError, match="there is no store"):
        Session(tmp_path / "none.sekv", AskOptions(), Silent(), reader)
