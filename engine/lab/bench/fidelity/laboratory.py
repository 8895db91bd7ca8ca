"""The fidelity suite: answers, routing and distortion on the same documents in one run.

Answers come first, and those of a document by one method or peer at one budget are on disk when
they are given, so that an interrupted run goes on where it stopped. Then heads are looked into.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from engine.compression.methods import named
from engine.errors import BudgetError, SekvError
from engine.lab.bench import peers
from engine.lab.bench.budgets import ALL
from engine.lab.bench.fidelity import answers
from engine.lab.bench.fidelity.distortion import Distortion
from engine.lab.bench.fidelity.routing import Routing, levels
from engine.lab.bench.fidelity.subjects import Subject, side_by_side, take
from engine.lab.bench.log import Log
from engine.lab.bench.peers.held import PeerError
from engine.lab.bench.read_once import ReadOnce
from engine.memory.fitting import parse_budget
from engine.types import Progress

if TYPE_CHECKING:
    from engine.compression.methods import Method
    from engine.lab.bench.questions import Excerpt, Question
    from engine.models.reader import Reader

FORMAT = "sekv-fidelity-bench 5"
FULL = "full"


class Documents(Protocol):
    """Where documents with questions come from, one after another."""

    def __iter__(self) -> Iterator[Excerpt]: ...


@dataclass(frozen=True)
class FidelitySetting:
    """What is compared.

    methods: names, each with "@" and a router file or "none" where not the model's own is meant,
        and peers; the first one is what others are compared with at equal budgets.
    budgets: shares or tokens, or "all" for everything zoomed.
    questions: how many in all. coverage: as `AskOptions`. most: tokens of an answer, 0: next tokens
        are compared and no answers generated.
    dissected: of the documents, how many are looked at head by head (routing, distortion).
    """

    methods: tuple[str, ...] = ("sekv", "sekv-paper")
    budgets: tuple[str, ...] = ("2.5%", "5%", "10%", "20%", ALL)
    questions: int = 200
    coverage: float = 1.0
    window: int = 0
    most: int = 80
    dissected: int = 8


@dataclass(frozen=True)
class _Document:
    """A document, the questions that are asked on it, how it goes on, and its name in the log."""

    text: str
    questions: Sequence[Question]
    onward: str

    @property
    def key(self) -> str:
        whole = "\0".join([self.text, *(question.text for question in self.questions)])
        return hashlib.sha256(whole.encode()).hexdigest()[:16]


def measure(
    reader: Reader,
    model: str,
    documents: Documents,
    setting: FidelitySetting,
    folder: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Ask every question of the full cache and of every method at every budget, and look into the
    heads of the first documents. What `folder` already holds is not asked again.

    Args:
        reader: loaded.  model: its name or path, for ingest.
    Returns:
        JSON values: settings, routing, distortion, and per method and budget the answers.
    Raises:
        SekvError: an unknown method, a budget that is none, documents without questions, or
            another run's answers in the folder.
    """
    recipes = _checked(setting)
    once = ReadOnce.of(reader, list(recipes.values()))
    drawn = list(_drawn(documents, setting.questions))
    if not drawn:
        raise SekvError(
            "no question has its evidence in these documents; name others with --documents"
        )
    log = Log.open(folder, _head(reader, setting, recipes))
    with tempfile.TemporaryDirectory(prefix="sekv-fidelity-") as scratch:
        source = Path(scratch) / "document.txt"
        progress.start("asking", sum(len(one.questions) for one in drawn), "questions")
        for document in drawn:
            source.write_text(document.text, encoding="utf-8")
            once.forget()
            known = len(log.entries)
            _answer(once, model, document, source, setting, log)
            done = progress.advance if len(log.entries) > known else progress.resume
            done(len(document.questions))
        heads = _dissect(once, drawn[: setting.dissected], source, setting, log, progress)
    full = [log.entries[document.key, FULL] for document in drawn]
    rows, skipped = _rows(setting, drawn, log)
    return {
        "format": FORMAT,
        "model": reader.identity.id,
        "weights": reader.identity.weights,
        "setting": asdict(setting),
        "documents": len(drawn),
        "tokens_per_document": round(sum(entry["tokens"] for entry in full) / len(full)),
        "full": answers.line(full),
        "methods": rows,
        "skipped": skipped,
        **heads,
    }


def _checked(setting: FidelitySetting) -> dict[str, Method]:
    """The methods by name.

    Raises:
        SekvError: an unknown method, a budget or a coverage that is none.
    """
    for budget in setting.budgets:
        if budget != ALL:
            parse_budget(budget, 1)
    if not 0 < setting.coverage <= 1:
        raise BudgetError(f"coverage {setting.coverage} is not in (0, 1]")
    own = [method for method in setting.methods if not peers.is_peer(method)]
    for method in set(setting.methods) - set(own):
        peers.named(method)
    return {method: named(method.partition("@")[0]) for method in own}


def _budgets(method: str, setting: FidelitySetting) -> tuple[str, ...]:
    """What a method is asked at; a peer that holds everything has no budget."""
    if peers.is_peer(method) and peers.named(method).whole:
        return (ALL,)
    return tuple(b for b in setting.budgets if b != ALL or not peers.is_peer(method))


def _rows(
    setting: FidelitySetting, documents: Sequence[_Document], log: Log
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """By method and budget what was measured, with how far it is from the first method at the same
    budget; and what was skipped, with the reason."""
    first, rows = setting.methods[0], dict[str, dict[str, Any]]()
    skipped: dict[str, str] = {}
    for method in setting.methods:
        rows[method] = {}
        for budget in _budgets(method, setting):
            name = _row(method, budget)
            entries = [log.entries[one.key, name] for one in documents]
            why = next((entry["why"] for entry in entries if "why" in entry), "")
            if why:  # a mean over fewer documents would mislead
                skipped[name] = why
                continue
            line = answers.line(entries)
            others = [log.entries.get((one.key, _row(first, budget)), {}) for one in documents]
            if method != first and all("kl_nats" in other for other in others):
                line["above_first"] = answers.less(entries, others)
            rows[method][budget] = line
    return rows, skipped


def _head(
    reader: Reader, setting: FidelitySetting, recipes: Mapping[str, Method]
) -> dict[str, Any]:
    """What a run has to have in common with an earlier one to go on where that stopped."""
    return {
        "format": FORMAT,
        "model": reader.identity.id,
        "weights": reader.identity.weights,
        "dtype": reader.dtype_name,
        "coverage": setting.coverage,
        "window": setting.window,
        "most": setting.most,
        "recipes": {method: recipe.settings() for method, recipe in recipes.items()},
    }


def _dissect(
    reader: ReadOnce,
    documents: Sequence[_Document],
    source: Path,
    setting: FidelitySetting,
    log: Log,
    progress: Progress,
) -> dict[str, Any]:
    """Look into the heads on some documents, JSON values.

    Args:
        source: where a document's text is put.  log: what the full cache said.
    """
    routing, distortion, subjects = Routing(), Distortion(), list[Subject]()
    together = Routing(levels())
    progress.start("dissecting", len(documents), "documents")
    for document in documents:
        source.write_text(document.text, encoding="utf-8")
        reader.forget()
        stated = [(question.evidence, question.answer) for question in document.questions]
        said = log.entries[document.key, FULL]["said"]
        subject = take(reader, source, setting.window, said, stated)
        routing.add(subject)
        distortion.add(subject)
        subjects.append(subject)
        progress.advance(1)
    if subjects:
        together.add(side_by_side(subjects))
    return {
        "dissected_documents": len(documents),
        "routing": routing.report(),
        "side_by_side": {
            "tokens": sum(len(subject.pieces) for subject in subjects),
            "routing": together.report(),
        },
        "distortion": distortion.report(),
        "unturned": distortion.unturned,
    }


def _drawn(documents: Documents, questions: int) -> Iterator[_Document]:
    """As many documents as have so many questions; those that have none do not count."""
    left = questions
    for drawn in documents:
        asked = list(drawn.questions)[:left]
        left -= len(asked)
        if asked:
            yield _Document(drawn.text, asked, drawn.onward)
        if not left:
            return


def _row(method: str, budget: str) -> str:
    return f"{method} {budget}"


def _answer(
    reader: ReadOnce,
    model: str,
    document: _Document,
    source: Path,
    setting: FidelitySetting,
    log: Log,
) -> None:
    """Put into the log what it lacks of a document. The full cache is asked again for that, since
    its words are followed and its logits are not kept."""
    missing = {
        method: [
            budget
            for budget in _budgets(method, setting)
            if (document.key, _row(method, budget)) not in log.entries
        ]
        for method in setting.methods
    }
    if (document.key, FULL) in log.entries and not any(missing.values()):
        return
    onward = reader.tokenizer.encode(document.onward, add_special_tokens=False)
    asking = answers.Asking(
        model,
        source,
        document.questions,
        onward[: answers.ONWARD + 1],
        setting.window,
        setting.coverage,
        setting.most,
    )
    size = reader.dtype.itemsize
    [truth] = answers.asked(reader, asking, FULL, [ALL])
    said = [[*reply.prompt, *reply.words] for reply in truth.questions]
    full = answers.counted(truth, truth, document.questions, size)
    log.put({"key": document.key, "row": FULL, **full, "said": said})
    for method, budgets in missing.items():
        for budget, entry in _asked(reader, asking, method, budgets, truth):
            log.put({"key": document.key, "row": _row(method, budget), **entry})


def _asked(
    reader: ReadOnce,
    asking: answers.Asking,
    method: str,
    budgets: Sequence[str],
    truth: answers.Replies,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """By budget what a method's answers on a document came to, or why a peer gave none."""
    left = list(budgets)
    missing = peers.named(method).missing() if peers.is_peer(method) else ""
    if missing:
        yield from ((budget, {"why": missing}) for budget in left)
        return
    while left:  # a peer that cannot keep to one budget may keep to the next
        try:
            for replies in answers.asked(reader, asking, method, tuple(left), truth):
                counted = answers.counted(replies, truth, asking.questions, reader.dtype.itemsize)
                yield left.pop(0), counted
        except PeerError as error:
            yield left.pop(0), {"why": str(error)}
