"""A library of many small stores: each question is answered from its own, and memory stays flat.

`SEKV_LIBRARY_STORES=1000 pytest -m slow -s tests/answer/test_many_stores.py` prints what a first
token of such a library takes beside one of a single store.
"""

from __future__ import annotations

import json
import os
import resource
import time
from pathlib import Path
from statistics import median

import pytest

from engine import api
from engine.answer.library import LibrarySession
from engine.answer.open_stores import OpenStores
from engine.answer.session import Session
from engine.models.reader import Reader
from engine.types import Answer, AskOptions, IngestOptions, Silent

STORES = int(os.environ.get("SEKV_LIBRARY_STORES", "1000"))
QUESTIONS = 500
ASKED = AskOptions(max_new_tokens=1)

pytestmark = pytest.mark.usefixtures("instant_disk")


def name(number: int) -> str:
    """The name of a ship that no other has."""
    return "".join("bdfgklmnpr"[int(digit)] + "aeiou"[number % 5] for digit in f"{number:04d}")


def filled(folder: Path, count: int, model: Path, reader: Reader) -> Path:
    """A library of one small store for each ship."""
    (folder / "logs").mkdir()
    for number in range(count):
        text = f"The ship {name(number)} came home after {number} days, and it rained.\n"
        (folder / "logs" / f"{number:04d}.txt").write_text(text)
    options = IngestOptions(model=str(model))
    api.ingest_library(folder / "logs", folder / "library", options, reader=reader)
    return folder / "library"


def resident() -> int:
    """Most bytes that this process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def ask(session: Session | LibrarySession, number: int) -> Answer:
    return session.ask(f"When did the {name(number)} come home?")


def test_open_stores_keep_within_their_memory_and_every_question_finds_its_own(
    tmp_path: Path, model: Path, reader: Reader
) -> None:
    library = filled(tmp_path, 6, model, reader)
    with Session(library / "0000.sekv", ASKED, Silent(), reader) as session:
        one = session.held_bytes
    stores = OpenStores(ASKED, Silent(), 3 * one, reader)
    with LibrarySession(library, ASKED, Silent(), stores=stores) as several:
        for number in (*range(6), 5, 4):
            assert ask(several, number).store == f"{number:04d}.sekv"
            assert stores.bytes <= 3.5 * one
    assert (stores.misses, stores.hits) == (6, 2)
    stores.close()


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_memory_stays_flat_over_many_questions_to_many_stores(
    tmp_path: Path, model: Path, reader: Reader
) -> None:
    """At most a tenth more after five hundred questions than after the first hundred. Prints the
    seconds from opening to a first token."""
    library = filled(tmp_path, STORES, model, reader)
    alone, among = [], []
    for number in range(20):
        at = time.perf_counter()
        with api.open_store(library / f"{number:04d}.sekv", ASKED, reader=reader) as one:
            ask(one, number)
        alone.append(time.perf_counter() - at)
        at = time.perf_counter()
        with api.open_library(library, ASKED, reader=reader) as all_of_them:
            assert ask(all_of_them, number).store == f"{number:04d}.sekv"
        among.append(time.perf_counter() - at)
    with LibrarySession(library, ASKED, Silent(), memory=100_000, reader=reader) as session:
        for question in range(QUESTIONS):
            ask(session, 7 * question % STORES)
            if question == 100:
                before = resident()
    row = {
        "stores": STORES,
        "questions": QUESTIONS,
        "first_token_ms": round(1000 * median(among), 1),
        "of_one_store_ms": round(1000 * median(alone), 1),
        "resident_mb_after_100": before // 2**20,
        "resident_mb_after_all": resident() // 2**20,
    }
    print(json.dumps(row))
    assert resident() < 1.1 * before
