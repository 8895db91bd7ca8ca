"""Access control: the user through their own socket, a holder of the token, or loopback alone.

Without a token only loopback names are answered over TCP, so that no web page can reach the server
under another name.
"""

from __future__ import annotations

import hmac
import re

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from sekv_cli.server.replies import refusal

LOOPBACK = re.compile(r"(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d+)?", re.IGNORECASE)


class Guard:
    """Lets in whoever came through the user's socket, has the token, or where there is none is
    local."""

    def __init__(self, inner: ASGIApp, token: str) -> None:
        self._inner, self._token = inner, token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not is_own_socket(scope):
            headers = Headers(scope=scope)
            given = _bearer(headers.get("authorization", ""))
            if self._token and not hmac.compare_digest(given, self._token):
                no = refusal(401, "the token is missing or wrong")
                return await no(scope, receive, send)
            if not self._token and not LOOPBACK.fullmatch(headers.get("host", "")):
                no = refusal(403, "only loopback names are answered without a token")
                return await no(scope, receive, send)
        return await self._inner(scope, receive, send)


def is_own_socket(scope: Scope) -> bool:
    """Whether a request came through the socket that only the server's user can open."""
    server = scope.get("server")
    return server is not None and server[1] is None


def _bearer(header: str) -> bytes:
    """The token of an Authorization header; the scheme's name counts in any case (RFC 9110)."""
    scheme, _, token = header.strip().partition(" ")
    return token.strip().encode() if scheme.lower() == "bearer" else b""
