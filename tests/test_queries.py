"""A document asks itself: what is learnt is what the model's own attention would say."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.compression import encode
from engine.compression.codecs.shared_basis import SharedBasis
from engine.compression.methods import METHODS
from engine.compression.query_statistics import (
    FIRST,
    PIECE_TOKENS,
    PIECES,
    QueryMoments,
    QueryStatistics,
    pieces,
)
from engine.models import hf
from tiny_books import TEXT
from tiny_memory import rows


@given(st.integers(1, 3000))
def test_pieces_are_spread_over_the_window(tokens: int) -> None:
    ids = list(range(tokens))
    found = pieces(ids)
    assert 1 <= len(found) <= PIECES
    assert all(piece == ids[piece[0] : piece[0] + len(piece)] for piece in found)
    assert all(0 < len(piece) <= PIECE_TOKENS for piece in found)
    starts = [piece[0] for piece in found]
    assert starts == sorted(set(starts))
    if tokens >= PIECES * PIECE_TOKENS:
        assert len(found) == PIECES
        assert starts[0] < tokens / PIECES
        assert starts[-1] + PIECE_TOKENS > tokens * (PIECES - 1) / PIECES


def test_what_a_head_s_errors_are_worth_by_the_book() -> None:
    """Against the sums written out: first tokens and the asked ones are exact and do not count."""
    before, asked = 3, 2
    k, v = rows(1, 2, 40, 8)
    q = torch.randn(4, asked, 8, generator=torch.Generator().manual_seed(1))
    probe = QueryStatistics(1, before)
    probe.see(0, q, k, v)
    [learnt] = probe.learnt()
    for head in range(2):
        scores, wanted = [], torch.zeros(3)
        moment = torch.zeros(8, 8)
        inside = range(before + FIRST, 40 - asked)
        spread = v[head, list(inside)].var(0, correction=0).sum()
        for query in (2 * head, 2 * head + 1):
            for row in range(asked):
                one = q[query, row]
                scores = k[head, : 40 - asked + row + 1] @ one / math.sqrt(8)
                p = scores.softmax(0)
                out = p @ v[head, : len(p)]
                moment += torch.outer(one, one) / (2 * asked)
                for token in inside:
                    wanted[0] += p[token] ** 2 * (v[head, token] - out).square().sum()
                    wanted[1] += p[token] ** 2 * spread
                wanted[2] += out.square().sum()
        torch.testing.assert_close(learnt.moment[head], moment, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(learnt.score_worth[head], wanted[0] / wanted[2])
        torch.testing.assert_close(learnt.value_worth[head], wanted[1] / wanted[2])


def test_a_window_that_asks_itself_changes_nothing(reader: hf.Reader) -> None:
    """Twice the same, and the rows are those they were."""
    ids = reader.tokenizer.encode(TEXT, add_special_tokens=False)
    prefix = reader.prefix()
    chunks = list(reader.read_window(ids, prefix, 128, []))
    before = [k.clone() for k in chunks[-1].k]
    first, second = (reader.query_statistics(ids, prefix, chunks) for _ in range(2))
    assert len(first) == reader.layers
    for one, other, k, was in zip(first, second, chunks[-1].k, before, strict=True):
        for name in ("moment", "score_worth", "value_worth"):
            assert torch.equal(getattr(one, name), getattr(other, name))
        assert torch.equal(k, was)
        assert one.moment.shape == (2, 16, 16)
        assert bool((torch.linalg.eigvalsh(one.moment) > -1e-3).all())


def test_only_methods_that_weigh_keys_ask(
    reader: hf.Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tiny_books import report

    asked: list[int] = []
    whole = hf.Reader.query_statistics

    def counted(self: hf.Reader, ids: list[int], *rest: object) -> object:
        asked.append(len(ids))
        return whole(self, ids, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(hf.Reader, "query_statistics", counted)
    path = Path(reader.identity.id)
    for method, times in (("full", 0), ("sekv-paper", 0), ("sekv", 1)):
        asked.clear()
        report(tmp_path / method, path, reader=reader, method=method, window=200)
        assert len(asked) == times  # of several windows the first one tells


def test_layers_share_their_bits_by_what_they_are_worth() -> None:
    """A layer that nothing looks at leaves its bits to the other; a price is the same for both."""
    recipe = METHODS["sekv"]
    layers = [rows(seed, 2, 200, 16) for seed in (2, 3)]
    learnt = [
        QueryMoments(
            torch.eye(16).expand(2, -1, -1) * scale,
            torch.full((2,), worth),
            torch.full((2,), worth),
        )
        for scale, worth in ((1.0, 1.0), (1e-4, 1e-3))
    ]
    given_ = encode.prepare(recipe, layers, learnt)
    found = [each.statistics for each in given_]
    assert found[0] is not None
    assert found[1] is not None
    assert found[0].code_price == found[1].code_price is not None
    assert isinstance(recipe.codec, SharedBasis)
    sides = [recipe.codec.fit(k, v, one) for (k, v), one in zip(layers, found, strict=True)]
    bits = [torch.cat([s["k_bits"], s["v_bits"]]).float().mean() for s in sides]
    assert bits[0] > bits[1] + 1
    assert float(sum(bits)) / 2 == pytest.approx(recipe.codec.bits, abs=0.3)
    assert encode.prepare(METHODS["full"], layers, []) == [encode.NOT_GIVEN] * 2
