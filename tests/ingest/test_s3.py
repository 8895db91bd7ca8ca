"""The command line against a real S3 server on loopback: `pytest tests/ingest/test_s3.py -m s3`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine import api
from engine.models.locate import Located
from engine.object_storage import ObjectUrl, bucket
from engine.types import AskOptions
from object_server import BUCKET, OTHER_BUCKET, Gate, running
from tiny_books import QUESTION, TEXT, log
from tiny_models import checkpoint

pytestmark = pytest.mark.s3

STORE = os.environ.get("SEKV_STORE", "")  # of the default model, for `-k figures`
QUESTIONS = (
    "Who was the first to speak?",
    "What did they find in the house?",
    "Where did he go by train?",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("s3")
    checkpoint("llama", folder / "model")
    (folder / "log.txt").write_text(TEXT, encoding="utf-8")
    return folder


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Gate, dict[str, str]]]:
    with running(tmp_path) as found:
        yield found


def start(line: list[str], environment: dict[str, str], cache: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "sekv_cli", *line],
        env=os.environ | environment | {"SEKV_CACHE": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def sekv(
    line: list[str], environment: dict[str, str], cache: Path, code: int = 0
) -> tuple[Any, str]:
    """The JSON that a command prints, None where it fails, and what it says on stderr."""
    process = start([*line, "--json"], environment, cache)
    out, said = process.communicate(timeout=250)
    assert process.returncode == code, said
    return (json.loads(out) if code == 0 else None), said


def reading(place: Path, store: str) -> list[str]:
    model = ["--model", str(place / "model"), "--device", "cpu", "--window", "80"]
    return ["ingest", str(place / "log.txt"), "-o", store, *model]


def kill_after(gate: Gate, count: int, process: subprocess.Popen[str]) -> None:
    """Kill a command when so many bytes passed the gate, either way."""
    passed, until = gate.received + gate.sent + count, time.monotonic() + 200
    while gate.received + gate.sent < passed and process.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def refusal(said: str, environment: dict[str, str]) -> str:
    """The one line of an error; it has no secret in it."""
    errors = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert len(errors) == 1
    assert environment["AWS_SECRET_ACCESS_KEY"] not in said
    assert environment["AWS_ACCESS_KEY_ID"] not in said
    message = str(errors[0]["error"]["message"])
    assert "\n" not in message
    return message


def test_a_store_is_written_asked_and_appended_to(
    place: Path, server: tuple[Gate, dict[str, str]], tmp_path: Path
) -> None:
    gate, environment = server
    store = f"s3://{BUCKET}/books/log.sekv"
    made, _ = sekv(reading(place, store), environment, tmp_path / "a")
    assert made["store"] == store
    _, said = sekv(reading(place, store), environment, tmp_path / "a", code=2)
    assert "as it is" in refusal(said, environment)

    asked = ["ask", store, QUESTION, "--max-new-tokens", "4", "--budget", "20%"]
    first, _ = sekv(asked, environment, tmp_path / "b")
    before = gate.sent
    again, _ = sekv(asked, environment, tmp_path / "b")
    assert again["answer"] == first["answer"]
    headers = 8 * 1024  # of the answers to a handful of requests, and the listing
    assert gate.sent - before <= again["stats"]["received_bytes"] + headers
    assert again["stats"]["received_bytes"] < first["stats"]["received_bytes"]

    (tmp_path / "more.txt").write_text(log(14)[len(TEXT) :], encoding="utf-8")
    more = ["ingest", str(tmp_path / "more.txt"), "--append", store, "--device", "cpu"]
    longer, _ = sekv(more, environment, tmp_path / "c")
    assert longer["tokens"] > made["tokens"]
    checked, _ = sekv(["verify", store], environment, tmp_path / "d")
    assert (checked["ok"], checked["damaged"]) == (True, [])
    listed, _ = sekv(["list", f"s3://{BUCKET}/books"], environment, tmp_path / "d")
    assert [found["path"] for found in listed["stores"]] == [store]


def test_wrong_credentials_and_wrong_names_are_one_line(
    place: Path, server: tuple[Gate, dict[str, str]], tmp_path: Path
) -> None:
    _, environment = server
    store = f"s3://{BUCKET}/books/log.sekv"
    wrong = environment | {"AWS_SECRET_ACCESS_KEY": "not-the-secret"}
    stranger = environment | {"AWS_ACCESS_KEY_ID": "AKIASTRANGER"}
    cases = (
        (["ask", store, "Who?"], environment, "there is no store"),
        (["ask", "s3://nosuch/log.sekv", "Who?"], environment, "there is no"),
        (["ask", store, "Who?"], wrong, "check the credentials"),
        (["ask", store, "Who?"], stranger, "check the credentials"),
        (reading(place, store), wrong, "check the credentials"),
    )
    for line, under, expected in cases:
        _, said = sekv(line, under, tmp_path / "cache", code=2)
        assert expected in refusal(said, under)


def test_a_server_that_goes_is_one_line_and_nothing_is_lost(
    place: Path, server: tuple[Gate, dict[str, str]], tmp_path: Path
) -> None:
    """It goes in the middle of the upload, comes back, goes in the middle of a question."""
    gate, environment = server
    store = f"s3://{BUCKET}/books/log.sekv"
    gate.shut_after = gate.sent + gate.received + 60_000
    _, said = sekv(reading(place, store), environment, tmp_path / "a", code=2)
    assert "run the same command again" in refusal(said, environment)
    gate.shut_after = None
    made, _ = sekv(reading(place, store), environment, tmp_path / "a")
    assert made["resumed_tokens"] == made["tokens"]

    asked = ["ask", store, QUESTION, "--max-new-tokens", "4"]
    gate.shut_after = gate.sent + gate.received + 60_000
    _, said = sekv(asked, environment, tmp_path / "b", code=2)
    assert "broke off" in refusal(said, environment)
    gate.shut_after = None
    sekv(asked, environment, tmp_path / "b")


def test_an_upload_that_was_killed_is_completed(
    place: Path, server: tuple[Gate, dict[str, str]], tmp_path: Path
) -> None:
    gate, environment = server
    store = f"s3://{BUCKET}/books/log.sekv"
    kill_after(gate, 40_000, start(reading(place, store), environment, tmp_path / "a"))
    _, said = sekv(["ask", store, "Who?"], environment, tmp_path / "b", code=2)
    assert "interrupted" in refusal(said, environment)
    made, _ = sekv(reading(place, store), environment, tmp_path / "a")
    assert made["resumed_tokens"] == made["tokens"]
    checked, _ = sekv(["verify", store], environment, tmp_path / "d")
    assert checked["ok"]


@pytest.mark.timeout(1200)
def test_a_library_is_filled_by_two_hosts_asked_and_emptied(
    place: Path, server: tuple[Gate, dict[str, str]], tmp_path: Path
) -> None:
    """From objects, by two commands at once; each host has a cache of its own."""
    import boto3

    _, environment = server
    key, secret = environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"]
    client = boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        region_name="us-east-1",
        aws_access_key_id=key,
        aws_secret_access_key=secret,
    )
    for number in range(3):
        text = f"Ship number {number} was called {['Ann', 'Bea', 'Cyd'][number]}.\n" + log(2)
        client.put_object(Bucket=BUCKET, Key=f"logs/{number}.txt", Body=text.encode())
    library = f"s3://{BUCKET}/library/"
    line = ["ingest", f"s3://{BUCKET}/logs/", "-o", library]
    line += ["--model", str(place / "model"), "--device", "cpu"]
    hosts = [start([*line, "--json"], environment, tmp_path / cache) for cache in "ab"]
    reports = [json.loads(host.communicate(timeout=500)[0]) for host in hosts]
    stores = ["0.sekv", "1.sekv", "2.sekv"]
    for report in reports:
        assert [each["store"] for each in report["documents"]] == stores
        assert {each["state"] for each in report["documents"]} <= {"read", "unchanged"}
    outcomes = [each for report in reports for each in report["documents"]]
    read = [each for each in outcomes if each["state"] == "read" and not each["reason"]]
    assert len(read) == 3  # no document twice
    asked = ["ask", library, "Which ship was called Bea?", "--max-new-tokens", "2"]
    answer, _ = sekv(asked, environment, tmp_path / "c")
    assert answer["store"] == "1.sekv"
    again, _ = sekv(line, environment, tmp_path / "a")
    assert {each["state"] for each in again["documents"]} == {"unchanged"}
    sekv(["rm", *(f"{library}{name}" for name in stores)], environment, tmp_path / "c")
    assert "Contents" not in client.list_objects_v2(Bucket=BUCKET, Prefix="library/")


def test_a_store_moves_into_a_bucket_to_another_and_out_again_though_it_is_killed(
    place: Path, server: tuple[Gate, dict[str, str]], tmp_path: Path
) -> None:
    """Killed in the middle of its upload and of its download; it loses a source on the way."""
    gate, environment = server
    near, store = tmp_path / "log.sekv", f"s3://{BUCKET}/books/log.sekv"
    line = ["ingest", str(place / "log.txt"), "-o", str(near), "--window", "80", "--device", "cpu"]
    sekv([*line, "--model", str(place / "model")], environment, tmp_path / "a")
    (tmp_path / "more.txt").write_text(log(14)[len(TEXT) :], encoding="utf-8")
    more = ["ingest", str(tmp_path / "more.txt"), "--append", str(near), "--device", "cpu"]
    sekv(more, environment, tmp_path / "a")

    kill_after(gate, 30_000, start(["mv", str(near), store], environment, tmp_path / "a"))
    assert (near / "manifest.json").is_file()
    _, said = sekv(["ask", store, "Who?"], environment, tmp_path / "b", code=2)
    assert "interrupted" in refusal(said, environment)
    moved, _ = sekv(["mv", str(near), store], environment, tmp_path / "a")
    assert moved == {"store": store}
    assert not near.exists()

    less, _ = sekv(["rm", store, "--source", "more.txt"], environment, tmp_path / "b")
    assert less["sources"] == [str(place / "log.txt")]
    other = f"s3://{OTHER_BUCKET}/log.sekv"
    sekv(["mv", store, f"s3://{OTHER_BUCKET}"], environment, tmp_path / "b")
    listed, _ = sekv(["list", f"s3://{BUCKET}"], environment, tmp_path / "b")
    assert listed["stores"] == []

    kill_after(gate, 30_000, start(["mv", other, str(near)], environment, tmp_path / "b"))
    assert not near.exists()
    sekv(["mv", other, str(near)], environment, tmp_path / "b")
    checked, _ = sekv(["verify", str(near)], environment, tmp_path / "b")
    assert checked["ok"]
    _, said = sekv(["verify", other], environment, tmp_path / "b", code=2)
    assert "there is no store" in refusal(said, environment)


@pytest.mark.skipif(not STORE, reason="SEKV_STORE names no store")
def test_figures_of_a_real_store(
    smollm2: Located,
    server: tuple[Gate, dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bytes of three questions in one session and three in the next, with -s; after the first each
    takes at most a twentieth of the full cache."""
    gate, environment = server
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    store = Path(STORE)
    url = ObjectUrl(f"s3://{BUCKET}", store.name)
    files = [file for file in sorted(store.rglob("*")) if file.is_file()]
    for file in files:
        bucket(url).upload(f"{url.key}/{file.relative_to(store).as_posix()}", file)
    rows = []
    for session in (1, 2):
        before, fetched = gate.sent, 0
        with api.open_store(url, AskOptions(max_new_tokens=24)) as book:
            for question in QUESTIONS:
                answer = book.ask(question)
                now = answer.stats["received_bytes"]
                width = {"float32": 4}.get(book.store.manifest.dtype, 2)
                row = {
                    "session": session,
                    "question": question,
                    "fetched_bytes": now - fetched,
                    "requests": answer.stats["requests"],
                    "server_sent_bytes": gate.sent - before,
                    "full_16_bit_cache_bytes": answer.memory.full_kv_bytes * 2 // width,
                }
                print(json.dumps(row))
                rows.append(row)
                fetched = now
    assert all(20 * row["fetched_bytes"] <= row["full_16_bit_cache_bytes"] for row in rows[1:])
