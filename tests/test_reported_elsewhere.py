"""What people reported of tools of this trade, tried here: nothing is read twice, nothing grows
with the number of files, nothing needs a network that is not there.

Each test names the public report that it follows.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import toy_store
from engine.ingest import run as use_case
from engine.models.reader import Reader
from engine.types import IngestOptions, Silent
from fake_model import replace_loading
from repository import environment
from sekv_cli.main import run
from tiny_books import QUESTION, TEXT, session

FILES = 500


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_asking_twice_reads_nothing_of_the_document_again(store: Path, reader: Reader) -> None:
    """paper-qa 1257, open-webui 23057: the whole document was processed at every question."""
    with session(store, reader) as opened:
        first, again = opened.ask(QUESTION), opened.ask(QUESTION)
    for answer in (first, again):
        assert answer.usage.recomputed_document_tokens == 0
        assert answer.usage.document_tokens == len(TEXT)
    assert again.answer == first.answer
    assert again.stats["read_bytes"] == first.stats["read_bytes"]


def test_ingesting_twice_says_so_and_loads_no_model(
    store: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """paper-qa 1257: old files were indexed anew at every run."""

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("a model was loaded")

    replace_loading(monkeypatch, never)
    before = toy_store.tree(store)
    line = ["ingest", str(store.parent / "log.txt"), "-o", str(store), "--model", str(model)]
    assert run([*line, "--json"]) == 2
    assert json.loads(capsys.readouterr().err)["error"]["code"] == "store_exists"
    assert toy_store.tree(store) == before


def test_five_hundred_files_make_one_store_in_bounded_memory(
    model: Path, reader: Reader, tmp_path: Path, instant_disk: None
) -> None:
    """open-webui 25867: memory grew with every file until the process was restarted."""
    names = []
    for number in range(FILES):
        file = tmp_path / f"note-{number}.txt"
        file.write_text(f"Keeper {number} is {number * 7 % 97}.")
        names.append(str(file))
    options = IngestOptions(model=str(model), device="cpu")
    before, open_before = resident_bytes(), descriptors()
    report = use_case.ingest(names, tmp_path / "all.sekv", options, Silent(), None, reader)
    assert len(report.sources) == FILES
    assert descriptors() <= open_before
    assert resident_bytes() - before < 300e6
    with session(tmp_path / "all.sekv", reader, max_new_tokens=2) as opened:
        answer = opened.ask(f"Who is keeper {FILES - 1}?")
        assert opened.book is not None
    assert answer.usage.recomputed_document_tokens == 0


def test_a_folder_of_many_stores_is_listed_in_bounded_memory(
    tmp_path: Path, instant_disk: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same report: nothing of a store stays open or in memory when the next is looked at."""
    first = tmp_path / "00000.sekv"
    toy_store.ingest(first)
    for number in range(1, FILES):
        (tmp_path / f"{number:05}.sekv").symlink_to(first)
    open_before = descriptors()
    assert run(["list", str(tmp_path), "--json"]) == 0
    before = resident_bytes()
    found = json.loads(capsys.readouterr().out)["stores"]
    assert run(["list", str(tmp_path), "--json"]) == 0
    assert len(found) == FILES
    assert not any(entry["problem"] for entry in found)
    assert descriptors() <= open_before  # others may have been closed meanwhile
    assert resident_bytes() - before < 30e6


# ---------------------------------------------------------------------------- no network


@pytest.fixture
def silent_proxy() -> Iterator[tuple[str, list[Any]]]:
    """A proxy that takes connections and never says a word; and the connections it got."""
    taken: list[Any] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def accept() -> None:
            while True:
                try:
                    taken.append(listening.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", taken
        listening.shutdown(socket.SHUT_RDWR)
    thread.join(10)
    for connection in taken:
        connection.close()


def test_what_is_here_needs_no_network(
    store: Path, model: Path, silent_proxy: tuple[str, list[Any]], tmp_path: Path
) -> None:
    """khoj 458, private-gpt 467: the start failed offline; zvec-grep 74: a proxy hung it. Reading a
    document and asking its store with a model's folder connects to nobody."""
    url, taken = silent_proxy
    env = {name: value for name, value in environment().items() if "OFFLINE" not in name}
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        env |= {name: url, name.lower(): url}
    program = (
        "import sys\nfrom sekv_cli.main import run\n"
        f"line = ['ingest', {str(store.parent / 'log.txt')!r}, '-o', 'new.sekv', '--model', "
        f"{str(model)!r}]\n"
        "sys.exit(run(line) or run(['ask', 'new.sekv', 'Who?', '--max-new-tokens', '2']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=env,
    )
    assert done.returncode == 0, done.stderr
    assert taken == []
