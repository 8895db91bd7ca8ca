"""A small engine that records what the command line asks of it and answers at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.errors import StoreError
from engine.types import (
    Answer,
    AskOptions,
    Citation,
    DocumentOutcome,
    IngestOptions,
    IngestReport,
    InspectReport,
    LibraryOptions,
    LibraryReport,
    MemoryUse,
    Move,
    Plan,
    SourceReport,
    SpanView,
    Usage,
    ZoomView,
)

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

    def ingest_library(
        self, sources: Any, library: Path, options: Any, many: LibraryOptions, progress: Any
    ) -> LibraryReport:
        self.happen("ingest_library", (list(sources), library, options, many))
        progress.note("left out, no documents by their endings: a.jpg")
        documents = (
            DocumentOutcome("a.txt", "a.sekv", "read", "", 1200, 5000),
            DocumentOutcome("b.pdf", "b.sekv", "replaced", "", 800, 4000),
            DocumentOutcome("c.pdf", "c.sekv", "failed", "c.pdf is empty"),
            DocumentOutcome("../d.pdf", "d.sekv", "gone", "", 700),
        )
        return LibraryReport(str(library), documents, ("a.jpg",), 2000, 12.5, many.dry_run)

    def open_document(
        self, source: Path, store: Path, options: AskOptions, reading: IngestOptions, progress: Any
    ) -> FakeSession:
        self.happen("document", (source, store, options, reading))
        self.sessions += 1
        return FakeSession(self)

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

    manifest = SimpleNamespace(windows=(1, 2), read=(0, 1), tokens_read=400)
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
