"""When to say "not stated", measured: the bar of a look-up reader's certainty, and its citations.

Documents that training cannot have met are ingested and asked what they state and what they do
not. For every score of `certainty` the bar is found that refuses most of the questions without
an answer and loses hardly any right answer; the best of them can be written into the reader's
configuration. Also counted: how often the passage that states a right answer is among the first
three citations, with and without the quote of the answer to lead there.

    python -m engine.bench.support --text books --questions 400 --write
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from engine.ask import NOT_STATED, Session
from engine.bench.reader import interval, plain
from engine.certainty import NO_BAR, SCORES, Bar
from engine.errors import SekvError
from engine.ingest import ingest
from engine.readers import hf
from engine.types import AskOptions, IngestOptions, Silent

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
    reader: hf.Reader, model: str, documents: Iterable[Drawn], questions: int, budget: str
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
        reader.model, reader.tokenizer, reader.identity, replace(reader.prompt, bar=NO_BAR)
    )
    found: list[Asked] = []
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
                found += [_judged(session, question) for question in drawn.questions]
            if len(found) >= questions:
                break
    return found[:questions]


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
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """The command: measure, print, and with --write keep the bar."""
    parser = argparse.ArgumentParser(prog="python -m engine.bench.support", description=__doc__)
    parser.add_argument("--text", type=Path, required=True, help="folder of .txt books")
    parser.add_argument("--model", default="", help="folder of the reader; default: the built-in")
    parser.add_argument("--questions", type=int, default=400)
    parser.add_argument("--tokens", type=int, default=1024, help="of a document")
    parser.add_argument("--budget", default=AskOptions.budget)
    parser.add_argument("--lost", type=float, default=0.02, help="share of right answers to lose")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--write", action="store_true", help="into the reader's config.json")
    given = parser.parse_args()
    try:
        from engine.train.reader.episodes import Episodes

        name = hf.resolve(given.model)
        reader = hf.load(name, device=given.device)
        rng, episodes = Random(given.seed), Episodes(given.text, "eval", given.seed)
        drawn = (
            episodes.sample(given.tokens, rng=rng, facts=2, same_type=False, unanswerable=0.5)
            for _ in range(given.questions)
        )
        told = report(ask_all(reader, name, drawn, given.questions, given.budget), given.lost)
    except (SekvError, ValueError) as error:
        sys.exit(f"sekv: {error}")
    print(json.dumps(told, indent=1))
    if given.write:
        write(Path(name), told["best"])


if __name__ == "__main__":
    main()
