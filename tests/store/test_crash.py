"""A store survives anything: killed, full disks, broken disks, power cuts, at every instant.

Whatever happens, the name shows no store, the old store or the new store, each whole to the byte;
the same command then finishes, in the same bytes, computing again at most one chunk per accident.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import toy_store as toy
from breaking_disks import PowerCut, PowerDisk, SteppedDisk
from engine.errors import StoreError
from engine.store.disk import Disk
from engine.store.reader import Store
from repository import ROOT, environment

TARGET = "toy.sekv"
OLD_SEED, NEW_SEED = 1, 0
PUBLISHING = 35
"""Steps on the disk from the manifest's first byte to the end, and a few before."""

Files = dict[str, bytes]


# -- what is being done when the accident happens


@dataclass(frozen=True)
class Work:
    """A command, and what stands under the name before it."""

    name: str
    prepare: Callable[[Path], object]
    command: Callable[..., object]

    def __call__(self, target: Path, disk: Disk | None = None, on_chunk: Any = None) -> None:
        self.command(target, disk=disk, on_chunk=on_chunk)


def nothing(target: Path) -> None:
    pass


def old_store(target: Path) -> None:
    toy.ingest(target, seed=OLD_SEED, windows=1, disk=SteppedDisk())


def short_store(target: Path) -> None:
    toy.ingest(target, seed=NEW_SEED, windows=1, disk=SteppedDisk())


def partly_read_store(target: Path) -> None:
    toy.ingest(target, seed=NEW_SEED, windows=3, only=[0], disk=SteppedDisk())


def fresh(target: Path, **more: Any) -> None:
    toy.ingest(target, seed=NEW_SEED, **more)


def overwrite(target: Path, **more: Any) -> None:
    toy.ingest(target, seed=NEW_SEED, overwrite=True, **more)


def append(target: Path, **more: Any) -> None:
    toy.append(target, seed=NEW_SEED, windows=2, **more)


def read_more(target: Path, **more: Any) -> None:
    toy.append(target, seed=NEW_SEED, windows=3, only=[2], **more)


WORKS = [
    Work("fresh", nothing, fresh),
    Work("overwrite", old_store, overwrite),
    Work("append", short_store, append),
    Work("read more", partly_read_store, read_more),
]
BY_NAME = {work.name: work for work in WORKS}
CHUNKS = {
    "fresh": 2 * toy.CHUNKS,
    "overwrite": 2 * toy.CHUNKS,
    "append": toy.CHUNKS,
    "read more": toy.CHUNKS,
}

works = pytest.mark.parametrize("work", WORKS, ids=lambda work: work.name)
exchanges = pytest.mark.parametrize("exchanges", [True, False], ids=["exchange", "two renames"])


@dataclass
class Scene:
    """A folder in which accidents happen again and again to the same work."""

    folder: Path
    work: Work
    new: Files = field(default_factory=dict)
    old: Files = field(default_factory=dict)
    computed: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        reference = self.folder / "reference" / TARGET
        reference.parent.mkdir()
        self.work.prepare(reference)
        if reference.exists():
            shutil.copytree(reference, self.folder / "old")
        self.old = toy.tree(reference)
        self.work(reference, disk=SteppedDisk())
        self.new = toy.tree(reference)
        assert self.old != self.new

    @property
    def target(self) -> Path:
        return self.folder / "stage" / TARGET

    @property
    def journal(self) -> Path:
        return self.target.with_name(f".{TARGET}.work") / "journal"

    def on_chunk(self, window: int, chunk: int) -> None:
        self.computed.append((window, chunk))

    def begin(self) -> None:
        """Everything as it was before the command."""
        Disk().remove_tree(self.target.parent)
        self.target.parent.mkdir()
        if self.old:
            shutil.copytree(self.folder / "old", self.target)
        self.computed.clear()

    def accidents(self, exchanges: bool, every: int = 1, first: int = 0) -> Iterator[int]:
        """The steps of the command on the disk, each with everything as it was before.

        The publishing, last, is where stores could break: of those steps none is left out, of
        the others all but each `every`th are, counted from `first`.
        """
        self.begin()
        disk = SteppedDisk(exchanges=exchanges)
        self.work(self.target, disk=disk)
        assert toy.tree(self.target) == self.new
        for at in range(1, disk.steps + 1):
            if at % every == first % every or at > disk.steps - PUBLISHING:
                self.begin()
                yield at

    @property
    def through(self) -> bool:
        """Whether the command came to its end: its store has the name, its journal is gone."""
        if not self.target.exists() or self.journal.exists():
            return False
        return toy.tree(self.target) == self.new

    def check_whole(self) -> None:
        """The name shows nothing, the old store or the new one; opening it puts it right."""
        try:
            with Store.open(self.target) as store:
                assert store.verify() == []
        except StoreError as error:
            problem = str(error)
        else:
            assert toy.tree(self.target) in (self.old, self.new)
            return
        assert not self.old, f"the old store is gone: {problem}"
        assert not self.target.exists(), problem

    def finish(self, accidents: int, exchanges: bool = True) -> None:
        """The same command again, without accident: the same bytes, little computed twice."""
        through = self.through
        if through:  # then the command is not resumed but given once more
            self.computed.clear()
        problem = ""
        try:
            self.work(
                self.target,
                disk=SteppedDisk(exchanges=exchanges),
                on_chunk=self.on_chunk,
            )
        except StoreError as error:
            problem = str(error)
        assert not problem or (through and "exists" in problem)
        assert toy.tree(self.target) == self.new
        assert sorted(path.name for path in self.target.parent.iterdir()) == [TARGET]
        assert len(self.computed) <= CHUNKS[self.work.name] + accidents


@pytest.fixture
def scene(work: Work) -> Iterator[Scene]:
    """In memory where there is such a folder: thousands of accidents would wear a disk."""
    memory = Path("/dev/shm")
    place = memory if memory.is_dir() and os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="sekv-crash-", dir=place) as folder:
        yield Scene(Path(folder), work)


@pytest.fixture
def scene_on_disk(tmp_path: Path, work: Work) -> Scene:
    return Scene(tmp_path, work)


# -- disks that refuse


def refuse(code: int) -> Callable[[], None]:
    def happen() -> None:
        raise OSError(code, os.strerror(code))

    return happen


def check_refusals(scene: Scene, exchanges: bool, codes: list[int], **which: int) -> None:
    """One step fails once; one line says what to do; the same command then finishes."""
    for at in scene.accidents(exchanges, **which):
        for code in codes[at % 2 :][:1]:
            disk = SteppedDisk(at, refuse(code), exchanges=exchanges)
            with pytest.raises(StoreError) as caught:
                scene.work(scene.target, disk=disk, on_chunk=scene.on_chunk)
            assert "\n" not in str(caught.value)
            assert os.strerror(code) in str(caught.value)
            assert "run the same command again" in str(caught.value)
            scene.check_whole()
            scene.finish(accidents=1, exchanges=exchanges)


@works
def test_a_disk_that_refuses_any_one_step_leaves_whole_stores(scene: Scene) -> None:
    """Every write, fsync, rename, link and removal: half of them are full, half are broken."""
    every = 1 if scene.work.name == "fresh" else 15
    check_refusals(scene, True, [errno.ENOSPC, errno.EIO], every=every)


@works
def test_a_disk_without_exchange_that_refuses_a_step_leaves_whole_stores(scene: Scene) -> None:
    check_refusals(scene, False, [errno.EIO, errno.ENOSPC], every=30)


@works
def test_a_disk_that_stays_full_leaves_whole_stores(scene: Scene) -> None:
    """From some step on everything fails, cleaning up included."""
    for at in scene.accidents(exchanges=True, every=30, first=1):
        disk = SteppedDisk(at, refuse(errno.ENOSPC), lasting=True)
        with pytest.raises(StoreError, match="No space left"):
            scene.work(scene.target, disk=disk, on_chunk=scene.on_chunk)
        scene.check_whole()
        scene.finish(accidents=1)


# -- power cuts


def cut_power(scene: Scene, exchanges: bool, **which: int) -> None:
    chance = random.Random(0)
    for at in scene.accidents(exchanges, **which):
        disk = PowerDisk(at, scene.folder / f"attic-{at}", exchanges)
        try:
            scene.work(scene.target, disk=disk, on_chunk=scene.on_chunk)
        except PowerCut:
            disk.lose(scene.target.parent, chance)
        scene.check_whole()
        scene.finish(accidents=1, exchanges=exchanges)


@works
@exchanges
def test_a_power_cut_at_any_step_leaves_whole_stores(scene: Scene, exchanges: bool) -> None:
    """Whatever was not synced may be lost, and still nothing half-made is ever shown."""
    cut_power(scene, exchanges, every=30, first=2 + exchanges)


# -- kill -9, for real


class Kills:
    """Processes that run a command and are killed.

    One server process imports everything once and forks a child per run; it kills only children
    that it has not waited for, so never a stranger.
    """

    def __init__(self) -> None:
        self.server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment(),
        )
        self.ask({"hello": True})

    def ask(self, order: dict[str, Any]) -> int:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(json.dumps(order) + "\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())

    def run(self, scene: Scene, **order: Any) -> int:
        """Run the command of a scene; the wait status of its process: 0, or killed."""
        log = scene.folder / "computed"
        log.touch()
        status = self.ask(
            {"work": scene.work.name, "target": str(scene.target), "log": str(log), **order}
        )
        assert status == 0 or os.WTERMSIG(status) == signal.SIGKILL
        scene.computed += log.read_text().split()
        log.unlink()
        return status

    def close(self) -> None:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.close()
        self.server.wait()
        self.server.stdout.close()


@pytest.fixture(scope="module")
def kills() -> Iterator[Kills]:
    server = Kills()
    yield server
    server.close()


def kill_at_steps(scene: Scene, exchanges: bool, kills: Kills, **which: int) -> None:
    for at in scene.accidents(exchanges, **which):
        assert kills.run(scene, at=at, exchanges=exchanges) != 0
        scene.check_whole()
        scene.finish(accidents=1, exchanges=exchanges)


@works
def test_a_kill_at_a_step_leaves_whole_stores(scene: Scene, kills: Kills) -> None:
    """SIGKILL between any two steps on the disk, half-way through writes included."""
    kill_at_steps(scene, True, kills, every=30, first=4)


def kill_at_random(scene: Scene, kills: Kills, instants: int, seed: int) -> dict[str, int]:
    """Kill the command at random instants until so many hit; finish it in between by chance."""
    chance = random.Random(seed)
    usual = 1e9
    for _ in range(3):
        scene.begin()
        begun = time.perf_counter()
        assert kills.run(scene, real=True) == 0
        usual = min(usual, time.perf_counter() - begun)
    count = {"killed": 0, "finished": 0}
    while count["killed"] < instants:
        scene.begin()
        accidents = 0
        status = 1
        while status and accidents < 3 and not scene.through:
            status = kills.run(scene, real=True, delay=chance.uniform(0, usual))
            accidents += status != 0
            scene.check_whole()
        scene.finish(accidents)
        count["killed"] += accidents
        count["finished"] += 1
    return count


@works
def test_kills_at_random_instants_leave_whole_stores(scene_on_disk: Scene, kills: Kills) -> None:
    """17 random instants for each of three commands: more than 50 kills, 0 broken stores."""
    assert kill_at_random(scene_on_disk, kills, 17, seed=1)["killed"] >= 17


@pytest.mark.slow
@pytest.mark.timeout(3600)
@works
def test_many_kills_at_random_instants_leave_whole_stores(
    scene_on_disk: Scene, kills: Kills
) -> None:
    """The long run: 170 random instants for each of three commands."""
    print(scene_on_disk.work.name, kill_at_random(scene_on_disk, kills, 170, seed=2))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@works
@exchanges
def test_every_accident_at_every_step_leaves_whole_stores(
    scene: Scene, exchanges: bool, kills: Kills
) -> None:
    """What the tests above sample, without leaving out a step."""
    for code in (errno.ENOSPC, errno.EIO):
        check_refusals(scene, exchanges, [code, code], every=1)
    cut_power(scene, exchanges, every=1)
    kill_at_steps(scene, exchanges, kills, every=1)


def serve() -> None:
    """The server of `Kills`: an order per line in, a wait status per line out."""
    for line in sys.stdin:
        order = json.loads(line)
        if "hello" in order:
            print(0, flush=True)
            continue
        child = os.fork()
        if child == 0:
            obey(order)
        if "delay" in order:
            time.sleep(order["delay"])
            os.kill(child, signal.SIGKILL)
        print(os.waitpid(child, 0)[1], flush=True)


def obey(order: dict[str, Any]) -> None:
    """Run one command in this process, which ends here."""
    log = os.open(order["log"], os.O_WRONLY | os.O_APPEND)

    def on_chunk(window: int, chunk: int) -> None:
        os.write(log, f"{window}-{chunk}\n".encode())

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    disk = Disk() if "real" in order else SteppedDisk(order["at"], die)
    if isinstance(disk, SteppedDisk):
        disk.exchanges = order["exchanges"]
    status = 1
    try:
        BY_NAME[order["work"]](Path(order["target"]), disk=disk, on_chunk=on_chunk)
        status = 0
    except StoreError as error:
        status = 0 if "exists" in str(error) else 1
        print(error, file=sys.stderr)
    finally:
        if status:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    import torch  # noqa: F401  (once, before any child)

    serve()
