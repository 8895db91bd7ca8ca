"""A client of an ASGI application without sockets, and a worker that answers when told to. Not a
test itself."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.types import Answer, MemoryUse, Usage
from sekv_cli.server import wire
from sekv_cli.server.warm import ServedAnswer, StoreFacts

JSON = {"Content-Type": "application/json", "Host": "localhost"}


def question(text: str = "Who?", **more: Any) -> dict[str, Any]:
    """The body of a request."""
    return {"model": "book", "messages": [{"role": "user", "content": text}], **more}


@dataclass
class Exchange:
    """One request and what came back of it. gone: set to hang up."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        return self.json["error"]


async def exchange(
    app: Any,
    body: Any,
    headers: dict[str, str] = JSON,
    *,
    own: bool = False,
    path: str = "/v1/chat/completions",
    received: Exchange | None = None,
) -> Exchange:
    """Send one request; body: bytes as they are, None for a GET, anything else as JSON."""
    received = received or Exchange()
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    sent = False

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": data, "more_body": False}
        await received.gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            received.status = message["status"]
            received.headers = {k.decode(): v.decode() for k, v in message["headers"]}
        else:
            received.body += message.get("body", b"")

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET" if body is None else "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "headers": [(k.lower().encode(), v.encode("latin-1")) for k, v in headers.items()],
        "server": ("/run/sekv.sock", None) if own else ("127.0.0.1", 1),
        "client": None,
    }
    await app(scope, receive, send)
    return received


class Worker:
    """In the place of `Warm`: answers at once, fails with `failure`, or computes until it is asked
    to stop and `go_on` is set: what a worker in the middle of a long forward is like."""

    def __init__(self, *, busy: bool = False, failure: BaseException | None = None) -> None:
        self.stores = ["book"]
        self.waiting = 0
        self.asked: list[wire.Request] = []
        self.busy, self.failure = busy, failure
        self.go_on, self.saw_stop = threading.Event(), threading.Event()

    def submit(
        self,
        asked: wire.Request,
        on_text: Callable[[str], None],
        stop: Callable[[], bool],
        on_note: Callable[[str], None] | None = None,
    ) -> Future[ServedAnswer]:
        self.asked.append(asked)
        future: Future[ServedAnswer] = Future()
        future.set_running_or_notify_cancel()
        threading.Thread(target=self._work, args=(asked, on_text, stop, future)).start()
        return future

    def _work(self, asked: Any, on_text: Any, stop: Any, future: Future[ServedAnswer]) -> None:
        on_text("An")
        if self.busy:
            self.go_on.wait(60)
            if stop():
                self.saw_stop.set()
        if self.failure is not None:
            future.set_exception(self.failure)
            return
        on_text("a")
        memory, usage = MemoryUse(1, 9, 1, 2, 0), Usage(9, 0, 3, 2)
        answer = Answer(asked.question, "Ana", (), usage, memory, {"total_s": 0.5})
        future.set_result(ServedAnswer(answer, {}))

    def facts(self, name: str) -> StoreFacts | None:
        return StoreFacts("reader", "sekv", 300, 100)

    def held(self) -> list[dict[str, str]]:
        path = str(Path("/secret/place/book.sekv"))
        return [{"name": "book", "path": path, "fingerprint": "ab"}]
