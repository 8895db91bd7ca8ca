"""Many documents through several processes of this machine, each with the model loaded once.

A worker is `python -m engine.ingest.processes`. Tasks go in through its stdin and events come out
of its stdout, one JSON object a line. It ends when its stdin does, so that it never outlives
whoever started it. A document whose worker died is given to a new one, which goes on from its
finished windows; after some deaths it counts as failed.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict

from engine.errors import SekvError
from engine.ingest.tasks import ENDS, FAILED, STOP, Desk, Event, Task, Tell
from engine.object_storage import Address, address
from engine.types import LEASE, IngestOptions

TRIES = 3
"""Workers that one document may bring down."""


def run(
    tasks: Sequence[Task],
    library: Address,
    options: IngestOptions,
    jobs: int,
    tell: Tell,
    lease: float = LEASE,
) -> None:
    """Do all tasks with so many workers at a time; `tell` is called by this thread alone.

    It ends early after an event STOP.
    """
    waiting: queue.SimpleQueue[Task] = queue.SimpleQueue()
    for task in tasks:
        waiting.put(task)
    events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
    setup = {"library": str(library), "options": asdict(options), "lease": lease}
    jobs = min(jobs, len(tasks))
    threads = max(1, (os.cpu_count() or 1) // max(1, jobs))
    lanes = [_Lane(waiting, events.put, json.dumps(setup), threads) for _ in range(jobs)]
    running = len(lanes)
    try:
        for lane in lanes:
            lane.start()
        while running:
            event = events.get()
            if event is None:
                running -= 1
                continue
            tell(event)
            if event.kind == STOP:
                return
    finally:
        for lane in lanes:
            lane.end()


class _Lane(threading.Thread):
    """Takes tasks while there are any and has its worker do them."""

    def __init__(
        self,
        waiting: queue.SimpleQueue[Task],
        tell: Callable[[Event | None], None],
        setup: str,
        threads: int,
    ) -> None:
        """tell: gets every event, and None at the end."""
        super().__init__(name="sekv-lane", daemon=True)
        self._waiting, self._tell, self._setup, self._threads = waiting, tell, setup, threads
        self._lock = threading.Lock()
        self._worker: subprocess.Popen[str] | None = None
        self._over = False

    def end(self) -> None:
        """End the worker at once, whatever it does; what it finished is kept."""
        with self._lock:
            self._over = True
            if self._worker is not None:
                self._worker.kill()
        self.join()

    def run(self) -> None:
        try:
            while not self._over:
                self._do(self._waiting.get_nowait())
        except queue.Empty:
            pass
        finally:
            self._dismiss()
            self._tell(None)

    def _do(self, task: Task) -> None:
        for _ in range(TRIES):
            worker = self._hired()
            if worker is None or self._ask(worker, task):
                return
            how = _how(self._dismiss())
        self._tell(
            Event(
                task.number,
                FAILED,
                text=f"the process that read it ended {TRIES} times ({how}); what it finished is "
                "kept",
                code="worker",
            )
        )

    def _ask(self, worker: subprocess.Popen[str], task: Task) -> bool:
        """Have a task done; False where the worker died."""
        assert worker.stdin is not None
        assert worker.stdout is not None
        try:
            print(json.dumps(asdict(task)), file=worker.stdin, flush=True)
        except OSError:
            return False
        for line in worker.stdout:
            event = Event(**json.loads(line))
            self._tell(event)
            if event.kind in ENDS:
                self._over = self._over or event.kind == STOP
                return True
        return self._over

    def _hired(self) -> subprocess.Popen[str] | None:
        """The worker, started if there is none; None when all shall end."""
        with self._lock:
            if self._over or self._worker is not None:
                return None if self._over else self._worker
            threads = {"OMP_NUM_THREADS": str(self._threads)}
            self._worker = subprocess.Popen(
                [sys.executable, "-P", "-m", "engine.ingest.processes"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                env={**threads, **os.environ},
                start_new_session=True,  # Ctrl-C is for whoever started it to act on
            )
        assert self._worker.stdin is not None
        with contextlib.suppress(OSError):  # it died: whoever asks it next sees that
            print(self._setup, file=self._worker.stdin, flush=True)
        return self._worker

    def _dismiss(self) -> int:
        """Let the worker go. Returns its exit status."""
        worker, self._worker = self._worker, None
        if worker is None:
            return 0
        with contextlib.suppress(OSError):
            worker.communicate()
        return worker.returncode


def _how(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"code {status}"


def main() -> None:
    """A worker: the setup is the first line of stdin, each task another."""
    if os.environ.get("SEKV_DEBUG") != "1":
        warnings.simplefilter("ignore")
    told = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no event
    tasks: queue.SimpleQueue[str] = queue.SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            tasks.put(line)
        os._exit(0)  # whoever gave the tasks is gone, or has no more

    def tell(event: Event) -> None:
        print(json.dumps(asdict(event)), file=told, flush=True)

    setup = json.loads(sys.stdin.readline())
    threading.Thread(target=listen, daemon=True).start()
    options = IngestOptions(**setup["options"])
    try:
        with Desk(address(setup["library"]), options, lease=setup["lease"]) as desk:
            while True:
                desk.read(Task(**json.loads(tasks.get())), tell)
    except SekvError as error:
        tell(Event(-1, STOP, text=str(error), code=error.code))


if __name__ == "__main__":
    main()
