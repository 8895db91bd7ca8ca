"""`sekv serve` as a process: its clients, its door, its limits, its end."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from engine.errors import ServeError, StoppedError
from engine.types import AskOptions, Silent, Turn
from json_schemas import valid
from sekv_cli.main import run
from sekv_cli.progress import Nothing
from sekv_cli.server import app, client, replies, unix_socket, wire
from sekv_cli.server.answering import ServerLimits
from sekv_cli.server.warm import Warm
from tiny_books import QUESTION, TEXT, log, read, session

SHORT = {"max_new_tokens": 6, "device": "cpu"}


@dataclass(frozen=True)
class Running:
    url: str
    store: Path
    model: Path
    runtime: Path
    openai: openai.OpenAI


@pytest.fixture(scope="module")
def running(
    model: Path, store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """A server of one small store; told to end, it does, and leaves nothing behind."""
    runtime = tmp_path_factory.mktemp("s")
    line = ["serve", str(store), "--port", "0", "--device", "cpu", "--json", "--queue", "40"]
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "sekv_cli", *line, "--max-new-tokens", "6", "--budget", "20%"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "XDG_RUNTIME_DIR": str(runtime)},
    )
    assert process.stdout is not None
    reply = valid("serve", process.stdout.readline())
    assert reply["stores"] == ["log"]
    assert reply["pid"] == process.pid
    speaking = openai.OpenAI(base_url=reply["url"], api_key="none", max_retries=0, timeout=120)
    yield Running(reply["url"], store, model, runtime, speaking)
    speaking.close()
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    process.stdout.close()
    assert list((runtime / "sekv").iterdir()) == []


@pytest.fixture(autouse=True)
def _runtime(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(running.runtime))


def asked(running: Running, question: str = QUESTION, **more: Any) -> Any:
    messages = [{"role": "user", "content": question}]
    return running.openai.chat.completions.create(model="log", messages=messages, **more)


# ---------------------------------------------------------------------------- the protocol


def test_the_official_client_sees_the_stores_as_models(running: Running) -> None:
    assert [model.id for model in running.openai.models.list()] == ["log"]
    assert running.openai.models.retrieve("log").owned_by == "sekv"
    with pytest.raises(openai.NotFoundError):
        running.openai.models.retrieve("other")


def test_an_answer_is_the_one_that_ask_gives(running: Running) -> None:
    """The document counts as cached prompt; citations are exact slices, beside the message."""
    reply = asked(running)
    with session(running.store, **SHORT) as opened:
        expected = opened.ask(QUESTION)
    assert reply.choices[0].message.content == expected.answer
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage.completion_tokens == 6
    assert reply.usage.prompt_tokens_details.cached_tokens == len(TEXT)
    assert reply.usage.prompt_tokens == len(TEXT) + expected.usage.question_tokens
    own = reply.sekv
    assert own["memory"]["zoomed_spans"] == expected.memory.zoomed_spans
    assert own["timing"]["model_load_s"] == 0
    for citation in own["citations"]:
        assert TEXT[citation["start"] : citation["end"]] == citation["text"]


def test_a_stream_s_pieces_join_to_the_answer(running: Running) -> None:
    events = list(asked(running, stream=True, stream_options={"include_usage": True}))
    whole = asked(running)
    text = "".join(e.choices[0].delta.content or "" for e in events if e.choices)
    assert text == whole.choices[0].message.content
    assert events[0].choices[0].delta.role == "assistant"
    assert [e.choices[0].finish_reason for e in events if e.choices][-1] == "length"
    assert events[-1].choices == []
    assert events[-1].usage == whole.usage
    assert len({e.id for e in events}) == 1


def test_options_of_a_request_hold_for_that_request(running: Running) -> None:
    """Budget, length and trace; the next request has the server's own again."""
    before = asked(running).sekv
    reply = asked(running, max_completion_tokens=2, extra_body={"sekv": {"full": True}})
    assert reply.usage.completion_tokens == 2
    assert reply.sekv["memory"]["device_kv_bytes"] > before["memory"]["device_kv_bytes"]
    traced = asked(running, extra_body={"sekv": {"trace": True}}).sekv
    assert traced["trace"]["question"] == QUESTION
    assert traced["trace"]["zoom"]
    after = asked(running).sekv
    assert "trace" not in after
    assert after["memory"] == before["memory"]


def test_earlier_messages_are_read(running: Running) -> None:
    messages = [
        {"role": "user", "content": "Which ship?"},
        {"role": "assistant", "content": "Ship 3."},
        {"role": "user", "content": QUESTION},
    ]
    reply = running.openai.chat.completions.create(
        model="log",
        messages=messages,  # type: ignore[arg-type]
        extra_body={"sekv": {"budget": "2000"}},
    )
    assert reply.sekv["stats"]["turns_read"] == 1  # type: ignore[attr-defined]


def test_many_clients_at_once_lose_and_mix_nothing(running: Running) -> None:
    """Each of them gets the answer to its own question, streamed or not."""
    options = [{"temperature": 4.0, "seed": seed} for seed in range(4)]
    questions = [f"What of day {i}?" for i in range(4)]
    expected = [
        asked(running, question, **more).choices[0].message.content
        for question, more in zip(questions, options, strict=True)
    ]
    assert len(set(expected)) == 4

    def one(number: int) -> bool:
        which = number % 4
        question, more = questions[which], options[which]
        if number % 3:
            reply = asked(running, question, **more)
            return reply.choices[0].message.content == expected[which] and (
                reply.sekv["question"] == question
            )
        events = asked(running, question, stream=True, **more)
        return "".join(e.choices[0].delta.content or "" for e in events) == expected[which]

    with ThreadPoolExecutor(12) as pool:
        assert all(pool.map(one, range(24)))


# ---------------------------------------------------------------------------- refusals


def raw(
    running: Running, body: bytes, path: str = "/v1/chat/completions", **headers: str
) -> tuple[int, Any]:
    host, _, port = running.url.removeprefix("http://").removesuffix("/v1").partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request("POST" if body else "GET", path, body or None, named)
    response = connection.getresponse()
    reply = response.status, json.loads(response.read())
    connection.close()
    return reply


def test_the_client_s_errors_are_errors_of_the_client(running: Running) -> None:
    with pytest.raises(openai.NotFoundError, match="no model 'other'"):
        running.openai.chat.completions.create(
            model="other", messages=[{"role": "user", "content": "Q"}]
        )
    with pytest.raises(openai.BadRequestError, match="tools"):
        asked(running, tools=[{"type": "function", "function": {"name": "f"}}])
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="budget"):
            asked(running, stream=stream, extra_body={"sekv": {"budget": "much"}})


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{}", {}, 415),
        (b"{", {"Content_Type": "application/json"}, 400),
        (b"[" * 99999, {"Content_Type": "application/json"}, 400),
        (b" " * (replies.MOST_BYTES + 1), {"Content_Type": "application/json"}, 413),
        (b"{}", {"Content_Type": "application/json", "Host": "evil.example"}, 403),
    ],
)
def test_a_request_that_is_none_is_refused(
    body: bytes, headers: dict[str, str], status: int, running: Running
) -> None:
    found, reply = raw(running, body, **headers)
    assert found == status
    assert reply["error"]["message"]


def test_over_tcp_no_path_of_a_file_is_told(running: Running) -> None:
    assert raw(running, b"", "/sekv/stores")[0] == 404
    assert raw(running, b"", "/health") == (200, {"status": "ok", "waiting": 0})


def test_an_answer_nobody_waits_for_is_given_up(running: Running) -> None:
    """The next question need not wait for its thousand tokens."""
    stream = asked(running, stream=True, max_completion_tokens=1000)
    next(iter(stream))
    stream.close()
    asked(running)
    limit = time.monotonic() + 60
    while raw(running, b"", "/health")[1]["waiting"] and time.monotonic() < limit:
        time.sleep(0.05)
    assert raw(running, b"", "/health")[1]["waiting"] == 0


def through(made: Any, headers: dict[str, str], server: tuple[str, int | None]) -> int:
    """The status of GET /health as the application answers it."""
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        statuses.append(message.get("status", 0))

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/health",
        "raw_path": b"/health",
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "headers": [(k.lower().encode(), v.encode()) for k, v in headers.items()],
        "server": server,
        "client": None,
    }
    asyncio.run(made(scope, receive, send))
    return statuses[0]


class NoStores:
    """What `build` needs of a Warm."""

    stores: dict[str, Path] = {}  # noqa: RUF012
    waiting = 0


@pytest.mark.parametrize(
    ("token", "headers", "server", "status"),
    [
        ("", {"Host": "localhost:1"}, ("127.0.0.1", 1), 200),
        ("", {"Host": "[::1]:1"}, ("::1", 1), 200),
        ("", {"Host": "127.0.0.1.evil.example"}, ("127.0.0.1", 1), 403),
        ("", {}, ("127.0.0.1", 1), 403),
        ("s", {"Host": "evil.example"}, ("10.0.0.1", 1), 401),
        ("s", {"Host": "localhost", "Authorization": "Bearer t"}, ("127.0.0.1", 1), 401),
        ("s", {"Host": "localhost", "Authorization": "Bearer é"}, ("127.0.0.1", 1), 401),
        ("s", {"Host": "x", "Authorization": "Bearer s"}, ("10.0.0.1", 1), 200),
        ("s", {}, ("/run/user/1/sekv/1.sock", None), 200),
    ],
)
def test_who_may_ask(
    token: str, headers: dict[str, str], server: tuple[str, int | None], status: int
) -> None:
    """The token where there is one, loopback names where there is none, the door always."""
    made = app.build(NoStores(), AskOptions(), ServerLimits(1, 1), token)  # type: ignore[arg-type]
    assert through(made, headers, server) == status


# ---------------------------------------------------------------------------- the worker


def request(question: str = QUESTION, name: str = "log") -> wire.Request:
    options = AskOptions(max_new_tokens=60, device="cpu")
    return wire.Request(name, question, (), options, False, False, ())


def test_more_than_may_wait_are_refused_and_closing_gives_up(running: Running) -> None:
    warm = Warm({"log": running.store}, AskOptions(device="cpu"), Nothing(), most_waiting=2)
    begun, go_on = threading.Event(), threading.Event()

    def hold() -> bool:
        begun.set()
        go_on.wait(60)
        return False

    first = warm.submit(request(), lambda _: None, hold)
    assert begun.wait(60)
    second = warm.submit(request(), lambda _: None, lambda: False)
    with pytest.raises(ServeError, match="2 questions are waiting"):
        warm.submit(request(), lambda _: None, lambda: False)
    closing = threading.Thread(target=warm.close)
    closing.start()
    while not second.done():
        time.sleep(0.01)
    go_on.set()
    closing.join(60)
    assert isinstance(first.exception(), StoppedError)
    assert second.cancelled()
    with pytest.raises(ServeError, match="about to end"):
        warm.submit(request(), lambda _: None, lambda: False)


def test_a_store_replaced_on_disk_is_opened_anew(running: Running, tmp_path: Path) -> None:
    """The next answer is from what stands under the name now."""
    place = tmp_path / "log.sekv"
    shutil.copytree(running.store, place)
    warm = Warm({"log": place}, AskOptions(device="cpu"), Nothing(), 2)
    try:
        before = warm.submit(request(), lambda _: None, lambda: False).result(60)
        other = read(tmp_path / "other", running.model, log(4))
        shutil.rmtree(place)
        other.rename(place)
        after = warm.submit(request(), lambda _: None, lambda: False).result(60)
    finally:
        warm.close()
    assert before.answer.usage.document_tokens == len(TEXT)
    assert after.answer.usage.document_tokens == len(log(4))


# ---------------------------------------------------------------------------- the door


def test_ask_finds_the_server_and_loads_nothing(
    running: Running, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the session unimportable the answer is still there, and is the same as without."""
    line = ["ask", str(running.store), QUESTION, "--max-new-tokens", "6"]
    assert run([*line, "--no-server", "--device", "cpu"]) == 0
    alone = capsys.readouterr().out
    assert run([*line, "--no-server", "--json"]) == 0
    reply = json.loads(capsys.readouterr().out)
    monkeypatch.setitem(sys.modules, "engine.answer.session", None)
    assert run(line) == 0
    assert capsys.readouterr().out == alone
    assert run([*line, "--json"]) == 0
    through_server = json.loads(capsys.readouterr().out)
    assert through_server.keys() == reply.keys()
    for answer in (reply, through_server):  # what was read for it depends on what was asked before
        assert answer["stats"].pop("read_bytes") > 0
        assert answer["stats"].pop("read_host_bytes") >= 0
        assert answer["stats"].pop("first_text_s") > 0
        assert 0 <= answer["stats"].pop("reuse_rate") <= 1
        assert answer["stats"].pop("fetched_bytes") >= 0
        brought = answer["stats"].pop("fetched_spans")
        answer["stats"]["zoomed_spans"] = brought + answer["stats"].pop("reused_spans")
    for part in ("answer", "citations", "usage", "memory", "stats"):
        assert through_server[part] == reply[part]
    assert run([*line, "--budget", "60%", "--stats", "--trace", os.devnull]) == 0


def test_a_question_through_the_server_imports_nothing_heavy(running: Running) -> None:
    """Modules, not milliseconds: what a cold process spends its time on is not even named."""
    program = (
        "import sys; from sekv_cli.main import run; code = run(sys.argv[1:]);"
        "print([m for m in ('torch', 'transformers', 'numpy', 'tokenizers') if m in sys.modules],"
        "file=sys.stderr); sys.exit(code)"
    )
    line = ["ask", str(running.store), QUESTION, "--max-new-tokens", "2"]
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, *line], capture_output=True, text=True, check=True
    )
    assert done.stdout
    assert done.stderr.splitlines()[-1] == "[]"


def test_only_a_device_of_the_command_line_keeps_a_question_from_the_server(
    running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, subtests: pytest.Subtests
) -> None:
    """One of the settings or the environment is for what is loaded here."""
    looked: list[Path] = []

    def find(store: Path, *more: Any) -> client.Remote | None:
        looked.append(store)
        return real(store, *more)

    real = client.find
    monkeypatch.setattr(client, "find", find)
    settings = tmp_path / "config.toml"
    settings.write_text('device = "cpu"\n[chat]\ndtype = "float32"\n')
    monkeypatch.setenv("SEKV_CONFIG", str(settings))
    monkeypatch.setenv("SEKV_DTYPE", "float32")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    for command, named, expected in (
        ("ask", [], 1),
        ("chat", [], 1),
        ("ask", ["--device", "cpu"], 0),
        ("ask", ["--dtype", "auto"], 0),
        ("ask", ["--no-server"], 0),
    ):
        with subtests.test(command=command, named=named):
            looked.clear()
            question = [QUESTION, "--max-new-tokens", "1"] if command == "ask" else []
            assert run([command, str(running.store), *question, *named]) == 0
            assert len(looked) == expected


def test_a_trace_through_the_server_is_a_trace(running: Running, tmp_path: Path) -> None:
    remote = client.find(running.store, AskOptions(max_new_tokens=3, trace=True), Silent())
    assert remote is not None
    answer = remote.ask(QUESTION, turns=[Turn("a?", "b")])
    from engine.answer import inspect

    report = inspect.inspect(
        running.store, trace=remote.trace(), options=AskOptions(), progress=Silent()
    )
    assert report.answer == answer.answer
    assert {zoom.step for zoom in report.zoom} == {0, 1, 2}


def test_only_a_server_of_exactly_this_store_is_asked(running: Running, tmp_path: Path) -> None:
    assert client.find(running.store, AskOptions(), Silent()) is not None
    copy = tmp_path / "log.sekv"
    shutil.copytree(running.store, copy)
    assert client.find(copy, AskOptions(), Silent()) is None
    assert client.find(tmp_path / "none.sekv", AskOptions(), Silent()) is None


def test_a_refusal_through_the_door_is_one_line(
    running: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["ask", str(running.store), "w" * 5000]) == 2
    reply = capsys.readouterr().err
    assert reply.count("\n") == 1
    assert "positions" in reply
    assert "--no-server" in reply


def test_a_door_is_private_and_a_dead_one_is_removed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    listening, path = unix_socket.bind()
    with listening:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        listening.listen()
        assert list(unix_socket.sockets()) == [path]
    assert path.exists()
    assert list(unix_socket.sockets()) == []
    assert not path.exists()
    path.parent.chmod(0o755)
    assert list(unix_socket.sockets()) == []
    with pytest.raises(ServeError, match="chmod 700"):
        unix_socket.bind()


def test_without_a_runtime_folder_sockets_lie_beside_the_models_and_not_among_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The cache of models may be read by others; that refuses no server."""
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "sekv" / "models").mkdir(parents=True)
    (tmp_path / "sekv").chmod(0o755)
    listening, path = unix_socket.bind()
    with listening:
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert list(unix_socket.sockets()) == [path]


def test_a_server_that_goes_away_is_one_line(
    running: Running, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In the middle of an answer; what was said before is no answer."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    listening, path = unix_socket.bind()
    listening.listen()

    def half() -> None:
        taken, _ = listening.accept()
        with taken.makefile("rb") as asked:  # all of it: else closing would reset the connection
            asked.readline()
            asked.read(int(http.client.parse_headers(asked)["Content-Length"]))
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
        taken.sendall(head + b'data: {"choices": [{"delta": {"content": "A"}}]}\n\n')
        taken.close()

    thread = threading.Thread(target=half)
    thread.start()
    pieces: list[str] = []
    with pytest.raises(ServeError, match="went away"):
        client.Remote(path, "log", AskOptions(), Silent()).ask("Who?", pieces.append)
    assert pieces == ["A"]
    thread.join(10)
    listening.close()


# ---------------------------------------------------------------------------- the command


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (["--host", "0.0.0.0"], "set SEKV_TOKEN"),
        (["--host", "no.such.host.invalid"], "cannot listen"),
        (["--token-file", "/dev/null"], "holds no token"),
        (["--token-file", sys.executable], "is not UTF-8 text"),
    ],
)
def test_a_server_that_cannot_start_is_one_line(
    line: list[str], reason: str, running: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["serve", str(running.store), "--port", "0", *line]) == 2
    reply = capsys.readouterr()
    assert reply.out == ""
    assert reply.err.count("\n") == 1
    assert reason in reply.err


def test_two_stores_of_one_name_are_refused(
    running: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a/b.sekv", "c/b"):
        shutil.copytree(running.store, tmp_path / name)
    assert run(["serve", str(tmp_path / "a" / "b.sekv"), str(tmp_path / "c" / "b")]) == 2
    assert "both called b" in capsys.readouterr().err
    assert run(["serve", str(tmp_path / "c" / "b"), str(tmp_path / "." / "c" / "b")]) == 2
    assert "is named twice" in capsys.readouterr().err


def test_a_port_that_is_taken_is_one_line(
    running: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run(["serve", str(running.store), "--port", str(port)]) == 2
    said = f"cannot listen at 127.0.0.1:{port}: it is taken; choose another --port\n"
    assert capsys.readouterr().err.endswith(said)
