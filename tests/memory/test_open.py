"""A store becomes a memory under a budget: what stays exact, what shrinks, what is refused."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.answer.session import Session
from engine.attention.layer import LayerMemory
from engine.compression import methods as recipes
from engine.compression.params import needed
from engine.compression.routers.two_level import Levels
from engine.compression.spans import Entropy
from engine.errors import BudgetError, StoreError
from engine.ingest.run import ingest
from engine.memory.fitting import ZOOM_RESERVE, parse_budget
from engine.models.reader import Reader
from engine.store.manifest import NAME, Manifest, from_bytes
from engine.store.reader import Store
from engine.store.schema import recipe_of
from engine.types import AUTO, IngestOptions, Silent, Turn
from tiny_books import QUESTION, TEXT, read, session

PAPER = replace(
    recipes.METHODS["sekv-paper"], name="paper", segmenter=Entropy(shortest=4), local=16
)


@pytest.fixture(scope="module")
def stores(
    store: Path,
    many: Path,
    model: Path,
    reader: Reader,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """The same log by our method, by the published one, in four windows and in eleven."""
    patch = pytest.MonkeyPatch()
    patch.setitem(recipes.METHODS, "paper", PAPER)
    place = tmp_path_factory.mktemp("stores")
    made = {
        "sekv": store,
        "paper": read(place / "paper", model, reader=reader, method="paper"),
        "windows": read(place / "windows", model, reader=reader, window=160),
        "many": many,
    }
    patch.undo()
    return made


def tree(store: Path) -> dict[str, bytes]:
    files = sorted(path for path in store.rglob("*") if path.is_file())
    return {str(path.relative_to(store)): path.read_bytes() for path in files}


def allowed(opened: Session, budget: float) -> float:
    """Device bytes that a number of document tokens stands for: 16-bit K and V rows."""
    model = opened.store.manifest.model
    return budget * 4 * model.head_dim * model.kv_heads * model.layers


# ---------------------------------------------------------------------------- what stays exact


@pytest.mark.parametrize("kind", ["sekv", "paper", "windows"])
def test_first_and_last_tokens_are_exact_rows(
    kind: str, stores: dict[str, Path], reader: Reader
) -> None:
    """Sinks of every window, and the document's last `local` tokens, are pinned in every layer."""
    with session(stores[kind], reader, budget="60%") as opened:
        manifest = opened.store.manifest
        local = int(manifest.settings["local"])
        sinks = int(manifest.settings["sinks"])
        wanted = set(range(manifest.tokens - local, manifest.tokens))
        for window in manifest.windows:
            wanted |= set(range(window.start, window.start + sinks))
        for layer in opened.memory.layers:
            assert wanted <= set(layer.pinned_token.tolist())


def test_pinned_rows_are_the_rows_of_the_model(stores: dict[str, Path], reader: Reader) -> None:
    """Prefix and pinned tokens equal the model's own cache, to the half precision they keep."""
    ids = [*reader.prompt.prefix, *session_ids(stores["sekv"], reader)]
    from transformers import DynamicCache

    cache = DynamicCache(config=reader.model.config)
    with torch.inference_mode():
        reader.model.base_model(input_ids=torch.tensor([ids]), past_key_values=cache)
    with session(stores["sekv"], reader, budget="60%") as opened:
        for layer, own in zip(opened.memory.layers, cache.layers, strict=True):
            place = layer.pinned_token + len(reader.prompt.prefix)
            torch.testing.assert_close(
                layer.pinned_k.float(), own.keys[0][:, place], atol=1e-4, rtol=1e-3
            )
            torch.testing.assert_close(
                layer.pinned_v.float(), own.values[0][:, place], atol=1e-4, rtol=1e-3
            )


def session_ids(store: Path, reader: Reader) -> list[int]:
    with session(store, reader) as opened:
        ids: list[int] = opened.ids.tolist()
    return ids


@pytest.mark.parametrize("budget", ["0.01%", "1%", "5%", "20%", "100%"])
def test_the_very_first_token_is_always_an_exact_row(
    budget: str, stores: dict[str, Path], reader: Reader
) -> None:
    """Whatever does not fit: the token that attention sinks into is there."""
    with session(stores["sekv"], reader, budget=budget) as opened:
        for layer in opened.memory.layers:
            assert layer.pinned_token[0] == -1
            assert layer.pinned_k.shape[1] == len(layer.pinned_token) >= 1


# ---------------------------------------------------------------------------- bytes


BUDGETS = ("1", "1%", "3%", "8%", "12%", "17%", "30%", "60%", "100%")


@pytest.mark.parametrize(
    ("kind", "budget"),
    [
        *((kind, budget) for kind in ("sekv", "many") for budget in BUDGETS),
        *((kind, budget) for kind in ("paper", "windows") for budget in BUDGETS[2::3]),
    ],
)
def test_resident_bytes_keep_to_the_budget(
    kind: str,
    budget: str,
    stores: dict[str, Path],
    reader: Reader,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After every layer of every step. Where not even the prefix fits, it alone remains."""
    most = 0
    report = LayerMemory._report

    def measure(layer: LayerMemory, *args: Any) -> None:
        nonlocal most
        most = max(most, layer.shared.device_bytes)
        report(layer, *args)

    monkeypatch.setattr(LayerMemory, "_report", measure)
    with session(stores[kind], reader, budget=budget, max_new_tokens=3) as opened:
        answer = opened.ask(QUESTION)
        layers = opened.memory.layers
        prefix = sum(
            2 * len(reader.prompt.prefix) * layer.heads * layer.size * layer.pinned_k.itemsize
            + 8 * layer.heads
            for layer in layers
        )
        cap = allowed(opened, parse_budget(budget, opened.store.manifest.tokens))
        assert 0 < most <= answer.memory.device_kv_bytes <= max(cap, prefix)
        if cap < prefix:
            assert all(not len(layer.view.spans) for layer in layers)
            assert all(layer.pinned_token.tolist() == [-1] for layer in layers)


@pytest.fixture
def spans_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every view counts as long."""

    def of(manifest: Manifest) -> recipes.Method:
        return replace(recipe_of(manifest), levels=Levels(beyond=1))

    monkeypatch.setattr("engine.memory.open.recipe_of", of)


@pytest.mark.parametrize("budget", ["1%", "3%", "8%", "17%", "60%"])
@pytest.mark.parametrize("kind", ["sekv", "many"])
def test_a_span_level_keeps_to_the_budget_too(
    kind: str,
    budget: str,
    stores: dict[str, Path],
    reader: Reader,
    monkeypatch: pytest.MonkeyPatch,
    spans_first: None,
) -> None:
    """It takes of the same bytes, is there in all that routes, and leaves room to zoom."""
    test_resident_bytes_keep_to_the_budget(kind, budget, stores, reader, monkeypatch)
    with session(stores[kind], reader, budget=budget) as opened:
        for layer in opened.memory.layers:
            if not len(layer.view.spans):
                continue
            tables = layer.index.tables
            assert needed(tables.means).shape[1] == len(layer.view.spans)
            assert needed(tables.radii).shape[1] == len(layer.view.spans)
            assert layer.limits.cap - layer.fixed_bytes > 0


def test_a_short_document_has_no_span_level(stores: dict[str, Path], reader: Reader) -> None:
    with session(stores["many"], reader, budget="60%") as opened:
        for layer in opened.memory.layers:
            assert not layer.index.has_span_level
            assert layer.params.bounds is None


def test_windows_need_a_span_level_only_where_one_is_long(
    stores: dict[str, Path], reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A book in windows is as quick to open as its windows are short: passages are in view."""
    manifest = Store.open(stores["windows"]).manifest
    longest = max(window.end - window.start for window in manifest.windows)
    assert longest < manifest.tokens
    for beyond, expected in ((longest + 1, False), (longest, True)):
        levels = Levels(beyond=beyond)
        monkeypatch.setattr(
            "engine.memory.open.recipe_of",
            lambda m, levels=levels: replace(recipe_of(m), levels=levels),
        )
        with session(stores["windows"], reader, budget="60%") as opened:
            assert {layer.index.has_span_level for layer in opened.memory.layers} == {expected}


def test_all_zoomed_the_span_level_changes_no_answer(
    stores: dict[str, Path], reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the whole document on the device there is nothing to estimate."""
    answers = []
    for beyond in (10**9, 1):
        levels = Levels(beyond=beyond)
        monkeypatch.setattr(
            "engine.memory.open.recipe_of",
            lambda m, levels=levels: replace(recipe_of(m), levels=levels),
        )
        with session(stores["windows"], reader, budget="1000%") as opened:
            answers.append(opened.ask(QUESTION).answer)
            for layer in opened.memory.layers:
                assert [len(z) for z in layer.zoomed.spans] == [len(layer.view.spans)] * layer.heads
    assert answers[0] == answers[1]


def test_old_turns_of_a_talk_have_a_span_level_too(
    stores: dict[str, Path],
    reader: Reader,
    monkeypatch: pytest.MonkeyPatch,
    spans_first: None,
) -> None:
    """What follows a document is scored as it is, and goes again with the talk."""
    monkeypatch.setattr("engine.answer.session.TURNS_SHARE", 0.0)
    monkeypatch.setattr("engine.memory.conversation.SHARE", math.inf)
    turns = [Turn(f"What of day {i}?", f"It rained on day {i}.") for i in range(2)]
    with session(stores["sekv"], reader, budget="60%", max_new_tokens=2) as opened:
        [first, *_] = opened.memory.layers
        own = needed(first.index.tables.means).shape[1]
        assert opened.ask(QUESTION, turns=turns).stats["turns_folded"] == 2
        assert needed(first.index.tables.means).shape[1] == len(first.view.spans) > own
        opened.ask(QUESTION)
        assert needed(first.index.tables.means).shape[1] == len(first.view.spans) == own


def test_more_budget_never_pins_or_shows_less(stores: dict[str, Path], reader: Reader) -> None:
    seen: list[tuple[int, int]] = []
    for budget in ("1%", "4%", "8%", "12%", "16%", "24%", "50%", "100%", "1000%"):
        with session(stores["sekv"], reader, budget=budget) as opened:
            layer = opened.memory.layers[0]
            exact = int((layer.pinned_token >= 0).sum())
            seen.append((exact, exact + int(layer.view.lengths.sum())))
    assert [known for _, known in seen] == sorted(known for _, known in seen)
    assert seen[-1][1] == len(TEXT)


@pytest.mark.parametrize("kind", ["sekv", "paper", "many"])
def test_some_room_is_always_kept_to_zoom(
    kind: str, stores: dict[str, Path], reader: Reader
) -> None:
    """Whatever the budget: where there is anything to zoom into, a part of it is free, and
    layers whose keys take more bytes have as much of that as the others."""
    zoomable = 0
    for budget in ("1%", "2%", "3%", "5%", "8%", "12%", "20%", "40%"):
        with session(stores[kind], reader, budget=budget) as opened:
            for layer in opened.memory.layers:
                if not len(layer.view.spans):
                    continue
                zoomable += 1
                caps = [each.limits.cap for each in opened.memory.layers]
                assert layer.limits.cap - layer.fixed_bytes >= 0.8 * ZOOM_RESERVE * sum(caps) / len(
                    caps
                )
    assert zoomable > 3


def test_tokens_and_per_cent_mean_the_same(stores: dict[str, Path], reader: Reader) -> None:
    """Half the document, said in two ways: equal bytes, equal zoom, equal answer."""
    count = len(TEXT) // 4
    share = f"{100 * count / len(TEXT):.9f}%"
    answers = []
    for budget in (str(count), share):
        with session(stores["sekv"], reader, budget=budget, trace=True) as opened:
            answer = opened.ask(QUESTION)
            answers.append((answer.answer, answer.memory, opened.trace()["zoom"]))
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("10%", 100.0), ("10 %", 100.0), (" 12.5% ", 125.0), ("4096", 4096.0), ("0.1%", 1.0)],
)
def test_budgets_are_a_share_or_a_number(text: str, tokens: float) -> None:
    assert parse_budget(text, 1000) == tokens


@pytest.mark.parametrize(("document", "tokens"), [(100, 1024), (3000, 1024), (50_000, 15_000)])
def test_a_budget_that_nobody_named_is_a_third_but_never_a_few_sentences(
    document: int, tokens: float
) -> None:
    assert parse_budget(AUTO, document) == tokens


def test_the_default_budget_of_a_short_text_holds_all_of_it(
    stores: dict[str, Path], reader: Reader
) -> None:
    """A named share is taken at its word; how many tokens a budget is worth is told."""
    with session(stores["sekv"], reader, full=True) as opened:
        everything = opened.ask(QUESTION).memory.zoomed_spans
    with session(stores["sekv"], reader, budget=AUTO) as opened:
        memory = opened.ask(QUESTION).memory
        assert memory.budget_tokens == 1024 > len(opened.ids)
        assert memory.zoomed_spans == everything
    with session(stores["sekv"], reader, budget="20%") as opened:
        memory = opened.ask(QUESTION).memory
        assert memory.budget_tokens == round(len(opened.ids) / 5)
        assert memory.zoomed_spans < everything


@pytest.mark.parametrize("text", ["", "%", "ten", "-5%", "0", "0%", "1e3", "5%%", "10GB", "nan"])
def test_other_budgets_are_one_line(text: str) -> None:
    with pytest.raises(BudgetError, match=r"^budget '.*' is neither a share such as 10% nor"):
        parse_budget(text, 1000)


@given(text=st.text(max_size=12), tokens=st.integers(1, 10**7))
def test_any_budget_is_positive_or_one_line(text: str, tokens: int) -> None:
    try:
        allowed_tokens = parse_budget(text, tokens)
    except BudgetError as error:
        said = str(error)
    else:
        said = ""
        assert 0 < allowed_tokens < math.inf
    assert "\n" not in said.replace(text, "")


@pytest.mark.parametrize("coverage", [0.0, -1.0, 1.0001, math.nan])
def test_coverage_is_a_share(coverage: float, stores: dict[str, Path], reader: Reader) -> None:
    with pytest.raises(BudgetError, match="coverage"):
        session(stores["sekv"], reader, coverage=coverage)


# ---------------------------------------------------------------------------- positions


def test_the_query_is_rotated_to_its_place_behind_the_document(
    stores: dict[str, Path], reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory sees queries at the positions that follow the document, not at 0, 1, 2 ..."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    seen: list[torch.Tensor] = []
    attend = LayerMemory.attend

    def remember(layer: LayerMemory, q: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        if layer.layer == 0:
            seen.append(q)
        return attend(layer, q, *rest)

    monkeypatch.setattr(LayerMemory, "attend", remember)
    ids = torch.tensor([reader.prompt.question(reader.tokenizer, QUESTION)])
    with session(stores["sekv"], reader) as opened, torch.inference_mode():
        length = opened.memory.length
        assert length == len(reader.prompt.prefix) + len(TEXT)
        reader.model(
            input_ids=ids,
            attention_mask=torch.ones(1, length + ids.shape[1]).to(ids),
            past_key_values=opened.past.cache(),
        )
        inner = reader.model.model
        hidden = inner.layers[0].input_layernorm(inner.embed_tokens(ids))
        plain = inner.layers[0].self_attn.q_proj(hidden).reshape(1, ids.shape[1], 4, 16)
        plain = plain.transpose(1, 2)
        places = torch.arange(length, length + ids.shape[1])[None]
        cos, sin = inner.rotary_emb(plain, places)
        turned, _ = apply_rotary_pos_emb(plain, plain, cos, sin)
    (q,) = seen
    assert float((q - plain[0]).abs().max()) > 0.1
    torch.testing.assert_close(q, turned[0], atol=1e-5, rtol=1e-5)


def test_windows_share_positions_and_the_question_follows_the_longest(
    stores: dict[str, Path], reader: Reader
) -> None:
    with session(stores["windows"], reader) as opened:
        windows = opened.store.manifest.windows
        longest = max(window.end - window.start for window in windows)
        assert len(windows) > 1
        assert opened.memory.length == len(reader.prompt.prefix) + longest


# ---------------------------------------------------------------------------- questions


def test_questions_leave_the_store_as_it_was(
    stores: dict[str, Path], reader: Reader, tmp_path: Path
) -> None:
    before = tree(stores["sekv"])
    for question in ("How many whales?", "Who rained?"):
        with session(stores["sekv"], reader) as opened:
            opened.ask(question)
    assert tree(stores["sekv"]) == before


def test_the_same_document_gives_the_same_bytes(
    stores: dict[str, Path], model: Path, reader: Reader
) -> None:
    """Read again, with a reader loaded again: not one byte differs."""
    again = stores["sekv"].parent / "again.sekv"
    source = str(stores["sekv"].parent / "log.txt")
    ingest([source], again, IngestOptions(model=str(model)), Silent())
    assert tree(again) == tree(stores["sekv"])
    shutil.rmtree(again)


@pytest.mark.parametrize("kind", ["sekv", "paper", "many"])
def test_questions_do_not_meet(kind: str, stores: dict[str, Path], reader: Reader) -> None:
    """Several questions in one session: each as if it had been asked alone."""
    questions = ["How many whales?", "Did it rain on day 7?"]
    options: dict[str, Any] = {"budget": "20%", "trace": True, "max_new_tokens": 3}

    def answers(opened: Session, question: str) -> Any:
        answer = opened.ask(question)
        return answer.answer, answer.citations, answer.memory, opened.trace()

    alone = []
    for question in questions:
        with session(stores[kind], reader, **options) as opened:
            alone.append(answers(opened, question))
    with session(stores[kind], reader, **options) as opened:
        together = [answers(opened, question) for question in (*questions, questions[0])]
    assert together == [*alone, alone[0]]


# ---------------------------------------------------------------------------- refusals


def other(reader: Reader, **changes: Any) -> Reader:
    """The same reader under another identity."""
    return Reader(
        reader.model,
        reader.tokenizer,
        replace(reader.identity, **changes),
        reader.prompt,
        reader.located,
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"weights": "00" * 16}, "weights"),
        ({"tokenizer": "00" * 16}, "tokenizer"),
        ({"rope": {"rope_type": "default", "rope_theta": 5.0}}, "rope"),
        ({"architecture": "OtherForCausalLM"}, "architecture"),
        ({"kv_heads": 4}, "shape"),
        ({"transformers": "99.0.0", "behaviour": ()}, "transformers"),
        ({"transformers": "99.0.0", "behaviour": (9.5,) * 47}, "under transformers 99.0.0"),
    ],
)
def test_another_reader_is_refused_in_one_line(
    changes: dict[str, Any], said: str, stores: dict[str, Path], reader: Reader
) -> None:
    with pytest.raises(StoreError, match=said) as caught:
        session(stores["sekv"], other(reader, **changes))
    assert "\n" not in str(caught.value)


def test_other_weights_under_the_same_name_are_refused(
    stores: dict[str, Path], model: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"][3] += 1
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StoreError, match="weights"):
        session(stores["sekv"], model=str(copy), device="cpu")


def damaged(store: Path, folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a store whose manifest tells something else, under a right checksum."""
    copy = folder / "copy.sekv"
    shutil.copytree(store, copy)
    manifest = from_bytes((copy / NAME).read_bytes())
    change(manifest.settings)
    (copy / NAME).write_bytes(manifest.to_bytes())
    return copy


def _no_such_codec(settings: dict[str, Any]) -> None:
    settings["codec"] = {"kind": "Nonsense"}


def _no_such_field(settings: dict[str, Any]) -> None:
    settings["router"] = {"kind": "Sketch", "colour": 3}


def _no_sinks(settings: dict[str, Any]) -> None:
    del settings["sinks"]


def _sinks_of_words(settings: dict[str, Any]) -> None:
    settings["sinks"] = "many"


@pytest.mark.parametrize("change", [_no_such_codec, _no_such_field, _no_sinks, _sinks_of_words])
def test_unknown_settings_are_one_line(
    change: Any, stores: dict[str, Path], reader: Reader, tmp_path: Path
) -> None:
    with pytest.raises(StoreError, match="unknown method settings"):
        session(damaged(stores["sekv"], tmp_path, change), reader)


def test_full_zooms_everything_at_the_bits_it_has(stores: dict[str, Path], reader: Reader) -> None:
    """Whatever the budget says; nothing is routed, and codes take less than rows would."""
    with session(stores["sekv"], reader, full=True, budget="1%", trace=True) as opened:
        answer = opened.ask(QUESTION)
        for layer in opened.memory.layers:
            assert bool(layer.zoomed.held.all())
            assert int((layer.zoomed.tokens[0] >= 0).sum()) == len(TEXT)
            assert layer.index.nbytes == 0
        assert opened.trace()["zoom"] == []
        rows = 2 * 3 * 2 * 16 * (len(TEXT) + 1) * 4
        assert 0 < answer.memory.device_kv_bytes < rows / 2
        assert answer.stats["estimated_coverage"] == 1.0
