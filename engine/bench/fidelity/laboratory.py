"""The fidelity suite: routing, distortion and answers on the same documents in one run."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from engine.bench.compare import ReadOnce
from engine.bench.fidelity import answers
from engine.bench.fidelity.distortion import Distortion
from engine.bench.fidelity.routing import Routing, levels
from engine.bench.fidelity.subjects import Subject, side_by_side, take
from engine.errors import BudgetError, SekvError
from engine.recall import parse_budget
from engine.recipe import named
from engine.types import AskOptions, Progress

if TYPE_CHECKING:
    from engine.bench.reader import Drawn
    from engine.readers.hf import Reader

FORMAT = "sekv-fidelity-bench 3"


class Documents(Protocol):
    """Where documents with questions come from, one after another."""

    def __iter__(self) -> Iterator[Drawn]: ...


@dataclass(frozen=True)
class Setting:
    """What is compared.

    methods: names, each with "@" and a router file or "none" where not the model's own is meant.
    questions: how many in all. coverage: as `AskOptions`. most: tokens of an answer.
    dissected: of the documents, how many are looked at head by head (routing, distortion).
    """

    methods: tuple[str, ...] = ("sekv", "sekv-paper")
    budgets: tuple[str, ...] = ("2.5%", "5%", "10%", "20%")
    questions: int = 200
    coverage: float = 1.0
    window: int = 0
    most: int = 80
    dissected: int = 8


def measure(
    reader: Reader, model: str, documents: Documents, setting: Setting, progress: Progress
) -> dict[str, Any]:
    """Ask every question of the full cache and of every method at every budget, and look into the
    heads of the first documents.

    Args:
        reader: loaded.  model: its name or path, for ingest.
    Returns:
        JSON values: settings, routing, distortion, and per method and budget the answers.
    Raises:
        SekvError: an unknown method, a budget that is none, or documents without questions.
    """
    once = ReadOnce.of(reader, [named(method.partition("@")[0]) for method in setting.methods])
    for budget in setting.budgets:
        parse_budget(budget, 1)
    if not 0 < setting.coverage <= 1:
        raise BudgetError(f"coverage {setting.coverage} is not in (0, 1]")
    counts = {(m, b): answers.Count() for m in setting.methods for b in setting.budgets}
    full, whole = answers.Count(), {m: answers.Count() for m in setting.methods}
    routing, distortion, subjects = Routing(), Distortion(), list[Subject]()
    tokens: list[int] = []
    options = [
        AskOptions(budget=budget, coverage=setting.coverage, max_new_tokens=setting.most)
        for budget in setting.budgets
    ]
    everything = AskOptions(budget="100%", full=True, max_new_tokens=setting.most)
    size = reader.dtype.itemsize
    together = Routing(levels())
    progress.start("asking", setting.questions, "questions")
    with tempfile.TemporaryDirectory(prefix="sekv-fidelity-") as scratch:
        source = Path(scratch) / "document.txt"
        for drawn in documents:
            if full.questions >= setting.questions:
                break
            once.forget()
            asked = list(drawn.questions)[: setting.questions - full.questions]
            source.write_text(drawn.document, encoding="utf-8")
            report, [truth] = answers.asked(
                once, model, source, asked, "full", [everything], setting.window
            )
            words = [heard.ids for heard in truth]
            answers.add(full, truth, truth, asked, report, size)
            tokens.append(report.tokens)
            for method in setting.methods:
                report, heard = answers.asked(
                    once,
                    model,
                    source,
                    asked,
                    method,
                    [*options, everything],
                    setting.window,
                    words,
                )
                for budget, answered in zip(setting.budgets, heard, strict=False):
                    answers.add(counts[method, budget], answered, truth, asked, report, size)
                answers.add(whole[method], heard[-1], truth, asked, report, size)
            if asked and len(tokens) <= setting.dissected:
                followed = [[*heard.prompt, *heard.ids.tolist()] for heard in truth]
                stated = [(question.quote, question.value) for question in asked]
                subject = take(once, source, setting.window, followed, stated)
                routing.add(subject)
                distortion.add(subject)
                subjects.append(subject)
            progress.advance(len(asked))
    if not full.questions:
        raise SekvError("the documents hold no questions")
    if subjects:
        together.add(side_by_side(subjects))
    return {
        "format": FORMAT,
        "model": reader.identity.id,
        "weights": reader.identity.weights,
        "setting": asdict(setting),
        "documents": len(tokens),
        "dissected_documents": min(len(tokens), setting.dissected),
        "tokens_per_document": round(sum(tokens) / len(tokens)),
        "full": answers.line(full),
        "methods": {
            method: {
                **{budget: answers.line(counts[method, budget]) for budget in setting.budgets},
                "all zoomed": answers.line(whole[method]),
            }
            for method in setting.methods
        },
        "routing": routing.report(),
        "side_by_side": {
            "tokens": sum(len(subject.pieces) for subject in subjects),
            "routing": together.report(),
        },
        "distortion": distortion.report(),
        "unturned": distortion.unturned,
    }
