"""How well a reader in training answers, on names, wordings and books it never saw.

Not the benchmark: a few hundred questions, scored in one pass. A question counts as
exact when every token of its answer is the most likely one given the true beginning,
which is precisely when greedy decoding would give that answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

import torch

from engine.train.reader.batches import MARKS, Batch, Batches

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from transformers import LlamaForCausalLM

    from engine.quoting import Marks
    from engine.train.reader.episodes import Episodes


@dataclass(frozen=True)
class Cell:
    """One kind of held-out document.

    facts: so many inserted facts, None for as it comes.  same: all of one family.
    windows: the text is read in so many pieces.
    """

    name: str
    tokens: int
    facts: int | None = None
    same: bool | None = None
    windows: int = 1
    unseen: bool = False
    unanswerable: float = 0.0
    kind: str | None = None
    share: float = 1.0  # of the questions wanted; long texts with one question are dear


CELLS = (
    Cell("one fact, 512", 512, 1, kind="facts"),
    Cell("one fact, 2048", 2048, 1, kind="facts", share=0.5),
    Cell("one fact, 4 x 1024", 4096, 1, windows=4, kind="facts", share=0.25),
    Cell("4 of one type, 1024", 1024, 4, same=True, kind="facts"),
    Cell("16 of one type, 2 x 1024", 2048, 16, same=True, windows=2, kind="facts"),
    Cell("4 mixed, unseen wording, 1024", 1024, 4, unseen=True, kind="facts"),
    Cell("natural, 1024", 1024, 0, kind="natural"),
    # Refusals are calibrated on this cell, against all the others.
    Cell("not stated, 1024", 1024, 4, unanswerable=1.0, kind="facts", share=3.0),
)


def held_out(
    episodes: Episodes, batches: Batches, cell: Cell, questions: int, seed: int
) -> list[Batch]:
    """Batches of one row each, together at least `questions` times the cell's share."""
    rng = Random(f"{cell.name} {seed}")
    found: list[Batch] = []
    have = 0
    size = -(-cell.tokens // cell.windows)
    for _ in range(questions * 4):
        if have >= questions * cell.share:
            break
        episode = episodes.sample(
            round(cell.tokens * 0.9),
            rng=rng,
            facts=cell.facts,
            same_type=cell.same,
            unseen_wording=cell.unseen,
            unanswerable=cell.unanswerable,
            questions=8,
            kind=cell.kind,
        )
        row = batches.lay(episode, [size] * cell.windows, 8, batches.curriculum.longest)
        if row.branches:
            have += len(row.branches)
            found.append(batches.collate([row], rng, "", 0))
    return found


def right(logits: Tensor, targets: Tensor) -> Tensor:
    """[N] bool from [N, V] scores and [N, A] targets, -1 where there are fewer."""
    return (logits.argmax(-1, keepdim=True) == targets).any(-1)


@torch.no_grad()
def measure(model: LlamaForCausalLM, cell: Sequence[Batch]) -> tuple[int, int, int]:
    """Count questions: all of them, those exact, those with the right value tokens."""
    total = exact = value = 0
    for batch in cell:
        hidden = forward(model, batch)
        chosen = batch.answers > 0
        ok = right(model.lm_head(hidden[chosen]), batch.targets[chosen])
        number, mark = batch.answers[chosen], batch.marks[chosen]
        for one in range(1, int(number.max()) + 1):
            mine = number == one
            if not mine.any():
                continue
            total += 1
            exact += bool(ok[mine].all())
            value += bool(ok[mine & (mark != MARKS.index("pointer"))].all())
    return total, exact, value


RELUCTANCE = tuple(step / 4 for step in range(-20, 41))  # nats tried


@torch.no_grad()
def margins(model: LlamaForCausalLM, cell: Sequence[Batch], marks: Marks) -> Tensor:
    """Count what each reluctance would do; see `engine.quoting.Guide.choices`.

    Args:
        cell: batches of one row.
    Returns:
        [2, len(RELUCTANCE) + 1] float64: of the answerable questions and of the others, how many
        would be refused at each reluctance, and how many there are.
    """
    counts = torch.zeros(2, len(RELUCTANCE) + 1, dtype=torch.float64)
    tried = torch.tensor(RELUCTANCE)
    refusal, alike = marks.refusal[0], torch.from_numpy(marks.alike)
    for batch in cell:
        chosen = (batch.answers > 0) & (batch.marks == MARKS.index("first"))
        logits = model.lm_head(forward(model, batch)[chosen]).float().cpu()
        wanted = (batch.targets[chosen][:, 0] == refusal).long().cpu()
        refuse = logits[:, refusal].clone()
        text = batch.ids[0, batch.layout.prefix : batch.layout.document].cpu()
        pointers = torch.isin(alike, alike[text])
        pointers[refusal] = False
        margin = refuse - logits[:, : len(pointers)][:, pointers].logsumexp(-1)
        refused = margin[:, None] > tried
        for side in (0, 1):
            counts[side, :-1] += refused[wanted == side].sum(0)
            counts[side, -1] += (wanted == side).sum()
    return counts


def calibrated(counts: Tensor) -> float:
    """The reluctance at which false refusals and missed refusals are fewest, as shares."""
    shares = counts[:, :-1] / counts[:, -1:].clamp(min=1)
    wrong = shares[0] + 1 - shares[1]
    return RELUCTANCE[int(wrong.argmin())]


def forward(model: LlamaForCausalLM, batch: Batch) -> Tensor:
    """[B, total, width] last hidden states of a batch already on the model's device."""
    hidden: Tensor = model.model(
        input_ids=batch.ids,
        position_ids=batch.positions,
        layout=batch.layout,
        use_cache=False,
    ).last_hidden_state
    return hidden
