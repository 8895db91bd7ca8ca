"""Trains the built-in reader from nothing: `train_reader(options)`.

One process or several (see `__main__`); each makes its own batches and they share one
averaged gradient. Everything that decides a step is a function of the seed, the step
and the progress, so that a resumed run goes on as if it had never stopped. Progress is
steps done of `steps`, or minutes spent of `minutes`. What is learnt from is in
`episodes`, how it is laid out in `batches`; the model is transformers' own.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer

from engine.errors import TrainError
from engine.train.reader import tokenizer as vocabulary
from engine.train.reader.batches import MARKS, Batch, Batches, Curriculum, Order, loader
from engine.train.reader.episodes import Episodes
from engine.train.reader.evaluate import (
    CELLS,
    Cell,
    calibrated,
    forward,
    held_out,
    margins,
    measure,
    right,
)
from engine.train.reader.export import export
from engine.train.reader.model import Shape, Tokens, build
from engine.train.reader.optim import Optimiser, Rates

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import LlamaForCausalLM

CHECKPOINT = "checkpoint.safetensors"
TOKENIZER = "tokenizer.json"
LOG = "log.jsonl"
NOTES = "notes.txt"  # what a person changed under way, kept in the record of the weights


@dataclass(frozen=True)
class Options:
    """How to train.

    text: folder of .txt books.  run: folder of checkpoints and log, resumed if it has one.
    steps, minutes: the budget; steps counts if it is not 0.  stop: end early at this
        step without shortening the schedule (0: do not).
    examples: generated documents that the tokenizer learns from, beside the books.
    warm: first steps with rising rates.  fall: share of the budget in which they sink to 0.
    save, test: minutes between checkpoints and between held-out measurements (0: never).
    out: folder of the finished reader, "" to write none.
    """

    text: Path
    run: Path
    out: Path | None = None
    seed: int = 0
    steps: int = 0
    minutes: float = 90.0
    stop: int = 0
    warm: int = 40
    fall: float = 0.5
    save: float = 4.0
    test: float = 30.0
    tested: int = 48
    workers: int = 1
    examples: int = 3000
    quiet: bool = False
    compiled: bool = False
    shape: Shape = field(default_factory=Shape)
    rates: Rates = field(default_factory=Rates)
    curriculum: Curriculum = field(default_factory=Curriculum)
    cells: tuple[Cell, ...] = CELLS


@dataclass(frozen=True)
class Result:
    """What a run came to. recall: share of random-token look-ups right of late, by token."""

    steps: int
    tokens: int
    minutes: float
    loss: float
    recall: float


@dataclass
class _State:
    """Counts that a checkpoint keeps."""

    step: int = 0
    tokens: int = 0
    minutes: float = 0.0
    loss: float = 0.0
    recall: float = 0.0
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    reluctance: float = 0.0


def get_tokenizer(options: Options) -> Tokenizer:
    """The run's tokenizer, trained on its books and generated facts if it has none yet."""
    path = options.run / TOKENIZER
    if not path.exists():
        train = Episodes(options.text, "train", options.seed)

        def texts() -> Iterator[str]:
            for book in train.haystack.books:
                yield from book.paragraphs
            for _ in range(options.examples):
                episode = train.sample(512)  # its document has line breaks, the books have none
                yield episode.document
                for question in episode.questions:
                    yield f"{vocabulary.ask(question.text)} {question.quote} {question.value}"

        made = vocabulary.train(texts(), options.shape.vocabulary)
        options.run.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        made.save(str(partial))
        partial.replace(path)
    return Tokenizer.from_file(str(path))


def schedule(step: int, progress: float, options: Options) -> float:
    """Factor of the rates: up in the first steps, level, then straight down to 0."""
    rise = min(1.0, (step + 1) / options.warm)
    return rise * min(1.0, max(0.0, (1.0 - progress) / options.fall))


def loss_of(
    model: LlamaForCausalLM, batch: Batch
) -> tuple[torch.Tensor, dict[str, tuple[float, float, int]]]:
    """Weighted mean loss of the right tokens together; sums of loss and hits, count, by mark."""
    chosen = batch.weights > 0
    weights, targets = batch.weights[chosen], batch.targets[chosen]
    logits = model.lm_head(forward(model, batch)[chosen]).float()
    log_p = logits.log_softmax(-1).gather(1, targets.clamp(min=0))
    each = -log_p.masked_fill(targets < 0, float("-inf")).logsumexp(-1)
    hits = right(logits.detach(), targets)
    notes = {}
    marks = batch.marks[chosen]
    for number, name in enumerate(MARKS):
        mine = marks == number
        if count := int(mine.sum()):
            notes[name] = (float(each.detach()[mine].sum()), float(hits[mine].sum()), count)
    return (each * weights).sum() / weights.sum(), notes


def save(path: Path, optimiser: Optimiser, state: _State) -> None:
    """Write a checkpoint beside the old one and put it in its place."""
    partial = path.with_suffix(".partial")
    tensors = {name: tensor.contiguous() for name, tensor in optimiser.state.items()}
    save_file(tensors, partial, metadata={"state": json.dumps(asdict(state))})
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def restore(path: Path, optimiser: Optimiser) -> _State:
    """Take up a checkpoint.

    Raises:
        TrainError: it is of a reader of another shape.
    """
    with safe_open(path, framework="pt") as file:
        state = json.loads(file.metadata()["state"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    try:
        optimiser.load(tensors)
    except (KeyError, RuntimeError) as error:
        raise TrainError(
            f"the checkpoint in {path.parent} is of another reader; use another run folder"
        ) from error
    return _State(**state)


def to(batch: Batch, device: torch.device) -> Batch:
    """The same batch on a device."""
    moved = {
        name: value.to(device)
        for name, value in vars(batch).items()
        if isinstance(value, torch.Tensor)
    }
    layout = replace(batch.layout, present=batch.layout.present.to(device))
    return replace(batch, **moved, layout=layout)


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip()


def train_reader(options: Options) -> Result:
    """Train, or go on training, a reader.

    Args:
        options: see Options.
    Returns:
        the last step's figures, on the main process; the log has the rest.
    Raises:
        TrainError: the books are missing, or the checkpoint does not fit.
    """
    if not any(options.text.glob("*.txt")):
        raise TrainError(f"no .txt books in {options.text}; name a folder with --text")
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    main, rank = accelerator.is_main_process, accelerator.process_index
    with accelerator.main_process_first():
        tokens = get_tokenizer(options)
    shape = replace(options.shape, vocabulary=tokens.get_vocab_size())
    source = Episodes(options.text, "train", options.seed)
    sample = (source.sample(512, rng=Random(number)).document for number in range(200))
    known = Tokens(vocabulary.kin(tokens), vocabulary.rarity(tokens, sample))
    model = build(shape, options.seed, known)
    optimiser = Optimiser(
        model,
        options.rates,
        ["model.embed_tokens.weight"],
        (rank, accelerator.num_processes),
        partial(accelerator.reduce, reduction="sum"),
    )
    for p in model.parameters():  # not model.to(): that would round RoPE's frequencies as well
        p.data = p.data.bfloat16()
    model.to(accelerator.device)
    optimiser.to(accelerator.device)
    state = _State()
    if (options.run / CHECKPOINT).exists():
        state = restore(options.run / CHECKPOINT, optimiser)
    if options.compiled:
        model.model.compile()

    batches = Batches(source, tokens, options.curriculum, options.seed, rank)
    tests = _tests(options, tokens, rank, accelerator.num_processes)
    log = (options.run / LOG).open("a", encoding="utf-8") if main else None
    console = Console(quiet=options.quiet or not main)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>5.1f} %"),
        TimeElapsedColumn(),
        console=console,
    )

    def done(step: int, minutes: float) -> float:
        return step / options.steps if options.steps else minutes / options.minutes

    progress = [done(state.step, state.minutes)]
    start = time.monotonic() - 60 * state.minutes
    saved = tested = state.minutes
    window: list[dict[str, tuple[float, float, int]]] = []
    clock, before = time.monotonic(), state.tokens
    stream = iter(loader(batches, Order(state.step, progress), options.workers))
    with bar:
        task = bar.add_task("reader", total=1.0)
        while progress[0] < 1.0 and not (options.stop and state.step >= options.stop):
            batch = to(next(stream), accelerator.device)
            loss, notes = loss_of(model, batch)
            loss.backward()  # type: ignore[no-untyped-call]
            flat = optimiser.flat_gradient()
            # Clocks differ between processes; all must follow one schedule.
            told = flat.new_tensor([float(loss.detach()), batch.ids.numel(), progress[0]])
            shared = accelerator.reduce(torch.cat([flat, told]), reduction="mean")
            flat, told = shared[:-3], shared[-3:].tolist()
            norm = optimiser.step(flat, state.step + 1, schedule(state.step, told[2], options))
            state.step += 1
            state.tokens += round(told[1] * accelerator.num_processes)
            state.minutes = (time.monotonic() - start) / 60
            state.loss = told[0]
            # One step behind, but the same number everywhere.
            progress[0] = done(state.step, state.minutes)
            if main and not options.steps:
                bar.update(task, completed=progress[0])
            if accelerator.num_processes > 1:
                shared_clock = accelerator.reduce(
                    torch.tensor([progress[0]], device=accelerator.device), reduction="mean"
                )
                progress[0] = float(shared_clock)
            window.append(notes)
            if state.step % 25 == 0:
                line = _summary(window)
                state.recall = line.get("recall", {}).get("hits", state.recall)
                now = time.monotonic()
                speed = (state.tokens - before) / (now - clock)
                clock, before, window = now, state.tokens, []
                if log is not None:
                    entry = {
                        "step": state.step,
                        "progress": round(progress[0], 4),
                        "tokens": state.tokens,
                        "speed": round(speed),
                        "norm": round(norm, 2),
                        "loss": round(state.loss, 3),
                        **line,
                    }
                    log.write(json.dumps(entry) + "\n")
                    log.flush()
                bar.update(
                    task,
                    completed=progress[0],
                    description=f"step {state.step}, {speed:.0f} tokens/s, loss {state.loss:.2f}",
                )
            minutes = progress[0] * options.minutes if not options.steps else state.minutes
            if options.test and minutes - tested >= options.test and tests:
                tested = minutes
                state.scores = _test(model, tests, accelerator)
                clock = time.monotonic()
                if log is not None:
                    log.write(json.dumps({"step": state.step, "held out": state.scores}) + "\n")
                    log.flush()
            if main and options.save and minutes - saved >= options.save:
                saved = minutes
                save(options.run / CHECKPOINT, optimiser, state)
    if window:
        state.recall = _summary(window).get("recall", {}).get("hits", state.recall)
    if tests and options.test:
        state.scores = _test(model, tests, accelerator)
        counts = sum(
            margins(model, [to(b, accelerator.device) for b in cell], batches.marks)
            for _, cell in tests
        )
        counts = accelerator.reduce(torch.as_tensor(counts).to(accelerator.device), "sum")
        state.reluctance = calibrated(counts.cpu())
    if main:
        save(options.run / CHECKPOINT, optimiser, state)
        if log is not None:
            log.write(json.dumps({"step": state.step, "held out": state.scores}) + "\n")
            log.close()
        if options.out is not None:
            export_run(options, options.out)
    return Result(state.step, state.tokens, state.minutes, state.loss, state.recall)


def _tests(
    options: Options, tokens: Tokenizer, rank: int, processes: int
) -> list[tuple[str, list[Batch]]]:
    """This process's share of the held-out batches, by cell."""
    if not options.test:
        return []
    unseen = Episodes(options.text, "eval", options.seed + 1)
    batches = Batches(unseen, tokens, options.curriculum, options.seed, rank)
    return [
        (cell.name, held_out(unseen, batches, cell, options.tested, options.seed)[rank::processes])
        for cell in options.cells
    ]


def _test(
    model: LlamaForCausalLM, tests: list[tuple[str, list[Batch]]], accelerator: Accelerator
) -> dict[str, dict[str, float]]:
    device = accelerator.device
    counts = torch.tensor(
        [measure(model, [to(b, device) for b in cell]) for _, cell in tests],
        dtype=torch.float64,
        device=device,
    )
    counts = accelerator.reduce(counts, reduction="sum")
    return {
        name: {
            "questions": int(total),
            "exact": round(exact / max(total, 1), 3),
            "value": round(value / max(total, 1), 3),
        }
        for (name, _), (total, exact, value) in zip(tests, counts.tolist(), strict=True)
    }


def _summary(window: list[dict[str, tuple[float, float, int]]]) -> dict[str, dict[str, float]]:
    """Mean loss and share of hits per mark over some steps."""
    found = {}
    for name in MARKS:
        parts = [notes[name] for notes in window if name in notes]
        if count := sum(part[2] for part in parts):
            found[name] = {
                "loss": round(sum(part[0] for part in parts) / count, 3),
                "hits": round(sum(part[1] for part in parts) / count, 4),
            }
    return found


def export_run(options: Options, folder: Path) -> str:
    """Write the run's latest checkpoint as a reader; returns the weights' sha256.

    Raises:
        TrainError: the run has no checkpoint.
    """
    path = options.run / CHECKPOINT
    if not path.exists():
        raise TrainError(f"{options.run} has no checkpoint; train first")
    tokens = get_tokenizer(options)
    shape = replace(options.shape, vocabulary=tokens.get_vocab_size())
    with safe_open(path, framework="pt") as file:
        state = json.loads(file.metadata()["state"])
        weights = {
            name.removeprefix("master."): file.get_tensor(name)
            for name in file.keys()  # noqa: SIM118
            if name.startswith("master.")
        }
    notes = options.run / NOTES
    books = [book.name for book in Episodes(options.text, "train", options.seed).haystack.books]
    unseen = [book.name for book in Episodes(options.text, "eval", options.seed).haystack.books]
    record = {
        "data": "generated facts and questions in book prose, look-ups of natural sentences, "
        "random-token recall (engine/train/reader)",
        "books": books,
        "books held out": unseen,
        "seed": options.seed,
        "steps": state["step"],
        "tokens": state["tokens"],
        "minutes": round(state["minutes"], 1),
        "commit": _commit(),
        "shape": asdict(shape),
        "rates": asdict(options.rates),
        "curriculum": asdict(options.curriculum),
        "held out": state["scores"],
        "history": notes.read_text(encoding="utf-8").splitlines() if notes.exists() else [],
    }
    return export(folder, weights, shape, tokens, record, state.get("reluctance", 0.0))
