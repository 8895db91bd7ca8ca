"""Models with layers of other kinds than full attention answer as their own full cache does.

As in test_exactness: always through a store that was written, closed and opened again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.answer import inspect
from engine.answer.session import Session
from engine.attention.step import Step
from engine.attention.widen import Retry
from engine.compression import methods as recipes
from engine.errors import ReaderError, SekvError, StoreError
from engine.ingest.run import plan
from engine.memory import conversation as talk
from engine.models import evidence_heads
from engine.models.reader import Reader, load_reader
from engine.store.manifest import NAME, states_file
from engine.store.reader import Store
from engine.types import AskOptions, IngestOptions, Silent, Turn
from exact_methods import EXACT
from exactness import QUESTION, TEXT, from_memory, greedy, truth
from tiny_books import log, read, report, session
from tiny_models import WINDOW, checkpoint
from toy_store import tree

SLIDING = (
    "ministral", "gemma2", "gemma3_text", "gemma3n_text", "gpt_oss", "olmo3", "cohere2", "exaone4",
    "gemma4_text", "llama4_text",
)  # fmt: skip
RECURRENT = (
    "lfm2", "qwen3_next", "qwen3_5_text", "granitemoehybrid", "bamba", "falcon_h1", "nemotron_h",
)  # fmt: skip
SOME = ("gemma3_text", "llama4_text", "qwen3_next", "falcon_h1")
"""One of each kind of state: rows of a window, rows of a chunk, of linear attention, beside full
attention."""


@dataclass(frozen=True)
class Made:
    """A tiny checkpoint, its reader, and a store of it in one window that loses nothing."""

    model: Path
    reader: Reader
    store: Path

    def opened(self, store: Path | None = None, **options: Any) -> Session:
        """With room for everything, and asked to zoom all of it."""
        asked = AskOptions(budget="10000%", coverage=1.0, model=str(self.model), **options)
        return Session(store or self.store, asked, Silent(), self.reader)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Made]]:
    """By the kind of model; each is made once."""
    known: dict[str, Made] = {}

    def make(kind: str) -> Made:
        if kind not in known:
            folder = tmp_path_factory.mktemp(kind)
            model = checkpoint(kind, folder / "model")
            reader = load_reader(str(model), device="cpu")
            store = read(folder, model, reader=reader, method="exact", chunk_tokens=100)
            known[kind] = Made(model, reader, store)
        return known[kind]

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(recipes.METHODS, "exact", EXACT["sekv"])
        patch.setattr(evidence_heads, "ensure", lambda reader: None)  # half of the time
        yield make


# ---------------------------------------------------------------------------- one context


@pytest.mark.parametrize("kind", [*SLIDING, *RECURRENT, "smollm3"])
def test_everything_zoomed_at_full_rank_equals_the_full_cache(
    kind: str, made: Callable[[str], Made]
) -> None:
    """A document many times longer than a sliding window, read in several chunks."""
    assert len(TEXT) > 10 * WINDOW
    with made(kind).opened() as asked:
        ids, logits = from_memory(asked, 8)
        numbers = [layer.layer for layer in asked.memory.layers]
        assert numbers == list(asked.store.manifest.model.memory_layers)
        for layer in asked.memory.layers:
            assert all(len(z) == len(layer.view.spans) > 3 for z in layer.zoomed.spans)
        true_ids, true_logits = truth(asked, made(kind).model, 8)
    assert torch.equal(ids, true_ids)
    torch.testing.assert_close(logits, true_logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", [*SOME, "lfm2", "nemotron_h"])
def test_with_other_states_it_does_not_equal_it(kind: str, made: Callable[[str], Made]) -> None:
    """The test above can fail: what other layers keep shows in the logits."""
    with made(kind).opened() as asked:
        assert asked.memory.states is not None
        for state in asked.memory.states.behind(0).values():
            for tensor in state.values():
                tensor.neg_()
        _, logits = from_memory(asked, 1)
        _, true_logits = truth(asked, made(kind).model, 1)
    assert float((logits - true_logits).abs().max()) > 0.001


def test_a_model_whose_layers_all_have_a_window_is_read_within_it(tmp_path: Path) -> None:
    """The first Mistral: there full attention and a sliding window are the same."""
    model = checkpoint("mistral", tmp_path / "model", sliding_window=1024)
    reader = load_reader(str(model), device="cpu")
    assert reader.max_positions == 1024
    store = read(tmp_path / "one", model, reader=reader, method="full", chunk_tokens=100)
    with session(store, reader, full=True) as asked:
        assert asked.store.manifest.format == 1
        ids, logits = from_memory(asked, 8)
        true_ids, true_logits = truth(asked, model, 8)
    assert torch.equal(ids, true_ids)
    torch.testing.assert_close(logits, true_logits, atol=1e-4, rtol=0)
    narrow = checkpoint("mistral", tmp_path / "narrow", sliding_window=512)
    cut = report(tmp_path / "windows", narrow, method="full")
    assert (cut.windows, cut.window_tokens) == (2, 384)


# ---------------------------------------------------------------------------- windows


@pytest.mark.parametrize("kind", SOME)
def test_a_question_stands_behind_one_window_as_if_it_were_the_document(
    kind: str, made: Callable[[str], Made], tmp_path: Path
) -> None:
    one = made(kind)
    store = read(tmp_path, one.model, reader=one.reader, method="exact", window=160)
    with one.opened(store) as asked:
        windows = asked.store.manifest.windows
        assert len(windows) >= 3
        assert len({w.end - w.start for w in windows}) > 1
        for index in (1, 0):
            window = windows[index]
            for layer in asked.memory.layers:
                layer.focus([(window.start, window.end)])
            asked.past.stand_behind(index)
            _, logits = from_memory(asked, 4)
            _, true_logits = truth(asked, one.model, 4, slice(window.start, window.end))
            torch.testing.assert_close(logits, true_logits, atol=1e-4, rtol=0)


def test_a_question_sees_passages_of_the_window_with_its_words(
    made: Callable[[str], Made], tmp_path: Path
) -> None:
    """And of no other one, whose words the states it stands behind have never seen."""
    one = made("gemma3_text")
    store = read(tmp_path, one.model, log(40), reader=one.reader, window=600)
    with session(store, one.reader) as asked:
        windows = asked.store.manifest.windows
        assert len(windows) >= 4
        for day in (3, 38):
            answer = asked.ask(f"What of day {day}?", turns=[Turn("Is it a log?", "It is.")] * 9)
            (seen,) = answer.retrieval
            window = windows[seen.window]
            assert f"day {day} " in asked.book.text_of((window.start, window.end))
            assert answer.stats["state_window"] == seen.window
            assert answer.stats["state_bytes"] > 0
            assert answer.stats["turns_folded"] == 0
            assert answer.usage.recomputed_document_tokens == 0
        answer = asked.ask("Zzyzx?")  # no word of it: attention votes for one window
        assert [seen.window for seen in answer.retrieval] == [answer.stats["state_window"]]


# ---------------------------------------------------------------------------- going back


@pytest.mark.parametrize("kind", SOME)
def test_a_step_that_is_taken_back_leaves_no_trace(
    kind: str, made: Callable[[str], Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step is done twice, the second time from the states before the first."""
    with made(kind).opened() as asked:
        ids, logits = from_memory(asked, 5)
        retry, empty = Retry(asked.memory.shared, 2.0, 1.0), asked.past.cache

        def cache_that_retries() -> Any:
            made_now = empty()
            made_now.retry = retry
            return made_now

        monkeypatch.setattr(asked.past, "cache", cache_that_retries)
        monkeypatch.setattr(Retry, "unsure", lambda *_: True)
        again_ids, again = from_memory(asked, 5)
    assert retry.steps == 5
    assert torch.equal(again_ids, ids)
    torch.testing.assert_close(again, logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", [*SOME, "gemma4_text"])
def test_a_question_behind_old_turns_is_asked_behind_their_states(
    kind: str, made: Callable[[str], Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compressed turns at full rank: the logits are those of the plain model on all of it."""
    monkeypatch.setattr("engine.answer.session.TURNS_SHARE", 0.0)
    monkeypatch.setattr(talk, "SHARE", math.inf)
    turns = [Turn(f"What of day {i}?", f"It rained on day {i}.") for i in range(3)]
    with made(kind).opened(max_new_tokens=2) as asked, torch.inference_mode():
        reply = asked.ask(QUESTION, turns=turns)
        assert (reply.stats["turns_read"], reply.stats["turns_folded"]) == (0, 3)
        prompt, tokenizer = asked.reader.prompt, asked.reader.tokenizer
        question = asked._prompt(QUESTION, ())
        before = [*prompt.prefix, *asked.ids.tolist()]
        for i, turn in enumerate(turns):
            before += prompt.turn(tokenizer, turn, first=not i)
        _, logits = greedy(
            asked.reader.model,
            torch.tensor([question]),
            3,
            attention_mask=torch.ones(1, len(before) + len(question), dtype=torch.long),
            past_key_values=asked.past.cache(),
        )
        plain = AutoModelForCausalLM.from_pretrained(made(kind).model, dtype=torch.float32)
        _, expected = greedy(plain, torch.tensor([before + question]), 3)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


class _StopAt(Silent):
    """Interrupts an ingest once so many tokens are read."""

    def __init__(self, tokens: int) -> None:
        self.left = tokens

    def advance(self, done: int) -> None:
        self.left -= done
        if self.left <= 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("kind", "lost"), [*((kind, False) for kind in SOME), (SOME[0], True)])
def test_an_interrupted_ingest_goes_on_from_the_states_of_its_last_chunk(
    kind: str,
    lost: bool,
    made: Callable[[str], Made],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Which alone are kept; where they are lost, the window is read from its beginning."""

    def again() -> int:
        place, asked = tmp_path / "cut", {"method": "exact", "chunk_tokens": 100}
        return report(place, one.model, reader=one.reader, **asked).resumed_tokens

    one = made(kind)
    with monkeypatch.context() as patch:
        patch.setattr("tiny_books.Silent", lambda: _StopAt(260))
        with pytest.raises(KeyboardInterrupt):
            again()
    kept = list((tmp_path / "cut" / ".log.sekv.work" / "chunks").iterdir())
    (states,) = (path for path in kept if ".newest." in path.name)
    if lost:
        states.unlink()
    resumed = again()
    assert resumed == 0 if lost else resumed >= 200
    files = [tree(path) for path in (tmp_path / "cut" / "log.sekv", one.store)]
    for found in files:
        del found[NAME]  # it says where the source lies
    assert files[0] == files[1]


# ---------------------------------------------------------------------------- said and refused


def test_layers_have_the_model_s_own_numbers(made: Callable[[str], Made], tmp_path: Path) -> None:
    """Linear attention is in layers 0 and 2."""
    one = made("qwen3_next")
    store = read(tmp_path, one.model, reader=one.reader)
    with session(store, one.reader, trace=True) as asked:
        asked.ask(QUESTION)
        trace = asked.trace()
    assert {move["layer"] for move in trace["moves"]} == {1, 3}
    options, quiet = AskOptions(model=str(one.model)), Silent()
    shown = inspect.inspect(store, trace=trace, options=options, progress=quiet)
    assert {zoom.layer for zoom in shown.zoom} <= {1, 3}
    assert shown.manifest["model"]["layer_kinds"][0] == "linear_attention"
    assert inspect.inspect(store, layer=3, options=options, progress=quiet).spans
    with pytest.raises(SekvError, match=r"layer 2 has no document memory.* 1, 3$"):
        inspect.inspect(store, layer=2, options=options, progress=quiet)


def test_only_heads_with_full_attention_are_measured_for_evidence(
    made: Callable[[str], Made],
) -> None:
    """Layer 5 of the Gemma 3n has full attention to the keys and values of layer 3."""
    for kind, looking in (("qwen3_next", {1, 3}), ("gemma3n_text", {1, 3, 5})):
        share = evidence_heads.measure(made(kind).reader).share
        assert {layer for layer, heads in enumerate(share) if all(heads)} == looking
        assert {layer for layer, heads in enumerate(share) if any(heads)} == looking


def test_what_a_layer_reads_of_another_s_memory_is_recorded_as_its_own(
    made: Callable[[str], Made],
) -> None:
    one = made("gemma3n_text")
    steps: list[Step] = []

    class Recorder:
        def record(self, step: Step) -> None:
            steps.append(step)

    with one.opened() as asked:
        assert one.reader.memory_layers == (1, 3)
        asked.memory.shared.watchers.append(Recorder())
        from_memory(asked, 1)
    assert [step.layer for step in steps] == [1, 3, 5]
    assert not torch.equal(steps[1].weight, steps[2].weight)


def test_bytes_of_states_are_counted(made: Callable[[str], Made]) -> None:
    one = made("qwen3_next")
    with session(one.store, one.reader) as asked:
        answer = asked.ask(QUESTION)
        tokens = asked.store.manifest.tokens
    states = answer.stats["state_bytes"]
    sizes = sum(t.nbytes for s in one.reader.example_states.values() for t in s.values())
    assert states == sizes > 0
    assert answer.memory.full_kv_bytes == tokens * 2 * 2 * 2 * 16 * 4 + states
    assert answer.memory.device_kv_bytes > states


@pytest.mark.parametrize("kind", [*SOME, "gpt_oss", "lfm2"])
def test_bytes_of_states_are_foreseen(kind: str, made: Callable[[str], Made]) -> None:
    """From the configuration, without weights."""
    one = made(kind)
    source = str(one.store.parent / "log.txt")
    said = plan([source], IngestOptions(model=str(one.model)), Silent())
    with Store.open(one.store) as store:
        assert said.state_bytes == sum(t.nbytes for t in store.states(0).values()) > 0


def test_what_windows_mean_for_such_a_model_is_said(made: Callable[[str], Made]) -> None:
    class Notes(Silent):
        def note(self, line: str) -> None:
            notes.append(line)

    notes: list[str] = []
    one = made("qwen3_next")
    source = str(one.store.parent / "log.txt")
    whole = plan([source], IngestOptions(model=str(one.model)), Notes())
    assert (whole.windows, notes) == (1, [])
    cut = plan([source], IngestOptions(model=str(one.model), window=160), Notes())
    assert notes == [
        f"{cut.windows} windows, of which a question sees the one with the best passage: "
        "2 of 4 layers keep a state of one window"
    ]
    assert cut.state_bytes == whole.state_bytes
    apart = cut.estimated_store_bytes - whole.estimated_store_bytes
    assert apart > (cut.windows - 1) * whole.state_bytes


def test_states_of_another_shape_are_one_line(
    made: Callable[[str], Made], monkeypatch: pytest.MonkeyPatch, subtests: pytest.Subtests
) -> None:
    """As a hostile store would have them under checksums that agree."""
    one = made("qwen3_next")
    with Store.open(one.store) as good:
        states = good.states(0)
    name = "0.recurrent.0"
    changes: dict[str, dict[str, torch.Tensor]] = {
        "another shape": states | {name: states[name][:, :1]},
        "another dtype": states | {name: states[name].half()},
        "no number": states | {name: states[name] * float("nan")},
        "missing": {n: t for n, t in states.items() if n != name},
        "one too many": states | {"0.conv.1": states[name]},
        "of no layer": {n.replace("0.", "9.", 1): t for n, t in states.items()},
    }
    for what, changed in changes.items():
        monkeypatch.setattr(Store, "states", lambda *_, found=changed: found)
        with subtests.test(what=what), session(one.store, one.reader) as asked:
            with pytest.raises(StoreError, match="ingest again") as caught:
                asked.ask(QUESTION)
            assert states_file(0) in str(caught.value)
            assert "\n" not in str(caught.value)


def test_a_model_that_does_not_go_on_from_its_state_is_refused(tmp_path: Path) -> None:
    """The library's Jamba begins anew with every chunk, and would answer from the last one."""
    model = checkpoint("jamba", tmp_path / "model")
    with pytest.raises(ReaderError, match="does not go on from the state") as caught:
        load_reader(str(model), device="cpu")
    assert "\n" not in str(caught.value)
