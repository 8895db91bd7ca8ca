"""The anchor of correctness: everything zoomed at full rank equals the plain full-cache model.

Always through a store that was written, closed and opened again.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.answer.session import Session
from engine.compression import methods as recipes
from engine.ingest.run import ingest
from engine.types import AskOptions, IngestOptions, Silent
from exact_methods import EXACT
from exactness import QUESTION, TEXT, from_memory, make_store, truth
from tiny_models import checkpoint


@pytest.fixture(scope="module", params=["llama", "qwen2", "qwen3", "mistral"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind: str = request.param
    return checkpoint(kind, tmp_path_factory.mktemp(kind))


@pytest.mark.parametrize("exact", sorted(EXACT))
@pytest.mark.parametrize("chunk", [64, 1024])
def test_everything_zoomed_at_full_rank_equals_the_full_cache(
    model: Path, exact: str, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(tmp_path, model, monkeypatch, exact, chunk_tokens=chunk)
    options = AskOptions(budget="10000%", coverage=1.0, model=str(model))
    with Session(store, options, Silent()) as session:
        ids, logits = from_memory(session, 24)
        for layer in session.memory.layers:
            assert all(len(z) == len(layer.view.spans) for z in layer.zoomed.spans)
            assert len(layer.view.spans) > 3
        true_ids, true_logits = truth(session, model, 24)
    assert torch.equal(ids, true_ids)
    torch.testing.assert_close(logits, true_logits, atol=1e-4, rtol=0)


def test_nothing_zoomed_does_not_equal_it(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exactness test can fail: summaries alone are far off on these weights."""
    store = make_store(tmp_path, model, monkeypatch, "sekv")
    with Session(store, AskOptions(budget="10000%", model=str(model)), Silent()) as session:
        for layer in session.memory.layers:
            layer.limits = replace(layer.limits, cap=-math.inf)
        _, logits = from_memory(session, 1)
        assert all(len(z) == 0 for la in session.memory.layers for z in la.zoomed.spans)
        _, true_logits = truth(session, model, 1)
    assert float((logits - true_logits).abs().max()) > 0.05


@pytest.mark.parametrize("method", ["full", "exact"])
def test_whole_rows_equal_the_full_cache(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = checkpoint("llama", tmp_path / "model")
    monkeypatch.setitem(recipes.METHODS, "exact", EXACT["sekv"])
    source = tmp_path / "log.txt"
    source.write_text(TEXT)
    store = tmp_path / "log.sekv"
    ingest([str(source)], store, IngestOptions(model=str(model), method=method), Silent())
    with Session(store, AskOptions(full=True, model=str(model)), Silent()) as session:
        ids, logits = from_memory(session, 24)
        true_ids, true_logits = truth(session, model, 24)
    assert torch.equal(ids, true_ids)
    torch.testing.assert_close(logits, true_logits, atol=1e-4, rtol=0)


def test_parallel_windows_equal_one_softmax_over_their_caches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows share prefix and positions and meet only at the question: built here by hand from
    the plain model's caches, without any of the memory's code."""
    from transformers import DynamicCache

    model = checkpoint("llama", tmp_path / "model")
    store = make_store(tmp_path, model, monkeypatch, "sekv", window=160)
    options = AskOptions(budget="10000%", coverage=1.0, model=str(model))
    with Session(store, options, Silent()) as session:
        windows = session.store.manifest.windows
        assert 2 <= len(windows) <= 8
        _, logits = from_memory(session, 1)
        plain = AutoModelForCausalLM.from_pretrained(
            model, dtype=torch.float32, attn_implementation="eager"
        )
        prefix = list(session.reader.prompt.prefix)
        question = session.reader.prompt.question(session.reader.tokenizer, QUESTION)
        joined = DynamicCache(config=plain.config)
        with torch.no_grad():
            for index, window in enumerate(windows):
                cache = DynamicCache(config=plain.config)
                ids = prefix + session.ids[window.start : window.end].tolist()
                plain(torch.tensor([ids]), past_key_values=cache)
                first = 0 if index == 0 else len(prefix)
                for number, layer in enumerate(cache.layers):
                    joined.update(layer.keys[:, :, first:], layer.values[:, :, first:], number)
            start = session.memory.length
            out = plain(
                torch.tensor([question]),
                past_key_values=joined,
                position_ids=torch.arange(start, start + len(question))[None],
            ).logits[:, -1]
    torch.testing.assert_close(logits, out, atol=1e-4, rtol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("exact", sorted(EXACT))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gpu_answers_as_the_full_cache_does(
    exact: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16 the memory may be no further from float32 than twice the plain model is."""
    model = checkpoint("llama", tmp_path / "model")
    store = make_store(tmp_path, model, monkeypatch, exact, device="cuda", dtype=dtype)
    options = AskOptions(
        budget="10000%", coverage=1.0, model=str(model), device="cuda", dtype=dtype
    )
    with Session(store, options, Silent()) as session:
        ids, logits = (t.cpu() for t in from_memory(session, 8))
        true_ids, true_logits = truth(session, model, 8)
        plain = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).cuda()
        prompt = session.reader.prompt
        asked = [
            *prompt.prefix,
            *session.ids.tolist(),
            *prompt.question(session.reader.tokenizer, QUESTION),
        ]
        with torch.no_grad():
            own = plain(torch.tensor([asked]).cuda()).logits[:, -1].float().cpu()
    if dtype == "float32":
        assert torch.equal(ids, true_ids)
        torch.testing.assert_close(logits, true_logits, atol=1e-3, rtol=0)
    else:
        allowed = 2 * float((own - true_logits[:1]).abs().max()) + 1e-3
        assert float((logits[:1].float() - true_logits[:1]).abs().max()) <= allowed
