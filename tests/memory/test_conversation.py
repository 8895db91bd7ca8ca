"""Old turns of a conversation: compressed as the document is, found again, within the budget."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from engine.answer.session import Session
from engine.attention.layer import LayerMemory
from engine.compression import methods as recipes
from engine.errors import StoppedError
from engine.memory import conversation as talk
from engine.memory.conversation import beginning
from engine.memory.retrieval import PASSAGES_SEEN
from engine.models.reader import Reader, load_reader
from engine.types import Turn
from exact_methods import EXACT
from tiny_books import QUESTION, log, read, session
from tiny_models import checkpoint

FACT = Turn("My ship is the Zephyrine.", "Noted, the Zephyrine.")
TALK = [FACT, *(Turn(f"What of day {i}?", f"It rained on day {i}.") for i in range(39))]


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    """Turns are compressed as questions are asked, and their tensors serve nothing else."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return checkpoint("llama", folder, max_position_embeddings=8192)


@pytest.fixture(scope="module")
def reader(model: Path) -> Reader:
    return load_reader(str(model), device="cpu")


@pytest.fixture(scope="module")
def store(model: Path, reader: Reader, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log long enough that a conversation is small beside it."""
    return read(tmp_path_factory.mktemp("store"), model, log(60), reader=reader)


@pytest.fixture
def all_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """No turn is read as it is: all of them are compressed."""
    monkeypatch.setattr("engine.answer.session.TURNS_SHARE", 0.0)


def rows_of(reader: Reader, turns: list[Turn], store: Path) -> list[Any]:
    """Keys and values [Hkv, n, D] per layer of the turns as the plain model computes them."""
    with session(store, reader) as opened:
        ids = [*reader.prompt.prefix, *opened.ids.tolist()]
    start = len(ids)
    for i, turn in enumerate(turns):
        ids += reader.prompt.turn(reader.tokenizer, turn, first=not i)
    cache = reader.model(torch.tensor([ids]), use_cache=True).past_key_values
    return [(la.keys[0, :, start:], la.values[0, :, start:]) for la in cache.layers]


# ---------------------------------------------------------------------------- exactness


@pytest.mark.parametrize("exact", sorted(EXACT))
@pytest.mark.parametrize(("kind", "chat"), [("llama", False), ("qwen3", False), ("qwen3", True)])
def test_all_zoomed_at_full_rank_equals_the_exact_conversation(
    kind: str,
    chat: bool,
    exact: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    all_old: None,
) -> None:
    """Logits of the question are those of the library's own model on document and turns, which
    a model with a chat template reads as its template writes them."""
    model = checkpoint(kind, tmp_path / "model", chat=chat)
    monkeypatch.setitem(recipes.METHODS, "exact", EXACT[exact])
    monkeypatch.setattr(talk, "SHARE", math.inf)
    made = read(tmp_path / "store", model, log(4), method="exact")
    turns = TALK[:4]
    with session(made, budget="10000%", max_new_tokens=2, model=str(model)) as opened:
        reply = opened.ask(QUESTION, turns=turns)
        assert (reply.stats["turns_read"], reply.stats["turns_folded"]) == (0, 4)
        prompt, tokenizer = opened.reader.prompt, opened.reader.tokenizer
        asked = opened._prompt(QUESTION, ())
        before = [*prompt.prefix, *opened.ids.tolist()]
        document = len(before)
        for i, turn in enumerate(turns):
            before += prompt.turn(tokenizer, turn, first=not i)
        assert opened.past.length == len(before)
        if chat:
            said = tokenizer.decode(before + asked)
            assert said.count("<|user|>") == said.count("<|assistant|>") == 5
            assert f"{turns[0].answer}<|user|>{turns[1].question}<|assistant|>" in said
        opened.past.recall(turns)
        out = opened.reader.model(
            torch.tensor([asked]), past_key_values=opened.past.cache(), logits_to_keep=len(asked)
        ).logits[0]
        for layer in opened.memory.layers:
            assert all(len(z) == len(layer.view.spans) for z in layer.zoomed.spans)
            assert int(layer.bounds[-1]) == len(before) - len(prompt.prefix)
            assert len(layer.view.spans) > layer._document.spans.shape[0] + 4
    plain = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, attn_implementation="eager"
    )
    true = plain(torch.tensor([before + asked])).logits[0, -len(asked) :]
    without = plain(torch.tensor([before[:document] + asked])).logits[0, -len(asked) :]
    torch.testing.assert_close(out, true, atol=1e-4, rtol=0)
    assert float((without - true).abs().max()) > 0.05


def test_surprisal_is_the_model_s_own(store: Path, reader: Reader) -> None:
    """Anchors and spans of a turn are cut where the model was surprised, as a document's are."""
    ids = reader.prompt.turn(reader.tokenizer, FACT, first=True)
    with session(store, reader) as opened:
        opened.past.recall(())
        found = reader.read_behind(ids, opened.past.cache())
        opened.past.recall(())
        logits = reader.model(torch.tensor([ids]), past_key_values=opened.past.cache()).logits[0]
    true = -logits.float().log_softmax(-1)[torch.arange(len(ids) - 1), ids[1:]]
    assert found[0] == 0
    torch.testing.assert_close(found[1:], true, atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------------------- bytes


def test_bytes_on_the_device_are_flat_over_a_long_conversation(store: Path, reader: Reader) -> None:
    """Latest turns are read as they are, older ones are compressed, the oldest are forgotten;
    rows, sketches, summaries and zoom together never exceed the budget."""
    counts = []
    with session(store, reader, budget="20%", max_new_tokens=1) as opened:
        layers = opened.memory.layers
        assert all(type(layer) is LayerMemory for layer in layers)
        caps = [layer.limits.cap for layer in layers]
        alone = [layer.fixed_bytes for layer in layers]
        peak = opened.ask(QUESTION).memory.device_kv_bytes
        for count in range(0, len(TALK) + 1, 4):
            reply = opened.ask(QUESTION, turns=TALK[:count])
            used = [layer.fixed_bytes - own for layer, own in zip(layers, alone, strict=True)]
            assert max(used) <= talk.SHARE * min(caps)
            assert reply.memory.device_kv_bytes <= sum(caps)
            assert abs(reply.memory.device_kv_bytes - peak) < 0.05 * peak
            assert reply.memory.zoomed_spans <= reply.memory.total_spans
            counts.append((reply.stats["turns_read"], reply.stats["turns_folded"]))
        assert counts[0] == (0, 0)
        assert counts[1] == (4, 0) or counts[1][1] > 0
        assert max(old for _, old in counts) > 3
        assert counts[-1][0] + counts[-1][1] < len(TALK)
        opened.ask(QUESTION)
        assert [layer.fixed_bytes for layer in layers] == alone


def test_the_store_is_never_changed(store: Path, reader: Reader, all_old: None) -> None:
    before = {p: p.read_bytes() for p in sorted(store.rglob("*")) if p.is_file()}
    with session(store, reader, max_new_tokens=1) as opened:
        assert opened.ask(QUESTION, turns=TALK[:5]).stats["turns_folded"] > 0
    assert {p: p.read_bytes() for p in sorted(store.rglob("*")) if p.is_file()} == before


# ---------------------------------------------------------------------------- finding again


def test_what_only_an_early_turn_said_is_found_in_its_codes(
    store: Path, reader: Reader, all_old: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Queries that look for a token of the first turn zoom its span, out of all of document and
    conversation; most that look away from it do not."""
    monkeypatch.setattr(talk, "SHARE", 0.2)
    turns = TALK[:6]
    with session(store, reader, budget="30%", coverage=0.8) as opened:
        reply = opened.ask(QUESTION, turns=turns)
        assert reply.stats["turns_folded"] == len(turns)
        opened.past.recall(turns)
        first, tokens = opened.past._held[tuple(turns[:1])], opened.memory.shared.tokens
        said, found = first.tokens // 2, {1: 0, -1: 0}
        for layer, segment in zip(opened.memory.layers, first.layers, strict=True):
            span = int(torch.searchsorted(layer.bounds, tokens + said, right=True)) - 1
            k, _ = decoded(layer, segment)
            q = 12 * k[:, said] / k[:, said].norm(dim=-1, keepdim=True)
            nothing = torch.zeros(len(k), 1, k.shape[-1])
            for direction in found:
                layer.release()
                asked = direction * q.repeat_interleave(2, 0)[:, None]
                layer.attend(asked, nothing, nothing, torch.zeros(1, 1, dtype=torch.bool))
                found[direction] += sum(span in ids.tolist() for ids in layer.zoomed.spans)
        heads = sum(layer.heads for layer in opened.memory.layers)
        assert found[1] > 0.8 * heads
        assert found[-1] <= 0.5 * heads


def decoded(layer: LayerMemory, segment: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows of a segment as its codes have them."""
    from engine.attention.host_records import Host, _Held
    from engine.memory.open import whole_rows

    host = Host(0, [_Held(segment.records, layer.heads)], [len(segment.compressed)], layer.heads)
    return whole_rows(layer.recipe, host, segment.bounds, layer.params)


def test_compressed_turns_are_of_what_the_model_computed(
    store: Path, reader: Reader, all_old: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Codes of a turn are near the rows of a model that read everything exactly, but for what their
    bits lose; and a turn reads the turns before it."""
    monkeypatch.setattr(talk, "SHARE", 0.2)
    true = rows_of(reader, TALK[:2], store)
    with session(store, reader, budget="60%", max_new_tokens=1) as opened:
        opened.ask(QUESTION, turns=TALK[:2])
        held = list(opened.past._held.values())
        for index, error in ((0, 0.4), (1, 0.5)):
            layer, start = opened.memory.layers[index], 0
            for turn in held:
                k, _ = decoded(layer, turn.layers[index])
                exact = true[index][0][:, start : start + turn.tokens]
                spread = exact - exact.mean(1, keepdim=True)
                assert float((k - exact).norm() / spread.norm()) < error
                start += turn.tokens


# ---------------------------------------------------------------------------- what is held


def reply(opened: Session, turns: list[Turn]) -> Any:
    answer = opened.ask(QUESTION, turns=turns)
    return (
        answer.answer,
        answer.citations,
        answer.memory,
        answer.usage,
        answer.stats["turns_folded"],
    )


def test_a_conversation_gone_along_with_equals_one_that_is_brought(
    store: Path, reader: Reader
) -> None:
    """Turn by turn, among another conversation's, or all at once: the same answer and bytes."""
    other = [Turn("Other?", "Other.")] * 9
    with session(store, reader, max_new_tokens=3) as opened:
        for count in range(1, 15):
            along = reply(opened, TALK[:count])
            if count % 5 == 0:
                opened.ask(QUESTION, turns=other)
    with session(store, reader, max_new_tokens=3) as opened:
        assert reply(opened, TALK[:14]) == along
    assert along[-1] > 0


def test_a_turn_is_read_once(
    store: Path, reader: Reader, all_old: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    own = Reader.read_behind

    def counted(self: Reader, ids: list[int], cache: Any, stop: Any) -> Any:
        read.append(len(ids))
        return own(self, ids, cache, stop)

    monkeypatch.setattr(Reader, "read_behind", counted)
    with session(store, reader, max_new_tokens=1) as opened:
        for count in range(6):
            opened.ask(QUESTION, turns=TALK[:count])
        assert len(read) == 5
        monkeypatch.setattr(talk, "MOST_HELD", 0)
        opened.ask(QUESTION, turns=TALK[1:3])  # another conversation: now the first is dropped
        assert len(read) == 7
        assert len(opened.past._held) == 2


def test_a_conversation_that_is_stopped_while_it_is_read_goes_on(
    store: Path, reader: Reader, all_old: None
) -> None:
    seen: list[int] = []

    def stop() -> bool:
        seen.append(len(seen))
        return len(seen) > 2

    with session(store, reader, max_new_tokens=2) as opened:
        with pytest.raises(StoppedError):
            opened.ask(QUESTION, turns=TALK[:4], stop=stop)
        after = reply(opened, TALK[:4])
    with session(store, reader, max_new_tokens=2) as opened:
        assert reply(opened, TALK[:4]) == after


def test_where_positions_run_out_a_conversation_begins_anew(tmp_path: Path) -> None:
    """At a later turn; questions are answered all the way."""
    model = checkpoint("llama", tmp_path / "model", max_position_embeddings=2400)
    reader = load_reader(str(model), device="cpu")
    made = read(tmp_path / "store", model, log(20), reader=reader)
    with session(made, reader, budget="60%", max_new_tokens=1) as opened:
        room = 2400 - opened.memory.length
        lengths = []
        for count in range(0, len(TALK) + 1, 3):
            answer = opened.ask(QUESTION, turns=TALK[:count])
            assert answer.usage.answer_tokens == 1
            lengths.append(opened.past.length - opened.memory.length)
        assert max(lengths) <= talk.POSITIONS * room
        assert any(after < before for before, after in pairwise(lengths))


@given(
    lengths=st.lists(st.integers(1, 60), max_size=40),
    most=st.floats(0, 200),
)
def test_a_beginning_fits_and_seldom_moves(lengths: list[int], most: float) -> None:
    """What is left fits; with more turns it moves only when it must, and then for a while."""
    starts = [beginning(lengths[:count], most) for count in range(len(lengths) + 1)]
    for count, start in enumerate(starts):
        assert sum(lengths[start:count]) <= most
        if count and start != starts[count - 1]:
            assert sum(lengths[starts[count - 1] : count]) > most
            assert sum(lengths[start:count]) <= most / 2


# ---------------------------------------------------------------------------- who sees it


def test_citations_and_traces_are_of_the_document_alone(
    store: Path, reader: Reader, all_old: None
) -> None:
    """What an old turn's spans were read for is no evidence of the document."""
    with session(store, reader, trace=True, max_new_tokens=4) as opened:
        answer = opened.ask(QUESTION, turns=TALK[:6])
        spans = opened.store.manifest.spans
        trace = opened.trace()
        assert trace["zoom"]
        assert max(entry["span"] for entry in trace["zoom"]) < spans
        newest = {int(s) for la in opened.memory.layers for z in la.zoomed.spans for s in z}
        assert max(newest) >= spans
        text = opened.store.text(0)
    assert answer.citations
    for citation in answer.citations:
        assert citation.text == text[citation.start : citation.end]


def test_of_many_windows_a_focus_hides_no_turn(
    model: Path, reader: Reader, tmp_path: Path, all_old: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(talk, "SHARE", 0.2)
    many = read(tmp_path, model, log(14), reader=reader, window=80)
    with session(many, reader, budget="80%", max_new_tokens=2, trace=True) as opened:
        answer = opened.ask(QUESTION, turns=TALK[:2])
        windows = len(opened.store.manifest.windows)
        assert answer.stats["turns_folded"] == 2
        assert answer.stats["windows_read"] == PASSAGES_SEEN < windows
        for layer in opened.memory.layers:
            seen = set(layer.view.window.tolist())
            assert len(seen) == PASSAGES_SEEN + 1
            assert windows in seen


@pytest.mark.parametrize(
    ("method", "compresses"),
    [
        ("sekv-paper", True),
        ("sentencekv", True),
        ("sentkvcompress", True),
        ("zoomr", True),
        ("streaming", False),
        ("dynsplit", False),
        ("full", False),
    ],
)
def test_methods_compress_turns_where_they_can(
    method: str,
    compresses: bool,
    model: Path,
    reader: Reader,
    tmp_path: Path,
    all_old: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With their own choices; others leave out what does not fit, and hold everything as before."""
    monkeypatch.setattr(talk, "SHARE", 0.2)
    made = read(tmp_path, model, log(20), reader=reader, method=method)
    with session(made, reader, budget="80%", max_new_tokens=2) as opened:
        answer = opened.ask(QUESTION, turns=TALK[:3])
        assert opened.past.compresses == compresses
        assert (answer.stats["turns_folded"] > 0) == compresses
        cap = sum(layer.limits.cap for layer in opened.memory.layers)
        assert answer.memory.device_kv_bytes <= cap
        assert answer.usage.answer_tokens == 2
