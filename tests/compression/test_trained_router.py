"""The trained zoom-in as it runs: scores, thresholds, rank gates, the file."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.compression.codecs.rank_gates import RANK, kept_rank, rank_gates
from engine.compression.codecs.shared_basis import SharedBasis
from engine.compression.codecs.span_svd import SpanSVD
from engine.compression.methods import METHODS, from_settings, with_router
from engine.compression.params import LayerParams, RankGates, TrainedLayer, ZoomWeights, needed
from engine.compression.ranges import span_mean
from engine.compression.routers import router_file
from engine.compression.routers.sketch import MeanKey
from engine.compression.routers.trained_spans import SpanZoom, zoom_logits
from engine.compression.statistics import Given
from engine.errors import RouterError
from engine.types import ModelIdentity
from tiny_memory import rows

SIZE, HEADS, GROUP = 32, 2, 2
IDENTITY = ModelIdentity(
    "m", "", "Llama", "abcdef012345", 2, HEADS * GROUP, HEADS, SIZE, {}, "cd", "5"
)


def learnt(seed: int = 0) -> TrainedLayer:
    """What a router knows of a layer, drawn at random."""
    made = torch.Generator().manual_seed(seed)
    w = torch.randn(HEADS, 1, 8, SIZE, generator=made)
    zoom = ZoomWeights(w, torch.rand(HEADS, GROUP, generator=made))
    return TrainedLayer(zoom, bases=SharedBasis(model="x").made_up_bases(HEADS, SIZE))


def shut(size: int, gate: float) -> RankGates:
    """Gates that are `gate` whatever the span."""
    weights = {name: torch.zeros(shape) for name, shape in RankGates.shapes(size).items()}
    weights["gate_2_b"] = torch.full((RANK,), math.log(gate / (1 - gate)))
    return needed(RankGates.of(weights))


def test_the_published_score_by_the_book() -> None:
    """sigmoid((W q) . (W k / |W k|) / sqrt(d') + log n), one span and head at a time."""
    w, made = needed(learnt().zoom).w, torch.Generator().manual_seed(1)
    q = torch.randn(HEADS, GROUP, 3, SIZE, generator=made)
    summary = torch.randn(HEADS, 5, SIZE, generator=made)
    lengths = torch.tensor([4, 1, 9, 2, 30])
    scores = zoom_logits(q, summary, w, lengths)
    for head in range(HEADS):
        one = w[head, 0]
        for span in range(5):
            key = one @ summary[head, span]
            expected = (q[head] @ one.T) @ (key / key.norm()) / math.sqrt(8)
            expected = expected + math.log(int(lengths[span]))
            torch.testing.assert_close(scores[head, ..., span], expected)


def test_a_span_below_every_threshold_is_never_zoomed() -> None:
    """It counts the largest score of the heads that pass their own threshold, else 0."""
    k, _ = rows(1, HEADS, 60, SIZE)
    bounds = torch.arange(0, 61, 12)
    summary = span_mean(k, torch.ones(60), bounds)
    zoom = SpanZoom("x")
    params = zoom.fit(k, LayerParams(), Given(trained=learnt()))
    tables = zoom.build(k, summary, params)
    q = torch.randn(HEADS, GROUP * 3, SIZE, generator=torch.Generator().manual_seed(2))
    found, fitted = zoom.zoom_scores(q, tables, params, bounds), needed(params.zoom)
    alpha = zoom_logits(
        q.reshape(HEADS, GROUP, 3, SIZE),
        needed(tables.keys).float(),
        fitted.w.float(),
        bounds.diff(),
    ).sigmoid()
    passed = torch.where(alpha > fitted.tau[..., None, None], alpha, 0.0)
    torch.testing.assert_close(found.float(), passed.amax((1, 2)))
    params = replace(params, zoom=replace(fitted, tau=torch.ones(HEADS, GROUP)))
    assert float(zoom.zoom_scores(q, tables, params, bounds).max()) == 0
    torch.testing.assert_close(
        zoom.logmass(q, tables, params, bounds), MeanKey().logmass(q, tables, params, bounds)
    )


def test_only_the_published_form_decides_by_a_score_of_its_own() -> None:
    assert SpanZoom("x").gated
    assert not any(recipe.router.gated for recipe in METHODS.values())


def test_attention_runs_on_what_was_learnt() -> None:
    """Within a layer's memory: everything is zoomed where there is room, nothing where not."""
    from engine.attention.host_records import Host
    from engine.attention.layer import LayerMemory
    from engine.attention.shared import Shared
    from engine.attention.shares import Limits
    from engine.attention.view import View
    from engine.compression.encode import compress_layer, fit
    from tiny_memory import EXACT, Section, fixed_spans

    recipe = replace(EXACT, router=SpanZoom("x"))
    k, v = rows(7, HEADS, 96, SIZE)
    spans, weight, given = fixed_spans(96, 8), torch.ones(96), learnt()
    always = torch.full((HEADS, GROUP), -1.0)  # everything wants to be zoomed
    given = replace(given, zoom=replace(needed(given.zoom), tau=always))
    params = fit(recipe, k, v, weight, spans, Given(trained=given))
    made = compress_layer(recipe, k, v, weight, spans, params)
    pinned = (*needed(made.device.exact), torch.tensor([0]))
    keep = spans.kind == 0
    one = torch.zeros(len(spans.kind), dtype=torch.int64)
    everything = View.of(torch.arange(len(spans.kind)), spans.bounds, one)
    view, token_rows = everything.pick(keep)
    section: Any = Section(made.records, HEADS)
    host = Host(0, [section], [len(spans.kind)], HEADS)
    shared = Shared(spans.bounds, 1)
    tables = made.device.tables.pick(token_rows, keep)
    q = torch.randn(HEADS * GROUP, 2, SIZE, generator=torch.Generator().manual_seed(8))
    live = torch.zeros(HEADS, 2, SIZE)
    seen = torch.ones(2, 2, dtype=torch.bool)
    for cap in (math.inf, 0.0):
        limits = Limits(cap, 1.0)
        memory = LayerMemory(0, recipe, shared, limits, params, pinned, view, tables, host)
        out = memory.attend(q, live, live, seen)
        assert bool(torch.isfinite(out).all())
        zoomed = len(view.spans) if cap else 0
        assert [len(spans) for spans in memory.zoomed.spans] == [zoomed] * HEADS


# ---------------------------------------------------------------------------- rank gates


def test_gates_decide_how_many_directions_are_stored() -> None:
    """Gates near 1 change nothing but the last bits, gates of nearly 0 leave one direction."""
    k, v = rows(9, HEADS, 160, SIZE)
    k = k[:, :, :4] @ torch.randn(4, SIZE, generator=torch.Generator().manual_seed(1))  # rank 4
    bounds = torch.arange(0, 161, 40)
    svd = SpanSVD()
    plain = svd.encode(k, v, bounds, svd.fit(k, v))
    opened = svd.encode(k, v, bounds, replace(svd.fit(k, v), gates=shut(SIZE, 0.9999)))
    assert torch.equal(plain.offsets, opened.offsets)
    closed = svd.encode(k, v, bounds, replace(svd.fit(k, v), gates=shut(SIZE, 0.01)))
    rank_k, _ = SpanSVD.ranks(closed.payload, closed.offsets, SIZE)
    before, _ = SpanSVD.ranks(plain.payload, plain.offsets, SIZE)
    assert int(rank_k.max()) == 1 < int(before.min())
    assert len(closed.payload) < len(plain.payload)


def test_a_gate_weighs_its_direction() -> None:
    k, v = rows(10, 1, 64, SIZE)
    k = k[:, :, :3] @ torch.randn(3, SIZE, generator=torch.Generator().manual_seed(2))
    bounds = torch.tensor([0, 64])
    svd, params = SpanSVD(), replace(SpanSVD().fit(k, v), gates=shut(SIZE, 0.5))
    records = svd.encode(k, v, bounds, params)
    half, _ = svd.decode(0, records.payload, records.offsets, torch.tensor([64]), params)
    torch.testing.assert_close(half, 0.5 * k[0], atol=0.1, rtol=0.05)


def test_gates_read_the_spectrum_and_the_mean() -> None:
    made = torch.Generator().manual_seed(3)
    shapes = RankGates.shapes(SIZE).items()
    network = needed(
        RankGates.of({name: 0.2 * torch.randn(shape, generator=made) for name, shape in shapes})
    )
    energy = torch.rand(5, 12, generator=made).sort(-1, descending=True).values
    context = torch.randn(5, SIZE, generator=made)
    gates = rank_gates(energy, context, network)
    assert gates.shape == (5, 12)
    assert bool(((gates > 0) & (gates < 1)).all())
    torch.testing.assert_close(rank_gates(4 * energy, 2 * context, network), gates)
    assert not torch.allclose(rank_gates(energy, -context, network), gates)
    assert kept_rank(torch.tensor([[0.9, 0.01, 0.2, 0.0], [0.0, 0.0, 0.0, 0.0]])).tolist() == [3, 1]


# ---------------------------------------------------------------------------- the file


def written(path: Path, owner: ModelIdentity = IDENTITY, tau: torch.Tensor | None = None) -> Path:
    layers = [learnt(layer) for layer in range(owner.layers)]
    if tau is not None:
        layers = [replace(each, zoom=replace(needed(each.zoom), tau=tau)) for each in layers]
    gates = shut(SIZE, 0.5)
    router_file.save(path, router_file.Owner.of(owner), layers, gates, {"steps": 3})
    return path


def test_a_router_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = written(tmp_path / "r.safetensors")
    read = router_file.load(path)
    assert read.owner == router_file.Owner.of(IDENTITY)
    assert read.forms == router_file.FORMS
    assert read.record == {"steps": 3}
    expected = replace(learnt(1), gates=shut(SIZE, 0.5)).tensors()
    found = read.layers[1].tensors()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert read.fingerprint == router_file.load(path).fingerprint
    other = router_file.load(written(tmp_path / "s.safetensors", tau=torch.ones(HEADS, GROUP)))
    assert other.fingerprint != read.fingerprint


def test_a_router_takes_the_place_of_the_untrained_choice(tmp_path: Path) -> None:
    read = router_file.load(written(tmp_path / "r.safetensors"))
    paper = with_router(METHODS["sekv-paper"], read)
    ours = with_router(METHODS["sekv"], read)
    assert paper.router == SpanZoom(read.fingerprint, GROUP, 1, 8)
    assert paper.codec == METHODS["sekv-paper"].codec
    assert ours.router == METHODS["sekv"].router
    assert ours.codec == replace(METHODS["sekv"].codec, model=read.fingerprint)  # type: ignore[type-var]
    assert with_router(METHODS["full"], read) == METHODS["full"]
    for recipe in (paper, ours):
        again = from_settings(recipe.name, recipe.settings())
        assert (again.router, again.codec) == (recipe.router, recipe.codec)


def test_the_router_in_the_models_folder_is_used_if_it_fits(tmp_path: Path) -> None:
    assert router_file.find("", tmp_path, IDENTITY) == (None, "")
    path = written(tmp_path / router_file.NAME)
    found, remark = router_file.find("", tmp_path, IDENTITY)
    assert found is not None
    assert (found.fingerprint, remark) == (router_file.load(path).fingerprint, "")
    assert router_file.find("none", tmp_path, IDENTITY) == (None, "")
    other = replace(IDENTITY, weights="00ff")
    found, remark = router_file.find("", tmp_path, other)
    assert found is None
    assert "other weights" in remark
    with pytest.raises(RouterError, match=r"trained for m \(abcdef01\), not for m \(00ff\)"):
        router_file.find(str(path), tmp_path, other)


def test_what_is_no_router_is_one_line(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    text = tmp_path / "t"
    text.write_text("no router", encoding="utf-8")
    foreign = tmp_path / "f"
    save_file({"a": torch.zeros(1)}, foreign)
    cut = tmp_path / "c"
    cut.write_bytes(written(tmp_path / "r.safetensors").read_bytes()[:-100])
    bad = written(tmp_path / "b", tau=torch.zeros(3))
    for path in (text, foreign, cut, bad, tmp_path / "missing", tmp_path):
        with pytest.raises(RouterError) as caught:
            router_file.load(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert path.name == "missing" or "--router none" in str(caught.value)


@pytest.mark.parametrize(
    "claims",
    [
        "[]",
        "{",
        '{"format": "sekv-router 2"}',
        '{"format": "sekv-router 1"}',
        '{"format": "sekv-router 1", "owner": {"id": "m"}, "bits": 1, "record": {}}',
        '{"format": "sekv-router 1", "owner": %s, "bits": "x", "record": {}}',
        '{"format": "sekv-router 1", "owner": %s, "bits": 1}',
        '{"format": "sekv-router 1", "owner": %s, "bits": 1, "record": {}}',
    ],
)
def test_a_damaged_router_beside_the_model_is_refused_until_none_is_asked_for(
    claims: str, tmp_path: Path
) -> None:
    """Who trained one wants it: no store is made without it in silence. The line says both ways
    out, and the second is one."""
    owner = {**asdict(router_file.Owner.of(IDENTITY)), "kv_heads": 0}
    path = tmp_path / router_file.NAME
    router_file.put(path, {"a": torch.zeros(1)}, claims.replace("%s", json.dumps(owner)))
    with pytest.raises(RouterError, match=r"router.safetensors .*`sekv train`.* --router none"):
        router_file.find("", tmp_path, IDENTITY)
    assert router_file.find(router_file.NONE, tmp_path, IDENTITY) == (None, "")
