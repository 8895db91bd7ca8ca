"""The router's training machinery, on a tiny random model: exact targets, causal, resumable."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from engine.attention.softmax import merge_resolutions
from engine.compression.basis import covariance_basis
from engine.compression.methods import METHODS
from engine.compression.params import Basis, ModelBasis
from engine.compression.routers import router_file
from engine.compression.routers.trained_spans import SpanZoom
from engine.compression.scores import NEG_INF
from engine.errors import RouterError, TrainError
from engine.ingest.run import append
from engine.lab.train.zoomin import student, teacher
from engine.lab.train.zoomin.forms import Moments, Shape, SketchForm, SpanForm
from engine.lab.train.zoomin.loop import (
    CHECKPOINT,
    LearntWeights,
    Options,
    _Trainer,
    document_length,
    schedule,
    train_router,
)
from engine.lab.train.zoomin.sizes import MODELS, router_parameters
from engine.lab.train.zoomin.student import SpanLayer, compressed_layer, cut, fitted
from engine.lab.train.zoomin.teacher import TeacherReading, forward, read, span_mass, watch
from engine.models.checkpoint import weights_fingerprint
from engine.models.reader import Reader, load_reader
from engine.store.reader import Store
from engine.types import IngestOptions, Silent
from json_schemas import valid
from tiny_books import log, session
from tiny_books import read as store_of
from tiny_models import checkpoint

TOKENS, QUERY = 160, 24


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint("llama", tmp_path_factory.mktemp("model"), num_hidden_layers=2)


@pytest.fixture(scope="module")
def reader(model: Path) -> Reader:
    loaded = load_reader(str(model))
    loaded.model.requires_grad_(False)
    return loaded


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    (folder / "log.txt").write_text(log(80), encoding="utf-8")
    return folder


def options(model: Path, text: Path, folder: Path, **changes: Any) -> Options:
    """A run of a few short documents."""
    usual = Options(
        text=text,
        output=folder / "router.safetensors",
        run=folder / "run",
        model=str(model),
        steps=4,
        length=TOKENS,
        query=QUERY,
        questions=1,
        test=2,
        tested=1,
        save=1,
    )
    return replace(usual, **changes)


@pytest.fixture(scope="module")
def reading(reader: Reader) -> TeacherReading:
    ids = reader.tokenizer.encode(log(8), add_special_tokens=False)[:TOKENS]
    return read(reader, ids)


def compressed(reading: TeacherReading, method: str, index: int = 0) -> student.StudentDocument:
    recipe = fitted(METHODS[method], reading.tokens)
    found = compressed_layer(recipe, reading, cut(recipe, reading), index)
    assert found is not None
    return found


# ---------------------------------------------------------------------------- the teacher


@pytest.mark.parametrize("stretch", [1, 2**22])
def test_the_teacher_is_the_plain_model(
    stretch: int, reader: Reader, reading: TeacherReading, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever block of keys is scored at a time: the logits of one forward over everything."""
    monkeypatch.setattr(teacher, "MOST_SCORES", stretch)
    monkeypatch.setattr(teacher, "LEAST", 7)
    ids = reader.tokenizer.encode(log(8), add_special_tokens=False)
    document, block = ids[:TOKENS], ids[TOKENS : TOKENS + QUERY]
    seen = watch(reader, reading, block, beyond=40, share=0.25)
    whole = torch.tensor([[*reader.prompt.prefix, *document, *block]])
    with torch.no_grad():
        logits = reader.model(input_ids=whole).logits[0, -QUERY:]
    torch.testing.assert_close(seen.logp, logits.log_softmax(-1), atol=2e-4, rtol=1e-4)
    assert len(seen.mined) == QUERY // 4


def test_far_attention_is_what_lies_beyond(reader: Reader, reading: TeacherReading) -> None:
    """Share and total by the book, and the positions that look far most are mined."""
    block = reader.tokenizer.encode("On day 3 the crew", add_special_tokens=False)
    seen = watch(reader, reading, block, beyond=40, share=0.3)
    (k, _), (prefix, _) = reading.rows[0], reading.prefix[0]
    target = seen.layers[0]
    heads, group, count, size = target.queries.shape
    q = target.queries.reshape(heads, -1, size)
    far = torch.bmm(q, k[:, :-40].mT) / math.sqrt(size)
    expected = (far.logsumexp(-1).reshape(heads, group, count) - target.total).exp()
    torch.testing.assert_close(target.far, expected, atol=1e-5, rtol=1e-4)
    document = torch.bmm(q, torch.cat([prefix, k], 1).mT).logsumexp(-1)
    assert bool((target.total.reshape(heads, -1) >= document / math.sqrt(size) - 1e3).all())
    score = torch.stack([each.far.mean((0, 1)) for each in seen.layers]).mean(0)
    left = [i for i in range(count) if i not in seen.mined.tolist()]
    assert float(score[seen.mined].min()) >= float(score[left].max())


@pytest.mark.parametrize("stretch", [1, 2**22])
def test_span_masses_in_stretches_are_the_masses(
    stretch: int, reading: TeacherReading, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher, "MOST_SCORES", stretch)
    monkeypatch.setattr(teacher, "LEAST", 7)
    k = reading.rows[0][0]
    q = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    bounds = torch.tensor([0, 5, 6, 40, 41, TOKENS])
    scores = torch.bmm(q, k.mT) / 4
    expected = torch.stack([scores[..., a:b].logsumexp(-1) for a, b in pairwise(bounds)], -1)
    torch.testing.assert_close(span_mass(q, k, bounds), expected, atol=1e-4, rtol=1e-4)


def test_the_fewest_spans_that_cover_the_attention_are_to_be_zoomed() -> None:
    mass = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.96, 0.02, 0.01, 0.01]]).log()
    assert student.to_zoom(mass).tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]
    assert student.to_zoom(mass.flip(-1)).tolist() == [[0, 1, 1, 1], [0, 0, 0, 1]]


# ---------------------------------------------------------------------------- the student


def opened(form: SpanForm, gate: float) -> None:
    """Every span zooms; every direction is kept by `gate`."""
    with torch.no_grad():
        torch.nn.init.normal_(form.w)
        form.tau.fill_(-1.0)
        form.gates["gate_2_b"].fill_(math.log(gate / (1 - gate)))


def shape_of(reader: Reader) -> Shape:
    identity = reader.identity
    return Shape(identity.layers, identity.heads, identity.kv_heads, identity.head_dim)


def test_with_everything_zoomed_the_student_is_the_teacher(
    reader: Reader, reading: TeacherReading
) -> None:
    """At full rank and open gates nothing is lost; with every span closed something is."""
    block = reader.tokenizer.encode("On day 3 the crew saw", add_special_tokens=False)
    truth = watch(reader, reading, block, 40, 0.5).logp
    form = SpanForm(shape_of(reader))
    opened(form, 1 - 1e-7)
    layers = [
        SpanLayer(form, i, compressed(reading, "sekv-paper", i)) for i in range(reader.layers)
    ]
    got = forward(reader, reading, block, layers).log_softmax(-1)
    torch.testing.assert_close(got, truth, atol=5e-3, rtol=1e-3)
    assert float(layers[0].costs()["budget"].detach()) >= 1.0
    with torch.no_grad():
        form.tau.fill_(2.0)
    closed = forward(reader, reading, block, layers).log_softmax(-1)
    assert float((closed - truth).detach().abs().max()) > 0.05


def test_no_position_sees_what_follows_it(
    reader: Reader, reading: TeacherReading, text: Path
) -> None:
    """Other tokens later in a block leave a student's and a teacher's earlier logits untouched;
    a document's continuation is never a part of the document."""
    ids = reader.tokenizer.encode("On day 3 the crew saw whales", add_special_tokens=False)
    other = [*ids[:14], *reversed(ids[14:])]
    form = SpanForm(shape_of(reader))
    torch.nn.init.normal_(form.w)
    layers = [
        SpanLayer(form, i, compressed(reading, "sekv-paper", i)) for i in range(reader.layers)
    ]
    first, second = (forward(reader, reading, b, layers) for b in (ids, other))
    torch.testing.assert_close(first[:14], second[:14], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(first[14:], second[14:], atol=1e-2)
    texts = _Trainer(options(Path(), text, text / "no"), reader, Accelerator(cpu=True)).texts
    lesson = texts.lesson(reader, Random(1), TOKENS, QUERY, 1, train=True)
    at = next(
        i
        for i in range(len(texts.train))
        if texts.train[i : i + TOKENS].tolist() == lesson.document
    )
    assert texts.train[at + TOKENS : at + TOKENS + QUERY].tolist() == lesson.blocks[0]


def test_a_later_span_changes_no_loss_of_earlier_ones(reading: TeacherReading) -> None:
    """A document that goes on differently gives the spans before the same targets and scores."""
    target = teacher.TeacherQueries(
        torch.randn(2, 2, 3, 16, generator=torch.Generator().manual_seed(1)),
        torch.full((2, 2, 3), 9.0),
        torch.zeros(2, 2, 3),
    )
    f = compressed(reading, "sekv")
    spans = len(f.lengths) // 2
    tokens = int(f.bounds[spans])
    k = f.k.clone()
    k[:, tokens:] += 1.0
    q = target.queries.reshape(2, -1, 16)
    before, after = span_mass(q, f.k, f.bounds), span_mass(q, k, f.bounds)
    torch.testing.assert_close(before[..., :spans], after[..., :spans])
    assert not torch.allclose(before[..., spans:], after[..., spans:])


def test_a_threshold_is_hard_forward_and_soft_backward() -> None:
    alpha = torch.tensor([0.02, 0.049, 0.051, 0.9], requires_grad=True)
    tau = torch.tensor(0.05, requires_grad=True)
    zoom = student.straight_through(alpha, tau)
    assert zoom.tolist() == [0.0, 0.0, 1.0, 1.0]
    zoom.sum().backward()  # type: ignore[no-untyped-call]
    soft = ((alpha - tau) / 0.1).sigmoid().detach()
    expected = soft * (1 - soft) / 0.1
    torch.testing.assert_close(alpha.grad, expected)
    torch.testing.assert_close(tau.grad, -expected.sum())


def test_scores_computed_again_give_the_same_gradient(
    reader: Reader, reading: TeacherReading, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long documents do not keep their scores; what is learnt from them is the same."""
    block = reader.tokenizer.encode("On day 3 the crew saw", add_special_tokens=False)
    form = SpanForm(shape_of(reader))
    torch.nn.init.normal_(form.w)
    grads: list[torch.Tensor] = []
    for limit in (2**24, 0):
        monkeypatch.setattr(student, "RECOMPUTED", limit)
        layers = [
            SpanLayer(form, i, compressed(reading, "sekv-paper", i)) for i in range(reader.layers)
        ]
        forward(reader, reading, block, layers).square().sum().backward()
        assert form.w.grad is not None
        grads.append(form.w.grad)
        form.w.grad = None
    assert float(grads[0].norm()) > 0
    torch.testing.assert_close(*grads)


def test_gates_of_zero_and_one_hide_and_show_rows() -> None:
    made = torch.Generator().manual_seed(4)
    one, two = (torch.randn(2, 3, n, generator=made) for n in (4, 6))
    v1, v2 = (torch.randn(2, n, 5, generator=made) for n in (4, 6))
    gate = (torch.rand(2, 3, 6, generator=made) > 0.5).float()
    expected, _ = merge_resolutions([one, two.masked_fill(gate == 0, NEG_INF)], [v1, v2])
    got = student.gated_mix([(one, None, v1), (two, gate, v2)])
    torch.testing.assert_close(got, expected)


def test_the_models_bases_are_those_of_all_documents(reader: Reader) -> None:
    """Of one document they are its own, with keys weighed by the queries; columns that are not
    learnt follow from the others."""
    made = torch.Generator().manual_seed(5)
    shape = shape_of(reader)
    k, v = (torch.randn(2, 300, 16, generator=made) * torch.arange(1, 17) for _ in range(2))
    q = torch.randn(2, 40, 16, generator=made)
    form, short = SketchForm(shape), SketchForm(replace(shape, columns=4))
    for each in (form, short):
        for _ in range(2):
            each.learn(1, Moments.of(q, k, v))
    _, expected, _ = covariance_basis(k, torch.bmm(q.mT, q) / 40)
    _, values, _ = covariance_basis(v)

    def columns(basis: ModelBasis) -> torch.Tensor:
        return Basis(k[:, 0], basis.columns, basis.scale).unpacked()[1]

    learnt = form.bases(1)
    for basis, want in ((columns(learnt.keys), expected), (columns(learnt.values), values)):
        torch.testing.assert_close(basis, want, atol=0.02 * float(want.abs().max()), rtol=0)
    basis = columns(short.bases(1).values)
    torch.testing.assert_close(basis[..., :4], values[..., :4], atol=0.02, rtol=0)
    assert float(torch.bmm(basis[..., :4].mT, basis[..., 4:]).abs().max()) < 0.05
    assert bool((torch.linalg.matrix_rank(basis) == 16).all())
    assert (form.trained, short.trained) == (2 * 2 * 2 * 16 * 16, 2 * 2 * 2 * 16 * 4)


# ---------------------------------------------------------------------------- the loop


def trainer_of(reader: Reader, chosen: Options) -> _Trainer:
    return _Trainer(chosen, reader, Accelerator(cpu=True))


def test_gradients_reach_every_parameter(
    reader: Reader, model: Path, text: Path, tmp_path: Path
) -> None:
    """Every tensor, in every layer, and no weight of the reader."""
    trainer = trainer_of(reader, options(model, text, tmp_path))
    seen: dict[str, float] = {}
    assert trainer.optimiser is not None
    step = trainer.optimiser.step

    def watched() -> None:
        for name, p in trainer.forms.named_parameters():
            assert p.grad is not None
            layers = p.grad.flatten(1).norm(dim=1) if "gates" not in name else p.grad.norm()[None]
            seen[name] = float(layers.min())
        step()

    trainer.optimiser.step = watched
    trainer._step(3)
    assert len(seen) == 8
    assert all(value > 0 for value in seen.values()), seen
    assert all(p.grad is None for p in reader.model.parameters())


def test_training_lowers_the_loss(reader: Reader, model: Path, text: Path, tmp_path: Path) -> None:
    """On a document that it meets again, from a start that is not good already."""
    chosen = options(model, text, tmp_path, steps=60, rate=2e-2, weights=LearntWeights(distil=0))
    trainer = trainer_of(reader, chosen)
    step = next(s for s in range(40, 60) if "span zoom" in trainer._step(s))  # some compressed
    entries = [trainer._step(step) for _ in range(8)]
    for name in ("span zoom", "span reconstruction"):
        assert entries[-1][name] < 0.95 * entries[0][name], name


def test_the_best_on_unseen_text_is_kept(
    reader: Reader, model: Path, text: Path, tmp_path: Path
) -> None:
    """A form is written as it was when it found most, whatever came after."""
    chosen = options(model, text, tmp_path)
    trainer = trainer_of(reader, chosen)
    trainer.test(Silent())
    before = {name: dict(row) for name, row in trainer.state.best.items()}
    assert set(before) == {"span", "sketch"}
    kept = {name: tensor.clone() for name, tensor in trainer.best.items()}
    sketch = trainer.forms["sketch"]
    assert isinstance(sketch, SketchForm)
    with torch.no_grad():
        sketch.keys[:, :, 0] += 1e6 * sketch.keys[:, :, 1]
    trainer.test(Silent())
    assert trainer.state.best["sketch"] == before["sketch"]
    assert torch.equal(trainer.best["sketch.keys"], kept["sketch.keys"])
    assert not torch.equal(trainer.best["sketch.keys"], sketch.keys)
    assert trainer.state.since == 1


def test_whole_texts_can_be_held_out(
    reader: Reader, model: Path, text: Path, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.txt").write_text(log(40) if name == "one" else "two " * 400)
    chosen = options(model, tmp_path, tmp_path / "run", held_out=("two",), forms=("sketch",))
    texts = trainer_of(reader, chosen).texts
    assert texts.names == {"train": ["one"], "held out": ["two"]}
    assert reader.tokenizer.decode(texts.held_out.tolist()).split()[:2] == ["two", "two"]
    train_router(replace(chosen, steps=1), Silent(), reader)
    assert router_file.load(chosen.output).record["texts"] == texts.names
    with pytest.raises(TrainError, match=r"there is no three.txt in .* to hold out"):
        trainer_of(reader, replace(chosen, held_out=("three",)))


def test_an_interrupted_run_ends_as_one_that_was_not(
    reader: Reader, model: Path, text: Path, tmp_path: Path
) -> None:
    """Weights, moments, best and counts: bit for bit, wherever it was cut."""

    class Cut(Silent):
        def __init__(self, after: int) -> None:
            self.left = after

        def advance(self, done: int) -> None:
            self.left -= done
            if self.left < 0:
                raise KeyboardInterrupt

    whole = options(model, text, tmp_path / "whole")
    train_router(whole, Silent(), reader)
    parts = options(model, text, tmp_path / "parts")
    for after in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            train_router(parts, Cut(after), reader)
    train_router(parts, Silent(), reader)
    one, other = (load_file(o.run / CHECKPOINT) for o in (whole, parts))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (
        router_file.load(whole.output).layers[0].tensors().keys()
        == router_file.load(parts.output).layers[0].tensors().keys()
    )
    assert whole.output.read_bytes() == parts.output.read_bytes()


@pytest.mark.slow
def test_a_killed_process_goes_on(model: Path, text: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle; the same command finishes from the checkpoint."""
    output = tmp_path / "router.safetensors"
    command = [sys.executable, "-m", "sekv_cli", "train", "--model", str(model)]
    command += ["--text", str(text), "-o", str(output), "--steps", "40", "--length", "96"]
    command += ["--form", "sketch"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    held = tmp_path / "router.safetensors.run" / CHECKPOINT
    while not held.exists():
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not output.exists()
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    assert valid("train", done.stdout)["steps"] <= 40
    entries = [
        json.loads(line)["step"]
        for line in (held.parent / "log.jsonl").read_text(encoding="utf-8").splitlines()
        if "held out" not in line
    ]
    assert entries.count(1) == 1
    assert router_file.load(output).forms == ("sketch",)


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_checkpoint(
    reader: Reader,
    model: Path,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen = options(model, text, tmp_path)
    train_router(replace(chosen, stop=2), Silent(), reader)
    before = (chosen.run / CHECKPOINT).read_bytes()
    of = Moments.of
    monkeypatch.setattr(Moments, "of", lambda q, k, v: of(q * math.nan, k, v))
    with pytest.raises(TrainError, match="step 3 is not a number; the checkpoint in"):
        train_router(chosen, Silent(), reader)
    assert (chosen.run / CHECKPOINT).read_bytes() == before


def test_a_run_without_gain_stops_early(
    reader: Reader, model: Path, text: Path, tmp_path: Path
) -> None:
    chosen = options(model, text, tmp_path, steps=40, test=1, patience=2, rate=0.0, forms=("span",))
    assert train_router(chosen, Silent(), reader).steps == 2


def test_a_checkpoint_of_another_run_is_refused(
    reader: Reader, model: Path, text: Path, tmp_path: Path
) -> None:
    chosen = options(model, text, tmp_path, stop=1)
    train_router(chosen, Silent(), reader)
    with pytest.raises(TrainError, match=r"another run \(rate, seed differ\)"):
        train_router(replace(chosen, rate=1.0, seed=5), Silent(), reader)
    (chosen.run / CHECKPOINT).write_bytes(b"nothing")
    with pytest.raises(TrainError, match="is damaged"):
        train_router(chosen, Silent(), reader)


def test_rate_and_length_follow_the_published_course() -> None:
    usual = Options(text=Path(), output=Path(), run=Path(), steps=100)
    assert [schedule(s, usual) for s in (0, 4, 9)] == [0.1, 0.5, 1.0]
    assert schedule(55, usual) == pytest.approx(0.5)
    assert schedule(99, usual) < 0.001
    assert [document_length(p, 32768) for p in (0.0, 1 / 3, 2 / 3, 1.0)] == [
        8192,
        16384,
        32768,
        32768,
    ]


def test_a_smaller_rank_is_a_smaller_router() -> None:
    """And no rank is larger than a head."""
    whole, small, most = (SpanForm(Shape(3, 4, 2, 16, rank=r)).trained for r in (16, 4, 32))
    assert whole - small == 3 * 2 * 12 * 16
    assert most == whole


@pytest.mark.parametrize(
    ("files", "length", "said"),
    [
        ({}, 0, r"no .txt files in"),
        ({"a.txt": ""}, 64, "holds 0 tokens and 0 held out; a document takes 88"),
        ({"a.txt": "short " * 50}, 64, "add text, or name a shorter --length"),
        ({"a.txt": "word " * 500}, 9, "--length 9: this model takes 32 to"),
    ],
)
def test_text_that_cannot_be_learnt_from_is_one_line(
    files: dict[str, str],
    length: int,
    said: str,
    reader: Reader,
    model: Path,
    tmp_path: Path,
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(TrainError, match=said) as caught:
        train_router(options(model, tmp_path, tmp_path / "out", length=length), Silent(), reader)
    assert "\n" not in str(caught.value)
    with pytest.raises(TrainError, match="there is no folder"):
        train_router(options(model, tmp_path / "no", tmp_path), Silent(), reader)


# ---------------------------------------------------------------------------- what it is used for


@pytest.fixture(scope="module")
def trained(
    reader: Reader, model: Path, text: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    chosen = options(model, text, tmp_path_factory.mktemp("trained"), steps=1)
    result = train_router(chosen, Silent(), reader)
    assert result.parameters == sum(result.forms.values())
    assert set(result.found) == {"span", "sketch"}
    for row in result.found.values():
        assert 0 <= row["untrained"] <= 1
        assert 0 <= row["trained"] <= 1
    return chosen.output


def test_ingest_and_ask_use_a_trained_router(
    trained: Path, model: Path, reader: Reader, tmp_path: Path
) -> None:
    made = store_of(
        tmp_path, model, log(20), reader=reader, method="sekv-paper", router=str(trained)
    )
    with Store.open(made) as store:
        settings = store.manifest.settings["router"]
    assert settings["kind"] == "SpanZoom"
    assert settings["weights"] == router_file.load(trained).fingerprint
    with session(made, reader, budget="30%") as opened:
        assert isinstance(opened.memory.layers[0].recipe.router, SpanZoom)
        opened.ask("How many whales?")
    with session(made, reader, router=str(trained)) as opened:
        assert isinstance(opened.memory.layers[0].recipe.router, SpanZoom)
    more = tmp_path / "more.txt"
    more.write_text(log(3), encoding="utf-8")
    with pytest.raises(RouterError, match="name that file with --router"):
        append([str(more)], made, IngestOptions(model=str(model)), Silent(), None, reader)
    longer = IngestOptions(model=str(model), router=str(trained))
    assert append([str(more)], made, longer, Silent(), None, reader).windows == 2


def test_a_store_keeps_the_bases_of_a_router_that_lies_elsewhere(
    trained: Path, model: Path, reader: Reader, tmp_path: Path
) -> None:
    """It is asked and goes on without the file; its device counts no bytes for them."""
    made = store_of(tmp_path, model, reader=reader, method="sekv", router=str(trained))
    with Store.open(made) as store:
        assert store.manifest.settings["codec"]["model"] == router_file.load(trained).fingerprint
        kept = store.shared()
    assert {"0.k_order", "0.own_k_basis", "1.own_v_scale"} <= kept.keys()
    assert "0.k_basis" not in kept
    with session(made, reader, budget="60%") as opened:
        layer: Any = opened.memory.layers[0]
        assert layer.params.keys.from_model
        counted = layer.params.tensors(with_model=False).values()
        parts = layer.index.nbytes + layer.zoomed.fixed_bytes
        assert layer.fixed_bytes == parts + sum(t.nbytes for t in counted)
        opened.ask("How many whales?")
    more = tmp_path / "more.txt"
    more.write_text(log(3), encoding="utf-8")
    longer = IngestOptions(model=str(model))
    assert append([str(more)], made, longer, Silent(), None, reader).windows == 2
    with session(made, reader) as opened:
        opened.ask("How many whales?")
    with pytest.raises(RouterError, match="to use 'none', ingest again"):
        session(made, reader, router="none")


def test_a_models_own_router_is_found_and_does_not_change_the_model(
    trained: Path, model: Path, reader: Reader, tmp_path: Path
) -> None:
    """Beside the model it is used without being named, if it pays and `none` is not asked for."""
    before = weights_fingerprint(model, Silent())
    beside = model / router_file.NAME
    known = router_file.load(trained)
    layers, gates = [replace(each, gates=None) for each in known.layers], known.layers[0].gates
    used = []
    try:
        for pays, asked in ((False, ""), (True, "none"), (True, "")):
            record = {"found": {"sketch": {"trained": float(pays), "untrained": 0.5}}}
            router_file.save(beside, known.owner, layers, gates, record)
            assert weights_fingerprint(model, Silent()) == before
            made = store_of(
                tmp_path / f"{len(used)}", model, reader=reader, method="sekv", router=asked
            )
            with Store.open(made) as store:
                used.append(store.manifest.settings["codec"]["model"])
                kept = store.shared()
        assert used == ["", "", router_file.load(beside).fingerprint]
        assert "0.k_order" in kept
        assert not any("own_" in name for name in kept)  # they lie beside the model
        with session(made, reader) as opened:
            said = opened.ask("How many whales?").answer
        moved = beside.rename(tmp_path / "elsewhere.safetensors")
        with session(made, reader, router=str(moved)) as opened:
            assert opened.ask("How many whales?").answer == said
        more = tmp_path / "more.txt"
        more.write_text(log(3), encoding="utf-8")
        for use in (
            lambda: session(made, reader),
            lambda: session(made, reader, router=str(trained)),
            lambda: append(
                [str(more)], made, IngestOptions(model=str(model)), Silent(), None, reader
            ),
        ):
            with pytest.raises(RouterError, match=r"--router") as caught:
                use()
            assert "\n" not in str(caught.value)
        longer = IngestOptions(model=str(model), router=str(moved))
        assert append([str(more)], made, longer, Silent(), None, reader).windows == 2
    finally:
        beside.unlink(missing_ok=True)


def test_a_store_of_summaries_takes_another_router_and_a_sketch_does_not(
    trained: Path, model: Path, reader: Reader, tmp_path: Path
) -> None:
    paper = store_of(tmp_path / "paper", model, reader=reader, method="sekv-paper")
    with session(paper, reader, router=str(trained)) as opened:
        assert isinstance(opened.memory.layers[0].recipe.router, SpanZoom)
        opened.ask("How many whales?")
    with session(paper, reader) as opened:
        opened.retune(replace(opened.options, router=str(trained)))
        assert isinstance(opened.memory.layers[0].recipe.router, SpanZoom)
        with pytest.raises(RouterError):
            opened.retune(replace(opened.options, router=str(paper)))
        assert opened.options.router == str(trained)
        assert isinstance(opened.memory.layers[0].recipe.router, SpanZoom)
    plain = store_of(tmp_path / "plain", model, reader=reader, method="sekv")
    with pytest.raises(RouterError, match=r"made with no router; to use .* ingest again"):
        session(plain, reader, router=str(trained))


def test_another_models_router_is_one_line(trained: Path, reader: Reader, tmp_path: Path) -> None:
    other = checkpoint("llama", tmp_path / "other", num_hidden_layers=2, hidden_size=48)
    with pytest.raises(RouterError, match="was trained for") as caught:
        store_of(tmp_path, other, router=str(trained))
    assert "\n" not in str(caught.value)
    with pytest.raises(RouterError, match="holds no router for method 'full'"):
        store_of(
            tmp_path, Path(reader.identity.id), reader=reader, method="full", router=str(trained)
        )


def test_a_shared_projection_meets_the_size_that_the_paper_claims() -> None:
    """Under 0.05 % of each backbone; the published shapes are above, as counted from its code."""
    published = (2.77, 4.21, 4.21, 7.88)
    for model_, count in zip(MODELS, published, strict=True):
        counts = router_parameters(model_)
        assert counts["per query head"] / 1e6 == pytest.approx(count, abs=0.011)
        assert counts["per query head"] / model_.parameters > 0.0005
        assert counts["per KV head"] / model_.parameters < 0.0005
        assert counts["sketch, 24 columns"] / model_.parameters < 0.0005
        assert counts["sketch"] == 2 * model_.layers * model_.kv_heads * model_.size**2
    sizes = [round(m.parameters / 1e9, 2) for m in MODELS]
    assert sizes == [3.21, 8.03, 7.25, 14.77]
