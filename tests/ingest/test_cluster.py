"""Documents through a real Dask cluster: a scheduler and two workers, each a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.errors import LibraryError
from engine.ingest.library import ingest_library
from engine.models.reader import Reader
from engine.store.folders import stores_below
from engine.store.reader import read_manifest
from engine.types import IngestOptions, LibraryOptions, LibraryReport, LibraryStatus
from library_command import WINDOW, Begun, start
from repository import COLLECTION, environment
from tiny_books import log
from toy_store import leftovers, tree

distributed = pytest.importorskip("distributed")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600), pytest.mark.filterwarnings("default")]

DOCUMENTS = int(os.environ.get("SEKV_CLUSTER_DOCUMENTS", "24"))


class Told:
    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.kill: subprocess.Popen[str] | None = None

    def status(self, status: LibraryStatus) -> None:
        self.tokens.append(status.tokens)
        if self.kill is not None and status.tokens > 300:
            self.kill.send_signal(signal.SIGKILL)
            self.kill = None

    def note(self, line: str) -> None: ...


class Cluster:
    """A scheduler on a free port of loopback, and two workers without nannies."""

    def __init__(self, env: dict[str, str]) -> None:
        """env: what the workers inherit."""
        self._env = environment(OMP_NUM_THREADS="1")
        self._scheduler = self._start("scheduler", "--host", "127.0.0.1", "--port", "0")
        said = ""
        assert self._scheduler.stderr is not None
        while "Scheduler at:" not in said:
            said = self._scheduler.stderr.readline()
        found = re.search(r"tcp://\S+", said)
        assert found is not None
        self.address, self._env = found.group(), env
        self.workers = [self._worker() for _ in range(2)]

    def _worker(self) -> subprocess.Popen[str]:
        return self._start(
            "worker", self.address, "--no-nanny", "--nthreads", "1", "--no-dashboard", quiet=True
        )

    def _start(self, *line: str, quiet: bool = False) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "distributed.cli.dask_" + line[0], *line[1:]],
            stderr=subprocess.DEVNULL if quiet else subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            env=self._env,
            cwd="/",
        )

    def end(self) -> None:
        for process in (*self.workers, self._scheduler):
            process.kill()
            process.wait()
        if self._scheduler.stderr is not None:
            self._scheduler.stderr.close()


@pytest.fixture
def begun(tmp_path: Path) -> Begun:
    return Begun(tmp_path)


@pytest.fixture
def cluster(begun: Begun) -> Iterator[Cluster]:
    made = Cluster(begun.environment())
    yield made
    made.end()


def documents(folder: Path) -> Path:
    """Small documents, of 2 to 8 windows: parts of the books of the collection, where it is here,
    else ships' logs. The first one is the longest."""
    folder.mkdir()
    books = [path.read_text("utf-8", "ignore") for path in sorted(COLLECTION.glob("books/*.txt"))]
    for number in range(DOCUMENTS):
        windows = 8 if number == 0 else 2 + number % 3
        text = f"Ship number {number}.\n" + log(3 * windows)
        if books:
            book = books[number % len(books)]
            text = book[len(book) // 3 + 2000 * (number // len(books)) :][: WINDOW * windows]
        (folder / f"part{number:03d}.txt").write_text(text)
    return folder


def run(source: Path, library: Path, model: Path, told: Told, **more: Any) -> LibraryReport:
    options = IngestOptions(model=str(model), window=WINDOW, chunk_tokens=32)
    reader = more.pop("reader", None)
    return ingest_library([str(source)], library, options, LibraryOptions(**more), told, reader)


def same(one: Path, other: Path) -> None:
    names = [store.relative_to(one) for store in stores_below(one)]
    assert len(names) == DOCUMENTS
    for name in names:
        assert tree(one / name) == tree(other / name)


def test_a_cluster_makes_the_stores_that_one_process_makes(
    cluster: Cluster, tmp_path: Path, model: Path, reader: Reader
) -> None:
    source, told = documents(tmp_path / "source"), Told()
    report = run(source, tmp_path / "library", model, told, cluster=cluster.address)
    assert len(report.of("read")) == DOCUMENTS
    assert told.tokens[-1] == sum(len(path.read_bytes()) for path in source.iterdir())
    run(source, tmp_path / "one", model, Told(), reader=reader)
    same(tmp_path / "one", tmp_path / "library")
    again = run(source, tmp_path / "library", model, Told(), cluster=cluster.address)
    assert len(again.of("unchanged")) == DOCUMENTS


def test_a_killed_worker_s_document_is_gone_on_with_by_another(
    cluster: Cluster, tmp_path: Path, model: Path, reader: Reader
) -> None:
    source, told = documents(tmp_path / "source"), Told()
    told.kill = cluster.workers[0]
    report = run(source, tmp_path / "library", model, told, cluster=cluster.address, lease=5.0)
    assert cluster.workers[0].wait(60) == -signal.SIGKILL
    assert len(report.of("read")) == DOCUMENTS
    run(source, tmp_path / "one", model, Told(), reader=reader)
    same(tmp_path / "one", tmp_path / "library")
    assert leftovers(tmp_path / "library") == [".sekv-library.sqlite"]


def interrupted(running: subprocess.Popen[str], tokens: int, worker: Any = None) -> None:
    """Kill a command that has read so many tokens, and a worker half way there."""
    with running:
        assert running.stdout is not None
        for line in running.stdout:
            assert not line.startswith("states"), "it ended before it was killed"
            done = int(line.split()[0])
            if worker is not None and 2 * done > tokens:
                worker.kill()
                worker = None
            if done > tokens:
                break
        running.kill()


def states(running: subprocess.Popen[str]) -> dict[str, int]:
    """How many documents ended how, once a command is done."""
    (last,) = [line for line in running.communicate()[0].splitlines() if line.startswith("states")]
    return Counter(last.split()[1:])


def test_one_process_two_and_a_cluster_make_the_same_stores_whoever_is_killed(
    cluster: Cluster, begun: Begun, tmp_path: Path, model: Path, reader: Reader
) -> None:
    """Commands and a worker are killed on the way; each costs at most the window it was reading.
    Prints how many windows were begun again."""
    source = documents(tmp_path / "source")
    tokens = sum(len(path.read_text()) for path in source.iterdir())
    run(source, tmp_path / "one", model, Told(), reader=reader)
    windows = sum(len(read_manifest(store).windows) for store in stores_below(tmp_path / "one"))
    again = {}
    for name, place in (("two processes", ""), ("a cluster", cluster.address)):
        library = tmp_path / name.split()[-1]
        before = len(begun.windows())
        line: dict[str, Any] = {"jobs": 2, "cluster": place, "env": begun.environment()}
        victim = cluster.workers[0] if place else None
        interrupted(start(source, library, model, **line), tokens // 3, victim)
        interrupted(start(source, library, model, **line), tokens // 3)
        assert set(states(start(source, library, model, **line))) == {"read", "unchanged"}
        same(tmp_path / "one", library)
        assert leftovers(library) == [".sekv-library.sqlite"]
        again[name] = len(begun.windows()) - before - windows
    row = {"documents": DOCUMENTS, "tokens": tokens, "windows": windows, "begun_again": again}
    print(json.dumps(row))
    assert 0 <= again["two processes"] <= 4  # two workers die with each of two commands
    assert 0 <= again["a cluster"] <= 1  # its workers outlive the commands


def test_an_address_nobody_answers_at_is_one_line(tmp_path: Path, model: Path) -> None:
    source = documents(tmp_path / "source")
    with pytest.raises(LibraryError, match="no Dask scheduler answers") as caught:
        run(source, tmp_path / "library", model, Told(), cluster="tcp://127.0.0.1:9")
    assert "\n" not in str(caught.value)
