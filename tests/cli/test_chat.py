"""`sekv chat`: what each line does, against an asker that records what it is asked."""

from __future__ import annotations

import io
import os
import pty
import select
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.errors import BudgetError
from engine.types import Answer, AskOptions, Citation, IngestOptions, MemoryUse, Turn, Usage
from repository import environment
from sekv_cli import asker
from sekv_cli.asker import Unread
from sekv_cli.main import run

CITATIONS = (Citation("book.pdf", "6", 10, 13, "Ana", 0.8),)


class Fake:
    """An asker that says the question backwards."""

    def __init__(self) -> None:
        self.options = AskOptions()
        self.asked: list[tuple[str, tuple[Turn, ...], AskOptions]] = []
        self.failure: BaseException | None = None
        self.ending: dict[str, Any] = {}
        self.opened: tuple[Path, Unread | None] | None = None

    def __enter__(self) -> Fake:
        return self

    def __exit__(self, *_: object) -> None: ...

    def retune(self, options: AskOptions) -> None:
        self.options = options

    def trace(self) -> dict[str, Any]:
        return {"zoom": []}

    def ask(self, question: str, on_text: Any = None, *, turns: tuple[Turn, ...] = ()) -> Answer:
        self.asked.append((question, turns, self.options))
        if on_text:
            on_text(question[::-1][:2])
        if self.failure is not None:
            raise self.failure
        if on_text:
            on_text(question[::-1][2:])
        return Answer(
            question,
            question[::-1],
            CITATIONS,
            Usage(9, 0, 3, 2),
            MemoryUse(1, 9, 1, 2, 0),
            {},
            **self.ending,
        )


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fake:
    made = Fake()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "book.sekv").mkdir()
    (tmp_path / "book.sekv" / "manifest.json").touch()

    def opened(
        store: Path, options: AskOptions, shown: Any, *, no_server: bool, unread: Unread | None
    ) -> Fake:
        made.options, made.opened = options, (store, unread)
        return made

    monkeypatch.setattr(asker, "open_asker", opened)
    return made


@pytest.fixture
def talk(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[str, str]]:
    """Say some lines; what is on stdout and stderr then."""

    def said(*lines: str) -> tuple[str, str]:
        typed = "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed), encoding="utf-8"))
        assert run(["chat", "book.sekv"]) == 0
        captured = capsys.readouterr()
        return captured.out, captured.err

    return said


def test_each_question_comes_with_the_turns_before_it(talk: Any, fake: Fake) -> None:
    out, err = talk("Who?", "", "When?", "/forget", "Why?")
    assert [(question, turns) for question, turns, _ in fake.asked] == [
        ("Who?", ()),
        ("When?", (Turn("Who?", "?ohW"),)),
        ("Why?", ()),
    ]
    assert "?ohW" in out
    assert "[1] p. 6, book.pdf" in out
    assert err == ""


def test_a_document_without_a_store_is_talked_with_as_it_is_to_be_read(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "new.txt").write_text("Ana warned him.")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Who?\n"), encoding="utf-8"))
    assert run(["chat", "new.txt", "--window", "512", "--model", "smollm2"]) == 0
    reading = IngestOptions(model="smollm2", window=512)
    assert fake.opened == (Path("new.sekv"), Unread(Path("new.txt"), reading))
    assert [question for question, _, _ in fake.asked] == ["Who?"]


def test_stopping_an_answer_does_not_stop_the_talk(talk: Any, fake: Fake) -> None:
    """The half answer is no turn."""
    fake.failure = KeyboardInterrupt()
    out, _ = talk("Who?", "/help")
    assert "?o" in out
    assert "(stopped)" in out
    assert "/budget" in out
    fake.failure = None
    talk("When?")
    assert fake.asked[-1][1] == ()


def test_what_fails_is_one_line_and_the_talk_goes_on(talk: Any, fake: Fake) -> None:
    fake.failure = BudgetError("the question is too long")
    out, err = talk("Who?", "/nonsense", "/cite", "/zoom", "/budget much", "/save", "/help")
    assert err.splitlines() == [
        "sekv: the question is too long",
        "sekv: there is no /nonsense; /help lists the commands",
        "sekv: nothing was asked yet; type a question",
        "sekv: nothing was asked yet; type a question",
        "sekv: 'much' is neither a share of the document such as 10% nor a number of tokens such "
        "as 4096.",
        "sekv: name a file: /save talk.md",
    ]
    assert "/cite [N]" in out


def test_a_line_that_is_no_text_is_told_and_the_talk_goes_on(talk: Any, fake: Fake) -> None:
    """A byte of no UTF-8 or half a character, in a question or in a command."""
    _, err = talk("Who?", "Who \udcff?", "/cite \udcff", "/save no\udcff/talk.md", "When?")
    assert [question for question, _, _ in fake.asked] == ["Who?", "When?"]
    assert [line.partition(":")[2].strip()[:20] for line in err.splitlines()] == [
        "the question is not ",
        "there is no passage ",
        "no\\udcff/talk.md can",
    ]


@pytest.mark.parametrize(
    ("failure", "code", "told"),
    [
        (OSError(28, "No space left on device"), 2, "sekv: No space left on device\n"),
        (BrokenPipeError(), 141, ""),
    ],
)
def test_the_talk_ends_where_nobody_can_read_it(
    failure: OSError,
    code: int,
    told: str,
    fake: Fake,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A full disk behind stdout, or a reader that went away: one line, and no code of success."""
    fake.failure = failure
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Who?\nWhen?\n")))
    assert run(["chat", "book.sekv"]) == code
    assert capsys.readouterr().err == told
    assert len(fake.asked) == 1


def test_a_conversation_that_cannot_be_saved_goes_on(
    talk: Any, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    _, err = talk("Who?", "/save talk.md", "When?")
    assert err == "sekv: talk.md cannot be written: No space left on device\n"
    assert len(fake.asked) == 2


def test_other_lines_that_are_no_questions_are_told(talk: Any, fake: Fake) -> None:
    """UTF-16 taken for UTF-8, a text that is no question, a NUL."""
    _, err = talk("W\0h\0o\0?\0", "w" * 40_000, "\0", "When?")
    assert [question for question, _, _ in fake.asked] == ["When?"]
    assert len(err.splitlines()) == 3


def test_a_cut_answer_is_saved_as_one(talk: Any, fake: Fake, tmp_path: Path) -> None:
    fake.ending = {"stats": {"cut_short": True}}
    talk("Who?", "/save talk.md")
    assert "?ohW (cut short)" in (tmp_path / "talk.md").read_text()


def test_a_history_is_never_somebody_else_s_file(
    fake: Fake,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Typed lines are added to a history of before, never to a document."""
    notes = tmp_path / "notes.md"
    notes.write_text("# Notes\n")
    assert run(["chat", "book.sekv", "--history", str(notes)]) == 2
    assert "is no history of sekv's" in capsys.readouterr().err
    assert notes.read_text() == "# Notes\n"
    old = tmp_path / "old"
    old.write_text("\n# 2026-01-31 12:00:00.000000\n+Who?\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert run(["chat", "book.sekv", "--history", str(old)]) == 0


def test_the_budget_changes_for_what_follows(talk: Any, fake: Fake) -> None:
    out, _ = talk("/budget", "/budget 5%", "Who?", "/quit", "never asked")
    assert out.startswith("budget auto\nbudget 5%\n")
    assert fake.asked[-1][2].budget == "5%"
    assert len(fake.asked) == 1


def test_a_conversation_is_saved_with_its_passages(talk: Any, fake: Fake, tmp_path: Path) -> None:
    file = tmp_path / "talk.md"
    _, err = talk("Who?", f"/save {file}", f"/save {file}")
    text = file.read_text(encoding="utf-8")
    assert text.startswith("# book.sekv\n")
    assert "## Who?\n\n?ohW\n" in text
    assert "1. p. 6, book.pdf:\n   > Ana" in text
    assert "is there already" in err


def test_zoom_asks_once_more_with_a_trace(
    talk: Any, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the turns that the question had; the options are as before then."""
    from engine.answer import inspect
    from engine.types import InspectReport

    given: dict[str, Any] = {}

    def inspected(store: Path, **options: Any) -> InspectReport:
        given.update(options)
        return InspectReport({"sources": []}, (), (), {})

    monkeypatch.setattr(inspect, "inspect", inspected)
    monkeypatch.setattr(inspect, "excerpts", lambda store, spans: {})
    out, _ = talk("Who?", "When?", "/zoom", "Why?")
    assert "no span was zoomed" in out
    assert [(question, len(turns), o.trace) for question, turns, o in fake.asked] == [
        ("Who?", 0, False),
        ("When?", 1, False),
        ("When?", 1, True),
        ("Why?", 2, False),
    ]
    assert given["trace"] == {"zoom": []}


def test_on_a_terminal_lines_are_edited_and_kept(tmp_path: Path) -> None:
    """A real terminal: the prompt, an error that goes on, Ctrl-C and Ctrl-D; a private history."""
    program = (
        "import sys\n"
        "from sekv_cli import asker\n"
        "from sekv_cli.main import run\n"
        f"import {Path(__file__).stem} as test\n"
        "asker.open_asker = lambda *a, **k: test.Fake()\n"
        "sys.exit(run(['chat', 'book.sekv']))\n"
    )
    env = environment(XDG_STATE_HOME=str(tmp_path), TERM="xterm", PROMPT_TOOLKIT_NO_CPR="1")
    env["PYTHONPATH"] += os.pathsep + str(Path(__file__).parent)
    (tmp_path / "book.sekv").mkdir()
    (tmp_path / "book.sekv" / "manifest.json").touch()
    main, other = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=other,
        stdout=other,
        stderr=other,
        env=env,
        cwd=tmp_path,
    )
    os.close(other)
    seen = ""

    def until(words: str) -> None:
        nonlocal seen
        limit = time.monotonic() + 120
        while words not in seen:
            assert time.monotonic() < limit, seen
            if select.select([main], [], [], 1)[0]:
                seen += os.read(main, 65536).decode("utf-8", "replace")
        seen = seen.partition(words)[2]

    until(">")
    os.write(main, b"Who?\r")
    until("?ohW")
    until(">")
    os.write(main, b"half a line\x03")
    until(">")
    os.write(main, b"/budget\r")
    until("budget auto")
    until(">")
    os.write(main, b"\x04")
    assert process.wait(60) == 0
    os.close(main)
    kept = tmp_path / "sekv" / "history"
    assert "Who?" in kept.read_text(encoding="utf-8")
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


# ---------------------------------------------------------------- what becomes of an answer


@pytest.mark.parametrize(
    ("ending", "expected"),
    [
        ({}, "?ohW\n(the passage may support it: 1.00 of 1)\n\n  [1]"),
        (
            {"stats": {"cut_short": True}},
            "?ohW (cut short)\n(the passage may support it: 1.00 of 1)\n\n  [1]",
        ),
        (
            {"supported": False, "support": 0.1},
            "?ohW\n(probably not stated in the document: no passage supports it)\n\nclosest",
        ),
    ],
)
def test_what_an_answer_is_worth_is_said_behind_it(
    ending: dict[str, Any], expected: str, talk: Any, fake: Fake
) -> None:
    fake.ending = ending
    out, _ = talk("Who?")
    assert expected in out


@pytest.mark.parametrize("word", ["/quit", "exit", " Quit "])
def test_the_talk_ends_at_a_word(talk: Any, fake: Fake, word: str) -> None:
    talk("Who?", word, "When?")
    assert [asked[0] for asked in fake.asked] == ["Who?"]


def test_a_question_without_an_answer_is_not_read_again(talk: Any, fake: Fake) -> None:
    """Neither what the model made up nor that nothing was found helps the next question."""
    fake.ending = {"supported": False, "support": 0.1}
    talk("Who?", "When?")
    assert fake.asked[-1][1] == ()
