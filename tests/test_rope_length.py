"""Models whose RoPE depends on the length of the context answer as their own full cache of that
length does.

As in test_exactness: always through a store that was written, closed and opened again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from engine.answer.session import Session
from engine.attention.rope_length import context_for
from engine.compression import methods as recipes
from engine.errors import BudgetError, QuestionError, ReaderError
from engine.ingest.run import append, plan
from engine.models import evidence_heads
from engine.models.load import check_supported
from engine.models.reader import Reader, load_reader
from engine.store.reader import Store
from engine.types import AskOptions, IngestOptions, Silent
from exact_methods import EXACT
from exactness import QUESTION
from tiny_books import log, read, report
from tiny_models import checkpoint

TRAINED, LONGEST = 1024, 2048
"""Positions; 512 of the longest context are kept free behind a document."""

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [1.0 + i for i in range(8)],
    "original_max_position_embeddings": TRAINED,
}
MSCALE = {"short_mscale": 1.1, "long_mscale": 1.3}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "longrope": (
        "phi3",
        {"original_max_position_embeddings": TRAINED, "rope_parameters": LONGROPE},
    ),
    "longrope and a scale": ("phimoe", {"rope_parameters": LONGROPE | MSCALE}),
    "dynamic": (
        "llama",
        {
            "max_position_embeddings": TRAINED,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
        },
    ),
}
FEW = {"sliding_window": None, "num_local_experts": 4, "max_position_embeddings": LONGEST}
"""What Phi-3 and PhiMoE need to be small, with full attention."""

Loaded = Callable[[str], tuple[Path, Reader]]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    """A tiny checkpoint and its reader, each made once; a method `exact` that loses nothing."""
    known: dict[str, tuple[Path, Reader]] = {}

    def load(kind: str) -> tuple[Path, Reader]:
        if kind not in known:
            architecture, changes = KINDS[kind]
            folder = tmp_path_factory.mktemp(architecture) / "model"
            model = checkpoint(architecture, folder, **FEW | changes)
            known[kind] = model, load_reader(str(model), device="cpu")
        return known[kind]

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(recipes.METHODS, "exact", EXACT["sekv"])
        patch.setattr(evidence_heads, "ensure", lambda reader: None)  # half of the time
        yield load


def opened(store: Path, model: Path, reader: Reader) -> Session:
    asked = AskOptions(budget="10000%", coverage=1.0, model=str(model))
    return Session(store, asked, Silent(), reader)


def at_once(model: Path, ids: list[int], context: int) -> torch.Tensor:
    """Logits [n, V] of the library's own eager model in one forward over a context of that length.

    Its last token stands at the end of the context, where no other sees it: the library takes the
    length from the largest position."""
    plain = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, attn_implementation="eager"
    )
    places = torch.tensor([[*range(len(ids)), context - 1]])
    with torch.inference_mode():
        out = plain(
            input_ids=torch.tensor([[*ids, 0]]),
            position_ids=places,
            attention_mask=torch.ones_like(places),
            use_cache=False,
        )
    logits: torch.Tensor = out.logits[0, :-1]
    return logits


def apart(session: Session, model: Path, context: int, window: slice = slice(None)) -> float:
    """How far the logits of a question and of tokens one by one, from a memory, are at most from
    the plain model's in a context of that length."""
    reader = session.reader
    question = reader.prompt.question(reader.tokenizer, QUESTION)
    steps = [question, [65], [66], [67]]
    document = session.ids[window].tolist()
    cache, rows = session.past.cache(), []
    with torch.inference_mode():
        for step in steps:
            mask = torch.ones(1, cache.get_seq_length() + len(step), dtype=torch.long)
            given = torch.tensor([step])
            out = reader.model(input_ids=given, attention_mask=mask, past_key_values=cache)
            rows.append(out.logits[0])
    found = torch.cat(rows)
    ids = [*reader.prompt.prefix, *document, *(token for step in steps for token in step)]
    expected = at_once(model, ids, context)[-len(found) :]
    return float((found - expected).abs().max())


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_stores_of_several_lengths_are_each_exact_with_one_model(
    kind: str, loaded: Loaded, tmp_path: Path
) -> None:
    """A short text stays within what the model was trained with, a long one does not; asked in
    turn, neither leaves its frequencies to the other."""
    model, reader = loaded(kind)
    how: dict[str, Any] = {"reader": reader, "method": "exact", "chunk_tokens": 100}
    short = read(tmp_path / "short", model, log(3), **how)
    long = read(tmp_path / "long", model, log(11), **how)
    contexts = {}
    for store in (long, short, long):
        with opened(store, model, reader) as asked:
            context = contexts[store] = asked.store.manifest.context
            assert (asked.reader.max_positions, asked.store.manifest.format) == (context, 2)
            assert apart(asked, model, context) < 1e-4
            other = TRAINED if context > TRAINED else LONGEST
            assert apart(asked, model, other) > 0.01
    assert contexts[short] == TRAINED < contexts[long] <= LONGEST


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_window_has_the_frequencies_of_the_longest(
    kind: str, loaded: Loaded, tmp_path: Path
) -> None:
    """Also one that is appended, whatever its own length."""
    model, reader = loaded(kind)
    store = read(
        tmp_path, model, log(20), reader=reader, method="exact", chunk_tokens=200, window=600
    )
    more = tmp_path / "more.txt"
    more.write_text("And then there was silence for two days.\n")
    append([str(more)], store, IngestOptions(chunk_tokens=64), Silent(), None, reader)
    with opened(store, model, reader) as asked:
        manifest = asked.store.manifest
        assert manifest.context > TRAINED
        assert len({w.end - w.start for w in manifest.windows}) > 1
        for window in (manifest.windows[0], manifest.windows[-1]):
            for layer in asked.memory.layers:
                layer.focus([(window.start, window.end)])
            asked.past.length = len(asked.reader.prompt.prefix) + window.end - window.start
            seen = slice(window.start, window.end)
            assert apart(asked, model, manifest.context, seen) < 1e-4


def test_the_length_is_that_of_a_window_that_is_asked_for(loaded: Loaded, tmp_path: Path) -> None:
    """A short text is then read as the beginning of a long one."""
    model, reader = loaded("dynamic")
    made = report(tmp_path / "asked", model, log(3), reader=reader, method="exact", window=900)
    with Store.open(Path(made.store)) as store:
        assert store.manifest.context == 900 + 512
    with opened(Path(made.store), model, reader) as asked:
        assert apart(asked, model, 900 + 512) < 1e-4
    source = tmp_path / "asked" / "log.txt"
    foreseen = plan([str(source)], IngestOptions(model=str(model), window=900), Silent())
    assert foreseen.window_tokens == made.window_tokens == 900
    with pytest.raises(BudgetError, match="at most 1536 document tokens"):
        report(tmp_path / "more", model, log(3), reader=reader, window=1537)


def test_nothing_is_read_behind_the_context_whose_frequencies_are_held(
    loaded: Loaded, tmp_path: Path
) -> None:
    model, reader = loaded("longrope")
    store = read(tmp_path, model, log(3), reader=reader, method="exact")
    with opened(store, model, reader) as asked:
        with pytest.raises(QuestionError, match="positions are left") as caught:
            asked.ask("Why? " * TRAINED)
        assert "\n" not in str(caught.value)
        used = asked.ask(QUESTION).usage
        assert asked.memory.length + used.question_tokens + used.answer_tokens <= TRAINED
    with pytest.raises(ReaderError, match=f"contexts of more than {TRAINED} positions"):
        reader.forward([1, 2], TRAINED - 1, reader.empty_cache(8))


def test_a_context_that_the_model_does_not_have_is_refused(loaded: Loaded) -> None:
    for kind, wrong in (("longrope", 1500), ("longrope", 0), ("dynamic", 100), ("dynamic", 4096)):
        with pytest.raises(ReaderError, match="ingest again") as caught:
            loaded(kind)[1].at(wrong)
        assert "\n" not in str(caught.value)


def test_lengths_hold_for_all_kinds_of_layers_or_not_at_all() -> None:
    """Gemma 3 has parameters of RoPE for each kind of layer."""
    plain = {"rope_type": "default", "rope_theta": 10000.0}
    longer = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    config = AutoConfig.for_model(
        "gemma3_text",
        num_hidden_layers=6,
        max_position_embeddings=512,
        rope_parameters={"sliding_attention": plain, "full_attention": longer},
    )
    assert [context_for(config, tokens) for tokens in (1, 600, 5000)] == [512, 600, 1024]
    config.rope_parameters["sliding_attention"] = LONGROPE
    with pytest.raises(ReaderError, match="in different ways") as caught:
        check_supported(config)
    assert "\n" not in str(caught.value)
    assert context_for(AutoConfig.for_model("llama"), 5000) == 0
