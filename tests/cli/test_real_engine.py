"""The command line on the real engine: a small random model, a real document, real files."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from engine.types import IngestOptions
from json_schemas import valid
from sekv_cli.main import run
from tiny_architectures import full_attention, save
from tiny_models import checkpoint

TEXT = "".join(
    f"The keeper of lighthouse {i} is called {name}. It was a quiet evening, and it rained.\n\n"
    for i, name in enumerate(["Ana", "Bo", "Cy", "Dora", "Emil", "Finn", "Greta", "Hal"])
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a document, and the store that `sekv ingest` made of them."""
    place = tmp_path_factory.mktemp("real")
    checkpoint("llama", place / "model")
    (place / "book.txt").write_text(TEXT, encoding="utf-8")
    line = ["ingest", str(place / "book.txt"), "-o", str(place / "book.sekv")]
    assert run([*line, "--model", str(place / "model"), "--device", "cpu"]) == 0
    return place


def records(capsys: pytest.CaptureFixture[str]) -> list[Any]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_document_goes_in_and_answers_come_out(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two questions, one load; citations are exact slices; no document token is read again."""
    store = str(place / "book.sekv")
    capsys.readouterr()
    assert run(["ask", store, "Who?", "Where?", "--max-new-tokens", "4", "--json"]) == 0
    answers = records(capsys)
    assert [answer["question"] for answer in answers] == ["Who?", "Where?"]
    for answer in answers:
        assert answer["usage"]["recomputed_document_tokens"] == 0
        assert answer["usage"]["document_tokens"] == len(TEXT)
        for citation in answer["citations"]:
            assert TEXT[citation["start"] : citation["end"]] == citation["text"]


def test_people_see_the_same_answer_as_scripts(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Streamed, at once or as JSON, the answer has the same words."""
    from sekv_cli.format import clean

    line = ["ask", str(place / "book.sekv"), "Who?", "--max-new-tokens", "4"]
    capsys.readouterr()
    assert run([*line, "--json"]) == 0
    answer = clean(records(capsys)[0]["answer"])
    assert run(line) == 0
    streamed = capsys.readouterr().out
    assert run([*line, "--no-stream"]) == 0
    assert capsys.readouterr().out == streamed
    assert streamed.startswith(answer)


def test_what_was_traced_can_be_inspected(
    place: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The trace of an answer and a question asked by `inspect` show the same decisions."""
    store, trace = str(place / "book.sekv"), str(tmp_path / "trace.json")
    short = ["--max-new-tokens", "3"]
    assert run(["ask", store, "Who?", "--trace", trace, *short]) == 0
    capsys.readouterr()
    assert run(["inspect", store, "--trace", trace, "--json"]) == 0
    traced = records(capsys)[0]
    assert run(["inspect", store, "--question", "Who?", "--json", *short]) == 0
    asked = records(capsys)[0]
    for recorded, seen in zip(traced["zoom"], asked["zoom"], strict=True):
        assert recorded == pytest.approx(seen, rel=1e-3)  # a trace file has four digits of a share
    assert traced["manifest"]["tokens"] == len(TEXT)
    assert sum(window["spans"] for window in traced["manifest"]["windows"]) == len(traced["spans"])
    for line in (["inspect", store], ["inspect", store, "--trace", trace]):
        assert run(line) == 0
        assert "surprisal" in capsys.readouterr().out


def test_the_shown_text_is_the_document_s(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the marks of spans and anchors, the stretch is what the source says."""
    assert "|" not in TEXT
    assert "[" not in TEXT
    capsys.readouterr()
    assert run(["inspect", str(place / "book.sekv"), "--text", "10:80"]) == 0
    shown = capsys.readouterr().out
    for mark in "|[]":
        shown = shown.replace(mark, "")
    assert shown.rstrip("\n") == TEXT[10:80].rstrip("\n")


def test_damage_is_found_and_named(
    place: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """One changed byte: `verify` ends with 1 and says where; a sound store ends with 0."""
    store = tmp_path / "copy.sekv"
    shutil.copytree(place / "book.sekv", store)
    assert run(["verify", str(store)]) == 0
    damaged = next((store / "windows").glob("*.host.safetensors"))
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    capsys.readouterr()
    assert run(["verify", str(store), "--json"]) == 1
    found = records(capsys)[0]
    assert not found["ok"]
    assert any(damaged.name in line for line in found["damaged"])


def test_a_source_that_changed_since_is_told(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By `inspect`, for people and scripts alike, and by `verify`, which finds no damage in it."""
    store, source = str(place / "book.sekv"), place / "book.txt"
    capsys.readouterr()
    assert run(["inspect", store, "--json"]) == 0
    assert records(capsys)[0]["changed"] == []
    source.write_text(TEXT + "More.", encoding="utf-8")
    try:
        assert run(["inspect", store, "--json"]) == 0
        (changed,) = records(capsys)[0]["changed"]
        assert str(source) in changed
        assert run(["inspect", store]) == 0
        assert "changed since" in " ".join(capsys.readouterr().out.split())
        assert run(["verify", store, "--json"]) == 0
        assert records(capsys)[0]["sources"] == [changed]
    finally:
        source.write_text(TEXT, encoding="utf-8")


def test_list_finds_the_store(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With its model, its tokens and the bytes that the file system has."""
    capsys.readouterr()
    assert run(["list", str(place), "--json"]) == 0
    (found,) = records(capsys)[0]["stores"]
    assert found["tokens"] == len(TEXT)
    files = [file for file in (place / "book.sekv").rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    assert found["bytes"] == size
    assert run(["verify", str(place / "book.sekv"), "--json"]) == 0
    assert records(capsys)[0]["bytes"] == size
    assert run(["inspect", str(place / "book.sekv"), "--json"]) == 0
    tiers = records(capsys)[0]["tiers"]
    assert sum(tiers[name] for name in ("device", "host", "document", "manifest")) == size


IMPOSSIBLE = [
    ("ingest missing.pdf", "missing.pdf"),
    ("ingest book.txt -o book.sekv --model model", "--overwrite"),
    ("ingest book.txt -o new.sekv --model model --method nonsense", "sekv-paper"),
    ("ingest book.txt -o new.sekv --model nowhere/at-all", "nowhere/at-all"),
    ("ask missing.sekv Who?", "missing.sekv"),
    ("ask missing.pdf Who?", "there is neither a document missing.pdf nor a store of it"),
    ("chat missing.pdf", "there is neither a document missing.pdf nor a store of it"),
    ("ask book.txt Who? --pages 1", "--pages selects pages of a PDF"),
    ("ask book.txt Who? --window 100", "not 100 tokens; leave --window out"),
    ("chat book.txt --method full", "by the method sekv, not full; leave --method out"),
    ("ask book.txt Who? --chunk-tokens 64", "book.sekv is read already"),
    ("ask book.txt Who? -o model", "model is there and no store: name another with -o"),
    ("ask book.sekv Who? --window 100", "book.sekv is read already"),
    ("ask book.sekv Who? -o other.sekv", "book.sekv is a store"),
    ("ask book.txt Who? -o other.sekv --method nonsense --model model", "sekv-paper"),
    ("ask missing.sekv book.sekv Who?", "book.sekv is a store, and one is asked at a time"),
    ("ask book.sekv Who? --device cuda:99", "cuda:99"),
    ("inspect book.sekv --layer 99", "99"),
    ("inspect book.sekv --text 999999:9999999", "characters"),
    ("inspect book.sekv --text 0:5 --source 9", "no source 9"),
    ("inspect book.sekv --trace book.txt", "book.txt is not a trace"),
    ("verify missing.sekv", "missing.sekv"),
    ("list missing", "missing"),
]


def test_what_cannot_be_done_is_one_line(
    place: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    subtests: pytest.Subtests,
) -> None:
    """Code 2, the reason and nothing else."""
    monkeypatch.chdir(place)
    capsys.readouterr()
    for line, said in IMPOSSIBLE:
        with subtests.test(line=line):
            assert run(line.split()) == 2
            captured = capsys.readouterr()
            assert captured.out == ""
            printed = captured.err.splitlines()
            assert said in printed[-1]
            assert printed[-1].startswith("sekv: ")
            assert "Traceback" not in captured.err
            assert not (place / "new.sekv").exists()


def test_interrupted_leaves_nothing_half_and_goes_on(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C while reading: code 130, one line, no store; the same command finishes the work."""
    book = tmp_path / "long.txt"
    book.write_text(TEXT * 10, encoding="utf-8")
    store = tmp_path / "long.sekv"
    line = ["ingest", str(book), "-o", str(store), "--model", str(place / "model")]
    line += ["--device", "cpu", "--json", "--window", "1024", "--chunk-tokens", "256"]
    running = subprocess.Popen(
        [sys.executable, "-P", "-m", "sekv_cli", *line],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # What starts the tests in the background may have told them to ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    journal = tmp_path / ".long.sekv.work" / "journal"
    limit = time.monotonic() + 120
    while running.poll() is None and time.monotonic() < limit:
        if journal.exists() and journal.read_bytes().count(b"\n") >= 3:
            break
        time.sleep(0.05)
    os.kill(running.pid, signal.SIGINT)
    out, err = running.communicate(timeout=120)
    assert running.returncode == 130, err
    assert out == ""
    printed = json.loads(err.splitlines()[-1])["error"]
    assert printed == {
        "code": "interrupted",
        "message": "interrupted; run the same command to continue",
    }
    assert "Traceback" not in err
    assert not store.exists()
    capsys.readouterr()
    assert run(line) == 0
    assert records(capsys)[0]["resumed_tokens"] > 0
    assert store.is_dir()
    assert not journal.exists()


def test_what_has_headings_has_no_pages(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A plan tells how long a source is, in the parts that it is cited by."""
    (place / "notes.md").write_text(f"# One\n\n{TEXT}\n# Two\n\n{TEXT}", encoding="utf-8")
    capsys.readouterr()
    assert (
        run(["ingest", str(place / "notes.md"), "--model", str(place / "model"), "--dry-run"]) == 0
    )
    assert "2 sections" in capsys.readouterr().out


def test_the_options_of_the_environment_reach_the_engine(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SEKV_MODEL names the model; a dry run reads no weights and agrees with the real one."""
    monkeypatch.setenv("SEKV_MODEL", str(place / "model"))
    capsys.readouterr()
    assert run(["ingest", str(place / "book.txt"), "--dry-run", "--json"]) == 0
    plan = records(capsys)[0]
    assert plan["dry_run"]
    assert plan["tokens"] == len(TEXT)
    assert plan["method"] == IngestOptions().method


def test_a_cut_answer_is_marked_wherever_it_is_shown(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By `ask`, by `inspect` of a question and of a trace, and on its page."""
    store, trace, page = str(place / "book.sekv"), tmp_path / "trace.json", tmp_path / "page.html"
    asked = ["Who?", "--max-new-tokens", "2"]
    assert run(["ask", store, *asked, "--trace", str(trace)]) == 0
    assert "(cut short)" in capsys.readouterr().out
    for line in (["-q", *asked], ["--trace", str(trace)]):
        assert run(["inspect", store, *line]) == 0
        assert "(cut short)" in capsys.readouterr().out
    assert run(["inspect", store, "--trace", str(trace), "--html", str(page)]) == 0
    assert "(cut short)" in page.read_text()
    assert run(["inspect", store, "-q", *asked, "--json"]) == 0
    capsys.readouterr()


def test_a_source_whose_name_is_no_text_goes_all_the_way(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """File systems take any bytes as a name; those of another encoding come with old archives."""
    source = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")
    Path(source).write_text(TEXT)
    store = source.removesuffix(".txt") + ".sekv"
    model = ["--model", str(place / "model"), "--device", "cpu"]
    assert run(["ingest", source, "-o", store, *model]) == 0
    assert run(["ask", store, "Who?", "--max-new-tokens", "2", "--json"]) == 0
    for line in (["list", str(tmp_path)], ["verify", store], ["inspect", store]):
        assert run(line) == 0
    captured = capsys.readouterr()
    assert "caf\ufffd" in captured.out or "caf\udce9" in captured.out
    assert "changed since" not in captured.out + captured.err


def test_a_model_is_checked_by_name(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that passes, and one that is refused: exit code 1, and why."""
    capsys.readouterr()
    assert run(["models", "check", str(place / "model"), "--json"]) == 0
    (found,) = records(capsys)
    assert valid("models-check", found)["passed"]
    assert found["difference"] <= found["tolerance"]
    refused = place / "refused"
    save(full_attention("diffllama"), refused)
    assert run(["models", "check", str(refused)]) == 1
    assert "refused: DiffLlamaAttention changes keys" in capsys.readouterr().out
    assert run(["models", "check", str(place / "nothing")]) == 2
