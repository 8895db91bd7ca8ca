"""JSON over HTTP: bodies in, replies and refusals out."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse

from sekv_cli.server import wire

MOST_BYTES = 1 << 20
"""Of a request's body."""

READ_SECONDS = 10
"""In which a request's body must have arrived."""


class JsonReply(JSONResponse):
    """JSON in ASCII, so that whatever a request held can be said back, half a character too."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def refusal(status: int, message: str, param: str = "", code: str = "") -> JsonReply:
    """An error as a whole reply."""
    headers = {"Retry-After": "1"} if status == 503 else {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JsonReply(wire.failure(status, message, param, code), status, headers)


def event(value: dict[str, Any]) -> bytes:
    """One event of a stream."""
    return b"data: " + json.dumps(value, allow_nan=False).encode("ascii") + b"\n\n"


def remark(line: str) -> bytes:
    """A comment in a stream, which clients of the API pass over."""
    return b": " + " ".join(line.split()).encode("ascii", "replace") + b"\n\n"


async def body(request: Request) -> Any:
    """The JSON value of a request.

    Raises:
        RefusedError: it is none, too long, or does not arrive.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    if kind.lower() != "application/json":  # names of media types count in any case (RFC 9110)
        raise wire.RefusedError(415, "the body must be application/json")
    read = bytearray()
    try:
        async with asyncio.timeout(READ_SECONDS):
            async for piece in request.stream():
                read += piece
                if len(read) > MOST_BYTES:
                    raise wire.RefusedError(413, f"the body exceeds {MOST_BYTES} bytes")
        return json.loads(bytes(read))
    except TimeoutError:
        raise wire.RefusedError(408, "the body did not arrive in time") from None
    except asyncio.CancelledError:  # by the server's end alone
        raise wire.RefusedError(503, "the server is about to end") from None
    except ClientDisconnect:
        raise wire.RefusedError(400, "the body did not arrive") from None
    except (ValueError, RecursionError):
        raise wire.RefusedError(400, "the body is not JSON") from None
