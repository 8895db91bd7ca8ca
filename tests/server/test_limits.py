"""What a server does with requests that are wrong, too long, too late, or given up."""

from __future__ import annotations

import asyncio
import gzip
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from asgi import JSON, Exchange, Worker, exchange, question
from engine.answer import checks
from engine.errors import (
    BudgetError,
    OptionError,
    QuestionError,
    ReaderError,
    ServeError,
    StoppedError,
    StoreDamagedError,
)
from engine.models import chunked
from engine.types import NOT_STATED, UNSUPPORTED, AskOptions
from sekv_cli.progress import Nothing
from sekv_cli.server import app, client, replies, wire
from sekv_cli.server.answering import ServerLimits, Underway
from sekv_cli.server.warm import Warm
from tiny_books import QUESTION, TEXT, log

HOT = {"temperature": 4.0, "seed": 1}
"""The likeliest tokens of a tiny random model repeat themselves, which ends an answer."""


def built(worker: Any, *, seconds: float = 60, token: str = "", underway: Any = None) -> Any:
    return app.build(worker, AskOptions(), ServerLimits(seconds, 100), token, underway)


def received(body: Any, headers: dict[str, str] = JSON, **more: Any) -> Exchange:
    return asyncio.run(exchange(built(Worker(**more)), body, headers))


# ---------------------------------------------------------------------------- what is said


@pytest.mark.parametrize(
    "kind",
    [
        "application/json",
        "Application/JSON",
        "APPLICATION/JSON; charset=UTF-8",
        'Application/Json ; Charset="utf-8"',
        "application/json;",
    ],
)
def test_a_media_type_counts_in_any_case(kind: str) -> None:
    assert received(question(), {**JSON, "Content-Type": kind}).status == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/jsonp", "", "json"])
def test_another_media_type_is_refused(kind: str) -> None:
    assert received(question(), {**JSON, "Content-Type": kind}).status == 415


SCHEMES = [
    ("Bearer s", 200),
    ("bearer s", 200),
    ("BEARER s", 200),
    ("Bearer   s  ", 200),
    ("Basic s", 401),
    ("s", 401),
    ("Bearers", 401),
    ("Bearer", 401),
    ("", 401),
]


def test_a_scheme_counts_in_any_case(subtests: pytest.Subtests) -> None:
    for header, status in SCHEMES:
        with subtests.test(header=header):
            made = built(Worker(), token="s")
            got = asyncio.run(exchange(made, question(), {**JSON, "Authorization": header}))
            assert got.status == status
            if status == 401:
                assert got.error["code"] == "unauthorized"
                assert got.headers["www-authenticate"] == "Bearer"


WRONG_FIELDS = [
    ({"seed": 2**64}, "seed", 400),
    ({"seed": -1}, "seed", 400),
    ({"seed": 10**400}, "seed", 400),
    ({"seed": 1.5}, "seed", 400),
    ({"temperature": 1e-42}, "temperature", 400),
    ({"temperature": 10**400}, "temperature", 400),
    ({"temperature": -1}, "temperature", 400),
    ({"top_p": 0}, "top_p", 400),
    ({"max_tokens": 0}, "max_tokens", 400),
    ({"max_completion_tokens": -(10**30)}, "max_completion_tokens", 400),
    ({"max_tokens": 5, "max_completion_tokens": 0}, "max_completion_tokens", 400),
    ({"sekv": {"budget": "1000%"}}, "sekv.budget", 400),
    ({"sekv": {"budget": "much"}}, "sekv.budget", 400),
    ({"sekv": {"budget": 10}}, "sekv.budget", 400),
    ({"sekv": {"coverage": 2}}, "sekv.coverage", 400),
    ({"sekv": {"widen": 0.5}}, "sekv.widen", 400),
    ({"sekv": {"full": "yes"}}, "sekv.full", 400),
    ({"sekv": {"colour": 1}}, "sekv.colour", 400),
    ({"stop": ""}, "stop", 400),
    ({"stop": ["a"] * 5}, "stop", 400),
    ({"stop": [1]}, "stop", 400),
    ({"stop": {"a": 1}}, "stop", 400),
    ({"logprobs": True}, "logprobs", 400),
    ({"top_logprobs": 3}, "top_logprobs", 400),
    ({"n": 2}, "n", 400),
    ({"tools": [{}]}, "tools", 400),
    ({"response_format": {"type": "json_object"}}, "response_format", 400),
    ({"stream_options": {"include_usage": "yes"}}, "stream_options.include_usage", 400),
    ({"stream": "yes"}, "stream", 400),
    ({"model": "other"}, "model", 404),
    ({"model": "\ud800"}, "model", 404),
    ({"messages": []}, "messages", 400),
    ({"messages": [{"role": "\ud800", "content": "x"}]}, "messages", 400),
]


def test_an_error_names_the_field_of_the_request(subtests: pytest.Subtests) -> None:
    """And never a flag of the command line; nothing was computed for it."""
    for more, param, status in WRONG_FIELDS:
        with subtests.test(more=more):
            worker = Worker()
            got = asyncio.run(exchange(built(worker), question(**more)))
            assert (got.status, got.error["param"]) == (status, param)
            assert got.error["type"] == "invalid_request_error"
            assert "--" not in got.error["message"]
            assert worker.asked == []


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "Who \ud800?"}],
        [{"role": "user", "content": [{"type": "text", "text": "\udfff"}]}],
        [
            {"role": "user", "content": "Who?"},
            {"role": "assistant", "content": "\udc80"},
            {"role": "user", "content": "When?"},
        ],
    ],
)
def test_half_a_character_is_no_text(messages: list[Any]) -> None:
    got = received({"model": "book", "messages": messages})
    assert (got.status, got.error["param"], got.error["code"]) == (400, "messages", "question")


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b'{"model": "book", "messages": [{"role": "user", "content": "Who \xff?"}]}', 400),
        (b'{"seed": ' + b"9" * 5000 + b"}", 400),
        (b'{"temperature": NaN, "messages": [{"role": "user", "content": "Q"}]}', 400),
        (b"", 400),
        (b"[1]", 400),
        (b"{" * 100_000, 400),
        (b"[" * 100_000 + b"]" * 100_000, 400),
        (gzip.compress(json.dumps(question()).encode(), mtime=0), 400),
        (json.dumps(question("caf\xe9"), ensure_ascii=False).encode("latin-1"), 400),
        (json.dumps(question("a\0b")).encode(), 400),
        (json.dumps({**question(), "max_tokens": "2"}).encode(), 400),
        (json.dumps({**question(), "max_tokens": 2.0}).encode(), 400),
        (json.dumps({**question(), "seed": True}).encode(), 400),
        (json.dumps({**question(), "temperature": True}).encode(), 400),
        (json.dumps(question()).encode()[:-1] + b', "max_tokens": 0}', 400),
    ],
)
def test_bytes_that_are_no_json_are_refused(raw: bytes, status: int) -> None:
    assert received(raw).status == status


JSON_ENCODINGS = ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"]


def test_json_may_be_in_any_encoding_of_its_own(subtests: pytest.Subtests) -> None:
    for encoding in JSON_ENCODINGS:
        with subtests.test(encoding=encoding):
            worker = Worker()
            body = json.dumps(question("Où?"), ensure_ascii=False).encode(encoding)
            assert asyncio.run(exchange(built(worker), body)).status == 200
            assert worker.asked[0].question == "Où?"


NOT_THERE = [
    ("/nope", None, 404, "not_found"),
    ("/v1/models", b"{}", 405, "method_not_allowed"),
    ("/v1/chat/completions", None, 405, "method_not_allowed"),
    ("/v1/models/\ufffd", None, 404, "model_not_found"),
]


def test_what_is_not_there_is_told_in_json(subtests: pytest.Subtests) -> None:
    for path, body, status, code in NOT_THERE:
        with subtests.test(path=path):
            got = asyncio.run(exchange(built(Worker()), body, path=path))
            assert (got.status, got.error["code"]) == (status, code)


HOSTS = [("LOCALHOST:8321", 200), ("[::1]:8321", 200), ("127.0.0.1", 200), ("evil.example", 403)]


def test_a_host_counts_in_any_case(subtests: pytest.Subtests) -> None:
    for host, status in HOSTS:
        with subtests.test(host=host):
            assert received(question(), {**JSON, "Host": host}).status == status


def test_what_a_request_may_leave_as_it_is_is_accepted() -> None:
    harmless = {
        "n": 1,
        "logprobs": False,
        "top_logprobs": None,
        "tools": [],
        "stop": None,
        "response_format": {"type": "text"},
        "stream_options": None,
        "user": "somebody",
        "metadata": {"a": "b"},
    }
    assert received(question(**harmless)).status == 200


@pytest.mark.parametrize(("stop", "marks"), [("\n", ("\n",)), (["a", "b"], ("a", "b")), ([], ())])
def test_texts_that_end_an_answer_reach_the_worker(stop: Any, marks: tuple[str, ...]) -> None:
    worker = Worker()
    assert asyncio.run(exchange(built(worker), question(stop=stop))).status == 200
    assert worker.asked[0].options.stop == marks


def test_a_model_tells_its_context_length() -> None:
    """As usage counts: with the document, and the room for question and answer behind it."""
    made = built(Worker())
    listed = asyncio.run(exchange(made, None, path="/v1/models")).json["data"]
    (one,) = listed
    assert asyncio.run(exchange(made, None, path="/v1/models/book")).json == one
    assert one["context_length"] == one["max_model_len"] == 400
    assert one["sekv"]["document_tokens"] == 300


# ---------------------------------------------------------------------------- whose fault


@pytest.mark.parametrize(
    ("failure", "status", "param", "code"),
    [
        (OptionError("budget", "is too little"), 400, "sekv.budget", "option"),
        (OptionError("max_new_tokens", "no"), 400, "max_tokens", "option"),
        (QuestionError("the question has 9 tokens"), 400, "messages", "question"),
        (BudgetError("nothing fits"), 400, "sekv.budget", "budget"),
        (StoppedError("stopped"), 503, None, "unavailable"),
        (StoreDamagedError("/secret/place/book.sekv is damaged"), 503, None, "store_damaged"),
        (ReaderError("/secret/model: use --device cpu"), 500, None, "model"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_says_whose_it_is_and_no_file_s_name(
    failure: BaseException, status: int, param: str | None, code: str, stream: bool, capsys: Any
) -> None:
    """The server's user reads it on stderr, and through the own socket."""
    made = built(Worker(failure=failure))
    got = asyncio.run(exchange(made, question(stream=stream)))
    if stream and got.status == 200:  # it came after the first piece
        error = json.loads(got.body.rstrip().rpartition(b"data: ")[2])["error"]
    else:
        assert got.status == status
        error = got.error
    assert (error["param"], error["code"]) == (param, code)
    assert "secret" not in error["message"]
    assert "--" not in error["message"]
    assert ("secret" in capsys.readouterr().err) == ("secret" in str(failure))
    if not stream:
        own = asyncio.run(exchange(made, question(), own=True))
        assert ("secret" in own.error["message"]) == ("secret" in str(failure))


# ---------------------------------------------------------------------------- too long


def test_a_question_that_is_too_long_is_refused_at_once() -> None:
    worker = Worker()
    got = asyncio.run(exchange(built(worker), question("w" * (checks.MOST_CHARS + 1))))
    assert (got.status, got.error["param"]) == (413, "messages")
    assert f"{checks.MOST_CHARS:,}" in got.error["message"]
    assert worker.asked == []
    got = asyncio.run(exchange(built(worker), question("w" * checks.MOST_CHARS)))
    assert got.status == 200


def test_parts_of_a_question_are_counted_together() -> None:
    parts = [{"type": "text", "text": "w" * (checks.MOST_CHARS // 2 + 1)}] * 2
    got = received({"model": "book", "messages": [{"role": "user", "content": parts}]})
    assert (got.status, got.error["param"]) == (413, "messages")


def test_a_body_that_is_too_long_is_refused() -> None:
    got = received(b" " * (replies.MOST_BYTES + 1))
    assert (got.status, got.error["code"]) == (413, "too_long")


@pytest.mark.parametrize("stream", [False, True])
def test_when_the_time_is_over_the_client_hears_it_at_once(stream: bool) -> None:
    """Though the worker is in the middle of something; it is told to stop."""
    worker = Worker(busy=True)

    async def run() -> Exchange:
        got = await exchange(built(worker, seconds=0.2), question(stream=stream))
        assert not worker.saw_stop.is_set()
        worker.go_on.set()
        return got

    got = asyncio.run(run())
    assert worker.saw_stop.wait(60)
    if stream:
        assert got.status == 200
        assert json.loads(got.body.rstrip().rpartition(b"data: ")[2])["error"]["code"] == "timeout"
        assert b"[DONE]" not in got.body
    else:
        assert (got.status, got.error["code"]) == (504, "timeout")


@pytest.mark.parametrize("stream", [False, True])
def test_work_stops_when_the_client_hangs_up(stream: bool) -> None:
    worker = Worker(busy=True)

    async def run() -> None:
        received = Exchange()
        asking = asyncio.create_task(
            exchange(built(worker), question(stream=stream), received=received)
        )
        while not worker.asked:
            await asyncio.sleep(0)
        if stream:
            while b"An" not in received.body:
                await asyncio.sleep(0)
        received.gone.set()
        if stream:
            await asking
        else:
            for _ in range(10):
                await asyncio.sleep(0)
        worker.go_on.set()
        await asking

    asyncio.run(run())
    assert worker.saw_stop.wait(60)


@pytest.mark.parametrize("stream", [False, True])
def test_a_server_that_ends_tells_everybody_who_waits(stream: bool) -> None:
    worker, underway = Worker(busy=True), Underway()
    made = built(worker, underway=underway)

    async def run() -> Exchange:
        received = Exchange()
        asking = asyncio.create_task(exchange(made, question(stream=stream), received=received))
        while not worker.asked or (stream and b"An" not in received.body):
            await asyncio.sleep(0)
        underway.end()
        await asking
        worker.go_on.set()
        health = await exchange(made, None, path="/health")
        assert health.json["status"] == "ending"
        return received

    got = asyncio.run(run())
    assert worker.saw_stop.wait(60)
    error = json.loads(got.body.rstrip().rpartition(b"data: ")[2])["error"]
    assert error["message"] == "the server is about to end"
    assert stream or (got.status == 503 and got.headers["retry-after"] == "1")


# ---------------------------------------------------------------------------- a real one


@pytest.mark.parametrize("signals", [[signal.SIGTERM] * 2, [signal.SIGINT, signal.SIGTERM]])
def test_a_server_told_to_end_while_it_answers_says_so(
    store: Path, tmp_path: Path, signals: list[signal.Signals]
) -> None:
    """503 and JSON for who waits, code 0, nothing on stderr. Told twice it waits for nobody."""
    line = ["serve", str(store), "--port", "0", "--device", "cpu", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "sekv_cli", *line, "--most-new-tokens", "100000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    url = json.loads(process.stdout.readline())["url"]
    host, _, port = url.removeprefix("http://").removesuffix("/v1").partition(":")
    got: dict[bool, tuple[int, bytes]] = {}
    begun = threading.Event()

    def waiting() -> int:
        connection = http.client.HTTPConnection(host, int(port), timeout=120)
        connection.request("GET", "/health")
        received = json.loads(connection.getresponse().read())
        connection.close()
        return int(received["waiting"])

    def ask(stream: bool) -> None:
        connection = http.client.HTTPConnection(host, int(port), timeout=120)
        body = {**question(QUESTION, stream=stream, max_tokens=3000, **HOT), "model": "log"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), JSON)
        if stream:
            response = connection.getresponse()
            first = response.readline()
            begun.set()
            got[stream] = response.status, first + response.read()
        else:
            response = connection.getresponse()
            got[stream] = response.status, response.read()
        connection.close()

    threads = [threading.Thread(target=ask, args=(stream,)) for stream in (True, False)]
    threads[0].start()
    assert begun.wait(60)  # the stream first: it begins before the other is answered
    threads[1].start()
    while waiting() < 2:
        assert threads[1].is_alive()
    for number in signals:
        process.send_signal(number)
    out, err = process.communicate(timeout=60)
    for thread in threads:
        thread.join(60)
    assert (process.returncode, out) == (0, "")
    assert [line for line in err.splitlines() if "load" not in line] == []
    status, body = got[False]
    assert (status, json.loads(body)["error"]["code"]) == (503, "unavailable")
    status, body = got[True]
    assert status == 200
    assert b"the server is about to end" in body.splitlines()[-2] + body.splitlines()[-1]


def test_a_store_that_cannot_be_opened_anew_is_told_and_comes_back(
    store: Path, tmp_path: Path
) -> None:
    """The list of stores is answered meanwhile; the next question tries again."""
    own = shutil.copytree(store, tmp_path / "log.sekv")
    warm = Warm({"log": own}, AskOptions(device="cpu", max_new_tokens=2), Nothing(), 4)
    try:
        made = app.build(warm, AskOptions(device="cpu", max_new_tokens=2), ServerLimits(60, 9))

        async def ask() -> Exchange:
            return await exchange(made, {**question(QUESTION), "model": "log"})

        async def stores() -> Any:
            return (await exchange(made, None, path="/sekv/stores", own=True)).json

        assert asyncio.run(ask()).status == 200
        assert [entry["name"] for entry in asyncio.run(stores())] == ["log"]
        manifest = (own / "manifest.json").read_bytes()
        (own / "manifest.json").write_bytes(manifest[:-20])
        for _ in range(2):
            got = asyncio.run(ask())
            assert (got.status, got.error["code"]) == (503, "store_damaged")
            assert str(tmp_path) not in got.error["message"]
            assert asyncio.run(stores()) == []
            assert asyncio.run(exchange(made, None, path="/v1/models")).status == 200
        (own / "manifest.json").write_bytes(manifest)
        assert asyncio.run(ask()).status == 200
        assert [entry["name"] for entry in asyncio.run(stores())] == ["log"]
    finally:
        warm.close()


def test_an_answer_cut_by_its_length_says_so_and_one_that_ended_does_not(store: Path) -> None:
    """finish_reason, at once and streamed: "length" for want of tokens, "stop" at a text."""
    warm = Warm({"book": store}, AskOptions(device="cpu"), Nothing(), 4)
    try:
        made = app.build(warm, AskOptions(device="cpu"), ServerLimits(60, 40))

        def ends(**more: Any) -> tuple[str, str]:
            whole = asyncio.run(exchange(made, question(QUESTION, **HOT, **more))).json["choices"][
                0
            ]
            events = asyncio.run(exchange(made, question(QUESTION, stream=True, **HOT, **more)))
            parts = [
                json.loads(event)
                for event in events.body.decode().replace("data: ", "").split("\n\n")
                if event.startswith("{")
            ]
            choices = [part["choices"][0] for part in parts]
            text = "".join(choice["delta"].get("content", "") for choice in choices)
            shown, late, rest = text.partition(f"\n{UNSUPPORTED}")
            assert whole["message"]["content"] == (NOT_STATED if late else shown)
            assert rest == ""
            assert choices[-1]["finish_reason"] == whole["finish_reason"]
            return shown, whole["finish_reason"]

        text, reason = ends(max_tokens=20)
        assert reason == "length"
        assert ends(max_tokens=1)[1] == "length"
        assert ends(max_tokens=10**9)[1] == "length"
        short, reason = ends(max_tokens=20, stop=text[4:6])
        assert reason == "stop"
        assert short == text[: text.index(text[4:6])].strip()
    finally:
        warm.close()


def test_a_document_is_not_read_again_by_the_next_question(store: Path) -> None:
    """The second question of a conversation reads no more of the store's device sections."""
    options = AskOptions(device="cpu", max_new_tokens=2)
    warm = Warm({"book": store}, options, Nothing(), 4)
    try:
        made = app.build(warm, options, ServerLimits(60, 40))
        first = asyncio.run(exchange(made, question(QUESTION))).json
        turns = [
            {"role": "user", "content": QUESTION},
            {"role": "assistant", "content": first["choices"][0]["message"]["content"]},
        ]
        body = question(QUESTION)
        body["messages"] = [*turns, *body["messages"]]
        again = asyncio.run(exchange(made, body)).json
    finally:
        warm.close()
    for answer in (first, again):
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == len(TEXT)
        assert answer["sekv"]["usage"]["recomputed_document_tokens"] == 0
    assert again["sekv"]["stats"]["read_bytes"] == first["sekv"]["stats"]["read_bytes"]


def test_a_server_that_says_no_json_is_no_server_that_went_away(tmp_path: Path) -> None:
    with pytest.raises(ServeError, match="the running server failed"):
        raise client._refusal(500, b"Internal Server Error")
    known = client._refusal(400, json.dumps({"error": {"message": "m", "code": "option"}}).encode())
    assert known.code == "option"


def test_a_long_question_of_a_real_store_stops_in_the_middle(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks are small enough that a question whose time is over is not read to its end."""
    monkeypatch.setattr(chunked, "CHUNK_TOKENS", 32)
    reads: list[int] = []
    own = chunked.read

    def counted(*given: Any, **more: Any) -> Any:
        for out in own(*given, **more):
            reads.append(1)
            yield out

    monkeypatch.setattr(chunked, "read", counted)
    warm = Warm({"book": store}, AskOptions(device="cpu"), Nothing(), most_waiting=4)
    try:
        made = app.build(warm, AskOptions(device="cpu"), ServerLimits(0.05, 40))
        got = asyncio.run(exchange(made, question(log(20))))
        assert got.status == 504
        warm.submit(wire_request(QUESTION), lambda _: None, lambda: False).result(
            60
        )  # the worker is free again
    finally:
        warm.close()
    assert len(reads) < len(log(20)) // 32


def wire_request(text: str) -> Any:
    return wire.Request("book", text, (), AskOptions(max_new_tokens=1), False, False, ())
