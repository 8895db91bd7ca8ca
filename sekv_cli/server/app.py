"""The HTTP side of a server: routes, who may ask, how long and how much.

An OpenAI-compatible endpoint: `/v1/models` (the stores), `/v1/chat/completions`, and `/health`.
Whoever comes through the user's own socket (`door`) needs no token; over TCP the token is asked
for where there is one, and without one only loopback names are answered, so that no web page can
reach the server under another name.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import re
import signal
import socket
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from engine.errors import BudgetError, SekvError, ServeError, StoppedError
from engine.types import UNSUPPORTED, AskOptions
from sekv_cli.server import wire
from sekv_cli.server.warm import Told, Warm

MOST_BYTES = 1 << 20
"""Of a request's body."""

READ_SECONDS = 10
"""In which a request's body must have arrived."""

LAST_SECONDS = 5
"""For answers under way when the server is told to end."""

IDLE_SECONDS = 75
"""For a connection on which nothing is asked; a client that pauses between questions keeps it, and
seldom meets the moment at which it is closed."""

LOOPBACK = re.compile(r"(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d+)?", re.IGNORECASE)


@dataclass(frozen=True)
class ServerLimits:
    """seconds: of one question, waiting included. tokens: of one answer."""

    seconds: float
    tokens: int


def build(warm: Warm, options: AskOptions, limits: ServerLimits, token: str = "") -> ASGIApp:
    """The application over loaded stores. token: "" asks for none."""
    names = list(warm.stores)
    started = int(time.time())

    def model(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": started, "owned_by": "sekv"}

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok", "waiting": warm.waiting})

    async def models(_: Request) -> Response:
        return JSONResponse({"object": "list", "data": [model(name) for name in names]})

    async def one_model(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in names:
            return _refusal(404, f"there is no model {name!r} here")
        return JSONResponse(model(name))

    async def stores(request: Request) -> Response:
        """For the user's own commands alone: which files are served."""
        if not _through_the_door(request.scope):
            return _refusal(404, "Not Found")
        return JSONResponse(
            [
                {"name": name, "path": str(path), "fingerprint": warm.fingerprint(name)}
                for name, path in warm.stores.items()
            ]
        )

    async def complete(request: Request) -> Response:
        try:
            body = await _body(request)
            asked = wire.parse(body, names, options, limits.tokens)
            answering = _Answering(warm, asked, limits)
        except wire.RefusedError as refused:
            return _refusal(refused.status, str(refused))
        except ServeError as busy:
            return _refusal(503, str(busy))
        return await answering.respond(request)

    async def not_found(_: Request, __: Exception) -> Response:
        return _refusal(404, "Not Found")

    async def wrong_method(_: Request, __: Exception) -> Response:
        return _refusal(405, "Method Not Allowed")

    return _Guard(
        Starlette(
            routes=[
                Route("/health", health),
                Route("/v1/models", models),
                Route("/v1/models/{name}", one_model),
                Route("/v1/chat/completions", complete, methods=["POST"]),
                Route("/sekv/stores", stores),
            ],
            exception_handlers={404: not_found, 405: wrong_method},
        ),
        token,
    )


class _Guard:
    """Lets in whoever came through the door, has the token, or where there is none is local."""

    def __init__(self, inner: ASGIApp, token: str) -> None:
        self._inner, self._token = inner, token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _through_the_door(scope):
            headers = Headers(scope=scope)
            given = headers.get("authorization", "").removeprefix("Bearer ").encode()
            if self._token and not hmac.compare_digest(given, self._token):
                refusal = _refusal(401, "the token is missing or wrong")
                return await refusal(scope, receive, send)
            if not self._token and not LOOPBACK.fullmatch(headers.get("host", "")):
                refusal = _refusal(403, "only loopback names are answered without a token")
                return await refusal(scope, receive, send)
        return await self._inner(scope, receive, send)


class _Answering:
    """One question on its way: the worker's pieces come in, events or one object go out."""

    def __init__(self, warm: Warm, asked: wire.Request, limits: ServerLimits) -> None:
        loop = asyncio.get_running_loop()
        self.asked = asked
        self._number, self._created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
        self._gone = threading.Event()
        self._until = time.monotonic() + limits.seconds
        # The worker's pieces, then None when it is done.
        self._pieces: asyncio.Queue[str | None] = asyncio.Queue()

        def on_text(piece: str) -> None:
            with contextlib.suppress(RuntimeError):  # the server ended under the worker's hands
                loop.call_soon_threadsafe(self._pieces.put_nowait, piece)

        future = warm.submit(asked, on_text, self._over)
        self._told: asyncio.Future[Told] = asyncio.wrap_future(future)
        self._told.add_done_callback(self._done)

    def _done(self, told: asyncio.Future[Told]) -> None:
        if not told.cancelled():
            told.exception()  # looked at, also when nobody waits for the answer any more
        self._pieces.put_nowait(None)

    def _over(self) -> bool:
        return self._gone.is_set() or time.monotonic() > self._until

    async def respond(self, request: Request) -> Response:
        """The answer, or as a stream from the first piece on; a failure before it has its code."""
        watching = asyncio.create_task(self._watch(request))
        try:
            first = await self._pieces.get()
            while not self.asked.stream and first is not None:
                first = await self._pieces.get()
        except asyncio.CancelledError:
            self._gone.set()
            raise
        finally:
            watching.cancel()
        if self.asked.stream and (first is not None or self._fine()):
            return StreamingResponse(self._events(first), media_type="text/event-stream")
        try:
            told = await self._told
        except SekvError as error:
            return _refusal(*self._blame(error))
        return JSONResponse(
            wire.completion(self._number, self._created, self.asked, told.answer, told.trace)
        )

    async def _watch(self, request: Request) -> None:
        """Give up when whoever asked is gone."""
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self._gone.set()

    def _fine(self) -> bool:
        return not self._told.cancelled() and self._told.exception() is None

    def _blame(self, error: SekvError) -> tuple[int, str]:
        if isinstance(error, BudgetError):
            return 400, str(error)
        if isinstance(error, StoppedError) and time.monotonic() > self._until:
            return 504, "the answer took longer than this server allows"
        return (503 if isinstance(error, StoppedError) else 500), str(error)

    async def _events(self, piece: str | None) -> AsyncIterator[bytes]:
        def event(delta: Any, reason: str | None = None, **more: Any) -> bytes:
            made = wire.chunk(self._number, self._created, self.asked, delta, reason, **more)
            return _event(made)

        try:
            yield event({"role": "assistant", "content": ""})
            shown = ""
            while piece is not None:
                shown += piece
                yield event({"content": piece})
                piece = await self._pieces.get()
            told = await self._told
            answer = told.answer
            if not shown and answer.stated:  # said as a whole, such as that nothing is stated
                yield event({"content": answer.stated})
            own = wire.own_part(self.asked, answer, told.trace)
            # What was shown while it was made may turn out to have no support.
            late = {} if answer.supported or not shown else {"content": f"\n{UNSUPPORTED}"}
            yield event(late, wire.finish(answer), sekv=own)
            if self.asked.with_usage:
                yield event(None, usage=wire.usage(answer))
            yield b"data: [DONE]\n\n"
        except SekvError as error:
            yield _event(wire.failure(*self._blame(error)))
        finally:
            self._gone.set()


async def _body(request: Request) -> Any:
    """The JSON value of a request.

    Raises:
        RefusedError: it is none, too long, or does not arrive.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise wire.RefusedError(415, "the body must be application/json")
    body = bytearray()
    try:
        async with asyncio.timeout(READ_SECONDS):
            async for piece in request.stream():
                body += piece
                if len(body) > MOST_BYTES:
                    raise wire.RefusedError(413, f"the body exceeds {MOST_BYTES} bytes")
        return json.loads(bytes(body))
    except TimeoutError:
        raise wire.RefusedError(408, "the body did not arrive in time") from None
    except ClientDisconnect:
        raise wire.RefusedError(400, "the body did not arrive") from None
    except (ValueError, RecursionError):
        raise wire.RefusedError(400, "the body is not JSON") from None


def _through_the_door(scope: Scope) -> bool:
    server = scope.get("server")
    return server is not None and server[1] is None


def _refusal(status: int, message: str) -> JSONResponse:
    headers = {"Retry-After": "1"} if status == 503 else {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(wire.failure(status, message), status, headers)


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, allow_nan=False).encode() + b"\n\n"


# ---------------------------------------------------------------------------- serving


class _Server(uvicorn.Server):
    """Ends with a result on SIGINT and SIGTERM instead of raising them once more."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        caught = (signal.SIGINT, signal.SIGTERM)
        for number in caught:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in caught:
                loop.remove_signal_handler(number)


def run(
    app: ASGIApp,
    listening: list[socket.socket],
    most_connections: int,
    ready: Callable[[], None],
) -> None:
    """Serve until told to end; answers under way get a few seconds. Call on the main thread.

    Args:
        listening: bound sockets, closed at the end.
        ready: called when connections are taken.
    """
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=most_connections,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=LAST_SECONDS,
    )
    server = _Server(config)

    async def serve() -> None:
        serving = asyncio.create_task(server.serve(sockets=listening))
        while not server.started and not serving.done():
            await asyncio.sleep(0.01)
        if server.started:
            ready()
        await serving

    asyncio.run(serve())
