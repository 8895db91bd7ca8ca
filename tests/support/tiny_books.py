"""A small document, stores of it and readers, for tests of the core. Not a test itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from engine.answer.session import Session
from engine.documents.tokens import Tokens
from engine.ingest.run import ingest
from engine.models.reader import Reader
from engine.types import AskOptions, IngestOptions, IngestReport, Silent

QUESTION = "How many whales?"


def log(days: int) -> str:
    """A ship's log of that many days, one sentence and line each; about 57 characters a day."""
    return "".join(
        f"On day {i} the crew of ship {i * 7 % 13} saw {i * i % 97} whales, and it rained.\n"
        for i in range(days)
    )


TEXT = log(9)


def read(
    folder: Path, model: Path, text: str = TEXT, *, reader: Reader | None = None, **options: Any
) -> Path:
    """The store that `ingest` makes of a text in a folder."""
    report(folder, model, text, reader=reader, **options)
    return folder / "log.sekv"


def report(
    folder: Path, model: Path, text: str = TEXT, *, reader: Reader | None = None, **options: Any
) -> IngestReport:
    """The same, and what `ingest` says about it."""
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "log.txt"
    source.write_text(text, encoding="utf-8")
    made = IngestOptions(model=str(model), **options)
    return ingest([str(source)], folder / "log.sekv", made, Silent(), None, reader)


def shelf(folder: Path) -> Path:
    """A folder with one book, of those that no reader is trained on."""
    folder.mkdir()
    (folder / "shackleton-south.txt").write_text(log(40).replace("\n", "\n\n"))
    return folder


def words_of(document: Any) -> Tokens:
    """Five characters a token: what is cut need not be a word."""
    text = document.sources[0].text
    starts = np.arange(0, len(text), 5)
    ends = np.minimum(starts + 5, len(text))
    none = np.zeros(len(starts))
    return Tokens(*(a.astype(np.int32) for a in (none, starts, ends, none)), "tiktoken")


def session(store: Path, reader: Reader | None = None, **options: Any) -> Session:
    """A store open for questions, at a budget that makes even a short text choose."""
    chosen = {"budget": "20%", "max_new_tokens": 8, **options}
    return Session(store, AskOptions(**chosen), Silent(), reader)
