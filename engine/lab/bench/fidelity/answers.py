"""Does a compressed memory answer as the full cache does? Same reader, questions and run.

Every method reads the same documents and answers the same questions at the same resident
bytes; the reference is method `full`. Counted are answers that changed, values that are no longer
right, and, following the full cache's own greedy words, next tokens that differ and how far the
distribution moved. Bytes are those of the device tier, everything counted, over 16-bit keys and
values of the same tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from engine.answer.session import Session
from engine.attention import seam
from engine.ingest.run import ingest
from engine.lab.bench import bootstrap
from engine.lab.bench.suites.scores import contains
from engine.types import Answer, AskOptions, IngestOptions, IngestReport, Silent

if TYPE_CHECKING:
    from engine.lab.bench.questions import Question
    from engine.models.reader import Reader

FOLLOWED = 12
"""Next tokens that are compared, at most: where an answer comes from is decided in its first."""


@dataclass(frozen=True)
class Reply:
    """What a memory says to one question.

    prompt: tokens of the question. words: the greedy words of the full cache that were followed.
    logits: [T, V] of each next token, given the words before it.
    """

    answer: Answer
    prompt: list[int]
    words: list[int]
    logits: Tensor


def asked(
    reader: Reader,
    model: str,
    source: Path,
    questions: Sequence[Question],
    method: str,
    options: Sequence[AskOptions],
    window: int,
    truth: Sequence[Reply] = (),
) -> Iterator[tuple[IngestReport, list[Reply]]]:
    """Read a document by a method and ask it under every option.

    Args:
        truth: per question what the full cache said, whose words are followed; none: the memory's
            own greedy ones.
    Yields:
        per option the ingest's report, and per question the reply.
    """
    store = source.with_suffix(".sekv")
    name, _, router = method.partition("@")
    made = IngestOptions(model=model, method=name, router=router, window=window, overwrite=True)
    report = ingest([str(source)], store, made, Silent(), None, reader)
    for each in options:
        with Session(store, each, Silent(), reader) as session:
            yield (
                report,
                [
                    _reply(session, question.text, truth[index] if truth else None)
                    for index, question in enumerate(questions)
                ],
            )


@torch.inference_mode()
def _reply(session: Session, question: str, truth: Reply | None) -> Reply:
    """Ask in words; then step through a continuation. All windows are visible to the steps."""
    answer = session.ask(question)
    reader, memory = session.reader, session.memory
    prompt = reader.prompt.question(reader.tokenizer, question)
    for layer in memory.layers:
        layer.release()
    cache = seam.MemoryCache(memory.layers, memory.length, memory.shared)
    given = prompt
    words: list[int] = []
    logits: list[Tensor] = []
    length, most = memory.length, FOLLOWED if truth is None else len(truth.logits)
    while len(logits) < most and length + len(given) <= reader.max_positions:
        length += len(given)
        ids = torch.tensor([given], device=reader.devices[0])
        out = reader.model(
            input_ids=ids,
            attention_mask=torch.ones(1, length).to(ids),
            past_key_values=cache,
            logits_to_keep=1,
        )
        logits.append(out.logits[0, -1].float().cpu())
        word = int(logits[-1].argmax()) if truth is None else truth.words[len(words)]
        words.append(word)
        given = [word]
        if word == reader.tokenizer.eos_token_id:
            break
    return Reply(answer, prompt, words, torch.stack(logits))


def counted(
    replies: Sequence[Reply],
    truth: Sequence[Reply],
    questions: Sequence[Question],
    report: IngestReport,
    itemsize: int,
) -> dict[str, Any]:
    """Scores of one document's answers, JSON values with one number per question.

    same: word for word the full cache's. right: the answer or an alias is said. Also the share of
    next tokens that agree, KL(full || mine) in nats, and bytes over 16-bit keys and values.
    itemsize: bytes of a number in the reader's dtype.
    """
    half = report.full_kv_bytes * 2 / itemsize
    pairs = list(zip(replies, truth, strict=True))
    moved = [_moved(mine.logits, full.logits) for mine, full in pairs]
    answers = [mine.answer for mine in replies]
    return {
        "tokens": report.tokens,
        "store": report.store_bytes / half,
        "answers": [answer.answer for answer in answers],
        "same": [float(a.answer.answer == b.answer.answer) for a, b in pairs],
        "right": [_right(a, q) for a, q in zip(answers, questions, strict=True)],
        "full_right": [_right(b.answer, q) for b, q in zip(truth, questions, strict=True)],
        "next_token_same": [agree for agree, _ in moved],
        "kl_nats": [kl for _, kl in moved],
        "resident": [answer.memory.device_kv_bytes / half for answer in answers],
        "zoomed": [a.memory.zoomed_spans / max(1, a.memory.total_spans) for a in answers],
        "first_token_s": [answer.timing["first_token_s"] for answer in answers],
    }


def _right(answer: Answer, question: Question) -> float:
    return float(contains(answer.answer, (question.answer, *question.aliases)))


def _moved(mine: Tensor, full: Tensor) -> tuple[float, float]:
    """Share of equal next tokens, and the mean KL(full || mine) in nats; logits [T, V]."""
    agree = (mine.argmax(-1) == full.argmax(-1)).float().mean()
    p, q = full.log_softmax(-1), mine.log_softmax(-1)
    return float(agree), float((p.exp() * (p - q)).sum(-1).mean())


def line(documents: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Sums up what `counted` gave of some documents. Intervals: Wilson's of the questions, and
    `bootstrap` over documents; the difference to the full cache is taken question by question."""
    flat = {name: _flat(documents, name) for name in ("same", "right", "resident", "zoomed")}
    n = len(flat["same"])
    times = sorted(_flat(documents, "first_token_s"))
    out: dict[str, Any] = {
        "questions": n,
        "same_interval": bootstrap.wilson(round(sum(flat["same"])), n),
        "right_interval": bootstrap.wilson(round(sum(flat["right"])), n),
        "resident": sum(flat["resident"]) / n,
        "most_resident": max(flat["resident"]),
        "store": sum(document["store"] for document in documents) / len(documents),
        "zoomed_spans": sum(flat["zoomed"]) / n,
        "median_first_token_s": times[len(times) // 2],
    }
    groups = {
        name: [document[name] for document in documents]
        for name in ("same", "right", "next_token_same", "kl_nats")
    }
    groups["right_minus_full"] = [
        [mine - full for mine, full in zip(each["right"], each["full_right"], strict=True)]
        for each in documents
    ]
    for name, values in groups.items():
        out[name] = sum(map(sum, values)) / n
        out[f"{name}_bootstrap"] = bootstrap.interval(values)
    return out


def _flat(documents: Sequence[dict[str, Any]], name: str) -> list[float]:
    return [value for document in documents for value in document[name]]
