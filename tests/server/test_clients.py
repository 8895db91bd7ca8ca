"""Clients that others wrote: `pytest tests/server/test_clients.py -m clients`.

Needs `pip install -e '.[serve,llm]' langchain-openai litellm`: llm finds the plugin by its entry
point.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from engine.types import Turn
from tiny_books import QUESTION, TEXT, session

pytestmark = pytest.mark.clients


@pytest.fixture
def book(store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(store, tmp_path / "book.sekv"))


@pytest.fixture
def url(book: Path, tmp_path: Path) -> Iterator[str]:
    line = ["serve", "--store-dir", str(book.parent), "--port", "0", "--device", "cpu", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "sekv_cli", *line, "--budget", "20%"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
    )
    assert process.stdout is not None
    yield str(json.loads(process.stdout.readline())["url"])
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    process.stdout.close()


def llm(place: Path, *line: str, code: int = 0) -> str:
    """What the command `llm` prints in a folder; it must know the plugin by its entry point."""
    done = subprocess.run(
        [sys.executable, "-m", "llm", *line],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "LLM_USER_PATH": str(place / "llm")},
    )
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def test_langchain_asks_and_streams(url: str, book: Path) -> None:
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(
        model="book", base_url=url, api_key="none", max_tokens=6, stop_sequences=["zzz"]
    )
    with session(book, max_new_tokens=6, device="cpu") as opened:
        expected = opened.ask(QUESTION)
    whole = model.invoke(QUESTION)
    assert whole.content == expected.stated
    assert whole.usage_metadata["output_tokens"] == 6
    assert whole.usage_metadata["input_token_details"]["cache_read"] == len(TEXT)
    pieces = list(model.stream(QUESTION, stream_usage=True))
    assert "".join(piece.content for piece in pieces).startswith(expected.answer)
    assert any(piece.usage_metadata for piece in pieces)
    with pytest.raises(Exception, match="logprobs is not supported"):
        model.bind(logprobs=True).invoke(QUESTION)


def test_litellm_asks_and_streams(url: str, book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # it looks for prices otherwise
    import litellm

    ask = partial(
        litellm.completion,
        model="openai/book",
        api_base=url,
        api_key="none",
        max_tokens=6,
        messages=[{"role": "user", "content": QUESTION}],
    )
    with session(book, max_new_tokens=6, device="cpu") as opened:
        expected = opened.ask(QUESTION)
    whole = ask(stop=["zzz"])
    assert whole.choices[0].message.content == expected.stated
    assert whole.usage.completion_tokens == 6
    assert whole.usage.prompt_tokens_details.cached_tokens == len(TEXT)
    pieces = list(ask(stream=True, stream_options={"include_usage": True}))
    said = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert said.startswith(expected.answer)
    assert any(getattr(piece, "usage", None) for piece in pieces)
    with pytest.raises(litellm.BadRequestError, match="logprobs is not supported"):
        ask(logprobs=True)


def test_llm_asks_a_store(book: Path) -> None:
    """It lists stores as models, answers with passages, keeps a talk, and says no in one line."""
    place = book.parent
    assert "sekv: sekv:book" in llm(place, "models")
    with session(book, max_new_tokens=4, device="cpu", budget="auto") as opened:
        expected = opened.ask(QUESTION)
    short = ("-o", "max_tokens", "4")
    said = llm(place, "-m", "sekv:book", *short, QUESTION)
    assert said.startswith(expected.stated.rstrip() or "\n")
    assert f"[1] {expected.citations[0].source}" in said
    plain = llm(place, "-m", "sekv:book", *short, "-o", "citations", "0", "--no-stream", QUESTION)
    assert plain.strip() == expected.stated.strip()
    kept = json.loads(llm(place, "logs", "list", "--json", "-n", "1"))
    assert kept[0]["response"] == plain.removesuffix("\n")
    with session(book, max_new_tokens=4, device="cpu", budget="auto") as opened:
        turns = (Turn(QUESTION, expected.answer),)
        then = opened.ask("And then?", turns=turns)
    followed = llm(place, "-c", *short, "-o", "citations", "0", "And then?")
    assert followed.strip() == then.stated.strip()
    for line in (("-s", "Be brief."), ("-o", "budget", "everything")):
        refused = llm(place, "-m", "sekv:book", *line, QUESTION, code=1)
        assert refused.startswith("Error: ")
        assert len(refused.splitlines()) == 1
