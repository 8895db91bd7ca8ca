"""Questions to a library, beside the same questions to their own documents: what does it cost that
the document has to be found first?

Every document has a store, of which only what questions need is read. So a library of whole books
is measured at the price of a few windows for each question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.answer.library import LibrarySession
from engine.answer.open_stores import OpenStores
from engine.errors import DocumentError, QuestionError, SekvError
from engine.ingest.asked import begin_unless_there
from engine.ingest.collect import Wanted, collect
from engine.lab.bench.bootstrap import interval, wilson
from engine.lab.bench.log import Log
from engine.lab.bench.questions import Question, choose, placed
from engine.lab.bench.suites.scores import contains
from engine.store.reader import read_store
from engine.types import AskOptions, IngestOptions

if TYPE_CHECKING:
    from engine.models.reader import Reader
    from engine.types import Answer, Progress

FORMAT = 1
ROWS = ALONE, LIBRARY = "alone", "library"
"""Rows: a question that is asked of its own document, and of the library."""

MEASURES = ("document", "evidence_1", "evidence_3", "contains")
"""Whether the right document answered; whether the first citation, or one of the first three,
overlaps the evidence; whether a right answer stands in what was said."""

MEMORY = 2 * 10**9


@dataclass(frozen=True)
class LibrarySetting:
    """samples: questions, drawn evenly over kinds and documents. most: tokens of an answer. window:
    tokens, 0 for what the model reads well. budget: as `AskOptions` has it."""

    samples: int = 100
    most: int = 24
    window: int = 0
    budget: str = AskOptions.budget
    seed: int = 0


def measure(
    reader: Reader,
    model: str,
    questions: Sequence[Question],
    documents: Path,
    setting: LibrarySetting,
    folder: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Ask every question of its document and of the library of all documents in a folder.

    Args:
        model: that `reader` is of.
        documents: others than those of the questions stand in the library too; a file that cannot
            be read does not.
        folder: keeps the library and the answers; what it holds already is neither read nor asked
            again.
    Raises:
        SekvError: no question has an answer, its document is not there or cannot be read, or the
            folder holds another run.
    """
    chosen = choose([q for q in questions if q.answerable], setting.samples, setting.seed)
    if not chosen:
        raise SekvError("none of these questions has an answer; name others with --questions")
    head = {
        "format": FORMAT,
        "weights": reader.identity.weights,
        "dtype": reader.dtype_name,
        "most": setting.most,
        "window": setting.window,
        "budget": setting.budget,
    }
    log = Log.open(folder, head)
    library = folder / "library"
    options = IngestOptions(model=model, window=setting.window)
    names = _begin(documents, {q.document for q in chosen}, library, options, reader, progress)
    asked = AskOptions(budget=setting.budget, max_new_tokens=setting.most)
    stores = OpenStores(asked, progress, MEMORY, reader)
    progress.start("asking", len(chosen), "questions")
    with LibrarySession(library, asked, progress, stores=stores) as session:
        for question in chosen:
            missing = [row for row in ROWS if (question.id, row) not in log.entries]
            if not missing:
                progress.resume(1)
                continue
            name = names[question.document]
            [text] = read_store(library / name, lambda store: store.texts())
            place = placed(question, text)
            if ALONE in missing:
                answer = stores.session(library / name).ask(question.text)
                log.put(_entry(question, ALONE, answer, name, place))
            if LIBRARY in missing:
                try:
                    found: Answer | None = session.ask(question.text)
                except QuestionError:  # no document has any of its words
                    found = None
                log.put(_entry(question, LIBRARY, found, name, place))
            progress.advance(1)
    stores.close()
    return {
        "suite": "library",
        "model": reader.identity.id,
        "weights": reader.identity.weights,
        "documents": len(names),
        "questions": len(chosen),
        "setting": asdict(setting),
        "rows": {row: _row(row, chosen, log) for row in ROWS},
        "points": _points(chosen, log),
    }


def _begin(
    documents: Path,
    named: set[str],
    library: Path,
    options: IngestOptions,
    reader: Reader,
    progress: Progress,
) -> dict[str, str]:
    """Have a store of every document, with its first window read; their names below the library by
    the documents' names below their folder.

    Raises:
        SekvError: a document that questions are of is not there, or cannot be read.
    """
    found = {
        Path(wanted.source).relative_to(documents).as_posix(): wanted
        for wanted in collect([str(documents)]).documents
    }
    for name in sorted(named - found.keys()):
        raise DocumentError(f"there is no {name} in {documents}; name its folder: --documents")
    progress.start("beginning documents", len(found), "documents")
    begun = {}
    for name, wanted in found.items():
        store = library / wanted.name
        store.parent.mkdir(parents=True, exist_ok=True)
        if _began(wanted, store, options, reader, progress, needed=name in named):
            begun[name] = wanted.name
        progress.advance(1)
    return begun


def _began(
    wanted: Wanted,
    store: Path,
    options: IngestOptions,
    reader: Reader,
    progress: Progress,
    *,
    needed: bool,
) -> bool:
    """Whether there is a store of a document now; one that nothing is asked of may be unreadable,
    and is named."""
    try:
        begin_unless_there(Path(wanted.source), store, options, progress, reader)
    except SekvError as error:
        if needed:
            raise
        progress.note(f"left out: {error}")
        return False
    return True


def _entry(
    question: Question, row: str, answer: Answer | None, name: str, place: tuple[int, int]
) -> dict[str, Any]:
    """What is kept of an answer, JSON values. name: of the right store. place: of the evidence."""
    hits = [False] * 3
    said, store = "", ""
    if answer is not None:
        said, store = answer.answer, answer.store or name
        hits = [
            (each.store or store) == name and each.start < place[1] and each.end > place[0]
            for each in answer.citations[:3]
        ]
    right = contains(said, (question.answer, *question.aliases))
    return {
        "key": question.id,
        "row": row,
        "document": float(store == name),
        "evidence_1": float(any(hits[:1])),
        "evidence_3": float(any(hits)),
        "contains": right,
        "store": store,
        "answer": said,
    }


def _row(row: str, questions: Sequence[Question], log: Log) -> dict[str, Any]:
    """Shares with their 95 % intervals, of all questions and by kind."""
    kinds = {"all": list(questions)}
    for question in questions:
        kinds.setdefault(question.kind, []).append(question)
    line: dict[str, Any] = {}
    for kind, group in kinds.items():
        line[kind] = {"n": len(group)}
        for measured in MEASURES:
            hits = sum(log.entries[q.id, row][measured] for q in group)
            low, high = wilson(round(hits), len(group))
            line[kind][measured] = {"mean": hits / len(group), "low": low, "high": high}
    return line


def _points(questions: Sequence[Question], log: Log) -> dict[str, float]:
    """How many more questions have their evidence among the first three citations of the library
    than of their own document, as a share, and its interval over documents."""
    apart: dict[str, list[float]] = {}
    for q in questions:
        more = log.entries[q.id, LIBRARY]["evidence_3"] - log.entries[q.id, ALONE]["evidence_3"]
        apart.setdefault(q.document, []).append(more)
    low, high = interval(list(apart.values()))
    return {"mean": sum(map(sum, apart.values())) / len(questions), "low": low, "high": high}


def markdown(report: dict[str, Any]) -> str:
    """The report as a table."""
    setting = report["setting"]
    lines = [
        f"{report['questions']} questions with evidence, a library of {report['documents']} "
        f"documents, model {report['model']}, budget {setting['budget']}; per cent, 95 % intervals "
        "in brackets",
        "",
        "| asked of | questions | right document | evidence in 1 citation | in 3 | right answer |",
        "|---|---|---|---|---|---|",
    ]
    what = {ALONE: "its own document", LIBRARY: "the library"}
    for row, line in report["rows"].items():
        for kind, found in line.items():
            cells = [_percent(found[measured]) for measured in MEASURES]
            lines.append(f"| {what[row]} | {found['n']} {kind} | {' | '.join(cells)} |")
    points = report["points"]
    lines += [
        "",
        f"Evidence among the first three citations of the library: {100 * points['mean']:+.1f} "
        f"points ({100 * points['low']:+.1f} to {100 * points['high']:+.1f}, drawing documents "
        "anew) beside the document's own.",
    ]
    return "\n".join(lines) + "\n"


def _percent(found: dict[str, float]) -> str:
    return f"{100 * found['mean']:.1f} ({100 * found['low']:.0f}-{100 * found['high']:.0f})"
