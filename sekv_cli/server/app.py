"""The routes of a server: an OpenAI-compatible endpoint over loaded stores.

`/v1/models` (the stores), `/v1/chat/completions`, `/health`, `/ready` and `/metrics`; and, for the
user's own commands alone, `/sekv/stores`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from engine.errors import ServeError
from engine.types import AskOptions
from sekv_cli.server import metrics, replies, wire
from sekv_cli.server.answering import Answering, ServerLimits, Underway
from sekv_cli.server.guard import Guard, is_own_socket
from sekv_cli.server.replies import JsonReply, refusal
from sekv_cli.server.warm import Warm


def build(
    warm: Warm,
    options: AskOptions,
    limits: ServerLimits,
    token: str = "",
    underway: Underway | None = None,
    origins: Sequence[str] = (),
) -> ASGIApp:
    """The application over loaded stores.

    Args:
        token: "" asks for none.
        origins: web pages that browsers may let ask, "*" for all.
        underway: keeps the questions on their way, see `process.run`.
    """
    routes = _Routes(warm, options, limits, underway or Underway())
    guarded = Guard(
        Starlette(
            routes=[
                Route("/health", routes.health),
                Route("/ready", routes.ready),
                Route("/metrics", routes.metrics),
                Route("/v1/models", routes.models),
                Route("/v1/models/{name:path}", routes.one_model),
                Route("/v1/chat/completions", routes.complete, methods=["POST"]),
                Route("/sekv/stores", routes.stores),
            ],
            exception_handlers={404: _not_found, 405: _wrong_method, Exception: _defect},
        ),
        token,
    )
    if not origins:
        return guarded
    # Outside the guard: a browser asks without the token whether a page may ask with it.
    return CORSMiddleware(
        guarded,
        allow_origins=origins,
        allow_methods=["GET", "POST"],
        allow_headers=["Authorization", "Content-Type", "*"],
        expose_headers=["Retry-After"],
        max_age=600,
    )


class _Routes:
    """What is answered under each path."""

    def __init__(
        self, warm: Warm, options: AskOptions, limits: ServerLimits, underway: Underway
    ) -> None:
        self._warm, self._options, self._limits, self._underway = warm, options, limits, underway
        self._started = int(time.time())

    async def health(self, _: Request) -> Response:
        status = "ending" if self._underway.ending else "ok"
        return JsonReply({"status": status, "waiting": self._warm.waiting})

    async def ready(self, _: Request) -> Response:
        """Whether a question would be taken: not while the server ends, or too many wait."""
        if self._underway.ending:
            return JsonReply({"status": "ending"}, 503)
        busy = self._warm.is_full
        return JsonReply({"status": "busy" if busy else "ready"}, 503 if busy else 200)

    async def metrics(self, _: Request) -> Response:
        return Response(self._warm.metrics.text(self._warm.now()), media_type=metrics.TYPE)

    async def models(self, _: Request) -> Response:
        data = [self._model(name) for name in self._warm.stores]
        return JsonReply({"object": "list", "data": data})

    async def one_model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._warm.stores:
            return refusal(404, f"there is no model {name!r} here", "model", "model_not_found")
        return JsonReply(self._model(name))

    async def stores(self, request: Request) -> Response:
        """For the user's own commands alone: which files are served."""
        if not is_own_socket(request.scope):
            return refusal(404, "Not Found")
        return JsonReply(self._warm.held())

    async def complete(self, request: Request) -> Response:
        try:
            body = await replies.body(request)
            names = self._warm.stores
            asked = wire.parse(body, names, self._options, self._limits.tokens)
            answering = Answering(self._warm, asked, self._limits, self._underway)
        except wire.RefusedError as no:
            return refusal(no.status, str(no), no.param, no.code)
        except ServeError as busy:
            return refusal(503, str(busy))
        return await answering.respond(request)

    def _model(self, name: str) -> dict[str, Any]:
        """A store as a model; context_length counts as `usage` does, the document included."""
        entry: dict[str, Any] = {
            "id": name,
            "object": "model",
            "created": self._started,
            "owned_by": "sekv",
        }
        facts = self._warm.facts(name)
        if facts is None:
            return entry
        own: dict[str, Any] = {"model": facts.model, "document_tokens": facts.document_tokens}
        if facts.question_tokens is None:  # it is opened when it is asked
            return {**entry, "sekv": own}
        length = facts.document_tokens + facts.question_tokens
        own |= {"method": facts.method, "question_tokens": facts.question_tokens}
        return {**entry, "context_length": length, "max_model_len": length, "sekv": own}


async def _not_found(_: Request, __: Exception) -> Response:
    return refusal(404, "Not Found")


async def _wrong_method(_: Request, __: Exception) -> Response:
    return refusal(405, "Method Not Allowed")


async def _defect(_: Request, __: Exception) -> Response:
    return refusal(500, "a defect of the server, whose stderr has the traceback")
