"""One question on its way: the worker's pieces come in, events or one object go out.

Who asked is answered at once when the time is over or the server ends, whether or not the worker
has come to the point at which it stops.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from engine.errors import (
    BudgetError,
    ObjectStorageError,
    OptionError,
    QuestionError,
    SekvError,
    StoppedError,
    StoreError,
)
from engine.types import UNSUPPORTED
from sekv_cli.server import wire
from sekv_cli.server.guard import is_own_socket
from sekv_cli.server.replies import JsonReply, event, refusal, remark
from sekv_cli.server.warm import ServedAnswer, Warm


@dataclass(frozen=True)
class ServerLimits:
    """seconds: of one question, waiting included. tokens: of one answer."""

    seconds: float
    tokens: int


class _End(Enum):
    """Why no more pieces come."""

    DONE = "done"
    LATE = "late"
    CLOSING = "closing"


@dataclass(frozen=True)
class _Note:
    """A remark on what is done before an answer begins."""

    line: str


class Underway:
    """The questions on their way, which all end with the server."""

    def __init__(self) -> None:
        self._all: set[Answering] = set()
        self.ending = False

    def add(self, answering: Answering) -> None:
        self._all.add(answering)

    def remove(self, answering: Answering) -> None:
        self._all.discard(answering)

    def end(self) -> None:
        """Answer whoever waits still that the server ends. Call on the event loop."""
        self.ending = True
        for answering in list(self._all):
            answering.give_up(_End.CLOSING)


class Answering:
    """One question, from its request to the end of its response."""

    def __init__(
        self, warm: Warm, asked: wire.Request, limits: ServerLimits, underway: Underway
    ) -> None:
        """Queue the question.

        Raises:
            ServeError: too many are waiting, or the server is about to end.
        """
        loop = asyncio.get_running_loop()
        self.asked, self._underway = asked, underway
        self._number, self._created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
        self._stopped = threading.Event()
        self._pieces: asyncio.Queue[str | _Note | _End] = asyncio.Queue()

        def put(piece: str | _Note) -> None:
            with contextlib.suppress(RuntimeError):  # the server ended under the worker's hands
                loop.call_soon_threadsafe(self._pieces.put_nowait, piece)

        future = warm.submit(asked, put, self._stopped.is_set, lambda line: put(_Note(line)))
        self._future: asyncio.Future[ServedAnswer] = asyncio.wrap_future(future)
        self._future.add_done_callback(self._done)
        self._timer = loop.call_later(limits.seconds, self.give_up, _End.LATE)
        underway.add(self)

    def give_up(self, why: _End) -> None:
        """Tell the worker to stop and whoever waits that no more comes."""
        self._stopped.set()
        self._pieces.put_nowait(why)

    async def respond(self, request: Request) -> Response:
        """The answer, or as a stream from the first piece on; a failure before it has its code."""
        watching = asyncio.create_task(self._watch(request))
        streaming = False
        try:
            own = is_own_socket(request.scope)
            item = await self._pieces.get()
            while not isinstance(item, _End) and not (self.asked.stream and self._tells(item, own)):
                item = await self._pieces.get()
            failure = self._failure(item, own=own)
            if failure is not None:
                return refusal(failure.status, str(failure), failure.param, failure.code)
            streaming = self.asked.stream
            if streaming:
                return _Stream(self, self._events(item, own))
            served = self._future.result()
            return JsonReply(
                wire.completion(
                    self._number, self._created, self.asked, served.answer, served.trace
                )
            )
        finally:
            watching.cancel()
            if not streaming:
                self.close()

    async def _watch(self, request: Request) -> None:
        """Give up when whoever asked is gone."""
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self._stopped.set()

    def _tells(self, item: str | _Note | _End, own: bool) -> bool:
        """Whether something is for who asked. own: the server's own user, who alone is told what is
        read for the answer: it may name files."""
        return own or not isinstance(item, _Note)

    async def _events(self, item: str | _Note | _End, own: bool) -> AsyncIterator[bytes]:
        def chunk(delta: Any, reason: str | None = None, **more: Any) -> bytes:
            made = wire.chunk(self._number, self._created, self.asked, delta, reason, **more)
            return event(made)

        yield chunk({"role": "assistant", "content": ""})
        shown = ""
        while not isinstance(item, _End):
            if isinstance(item, str):
                shown += item
                yield chunk({"content": item})
            elif own:
                yield remark(item.line)
            item = await self._pieces.get()
        failure = self._failure(item, own=False)
        if failure is not None:
            yield event(wire.failure(failure.status, str(failure), failure.param, failure.code))
            return
        served = self._future.result()
        answer = served.answer
        if not shown and answer.stated:  # said as a whole, such as that nothing is stated
            yield chunk({"content": answer.stated})
        part = wire.own_part(self.asked, answer, served.trace)
        # What was shown while it was made may turn out to have no support.
        late = {} if answer.supported or not shown else {"content": f"\n{UNSUPPORTED}"}
        yield chunk(late, wire.finish(answer), sekv=part)
        if self.asked.with_usage:
            yield chunk(None, usage=wire.usage(answer))
        yield b"data: [DONE]\n\n"

    def _done(self, future: asyncio.Future[ServedAnswer]) -> None:
        if not future.cancelled():
            future.exception()  # looked at, also when nobody waits for the answer any more
        self._pieces.put_nowait(_End.DONE)

    def close(self) -> None:
        """Nobody waits any more, or everything is said."""
        self._stopped.set()
        self._timer.cancel()
        self._underway.remove(self)

    def _failure(self, item: str | _Note | _End, *, own: bool) -> wire.RefusedError | None:
        """What went wrong by the time this came, None if nothing did.

        own: whether the server's own user asked, who may be told names of files.
        """
        if not isinstance(item, _End):
            return None
        if item is _End.LATE:
            return wire.RefusedError(504, "the answer took longer than this server allows")
        if item is _End.CLOSING or self._future.cancelled():
            return wire.RefusedError(503, "the server is about to end")
        error = self._future.exception()
        if error is None:
            return None
        if not isinstance(error, SekvError):
            raise error
        return self._blame(error, own)

    def _blame(self, error: SekvError, own: bool) -> wire.RefusedError:
        """Whose fault an error is: the request's, the store's or the server's."""
        if isinstance(error, OptionError):
            param = self.asked.param(error.option)
            return wire.RefusedError(400, f"{param}: {error.reason}", param, error.code)
        if isinstance(error, BudgetError):
            param = "messages" if isinstance(error, QuestionError) else "sekv.budget"
            return wire.RefusedError(400, str(error), param, error.code)
        if isinstance(error, StoppedError):
            return wire.RefusedError(503, "the answer was given up")
        reason = " ".join(str(error).split())
        print(f"sekv: {self.asked.store}: {reason}", file=sys.stderr, flush=True)
        if not own:  # names of files, and advice for whoever runs the server
            reason = f"{self.asked.store} cannot answer now; the server's stderr says why"
        return wire.RefusedError(
            503 if isinstance(error, StoreError | ObjectStorageError) else 500,
            reason,
            "",
            error.code,
        )


class _Stream(StreamingResponse):
    """The events of an answer, which is closed with its connection, begun or not."""

    def __init__(self, answering: Answering, events: AsyncIterator[bytes]) -> None:
        super().__init__(events, media_type="text/event-stream")
        self._answering = answering

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answering.close()
