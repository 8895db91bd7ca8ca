"""What every method promises: read, reopen, ask, look inside, verify; bytes within the budget;
and no two methods, nor two settings of one, that run the same code."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.answer.inspect import inspect
from engine.answer.session import Session
from engine.compression import methods as recipes
from engine.compression.codecs.half_rows import HalfRows
from engine.compression.methods import METHODS, named
from engine.compression.routers.question_blind import Observed, RetrievalHeads, layer_budgets
from engine.compression.routers.span_keys import PartMeans
from engine.compression.selectors import Blocks, SentenceQuery
from engine.compression.spans import Fixed
from engine.compression.text_spans import Delimiters, Punctuated, Sentences
from engine.compression.thoughts import Thoughts
from engine.errors import BudgetError, ReaderError
from engine.memory.retrieval import PASSAGES_SEEN, VOTED_WINDOWS
from engine.models import compresskv_heads
from engine.models.compresskv_heads import Heads, needed
from engine.models.reader import Reader, load_reader
from engine.store.reader import Store
from engine.types import AskOptions, IngestOptions, Silent
from tiny_books import QUESTION, log, read, session
from tiny_models import checkpoint

NAMES = sorted(METHODS)
TEXT = log(14)
BUDGETS = ("4%", "15%", "60%")


def heads_of(reader: Reader, shares: tuple[float, ...] = (0.5, 0.3, 0.2)) -> Heads:
    """A calibration made up for the tiny model."""
    identity = reader.identity
    heads = [[(layer + place) % identity.heads for place in range(2)] for layer in range(3)]
    return Heads("tiny", identity.weights, heads, [[0.0] * 4] * 3, list(shares), {})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of its own, which gets calibrated heads beside it."""
    return checkpoint("llama", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def reader(model: Path) -> Reader:
    loaded = load_reader(str(model), device="cpu")
    heads_of(loaded).save(model / "heads.json")
    return loaded


@pytest.fixture(scope="module")
def stores(
    model: Path, reader: Reader, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """One store per method, of the same text in two windows."""
    folder = tmp_path_factory.mktemp("stores")
    return {
        name: read(folder / name, model, TEXT, reader=reader, method=name, window=500)
        for name in NAMES
    }


def logits(opened: Session) -> torch.Tensor:
    """What the memory makes of the question's last token, [V]."""
    prompt = opened.reader.prompt.question(opened.reader.tokenizer, QUESTION)
    ids = torch.tensor([prompt])
    for layer in opened.memory.layers:
        layer.release()
    opened.memory.shared.peak_bytes = 0
    with torch.inference_mode():
        out = opened.reader.model(
            input_ids=ids,
            attention_mask=torch.ones(1, opened.memory.length + len(prompt)),
            past_key_values=opened.past.cache(),
            logits_to_keep=1,
        )
    found: torch.Tensor = out.logits[0, -1]
    return found


@pytest.mark.parametrize("method", NAMES)
def test_every_method_keeps_the_contract(
    method: str, stores: dict[str, Path], reader: Reader
) -> None:
    """A store that opens again, verifies, shows its spans, and answers within its bytes."""
    with Store.open(stores[method]) as store:
        assert store.verify(Silent()) == []
        manifest = store.manifest
        assert manifest.method == method
        assert len(manifest.windows) == 2
    seen = inspect(stores[method], options=AskOptions(budget="20%"), progress=Silent())
    assert seen.spans[0].start_token == 0
    assert seen.spans[-1].end_token == manifest.tokens
    assert all(
        a.end_token == b.start_token for a, b in zip(seen.spans, seen.spans[1:], strict=False)
    )
    row = 4 * manifest.model.layers * manifest.model.kv_heads * manifest.model.head_dim
    for budget in BUDGETS:
        with session(stores[method], reader, budget=budget, max_new_tokens=6) as opened:
            first = opened.ask(QUESTION)
            again = opened.ask(QUESTION)
        assert (first.answer, first.usage) == (again.answer, again.usage)
        assert first.usage.recomputed_document_tokens == 0
        assert first.usage.answer_tokens == 6
        assert first.memory.device_kv_bytes == again.memory.device_kv_bytes
        allowed = float(budget.rstrip("%")) / 100 * manifest.tokens * row
        if not METHODS[method].whole:
            assert first.memory.device_kv_bytes <= allowed
        json.dumps(first.to_json())


@pytest.mark.parametrize("method", [m for m in NAMES if not METHODS[m].whole])
def test_a_larger_budget_is_used(method: str, stores: dict[str, Path], reader: Reader) -> None:
    """Bytes grow with what is allowed, until every span is zoomed; a method that stops early would
    look frugal in a table."""
    used = []
    for budget in BUDGETS:
        with session(stores[method], reader, budget=budget) as opened:
            logits(opened)
            used.append(opened.memory.shared.peak_bytes)
            tokens = opened.store.manifest.tokens
            spans = len(opened.memory.layers[0].view.spans)
            zoomed = [len(z) for layer in opened.memory.layers for z in layer.zoomed.spans]
    row = 4 * 3 * 2 * 16
    assert used[0] < used[1] < used[2]
    keeps = min(0.6, METHODS[method].keep)
    assert used[2] >= 0.5 * keeps * tokens * row or min(zoomed) == spans


def test_no_two_methods_run_the_same_code(stores: dict[str, Path], reader: Reader) -> None:
    """At a budget where it matters, each says something else about the same question."""
    found = {}
    for method in NAMES:
        with session(stores[method], reader, budget="40%") as opened:
            found[method] = logits(opened)
    alike = [
        pair
        for pair in combinations(NAMES, 2)
        if torch.allclose(found[pair[0]], found[pair[1]], atol=1e-4)
    ]
    assert alike == [
        ("sekv", "zoomr")
    ]  # they differ in long answers alone: tests/attention/test_long_answer.py


CHANGES: dict[str, tuple[str, dict[str, Any]]] = {
    "sentences": ("sentencekv", {"segmenter": Sentences(longest=20)}),
    "mean query": ("sentencekv", {"selector": Blocks()}),
    "sinks": ("sentencekv", {"sinks": 4}),
    "heads' window": ("compresskv", {"router": RetrievalHeads(rows=3)}),
    "pooling": ("compresskv", {"router": RetrievalHeads(kernel=15)}),
    "kept": ("compresskv-strict", {"keep": 0.1}),
    "target length": ("sentkvcompress", {"segmenter": Punctuated(target=20, slack=8)}),
    "weight of marks": ("sentkvcompress", {"segmenter": Punctuated(mark=0.0)}),
    "box": ("sentkvcompress", {"router": PartMeans()}),
    "attention's weight": ("dynsplit", {"segmenter": Delimiters(alpha=30.0, distance=0.0)}),
    "representatives": ("dynsplit", {"router": PartMeans(count=1)}),
    "unit": ("snapkv", {"segmenter": Fixed(8)}),
    "observers": ("snapkv", {"router": Observed(rows=4)}),
    "kernel": ("snapkv", {"router": Observed(kernel=1)}),
    "recency": ("streaming", {"sinks": 40}),
}


@pytest.fixture(scope="module")
def originals(stores: dict[str, Path], reader: Reader) -> dict[str, torch.Tensor]:
    """The logits of every method at 20 %, as far as they were asked for."""

    class Lazily(dict[str, torch.Tensor]):
        def __missing__(self, method: str) -> torch.Tensor:
            with session(stores[method], reader, budget="20%") as opened:
                self[method] = logits(opened)
            return self[method]

    return Lazily()


@pytest.mark.parametrize("what", sorted(CHANGES))
def test_every_choice_of_a_row_matters(
    what: str,
    originals: dict[str, torch.Tensor],
    model: Path,
    reader: Reader,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another value in a method's row is another result; an ignored field would go unseen."""
    method, changes = CHANGES[what]
    recipe = replace(METHODS[method], name="changed", **changes)
    monkeypatch.setitem(recipes.METHODS, "changed", recipe)
    store = read(tmp_path, model, TEXT, reader=reader, method="changed", window=500)
    with session(store, reader, budget="20%") as opened:
        assert not torch.allclose(logits(opened), originals[method], atol=1e-5)


@pytest.mark.parametrize("method", [m for m in METHODS if isinstance(METHODS[m].codec, HalfRows)])
def test_with_room_for_everything_nothing_is_lost(
    method: str, stores: dict[str, Path], reader: Reader
) -> None:
    """Exact rows of every token are the full cache, whatever chooses; but not if dropped."""
    with session(stores["full"], reader) as opened:
        truth = logits(opened)
    with session(stores[method], reader, budget="1000%") as opened:
        near = torch.allclose(logits(opened), truth, atol=0.05)
        assert near == (METHODS[method].keep == 1.0)


# ---------------------------------------------------------------------------- compresskv


def test_a_strict_store_drops_for_good(stores: dict[str, Path], reader: Reader) -> None:
    """Its host holds a fifth of the rows, a larger budget brings nothing back, and `--full` says
    so; what the other one has not kept comes back."""
    sizes = {}
    for name in ("compresskv", "compresskv-strict"):
        with Store.open(stores[name]) as store:
            sizes[name] = sum(
                int(store.host(w).offsets(layer)[-1]) for w in (0, 1) for layer in range(3)
            )
    assert sizes["compresskv-strict"] <= 0.21 * sizes["compresskv"]
    used = {}
    for name in sizes:
        for budget in ("60%", "100%"):
            with session(stores[name], reader, budget=budget) as opened:
                logits(opened)
                used[name, budget] = sum(
                    len(layer.zoomed.spans[0]) for layer in opened.memory.layers
                )
    assert used["compresskv-strict", "60%"] == used["compresskv-strict", "100%"]
    assert used["compresskv", "60%"] < used["compresskv", "100%"]
    with pytest.raises(BudgetError, match="20% of the tokens for good"):
        session(stores["compresskv-strict"], reader, full=True)


def test_layers_get_what_their_error_asks_for(stores: dict[str, Path], reader: Reader) -> None:
    """Half, three tenths and a fifth of the layers' errors: their tokens stand in that order, and
    all KV heads of a layer hold the same ones."""
    with session(stores["compresskv"], reader, budget="20%") as opened:
        logits(opened)
        held = [layer.zoomed.spans for layer in opened.memory.layers]
        caps = [layer.limits.cap for layer in opened.memory.layers]
        tokens = int(0.2 * opened.store.manifest.tokens)
    assert all(torch.equal(*spans) for spans in held)
    assert len(held[0][0]) > len(held[1][0]) > len(held[2][0])
    assert sum(caps) == 3 * tokens * 4 * 16 * 2


@pytest.mark.parametrize("rows", [1, 7, 64, 100, 2048])
@pytest.mark.parametrize("layers", [1, 2, 12])
def test_layer_budgets_sum_exactly(rows: int, layers: int) -> None:
    shares = [1.0 / (1 + layer) ** 2 for layer in range(layers)]
    given = layer_budgets(shares, rows)
    assert sum(given) == rows * layers
    assert min(given) >= min(32, rows // 2)
    assert max(given) <= 3 * rows
    assert given == sorted(given, reverse=True)


def test_a_model_without_calibration_is_refused_in_a_line(
    model: Path, reader: Reader, tmp_path: Path
) -> None:
    with pytest.raises(ReaderError, match=r"retrieval heads .* sekv train heads"):
        read(tmp_path, model, TEXT, reader=reader, method="compresskv", heads="nowhere.json")
    with pytest.raises(ReaderError, match="there is no"):
        needed(named("compresskv"), tmp_path, "", reader.identity)
    other = replace(heads_of(reader), weights="ff" * 16)
    other.save(tmp_path / "other.json")
    with pytest.raises(ReaderError, match="calibrated on other weights"):
        Heads.load(tmp_path / "other.json", reader.identity)
    (tmp_path / "broken.json").write_text('{"format": "sekv-heads 1"}')
    with pytest.raises(ReaderError, match="no calibration of retrieval heads"):
        Heads.load(tmp_path / "broken.json", reader.identity)
    far = replace(heads_of(reader), heads=[[9], [0], [0]])
    far.save(tmp_path / "far.json")
    with pytest.raises(ReaderError, match="does not have"):
        Heads.load(tmp_path / "far.json", reader.identity)


def test_heads_that_ship_are_used_where_a_model_has_none_of_its_own(
    reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shipped").mkdir()
    monkeypatch.setattr(compresskv_heads, "SHIPPED", tmp_path / "shipped")
    replace(heads_of(reader), weights="ff" * 16).save(tmp_path / "shipped" / "a.json")
    heads_of(reader).save(tmp_path / "shipped" / "b.json")
    recipe = named("compresskv")
    assert needed(recipe, tmp_path, "", reader.identity) == heads_of(reader)
    own = replace(heads_of(reader), made={"by": "hand"})
    own.save(tmp_path / "heads.json")
    assert needed(recipe, tmp_path, "", reader.identity) == own
    with pytest.raises(ReaderError, match="there is no"):
        needed(recipe, tmp_path, "nowhere.json", reader.identity)


# ---------------------------------------------------------------------------- the table


def test_compressing_answers_goes_with_any_memory(
    model: Path, reader: Reader, tmp_path: Path
) -> None:
    recipe = named("snapkv+zoomr")
    assert recipe == replace(METHODS["snapkv"], name="snapkv+zoomr", output=Thoughts())
    store = read(tmp_path, model, TEXT, reader=reader, method="snapkv+zoomr")
    with session(store, reader, budget="20%") as opened:
        assert opened.memory.layers[0].recipe.output == Thoughts()
        assert opened.ask(QUESTION).usage.answer_tokens == 8
    with pytest.raises(BudgetError, match="known: sekv"):
        named("none+zoomr")


def test_a_name_can_change_settings_and_the_store_remembers_them(
    model: Path, reader: Reader, tmp_path: Path
) -> None:
    name = "sekv+codec.bits=6+local=16"
    recipe = named(name)
    codec = replace(METHODS["sekv"].codec, bits=6.0)
    assert recipe == replace(METHODS["sekv"], name=name, codec=codec, local=16)
    opened_as = []
    for method in ("sekv", name):
        store = read(tmp_path / method, model, TEXT, reader=reader, method=method)
        with session(store, reader, budget="100%") as opened:
            opened_as.append(opened.memory.layers[0].recipe.settings())
            assert opened.ask(QUESTION).usage.answer_tokens == 8
    assert opened_as == [METHODS["sekv"].settings(), recipe.settings()]


NO_SETTINGS = {
    "snapkv+": "has no setting ''",
    "zoomr+snapkv": "has no setting 'snapkv'",
    "sekv+bits=4": "known there: sinks, local, keep",
    "sekv+codec.size=4": "known there: bits, outlier, residual",
    "sekv+decoder.bits=4": "has no part 'decoder'",
    "sekv+output.full=4": "known there: none",
    "sekv+whole=1": "has no setting 'whole'",
    "sekv+local=few": "a whole number from 0",
    "sekv+local=1.5": "a whole number from 0",
    "sekv+local=-1": "a whole number from 0",
    "sekv+codec.bits=nan": "a number from 0",
    "sekv+codec.bits=1e9": "to below 1048576",
}


def test_a_setting_that_is_none_is_refused_with_those_there_are(
    subtests: pytest.Subtests,
) -> None:
    for name, why in NO_SETTINGS.items():
        with subtests.test(name), pytest.raises(BudgetError, match=re.escape(why)):
            named(name)


def test_the_methods_are_those_that_were_promised() -> None:
    assert set(METHODS) == {
        "full", "sekv", "sekv-paper", "sentencekv", "compresskv", "compresskv-strict",
        "sentkvcompress", "zoomr", "dynsplit", "streaming", "snapkv",
    }  # fmt: skip


@pytest.mark.parametrize("method", [m for m in METHODS if m != "full"])
def test_every_method_says_how_it_differs(method: str) -> None:
    """In one plain line; what is only partly known is called our reading."""
    differs = METHODS[method].differs
    assert 20 < len(differs) < 400
    assert "\n" not in differs
    if method in ("sentkvcompress", "dynsplit"):
        assert differs.startswith("our reading")


def test_published_values_are_the_published_ones() -> None:
    snap, compress = METHODS["snapkv"], METHODS["compresskv"]
    assert snap.observe.rows == 32
    assert (compress.observe.rows, compress.sinks, compress.local) == (8, 0, 8)
    assert isinstance(compress.router, RetrievalHeads)
    assert compress.router.kernel == 5
    sentence = METHODS["sentencekv"]
    assert (sentence.sinks, sentence.local) == (32, 32)
    assert sentence.selector == SentenceQuery(recent=32)
    rule = METHODS["zoomr"].output
    assert rule is not None
    assert (rule.full, rule.top, rule.recent) == (2, 2, 512)
    assert METHODS["streaming"].sinks == 4


def test_a_resumed_reading_has_observed_the_same(
    model: Path, reader: Reader, tmp_path: Path
) -> None:
    """Queries and nearness of finished chunks are kept with them, byte for byte."""
    from engine.ingest import build as use

    chunks = list(
        reader.read_window(
            list(TEXT.encode())[:200], reader.prefix(), 64, [], named("dynsplit").observe
        )
    )
    back = use._unpack_chunk(use._pack_chunk(chunks[0]))
    assert back.near is not None
    assert chunks[0].near is not None
    assert torch.equal(back.near, chunks[0].near)
    chunks = list(
        reader.read_window(
            list(TEXT.encode())[:99], reader.prefix(), 64, [], named("snapkv").observe
        )
    )
    back = use._unpack_chunk(use._pack_chunk(chunks[0]))
    assert all(torch.equal(a, b) for a, b in zip(back.queries, chunks[0].queries, strict=True))
    assert len(back.queries) == 3
    assert IngestOptions().heads == ""


@pytest.mark.parametrize("method", NAMES)
def test_of_many_windows_every_method_sees_few(
    method: str, model: Path, reader: Reader, tmp_path: Path
) -> None:
    """By the words of the question, or by a vote where none stands in the document; within its
    bytes. What keeps every row has nothing to vote with."""
    whole = METHODS[method].whole
    store = read(tmp_path, model, TEXT, reader=reader, method=method, window=70)
    with session(store, reader, budget="20%", max_new_tokens=4) as opened:
        windows = len(opened.store.manifest.windows)
        answers = [opened.ask(QUESTION), opened.ask("Who was he?")]
        tokens = opened.store.manifest.tokens
    assert windows > 10
    by = ["words", "all" if whole else "attention"]
    assert [answer.stats["windows_by"] for answer in answers] == by
    assert answers[0].stats["windows_read"] == PASSAGES_SEEN
    assert answers[1].stats["windows_read"] == (windows if whole else VOTED_WINDOWS)
    for answer in answers:
        assert answer.usage.answer_tokens == 4
        assert whole or answer.memory.device_kv_bytes <= 0.2 * tokens * 4 * 3 * 2 * 16


def test_more_can_be_appended_to_any_store(
    stores: dict[str, Path], model: Path, reader: Reader, tmp_path: Path
) -> None:
    """What a method observes while reading is observed of the new windows too."""
    import shutil

    from engine.ingest.run import append

    more = tmp_path / "more.txt"
    more.write_text(log(5), encoding="utf-8")
    for method in ("compresskv", "dynsplit", "snapkv", "sentencekv"):
        store = tmp_path / f"{method}.sekv"
        shutil.copytree(stores[method], store)
        append([str(more)], store, IngestOptions(model=str(model)), Silent(), None, reader)
        with session(store, reader, budget="20%", max_new_tokens=3) as opened:
            assert len(opened.store.manifest.windows) == 3
            assert opened.ask(QUESTION).usage.answer_tokens == 3
