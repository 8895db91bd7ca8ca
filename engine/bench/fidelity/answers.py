"""Does a compressed memory answer as the full cache does? Same reader, questions and run.

Every method reads the same documents and answers the same questions at the same resident
bytes; the reference is method `full`. Counted are answers that changed, values that are no longer
right, and, following the full cache's own greedy words, next tokens that differ and how far the
distribution moved. Bytes are those of the device tier, everything counted, over 16-bit keys and
values of the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from engine import attention
from engine.ask import Session
from engine.bench import bootstrap
from engine.bench.reader import interval, plain
from engine.ingest import ingest
from engine.types import Answer, AskOptions, IngestOptions, IngestReport, Silent

if TYPE_CHECKING:
    from engine.bench.reader import Question
    from engine.readers.hf import Reader

FOLLOWED = 24
"""Tokens of the full cache's own continuation that every method follows, at most."""


@dataclass(frozen=True)
class Heard:
    """What a memory says to one question. prompt, ids: tokens of the question, and the greedy
    words of the full cache. logits: [T, V] of each next token, ids followed."""

    answer: Answer
    prompt: list[int]
    ids: Tensor
    logits: Tensor


@dataclass
class Count:
    """One method at one budget. same: answers equal to the full cache's; right: values right.

    rows: per document and question same, right, share of next tokens that agree, KL in nats.
    store: of every document, its bytes over 16-bit keys and values.
    """

    questions: int = 0
    same: int = 0
    right: int = 0
    resident: float = 0.0
    most_resident: float = 0.0
    zoomed: float = 0.0
    store: list[float] = field(default_factory=list)
    first_token_s: list[float] = field(default_factory=list)
    rows: list[list[tuple[float, float, float, float]]] = field(default_factory=list)


def asked(
    reader: Reader,
    model: str,
    source: Path,
    questions: Sequence[Question],
    method: str,
    options: Sequence[AskOptions],
    window: int,
    followed: Sequence[Tensor] = (),
) -> tuple[IngestReport, list[list[Heard]]]:
    """Read a document by a method and ask it under every option.

    Args:
        followed: per question the words to follow; none: the memory's own greedy ones.
    Returns:
        the ingest's report, and per option and question what was heard.
    """
    store = source.with_suffix(".sekv")
    name, _, router = method.partition("@")
    made = IngestOptions(model=model, method=name, router=router, window=window, overwrite=True)
    report = ingest([str(source)], store, made, Silent(), None, reader)
    heard = []
    for each in options:
        with Session(store, each, Silent(), reader) as session:
            heard.append(
                [
                    _hear(session, question.text, followed[index] if followed else None)
                    for index, question in enumerate(questions)
                ]
            )
    return report, heard


@torch.inference_mode()
def _hear(session: Session, question: str, followed: Tensor | None) -> Heard:
    """Ask in words; then step through a continuation. All windows are visible to the steps."""
    answer = session.ask(question)
    reader, memory = session.reader, session.memory
    prompt = reader.prompt.question(reader.tokenizer, question)
    for layer in memory.layers:
        layer.release()
    cache = attention.MemoryCache(memory.layers, memory.length, memory.shared)
    device = reader.devices[0]
    rows, ids, logits = torch.tensor([prompt], device=device), [], []
    room = reader.max_positions - memory.length - len(prompt)
    for step in range(min(FOLLOWED, room) if followed is None else len(followed)):
        length = memory.length + len(prompt) + step
        out = reader.model(
            input_ids=rows,
            attention_mask=torch.ones(1, length, dtype=torch.long, device=device),
            past_key_values=cache,
            logits_to_keep=1,
        )
        logits.append(out.logits[0, -1].float().cpu())
        ids.append(int(logits[-1].argmax()) if followed is None else int(followed[step]))
        if ids[-1] == reader.tokenizer.eos_token_id:
            break
        rows = torch.tensor([[ids[-1]]], device=device)
    return Heard(answer, prompt, torch.tensor(ids), torch.stack(logits))


def add(
    count: Count,
    heard: Sequence[Heard],
    truth: Sequence[Heard],
    questions: Sequence[Question],
    report: IngestReport,
    itemsize: int,
) -> None:
    """Count a document's answers. itemsize: bytes of a number in the reader's dtype."""
    half = report.full_kv_bytes * 2 / itemsize
    rows = []
    for mine, full, question in zip(heard, truth, questions, strict=True):
        answer, reference = mine.answer, full.answer
        count.questions += 1
        same = (answer.quote, answer.answer) == (reference.quote, reference.answer)
        count.same += same
        said = plain(answer.answer).lower()
        wanted = plain(question.value).lower()
        right = wanted in said if wanted else "not stated" in said
        count.right += right
        share = answer.memory.device_kv_bytes / half
        count.resident += share
        count.most_resident = max(count.most_resident, share)
        count.zoomed += answer.memory.zoomed_spans / max(1, answer.memory.total_spans)
        count.first_token_s.append(answer.timing["first_token_s"])
        rows.append((float(same), float(right), *_moved(mine.logits, full.logits)))
    count.rows.append(rows)
    count.store.append(report.store_bytes / half)


def _moved(mine: Tensor, full: Tensor) -> tuple[float, float]:
    """Share of equal next tokens, and the mean KL(full || mine) in nats; logits [T, V]."""
    agree = (mine.argmax(-1) == full.argmax(-1)).float().mean()
    p, q = full.log_softmax(-1), mine.log_softmax(-1)
    return float(agree), float((p.exp() * (p - q)).sum(-1).mean())


def line(count: Count) -> dict[str, Any]:
    """JSON values. Intervals: Wilson's of the questions, and `bootstrap` over documents."""
    n = max(1, count.questions)
    times = sorted(count.first_token_s) or [0.0]
    out: dict[str, Any] = {
        "questions": count.questions,
        "same": count.same / n,
        "same_interval": interval(count.same, count.questions),
        "right": count.right / n,
        "right_interval": interval(count.right, count.questions),
        "resident": count.resident / n,
        "most_resident": count.most_resident,
        "store": sum(count.store) / max(1, len(count.store)),
        "zoomed_spans": count.zoomed / n,
        "median_first_token_s": times[len(times) // 2],
    }
    for place, name in enumerate(("same", "right", "next_token_same", "kl_nats")):
        groups = [[row[place] for row in rows] for rows in count.rows]
        out[name] = sum(map(sum, groups)) / n
        out[f"{name}_bootstrap"] = bootstrap.interval(groups)
    return out
