"""The protocol: parses chat-completion requests, renders completions and their chunks.

Pure: JSON values to records and back, as the OpenAI API has them. What the API has no word for
stands under the key "sekv": budget, coverage, full, widen and trace of a request, citations, memory
and timing of an answer. An error names the field of the request that is wrong, never an option of
the command line. Torch-free.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from engine.answer import checks
from engine.errors import OptionError, QuestionError
from engine.types import Answer, AskOptions, Turn

UNSUPPORTED: dict[str, Any] = {
    "tools": [],
    "functions": [],
    "logprobs": False,
    "top_logprobs": 0,
    "n": 1,
    "logit_bias": {},
    "modalities": ["text"],
    "response_format": {"type": "text"},
    "presence_penalty": 0,
    "frequency_penalty": 0,
}
"""Fields that change an answer in ways sekv does not, with the values that change nothing."""

OWN = ("budget", "coverage", "full", "widen", "trace", "read", "whole")
"""What a request may say under "sekv"."""

CODES = {
    400: "invalid_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "body_timeout",
    413: "too_long",
    415: "media_type",
    500: "defect",
    503: "unavailable",
    504: "timeout",
}
"""By status the code of an error that has none of its own."""


class RefusedError(Exception):
    """A request that is not answered. Caught by the server, never by a user.

    status: HTTP. param: the field of the request that is wrong, "" where none is. code: for
    scripts, "" for the status' own.
    """

    def __init__(self, status: int, message: str, param: str = "", code: str = "") -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code


@dataclass(frozen=True)
class Request:
    """A question to one store. ignored: roles of messages that were not read. limit: what the
    request calls the most tokens of its answer."""

    store: str
    question: str
    turns: tuple[Turn, ...]
    options: AskOptions
    stream: bool
    with_usage: bool
    ignored: tuple[str, ...]
    limit: str = "max_completion_tokens"

    def param(self, option: str) -> str:
        """What the request calls an option of the engine."""
        if option == "max_new_tokens":
            return self.limit
        return f"sekv.{option}" if option in OWN else option


def parse(body: Any, names: Sequence[str], defaults: AskOptions, most_tokens: int) -> Request:
    """A request from the JSON value of its body.

    Args:
        names: of the stores that are served; they are the models.
        defaults: what holds where the request says nothing.
        most_tokens: longest answer; a request for more gets this many.
    Raises:
        RefusedError: it cannot be answered; says why.
    """
    if not isinstance(body, dict):
        raise RefusedError(400, "the body is not a JSON object")
    name = _typed(body, "model", str, names[0] if len(names) == 1 else "")
    if name not in names:
        there = f"there is no model {name!r} here; there are {', '.join(names)}"
        raise RefusedError(404, there, "model", "model_not_found")
    for field, harmless in UNSUPPORTED.items():
        if body.get(field) not in (None, harmless):
            raise RefusedError(400, f"{field} is not supported", field, "unsupported")
    question, turns, ignored = _conversation(body.get("messages"))
    _check_question(question, turns)
    stream_options = _typed(body, "stream_options", dict, {})
    asked = Request(
        name,
        question,
        turns,
        _options(body, defaults, most_tokens),
        _typed(body, "stream", bool, False),
        _typed(stream_options, "include_usage", bool, False, within="stream_options."),
        ignored,
        "max_tokens" if body.get("max_completion_tokens") is None else "max_completion_tokens",
    )
    try:
        checks.check_options(asked.options)
    except OptionError as error:
        param = asked.param(error.option)
        raise RefusedError(400, f"{param}: {error.reason}", param, error.code) from None
    return asked


def _options(body: Mapping[str, Any], defaults: AskOptions, most_tokens: int) -> AskOptions:
    """What a request says of how it is to be answered; types are checked, ranges are not."""
    own = _typed(body, "sekv", dict, {})
    unknown = sorted(set(map(str, own)) - set(OWN))
    if unknown:
        raise RefusedError(400, f"sekv knows no {', '.join(unknown)}", f"sekv.{unknown[0]}")
    tokens = _typed(body, "max_tokens", int, defaults.max_new_tokens)
    tokens = _typed(body, "max_completion_tokens", int, tokens)
    return replace(
        defaults,
        max_new_tokens=min(tokens, most_tokens),
        temperature=_number(body, "temperature", defaults.temperature),
        top_p=_number(body, "top_p", defaults.top_p),
        seed=_typed(body, "seed", int, defaults.seed),
        stop=_marks(body.get("stop")),
        budget=_typed(own, "budget", str, defaults.budget, within="sekv."),
        coverage=_number(own, "coverage", defaults.coverage, within="sekv."),
        full=_typed(own, "full", bool, defaults.full, within="sekv."),
        widen=_number(own, "widen", defaults.widen, within="sekv."),
        trace=_typed(own, "trace", bool, False, within="sekv."),
        whole=_typed(own, "whole", bool, defaults.whole, within="sekv."),
        read=defaults.read and _typed(own, "read", bool, True, within="sekv."),
    )


def _check_question(question: str, turns: Sequence[Turn]) -> None:
    try:
        checks.check_question(question, turns)
    except QuestionError as error:
        status = 413 if len(question) > checks.MOST_CHARS else 400
        raise RefusedError(status, str(error), "messages", error.code) from None


def request(model: str, question: str, turns: Sequence[Turn], options: AskOptions) -> Any:
    """The streaming request that `parse` reads back as the same question and options."""
    messages = []
    for turn in turns:
        messages.append({"role": "user", "content": turn.question})
        messages.append({"role": "assistant", "content": turn.answer})
    return {
        "model": model,
        "messages": [*messages, {"role": "user", "content": question}],
        "stream": True,
        "max_completion_tokens": options.max_new_tokens,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "seed": options.seed,
        "stop": list(options.stop),
        "sekv": {
            "budget": options.budget,
            "coverage": options.coverage,
            "full": options.full,
            "widen": options.widen,
            "trace": options.trace,
            "read": options.read,
            "whole": options.whole,
        },
    }


def _conversation(messages: Any) -> tuple[str, tuple[Turn, ...], tuple[str, ...]]:
    """The last question, the turns before it, and the roles that were left out."""
    if not isinstance(messages, list) or not messages:
        raise RefusedError(400, "messages must be a list that is not empty", "messages")
    said: list[tuple[str, str]] = []
    ignored: set[str] = set()
    for message in messages:
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ("user", "assistant", "system", "developer"):
            roles = "user, assistant, system or developer"
            raise RefusedError(400, f"a message needs a role: {roles}", "messages")
        text = _text(message.get("content"))
        if role in ("system", "developer"):
            ignored.add(role)  # the document is the context; its prompt was read at ingest
        elif said and said[-1][0] == role:
            said[-1] = (role, f"{said[-1][1]}\n{text}")
        else:
            said.append((role, text))
    if not said or said[-1][0] != "user" or not said[-1][1].strip():
        raise RefusedError(400, "the last message must be a question of the user", "messages")
    if said[0][0] == "assistant":
        said.insert(0, ("user", ""))
    earlier = [text for _, text in said[:-1]]
    turns = tuple(Turn(q, a) for q, a in zip(earlier[::2], earlier[1::2], strict=True))
    return said[-1][1], turns, tuple(sorted(ignored))


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
        for part in content
    ):
        return "".join(part["text"] for part in content)
    raise RefusedError(400, "the content of a message must be text", "messages")


def _marks(value: Any) -> tuple[str, ...]:
    """Texts that end the answer: one, a list of them, or none."""
    if value is None:
        return ()
    marks = [value] if isinstance(value, str) else value
    if not isinstance(marks, list) or not all(isinstance(mark, str) for mark in marks):
        raise RefusedError(400, "stop must be a text or a list of texts", "stop")
    return tuple(marks)


def _typed(body: Mapping[str, Any], name: str, kind: type, default: Any, within: str = "") -> Any:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        param = f"{within}{name}"
        raise RefusedError(400, f"{param} must be of type {kind.__name__}", param)
    return value


def _number(body: Mapping[str, Any], name: str, default: float, within: str = "") -> float:
    value = body.get(name)
    if value is None:
        return default
    param = f"{within}{name}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RefusedError(400, f"{param} must be a number", param)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise RefusedError(400, f"{param} must be a finite number", param)
    return number


# ---------------------------------------------------------------------------- answers


def usage(answer: Answer) -> dict[str, Any]:
    """The document counts as prompt; what of it was not computed again is cached."""
    used = answer.usage
    prompt = used.document_tokens + used.question_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": used.answer_tokens,
        "total_tokens": prompt + used.answer_tokens,
        "prompt_tokens_details": {
            "cached_tokens": used.document_tokens - used.recomputed_document_tokens
        },
    }


def own_part(asked: Request, answer: Answer, trace: Mapping[str, Any]) -> dict[str, Any]:
    """What the API has no word for."""
    more = {"trace": trace} if trace else {}
    return {**answer.to_json(), "ignored": list(asked.ignored), **more}


def finish(answer: Answer) -> str:
    """Why an answer ended, in the words of the API."""
    return "length" if answer.cut_short else "stop"


def completion(
    number: str, created: int, asked: Request, answer: Answer, trace: Mapping[str, Any]
) -> dict[str, Any]:
    """A whole answer at once."""
    message = {"role": "assistant", "content": answer.stated, "refusal": None}
    return {
        "id": number,
        "object": "chat.completion",
        "created": created,
        "model": asked.store,
        "choices": [
            {"index": 0, "message": message, "finish_reason": finish(answer), "logprobs": None}
        ],
        "usage": usage(answer),
        "sekv": own_part(asked, answer, trace),
    }


def chunk(
    number: str,
    created: int,
    asked: Request,
    delta: Mapping[str, Any] | None,
    reason: str | None = None,
    **more: Any,
) -> dict[str, Any]:
    """One event of a streamed answer; without a delta it has no choices."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": reason}]
    return {
        "id": number,
        "object": "chat.completion.chunk",
        "created": created,
        "model": asked.store,
        "choices": choices,
        **more,
    }


def failure(status: int, message: str, param: str = "", code: str = "") -> dict[str, Any]:
    """An error as clients of the API expect it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {
        "error": {
            "message": message,
            "type": kind,
            "param": param or None,
            "code": code or CODES.get(status, "error"),
        }
    }
