"""Ask a server of the same user that has the store loaded: no torch, no model, no waiting.

For this machine alone; clients of others speak the OpenAI protocol.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from engine.errors import ObjectStorageError, ServeError, StoreError
from engine.object_storage import Address
from engine.store import glance
from engine.store.folders import is_library
from engine.types import Answer, AskOptions, Progress, Turn
from sekv_cli.server import unix_socket, wire

KNOCK_SECONDS = 2
"""How long a server may take to say what it serves."""

LONGEST = 1 << 30
"""Bytes of one event; a trace of a long answer is the longest."""


class _Connection(http.client.HTTPConnection):
    """HTTP over a socket in the file system."""

    def __init__(self, path: Path, timeout: float | None) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def find(store: Address, options: AskOptions, progress: Progress) -> Remote | None:
    """The running server that has exactly this store open, or None.

    progress: is told what the server does before it answers.
    """
    servers = list(unix_socket.sockets())
    if not servers:
        return None
    place = store.resolve() if isinstance(store, Path) else store
    try:
        now = unix_socket.LIBRARY if is_library(store) else glance.fingerprint(store)
        wanted = (str(place), now)
    except (StoreError, ObjectStorageError):
        return None  # whoever opens it says what is wrong
    for path in servers:
        connection = _Connection(path, KNOCK_SECONDS)
        try:
            connection.request("GET", "/sekv/stores")
            served = json.loads(connection.getresponse().read())
            for entry in served:
                if (entry["path"], entry["fingerprint"]) == wanted:
                    return Remote(path, str(entry["name"]), options, progress)
        except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError):
            continue  # no server of ours, or one on its way out
        finally:
            connection.close()
    return None


class Remote:
    """Asks as `Session` does, of a store that another process holds."""

    def __init__(self, path: Path, name: str, options: AskOptions, progress: Progress) -> None:
        self.options = options
        self._path, self._name, self._progress = path, name, progress
        self._trace: dict[str, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None: ...

    def retune(self, options: AskOptions) -> None:
        """Ask with other options from now on."""
        self.options = options

    def trace(self) -> dict[str, Any]:
        """The last question's zoom decisions, if the options asked for them."""
        return self._trace

    def ask(
        self,
        question: str,
        on_text: Callable[[str], None] | None = None,
        *,
        turns: Sequence[Turn] = (),
    ) -> Answer:
        """As `Session.ask`.

        Raises:
            ServeError: the server refuses, fails or goes away.
        """
        connection = _Connection(self._path, None)
        body = json.dumps(wire.request(self._name, question, turns, self.options))
        try:
            kind = {"Content-Type": "application/json"}
            connection.request("POST", "/v1/chat/completions", body, kind)
            response = connection.getresponse()
            if response.status != 200:
                raise _refusal(response.status, response.read(LONGEST))
            for event in _events(response):
                if isinstance(event, str):
                    self._progress.note(event)
                    continue
                if "error" in event:
                    raise _said(event)
                if "sekv" in event:
                    return self._take(event["sekv"])
                piece = event["choices"][0]["delta"].get("content", "")
                if on_text is not None and piece:
                    on_text(piece)
        except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
            raise ServeError(_gone(f"{type(error).__name__}: {error}")) from error
        finally:
            connection.close()
        raise ServeError(_gone("the answer has no end"))

    def _take(self, own: dict[str, Any]) -> Answer:
        self._trace = own.pop("trace", {})
        own.pop("ignored")
        return Answer.from_json(own)


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any] | str]:
    """Events, and remarks as lines."""
    while line := response.readline(LONGEST):
        if line.startswith(b"data: {"):
            yield json.loads(line.removeprefix(b"data: "))
        elif line.startswith(b": "):
            yield line.removeprefix(b": ").decode("ascii").rstrip()


def _refusal(status: int, body: bytes) -> ServeError:
    try:
        return _said(json.loads(body))
    except (ValueError, LookupError, TypeError, RecursionError):  # nothing that this server says
        return ServeError(f"the running server failed (HTTP {status}); --no-server asks without it")


def _said(failure: dict[str, Any]) -> ServeError:
    """What a server refused with: its words and its code."""
    reason = failure["error"]
    error = ServeError(
        f"{reason['message']} (a running server said so; --no-server asks without it)"
    )
    error.code = str(reason["code"])
    return error


def _gone(why: str) -> str:
    return f"the running server went away ({why}); --no-server asks without it"
