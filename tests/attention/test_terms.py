"""A softmax with a cap on its scores and with sinks, in the memory and in the plain prefill."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward as gemma2
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward as gpt_oss

from engine.attention import seam
from engine.attention.causal_chunk import attend_chunk, attend_rows
from engine.compression.scores import group_queries
from engine.compression.terms import Terms
from engine.errors import ReaderError
from tiny_memory import StepRecorder, fixed_spans, layer, rows

HEADS, KV_HEADS, SIZE, TOKENS = 4, 2, 16, 60
SINKS = torch.tensor([0.5, -1.0, 3.0, 2.0])
TERMS = {
    "capped": Terms(cap=2.0),
    "sinks": Terms(sinks=SINKS),
    "both": Terms(cap=2.0, sinks=SINKS),
}


def question(queries: int = 3, live: int = 5) -> tuple[torch.Tensor, ...]:
    made = torch.Generator().manual_seed(5)
    q = 2 * torch.randn(HEADS, queries, SIZE, generator=made)
    k, v = (torch.randn(KV_HEADS, live, SIZE, generator=made) for _ in range(2))
    return q, k, v, torch.ones(queries, live, dtype=torch.bool).tril(live - queries)


def whole(k: torch.Tensor, v: torch.Tensor, asked: tuple[Any, ...], terms: Terms) -> torch.Tensor:
    """The definition, written out: [H, Q, D]."""
    q, live_k, live_v, seen = asked
    k, v = (
        torch.cat(pair, 1).repeat_interleave(HEADS // KV_HEADS, 0)
        for pair in ((k, live_k), (v, live_v))
    )
    scores = q @ k.mT / SIZE**0.5
    if terms.cap is not None:
        scores = terms.cap * torch.tanh(scores / terms.cap)
    scores[:, :, -seen.shape[1] :].masked_fill_(~seen, -torch.inf)
    weight = scores.exp()
    total = weight.sum(-1, keepdim=True)
    if terms.sinks is not None:
        total = total + terms.sinks.exp()[:, None, None]
    return weight / total @ v


@pytest.mark.parametrize("name", sorted(TERMS))
def test_everything_zoomed_is_the_definition(name: str) -> None:
    k, v = rows(1, KV_HEADS, TOKENS, SIZE)
    memory, asked = layer(k, v, fixed_spans(TOKENS, 7)), question()
    out = memory.attend(*asked, TERMS[name])
    torch.testing.assert_close(out, whole(k, v, asked, TERMS[name]), atol=2e-5, rtol=2e-5)
    assert not torch.allclose(out, whole(k, v, asked, Terms()), atol=1e-2)


@pytest.mark.parametrize("name", sorted(TERMS))
def test_spans_of_one_key_stand_exactly_as_summaries(name: str) -> None:
    """The cap is on the level of a span's tokens, so that nothing is lost where they agree."""
    k, v = rows(2, KV_HEADS, 10, SIZE)
    k, v = (x.repeat_interleave(6, 1) for x in (k, v))
    memory, asked = layer(k, v, fixed_spans(TOKENS, 6, sinks=0)), question()
    bounds = torch.arange(0, TOKENS + 1, 6)
    scores = group_queries(asked[0], KV_HEADS) @ k.mT / SIZE**0.5
    exact = TERMS[name].capped(scores).reshape(KV_HEADS, -1, 10, 6).logsumexp(-1)
    mass = scores.reshape(KV_HEADS, -1, 10, 6).logsumexp(-1)
    found = TERMS[name].capped_mass(mass, bounds.diff())
    torch.testing.assert_close(found, exact, atol=1e-5, rtol=1e-5)
    assert memory.attend(*asked, TERMS[name]).isfinite().all()


def test_a_cap_never_lifts_a_span_by_more_than_the_log_of_its_length() -> None:
    made = torch.Generator().manual_seed(3)
    scores = 40 * torch.randn(2, 50, 9, generator=made)
    terms = Terms(cap=20.0)
    exact = terms.capped(scores).logsumexp(-1)
    found = terms.capped_mass(scores.logsumexp(-1), torch.full((50,), 9))
    assert bool((found >= exact - 1e-4).all())
    assert bool((found <= exact + torch.tensor(9.0).log() + 1e-4).all())


def test_a_step_reports_what_the_sink_leaves_to_the_document() -> None:
    k, v = rows(1, KV_HEADS, TOKENS, SIZE)
    asked = question(queries=1, live=0)
    memory, seen = layer(k, v, fixed_spans(TOKENS, 7)), StepRecorder()
    memory.shared.watchers.append(seen)
    memory.attend(*asked, TERMS["sinks"])
    total = (group_queries(asked[0], KV_HEADS) @ k.mT / SIZE**0.5).exp().sum(-1)
    sinks = SINKS.reshape(KV_HEADS, -1).exp()
    torch.testing.assert_close(seen.steps[0].weight.sum(-1), total / (total + sinks))


def test_a_prefill_in_chunks_with_sinks_is_that_in_one() -> None:
    made = torch.Generator().manual_seed(4)
    q = torch.randn(1, HEADS, 40, SIZE, generator=made)
    k, v = (torch.randn(1, KV_HEADS, 40, SIZE, generator=made) for _ in range(2))
    terms = TERMS["sinks"]
    one = attend_rows(q, k, v, None, 0.3, terms)
    torch.testing.assert_close(attend_chunk(q, k, v, 0.3, terms), one, atol=1e-5, rtol=1e-5)
    last = attend_chunk(q[:, :, 25:], k, v, 0.3, terms)
    torch.testing.assert_close(last, one[:, 25:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("library", ["gemma2", "gpt_oss"])
def test_plain_attention_is_the_library_s(library: str) -> None:
    """With its masks, of both kinds."""
    made = torch.Generator().manual_seed(6)
    q = 2 * torch.randn(1, HEADS, 9, SIZE, generator=made)
    k, v = (torch.randn(1, KV_HEADS, 30, SIZE, generator=made) for _ in range(2))
    window = torch.ones(9, 30, dtype=torch.bool).tril(21).triu(10)[None, None]
    added = torch.zeros(window.shape).masked_fill(~window, torch.finfo(torch.float32).min)
    module = SimpleNamespace(layer_idx=0, num_key_value_groups=2, training=False, sinks=SINKS)
    if library == "gemma2":
        truth, _ = gemma2(module, q, k, v, added, scaling=0.3, softcap=2.0)
        keywords: dict[str, Any] = {"softcap": 2.0}
    else:
        truth, _ = gpt_oss(module, q, k, v, added, scaling=0.3)
        keywords = {"s_aux": SINKS}
    for mask in (window, added):
        out, _ = seam.attention(module, q, k, v, mask, scaling=0.3, **keywords)  # type: ignore[arg-type]
        torch.testing.assert_close(out, truth, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("argument", sorted(seam.UNKNOWN))
def test_attention_that_a_memory_does_not_compute_is_refused_by_name(argument: str) -> None:
    rows = torch.zeros(1, HEADS, 2, SIZE)
    with pytest.raises(ReaderError, match=r"SimpleNamespace has .* does not compute"):
        seam.attention(SimpleNamespace(layer_idx=0), rows, rows, rows, None, **{argument: rows})  # type: ignore[arg-type]
