"""Real processes that ask one document at once, or are killed while they read of it."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine import api
from engine.models.reader import load_reader
from engine.store.disk import Disk
from engine.store.reader import Store, read_manifest
from engine.types import AskOptions, IngestOptions
from killed_steps import Steps
from repository import ROOT, environment
from tiny_books import log, report
from tiny_models import checkpoint
from toy_store import leftovers, tree

TEXT = log(14)
WINDOW, CHUNK = 160, 40
QUESTIONS = tuple(f"How many whales on day {day}?" for day in range(14))


def ask(book: Path, model: Path, question: str, reader: Any = None) -> list[int]:
    """Ask a document that may have a store or not; the windows that this read, by their numbers."""
    opened = api.open_document(
        book,
        book.with_suffix(".sekv"),
        AskOptions(max_new_tokens=2),
        IngestOptions(model=str(model), window=WINDOW, chunk_tokens=CHUNK),
        reader=reader,
    )
    with opened:
        answer = opened.ask(question)
    return [each.window for each in answer.retrieval if each.read_now]


def kill_askers(model: Path, stage: Path, kills: int, seed: int) -> dict[str, int]:
    """Kill processes that ask at so many random instants; each leaves no store or a sound one."""
    reader, chance, steps = load_reader(str(model), device="cpu"), random.Random(seed), Steps()
    book = stage / "log.txt"
    report(stage, model, TEXT, reader=reader, window=WINDOW, chunk_tokens=CHUNK)
    whole, reading = tree(stage / "log.sekv"), steps.done
    count = {"killed": 0, "finished": 0, "partly": 0}
    while count["killed"] < kills:
        shutil.rmtree(stage / "log.sekv", ignore_errors=True)
        shutil.rmtree(stage / ".log.sekv.work", ignore_errors=True)
        before: set[int] = set()
        for _ in range(4):
            child = os.fork()
            if child == 0:
                steps.last = steps.done + chance.randint(1, reading)
                ask(book, model, chance.choice(QUESTIONS), reader)
                os._exit(0)
            chance.random()  # the next child draws another number
            count["killed"] += os.waitpid(child, 0)[1] == signal.SIGKILL
            if (stage / "log.sekv").exists():
                with Store.open(stage / "log.sekv") as store:
                    assert store.verify() == []
                    assert before <= set(store.manifest.read)  # what is read stays read
                    before = set(store.manifest.read)
                    count["partly"] += bool(store.manifest.unread)
        if not before or read_manifest(stage / "log.sekv").unread:
            report(stage, model, TEXT, reader=reader, window=WINDOW, chunk_tokens=CHUNK)
            assert leftovers(stage) == []
        assert tree(stage / "log.sekv") == whole
        count["finished"] += 1
    return count


def ask_together(model: Path, stage: Path, rounds: int) -> dict[str, int]:
    """In each round three processes ask at the same moment; no window is read twice."""
    reader = load_reader(str(model), device="cpu")
    setattr(Disk, "sync", lambda *_: None)  # noqa: B010
    book = stage / "log.txt"
    book.write_text(TEXT, encoding="utf-8")
    read: list[int] = []
    for at in range(rounds):
        pipes = []
        for asker in range(3):
            inward, outward = os.pipe()
            if os.fork() == 0:
                found = ask(book, model, QUESTIONS[(at + asker // 2) % len(QUESTIONS)], reader)
                os.write(outward, json.dumps(found).encode())
                os._exit(0)
            os.close(outward)
            pipes.append(inward)
        for pipe in pipes:
            with os.fdopen(pipe, "rb") as file:
                read += json.loads(file.read())
            assert os.wait()[1] == 0
        with Store.open(book.with_suffix(".sekv")) as store:
            assert store.verify() == []
            assert set(read) <= set(store.manifest.read)
    assert leftovers(stage) == []
    return {"windows": len(read), "different": len(set(read))}


def run(folder: Path, *acts: tuple[object, ...]) -> list[dict[str, int]]:
    """Each act ("kill", 3, 1) in turn, by one process of its own, which forks: what they count."""
    model = checkpoint("llama", folder / "model")
    asked = json.dumps(acts)
    command = [sys.executable, __file__, str(model), str(folder), asked]
    env = environment(TOKENIZERS_PARALLELISM="false")
    done = subprocess.run(command, check=True, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
    found: list[dict[str, int]] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, int]]:
    """Of both acts below: a process takes longer to load its libraries than to do either."""
    return run(tmp_path_factory.mktemp("acts"), ("kill", 3, 1), ("together", 1))


@pytest.mark.timeout(900)
def test_a_killed_asker_leaves_a_sound_store_that_ingest_completes(
    counts: list[dict[str, int]],
) -> None:
    assert counts[0]["killed"] >= 3


@pytest.mark.timeout(900)
def test_askers_at_once_read_no_window_twice(counts: list[dict[str, int]]) -> None:
    assert counts[1]["windows"] == counts[1]["different"] > 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_fifty_killed_askers_leave_sound_stores(tmp_path: Path) -> None:
    (count,) = run(tmp_path, ("kill", 50, 2))
    print(count)
    assert count["partly"] > 10


def main() -> None:
    model, folder, acts = sys.argv[1:]
    found = []
    for name, *numbers in json.loads(acts):
        stage = Path(folder, name)
        stage.mkdir()
        act = {"kill": kill_askers, "together": ask_together}[name]
        found.append(act(Path(model), stage, *numbers))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
