"""How well a look-up reader answers: plain transformers, greedy, no memory.

Each cell draws documents and questions that training cannot have met (names, books and,
where it says so, wordings), asks all questions of a document together and counts. Where
the documents come from is the caller's choice: anything with the `sample` of `Source`.
Results are kept cell by cell, so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any, Final, Protocol

from engine.bench.decode import DOCUMENT, NOT_STATED, VALUE, Decoder
from engine.bench.suites.scores import exact_match
from engine.errors import ReaderError

FORMAT: Final = "sekv-reader-bench 1"


class Question(Protocol):
    """What is asked: quote and value are "" where the document does not state it."""

    @property
    def text(self) -> str: ...
    @property
    def quote(self) -> str: ...
    @property
    def value(self) -> str: ...


class Drawn(Protocol):
    """A document and its questions."""

    @property
    def document(self) -> str: ...
    @property
    def questions(self) -> Sequence[Question]: ...


class Source(Protocol):
    """Where documents come from."""

    def sample(
        self,
        tokens: int,
        *,
        rng: Random,
        facts: int | None,
        same_type: bool | None,
        unseen_wording: bool,
        questions: int,
        unanswerable: float,
        kind: str | None,
        groups: int,
    ) -> Drawn:
        """One document of about so many tokens with at most so many questions."""


@dataclass(frozen=True)
class Cell:
    """One line of the table.

    tokens: aimed length.  facts: of each of `groups` families in a document.
    same: all facts of a group of one family.  unseen: held-out wordings only.
    names: which source draws, "eval" for held-out names or "train" for familiar ones.
    whole: read in one piece even if longer than the reader's window.
    share: of the questions a cell otherwise has.
    """

    name: str
    tokens: int
    facts: int | None = 1
    groups: int = 1
    same: bool | None = True
    unseen: bool = False
    names: str = "eval"
    unanswerable: float = 0.0
    kind: str | None = "facts"
    whole: bool = True
    asked: int = 16
    share: float = 1.0


def _length(tokens: int) -> str:
    return f"{tokens // 1024}k" if tokens >= 1024 else str(tokens)


def _one(tokens: int, **changes: Any) -> Cell:
    """Facts that are each the only one of their type; several types share a document."""
    groups = min(16, tokens // 64)
    return Cell(f"one fact, {_length(tokens)}", tokens, 1, groups, asked=groups, **changes)


def _types(facts: int, tokens: int, **changes: Any) -> Cell:
    """`facts` facts of one type, the others being distractors."""
    groups = max(1, min(16, tokens // 64) // facts)
    name = f"{facts} of one type, {_length(tokens)}"
    return Cell(name, tokens, facts, groups, asked=facts * groups, **changes)


def _named(cell: Cell, note: str) -> Cell:
    return replace(cell, name=f"{cell.name}, {note}")


CELLS: Final = (
    *(_named(_one(n, unseen=True), "unseen wording") for n in (512, 1024, 2048, 4096, 8192)),
    _named(_one(16_384, unseen=True, share=0.5), "unseen wording"),
    *(_named(_types(4, n, unseen=True), "unseen wording") for n in (512, 1024, 2048, 4096, 8192)),
    *(_named(_types(16, n, unseen=True), "unseen wording") for n in (1024, 4096)),
    *(_one(n) for n in (512, 2048, 8192)),
    *(_types(4, n) for n in (2048,)),
    *(_types(16, n) for n in (4096,)),
    Cell("16 mixed facts, 2k", 2048, 16, same=False),
    _named(_one(2048, names="train"), "familiar names"),
    _named(_types(4, 2048, names="train"), "familiar names"),
    Cell("not stated, 1k", 1024, 4, 2, unanswerable=1.0),
    Cell("not stated, 4k", 4096, 4, 4, unanswerable=1.0),
    Cell("not stated, 4k, unseen wording", 4096, 4, 4, unseen=True, unanswerable=1.0),
    Cell("magic numbers, 1k", 1024, 4, kind="ruler", asked=4),
    Cell("magic numbers, 4k", 4096, 8, kind="ruler", asked=8),
    Cell("magic numbers, 16k", 16_384, 16, kind="ruler", share=0.5),
    Cell("sentences of a book, 1k", 1024, 0, kind="natural", asked=8),
    Cell("sentences of a book, 4k", 4096, 0, kind="natural"),
    *(
        _named(_one(n, unseen=True, whole=False), "unseen wording, in windows")
        for n in (4096, 16_384)
    ),
    _named(_types(4, 16_384, unseen=True, whole=False), "unseen wording, in windows"),
    Cell(
        "one fact, 120k, unseen wording, in windows",
        122_880,
        1,
        40,
        unseen=True,
        whole=False,
        asked=40,
    ),
)


@dataclass
class Tally:
    """Counts of a cell.

    exact: the value is the right one but for case, articles and punctuation.  contained: the
    right value stands somewhere in the answer.  quoted: the right sentence is quoted.  grounded:
    the quote stands in the document.  refused: the answer is that it is not stated.
    """

    documents: int = 0
    tokens: int = 0
    windows: int = 0
    questions: int = 0
    exact: int = 0
    contained: int = 0
    quoted: int = 0
    grounded: int = 0
    refused: int = 0
    stated: int = 0
    read_seconds: float = 0.0
    answer_seconds: float = 0.0
    answered_tokens: int = 0
    misses: list[dict[str, str]] = field(default_factory=list)


def interval(hits: int, of: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval of a share; (0, 1) of nothing."""
    if of == 0:
        return 0.0, 1.0
    share = hits / of
    centre = share + z * z / (2 * of)
    spread = z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    scale = 1 + z * z / of
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def plain(text: str) -> str:
    """Text with single spaces, for texts wrap their lines as they like."""
    return " ".join(text.split())


@dataclass(frozen=True)
class Verdict:
    """What is right about one answer; see `Tally`."""

    exact: bool
    contained: bool
    quoted: bool
    grounded: bool
    refused: bool


def judge(answer: str, quote: str, values: Sequence[str], document: str) -> Verdict:
    """Compare an answer with what it should be.

    Args:
        answer: as decoded, with the marks between pointer, quote and value.
        values: all that count as right; none where the document does not state it.
        document: with single spaces, as by `plain`.
    """
    given, _, value = answer.partition(VALUE)
    given, value = plain(given.rpartition(DOCUMENT)[2]), plain(value)
    refused = plain(answer).casefold().startswith(NOT_STATED)
    if not values:
        return Verdict(refused, refused, refused, refused, refused)
    whole = plain(answer.replace(DOCUMENT, " ").replace(VALUE, " ")).casefold()
    right = [plain(one) for one in values]
    right_one = plain(quote)
    return Verdict(
        exact=exact_match(value, right) > 0,
        contained=any(one.casefold() in whole for one in right),
        quoted=bool(right_one) and len(given) > 2 and (given in right_one or right_one in given),
        grounded=bool(given) and not refused and given in document,
        refused=refused,
    )


@dataclass(frozen=True)
class _Asked:
    text: str
    quote: str
    values: tuple[str, ...]


def _ask(
    decoder: Decoder, document: str, asked: Sequence[_Asked], window: int, most: int, tally: Tally
) -> None:
    """Read one document, ask all its questions together and count."""
    began = time.perf_counter()
    read = decoder.read(document, window)
    between = time.perf_counter()
    answers = decoder.answer(read, [one.text for one in asked], most)
    tally.read_seconds += between - began
    tally.answer_seconds += time.perf_counter() - between
    tally.documents += 1
    tally.tokens += read.tokens
    tally.windows += read.windows
    flat = plain(document)
    for one, answer in zip(asked, answers, strict=True):
        verdict = judge(answer, one.quote, one.values, flat)
        tally.questions += 1
        tally.stated += bool(one.values)
        tally.exact += verdict.exact
        tally.contained += verdict.contained
        tally.quoted += verdict.quoted
        tally.grounded += verdict.grounded
        tally.refused += verdict.refused
        tally.answered_tokens += len(decoder.encode(answer)[0])
        if not verdict.contained and len(tally.misses) < 8:
            tally.misses.append(
                {"question": one.text, "right": " / ".join(one.values), "answer": answer}
            )


def measure(
    decoder: Decoder, source: Source, cell: Cell, questions: int, seed: int, most: int
) -> Tally:
    """Draw and ask until the cell has its questions."""
    tally = Tally()
    rng = Random(f"{seed} {cell.name}")
    wanted = max(1, round(questions * cell.share))
    # The source counts three characters to a token; this tokenizer may not.
    probe = _draw(source, cell, cell.tokens, Random(f"{seed} probe"))
    have = len(decoder.encode(probe.document)[0])
    aimed = round(cell.tokens * min(2.0, max(0.5, cell.tokens / max(1, have))))
    for _ in range(20 * wanted):
        left = wanted - tally.questions
        if left <= 0:
            break
        drawn = _draw(source, cell, aimed, rng)
        asked = [_Asked(q.text, q.quote, (q.value,) if q.quote else ()) for q in drawn.questions]
        if asked:
            window = 0 if cell.whole else decoder.window
            _ask(decoder, drawn.document, asked[:left], window, most, tally)
    return tally


def _draw(source: Source, cell: Cell, tokens: int, rng: Random) -> Drawn:
    return source.sample(
        tokens,
        rng=rng,
        facts=cell.facts,
        same_type=cell.same,
        unseen_wording=cell.unseen,
        questions=cell.asked,
        unanswerable=cell.unanswerable,
        kind=cell.kind,
        groups=cell.groups,
    )


def measure_file(decoder: Decoder, file: Path, texts: Path, most: int) -> dict[str, Tally]:
    """Ask the questions of a JSON-lines file on whole books, read in windows.

    Args:
        file: each line has doc, doc_type, question, answer and aliases; only documents
            of type txt are asked.  texts: folder of the documents.
    Raises:
        ReaderError: a document is missing.
    """
    by_document: dict[str, list[_Asked]] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.strip():
            continue
        entry = json.loads(line)
        if entry["doc_type"] == "txt":
            values = (entry["answer"], *entry.get("aliases", ()))
            one = _Asked(entry["question"], "", tuple(values))
            by_document.setdefault(Path(entry["doc"]).name, []).append(one)
    found = {}
    for name, asked in by_document.items():
        path = texts / name
        if not path.is_file():
            raise ReaderError(f"the questions ask about {name}, which is not in {texts}")
        tally = Tally()
        document = path.read_text(encoding="utf-8", errors="replace")
        _ask(decoder, document, asked, decoder.window, most, tally)
        found[f"questions on {path.stem}, whole book in windows"] = tally
    return found


def fingerprint(folder: Path) -> str:
    """sha256 of the weights, that results of one model are never taken for another's."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def evaluate_reader(
    folder: Path,
    sources: Mapping[str, Source],
    results: Path,
    *,
    questions: int = 200,
    seed: int = 0,
    cells: Iterable[Cell] = CELLS,
    file: Path | None = None,
    texts: Path | None = None,
    device: str = "cpu",
    most: int = 100,
    say: Callable[[str], None] = _say,
) -> dict[str, Any]:
    """Measure a reader in every cell; cells that `results` already holds are not repeated.

    Args:
        folder: of the checkpoint.  sources: "eval" draws held-out names, "train"
            familiar ones; both from books the reader has not seen.
        results: JSON file, written after every cell.
        questions: in a cell.  most: tokens of an answer at most.
        file, texts: questions on whole books and the folder of these books, or None.
        say: told of each finished cell.
    Returns:
        what the file holds.
    Raises:
        ReaderError: the folder holds no look-up reader, or the results are another's.
    """
    head = {
        "format": FORMAT,
        "weights": fingerprint(folder),
        "questions": questions,
        "seed": seed,
        "most": most,
    }
    report: dict[str, Any] = {**head, "cells": {}}
    if results.exists():
        report = json.loads(results.read_text(encoding="utf-8"))
        other = [key for key, value in head.items() if report.get(key) != value]
        if other:
            raise ReaderError(
                f"{results} holds results with another {', '.join(other)}; "
                "name a new file or remove the old one"
            )
    decoder = Decoder(folder, device)

    def keep(name: str, tally: Tally) -> None:
        report["cells"][name] = asdict(tally)
        whole = results.with_suffix(".partial")
        whole.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        whole.replace(results)
        say(
            f"{name}: {_percent(tally.exact, tally.questions)} exact of {tally.questions}, "
            f"{tally.read_seconds + tally.answer_seconds:.0f} s"
        )

    for cell in cells:
        if cell.name not in report["cells"] and cell.names in sources:
            keep(cell.name, measure(decoder, sources[cell.names], cell, questions, seed, most))
    if file is not None and texts is not None:
        known = [name for name in report["cells"] if name.startswith("questions on ")]
        if not known:
            for name, tally in measure_file(decoder, file, texts, most).items():
                keep(name, tally)
    return report


def _percent(hits: int, of: int) -> str:
    return f"{100 * hits / of:.0f} %" if of else "-"


def markdown(report: Mapping[str, Any]) -> str:
    """The report as a table; shares in per cent, Wilson's 95 % intervals in brackets."""
    lines = [
        "| cell | tokens | n | value exact | in the answer | sentence right | not stated "
        "| read tok/s | s per question |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, cell in report["cells"].items():
        n = cell["questions"]
        if not n:
            continue
        low, high = interval(cell["exact"], n)
        lines.append(
            f"| {name} | {cell['tokens'] // max(1, cell['documents'])} | {n} "
            f"| {_percent(cell['exact'], n)} [{100 * low:.0f}, {100 * high:.0f}] "
            f"| {_percent(cell['contained'], n)} | {_percent(cell['quoted'], n)} "
            f"| {_percent(cell['refused'], n)} "
            f"| {cell['tokens'] / max(cell['read_seconds'], 1e-9):.0f} "
            f"| {cell['answer_seconds'] / n:.2f} |"
        )
    lines.append("")
    lines.append(
        "`not stated` is right in the cells of that name and a false refusal in all others. "
        "Questions on one document are not independent; the intervals take them as if they were."
    )
    return "\n".join(lines) + "\n"
