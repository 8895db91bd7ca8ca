"""Does a compressed memory answer as the full cache does? Same reader, questions and run.

Every method and peer holds the same documents and answers the same questions at the same resident
bytes; the reference is method `full`. Counted are answers that changed, values that are no longer
right, and, following the full cache's own greedy words and then the book's own next ones, next
tokens that differ and how far the distribution moved. Bytes are those of the device tier,
everything counted, over 16-bit keys and values of the same tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from engine.answer.session import Session
from engine.ingest.run import ingest
from engine.lab.bench import bootstrap, peers
from engine.lab.bench.budgets import options_of
from engine.lab.bench.fidelity.found_mass import FoundMass, Keys
from engine.lab.bench.peers.held import PeerError
from engine.lab.bench.suites.scores import contains
from engine.models import chunked
from engine.types import Answer, IngestOptions, IngestReport, Silent

if TYPE_CHECKING:
    from engine.lab.bench.questions import Question
    from engine.models.reader import Reader

FOLLOWED = 12
"""Next tokens that are compared, at most: where an answer comes from is decided in its first."""

ONWARD = 16
"""Tokens of the book behind an excerpt that are compared."""


@dataclass(frozen=True)
class Reply:
    """What a memory says to one question.

    answer: None where none was generated. prompt: tokens of the question. words: the greedy words
    of the full cache that were followed. logits: [T, V] of each next token, given the words before
    it. found: share of the attention on the document that lies on tokens which the memory holds one
    by one; nan where that is not known. resident: bytes on the device at most.
    """

    answer: Answer | None
    prompt: list[int]
    words: list[int]
    logits: Tensor
    found: float = math.nan
    resident: int = 0


@dataclass(frozen=True)
class Replies:
    """What a memory says to all questions on a document.

    onward: [T, V] logits of the tokens behind the document in its book, given those before; T = 0
    where there are none. keys: the full cache's own, by which attention is counted.
    """

    report: IngestReport
    questions: list[Reply]
    onward: Tensor
    keys: Keys | None = None


@dataclass(frozen=True)
class Asking:
    """What is asked of every memory of a document.

    source: its file. onward: token ids that follow it in its book. window, coverage: as
    `IngestOptions` and `AskOptions` have them. most: tokens of an answer; 0: none is generated.
    """

    model: str
    source: Path
    questions: Sequence[Question]
    onward: Sequence[int] = ()
    window: int = 0
    coverage: float = 1.0
    most: int = 80


def asked(
    reader: Reader,
    asking: Asking,
    method: str,
    budgets: Sequence[str],
    truth: Replies | None = None,
) -> Iterator[Replies]:
    """Let a method or a peer hold a document, and ask it at every budget.

    Args:
        truth: what the full cache said, whose words are followed; None: the memory's own greedy
            ones.
    Yields:
        what it says, by budget.
    Raises:
        PeerError: a peer cannot hold the document.
    """
    store = asking.source.with_suffix(".sekv")
    peer = peers.named(method) if peers.is_peer(method) else None
    name, _, router = ("full", "", "") if peer is not None else method.partition("@")
    made = IngestOptions(
        model=asking.model, method=name, router=router, window=asking.window, overwrite=True
    )
    report = ingest([str(asking.source)], store, made, Silent(), None, reader)
    for budget in budgets:
        options = options_of(budget, asking.coverage, max(1, asking.most))
        with Session(store, options, Silent(), reader) as session:
            if peer is not None:
                peer.hold(session, budget, asking.source.parent)
            followed = truth.questions if truth is not None else [None] * len(asking.questions)
            keys = truth.keys if truth is not None else Keys.of(session.memory)
            replies = [
                _reply(session, question.text, asking.most, full, keys)
                for question, full in zip(asking.questions, followed, strict=True)
            ]
            onward = _onward(session, asking.onward)
            yield Replies(report, replies, onward, keys if truth is None else None)


@torch.inference_mode()
def _reply(
    session: Session, question: str, most: int, truth: Reply | None, keys: Keys | None
) -> Reply:
    """Ask in words; then step through a continuation. All windows are visible to the steps."""
    answer = session.ask(question) if most else None
    reader, memory = session.reader, session.memory
    if not callable(reader.model):
        raise PeerError("its model gives no logits to compare")
    prompt = reader.prompt.question(reader.tokenizer, question)
    steps = _Steps(session, keys)
    given = prompt
    words: list[int] = []
    logits: list[Tensor] = []
    length = FOLLOWED if truth is None else len(truth.logits)
    while len(logits) < length and memory.length + len(prompt) + len(words) <= reader.max_positions:
        logits.append(steps.read(given))
        word = int(logits[-1].argmax()) if truth is None else truth.words[len(words)]
        words.append(word)
        given = [word]
        if word == reader.tokenizer.eos_token_id:
            break
    return Reply(answer, prompt, words, torch.stack(logits), steps.found, steps.resident)


@torch.inference_mode()
def _onward(session: Session, ids: Sequence[int]) -> Tensor:
    """Logits [T, V] of all but the first of these tokens right behind the document."""
    steps = _Steps(session, None)
    read = [steps.read([token]) for token in ids[:-1]]
    vocabulary = session.reader.model.get_input_embeddings().num_embeddings
    return torch.stack(read) if read else torch.empty(0, vocabulary)


class _Steps:
    """Tokens read one after another behind a document. keys: the full cache's, to count the
    attention by; None: it is not counted."""

    def __init__(self, session: Session, keys: Keys | None):
        self.session, memory = session, session.memory
        for layer in memory.layers:
            layer.release()
        memory.shared.peak_bytes = memory.shared.device_bytes
        self._counted = [] if keys is None else FoundMass.of(memory.layers, keys)
        self._cache = session.reader.cache_behind(
            self._counted or memory.layers, memory.length, memory.shared
        )

    def read(self, given: Sequence[int]) -> Tensor:
        """Logits [V] of the next token."""
        *_, out = chunked.read(self.session.reader.model, list(given), self._cache, None)
        logits: Tensor = out.logits[0, -1].float().cpu()
        return logits

    @property
    def found(self) -> float:
        """See `Reply`."""
        return FoundMass.share(self._counted)

    @property
    def resident(self) -> int:
        """Most bytes on the device."""
        return self.session.memory.shared.peak_bytes


def counted(
    mine: Replies, truth: Replies, questions: Sequence[Question], itemsize: int
) -> dict[str, Any]:
    """Scores of one document's answers, JSON values with one number per question.

    same: word for word the full cache's. right: the answer or an alias is said. Also the share of
    next tokens that agree, KL(full || mine) in nats, both also of what follows the document in its
    book, and bytes over 16-bit keys and values. Of answers only where some were generated.
    itemsize: bytes of a number in the reader's dtype.
    """
    report = mine.report
    half = report.full_kv_bytes * 2 / itemsize
    pairs = list(zip(mine.questions, truth.questions, strict=True))
    moved = [_moved(one.logits, full.logits) for one, full in pairs]
    out: dict[str, Any] = {
        "tokens": report.tokens,
        "store": report.store_bytes / half,
        "next_token_same": [agree for agree, _ in moved],
        "kl_nats": [kl for _, kl in moved],
        "resident": [one.resident / half for one, _ in pairs],
        "found": [one.found for one, _ in pairs if not math.isnan(one.found)],
    }
    if len(truth.onward):
        same, kl = _moved(mine.onward, truth.onward)
        out |= {"onward_same": [same], "onward_kl": [kl]}
    answers = [(a.answer, b.answer) for a, b in pairs if a.answer and b.answer]
    if answers:
        out |= {
            "answers": [a.answer for a, _ in answers],
            "same": [float(a.answer == b.answer) for a, b in answers],
            "right": [_right(a, q) for (a, _), q in zip(answers, questions, strict=True)],
            "full_right": [_right(b, q) for (_, b), q in zip(answers, questions, strict=True)],
            "resident": [a.memory.device_kv_bytes / half for a, _ in answers],
            "zoomed": [a.memory.zoomed_spans / max(1, a.memory.total_spans) for a, _ in answers],
            "first_token_s": [a.timing["first_token_s"] for a, _ in answers],
        }
    return out


def _right(answer: Answer, question: Question) -> float:
    return float(contains(answer.answer, (question.answer, *question.aliases)))


def _moved(mine: Tensor, full: Tensor) -> tuple[float, float]:
    """Share of equal next tokens, and the mean KL(full || mine) in nats; logits [T, V]."""
    agree = (mine.argmax(-1) == full.argmax(-1)).float().mean()
    p, q = full.log_softmax(-1), mine.log_softmax(-1)
    return float(agree), float((p.exp() * (p - q)).sum(-1).mean())


MEANS = ("same", "right", "next_token_same", "kl_nats", "found", "onward_same", "onward_kl")
"""Of these `line` gives the mean and its interval."""


def line(documents: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Sums up what `counted` gave of some documents. Intervals: Wilson's of the questions, and
    `bootstrap` over documents; the difference to the full cache is taken question by question.
    What was not measured is left out."""
    resident, zoomed = _flat(documents, "resident"), _flat(documents, "zoomed")
    n = len(resident)
    out: dict[str, Any] = {
        "questions": n,
        "resident": sum(resident) / n,
        "most_resident": max(resident),
        "store": sum(document["store"] for document in documents) / len(documents),
    }
    if zoomed:
        times = sorted(_flat(documents, "first_token_s"))
        out |= {
            "zoomed_spans": sum(zoomed) / n,
            "median_first_token_s": times[len(times) // 2],
            "same_interval": bootstrap.wilson(round(sum(_flat(documents, "same"))), n),
            "right_interval": bootstrap.wilson(round(sum(_flat(documents, "right"))), n),
        }
    groups = {name: [document.get(name, []) for document in documents] for name in MEANS}
    groups["right_minus_full"] = [
        _apart(each.get("right", []), each.get("full_right", [])) for each in documents
    ]
    for name, values in groups.items():
        _add(out, name, values)
    return out


def less(documents: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """By how much the divergence of some documents' answers is above that of another memory of the
    same documents, question by question, in nats; and of what follows in the books."""
    out: dict[str, Any] = {}
    for name in ("kl_nats", "onward_kl"):
        pairs = zip(documents, other, strict=True)
        _add(out, name, [_apart(a.get(name, []), b.get(name, [])) for a, b in pairs])
    return out


def _apart(a: Sequence[float], b: Sequence[float]) -> list[float]:
    return [mine - theirs for mine, theirs in zip(a, b, strict=True)]


def _add(out: dict[str, Any], name: str, groups: Sequence[Sequence[float]]) -> None:
    """Put a mean and its interval into `out`, where there are any values."""
    values = [value for group in groups for value in group]
    if values:
        out[name] = sum(values) / len(values)
        out[f"{name}_bootstrap"] = bootstrap.interval(groups)


def _flat(documents: Sequence[dict[str, Any]], name: str) -> list[float]:
    return [value for document in documents for value in document.get(name, [])]
