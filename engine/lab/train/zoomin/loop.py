"""Trains a router for a frozen reader: `train_router(options, progress)`.

Everything that decides a step is a function of the seed and the step, so that a run that was
killed goes on as if it had never stopped. The reader's weights never change. accelerate places the
router and its gradients; several processes take different documents of the same step.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from engine.compression.methods import METHODS
from engine.compression.params import RankGates, TrainedLayer, on_device
from engine.compression.routers import router_file
from engine.errors import TrainError
from engine.lab.train.trainable import check_trainable
from engine.lab.train.zoomin.evaluate import found
from engine.lab.train.zoomin.forms import Moments, Seen, Shape, SketchForm, SpanForm
from engine.lab.train.zoomin.student import SpanLayer, compressed_layer, cut, fitted
from engine.lab.train.zoomin.teacher import TeacherBlock, TeacherReading, forward, read, watch
from engine.lab.train.zoomin.text import Texts
from engine.models.locate import locate
from engine.models.reader import Reader, load_reader
from engine.types import Progress

CHECKPOINT = "checkpoint.safetensors"
LOG = "log.jsonl"
LONGEST = 32768
SINKS = 4
"""First tokens whose keys have outlying norms: they stay exact, and teach nothing."""

Form = TypeVar("Form", SpanForm, SketchForm)

FORM_METHODS = {router_file.SPAN: "sekv-paper", router_file.SKETCH: "sekv"}
"""Which method each form serves, and is tested with."""


@dataclass(frozen=True)
class LearntWeights:
    """Of the losses, as published; the budget's rises from 0 over the first half."""

    distil: float = 1.0
    zoom: float = 1.0
    reconstruction: float = 0.5
    budget: float = 0.1


@dataclass(frozen=True)
class Options:
    """How to train.

    text: folder of .txt files.  held_out: names of those to test on, without .txt; () keeps back
        the last tenth of each.  output: the router file.  run: folder of checkpoint and log.
    model, revision, device, dtype: the reader, as `models.reader.load_reader` takes them.
    forms: of `router_file.FORMS`.  length: tokens of the longest document, 0 for what the reader
        reads well; documents grow to it from a quarter.  query: tokens of a block read after one.
    columns: of each basis that the sketch form learns, 0 for all.  rank: rows of the projections
        of the span form, d' of the paper; as many as a head has where that is less.
    questions: blocks per document beside the text's own continuation.
    beyond: w of the paper, tokens behind which attention counts as far.  mined: share of a block's
        positions, those that look far most, that the zoom loss is taken at.
    test, patience: steps between held-out tests, and tests without a gain before the end.
    save: steps between checkpoints.
    Source: SeKV (arXiv 2606.31145), section 3.4 and appendix, for the defaults that are theirs:
        rate, decay, warm-up, loss weights, w, rho.
    """

    text: Path
    output: Path
    run: Path
    model: str = ""
    revision: str = ""
    device: str = "auto"
    dtype: str = "auto"
    forms: tuple[str, ...] = router_file.FORMS
    per_head: bool = False
    rank: int = 32
    columns: int = 0
    held_out: tuple[str, ...] = ()
    steps: int = 200
    length: int = 0
    query: int = 64
    questions: int = 3
    beyond: int = 512
    mined: float = 0.5
    rate: float = 1e-3
    decay: float = 0.01
    warm: float = 0.1
    clip: float = 1.0
    weights: LearntWeights = LearntWeights()
    seed: int = 0
    test: int = 25
    tested: int = 4
    patience: int = 4
    save: int = 25
    stop: int = 0


@dataclass
class _State:
    """Counts that a checkpoint keeps; the best by form, as `evaluate.found` tells them.
    since: tests in which no form gained."""

    step: int = 0
    best: dict[str, dict[str, float]] = field(default_factory=dict)
    best_step: dict[str, int] = field(default_factory=dict)
    since: int = 0


@dataclass(frozen=True)
class Result:
    """What a run came to. parameters: trained. share: of the model's.

    best_step, found: by form, when it was best, and then the share of the attention that lies in
    the twentieth of held-out tokens ranked first: "untrained", "trained" and "oracle".
    """

    steps: int
    best_step: dict[str, int]
    parameters: int
    share: float
    found: dict[str, dict[str, float]]
    forms: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def train_router(options: Options, progress: Progress, reader: Reader | None = None) -> Result:
    """Train, or go on training, a router, and write its file.

    Args:
        reader: one already loaded for this model, when there is.
    Raises:
        TrainError: no text or too little, a checkpoint of another run, or a loss that is no
            number; the last good checkpoint is then kept.
    """
    located = locate(options.model, revision=options.revision, progress=progress)
    progress.note(f"loading {located.name}")
    reader = reader or load_reader(
        located, device=options.device, dtype=options.dtype, gradients=True
    )
    check_trainable(reader)
    if reader.dtype == torch.float16:
        raise TrainError("gradients vanish in float16; train with --dtype bfloat16 or float32")
    accelerator = Accelerator(
        cpu=reader.devices[0].type == "cpu",
        mixed_precision="bf16" if reader.dtype == torch.bfloat16 else "no",
    )
    reader.model.requires_grad_(False)
    trainer = _Trainer(options, reader, accelerator)
    total = sum(p.numel() for p in reader.model.parameters())
    counts = {name: form.trained for name, form in trainer.named()}
    share = sum(counts.values()) / total
    progress.note(f"{sum(counts.values())} parameters to train, {100 * share:.3f} % of the model's")
    trainer.train(progress)
    if set(trainer.state.best) != set(trainer.forms):
        raise TrainError(
            "documents so short that nothing is compressed teach nothing; name a longer --length"
        )
    trainer.forms.load_state_dict(trainer.best)
    owner = router_file.Owner.of(reader.identity)
    record = {
        **{k: v for k, v in asdict(options).items() if not isinstance(v, Path)},
        "texts": trainer.texts.names,
        "best_step": trainer.state.best_step,
        "found": trainer.state.best,
    }
    layers, gates = trainer.learnt()
    if accelerator.is_main_process:
        router_file.save(options.output, owner, layers, gates, record)
    accelerator.wait_for_everyone()
    return Result(
        trainer.state.step,
        trainer.state.best_step,
        sum(counts.values()),
        share,
        trainer.state.best,
        counts,
    )


def schedule(step: int, options: Options) -> float:
    """Factor of the rate: up over the first tenth, then down a cosine to 0."""
    warm = max(1, round(options.warm * options.steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 + 0.5 * math.cos(math.pi * (step - warm) / max(1, options.steps - warm))


def document_length(progress: float, longest: int) -> int:
    """Tokens of a document: from a quarter of the longest, doubling twice over the run."""
    return min(longest, int(longest / 4 * 4.0 ** min(1.0, 1.5 * progress)))


def _moments(reading: TeacherReading, blocks: list[TeacherBlock]) -> Iterator[Moments]:
    """What one document shows of each layer: its keys and values, and the queries that look far."""
    for layer, (k, v) in enumerate(reading.rows):
        queries = [(block.layers[layer].queries, block.mined) for block in blocks]
        q = torch.cat([x[:, :, mined.to(x.device)].flatten(1, 2) for x, mined in queries], 1)
        body = slice(min(SINKS, k.shape[1] - 1), None)
        yield Moments.of(q, k[:, body].float(), v[:, body].float())


class _Trainer:
    """The run: modules, optimiser, documents, checkpoint."""

    def __init__(self, options: Options, reader: Reader, accelerator: Accelerator):
        self.options, self.reader, self.accelerator = options, reader, accelerator
        identity = reader.identity
        unknown = set(options.forms) - set(router_file.FORMS)
        if unknown or not options.forms:
            raise TrainError(
                f"unknown form '{', '.join(unknown)}'; known: {', '.join(router_file.FORMS)}"
            )
        most = reader.max_positions - len(reader.prompt.prefix) - options.query
        self.longest = options.length or min(reader.reads_well or most, LONGEST, most)
        if not 32 <= self.longest <= most:
            raise TrainError(f"--length {self.longest}: this model takes 32 to {most} tokens")
        if not 0 <= options.columns <= identity.head_dim:
            raise TrainError(
                f"a basis of this model has at most {identity.head_dim} columns; ask for fewer"
            )
        self.texts = Texts.of(options.text, reader, self.longest + options.query, options.held_out)
        shape = Shape(
            identity.layers,
            identity.heads,
            identity.kv_heads,
            identity.head_dim,
            rank=options.rank,
            per_head=options.per_head,
            columns=options.columns,
        )
        made: dict[str, nn.Module] = {}
        if router_file.SPAN in options.forms:
            made[router_file.SPAN] = SpanForm(shape)
        if router_file.SKETCH in options.forms:
            made[router_file.SKETCH] = SketchForm(shape)
        self.forms = nn.ModuleDict(made)
        self.state = _State()
        self.best: dict[str, Tensor] = {}
        options.run.mkdir(parents=True, exist_ok=True)
        restored = options.run / CHECKPOINT
        resumed = restored.exists()
        if not resumed:
            self._begin()
        self.forms.to(accelerator.device)
        weights = list(self.forms.parameters())  # none where nothing learns by gradients
        self.optimiser = (
            accelerator.prepare(
                torch.optim.AdamW(weights, options.rate, weight_decay=options.decay)
            )
            if weights
            else None
        )
        if resumed:
            self._restore(restored)

    # -- the run -------------------------------------------------------------------

    def train(self, progress: Progress) -> None:
        """Step until the end, an early stop, or a loss that is no number."""
        options, state = self.options, self.state
        if not self.best:
            self.test(progress)  # the start is the first to beat
        progress.start("training", options.steps, "steps")
        progress.resume(state.step)
        end = min(options.steps, options.stop or options.steps)
        while state.step < end and state.since < options.patience:
            figures = self._step(state.step)
            if not all(math.isfinite(x) for x in figures.values()):
                kept = f"the checkpoint in {options.run}" if self.saved else "nothing"
                raise TrainError(
                    f"the loss of step {state.step + 1} is not a number; {kept} is kept: go on "
                    "from it with a lower --rate"
                )
            state.step += 1
            progress.advance(1)
            self._log({"step": state.step, **figures})
            if state.step % options.test == 0 or state.step == options.steps:
                self.test(progress)
            if state.step % options.save == 0 or state.step == end:
                self._save()

    def _step(self, step: int) -> dict[str, float]:
        options = self.options
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        rng = Random(f"{options.seed} {step * processes + rank}")
        length = self.longest
        if router_file.SPAN in options.forms:  # gradients begin with what is short
            length = document_length(step / options.steps, self.longest)
        ramp = min(1.0, 2 * step / options.steps)
        sums: dict[str, float] = {}
        lesson = self.texts.lesson(
            self.reader, rng, length, options.query, options.questions, train=True
        )
        reading = read(self.reader, lesson.document)
        blocks = [self._watch(reading, ids) for ids in lesson.blocks]
        for form in self._of(SketchForm):
            for layer, moments in enumerate(_moments(reading, blocks)):
                # A form on several processes sees the documents of all.
                shared = (self.accelerator.reduce(t, "mean") for t in vars(moments).values())
                form.learn(layer, Moments(*shared))
            sums[f"{router_file.SKETCH} spread"] = form.spread
        for span in self._of(SpanForm):
            students = self._students(span, reading)
            for block in blocks if students else ():
                losses = self._losses(reading, block, students)
                loss = self._weighed(losses, ramp) / len(blocks)
                self.accelerator.backward(loss)
                for kind, value in losses.items():
                    key = f"{router_file.SPAN} {kind}"
                    sums[key] = sums.get(key, 0.0) + float(value.detach()) / len(blocks)
            sums[f"{router_file.SPAN} norm"] = self._clipped(span)
        if self.optimiser is not None:
            for group in self.optimiser.param_groups:
                group["lr"] = options.rate * schedule(step, options)
            if all(math.isfinite(x) for x in sums.values()):
                self.optimiser.step()
            self.optimiser.zero_grad()
        return sums

    def _watch(self, reading: TeacherReading, ids: list[int]) -> TeacherBlock:
        beyond = min(self.options.beyond, reading.tokens // 4)
        return watch(self.reader, reading, ids, beyond, self.options.mined)

    def _clipped(self, form: SpanForm) -> float:
        """Bring the gradients of all processes together; their norm before it was clipped."""
        parameters = list(form.parameters())
        for p in parameters:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            p.grad = self.accelerator.reduce(p.grad, "mean")
        return float(nn.utils.clip_grad_norm_(parameters, self.options.clip))

    def _students(self, form: SpanForm, reading: TeacherReading) -> list[SpanLayer]:
        """The student's layers; none where the recipe compresses nothing here."""
        recipe = fitted(METHODS[FORM_METHODS[router_file.SPAN]], reading.tokens)
        spans = cut(recipe, reading)
        layers = [compressed_layer(recipe, reading, spans, i) for i in range(self.reader.layers)]
        return [SpanLayer(form, i, layer) for i, layer in enumerate(layers) if layer is not None]

    def _losses(
        self, reading: TeacherReading, block: TeacherBlock, layers: list[SpanLayer]
    ) -> dict[str, Tensor]:
        """Every loss of a block by name, unweighed."""
        device = self.accelerator.device
        gathered: dict[str, list[Tensor]] = {}
        for layer, target in zip(layers, block.layers, strict=True):
            for kind, value in layer.losses(target, block.mined).items():
                gathered.setdefault(kind, []).append(value.to(device))
        if self.options.weights.distil:
            with self.accelerator.autocast():
                logits = forward(self.reader, reading, block.ids, layers)
            logq = logits.float().log_softmax(-1)
            each = (block.logp.exp() * (block.logp - logq)).sum(-1)
            gathered["distil"] = [each.mean().to(device)]
            for layer in layers:
                for kind, value in layer.costs().items():
                    gathered.setdefault(kind, []).append(value.to(device))
        return {kind: torch.stack(values).mean() for kind, values in gathered.items()}

    def _weighed(self, losses: dict[str, Tensor], ramp: float) -> Tensor:
        weights = replace(self.options.weights, budget=self.options.weights.budget * ramp)
        parts = [getattr(weights, kind) * value for kind, value in losses.items()]
        return torch.stack(parts).sum()

    # -- held-out text -------------------------------------------------------------

    def _held_out(self) -> Iterator[tuple[TeacherReading, list[TeacherBlock]]]:
        """The same documents every time, as long as the longest."""
        options = self.options
        for number in range(options.tested):
            rng = Random(f"{options.seed} held out {number}")
            lesson = self.texts.lesson(
                self.reader, rng, self.longest, options.query, options.questions, train=False
            )
            reading = read(self.reader, lesson.document, ask=True)
            yield reading, [self._watch(reading, ids) for ids in lesson.blocks]

    def test(self, progress: Progress) -> None:
        """Keep a form that finds more of the attention on held-out text than ever before.

        Not its loss decides: that can fall while what is ranked first gets worse.
        """
        state = self.state
        layers, gates = self.learnt()
        router_now = router_file.TrainedRouter(
            router_file.Owner.of(self.reader.identity),
            [replace(layer, gates=gates) for layer in layers],
            "now",
            {},
        )
        table = found(router_now, self._held_out())
        self._log({"step": state.step, "held out": table})
        state.since += 1
        for name, form in self.forms.items():
            row = table.get(FORM_METHODS[name])
            if row is None or row["trained"] <= state.best.get(name, {"trained": -1.0})["trained"]:
                continue
            state.best[name], state.best_step[name], state.since = row, state.step, 0
            weights = form.state_dict()
            self.best |= {f"{name}.{k}": t.detach().cpu().clone() for k, t in weights.items()}
        shares = ", ".join(
            f"{name} {100 * table[method]['trained']:.1f} %"
            for name, method in FORM_METHODS.items()
            if name in self.forms and method in table
        )
        progress.note(f"step {state.step}: attention found in 5 % of held-out tokens: {shares}")

    # -- beginning and checkpoints ---------------------------------------------------

    def _begin(self) -> None:
        """Start values, from what a few documents show of queries and keys."""
        options = self.options
        seen = Seen()
        for number in range(options.tested):
            rng = Random(f"{options.seed} begin {number}")
            lesson = self.texts.lesson(
                self.reader, rng, self.longest, options.query, options.questions, train=True
            )
            reading = read(self.reader, lesson.document)
            blocks = []
            for ids in lesson.blocks:
                blocks.append(self._watch(reading, ids))
            for layer, moments in enumerate(_moments(reading, blocks)):
                seen.add(layer, moments)
                for form in self._of(SketchForm):
                    form.learn(layer, moments)
        generator = torch.Generator().manual_seed(options.seed)
        for span in self._of(SpanForm):
            span.begin(seen, generator)

    def named(self) -> list[tuple[str, SpanForm | SketchForm]]:
        """The forms by name."""
        return [
            (name, form)
            for name, form in self.forms.items()
            if isinstance(form, SpanForm | SketchForm)
        ]

    def _of(self, kind: type[Form]) -> list[Form]:
        """The form of that kind, if it is learnt."""
        return [form for form in self.forms.values() if isinstance(form, kind)]

    @torch.no_grad()
    def learnt(self) -> tuple[list[TrainedLayer], RankGates | None]:
        """What the router file holds: per layer, and for all layers."""
        span, sketch = next(iter(self._of(SpanForm)), None), next(iter(self._of(SketchForm)), None)
        cpu = torch.device("cpu")
        layers = [
            TrainedLayer(
                zoom=None if span is None else on_device(span.zoom(layer), cpu),
                bases=None if sketch is None else sketch.bases(layer),
            )
            for layer in range(self.reader.layers)
        ]
        return layers, None if span is None else on_device(span.rank_gates, cpu)

    @property
    def saved(self) -> bool:
        return (self.options.run / CHECKPOINT).exists()

    def _job(self) -> dict[str, Any]:
        """What makes two runs the same training; their ends may differ."""
        free = {"output", "run", "text", "stop", "device", "model", "revision"}
        chosen = {k: v for k, v in asdict(self.options).items() if k not in free}
        tokens = [len(self.texts.train), len(self.texts.held_out)]
        job = {**chosen, "weights_of": self.reader.identity.weights, "tokens": tokens}
        plain: dict[str, Any] = json.loads(json.dumps(job))
        return plain

    def _save(self) -> None:
        """Write a checkpoint beside the old one and put it in its place."""
        if not self.accelerator.is_main_process:
            return
        tensors = {f"now.{k}": t.detach().cpu() for k, t in self.forms.state_dict().items()}
        tensors |= {f"best.{k}": t for k, t in self.best.items()}
        adam = {} if self.optimiser is None else self.optimiser.state_dict()["state"]
        for index, held in adam.items():
            tensors |= {f"adam.{index}.{k}": torch.as_tensor(t).cpu() for k, t in held.items()}
        tensors = {k: t.contiguous() for k, t in tensors.items()}
        claims = {"state": asdict(self.state), "job": self._job()}
        router_file.put(self.options.run / CHECKPOINT, tensors, json.dumps(claims))

    def _restore(self, path: Path) -> None:
        """Take up a checkpoint.

        Raises:
            TrainError: it is damaged, or of another model, text or setting.
        """
        try:
            with safe_open(path, framework="pt") as file:
                claims = json.loads(file.metadata()["sekv"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, TypeError, KeyError, ValueError) as error:
            raise TrainError(f"{path} is damaged; remove it to begin anew ({error})") from error
        job = self._job()
        other = [k for k in job if claims["job"].get(k) != job[k]]
        if other:
            raise TrainError(
                f"the checkpoint in {path.parent} is of another run ({', '.join(other)} differ); "
                "remove it, or name another folder with --run"
            )
        parts: dict[str, dict[str, Tensor]] = {"now": {}, "best": {}, "adam": {}}
        for name, tensor in tensors.items():
            place, _, rest = name.partition(".")
            parts[place][rest] = tensor
        self.forms.load_state_dict(parts["now"])
        self.best = parts["best"]
        held: dict[int, dict[str, Tensor]] = {}
        for name, tensor in parts["adam"].items():
            index, _, rest = name.partition(".")
            held.setdefault(int(index), {})[rest] = tensor
        if self.optimiser is not None:
            known = self.optimiser.state_dict()
            self.optimiser.load_state_dict({**known, "state": held})
        self.state = _State(**claims["state"])

    def _log(self, entry: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            with (self.options.run / LOG).open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
