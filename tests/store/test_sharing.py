"""One store and many who ask it: the same answers, and only what is needed is read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.answer.session import Session
from engine.models.reader import Reader, load_reader
from engine.store.manifest import DOCUMENT, NAME, device_file, host_file
from repository import ROOT, environment
from tiny_books import session

QUESTIONS = ["How many whales?", "Did it rain on day 7?"]
MANY = 8


# ---------------------------------------------------------------------------- many at once


def told(opened: Session, question: str) -> list[Any]:
    """Everything of an answer but how long it took."""
    answer = opened.ask(question).to_json()
    del answer["stats"]["first_text_s"]
    return [answer[key] for key in ("answer", "citations", "usage", "memory", "stats")]


def test_eight_processes_at_once_answer_as_one_after_another(
    many: Path, reader: Reader, tmp_path: Path
) -> None:
    """Eight processes open the store in the same instant and ask it the same questions."""
    command = [sys.executable, __file__, reader.identity.id, str(many), str(tmp_path)]
    env = environment(TOKENIZERS_PARALLELISM="false")
    subprocess.run(command, check=True, cwd=ROOT, env=env)
    alone = json.loads((tmp_path / "alone").read_text())
    assert [len(answers) for answers in alone] == [5] * len(QUESTIONS)
    for index in range(MANY):
        assert json.loads((tmp_path / str(index)).read_text()) == alone


def answers(model: Reader, store: Path) -> str:
    with session(store, model, budget="30%", max_new_tokens=2) as opened:
        return json.dumps([told(opened, question) for question in QUESTIONS])


def together(model: str, store: Path, out: Path) -> None:
    """Load once, answer alone, then fork and answer all at once."""
    reader = load_reader(model, device="cpu")
    (out / "alone").write_text(answers(reader, store))
    gate, opener = os.pipe()
    children = []
    for index in range(MANY):
        child = os.fork()
        if child == 0:
            os.close(opener)
            os.read(gate, 1)  # until the gate opens for all
            (out / str(index)).write_text(answers(reader, store))
            os._exit(0)
        children.append(child)
    os.close(opener)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * MANY


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_eight_commands_at_once_answer_as_one_after_another(many: Path) -> None:
    """The same through the command line, each process with a model of its own."""
    line = [sys.executable, "-m", "sekv_cli", "ask", str(many), QUESTIONS[0], "--json"]
    line += ["--max-new-tokens", "8"]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(line, stdout=subprocess.PIPE, text=True, cwd=ROOT)

    def said(process: subprocess.Popen[str]) -> dict[str, Any]:
        out, _ = process.communicate()
        found: dict[str, Any] = json.loads(out)
        del found["timing"]
        return found

    alone = said(start())
    assert all(said(process) == alone for process in [start() for _ in range(MANY)])


# ---------------------------------------------------------------------------- what is read


def bytes_read_by_process() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(lines[0].removeprefix("rchar: "))


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="no /proc/self/io")
def test_opening_reads_the_device_sections_and_no_code(many: Path, reader: Reader) -> None:
    """By the store's own counters, which are the system's to the byte; codes come with the zoom,
    and no token of the document is read by the model again."""
    with session(many, reader) as warm:  # whatever Python reads to get there
        warm.ask(QUESTIONS[0])
    before = bytes_read_by_process()
    overhead = bytes_read_by_process() - before
    before = bytes_read_by_process()
    with session(many, reader, budget="30%") as opened:
        system = bytes_read_by_process() - before - overhead
        files, windows = opened.store.manifest.files, len(opened.store.manifest.windows)
        sections = [opened.store.host(window) for window in range(windows)]
        headers = sum(section.bytes_read for section in sections)
        for section in sections:
            section.close()
        device, host = opened.store.device_bytes_read, opened.store.host_bytes_read - headers
        assert device + host == system
        assert host == headers  # one header per window
        assert headers < sum(files[host_file(window)].bytes for window in range(windows)) / 2
        at_most = sum(entry.bytes + 8 for name, entry in files.items() if "host" not in name)
        # The document's file is opened for its tables and again for its texts.
        with (many / DOCUMENT).open("rb") as file:
            again = 8 + 8 + int.from_bytes(file.read(8), "little")
        assert device <= at_most + again + (many / NAME).stat().st_size
        assert device > sum(files[device_file(window)].bytes for window in range(windows))
        before = opened.store.host_bytes_read
        answer = opened.ask(QUESTIONS[1])
        model = opened.store.manifest.model
        tables = sum(
            8 * model.layers * (entry.spans * (model.kv_heads + 1) + 1)
            for entry in opened.store.manifest.windows
        )
        assert answer.stats["fetched_bytes"] > 0
        assert answer.stats["read_host_bytes"] == opened.store.host_bytes_read
        assert opened.store.host_bytes_read == before + tables + answer.stats["fetched_bytes"]
        assert answer.usage.recomputed_document_tokens == 0


def test_tokens_of_the_document_that_are_read_again_are_counted(many: Path, reader: Reader) -> None:
    """The zero that answers report is a count: a forward that stands in the document shows."""
    import torch

    with session(many, reader) as opened, torch.inference_mode():
        before = opened.memory.shared.recomputed_tokens
        places = torch.arange(5)[None] + opened.memory.length - 3
        ids = torch.tensor([[1, 2, 3, 4, 5]])
        reader.model(input_ids=ids, position_ids=places, past_key_values=opened.past.cache())
        assert opened.memory.shared.recomputed_tokens - before == 3
        assert opened.ask(QUESTIONS[0]).usage.recomputed_document_tokens == 0


if __name__ == "__main__":
    together(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
