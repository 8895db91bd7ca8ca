"""What the suites of `sekv bench` read, and whether it is there: nothing is imported to say no."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from engine.compression import method_names
from engine.errors import DocumentError, SekvError
from engine.models import named
from sekv_cli import options
from sekv_cli.bench_options import SuiteName

NATURAL = (
    SuiteName.qa,
    SuiteName.fidelity,
    SuiteName.support,
    SuiteName.retrieval,
    SuiteName.positions,
    SuiteName.library,
)
OFFICIAL = (SuiteName.longbench, SuiteName.infinitebench)

FAMILIES = ("peers", "kvpress", "transformers", "trial")
"""Words that stand for several peers of `engine.lab.bench.peers`."""


def check(
    suites: Sequence[SuiteName],
    questions: Path | None,
    documents: Path | None,
    text: Path | None,
    data: Path | None,
) -> None:
    """Whether what the suites read is named and there.

    Raises:
        SekvError: it is not.
    """
    for suite in suites:
        if suite in NATURAL:
            natural(questions, documents, suite)
        elif suite in OFFICIAL:
            official(data, suite)
        else:
            books(text, suite)


def check_named(model: str, methods: Sequence[str]) -> None:
    """Whether there are such a model and such methods; names of peers are for the suite to judge.

    Raises:
        SekvError: there are not.
    """
    named.check(model)
    for method in methods:
        if not set(":@.") & set(method) and method not in FAMILIES:
            method_names.check(method)


def natural(questions: Path | None, documents: Path | None, suite: str) -> tuple[Path, Path]:
    """The file of questions and the folder of their documents.

    Raises:
        SekvError: one is not named, or not there.
    """
    if questions is None or documents is None:
        raise SekvError(
            f"the {suite} suite asks natural questions; name their file and the folder of their "
            "documents: --questions and --documents"
        )
    if not questions.is_file():
        raise DocumentError(f"cannot read questions from {questions}: there is no such file")
    options.check_folder(documents, "--documents", "the documents of the questions")
    return questions, documents


def books(text: Path | None, suite: str) -> Path:
    """The folder of books that a suite draws from. Raises SekvError."""
    if text is None:
        raise SekvError(f"the {suite} suite draws its texts from books; name their folder: --text")
    options.check_folder(text, "--text", ".txt books")
    if not any(text.glob("*.txt")):
        raise DocumentError(f"{text} holds no .txt books; name a folder of some with --text")
    return text


def official(data: Path | None, suite: str) -> Path:
    """The folder of a suite's official files. Raises SekvError."""
    if data is None:
        raise SekvError(f"the {suite} suite reads official .jsonl files; name their folder: --data")
    options.check_folder(data, "--data", "official .jsonl files")
    return data
