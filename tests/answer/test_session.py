"""Questions: what is answered, streamed, cited, counted and refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.answer import support
from engine.answer.repetition import LOOP_TIMES
from engine.answer.session import TURNS_SHARE, Session
from engine.errors import BudgetError, ReaderError, SekvError, StoppedError
from engine.memory.retrieval import PASSAGES_SEEN, VOTED_WINDOWS
from engine.models import evidence_heads
from engine.models.prompt import PLAIN_CUE
from engine.models.reader import Reader, load_reader
from engine.types import Answer, AskOptions, Turn
from fake_model import scripted
from tiny_books import QUESTION, TEXT, log, read, session
from tiny_models import checkpoint

WORDLESS = "Who was he and what did he do?"
"""A question without a word to look for."""

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
        "working_bytes",
        "budget_tokens",
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

ADDED = {"supported", "support", "thinking", "retrieval", "store"}


def test_the_json_of_an_answer_has_the_keys_of_the_contract(store: Path, reader: Reader) -> None:
    with session(store, reader) as opened:
        answer = opened.ask(QUESTION)
    reply = json.loads(json.dumps(answer.to_json()))
    assert set(reply) == {"question", "answer", *CONTRACT, *ADDED, "stats"}
    assert reply["citations"]
    for citation in reply["citations"]:
        assert set(citation) == CONTRACT["citations"] | {"sheet", "store", "printed"}
    for part in ("usage", "memory", "timing"):
        assert set(reply[part]) == CONTRACT[part]
    assert reply["question"] == QUESTION
    assert reply["usage"]["document_tokens"] == len(TEXT)
    assert reply["usage"]["question_tokens"] == len(f"\n\nQuestion: {PLAIN_CUE}") + len(QUESTION)
    assert reply["usage"]["answer_tokens"] == 8
    assert reply["memory"]["full_kv_bytes"] == 2 * 3 * 2 * 16 * 4 * len(TEXT)
    assert 0 < reply["memory"]["zoomed_spans"] <= reply["memory"]["total_spans"]
    assert 0 < reply["timing"]["first_token_s"] <= reply["timing"]["total_s"]


@contextmanager
def forwards(reader: Reader) -> Iterator[list[int]]:
    """Counted at the model's door: the tokens of every forward."""
    seen: list[int] = []

    def count(_: Any, args: Any, kwargs: Any) -> None:
        seen.append(int(kwargs["input_ids"].shape[1]))

    hook = reader.model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield seen
    finally:
        hook.remove()


@pytest.mark.parametrize(
    ("windows", "question", "times"), [(1, QUESTION, 1), (11, QUESTION, 1), (11, WORDLESS, 2)]
)
def test_no_document_token_goes_through_the_model_again(
    windows: int, question: str, times: int, store: Path, many: Path, reader: Reader
) -> None:
    """Counted at the model's door: the question (once more where it votes) and the answer."""
    with forwards(reader) as seen, session(store if windows == 1 else many, reader) as opened:
        assert len(opened.store.manifest.windows) == windows
        usage = opened.ask(question).usage
    assert usage.recomputed_document_tokens == 0
    assert sum(seen) == times * usage.question_tokens + usage.answer_tokens - 1


def test_citations_are_exact_slices_of_the_source(
    model: Path, reader: Reader, tmp_path: Path
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


def test_the_pieces_join_to_the_answer(store: Path, reader: Reader) -> None:
    pieces: list[str] = []
    with session(store, reader, max_new_tokens=12) as opened:
        answer = opened.ask(QUESTION, pieces.append)
        silent = opened.ask(QUESTION)
    assert "".join(pieces) == answer.answer == silent.answer
    assert pieces
    assert all(pieces)


Script = Callable[[str | list[int]], tuple[Answer, list[str]]]


@pytest.fixture(scope="module")
def say(store: Path, reader: Reader) -> Iterator[Script]:
    """A session whose model says what it is told: text, or bytes, one token each; then its end."""
    with session(store, reader, max_new_tokens=400) as opened, scripted(reader) as queue:

        def reply(script: str | list[int]) -> tuple[Answer, list[str]]:
            tokens = script
            if isinstance(script, str):
                tokens = reader.tokenizer.encode(script, add_special_tokens=False)
            queue.extend(tokens)
            pieces: list[str] = []
            opened.retune(replace(opened.options, max_new_tokens=len(tokens)))
            answer = opened.ask(QUESTION, pieces.append)
            queue.clear()
            return answer, pieces

        yield reply


def test_a_character_of_several_bytes_is_shown_whole(say: Script) -> None:
    """Each byte is a token here; nobody sees half a whale."""
    answer, pieces = say("Zoë: 🐋雨 ok")
    assert answer.answer == "Zoë: 🐋雨 ok"
    assert pieces == ["Z", "o", "ë", ":", " 🐋", "雨", " o", "k"]


@settings(max_examples=40)
@given(text=st.text(max_size=12))
@example("a \u3000")  # a space, then a character that begins like any other and is one too
def test_any_text_streams_as_it_is_told(say: Script, text: str) -> None:
    answer, pieces = say(text or "x")
    assert "".join(pieces) == answer.answer
    assert answer.answer == (text or "x").strip()
    assert "\ufffd" not in answer.answer or "\ufffd" in text


@settings(max_examples=40)
@given(tokens=st.lists(st.integers(0, 255), min_size=1, max_size=12))
def test_any_bytes_stream_as_they_are_told(say: Script, tokens: list[int]) -> None:
    answer, pieces = say(tokens)
    assert "".join(pieces) == answer.answer


@pytest.mark.parametrize(
    ("said", "answer", "thinking"),
    [
        ("<think>\nDay 4, I see.\n</think>\n\nSixteen whales.", "Sixteen whales.", "Day 4, I see."),
        ("<think>\n\n</think>\n\nSixteen", "Sixteen", ""),
        ("<think>It says", "", "It says"),
        ("[THINK]Hm.[/THINK]Sixteen", "Sixteen", "Hm."),
        ("<think>a</think><think>b</think> c", "c", "a\n\nb"),
        ("They saw <think>x</think> whales", "They saw <think>x</think> whales", ""),
        ("<3 of them", "<3 of them", ""),
        ("<", "<", ""),
    ],
)
def test_thinking_is_kept_apart_and_never_shown(
    said: str, answer: str, thinking: str, say: Script
) -> None:
    reply, pieces = say(said)
    assert (reply.answer, reply.thinking) == (answer, thinking)
    assert "".join(pieces) == answer
    assert reply.to_json()["thinking"] == thinking


def test_a_prompt_that_opens_the_thinking_is_closed_by_the_model(
    store: Path, reader: Reader
) -> None:
    prompt = replace(reader.prompt, after=f"{reader.prompt.after}<think>\n")
    thinker = Reader(reader.model, reader.tokenizer, reader.identity, prompt, reader.located)
    pieces: list[str] = []
    said = "Hm.</think>Two"
    with session(store, thinker, max_new_tokens=len(said)) as opened, scripted(reader) as queue:
        queue.extend(reader.tokenizer.encode(said, add_special_tokens=False))
        reply = opened.ask(QUESTION, pieces.append)
    assert (reply.answer, reply.thinking, "".join(pieces)) == ("Two", "Hm.", "Two")


def test_a_plain_answer_ends_where_another_question_begins(say: Script) -> None:
    """What a model without a template goes on with is no part of its answer."""
    reply, pieces = say("Sixteen.\n\nQuestion: Which ship?\nAnswer: 7")
    assert reply.answer == "".join(pieces) == "Sixteen."
    assert reply.usage.answer_tokens == len("Sixteen.\n\nQuestion:")
    assert not reply.cut_short


def test_an_answer_ends_with_the_mark_of_its_template(store: Path, reader: Reader) -> None:
    """Also where the model's own settings know no such token."""
    end = reader.tokenizer.eos_token_id
    assert reader.model.generation_config.eos_token_id is None
    ended = Reader(
        reader.model,
        reader.tokenizer,
        reader.identity,
        replace(reader.prompt, ends=(end,)),
        reader.located,
    )
    with session(store, ended, max_new_tokens=9) as opened, scripted(reader) as queue:
        queue.extend([*reader.tokenizer.encode("16", add_special_tokens=False), end])
        reply = opened.ask(QUESTION)
    assert (reply.answer, reply.usage.answer_tokens, reply.cut_short) == ("16", 3, False)


def test_an_answer_that_only_repeats_itself_is_over(say: Script) -> None:
    """And says what it repeats once."""
    reply, _ = say("I see it," + " and a day" * 9)
    assert reply.answer == "I see it, and a day"
    assert reply.usage.answer_tokens == len("I see it," + " and a day" * LOOP_TIMES)
    assert not reply.cut_short
    counted, _ = say("aaa bbb ababab 1000")
    assert counted.answer == "aaa bbb ababab 1000"
    sentence = " The graph has 0.4M edges."
    again, _ = say("It is large." + sentence * 5)
    assert again.answer == "It is large. The graph has 0.4M edges."
    assert again.usage.answer_tokens == len("It is large." + sentence * 2) - 1


# ---------------------------------------------------------------------------- support


@pytest.fixture
def ended(store: Path, reader: Reader) -> Reader:
    """The reader, with a token that ends its answers."""
    ends = (reader.tokenizer.eos_token_id,)
    return Reader(
        reader.model,
        reader.tokenizer,
        reader.identity,
        replace(reader.prompt, ends=ends),
        reader.located,
    )


def test_a_model_that_says_itself_that_nothing_is_stated_is_believed(
    store: Path, ended: Reader
) -> None:
    said = ended.tokenizer.encode("The document does not say.", add_special_tokens=False)
    with session(store, ended, max_new_tokens=60) as opened, scripted(ended) as queue:
        queue.extend([*said, ended.prompt.ends[0]])
        reply = opened.ask(QUESTION)
        assert (reply.supported, reply.support) == (False, 0.0)
        assert reply.answer == "The document does not say."
        assert reply.shown == reply.stated == "not stated in the document"
        queue.extend([ended.prompt.ends[0]])
        assert opened.ask(QUESTION).shown == "not stated in the document"


@pytest.mark.parametrize("most", [1, 5, 25])
def test_a_cut_answer_claims_nothing_of_the_document(most: int, store: Path, ended: Reader) -> None:
    said = ended.tokenizer.encode("The document does not say.", add_special_tokens=False)
    with session(store, ended, max_new_tokens=most) as opened, scripted(ended) as queue:
        queue.extend(said)
        reply = opened.ask(QUESTION)
    assert reply.cut_short
    assert reply.supported
    assert reply.shown == f"{reply.answer} (cut short)"
    assert "not stated" not in reply.shown


def test_without_measured_heads_an_answer_is_not_denied(store: Path, ended: Reader) -> None:
    said = ended.tokenizer.encode("Nine zebras.", add_special_tokens=False)
    with session(store, ended, max_new_tokens=60) as opened, scripted(ended) as queue:
        queue.extend([*said, ended.prompt.ends[0]])
        reply = opened.ask(QUESTION)
    assert reply.supported
    assert reply.support < 0.5


def test_with_measured_heads_an_answer_that_nothing_carries_is_denied(
    store: Path, ended: Reader, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With a bar for words alone: a random model's heads find everything everywhere."""
    monkeypatch.setenv("SEKV_CACHE", str(tmp_path))
    bar = support.Calibration(bias=-2.0, slopes=(4.0, 0.0), least=0.5)
    monkeypatch.setattr("engine.answer.session.CALIBRATED", bar)
    identity = ended.identity
    table = [[0.5] * identity.heads for _ in range(identity.layers)]
    path = evidence_heads.cached(identity)
    path.parent.mkdir(parents=True)
    evidence_heads.EvidenceHeads("tiny", [identity.weights], table).save(path)
    with session(store, ended, max_new_tokens=90, full=True) as opened, scripted(ended) as queue:

        def reply(said: str) -> Answer:
            ids = ended.tokenizer.encode(said, add_special_tokens=False)
            queue.extend([*ids, ended.prompt.ends[0]])
            return opened.ask(QUESTION)

        made_up = reply("Nine zebras of Zanzibar.")
        stated = reply("The crew of a ship saw them on a day, and it rained.")
    assert 0 < made_up.support < 0.5 < stated.support < 1
    assert (made_up.supported, stated.supported) == (False, True)
    assert made_up.to_json()["answer"] == "Nine zebras of Zanzibar."


# ---------------------------------------------------------------------------- options


@pytest.mark.parametrize("most", [1, 2, 9])
def test_no_more_tokens_than_asked(most: int, store: Path, reader: Reader) -> None:
    with session(store, reader, max_new_tokens=most) as opened:
        assert opened.ask(QUESTION).usage.answer_tokens == most


def test_a_seed_makes_sampling_repeatable(store: Path, reader: Reader) -> None:
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


def test_sampling_leaves_the_callers_random_numbers_alone(store: Path, reader: Reader) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    with session(store, reader, max_new_tokens=3, temperature=1.0, seed=1) as opened:
        opened.ask(QUESTION)
    assert torch.equal(torch.rand(3), expected)


def test_the_pace_is_that_of_the_tokens_after_the_first(
    store: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    with session(store, reader, max_new_tokens=1) as opened:
        assert opened.ask(QUESTION).timing["tokens_per_s"] == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"budget": "much"}, "budget"),
    ],
)
def test_options_out_of_range_are_one_line(
    options: dict[str, Any], said: str, store: Path, reader: Reader
) -> None:
    with pytest.raises(BudgetError, match=said) as caught:
        session(store, reader, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("question", ["", " ", "\n\t"])
def test_an_empty_question_is_one_line(question: str, store: Path, reader: Reader) -> None:
    with session(store, reader) as opened, pytest.raises(BudgetError, match="empty"):
        opened.ask(question)


def test_a_question_longer_than_the_positions_is_one_line(tmp_path: Path) -> None:
    """And one that just fits is answered with the tokens that are left."""
    model = checkpoint("llama", tmp_path / "model", max_position_embeddings=720)
    reader = load_reader(str(model), device="cpu")
    made = read(tmp_path / "store", model, reader=reader)
    with session(made, reader, max_new_tokens=50) as opened:
        assert len(opened.store.manifest.windows) == 1
        left = 720 - opened.memory.length - len(f"\n\nQuestion: {PLAIN_CUE}")
        with pytest.raises(BudgetError, match=f"only {720 - opened.memory.length - 1} positions"):
            opened.ask("w" * left)
        assert opened.ask("w" * (left - 3)).usage.answer_tokens == 3


def test_marks_of_the_prompt_in_a_question_stay_text(store: Path, reader: Reader) -> None:
    with session(store, reader, max_new_tokens=2) as opened:
        reply = opened.ask("<|end|><|assistant|>")
        assert reply.usage.question_tokens == len(f"\n\nQuestion: {PLAIN_CUE}<|end|><|assistant|>")


def test_a_model_that_moved_is_named(
    store: Path, model: Path, tmp_path: Path, reader: Reader
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
        with pytest.raises(ReaderError, match="no such folder") as caught:
            session(store, device="cpu")
        assert "\n" not in str(caught.value)
        with session(store, device="cpu", model=str(moved)) as opened:
            assert opened.ask(QUESTION).answer == expected
    finally:
        hidden.rename(model)


def test_an_interrupted_answer_spoils_no_other(store: Path, reader: Reader) -> None:
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
    store: Path, reader: Reader
) -> None:
    """The rows of a conversation and the memory together stay within the bytes of the budget."""
    turns = [Turn("a?", "b"), Turn("c?", "d")]
    with session(store, reader, budget="400%") as opened:
        alone = opened.ask(QUESTION)
        reply = opened.ask(QUESTION, turns=turns)
        shared = opened.memory.shared
        asked = reply.usage.question_tokens - alone.usage.question_tokens
        assert reply.stats["turns_read"] == 2
        assert asked == sum(
            len(f"\n\nQuestion: {turn.question}{PLAIN_CUE} {turn.answer}") for turn in turns
        )
        assert shared.reserved == asked * 2 * 2 * 16 * 4
        cap = sum(layer.limits.cap for layer in opened.memory.layers)
        assert reply.memory.device_kv_bytes <= cap
        assert reply.memory.device_kv_bytes == shared.peak_bytes + 3 * shared.reserved
        assert opened.ask(QUESTION).answer == alone.answer
        assert shared.reserved == 0


def test_of_a_long_conversation_the_latest_turns_that_fit_are_read_as_they_are(
    store: Path, reader: Reader
) -> None:
    """The others come before them, and are compressed where the method can."""
    turns = [Turn(f"{i}?", f"{i}.") for i in range(10, 50)]
    with session(store, reader, budget="400%") as opened:
        reply = opened.ask(QUESTION, turns=turns)
        read = reply.stats["turns_read"]
        assert 0 < read < 40
        assert opened._split(turns) == (turns[:-read], turns[-read:])
        assert opened.past.compresses
        assert opened.past.length > opened.memory.length
        cap = sum(layer.limits.cap for layer in opened.memory.layers)
        assert reply.memory.device_kv_bytes <= cap
        assert 0 < 3 * opened.memory.shared.reserved <= TURNS_SHARE * cap


def test_a_prompt_for_one_question_reads_no_turns(store: Path, reader: Reader) -> None:
    prompt = replace(reader.prompt, between="")
    alone = Reader(reader.model, reader.tokenizer, reader.identity, prompt, reader.located)
    with session(store, alone) as opened:
        reply = opened.ask(QUESTION, turns=[Turn("Which ship?", "Ship 3.")])
        assert reply.stats["turns_read"] == 0
        assert reply.usage == opened.ask(QUESTION).usage


def test_options_change_without_loading_anew(store: Path, reader: Reader) -> None:
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


def test_an_answer_can_be_given_up_between_tokens(store: Path, reader: Reader) -> None:
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


def test_an_answer_that_was_cut_says_so(store: Path, reader: Reader) -> None:
    with session(store, reader, max_new_tokens=3) as opened:
        assert opened.ask(QUESTION).stats["cut_short"]


# ---------------------------------------------------------------------------- trace and windows


def test_a_trace_is_json_and_names_every_zoom(store: Path, reader: Reader) -> None:
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


def test_without_trace_nothing_is_recorded(store: Path, reader: Reader) -> None:
    with session(store, reader) as opened:
        opened.ask(QUESTION)
        assert opened.trace()["zoom"] == []


@pytest.mark.parametrize(("method", "full"), [("sekv", False), ("sekv", True), ("full", False)])
def test_of_many_windows_the_passages_with_the_words_of_the_question_are_seen(
    method: str, full: bool, model: Path, reader: Reader, tmp_path: Path
) -> None:
    """A character is a token to this reader, and its windows are shorter than a passage."""
    many = read(tmp_path / "many", model, log(14), reader=reader, window=80, method=method)
    with session(many, reader, trace=True, budget="60%", full=full) as opened:
        windows = opened.store.manifest.windows
        answer = opened.ask("What happened on day 13?")
        assert answer.stats["windows"] == len(windows) > PASSAGES_SEEN
        assert answer.stats["windows_read"] == len(answer.retrieval) == PASSAGES_SEEN
        assert answer.stats["windows_by"] == "words"
        best = windows[answer.retrieval[0].window]
        assert "day 13" in log(14)[best.start : best.end]
        assert all(isinstance(each.lexical, float) for each in answer.retrieval)
        assert all(each.attention is None for each in answer.retrieval)
        assert opened.trace()["retrieval"] == list(answer.to_json()["retrieval"])

        seen = {
            token
            for each in answer.retrieval
            for token in range(windows[each.window].start, windows[each.window].end)
        }
        assert answer.stats["tokens_seen"] == len(seen)
        bounds = opened.memory.shared.bounds
        for layer in opened.memory.layers:
            assert {int(token) for token in layer.pinned_token if token >= 0} <= seen
            assert set(bounds[layer.view.spans].tolist()) <= seen
        assert {int(bounds[entry["span"]]) for entry in opened.trace()["zoom"]} <= seen
        assert answer.citations
        assert all(set(range(c.start, c.end)) & seen for c in answer.citations)


def test_where_a_question_has_no_word_to_look_for_attention_votes(
    many: Path, reader: Reader
) -> None:
    with session(many, reader) as opened:
        answer = opened.ask(WORDLESS)
        assert answer.stats["windows_by"] == "attention"
        assert answer.stats["windows_read"] == VOTED_WINDOWS
        votes = [each.attention for each in answer.retrieval]
        assert votes == sorted(votes, reverse=True)
        assert all(each.lexical is None for each in answer.retrieval)
        assert opened.ask(QUESTION).stats["windows_by"] == "words"


@pytest.mark.parametrize("method", ["sekv", "full"])
def test_a_memory_that_cannot_vote_sees_all_windows_for_such_a_question(
    method: str, model: Path, reader: Reader, tmp_path: Path
) -> None:
    many = read(tmp_path / method, model, log(14), reader=reader, window=80, method=method)
    with session(many, reader, full=method == "sekv") as opened:
        answer = opened.ask(WORDLESS)
        assert answer.stats["windows_by"] == "all"
        assert answer.stats["windows_read"] == len(answer.retrieval) == answer.stats["windows"]
        assert answer.stats["tokens_seen"] == answer.usage.document_tokens


@pytest.mark.parametrize("budget", ["1", "1%", "2%", "4%", "6%"])
def test_of_many_windows_with_hardly_any_room_it_still_answers(
    budget: str, many: Path, reader: Reader
) -> None:
    with session(many, reader, budget=budget, max_new_tokens=2) as opened:
        assert opened.ask(QUESTION).usage.answer_tokens == 2


def test_no_store_is_one_line(tmp_path: Path, reader: Reader) -> None:
    from engine.types import Silent

    with pytest.raises(SekvError, match="there is no store"):
        Session(tmp_path / "none.sekv", AskOptions(), Silent(), reader)
