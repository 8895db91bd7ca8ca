"""The process of a server: its sockets, its signals, its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from sekv_cli.server.answering import Underway

LAST_SECONDS = 5
"""For answers under way when the server is told to end."""

CUT_SECONDS = 2
"""After which whoever still does not take a reply is cut off."""

IDLE_SECONDS = 75
"""For a connection on which nothing is asked; a client that pauses between questions keeps it, and
seldom meets the moment at which it is closed."""


class _Server(uvicorn.Server):
    """Ends with a result on SIGINT and SIGTERM instead of raising them once more."""

    def __init__(self, config: uvicorn.Config, underway: Underway) -> None:
        super().__init__(config)
        self._underway = underway

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

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take no more questions; those under way have a few seconds, or none if told twice."""
        # Whoever is cut off from now on hears it; the log need not tell it as a failure.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        if self.should_exit:
            self._underway.end()
        else:
            asyncio.get_running_loop().call_later(LAST_SECONDS, self._underway.end)
        self.should_exit = True


def run(
    app: ASGIApp,
    listening: list[socket.socket],
    most_connections: int,
    ready: Callable[[], None],
    underway: Underway,
) -> None:
    """Serve until told to end; answers under way get a few seconds. Call on the main thread.

    Args:
        listening: bound sockets, closed at the end.
        ready: called when connections are taken.
        underway: the application's own.
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
        timeout_graceful_shutdown=LAST_SECONDS + CUT_SECONDS,
    )
    server = _Server(config, underway)

    async def serve() -> None:
        serving = asyncio.create_task(server.serve(sockets=listening))
        while not server.started and not serving.done():
            await asyncio.sleep(0.01)
        if server.started:
            ready()
        await serving

    asyncio.run(serve())
