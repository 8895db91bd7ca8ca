"""When to say "not stated", measured: the bar of a look-up reader's certainty, and its citations.

Documents that training cannot have met are ingested and asked what they state and what they do
not. For every score of `certainty` the bar is found that refuses most of the questions without
an answer and loses hardly any right answer; the best of them can be written into the reader's
configuration. Also counted: how often the passage that states a right answer is among the first
three citations, with and without the quote of the answer to lead there.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.ask import NOT_STATED, Session
from engine.bench.reader import interval, plain
from engine.certainty import NO_BAR, SCORES, Bar
from engine.errors import SekvError
from engine.ingest import ingest
from engine.readers import hf
from engine.store import disk
from engine.types import AskOptions, IngestOptions, Progress, Silent

if TYPE_CHECKING:
    from engine.bench.reader import Drawn


@dataclass(frozen=True)
class Asked:
    """One question. stated: the document answers it; right: the reader did, word for word.

    refused: the reader itself said that nothing is stated. scores: of its quote otherwise.
    cited, read: the passage that states it is among the citations, and among those that
    attention alone would give.
    """

    stated: bool
    right: bool
    refused: bool
    scores: dict[str, float]
    cited: bool
    read: bool


def ask_all(
    reader: hf.Reader,
    model: str,
    documents: Iterable[Drawn],
    questions: int,
    budget: str,
    progress: Progress,
) -> list[Asked]:
    """Ask documents until so many questions are answered, with no bar in the way.

    Args:
        reader: loaded.  model: its name or path, for ingest.
    Raises:
        SekvError: it is no look-up reader, which alone quotes.
    """
    if reader.prompt.value_token < 0:
        raise SekvError(f"{reader.identity.id} is no look-up reader; only those quote")
    open_reader = hf.Reader(
        reader.model,
        reader.tokenizer,
        reader.identity,
        replace(reader.prompt, bar=NO_BAR),
        reader.located,
    )
    found: list[Asked] = []
    progress.start("asking", questions, "questions")
    with tempfile.TemporaryDirectory(prefix="sekv-support-") as scratch:
        source, store = Path(scratch) / "document.txt", Path(scratch) / "document.sekv"
        for drawn in documents:
            source.write_text(drawn.document, encoding="utf-8")
            ingest(
                [str(source)],
                store,
                IngestOptions(model=model, overwrite=True),
                Silent(),
                None,
                open_reader,
            )
            with Session(store, AskOptions(budget=budget), Silent(), open_reader) as session:
                for question in list(drawn.questions)[: questions - len(found)]:
                    found.append(_judged(session, question))
                    progress.advance(1)
            if len(found) >= questions:
                break
    return found


def _judged(session: Session, question: Any) -> Asked:
    answer = session.ask(question.text)
    wanted, quote = plain(question.value).lower(), plain(question.quote).lower()
    passages = [plain(c.text).lower() for c in answer.citations]
    evidence = [plain(c.text).lower() for c in session.evidence()]
    return Asked(
        stated=bool(wanted),
        right=bool(wanted) and plain(answer.answer).lower() == wanted,
        refused=answer.answer == NOT_STATED,
        scores=dict(answer.stats["certainty"]),
        cited=any(_same(quote, passage) for passage in passages),
        read=any(_same(quote, passage) for passage in evidence),
    )


def _same(quote: str, passage: str) -> bool:
    """Whether a passage holds a quote, or is a part of it."""
    return bool(quote) and (quote in passage or passage in quote)


def bars(asked: Sequence[Asked], lost: float) -> dict[str, dict[str, Any]]:
    """For every score the bar that refuses most and loses at most a share of right answers.

    Returns:
        Per score: least nats, and the shares refused of questions without an answer and lost of
        right answers, each with its 95 % interval.
    """
    right = [one for one in asked if one.right]
    void = [one for one in asked if not one.stated]
    told: dict[str, dict[str, Any]] = {}
    for name in SCORES:
        kept = sorted(one.scores[name] for one in right)
        allowed = math.floor(lost * len(kept))
        least = kept[allowed] if kept else -math.inf
        gone = sum(score < least for score in kept)
        refused = sum(one.refused or one.scores[name] < least for one in void)
        told[name] = {
            "least": least,
            "refused": refused / max(1, len(void)),
            "refused_interval": interval(refused, len(void)),
            "lost": gone / max(1, len(right)),
            "lost_interval": interval(gone, len(right)),
        }
    return told


def markdown(told: dict[str, Any]) -> str:
    """The report as a page; shares in per cent with Wilson's 95 % intervals."""

    def share(line: dict[str, Any], name: str) -> str:
        low, high = line[f"{name}_interval"]
        return f"{100 * line[name]:.1f} ({100 * low:.1f}-{100 * high:.1f})"

    lines = [
        f"{told['questions']} questions, {told['right']} answered rightly, "
        f"{told['without_answer']} without an answer; the reader refused "
        f"{100 * told['refused_by_itself']:.1f} % of those by itself",
        "",
        f"passage of a right answer cited: {share(told, 'cited')} %; "
        f"by attention alone: {share(told, 'read')} %",
        "",
        "| certainty | bar, nats | refused without an answer % | right answers lost % |",
        "|---|---|---|---|",
    ]
    for name, bar in told["bars"].items():
        best = " (best)" if name == told["best"]["score"] else ""
        lines.append(
            f"| {name}{best} | {bar['least']:.3f} | {share(bar, 'refused')} "
            f"| {share(bar, 'lost')} |"
        )
    return "\n".join(lines) + "\n"


def report(asked: Sequence[Asked], lost: float) -> dict[str, Any]:
    """What was measured, as JSON values.

    Raises:
        SekvError: too little to measure a bar on.
    """
    right = [one for one in asked if one.right]
    void = [one for one in asked if not one.stated]
    if not right or not void:
        raise SekvError(
            f"{len(right)} right answers and {len(void)} questions without one are too few to "
            "measure a bar on; raise --questions"
        )
    measured = bars(asked, lost)
    best = max(measured, key=lambda name: float(measured[name]["refused"]))
    own = sum(one.refused for one in void)
    cited, read = sum(one.cited for one in right), sum(one.read for one in right)
    return {
        "questions": len(asked),
        "right": len(right),
        "without_answer": len(void),
        "refused_by_itself": own / len(void),
        "cited": cited / len(right),
        "cited_interval": interval(cited, len(right)),
        "read": read / len(right),
        "read_interval": interval(read, len(right)),
        "bars": measured,
        "best": asdict(Bar(best, float(measured[best]["least"]))),
    }


def write(folder: Path, bar: dict[str, Any]) -> None:
    """Put a bar into a reader's configuration; weights and stores are as good as before."""
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["sekv_certainty"] = bar
    disk.put(file, (json.dumps(config, indent=2) + "\n").encode())
