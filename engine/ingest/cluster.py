"""Many documents through a Dask cluster: one task a document, wherever its workers are.

All workers see the sources and the library under the same paths, as on a shared file system. A task
whose worker died is given to another one by the scheduler, and goes on from the finished windows.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import distributed

from engine.errors import LibraryError, SekvError
from engine.ingest.tasks import ENDS, FAILED, STOP, Desk, Event, Task, Tell
from engine.object_storage import Address, address
from engine.types import IngestOptions

CONNECT_SECONDS = 10

TRIES = 3
"""Times that a document is begun again after its task failed on a worker."""

_DESK = "sekv_desk"
_ONE_AT_A_TIME = threading.Lock()
"""A worker process reads one document at a time, however many threads it has."""


def run(
    tasks: Sequence[Task],
    library: Address,
    options: IngestOptions,
    address: str,
    tell: Tell,
    lease: float,
) -> None:
    """Do all tasks on the workers of the scheduler at this address; this thread calls `tell`.

    A device that is named cuda asks for a worker with the resource `GPU`, one for each document.
    It ends early after an event STOP.

    Raises:
        LibraryError: no scheduler answers.
    """
    try:
        client = distributed.Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise LibraryError(
            f"no Dask scheduler answers at {address} ({type(error).__name__}); start one with: "
            "dask scheduler"
        ) from None
    setup = {"options": asdict(options), "lease": lease, "folder": str(Path.cwd())}
    heard: queue.SimpleQueue[Event] = queue.SimpleQueue()
    topic = f"sekv-{uuid.uuid4().hex}"
    with client:
        client.subscribe_topic(topic, lambda said: heard.put(Event(**said[1]["event"])))
        resources = {"GPU": 1} if options.device.startswith("cuda") else None
        futures = {}
        for task in tasks:
            future = client.submit(
                read_document,
                asdict(task),
                str(library),
                setup,
                topic,
                key=f"{topic}-{task.number}",
                retries=TRIES,
                resources=resources,
                pure=False,
            )
            futures[task.number] = future
            future.add_done_callback(
                lambda done, number=task.number: heard.put(_outcome(number, done))
            )
        left = set(futures)
        while left:
            event = heard.get()
            tell(event)
            if event.kind == STOP:
                client.cancel(list(futures.values()))
                return
            if event.kind in ENDS:
                left.discard(event.number)


def read_document(task: dict[str, Any], library: str, setup: dict[str, Any], topic: str) -> Any:
    """Read one document on the worker that this runs on.

    Returns the event that ended it, as a table of plain values; what happens before is published
    under the topic.
    """
    worker = distributed.get_worker()
    ended: list[Event] = []

    def tell(event: Event) -> None:
        if event.kind in ENDS:
            ended.append(event)
        else:
            worker.log_event(topic, {"event": asdict(event)})

    with _ONE_AT_A_TIME, contextlib.chdir(setup["folder"]):
        try:
            desk = _desk(worker, library, setup)
        except SekvError as error:  # no other document can be read either
            return asdict(Event(-1, STOP, text=str(error), code=error.code))
        desk.read(Task(**task), tell)
    return asdict(ended[0])


def _desk(worker: Any, library: str, setup: dict[str, Any]) -> Desk:
    """The desk of this worker process, set up once for all documents of a run."""
    held = getattr(worker, _DESK, None)
    if held is not None and held[0] == (library, setup):
        found: Desk = held[1]
        return found
    reader = None
    if held is not None:
        held[1].__exit__(None, None, None)
        if held[0][1]["options"] == setup["options"]:
            reader = held[1].reader
    options = IngestOptions(**setup["options"])
    place = address(library)
    place = place.absolute() if isinstance(place, Path) else place
    desk = Desk(place, options, reader, setup["lease"])
    desk.__enter__()
    setattr(worker, _DESK, ((library, setup), desk))
    return desk


def _outcome(number: int, future: Any) -> Event:
    """The event that ended a task, whatever became of it."""
    if future.status == "finished":
        return Event(**future.result())
    if future.status == "cancelled":
        return Event(-1, STOP, text="the Dask scheduler went away; run the same command to go on")
    error = future.exception()
    said = " ".join(str(error).split()) or type(error).__name__
    return Event(number, FAILED, text=f"its worker failed: {said[:300]}", code="worker")
