"""Rows coded in another space come back, and errors there count what they count in attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_models
from engine.compression.codecs.shared_basis import SharedBasis
from engine.compression.query_statistics import QueryMoments
from engine.compression.ranges import gather_ranges
from engine.compression.rope import apply_rope, invert_rope
from engine.compression.statistics import LayerStatistics
from engine.errors import ReaderError
from engine.lab.bench.fidelity.spaces import BeforeRope, Space, Together
from engine.models.reader import load_reader
from tiny_memory import rows

HEADS, TOKENS, SIZE = 3, 90, 16


def tables(tokens: int, size: int, theta: float = 100.0) -> tuple[torch.Tensor, torch.Tensor]:
    """cos, sin [n, D] of positions 5 .. as RoPE has them."""
    speed = theta ** -(torch.arange(0, size, 2) / size)
    angle = torch.outer(torch.arange(5.0, 5 + tokens), speed).repeat(1, 2)
    return angle.cos(), angle.sin()


def learnt(seed: int) -> QueryMoments:
    made = torch.Generator().manual_seed(seed)
    q = torch.randn(HEADS, 50, SIZE, generator=made)
    worth = torch.tensor([0.1, 2.0, 0.5]), torch.tensor([1.0, 0.2, 0.03])
    return QueryMoments(q.mT @ q / 50, *worth)


SPACES: dict[str, tuple[Space, ...]] = {
    "before RoPE": (BeforeRope(*tables(TOKENS, SIZE)),),
    "together": (Together(HEADS),),
    "both": (BeforeRope(*tables(TOKENS, SIZE)), Together(HEADS)),
}


@pytest.mark.parametrize("name", sorted(SPACES))
@pytest.mark.parametrize("given", [None, learnt(0)], ids=["plain", "asked"])
def test_at_full_rank_nothing_is_lost_in_any_space(name: str, given: QueryMoments | None) -> None:
    k, v = rows(1, HEADS, TOKENS, SIZE)
    inside: Any = (k, v, given)
    for space in SPACES[name]:
        inside = space.enter(*inside)
    codec, bounds = SharedBasis(bits=32), torch.tensor([0, 40, TOKENS])
    params = codec.fit(*inside[:2])
    records = codec.encode(*inside[:2], bounds, params)
    back = []
    for head, heads in ((h, len(inside[0])) for h in range(len(inside[0]))):
        sizes = records.offsets.diff()[head::heads]
        payload = records.payload[gather_ranges(records.offsets[head:-1:heads], sizes)]
        offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        back.append(codec.decode(head, payload, offsets, bounds.diff(), params))
    out = torch.stack([one for one, _ in back]), torch.stack([one for _, one in back])
    for space in reversed(SPACES[name]):
        out = space.leave(*out)
    torch.testing.assert_close(out, (k, v), atol=1e-4, rtol=1e-4)


def test_keys_that_only_their_position_tells_apart_are_one_key_before_rope() -> None:
    cos, sin = tables(TOKENS, SIZE)
    one, v = rows(2, HEADS, 1, SIZE)
    k = apply_rope(one.expand(-1, TOKENS, -1), cos, sin)
    inside, _, _ = BeforeRope(cos, sin).enter(k, v, None)
    assert float(k.var(1).sum()) > 0.1
    torch.testing.assert_close(inside, one.expand_as(inside), atol=1e-5, rtol=1e-5)


def test_scaled_tables_are_undone_too() -> None:
    """YaRN multiplies both tables by a factor of attention."""
    cos, sin = (1.3 * t for t in tables(TOKENS, SIZE))
    k, v = rows(3, HEADS, TOKENS, SIZE)
    space = BeforeRope(cos, sin)
    torch.testing.assert_close(
        space.leave(*space.enter(k, v, None)[:2])[0], k, atol=1e-5, rtol=1e-5
    )


def test_an_error_before_rope_counts_by_the_scores_it_moves() -> None:
    """Averaged over positions: e' M e is the mean square of q.(R e)."""
    given, (cos, sin) = learnt(4), tables(64, SIZE)
    k, v = rows(4, HEADS, 64, SIZE)
    _, _, inside = BeforeRope(cos, sin).enter(k, v, given)
    assert inside is not None
    error = torch.randn(SIZE, generator=torch.Generator().manual_seed(4))
    for head in range(HEADS):
        moved = apply_rope(error.expand(64, -1), cos, sin)
        wanted = torch.einsum("nd,de,ne->n", moved, given.moment[head], moved).mean()
        found = error @ inside.moment[head] @ error
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_heads_together_spend_as_much_error_as_heads_apart() -> None:
    """The spectrum counts in one unit: leaving all out costs a layer the same in either space."""
    k, v = rows(5, HEADS, 400, SIZE)
    given = learnt(5)
    apart = LayerStatistics.of(k, v, given).code_cost
    together = LayerStatistics.of(*Together(HEADS).enter(k, v, given)).code_cost
    assert together.shape == (2, HEADS * SIZE)
    # A hundredth of the mean is added to every direction of a metric.
    scores = apart[:HEADS].sum(), together[0].sum()
    torch.testing.assert_close(scores[1], scores[0], rtol=0.05, atol=0)
    torch.testing.assert_close(together[1].sum(), apart[HEADS:].sum(), rtol=0.05, atol=0)


# ---------------------------------------------------------------------------- readers


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_a_reader_says_how_it_turns_its_keys(kind: str, tmp_path: Path) -> None:
    """Its first layer's keys at any position are those at another, turned."""
    reader = load_reader(str(tiny_models.checkpoint(kind, tmp_path)), device="cpu")
    cos, sin = reader.rotation(3, 40)
    assert cos.shape == sin.shape == (40, 16)
    first, last = reader._first_key(3), reader._first_key(42)
    assert not torch.allclose(first, last, atol=0.1)
    plain = invert_rope(first, cos[:1], sin[:1])
    torch.testing.assert_close(apply_rope(plain, cos[-1:], sin[-1:]), last, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", ["cohere", "phi"], ids=["pairs", "a part"])
def test_keys_that_are_turned_otherwise_are_refused_in_a_line(kind: str, tmp_path: Path) -> None:
    """Cohere turns neighbouring components, Phi half of them."""
    reader = load_reader(str(tiny_models.checkpoint(kind, tmp_path)), device="cpu")
    with pytest.raises(ReaderError, match="only a part of a key's components, or other pairs"):
        reader.rotation(0, 40)


def test_keys_that_are_not_turned_at_all_are_refused_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = load_reader(str(tiny_models.checkpoint("llama", tmp_path)), device="cpu")
    monkeypatch.delattr(reader.model.base_model, "rotary_emb")
    with pytest.raises(ReaderError, match="has no RoPE"):
        reader.rotation(0, 40)
