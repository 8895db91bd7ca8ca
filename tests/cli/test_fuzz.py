"""Whatever comes as arguments, through stdin, over HTTP or in a document: an answer or one line,
never a defect.

The engine is the real one with a tiny model, loaded once. The short version is in every run; the
long one takes ten minutes and is run by name: pytest -m slow tests/cli/test_fuzz.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, seed, settings
from hypothesis import strategies as st

import toy_store
from asgi import JSON, exchange
from damages import damaged
from engine.models.reader import Reader
from engine.store.disk import Disk
from engine.types import AskOptions
from fake_model import replace_loading
from sekv_cli.main import run
from sekv_cli.progress import Nothing
from sekv_cli.server import app
from sekv_cli.server.answering import ServerLimits
from sekv_cli.server.warm import Warm
from tiny_books import log, read
from tiny_documents import CHAPTERS, NAV, NAV_ITEM, PROSE, make_docx, make_epub, make_pdf, para

LONG_SECONDS = 150
"""Of each of the four long runs."""

ENDINGS = {0, 1, 2}


@dataclass(frozen=True)
class Place:
    """A folder with stores, sources and files of every kind, and an application over a store."""

    folder: Path
    model: Path
    served: Any


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, model: Path, reader: Reader) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Disk, "sync", lambda *_: None)
        replace_loading(patched, lambda *_, **__: reader)
        patched.setenv("XDG_RUNTIME_DIR", "/nonexistent")
        patched.setenv("XDG_STATE_HOME", str(folder / "state"))
        patched.setenv("SEKV_MODEL", str(model))
        patched.chdir(folder)
        read(folder, model, log(3), reader=reader)
        toy_store.ingest(folder / "toy.sekv")
        (folder / "notes.md").write_text("# Notes\n\nAna has the keys.\n")
        (folder / "latin.txt").write_bytes(b"caf\xe9 Who?\n")
        (folder / "empty").touch()
        (folder / "lines.jsonl").write_text('{"id": 1}\n[]\n' + "[" * 100_000)
        options = AskOptions(device="cpu", max_new_tokens=2)
        warm = Warm({"log": folder / "log.sekv"}, options, Nothing(), most_waiting=8)
        yield Place(folder, model, app.build(warm, options, ServerLimits(60, 3)))
        warm.close()


# ---------------------------------------------------------------------------- what comes

CHARACTERS = st.characters(exclude_characters="/\0", exclude_categories=())
TEXTS = st.text(CHARACTERS, max_size=12) | st.sampled_from(
    [
        "",
        " ",
        "-",
        "--",
        "\udcff",
        "\ud800",
        "\u202e",
        "\x1b[2J",
        "a\nb",
        "%s",
        "{}",
        "..",
        "é" * 300,
    ]
)
NUMBERS = st.sampled_from(
    [
        "0",
        "1",
        "2",
        "-1",
        "1e308",
        "1e-42",
        "nan",
        "inf",
        "-inf",
        "9" * 19,
        "9" * 40,
        "1.5",
        "٣",
        "",
    ]
)
FILES = st.sampled_from(
    [
        "log.sekv",
        "toy.sekv",
        "notes.md",
        "latin.txt",
        "empty",
        "log.txt",
        "lines.jsonl",
        ".",
        "none",
        "none/none",
    ]
)
WORDS = TEXTS | NUMBERS | FILES
QUESTIONS = TEXTS | st.sampled_from(["Who?", "How many whales?", "w" * 40_000, "notes.md"])

ANSWER_OPTIONS = {
    "--budget": st.sampled_from(["10%", "0.001%", "100%", "101%", "5", "%", "1e3", "9" * 30])
    | WORDS,
    "--coverage": NUMBERS,
    "--widen": NUMBERS,
    "--max-new-tokens": st.sampled_from(["1", "2"]) | NUMBERS.filter(lambda n: len(n) < 18),
    "--temperature": NUMBERS,
    "--top-p": NUMBERS,
    "--seed": NUMBERS,
    "--device": st.sampled_from(["cpu", "auto", "cuda:9", "cuda:٣"])
    | NUMBERS.map("cuda:{}".format)
    | TEXTS,
    "--dtype": st.sampled_from(["auto", "float32", "int8"]) | TEXTS,
    "--full": None,
    "--json": None,
    "--no-server": None,
    "--nonsense": WORDS,
}
COMMANDS: dict[str, tuple[st.SearchStrategy[str], dict[str, Any]]] = {
    "ask": (
        QUESTIONS,
        {**ANSWER_OPTIONS, "--stats": None, "--trace": WORDS, "-f": FILES, "--no-stream": None},
    ),
    "inspect": (
        WORDS,
        {
            **ANSWER_OPTIONS,
            "-q": QUESTIONS,
            "--trace": FILES,
            "--text": st.sampled_from(["0:5", "5:0", "0:" + "9" * 30, ":", "-1:2"]) | TEXTS,
            "--source": NUMBERS,
            "--layer": NUMBERS,
            "--head": NUMBERS,
            "--html": WORDS,
        },
    ),
    "chat": (WORDS, {**ANSWER_OPTIONS, "--history": FILES | TEXTS}),
    "models": (WORDS, {"--json": None, "--offline": None}),
    "bench": (
        WORDS,
        {
            "--suite": st.sampled_from(["qa", "fidelity", "niah"]) | TEXTS,
            "--questions": FILES,
            "--documents": FILES,
            "--text": FILES,
            "--budget": WORDS,
            "--length": NUMBERS,
            "--depth": NUMBERS,
            "--assert": WORDS,
            "--data": FILES,
            "-o": FILES,
        },
    ),
    "verify": (WORDS, {"--json": None}),
    "list": (WORDS, {"--json": None}),
    "ingest": (
        FILES | TEXTS,
        {
            "-o": TEXTS,
            "--method": st.sampled_from(["sekv", "snapkv", "full", "compresskv"]) | TEXTS,
            "--chunk-tokens": NUMBERS,
            "--window": NUMBERS,
            "--pages": st.sampled_from(["1", "1-2", "2-1", "0", "9" * 30]) | TEXTS,
            "--append": FILES,
            "--router": FILES,
            "--heads": FILES,
            "--overwrite": None,
            "--dry-run": None,
            "--password-stdin": None,
            "--json": None,
        },
    ),
    "serve": (
        st.sampled_from(["none", "notes.md", "empty"]) | TEXTS,
        {"--port": NUMBERS, "--host": TEXTS, "--timeout": NUMBERS, "--token-file": FILES},
    ),
    "nonsense": (WORDS, {}),
}


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """A command with arguments and options in any order, some of them fit for it."""
    name = draw(st.sampled_from(sorted(COMMANDS)))
    words, options = COMMANDS[name]
    first = [draw(FILES)] if name in ("ask", "inspect", "verify") else []
    rest = draw(st.lists(words, max_size=2))
    for option in draw(st.lists(st.sampled_from(sorted(options)), max_size=3)) if options else []:
        value = options[option]
        rest += [option] if value is None else [option, draw(value)]
    line = [name, *first, *rest]
    assume(all(is_argument(word) for word in line))
    return line


def is_argument(word: str) -> bool:
    """Whether a system can hand this to a process: its arguments are bytes without a NUL."""
    try:
        return b"\0" not in os.fsencode(word)
    except UnicodeEncodeError:
        return False


LINES = st.lists(
    st.binary(max_size=20)
    | st.sampled_from([b"Who?", b"/cite", b"/cite 1", b"/budget 5%", b"/zoom", b"/save a.md", b"/"])
    | TEXTS.map(lambda text: text.encode("utf-8", "surrogatepass")),
    max_size=4,
).map(b"\n".join)
SHORT = ["--max-new-tokens", "2"]
ENCODINGS = st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32", "latin-1"])
READERS = st.sampled_from(
    [
        ["ask", "log.sekv", "-", *SHORT],
        ["ask", "log.sekv", "-f", "-", "--json", *SHORT],
        ["chat", "log.sekv", *SHORT],
        ["ingest", "-", "-o", "piped.sekv", "--overwrite"],
        ["ingest", "notes.md", "-o", "piped.sekv", "--password-stdin", "--dry-run"],
    ]
)

JSON_NUMBERS = st.integers() | st.floats() | st.sampled_from([10**400, 2**64, -(2**63), 1e-42])
VALUES = st.recursive(
    st.none() | st.booleans() | JSON_NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["user", "assistant", "system", "tool"]) | TEXTS,
            "content": QUESTIONS | st.lists(VALUES, max_size=2) | VALUES,
        }
    ),
    max_size=4,
)
FIELDS = {
    "model": st.just("log") | VALUES,
    "messages": st.just([{"role": "user", "content": "Who?"}]) | MESSAGES | VALUES,
    "stream": st.booleans() | VALUES,
    "stream_options": st.just({"include_usage": True}) | VALUES,
    "max_tokens": st.integers(1, 4) | VALUES,
    "max_completion_tokens": VALUES,
    "temperature": JSON_NUMBERS | VALUES,
    "top_p": JSON_NUMBERS | VALUES,
    "seed": JSON_NUMBERS | VALUES,
    "stop": TEXTS | st.lists(TEXTS, max_size=5) | VALUES,
    "n": VALUES,
    "logprobs": VALUES,
    "response_format": VALUES,
    "sekv": st.dictionaries(
        st.sampled_from(["budget", "coverage", "full", "widen", "trace", "colour"]), VALUES
    )
    | VALUES,
}
HEADERS = st.dictionaries(
    st.sampled_from(["Content-Type", "Authorization", "Host", "X-Other"]),
    st.text(st.characters(max_codepoint=255), max_size=20)
    | st.sampled_from(["application/json", "localhost", "Bearer x"]),
)
PATHS = st.just("/v1/chat/completions") | st.sampled_from(
    [
        "/",
        "/v1/models",
        "/v1/models/log",
        "/v1/models/%ED%A0%80",
        "/health",
        "/sekv/stores",
        "/v1//",
    ]
)


@st.composite
def written(draw: st.DrawFn, body: Any) -> bytes:
    """A body as another client writes it: in another encoding, with its signs as they are, with a
    field twice, in brackets, cut, or wrong in some byte."""
    raw = (
        body
        if isinstance(body, bytes)
        else json.dumps(body, ensure_ascii=draw(st.booleans())).encode(draw(ENCODINGS), "replace")
    )
    form = draw(st.sampled_from(["whole", "twice", "nested", "damaged"]))
    if form == "twice":
        return raw.rstrip(b"}") + b"," + raw.lstrip(b"{")
    if form == "nested":
        many = draw(st.sampled_from([1, 500, 100_000]))
        return b"[" * many + raw + b"]" * many
    return damaged(random.Random(draw(st.integers())), raw) if form == "damaged" and raw else raw


DOCUMENTS = {
    "a.pdf": make_pdf([PROSE, PROSE[:2], [], PROSE[1:]]),
    "a.epub": make_epub(CHAPTERS, {"OPS/nav.xhtml": NAV}, NAV_ITEM),
    "a.docx": make_docx(para("One", "U1") + "".join(map(para, PROSE))),
    "a.html": "<html><meta charset=utf-8><h1>Café</h1><p>A<svg><p>B<table><tr><td>C".encode(),
    "a.md": "---\na: b\n---\n# Café\n\nTwo\n===\n\n> ### Three\n".encode(),
    "a.eml": b"From: =?utf-8?B?SsO8?= <j@x.org>\nTo: a\nSubject: b\nContent-Type: multipart/mixed;"
    b" boundary=B\n\n--B\nContent-Type: text/plain; charset=koi8-r\n\nKeys.\n--B--\n",
    "a.txt": "Die Schlüssel bringt Märta.\f第二页。\n".encode("utf-16"),
    "a": "Die Schlüssel bringt Märta.\n".encode("latin-1"),
}


@st.composite
def documents(draw: st.DrawFn) -> tuple[str, bytes]:
    """A name and a content, mostly with something wrong; the name may promise another kind."""
    name, other = (draw(st.sampled_from(sorted(DOCUMENTS))) for _ in range(2))
    raw = DOCUMENTS[name]
    if draw(st.integers(0, 3)):
        raw = damaged(random.Random(draw(st.integers())), raw)
    return draw(st.sampled_from([name, name, other])), raw


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, Any, dict[str, str]]:
    """A path, a body and headers; mostly a request that has a chance."""
    body: Any = {
        field: draw(FIELDS[field])
        for field in draw(st.lists(st.sampled_from(sorted(FIELDS)), max_size=4, unique=True))
    }
    if draw(st.integers(0, 3)):
        body = {"messages": [{"role": "user", "content": "Who?"}], **body}
    if not draw(st.integers(0, 9)):
        body = draw(st.binary(max_size=60) | VALUES.filter(lambda value: value is not None))
    if not draw(st.integers(0, 3)):
        body = draw(written(body))
    headers = draw(HEADERS) if not draw(st.integers(0, 9)) else {}
    return draw(PATHS), body, {**JSON, **headers}


# ---------------------------------------------------------------------------- what must hold


def ran(line: list[str], given: bytes = b"") -> None:
    """A command ends with a code of the contract and with at most one line of complaint."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", "replace") for _ in range(2))
    before = sys.stdin
    sys.stdin = io.TextIOWrapper(io.BytesIO(given), "utf-8", "surrogateescape")
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run(line)
            err.flush()
    finally:
        sys.stdin = before
    said = err.buffer.getvalue().decode()  # type: ignore[attr-defined]
    assert code in ENDINGS, said
    assert "Traceback" not in said
    assert "defect" not in said
    assert code < 2 or said.rstrip().splitlines()[-1].startswith(("sekv: ", '{"error"'))


def answered(place: Place, request: tuple[str, Any, dict[str, str]]) -> None:
    """A request is answered or refused in JSON, never with a server's error."""
    path, body, headers = request
    got = asyncio.run(exchange(place.served, body, headers, path=path))
    assert 200 <= got.status < 500, got.body
    events = [line for line in got.body.split(b"\n\n") if line.startswith(b"data: {")]
    for event in events or [got.body]:
        parsed = json.loads(event.removeprefix(b"data: "))
        if got.status >= 400:
            assert parsed["error"]["message"]
            assert not any(flag in parsed["error"]["message"] for flag in ANSWER_OPTIONS)


def ingested(place: Place, document: tuple[str, bytes]) -> None:
    name, raw = document
    (place.folder / name).write_bytes(raw)
    ran(["ingest", name, "-o", "new.sekv", "--dry-run"])


QUICK = settings(max_examples=40, suppress_health_check=list(HealthCheck), derandomize=True)


@QUICK
@given(line=command_lines())
def test_any_command_line_ends_with_a_code_of_the_contract(place: Place, line: list[str]) -> None:
    ran(line)


@QUICK
@given(line=READERS, typed=LINES)
def test_any_bytes_through_stdin_do_so_too(place: Place, line: list[str], typed: bytes) -> None:
    ran(line, typed)


@QUICK
@given(request=requests())
def test_any_request_is_answered_or_refused(
    place: Place, request: tuple[str, Any, dict[str, str]]
) -> None:
    answered(place, request)


@QUICK
@given(document=documents())
def test_any_document_is_read_or_refused(place: Place, document: tuple[str, bytes]) -> None:
    ingested(place, document)


# ---------------------------------------------------------------------------- ten minutes


def for_long(check: Callable[..., None], **strategies: Any) -> None:
    """Check ever other examples until the time is over."""
    until = time.monotonic() + LONG_SECONDS
    turn = int.from_bytes(os.urandom(4), "big")
    while time.monotonic() < until:
        some = settings(max_examples=100, database=None, suppress_health_check=list(HealthCheck))
        seed(turn)(some(given(**strategies)(check)))()
        turn += 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_command_lines_for_long(place: Place) -> None:
    def check(line: list[str]) -> None:
        ran(line)

    for_long(check, line=command_lines())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_stdin_for_long(place: Place) -> None:
    def check(line: list[str], typed: bytes) -> None:
        ran(line, typed)

    for_long(check, line=READERS, typed=LINES)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_requests_for_long(place: Place) -> None:
    def check(request: tuple[str, Any, dict[str, str]]) -> None:
        answered(place, request)

    for_long(check, request=requests())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_documents_for_long(place: Place) -> None:
    def check(document: tuple[str, bytes]) -> None:
        ingested(place, document)

    for_long(check, document=documents())
