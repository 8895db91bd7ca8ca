"""A real ingest, model and all, killed at any step: no broken store, the same bytes in the end.

What tests/store/test_crash.py shows of the store with a toy for a model is shown here with a model.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from engine.errors import StoreExistsError
from engine.models.reader import load_reader
from engine.store.reader import Store
from engine.store.work import Places
from killed_steps import Steps
from repository import ROOT, environment
from tiny_books import log, report
from tiny_models import checkpoint
from toy_store import leftovers, tree

CHUNK = 32
TEXT = log(4)


def kill_often(model: Path, place: Path, kills: int, seed: int) -> dict[str, int]:
    """Kill ingest at so many random instants, at most three times before it may finish.

    Returns:
        How many runs were killed and how many stores finished all the same.
    """
    reader = load_reader(str(model), device="cpu")
    stage, chance, steps = place / "stage", random.Random(seed), Steps()
    target = stage / "log.sekv"

    def ingest() -> None:
        report(stage, model, TEXT, reader=reader, window=160, chunk_tokens=CHUNK)

    ingest()
    whole, all_steps = tree(target), steps.done
    count = {"killed": 0, "finished": 0}
    while count["killed"] < kills:
        shutil.rmtree(stage)
        for _ in range(3):
            child = os.fork()
            if child == 0:
                steps.last = steps.done + chance.randint(1, all_steps)
                ingest()
                os._exit(0)
            chance.random()  # the next child draws another number
            count["killed"] += os.waitpid(child, 0)[1] == signal.SIGKILL
            if target.exists():
                with Store.open(target) as store:
                    assert store.verify() == []
                break
        done = target.exists()
        try:  # given once more, the command finishes what is not done and cleans up what is
            ingest()
        except StoreExistsError:
            if not done:
                raise
        assert tree(target) == whole
        assert leftovers(stage) == []
        count["finished"] += 1
    return count


def run(folder: Path, kills: int, seed: int, kind: str = "llama") -> dict[str, int]:
    """In a process of its own, which forks what it kills."""
    model = checkpoint(kind, folder / "model")
    command = [sys.executable, __file__, str(model), str(folder), str(kills), str(seed)]
    env = environment(TOKENIZERS_PARALLELISM="false")
    done = subprocess.run(command, check=True, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
    found: dict[str, int] = json.loads(done.stdout)
    return found


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["llama", "falcon_h1"])
def test_a_killed_ingest_goes_on_to_the_same_bytes(kind: str, tmp_path: Path) -> None:
    """Also where layers keep a state, which a chunk must leave to the next."""
    count = run(tmp_path, 3, 1, kind)
    assert count["killed"] >= 3


def test_what_a_run_left_that_was_killed_when_its_store_was_there_goes(tmp_path: Path) -> None:
    model = checkpoint("llama", tmp_path / "model")
    reader = load_reader(str(model), device="cpu")
    stage = tmp_path / "stage"
    report(stage, model, log(1), reader=reader)
    places = Places(stage / "log.sekv")
    places.done.mkdir()
    places.lock.touch()
    with pytest.raises(StoreExistsError):
        report(stage, model, log(1), reader=reader)
    assert leftovers(stage) == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_fifty_kills_of_a_real_ingest_leave_whole_stores(tmp_path: Path) -> None:
    """The long run; `-s` shows how often it was killed and how many stores came of it."""
    count = run(tmp_path, 50, seed=2)
    print(count)
    assert count["killed"] >= 50


if __name__ == "__main__":
    print(json.dumps(kill_often(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))))
