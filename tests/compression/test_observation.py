"""What a probe sees: shares of attention by distance, and queries, chunk by chunk the same."""

from __future__ import annotations

import math

import pytest
import torch

from engine.compression.observation import Observe, ObservingProbe, nearness
from engine.compression.routers.question_blind import observed_attention
from engine.models.reader import Reader
from engine.models.window_chunk import Chunk

IDS = torch.randint(0, 256, (90,), generator=torch.Generator().manual_seed(2)).tolist()


def plain_attention(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Causal softmax by the book, float64 [H, n, N]."""
    n, total = q.shape[1], k.shape[1]
    keys = k.double().repeat_interleave(len(q) // len(k), 0)
    scores = q.double() @ keys.mT / math.sqrt(q.shape[-1])
    seen = torch.ones(n, total, dtype=torch.bool).tril(total - n)
    return scores.masked_fill(~seen, -math.inf).softmax(-1)


def test_nearness_is_the_attention_to_the_last_tokens() -> None:
    made = torch.Generator().manual_seed(1)
    q, k = torch.randn(4, 70, 8, generator=made), torch.randn(2, 80, 8, generator=made)
    share = plain_attention(q, k).mean(0)
    found = nearness(q, k, 6)
    for row in (0, 1, 40, 69):
        own = 80 - 70 + row
        for back in range(6):
            assert float(found[row, back]) == pytest.approx(
                float(share[row, max(0, own - back) : own + 1].sum()), abs=1e-5
            )
    assert bool((found.diff() >= 0).all())


def test_what_the_last_tokens_look_at_is_their_mean_attention() -> None:
    made = torch.Generator().manual_seed(2)
    q, k = torch.randn(4, 5, 8, generator=made), torch.randn(2, 30, 8, generator=made)
    found = observed_attention(q, k)
    torch.testing.assert_close(found, plain_attention(q, k).mean(1).float(), atol=1e-6, rtol=1e-5)


def read(reader: Reader, chunk: int, observe: Observe) -> list[Chunk]:
    return list(reader.read_window(IDS, reader.prefix(), chunk, [], observe))


def test_chunks_do_not_change_what_is_seen(reader: Reader) -> None:
    observe = Observe(rows=8, reach=5)
    whole, parts = read(reader, 200, observe), read(reader, 37, observe)
    near = [torch.cat([c.near for c in chunks if c.near is not None]) for chunks in (whole, parts)]
    assert near[0].shape == (len(IDS), 5)
    torch.testing.assert_close(near[0], near[1], atol=1e-5, rtol=1e-4)
    for layer in range(reader.layers):
        one, many = (
            torch.cat([c.queries[layer] for c in chunks], 1)[:, -8:] for chunks in (whole, parts)
        )
        assert one.shape == (4, 8, 16)
        torch.testing.assert_close(one, many, atol=1e-4, rtol=1e-4)


def test_looking_changes_nothing(reader: Reader) -> None:
    seen, unseen = read(reader, 40, Observe(8, 5)), read(reader, 40, Observe())
    for one, other in zip(seen, unseen, strict=True):
        assert torch.equal(one.surprisal, other.surprisal)
        assert all(torch.equal(a, b) for a, b in zip(one.k, other.k, strict=True))
    assert unseen[0].queries == []
    assert unseen[0].near is None


def test_the_queries_are_rotated(reader: Reader) -> None:
    """The same token at another place asks otherwise; an unrotated query would not, in layer 0."""
    ids = [7] * 20
    chunks = list(reader.read_window(ids, reader.prefix(), 64, [], Observe(rows=20)))
    queries = chunks[0].queries[0]
    assert float((queries[:, 3] - queries[:, 15]).abs().max()) > 1e-2


def test_two_layers_of_the_middle_third_are_looked_at() -> None:
    assert ObservingProbe(Observe(), range(12), 0).sampled == (4, 7)
    assert ObservingProbe(Observe(), range(3), 0).sampled == (1,)
    assert ObservingProbe(Observe(), range(32), 0).sampled == (10, 20)
    assert ObservingProbe(Observe(), (1, 4, 7), 0).sampled == (4,)


def test_more_covers_less() -> None:
    assert Observe(8, 5).covers(Observe(8, 0))
    assert not Observe(8, 0).covers(Observe(0, 1))
