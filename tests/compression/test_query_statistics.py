"""What a document's own queries tell is what the model's own attention would say."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.compression import encode
from engine.compression.codecs.shared_basis import SharedBasis
from engine.compression.methods import METHODS
from engine.compression.observation import Observe
from engine.compression.params import needed
from engine.compression.query_statistics import (
    FIRST,
    SPREAD,
    QueryMoments,
    query_moments,
    spread_places,
)
from engine.compression.statistics import NOT_GIVEN
from engine.models.reader import Reader
from tiny_books import TEXT
from tiny_memory import rows


@given(st.integers(1, 3000), st.integers(1, 300))
def test_places_are_spread_over_the_window(tokens: int, count: int) -> None:
    found = spread_places(tokens, count)
    assert len(found) == min(tokens, count)
    assert found == sorted(set(found))
    assert found[0] >= 0
    assert found[-1] < tokens
    steps = {b - a for a, b in pairwise([-1, *found, tokens])}
    assert max(steps) <= tokens / len(found) + 1


def test_what_a_head_s_errors_are_worth_by_the_book() -> None:
    """Against the sums written out: first tokens and near ones are exact and do not count."""
    before, tokens, places = 3, 40, [0, 7, 20, 39]
    k, v = rows(1, 2, before + tokens, 8)
    q = torch.randn(4, len(places), 8, generator=torch.Generator().manual_seed(1))
    prompt, window = (k[:, :before], v[:, :before]), (k[:, before:], v[:, before:])
    learnt = query_moments(q, places, window, prompt)
    spread = v[:, before:].var(1, correction=0).sum(-1)
    for head in range(2):
        wanted, moment = torch.zeros(3), torch.zeros(8, 8)
        for query in (2 * head, 2 * head + 1):
            for row, place in enumerate(places):
                one = q[query, row]
                p = (k[head, : before + place + 1] @ one / math.sqrt(8)).softmax(0)
                out = p @ v[head, : len(p)]
                moment += torch.outer(one, one) / (2 * len(places))
                for token in range(FIRST, place - tokens // 4 + 1):
                    share = p[before + token] ** 2
                    wanted[0] += share * (v[head, before + token] - out).square().sum()
                    wanted[1] += share * spread[head]
                wanted[2] += out.square().sum()
        torch.testing.assert_close(learnt.moment[head], moment, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(learnt.score_weight[head], wanted[0] / wanted[2])
        torch.testing.assert_close(learnt.value_weight[head], wanted[1] / wanted[2])


@pytest.mark.parametrize("tokens", [1, 2, 5, 100])
def test_windows_of_a_few_tokens_have_finite_moments(tokens: int) -> None:
    k, v = rows(3, 2, tokens + 1, 16)
    q = torch.randn(4, min(tokens, 7), 16, generator=torch.Generator().manual_seed(2))
    prompt, window = (k[:, :1], v[:, :1]), (k[:, 1:], v[:, 1:])
    learnt = query_moments(q, spread_places(tokens, 7), window, prompt)
    for tensor in (learnt.moment, learnt.score_weight, learnt.value_weight):
        assert bool(tensor.isfinite().all())
    assert bool((learnt.score_weight > 0).all())


def test_what_is_learnt_does_not_depend_on_the_chunks(reader: Reader) -> None:
    """The queries are those of the same tokens, and reading is as it is without."""
    ids = reader.tokenizer.encode(TEXT, add_special_tokens=False)
    prefix, found = reader.prefix(), []
    for chunk in (33, 128, 1000):
        chunks = list(reader.read_window(ids, prefix, chunk, [], Observe(spread=20)))
        assert [place for c in chunks for place in c.places] == spread_places(len(ids), 20)
        found.append(reader.query_statistics(prefix, chunks))
    plain = list(reader.read_window(ids, prefix, 1000, []))
    assert reader.query_statistics(prefix, plain) == []
    assert all(torch.equal(a, b) for a, b in zip(plain[0].k, chunks[0].k, strict=True))
    assert len(found[0]) == reader.layers
    for one, other in (found[:2], found[1:]):
        for mine, theirs in zip(one, other, strict=True):
            for name in ("moment", "score_weight", "value_weight"):
                a, b = getattr(mine, name), getattr(theirs, name)
                torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)
        assert mine.moment.shape == (2, 16, 16)
        assert bool((torch.linalg.eigvalsh(mine.moment) > -1e-3).all())


def test_only_methods_that_weigh_keys_keep_queries(
    reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tiny_books import report

    kept: list[int] = []
    whole = Reader.read_window

    def counted(self: Reader, *rest: object) -> object:
        kept.append(rest[-1].spread)  # type: ignore[attr-defined]
        return whole(self, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Reader, "read_window", counted)
    path = Path(reader.identity.id)
    for method, first in (("full", 0), ("sekv-paper", 0), ("sekv", SPREAD)):
        kept.clear()
        report(tmp_path / method, path, reader=reader, method=method, window=200)
        assert len(kept) > 1
        assert kept == [first, *[0] * (len(kept) - 1)]  # of several windows the first one tells


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
    params = [recipe.codec.fit(k, v, one) for (k, v), one in zip(layers, found, strict=True)]
    codes = [needed(each.codes) for each in params]
    bits = [torch.cat([each.keys.bits, each.values.bits]).float().mean() for each in codes]
    assert bits[0] > bits[1] + 1
    assert float(sum(bits)) / 2 == pytest.approx(recipe.codec.bits, abs=0.3)
    assert encode.prepare(METHODS["full"], layers, []) == [NOT_GIVEN] * 2
