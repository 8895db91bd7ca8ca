"""Citations and support on natural questions: where passages stand, what tells a stated answer.

Plain transformers reads excerpts of the documents and answers; attention, passages and signals are
those of `engine.answer`, so that what is fitted here is what `sekv ask` computes. Unanswerable
questions are asked of the excerpt of their document that shares most words with them.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, astuple, dataclass, fields, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache

from engine.answer.citations import DocumentText
from engine.answer.evidence import Evidence
from engine.answer.overlap import overlap, rarities, stems
from engine.answer.support import Calibration, Signals
from engine.attention.step import Step
from engine.compression.terms import PLAIN, Terms
from engine.documents import Document, Source
from engine.documents.tokens import tokenize
from engine.lab.bench.questions import Excerpts, Question, find
from engine.lab.bench.suites.scores import contains
from engine.models.evidence_heads import attention_rows, ensure
from engine.store.manifest import SourceEntry

if TYPE_CHECKING:
    from engine.models.reader import Reader
    from engine.types import Progress

CHUNK = 512
"""Tokens read at a time."""

CAUGHT = 0.8
"""Share of the unanswerable questions that the bar is set to catch."""


@dataclass(frozen=True)
class SupportSetting:
    """tokens: of an excerpt. answer: tokens that an answer may have. folds: of the documents, for
    figures of questions that the coefficients were not fitted on. samples: questions at most."""

    tokens: int = 1100
    answer: int = 24
    folds: int = 5
    samples: int = 400
    seed: int = 0


@dataclass(frozen=True)
class SupportRow:
    """One question. rank: of the first passage that holds the evidence, from 1; 0 for none."""

    id: str
    document: str
    answerable: bool
    right: bool
    said: str
    rank: int
    signals: Signals


@dataclass
class _EvidenceProbe:
    """A probe that feeds `Evidence` what a memory's steps would: the attention of one forward.

    first: position of the excerpt's first token.
    """

    evidence: Evidence
    first: int
    rows: int = 1

    def observe(self, layer: int, q: Tensor, k: Tensor, v: Tensor, terms: Terms = PLAIN) -> None:
        count, heads = len(self.evidence.ids), len(k)
        seen = attention_rows(q[:, -self.rows :], k, terms)[
            :, :, self.first : self.first + count
        ].cpu()
        seen = seen.reshape(heads, len(q) // heads, -1, count)
        none = torch.empty(0, dtype=torch.int64)
        self.evidence.record(
            Step(
                layer=layer,
                spans=none,
                starts=none,
                lengths=none,
                share=torch.zeros(heads, 0),
                zoomed=torch.zeros(heads, 0, dtype=torch.bool),
                summary=torch.zeros(*seen.shape[:2], 0),
                tokens=torch.arange(count, dtype=torch.int32).expand(heads, -1),
                weight=seen[:, :, -1],
                total=seen.sum(2),
            )
        )


def measure(
    reader: Reader,
    asked: Sequence[tuple[Sequence[Question], Path]],
    setting: SupportSetting,
    out: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Ask all questions, fit, and report.

    Rows that are in `out` already are not asked again and stand in the report too, so that several
    files of questions make one.

    Args:
        asked: questions and the folder of their documents.
    """
    out.mkdir(parents=True, exist_ok=True)
    file = out / "support.jsonl"
    rows = {row.id: row for row in _kept(file)}
    plan = [job for questions, folder in asked for job in _plan(reader, questions, folder, setting)]
    Random(setting.seed).shuffle(plan)
    order = [question.id for _, inside in plan for question in inside][: setting.samples]
    missing = set(order) - set(rows)
    progress.start("asking", len(missing), "questions")
    with file.open("a", encoding="utf-8") as stream:
        for text, inside in plan:
            left = [question for question in inside if question.id in missing]
            for row in _answers(reader, text, left, setting):
                rows[row.id] = row
                stream.write(json.dumps(asdict(row)) + "\n")
                stream.flush()
                progress.advance(1)
    return report(list(rows.values()), setting) | {"model": reader.identity.id}


def _kept(file: Path) -> Iterable[SupportRow]:
    if file.is_file():
        for line in file.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            yield SupportRow(**{**record, "signals": Signals(**record["signals"])})


def _plan(
    reader: Reader, questions: Sequence[Question], folder: Path, setting: SupportSetting
) -> list[tuple[str, list[Question]]]:
    """Excerpts with what is asked of each."""
    cut = partial(tokenize, tokenizer=reader.tokenizer)
    drawn = Excerpts(questions, folder, cut, [setting.tokens], setting.seed)
    plan = [(excerpt.text, list(excerpt.questions)) for excerpt in drawn]
    by_document = defaultdict(list)
    for text, inside in plan:
        by_document[inside[0].document].append((text, inside))
    for question in questions:
        places = by_document.get(question.document, [])
        if question.answerable or not places:
            continue
        lowered = "\n".join(text for text, _ in places).lower()
        wanted = rarities(stems(question.text), lowered)
        max(places, key=lambda place: overlap(wanted, place[0]))[1].append(question)
    return plan


@torch.inference_mode()
def _answers(
    reader: Reader, text: str, questions: Sequence[Question], setting: SupportSetting
) -> Iterable[SupportRow]:
    """Read an excerpt and answer what is asked of it, greedily."""
    if not questions:
        return
    tokens = tokenize(Document((Source("excerpt", "text", text, (), ""),)), reader.tokenizer)
    columns = (
        torch.from_numpy(column).long() for column in (tokens.starts, tokens.ends, tokens.source)
    )
    entry = SourceEntry("excerpt", "text", "", len(text))
    book = DocumentText((entry,), (text,), *columns)
    ids = [*reader.prompt.prefix, *map(int, tokens.ids)]
    importance = ensure(reader).importance()
    cache = DynamicCache(config=reader.model.config)
    for start in range(0, len(ids), CHUNK):
        _forward(reader, ids[start : start + CHUNK], start, cache)
    for question in questions:
        evidence = Evidence(torch.from_numpy(tokens.ids).long(), importance)
        probe = _EvidenceProbe(evidence, len(reader.prompt.prefix))
        said, read = _say(reader, question.text, len(ids), cache, probe, setting.answer)
        cache.crop(-read)
        words, added = stems(f"{question.text} {said}"), stems(said) - stems(question.text)
        cited = book.citations(evidence.weight, book.rare(words), added)
        signals = Signals.of(book, question.text, said, cited, evidence)
        place = find(text, question.evidence) if question.answerable else None
        ranks = [
            number
            for number, citation in enumerate(cited, 1)
            if place is not None and citation.start < place[1] and citation.end > place[0]
        ]
        known = [question.answer, *question.aliases]
        yield SupportRow(
            question.id,
            question.document,
            question.answerable,
            question.answerable and bool(contains(said, known)),
            said,
            ranks[0] if ranks else 0,
            signals,
        )


def _say(
    reader: Reader,
    question: str,
    position: int,
    cache: DynamicCache,
    probe: _EvidenceProbe,
    most: int,
) -> tuple[str, int]:
    """The greedy answer, and the tokens that were put into the cache."""
    own = reader.model.generation_config.eos_token_id
    ends = {*(own if isinstance(own, list) else [own]), *reader.prompt.ends}
    piece = reader.prompt.question(reader.tokenizer, question)
    said: list[int] = []
    read = 0
    while len(said) < most and not (said and said[-1] in ends):
        probe.rows = len(piece)
        row = _forward(reader, piece, position + read, cache, probe)
        read += len(piece)
        token = int(reader.model.get_output_embeddings()(row)[0].argmax())
        said.append(token)
        probe.evidence.add_token(token)
        piece = [token]
    text = reader.tokenizer.decode([token for token in said if token not in ends])
    for mark in reader.prompt.stops:
        text = text.partition(mark)[0]
    return text.strip(), read


def _forward(
    reader: Reader, ids: list[int], position: int, cache: DynamicCache, probe: Any = None
) -> Tensor:
    """The last hidden row [1, d]."""
    device = reader.devices[0]
    hidden: Tensor = reader.model.base_model(
        input_ids=torch.tensor([ids], device=device),
        position_ids=torch.arange(position, position + len(ids), device=device)[None],
        past_key_values=cache,
        use_cache=True,
        **({} if probe is None else {"probe": probe}),
    ).last_hidden_state
    return hidden[0, -1:]


# ---------------------------------------------------------------------------- fitting


def fit(rows: Sequence[SupportRow], penalty: float = 1.0) -> Calibration:
    """Logistic regression of right answers against answers to unanswerable questions.

    Both sides have equal weight. Wrong answers to answerable questions are left out: nobody misses
    them. The bar is the support below which `CAUGHT` of the unanswerable ones lie. Signals are
    scaled to unit spread while they are fitted; `penalty` times the squared slopes is added to the
    loss.
    """
    clear = [row for row in rows if row.right or not row.answerable]
    x = torch.tensor([astuple(row.signals) for row in clear], dtype=torch.float64)
    y = torch.tensor([row.answerable for row in clear], dtype=torch.float64)
    mean, spread = x.mean(0), x.std(0).clamp_min(1e-6)
    z = torch.cat([(x - mean) / spread, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    weight = torch.where(y > 0, 1 / y.sum().clamp_min(1), 1 / (1 - y).sum().clamp_min(1))
    weight = weight * len(x) / 2
    ridge = torch.diag(torch.tensor([penalty] * x.shape[1] + [1e-9], dtype=x.dtype))
    slopes = torch.zeros(z.shape[1], dtype=x.dtype)
    for _ in range(50):  # Newton's method; the loss is convex
        p = (z @ slopes).sigmoid()
        gradient = z.T @ (weight * (p - y)) + ridge @ slopes
        hessian = (z * (weight * p * (1 - p))[:, None]).T @ z + ridge
        slopes = slopes - torch.linalg.solve(hessian, gradient)
    own = slopes[:-1] / spread
    bias = float(slopes[-1] - (own * mean).sum())
    free = Calibration(round(bias, 4), tuple(round(float(s), 4) for s in own), 0.0)
    return replace(free, least=round(_bar(sorted(_none(rows, free))), 4))


def _none(rows: Sequence[SupportRow], calibration: Calibration) -> list[float]:
    """Support of the answers to unanswerable questions."""
    return [calibration.support(row.signals) for row in rows if not row.answerable]


def _bar(scores: Sequence[float], caught: float = CAUGHT) -> float:
    """The least support that leaves this share of some scores, in order, below it."""
    return scores[min(len(scores) - 1, round(caught * len(scores)))] if scores else 0.0


def held_out(rows: Sequence[SupportRow], folds: int) -> list[tuple[SupportRow, float]]:
    """Every row with the support that coefficients give it which were fitted on other documents; on
    other questions where all are of one document."""
    several = len({row.document for row in rows}) > 1
    names = sorted({row.document if several else row.id for row in rows})
    supports = []
    for fold in range(folds):
        out = set(names[fold::folds])
        inside = [row for row in rows if (row.document if several else row.id) in out]
        kept = [row for row in rows if row not in inside]
        if inside and fittable(kept):
            model = fit(kept)
            supports += [(row, model.support(row.signals)) for row in inside]
    return supports


def fittable(rows: Sequence[SupportRow]) -> bool:
    """Whether there are right answers and unanswerable questions."""
    return any(row.right for row in rows) and any(not row.answerable for row in rows)


def report(rows: Sequence[SupportRow], setting: SupportSetting) -> dict[str, Any]:
    """Figures of the passages, the curve of the support, and the coefficients of all rows."""
    answerable = [row for row in rows if row.answerable]
    right = [row for row in answerable if row.right]
    supports = held_out(rows, setting.folds)
    none = sorted(score for row, score in supports if not row.answerable)
    curve = []
    for caught in (0.5, 0.6, 0.7, 0.8, 0.9):
        bar = _bar(none, caught)
        curve.append(
            {
                "caught": caught,
                "right_lost": _share([s < bar for row, s in supports if row.right]),
                "answerable_lost": _share([s < bar for row, s in supports if row.answerable]),
                "wrong_lost": _share(
                    [s < bar for row, s in supports if row.answerable and not row.right]
                ),
            }
        )
    return {
        "suite": "support",
        "setting": asdict(setting),
        "questions": len(rows),
        "answerable": len(answerable),
        "right": len(right),
        "evidence": {
            name: {
                "first": _share([row.rank == 1 for row in group]),
                "first_three": _share([row.rank > 0 for row in group]),
            }
            for name, group in (("all", answerable), ("right", right))
        },
        "curve": curve,
        "area": area(
            [s for row, s in supports if row.right],
            [s for row, s in supports if not row.answerable],
        ),
        "alone": {
            field.name: area(
                [getattr(row.signals, field.name) for row in right],
                [getattr(row.signals, field.name) for row in rows if not row.answerable],
            )
            for field in fields(Signals)
        },
        "calibration": asdict(fit(rows)) if fittable(rows) else None,
    }


def area(higher: Sequence[float], lower: Sequence[float]) -> float:
    """The chance that one of `higher` exceeds one of `lower`: the area under the ROC curve."""
    pairs = [(a > b) + 0.5 * (a == b) for a in higher for b in lower]
    return _share(pairs)


def _share(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 4) if values else 0.0


def markdown(made: dict[str, Any]) -> str:
    """The report as tables."""
    lines = [
        f"{made['questions']} questions, {made['answerable']} answerable, {made['right']} answered "
        f"rightly by plain transformers ({made['model']}).",
        "",
        "| evidence | among the first three passages | the first |",
        "|---|---:|---:|",
        *(
            f"| {name} | {100 * found['first_three']:.0f} % | {100 * found['first']:.0f} % |"
            for name, found in made["evidence"].items()
        ),
        "",
        f"Support tells right answers from unanswerable questions with an area of {made['area']}, "
        "its coefficients fitted on other questions; each signal alone: "
        + ", ".join(f"{name} {value}" for name, value in made["alone"].items())
        + ".",
        "",
        "| unanswerable caught | right answers lost | wrong answers lost |",
        "|---:|---:|---:|",
        *(
            f"| {100 * point['caught']:.0f} % | {100 * point['right_lost']:.0f} % "
            f"| {100 * point['wrong_lost']:.0f} % |"
            for point in made["curve"]
        ),
    ]
    return "\n".join(lines) + "\n"
