"""A server under load, and what it saves: minutes long, run by name with their figures shown.

    pytest -m slow -s tests/server/test_load.py

SEKV_SECONDS: how long the clients ask (60). SEKV_PAIRS: how often cold and warm take turns (5).
SEKV_STORE: the store that is asked in turns, else one of the first pages of docs/sample.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from engine.ingest.run import ingest
from engine.models.locate import Located
from engine.types import IngestOptions, Silent
from repository import ROOT
from tiny_books import log, read
from tiny_models import checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

CLIENTS = 64
SAMPLE = ROOT / "docs" / "sample" / "dracula.pdf"


@contextmanager
def serving(runtime: Path, *line: str) -> Iterator[str]:
    """The URL of a server that runs meanwhile, and ends cleanly when told to."""
    runtime.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "sekv_cli", "serve", *line, "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "XDG_RUNTIME_DIR": str(runtime)},
    )
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())["url"]
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
        process.stdout.close()


# ---------------------------------------------------------------------------- many clients


class Client:
    """One of many, with a question and a seed of its own that nobody else's answer fits."""

    def __init__(self, speaking: openai.AsyncOpenAI, number: int) -> None:
        self.speaking, self.number = speaking, number
        self.store = ("log", "diary")[number % 2]
        self.question = f"What did client {number} ask of day {number % 7}?"
        self.expected = ""
        self.counts: Counter[str] = Counter()

    async def ask(self, *, stream: bool) -> str:
        """The answer to the own question; what comes back must be of it and of the own store."""
        asked: Any = {
            "model": self.store,
            "messages": [{"role": "user", "content": self.question}],
            "temperature": 4.0,
            "seed": self.number,
        }
        if not stream:
            reply = await self.speaking.chat.completions.create(**asked)
            own, text = reply.sekv, reply.choices[0].message.content  # type: ignore[attr-defined]
            store = reply.model
        else:
            text, own = "", {}
            async for event in await self.speaking.chat.completions.create(**asked, stream=True):
                text += event.choices[0].delta.content or ""
                own, store = getattr(event, "sekv", own), event.model
        assert (own["question"], store) == (self.question, self.store)
        assert own["answer"] == text
        return str(text)

    async def keep_asking(self, until: float) -> None:
        """Ask until then; whoever is refused waits as long as the server says, and tries again."""
        while time.monotonic() < until:
            try:
                answer = await self.ask(stream=self.counts["answered"] % 2 == 1)
            except (openai.RateLimitError, openai.InternalServerError) as refused:
                self.counts[f"refused with {refused.status_code}"] += 1
                await asyncio.sleep(float(refused.response.headers["Retry-After"]))
                continue
            self.counts["answered"] += 1
            assert answer == self.expected


def test_many_clients_for_a_minute_lose_and_mix_nothing(tmp_path: Path) -> None:
    """More of them than may wait, of two stores at once: every answer is the one to the client's
    own question, whoever was refused is told when to come again, and nobody is left out."""
    model = checkpoint("llama", tmp_path / "model")
    stores = [str(read(tmp_path / "a", model))]
    diary = read(tmp_path / "b", model, log(5)).rename(tmp_path / "diary.sekv")
    line = [*stores, str(diary), "--device", "cpu", "--queue", "48", "--max-new-tokens", "6"]
    with serving(tmp_path / "run", *line) as url:
        counts, seconds = asyncio.run(_all_at_once(url))
    whole = sum(counts, Counter())
    assert min(count["answered"] for count in counts) > 0
    assert set(whole) <= {"answered", "refused with 429", "refused with 503"}
    reply = ", ".join(f"{number} {what}" for what, number in sorted(whole.items()))
    least, most = (pick(c["answered"] for c in counts) for pick in (min, max))
    print(f"\n{CLIENTS} clients for {seconds:.0f} s: {reply}; {least} to {most} answers a client")


async def _all_at_once(url: str) -> tuple[list[Counter[str]], float]:
    async with openai.AsyncOpenAI(
        base_url=url, api_key="none", max_retries=0, timeout=300
    ) as speaking:
        clients = [Client(speaking, number) for number in range(CLIENTS)]
        for client in clients:
            client.expected = await client.ask(stream=False)
        assert len({client.expected for client in clients}) == CLIENTS
        began = time.monotonic()
        until = began + float(os.environ.get("SEKV_SECONDS", "60"))
        await asyncio.gather(*(client.keep_asking(until) for client in clients))
        taken = time.monotonic() - began
    with urllib.request.urlopen(f"{url.removesuffix('/v1')}/health") as health:
        assert json.load(health) == {"status": "ok", "waiting": 0}
    return [client.counts for client in clients], taken


# ---------------------------------------------------------------------------- warm and cold


def asked(store: Path, question: str, runtime: Path, *more: str) -> tuple[dict[str, float], Any]:
    """Seconds from the start of `sekv ask` to the answer's first token and to the first text that
    is shown, and the answer.

    The moment its JSON arrives, less what the answer took after them.
    """
    at = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "sekv_cli", "ask", str(store), question, "--json", *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "XDG_RUNTIME_DIR": str(runtime)},
    ) as process:
        assert process.stdout is not None
        answer = json.loads(process.stdout.readline())
        taken = time.perf_counter() - at
    total, first = answer["timing"]["total_s"], answer["timing"]["first_token_s"]
    shown = answer["stats"]["first_text_s"]
    return {"token": taken - (total - first), "text": taken - (total - shown)}, answer


def test_a_warm_server_beside_cold_processes(smollm2: Located, tmp_path: Path) -> None:
    """In turns, each question asked of both; only the ratio is meant to be quoted."""
    named = os.environ.get("SEKV_STORE")
    store = Path(named).resolve() if named else tmp_path / "sample.sekv"
    if not named:
        ingest([str(SAMPLE)], store, IngestOptions(pages="1-4"), Silent())
    questions = (SAMPLE.parent / "questions.txt").read_text(encoding="utf-8").splitlines()
    pairs = int(os.environ.get("SEKV_PAIRS", "5"))
    cold, warm, nothing = [], [], []
    with serving(tmp_path / "run", str(store)):
        asked(store, "Who warned Jonathan Harker?", tmp_path / "run")
        for number in range(pairs):
            question = questions[number % len(questions)]
            taken, alone = asked(store, question, tmp_path / "run", "--no-server")
            cold.append(taken)
            taken, reply = asked(store, question, tmp_path / "run")
            warm.append(taken)
            at = time.perf_counter()
            subprocess.run([sys.executable, "-P", "-c", "pass"], check=True)
            nothing.append(time.perf_counter() - at)
            assert alone["timing"]["model_load_s"] > 0 == reply["timing"]["model_load_s"]
            for part in ("answer", "citations", "usage", "memory"):
                assert alone[part] == reply[part]
    print(
        f"\n{pairs} pairs of {alone['usage']['document_tokens']} tokens; a Python process that "
        f"does nothing takes {statistics.median(nothing):.2f} s"
    )
    for what in ("token", "text"):
        ratios = sorted(c[what] / w[what] for c, w in zip(cold, warm, strict=True))
        print(
            f"first {what}: cold {statistics.median(c[what] for c in cold):.2f} s, warm "
            f"{statistics.median(w[what] for w in warm):.2f} s; {statistics.median(ratios):.1f} "
            f"times as fast, {ratios[0]:.1f} to {ratios[-1]:.1f} in a pair"
        )
