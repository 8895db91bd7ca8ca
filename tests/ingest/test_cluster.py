"""Documents through a real Dask cluster: a scheduler and two workers, each a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.errors import LibraryError
from engine.ingest.library import ingest_library
from engine.models.reader import Reader
from engine.store.folders import stores_below
from engine.types import IngestOptions, LibraryOptions, LibraryReport, LibraryStatus
from repository import environment
from tiny_books import log
from toy_store import leftovers, tree

distributed = pytest.importorskip("distributed")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.filterwarnings("default")]

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

    def __init__(self) -> None:
        self._scheduler = self._start("scheduler", "--host", "127.0.0.1", "--port", "0")
        said = ""
        assert self._scheduler.stderr is not None
        while "Scheduler at:" not in said:
            said = self._scheduler.stderr.readline()
        found = re.search(r"tcp://\S+", said)
        assert found is not None
        self.address = found.group()
        self.workers = [self._worker() for _ in range(2)]

    def _worker(self) -> subprocess.Popen[str]:
        return self._start(
            "worker", self.address, "--no-nanny", "--nthreads", "1", "--no-dashboard", quiet=True
        )

    @staticmethod
    def _start(*line: str, quiet: bool = False) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "distributed.cli.dask_" + line[0], *line[1:]],
            stderr=subprocess.DEVNULL if quiet else subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            env=environment(OMP_NUM_THREADS="1"),
            cwd="/",
        )

    def end(self) -> None:
        for process in (*self.workers, self._scheduler):
            process.kill()
            process.wait()
        if self._scheduler.stderr is not None:
            self._scheduler.stderr.close()


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    yield made
    made.end()


def documents(folder: Path) -> Path:
    folder.mkdir()
    for number in range(DOCUMENTS):
        days = 12 if number == 0 else 2 + number % 3
        (folder / f"log{number:03d}.txt").write_text(f"Ship number {number}.\n" + log(days))
    return folder


def run(source: Path, library: Path, model: Path, told: Told, **more: Any) -> LibraryReport:
    options = IngestOptions(model=str(model), window=160, chunk_tokens=32)
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


def test_an_address_nobody_answers_at_is_one_line(tmp_path: Path, model: Path) -> None:
    source = documents(tmp_path / "source")
    with pytest.raises(LibraryError, match="no Dask scheduler answers") as caught:
        run(source, tmp_path / "library", model, Told(), cluster="tcp://127.0.0.1:9")
    assert "\n" not in str(caught.value)
