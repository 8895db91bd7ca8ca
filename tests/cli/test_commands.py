"""The commands' own logic, against a small engine that records what it is asked."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import engine.answer
from engine import api
from engine.errors import (
    DocumentError,
    FormatError,
    OptionError,
    SekvError,
    StoreDamagedError,
    StoreError,
)
from engine.types import (
    Answer,
    AskOptions,
    Citation,
    IngestOptions,
    IngestReport,
    InspectReport,
    MemoryUse,
    Move,
    Plan,
    SourceReport,
    SpanView,
    Usage,
    ZoomView,
)
from sekv_cli.endings import explain
from sekv_cli.main import run

SOURCE = SourceReport("book.pdf", 318, 900_000, "ab" * 32)
TIMING = {"read_s": 0.5, "tokenize_s": 0.25, "prefill_s": 60.0, "total_s": 75.0}
MANIFEST: dict[str, Any] = {
    "creator": "sekv 0.1.0",
    "model": {
        "id": "reader",
        "architecture": "LlamaForCausalLM",
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 64,
    },
    "method": "sekv",
    "tokens": 400,
    "window_tokens": 200,
    "sources": [{"path": "book.pdf", "chars": 1600, "pages": [["1", 0], ["2", 800]]}],
    "windows": [
        {"start": 0, "end": 200, "spans": 10, "anchors": 3},
        {"start": 200, "end": 400, "spans": 10, "anchors": 4},
    ],
}
SPANS = tuple(
    SpanView(
        id=i,
        start_token=20 * i,
        end_token=20 * (i + 1),
        source="book.pdf",
        start=80 * i,
        end=80 * (i + 1),
        page="1" if i < 10 else "2",
        anchor=False,
        surprisal=1.0 + i % 5,
        rank_k=32,
        rank_v=32,
        bytes=640,
    )
    for i in range(20)
)
ZOOM = tuple(
    ZoomView(span, layer, 0, step, 0.25, 0.5)
    for span in (7, 12)
    for layer in (0, 1)
    for step in (0, 1, 2)
)


MOVES = tuple(
    Move(layer, step, *((1000, 5, 1) if step == 0 else (0, 0, 2)))
    for layer in (0, 1)
    for step in (0, 1, 2)
)


EXCERPT = "It is the eve of St. George’s Day. "


class Piece:
    def __init__(self, text: str, span: int, anchor: bool = False) -> None:
        self.text, self.span, self.anchor = text, span, anchor


class FakeEngine:
    """Answers every call of the command line and keeps what it was given."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.failure: BaseException | None = None
        self.citations = (Citation("book.pdf", "6", 10, 34, "the eve of\nSt. George’s Day", 0.8),)
        self.sessions = 0

    def happen(self, name: str, given: Any) -> None:
        self.calls.append((name, given))
        if self.failure is not None:
            raise self.failure

    def plan(self, paths: Any, options: IngestOptions, progress: Any, *, stdin: Any) -> Plan:
        self.happen("plan", (list(paths), options, stdin and stdin.read()))
        return Plan((SOURCE,), "reader", "sekv", 300_000, 147, 2048, 10**9, 2 * 10**8, 10**8)

    def ingest(
        self, paths: Any, target: Path | None, options: IngestOptions, progress: Any, *, stdin: Any
    ) -> IngestReport:
        self.happen("ingest", (list(paths), target, options, stdin and stdin.read()))
        progress.start("prefill", 100, "tokens")
        progress.advance(100)
        progress.note("page 3 has no text")
        return IngestReport(
            store="book.sekv",
            sources=(SOURCE,),
            model="reader",
            method="sekv",
            tokens=300_000,
            windows=147,
            window_tokens=2048,
            spans=20_000,
            anchors=5_000,
            store_bytes=2 * 10**8,
            full_kv_bytes=10**9,
            timing=TIMING,
        )

    def open_store(self, store: Path, options: AskOptions, progress: Any) -> FakeSession:
        self.happen("session", (store, options))
        self.sessions += 1
        return FakeSession(self)

    def inspect(self, store: Path, **given: Any) -> InspectReport:
        self.happen("inspect", (store, given))
        tiers = {"device": 100, "host": 300, "full": 1000}
        if not given["question"] and not given["trace"]:
            changed = ("book.pdf changed since",)
            return InspectReport(MANIFEST, SPANS, (), tiers, changed=changed)
        return InspectReport(
            MANIFEST,
            SPANS,
            ZOOM,
            tiers,
            MOVES,
            given["question"],
            "a b",
            (" a", "\n", " b"),
            self.citations,
        )

    def text(self, store: Path, source: int, start: int, end: int) -> list[Piece]:
        self.happen("text", (source, start, end))
        return [Piece("The eve of ", 0), Piece("St. George", 0, anchor=True), Piece("’s Day", 1)]


class FakeSession:
    def __init__(self, fake: FakeEngine) -> None:
        self.fake = fake
        self.question = ""

    def __enter__(self) -> FakeSession:
        return self

    def __exit__(self, *ending: object) -> None:
        self.fake.calls.append(("closed", None))

    def ask(self, question: str, on_text: Callable[[str], None] | None = None) -> Answer:
        self.fake.happen("ask", question)
        self.question = question
        if on_text is not None:
            for piece in ("St. ", "George’s ", "Day"):
                on_text(piece)
        return Answer(
            question=question,
            answer="St. George’s Day",
            citations=self.fake.citations,
            usage=Usage(300_000, 0, 12, 6),
            memory=MemoryUse(10**8, 10**9, 40, 20_000, 2 * 10**8),
            timing={"model_load_s": 1.0, "first_token_s": 0.25, "tokens_per_s": 40.0},
            stats={"windows": 147},
        )

    def trace(self) -> dict[str, Any]:
        return {"store": "book.sekv", "question": self.question, "zoom": []}


class FakeStore:
    """A store whose check finds what the test says."""

    manifest = None
    damaged: list[str] = []  # noqa: RUF012 - replaced per test
    failure: StoreError | None = None

    @classmethod
    def open(cls, path: Path) -> FakeStore:
        if cls.failure is not None:
            raise cls.failure
        return cls()

    def size(self) -> int:
        return 4096

    def text(self, source: int) -> str:
        return EXCERPT * 50

    def verify(self, progress: Any) -> list[str]:
        progress.start("verify", 10, "bytes")
        progress.advance(10)
        return self.damaged

    def __enter__(self) -> FakeStore:
        return self

    def __exit__(self, *ending: object) -> None: ...


def fake_store(monkeypatch: pytest.MonkeyPatch) -> type[FakeStore]:
    from engine.store import library, reader

    class Fresh(FakeStore): ...

    monkeypatch.setattr(reader, "Store", Fresh)
    monkeypatch.setattr(
        library, "check_sources", lambda manifest, store: ["book.pdf changed since"]
    )
    return Fresh


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeEngine:
    """In a folder with stores of the names that the tests use; nobody reads what is in them."""
    fake = FakeEngine()
    monkeypatch.chdir(tmp_path)
    for name in ("b.sekv", "book.sekv"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").touch()
    for name in ("book.pdf", "locked.pdf", "a.txt", "b.pdf"):
        (tmp_path / name).touch()
    fake_store(monkeypatch)
    for use_case in ("plan", "ingest", "open_store"):
        monkeypatch.setattr(api, use_case, getattr(fake, use_case))
    looking = ModuleType("engine.answer.inspect")
    vars(looking).update(
        inspect=fake.inspect,
        text=fake.text,
        source_text=lambda opened, source: opened.text(source),
        excerpts=lambda store, spans: dict.fromkeys(spans, EXCERPT),
    )
    monkeypatch.setitem(sys.modules, looking.__name__, looking)
    monkeypatch.setattr(engine.answer, "inspect", looking, raising=False)
    return fake


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    def give(text: str) -> None:
        stream = io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8")
        monkeypatch.setattr(sys, "stdin", stream)

    return give


# ---------------------------------------------------------------- ingest


def test_ingest_hands_every_option_to_the_engine(fake: FakeEngine, tmp_path: Path) -> None:
    """What the user says is what the engine hears, in the user's order of sources."""
    line = (
        "ingest b.pdf a.txt -o out.sekv --model some/model --revision v2 --method sekv-paper "
        "--device cuda:1 --dtype bfloat16 --chunk-tokens 256 --window 4096 --pages 1-20 "
        "--router r.safetensors --overwrite"
    )
    assert run(line.split()) == 0
    assert fake.calls == [
        (
            "ingest",
            (
                ["b.pdf", "a.txt"],
                Path("out.sekv"),
                IngestOptions(
                    model="some/model",
                    revision="v2",
                    method="sekv-paper",
                    device="cuda:1",
                    dtype="bfloat16",
                    chunk_tokens=256,
                    window=4096,
                    pages="1-20",
                    overwrite=True,
                    router="r.safetensors",
                ),
                None,
            ),
        )
    ]


def test_ingest_defaults_are_the_engine_s_own(fake: FakeEngine) -> None:
    """Two places state defaults, for the help and for callers of the engine; they agree."""
    assert run(["ingest", "book.pdf"]) == 0
    assert fake.calls == [("ingest", (["book.pdf"], None, IngestOptions(), None))]


def test_the_model_may_come_from_the_environment(
    fake: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SEKV_MODEL stands in for --model, and --model wins."""
    monkeypatch.setenv("SEKV_MODEL", "from/environment")
    assert run(["ingest", "a.txt"]) == 0
    assert run(["ingest", "a.txt", "--model", "from/option"]) == 0
    assert [given[2].model for _, given in fake.calls] == ["from/environment", "from/option"]


def test_ingest_reads_a_document_from_stdin(fake: FakeEngine, stdin: Callable[[str], None]) -> None:
    """A source named - is what comes through the pipe."""
    stdin("some text")
    assert run(["ingest", "-"]) == 0
    assert fake.calls[0][1][3] == b"some text"


def test_ingest_reads_a_password_from_stdin(fake: FakeEngine, stdin: Callable[[str], None]) -> None:
    """One line, without its end; spaces belong to the password."""
    stdin(" open sesame \n")
    assert run(["ingest", "locked.pdf", "--password-stdin"]) == 0
    assert fake.calls[0][1][2].password == " open sesame "
    assert fake.calls[0][1][3] is None


def test_ingest_json_is_one_object_with_the_contract_s_keys(
    fake: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    """Progress and notes stay off stdout."""
    assert run(["ingest", "book.pdf", "--json"]) == 0
    captured = capsys.readouterr()
    record = json.loads(captured.out)
    assert captured.out.count("\n") == 1
    assert {
        "store",
        "sources",
        "model",
        "method",
        "tokens",
        "spans",
        "anchors",
        "store_bytes",
        "full_kv_bytes",
        "timing",
        "resumed_tokens",
    } <= record.keys()
    assert record["sources"][0].keys() == {"path", "pages", "chars", "sha256", "notes"}
    assert captured.err == "page 3 has no text\n"


def test_ingest_tells_people_what_it_made(
    fake: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    """The store, its share of the full cache, and the speed of reading."""
    assert run(["ingest", "book.pdf"]) == 0
    shown = capsys.readouterr().out
    assert "book.sekv is ready" in shown
    assert "147 windows of up to 2,048" in shown
    assert "5,000 tokens/s" in shown
    assert "200.0 MB, 20.0 % of the full cache's 1.0 GB" in shown
    assert "1 min 15 s" in shown


def test_a_dry_run_plans_and_does_not_ingest(
    fake: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is written, and the estimates say that they are estimates."""
    assert run(["ingest", "book.pdf", "--dry-run"]) == 0
    assert run(["ingest", "book.pdf", "--dry-run", "--json"]) == 0
    assert [name for name, _ in fake.calls] == ["plan", "plan"]
    shown, record = capsys.readouterr().out.rsplit("{", 1)
    assert "nothing was written" in shown
    assert "about 200.0 MB" in shown
    assert record.endswith("}\n")


# ---------------------------------------------------------------- ask


def test_ask_defaults_are_the_engine_s_own(fake: FakeEngine) -> None:
    """Two places state defaults, for the help and for callers of the engine; they agree."""
    assert run(["ask", "book.sekv", "Who?"]) == 0
    assert fake.calls[0] == ("session", (Path("book.sekv"), AskOptions()))


def test_ask_hands_every_option_to_the_engine(fake: FakeEngine, tmp_path: Path) -> None:
    """What the user says is what the engine hears."""
    trace = tmp_path / "trace.json"
    line = (
        "ask book.sekv Who? --budget 4096 --coverage 0.5 --full --max-new-tokens 7 "
        "--temperature 0.5 --top-p 0.9 --seed 3 --device cpu --dtype float32 --model here "
        f"--router r.safetensors --trace {trace}"
    )
    assert run(line.split()) == 0
    assert fake.calls[0][1][1] == AskOptions(
        budget="4096",
        coverage=0.5,
        full=True,
        max_new_tokens=7,
        temperature=0.5,
        top_p=0.9,
        seed=3,
        device="cpu",
        dtype="float32",
        model="here",
        router="r.safetensors",
        trace=True,
    )


def test_the_answer_comes_before_its_citations(
    fake: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    """Answer, then source, page and the quoted words on one line."""
    assert run(["ask", "book.sekv", "Which day?"]) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines() == [
        "St. George’s Day",
        "",
        "  [1] book.pdf, p. 6",
        "      “the eve of St. George’s Day”",
    ]


def test_no_stream_prints_the_same(fake: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    """Streaming changes when the answer is seen, not what is seen."""
    assert run(["ask", "book.sekv", "Which day?"]) == 0
    streamed = capsys.readouterr().out
    assert run(["ask", "book.sekv", "Which day?", "--no-stream"]) == 0
    assert capsys.readouterr().out == streamed


def test_streaming_writes_each_piece_as_it_is_made(
    fake: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first word is on the screen before the last is known."""
    seen: list[str] = []

    class Screen(io.StringIO):
        def flush(self) -> None:
            seen.append(self.getvalue())

    monkeypatch.setattr(sys, "stdout", Screen())
    assert run(["ask", "book.sekv", "Which day?"]) == 0
    assert seen[:3] == ["St. ", "St. George’s ", "St. George’s Day"]


def test_ask_json_is_one_object_per_question_and_line(
    fake: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    """The contract's keys, nothing else on stdout, and one session for all questions."""
    assert run(["ask", "book.sekv", "One?", "Two?", "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["question"] for record in records] == ["One?", "Two?"]
    assert {"question", "answer", "citations", "usage", "memory", "timing"} <= records[0].keys()
    assert records[0]["usage"]["recomputed_document_tokens"] == 0
    assert records[0]["citations"][0]["text"] == "the eve of\nSt. George’s Day"
    assert fake.sessions == 1
    assert fake.calls[-1] == ("closed", None)


def test_questions_come_from_the_line_then_the_file_then_stdin(
    fake: FakeEngine, tmp_path: Path, stdin: Callable[[str], None]
) -> None:
    """Blank lines are no questions; a byte order mark is no part of one."""
    file = tmp_path / "questions.txt"
    file.write_bytes("\ufeffTwo?\r\n\r\n  Three?  \r\n".encode())
    stdin("Four?\n\nFive?")
    assert run(["ask", "book.sekv", "One?", "-f", str(file)]) == 0
    assert run(["ask", "book.sekv", "-"]) == 0
    asked = [given for name, given in fake.calls if name == "ask"]
    assert asked == ["One?", "Two?", "Three?", "Four?", "Five?"]


def test_several_questions_are_shown_above_their_answers(
    fake: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    """With one question the user knows it; with two they need to be told apart."""
    assert run(["ask", "book.sekv", "One?", "Two?"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[lines.index("One?") + 1] == "St. George’s Day"
    assert lines[lines.index("Two?") + 1] == "St. George’s Day"


def test_stats_tell_tokens_memory_and_time(
    fake: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything the contract counts, and whatever else the engine reports."""
    assert run(["ask", "book.sekv", "Which day?", "--stats"]) == 0
    shown = capsys.readouterr().out
    assert "document 300,000 (0 recomputed)" in shown
    assert "100.0 MB resident, 10.0 % of the full cache's 1.0 GB" in shown
    assert "40 of 20,000 spans" in shown
    assert "first token 0.25 s, 40.0 tokens/s" in shown
    assert "windows" in shown
    assert "147" in shown


def test_a_trace_is_one_object_per_question(fake: FakeEngine, tmp_path: Path) -> None:
    """One question makes a plain JSON file, which `inspect --trace` reads."""
    trace = tmp_path / "trace.json"
    assert run(["ask", "book.sekv", "One?", "--trace", str(trace)]) == 0
    printed = {"store": "book.sekv", "question": "One?", "zoom": []}
    assert json.loads(trace.read_text()) == printed
    assert run(["ask", "book.sekv", "One?", "Two?", "--trace", str(trace)]) == 0
    lines = trace.read_text().splitlines()
    assert [json.loads(line)["question"] for line in lines] == ["One?", "Two?"]


def test_a_document_cannot_drive_the_terminal(
    fake: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    """Escape sequences and markup in a document are shown, never obeyed; JSON keeps them exact."""
    hostile = "\x1b]0;owned\x07 [bold]x[/bold] \u202eabc"
    fake.citations = (Citation("a\x1b[2J.pdf", "1", 0, len(hostile), hostile, 1.0),)
    assert run(["ask", "book.sekv", "Q?"]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert "[bold]x[/bold]" in shown
    assert run(["ask", "book.sekv", "Q?", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["citations"][0]["text"] == hostile


# ---------------------------------------------------------------- inspect


def test_inspect_shows_the_store_and_its_map(
    fake: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sources, model, method, bytes against the full cache, and one line per measure."""
    assert run(["inspect", "book.sekv"]) == 0
    shown = capsys.readouterr().out
    for part in (
        "book.pdf (2 pages, 1,600 characters)",
        "2 layers, 4 heads on 2 KV heads of 64",
        "400 in 2 windows of up to 200",
        "20 and 7 anchors",
        "10.0 %",
        "book.pdf changed since",
        "map, 4 tokens to a cell",
        "surprisal",
    ):
        assert part in shown
    assert "zoom" not in shown
    pages = next(line for line in shown.splitlines() if line.startswith("page"))
    assert pages.split() == ["page", "1", "2"]


def test_inspect_with_a_question_shows_what_was_zoomed(
    fake: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    """The answer and where it stands; spans with steps, heads, estimated and real weight and
    words; what every step fetched, as it was recorded; the map of heads."""
    assert run(["inspect", "book.sekv", "-q", "Which day?"]) == 0
    shown = capsys.readouterr().out
    assert fake.calls[0][1][1]["question"] == "Which day?"
    row = next(line.split() for line in shown.splitlines() if line.split()[:1] == ["7"])
    assert row[:7] == ["7", "1", "0-2", "0.0", "1.0", "0.250", "0.500"]
    assert "eve of St. George’s Day" in shown
    printed = " ".join(shown.split())
    assert "Which day? a b [1] book.pdf, p. 6" in printed
    assert "3 steps: 10 fetched and 10 reused (50.0 %), 2.0 kB moved" in printed
    assert "step says fetched reused moved 0 a 10 2 2.0 kB 1 0 4 0 B 2 b 0 4 0 B" in printed
    assert "layer 1" in shown
    assert "10.0 % of the spans" in shown


def test_inspect_text_marks_spans_and_anchors_without_colour(
    fake: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a pipe, bars part the spans and brackets hold the anchors."""
    assert run(["inspect", "book.sekv", "--text", "10:40", "--source", "2"]) == 0
    assert capsys.readouterr().out == "The eve of [St. George]|’s Day\n"
    assert fake.calls[-1] == ("text", (1, 10, 40))
    assert fake.calls[0][1][1]["text"] == (10, 40)


def test_inspect_text_paints_spans_on_a_terminal(
    fake: FakeEngine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With colour there is nothing between the words that the document does not say."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    assert run(["inspect", "book.sekv", "--text", "10:40"]) == 0
    shown = capsys.readouterr().out
    assert "\x1b[" in shown
    assert "|" not in shown
    assert "[St." not in shown


@pytest.mark.parametrize(
    ("environment", "codes"),
    [
        ({}, r"\x1b"),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, r"\x1b\[[0-9;]*\b(3|4|9|10)[0-7]"),
    ],
)
def test_a_pipe_gets_no_codes_and_no_color_no_colour(
    environment: dict[str, str],
    codes: str,
    fake: FakeEngine,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And what colour would say is said by bars and brackets."""
    monkeypatch.setenv("TERM", "xterm-256color")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for line in ("inspect book.sekv -q Who?", "ask book.sekv Who? --stats"):
        assert run(line.split()) == 0
        assert not re.search(codes, capsys.readouterr().out)
    assert run(["inspect", "book.sekv", "--text", "10:40"]) == 0
    assert "[St. George]|" in capsys.readouterr().out


def test_inspect_json_has_the_contract_s_keys(
    fake: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    """All spans and all decisions, on one line."""
    assert run(["inspect", "book.sekv", "-q", "Q?", "--layer", "1", "--head", "0", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert {"manifest", "spans", "zoom"} <= record.keys()
    assert record["spans"][0].keys() >= {"id", "start_token", "end_token", "start", "end", "page"}
    assert record["zoom"][0].keys() == {"span", "layer", "kv_head", "step", "score", "weight"}
    assert fake.calls[0][1][1]["layer"] == 1
    assert fake.calls[0][1][1]["head"] == 0


def test_everything_fits_40_columns(
    fake: FakeEngine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A phone or a split screen loses detail, not meaning, and never a line's end."""
    monkeypatch.setenv("COLUMNS", "40")
    for line in (
        "ingest book.pdf",
        "ingest book.pdf --dry-run",
        "ask book.sekv Who? --stats --no-stream",
        "inspect book.sekv -q Who?",
        "inspect book.sekv --text 10:40",
    ):
        assert run(line.split()) == 0
        shown = capsys.readouterr().out
        assert max(len(row) for row in shown.splitlines()) <= 40, shown
        assert "…" not in shown


# ---------------------------------------------------------------- what goes wrong


BAD_LINES = [
    ("ask b.sekv Q --budget ten", "'ten' is neither a share"),
    ("ask b.sekv Q --budget 0%", "'0%' is neither a share"),
    ("ask b.sekv Q --budget 101%", "'101%' is neither a share"),
    ("ask b.sekv Q --budget -5", "'-5' is neither a share"),
    ("ask b.sekv Q --budget 4.5", "'4.5' is neither a share"),
    ("ask b.sekv Q --coverage 0", "not above 0 and at most 1"),
    ("ask b.sekv Q --coverage nan", "not above 0 and at most 1"),
    ("ask b.sekv Q --top-p 1.5", "not above 0 and at most 1"),
    ("ask b.sekv Q --temperature -1", "-1 is neither 0 nor a number from"),
    ("ask b.sekv Q --temperature inf", "inf is neither 0 nor a number from"),
    ("ask b.sekv Q --temperature 1e-42", "1e-42 is neither 0 nor a number from"),
    ("ask b.sekv Q --max-new-tokens 0", "--max-new-tokens"),
    ("ask b.sekv Q --seed -1", "--seed"),
    ("ask b.sekv Q --device gpu", "'gpu' is not auto, cpu, cuda or cuda:N"),
    ("ask b.sekv Q --dtype int8", "int8"),
    ("ask b.sekv", "there is no question"),
    ("ask b.sekv -f missing.txt", "missing.txt: No such file"),
    ("ask b.sekv Q --trace nowhere/trace.json", "existing folder"),
    ("ask", "STORE"),
    ("ingest", "SOURCE"),
    ("ingest a.txt --chunk-tokens 0", "--chunk-tokens"),
    ("ingest a.txt --window -1", "--window"),
    ("ingest - --password-stdin", "both a document and a password"),
    ("ingest - -", "named twice"),
    ("ask b.sekv Who? -f missing.txt", "missing.txt: No such file"),
    ("ask b.sekv Who? --seed -1", "2^64 - 1. Try: sekv ask --help"),
    ("ask b.sekv Who? --seed 18446744073709551616", "not a number from 0 to 2^64 - 1"),
    ("inspect b.sekv --text 5", "not START:END"),
    ("inspect b.sekv --text 9:3", "START below END"),
    ("inspect b.sekv --layer -1", "--layer"),
    ("inspect b.sekv --question Q --trace t.json", "exclude each other"),
    ("inspect b.sekv --trace missing.json", "there is no trace"),
    ("inspect b.sekv --html nowhere/page.html", "existing folder"),
    ("inspect b.sekv --html page.html --text 0:5", "leave --text out"),
    ("nonsense", "nonsense"),
    ("--nonsense", "--nonsense"),
]


def test_bad_input_is_one_clear_line(
    fake: FakeEngine, capsys: pytest.CaptureFixture[str], subtests: pytest.Subtests
) -> None:
    """Code 2, one line on stderr, nothing on stdout, and the engine was not troubled."""
    for line, said in BAD_LINES:
        with subtests.test(line=line):
            assert run(line.split()) == 2
            captured = capsys.readouterr()
            assert captured.out == ""
            assert captured.err.count("\n") == 1
            assert said in captured.err
            assert fake.calls == []


def test_an_empty_question_is_refused(fake: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is loaded for the questions beside it."""
    assert run(["ask", "b.sekv", "One?", "  "]) == 2
    assert capsys.readouterr().err == "sekv: the question is empty\n"
    assert fake.calls == []


@pytest.mark.parametrize(
    ("failure", "code", "said"),
    [
        (StoreError("b.sekv is damaged; ingest it again"), 2, "b.sekv is damaged; ingest it again"),
        (DocumentError("two\nlines"), 2, "two lines"),
        (KeyboardInterrupt(), 130, "interrupted; run the same command to continue"),
        (OSError(28, "No space left on device", "b.sekv"), 2, "b.sekv: No space left on device"),
        (MemoryError(), 2, "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), 2, "out of memory"),
        (ValueError("no such\nthing"), 70, "defect in sekv: ValueError: no such thing (please"),
    ],
)
def test_every_ending_is_one_line_and_its_code(
    fake: FakeEngine,
    capsys: pytest.CaptureFixture[str],
    failure: BaseException,
    code: int,
    said: str,
) -> None:
    """No traceback reaches a user, and stdout stays clean for a script."""
    fake.failure = failure
    for line in (["ingest", "a.txt"], ["ask", "b.sekv", "Q?"], ["inspect", "b.sekv"]):
        assert run(line) == code
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith(f"sekv: {said}")
        assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (StoreError("b.sekv cannot be measured"), "store"),
        (StoreDamagedError("b.sekv is damaged"), "store_damaged"),
        (FormatError("a newer one"), "store_format"),
        (DocumentError("two\nlines"), "document"),
        (OptionError("top_p", "2 is too much"), "option"),
        (KeyboardInterrupt(), "interrupted"),
        (OSError(28, "No space left on device", "b.sekv"), "system"),
        (MemoryError(), "out_of_memory"),
        (ValueError("no such thing"), "defect"),
    ],
)
def test_scripts_are_told_what_went_wrong_by_a_code(
    fake: FakeEngine, capsys: pytest.CaptureFixture[str], failure: BaseException, code: str
) -> None:
    """With --json an error is one JSON object on stderr; its code stays when its words change."""
    fake.failure = failure
    assert run(["ask", "b.sekv", "Q?", "--json"]) != 0
    captured = capsys.readouterr()
    assert captured.out == ""
    printed = json.loads(captured.err)["error"]
    assert printed.keys() == {"code", "message"}
    assert printed["code"] == code
    assert printed["message"] == explain(failure).line


def test_a_question_that_looks_like_an_option_makes_no_json(
    fake: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.failure = StoreError("no")
    assert run(["ask", "b.sekv", "--", "--json"]) == 2
    assert capsys.readouterr().err == "sekv: no\n"


def test_every_error_has_a_code_of_its_own() -> None:
    def kinds(of: type[SekvError]) -> list[type[SekvError]]:
        return [of, *(kind for below in of.__subclasses__() for kind in kinds(below))]

    codes = [kind.code for kind in kinds(SekvError) if kind.__module__ == "engine.errors"]
    assert len(codes) == len(set(codes))
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", code) for code in codes)


def test_debug_shows_the_traceback(
    fake: FakeEngine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever reports a defect can see where it is."""
    monkeypatch.setenv("SEKV_DEBUG", "1")
    fake.failure = ValueError("no such thing")
    assert run(["inspect", "b.sekv"]) == 70
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    """`sekv` alone tells what there is; on stderr, for it is no result."""
    assert run([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Usage: sekv" in captured.err


def test_a_broken_pipe_is_quiet(fake: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """`sekv inspect book.sekv | head -3` ends like any other tool in a pipe."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert run(["inspect", "b.sekv"]) == 141


# ---------------------------------------------------------------- verify, list


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder with one sound store and one unreadable one, behind the real `list`."""
    from engine.store import library

    found = [
        library.StoreSummary(
            "lib/book.sekv", "reader", "sekv", 300_000, 147, 20_000, 2 * 10**8, ("a/book.pdf",)
        ),
        library.StoreSummary("lib/bad.sekv", "", "", 0, 0, 0, 0, (), "lib/bad.sekv: is damaged"),
    ]
    monkeypatch.setattr(library, "list_stores", lambda folder: found if folder == tmp_path else [])
    return tmp_path


def test_list_names_what_each_store_holds(
    library: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One row per store; one that cannot be read is named with its reason, not left out."""
    assert run(["list", str(library)]) == 0
    shown = capsys.readouterr().out
    row = next(line.split() for line in shown.splitlines() if line.startswith("book.sekv"))
    assert row == ["book.sekv", "reader", "300,000", "200.0", "MB", "book.pdf"]
    assert "lib/bad.sekv: is damaged" in shown
    assert run(["list", str(library), "--json"]) == 0
    records = json.loads(capsys.readouterr().out)["stores"]
    assert [record["path"] for record in records] == ["lib/book.sekv", "lib/bad.sekv"]


def test_an_empty_folder_says_so(library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Silence could mean anything."""
    assert run(["list"]) == 0
    assert capsys.readouterr().out == "no stores in .\n"


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> type[FakeStore]:
    return fake_store(monkeypatch)


def test_a_sound_store_passes(checked: type[FakeStore], capsys: pytest.CaptureFixture[str]) -> None:
    """Code 0; a source that changed since is told, and is no damage."""
    assert run(["verify", "b.sekv"]) == 0
    assert capsys.readouterr().out == "b.sekv is sound\n  book.pdf changed since\n"


def test_a_damaged_store_fails_with_the_list(
    checked: type[FakeStore], capsys: pytest.CaptureFixture[str]
) -> None:
    """Code 1 and every damage, for people and for scripts."""
    checked.damaged = ["windows/0 is cut", "a stranger"]
    assert run(["verify", "b.sekv"]) == 1
    assert capsys.readouterr().out.splitlines()[:3] == [
        "b.sekv is damaged",
        "  windows/0 is cut",
        "  a stranger",
    ]
    assert run(["verify", "b.sekv", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {
        "store": "b.sekv",
        "ok": False,
        "bytes": 4096,
        "damaged": ["windows/0 is cut", "a stranger"],
        "sources": ["book.pdf changed since"],
    }


def test_a_store_that_cannot_be_opened_is_damaged_and_no_store_is_bad_input(
    checked: type[FakeStore], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A broken manifest is a failed check; a wrong path is a wrong path."""
    checked.failure = StoreError("the manifest is damaged")
    assert run(["verify", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "sekv: the manifest is damaged\n"
    (tmp_path / "manifest.json").touch()
    assert run(["verify", str(tmp_path)]) == 1
    assert "the manifest is damaged" in capsys.readouterr().out
    checked.failure = FormatError("open it with a newer sekv")
    assert run(["verify", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "sekv: open it with a newer sekv\n"


# ---------------------------------------------------------------- bench


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("bench --suite nonsense", "fidelity"),
        ("bench", "--questions and --documents"),
        ("bench --suite efficiency", "name their folder: --text"),
        ("bench --suite efficiency --text nowhere", "there is no folder nowhere"),
        ("bench --suite efficiency --text docs", "holds no .txt books"),
        ("bench --questions nowhere --documents docs", "cannot read questions from nowhere"),
        ("bench --questions nowhere --documents docs --length 5k", "'5k' is no list"),
    ],
)
def test_what_cannot_be_measured_is_one_clear_line(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    line: str,
    said: str,
) -> None:
    """An unknown suite names the known ones; a missing book is not a defect."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    assert run(line.split()) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1
