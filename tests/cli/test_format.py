"""Numbers, strips and progress as people see them."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from engine.types import Answer, Citation, InspectReport, MemoryUse, Usage, WindowRead
from sekv_cli import format, progress, strips
from sekv_cli.answers import print_citations, print_stats, support_text, windows_text
from sekv_cli.format import (
    amount_text,
    bytes_text,
    clean,
    seconds_text,
)
from sekv_cli.inspection import print_summary


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (12_345_678, "12.3 MB"),
        (10**9, "1.0 GB"),
        (10**12, "1.0 TB"),
        (10**16, "10000.0 TB"),
    ],
)
def test_bytes_are_decimal_and_short(number: int, text: str) -> None:
    """What a file manager shows; never "1000.0 kB"."""
    assert bytes_text(number) == text


def test_a_slow_pace_is_not_none() -> None:
    shown = [amount_text(pace, "tokens") for pace in (0.314, 2.53, 3, 41.7, 1234)]
    assert shown == ["0.31 tokens", "2.5 tokens", "3 tokens", "42 tokens", "1,234 tokens"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.00 s"),
        (0.4249, "0.42 s"),
        (9.994, "9.99 s"),
        (9.996, "10.0 s"),
        (42.4, "42 s"),
        (59.94, "60 s"),
        (59.96, "1 min 00 s"),
        (75, "1 min 15 s"),
        (3600, "1 h 00 min"),
        (7260, "2 h 01 min"),
    ],
)
def test_durations_keep_what_matters(seconds: float, text: str) -> None:
    """Hundredths for a moment, minutes for an hour."""
    assert seconds_text(seconds) == text


CALLED = [
    ("", "", "a.pdf"),
    ("12", "12", "p. 12, a.pdf"),
    ("12", "", "p. 12, a.pdf"),
    ("12-13", "12-13", "pp. 12-13, a.pdf"),
    ("ii", "2", "p. ii (sheet 2), a.pdf"),
    ("1", "4", "p. 1 (sheet 4), a.pdf"),
    ("ii-1", "2-3", "pp. ii-1 (sheets 2-3), a.pdf"),
    ("#3", "3", "sheet 3, a.pdf"),
    ("A-1", "3", "p. A-1 (sheet 3), a.pdf"),
    ("II", "", "II, a.pdf"),
    ("The Harbour", "", "The Harbour, a.pdf"),
    ("12", "12", "7", "p. 12 (printed 7), a.pdf"),
    ("12-13", "12-13", "7-8", "pp. 12-13 (printed 7-8), a.pdf"),
    ("A-1", "3", "5", "p. A-1 (sheet 3, printed 5), a.pdf"),
    ("#3", "3", "5", "sheet 3 (printed 5), a.pdf"),
]


def test_a_page_is_called_by_its_label_and_where_they_differ_by_sheet_and_printed_number(
    subtests: pytest.Subtests,
) -> None:
    for page, sheet, *printed, shown in CALLED:
        with subtests.test(page=page, sheet=sheet):
            out = Console(file=io.StringIO(), width=100)
            number = printed[0] if printed else ""
            cited = Citation("x/a.pdf", page, 0, 1, "z", 1.0, sheet, printed=number)
            print_citations(out, [cited])
            assert out.file.getvalue().splitlines()[0].strip() == f"[1] {shown}"  # type: ignore[attr-defined]


def test_in_a_library_a_document_has_its_place_there_and_its_own_ending(
    subtests: pytest.Subtests,
) -> None:
    for store, source, shown in (
        ("deep/notes.sekv", "../papers/deep/notes.md", "deep/notes.md"),
        ("book.pdf.sekv", "papers/book.pdf", "book.pdf"),
        ("shelf.sekv", "papers/second.txt", "shelf"),
        ("stdin.sekv", "-", "stdin"),
    ):
        with subtests.test(store):
            out = Console(file=io.StringIO(), width=100)
            print_citations(out, [Citation(source, "", 0, 1, "z", 1.0, store=store)])
            assert out.file.getvalue().splitlines()[0].strip() == f"[1] {shown}"  # type: ignore[attr-defined]


def test_what_was_read_for_a_question_is_not_called_read_again() -> None:
    usage, memory = Usage(6387, 0, 9, 3), MemoryUse(1, 2, 0, 0, 0)
    for new, line in (
        ((), "read again   0 of the document's 6,387 tokens"),
        (
            (True, True, False),
            "read         2 windows for the first time; 0 of 6,387 tokens a second time",
        ),
    ):
        windows = tuple(WindowRead(at, "", 1.0, read_now=now) for at, now in enumerate(new))
        out = Console(file=io.StringIO(), width=100)
        answer = Answer("Who?", "Ana", (), usage, memory, {}, retrieval=windows)
        print_stats(out, answer)
        assert out.file.getvalue().strip().startswith(line)  # type: ignore[attr-defined]


def test_chosen_windows_are_told_with_why() -> None:
    by_words = (WindowRead(12, "5", 14.21), WindowRead(40, "", 9.0), WindowRead(7, "Of Ice", 1.0))
    assert windows_text(by_words) == "12 (p. 5, words 14.2), 40 (words 9.0), 7 (Of Ice, words 1.0)"
    assert windows_text((WindowRead(3, "ii", None, 2.25),)) == "3 (ii, votes 2.2)"
    assert windows_text((WindowRead(0, ""), WindowRead(1, "2"))) == ""


def test_a_summary_tells_what_was_noted_of_the_sources() -> None:
    model = {"id": "m", "architecture": "llama", "layers": 1, "heads": 1, "kv_heads": 1,
             "head_dim": 8}  # fmt: skip
    source = {"path": "x/a.pdf", "pages": [], "chars": 9, "notes": ["left out: The Harbour"]}
    manifest = {"model": model, "windows": [], "sources": [source], "method": "sekv", "tokens": 9,
                "window_tokens": 9, "creator": "sekv"}  # fmt: skip
    for sources, line in ([source], "noted left out"), ([source] * 2, "noted a.pdf: left out"):
        out = Console(file=io.StringIO(), width=100)
        print_summary(out, "a.sekv", InspectReport(manifest | {"sources": sources}, (), (), {}))
        assert line in " ".join(out.file.getvalue().split())  # type: ignore[attr-defined]


@given(st.text())
def test_clean_text_holds_nothing_that_acts(text: str) -> None:
    """Whatever a document holds, only line breaks and tabs of it move the cursor."""
    kept = clean(text)
    assert all(
        character.isprintable() or character in "\n\t" or ord(character) > 159 for character in kept
    )
    assert "\x1b" not in kept
    assert not set(kept) & set("\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@given(total=st.integers(1, 10_000), cells=st.integers(1, 200))
def test_stretches_cover_everything_once(total: int, cells: int) -> None:
    """No token is in two cells, none is in no cell, no cell is empty."""
    cut = strips.stretches(total, cells)
    assert cut[0][0] == 0
    assert cut[-1][1] == total
    assert all(a[1] == b[0] for a, b in pairwise(cut))
    assert all(start < end for start, end in cut)
    assert len(cut) == min(cells, total)


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=40),
    cells=st.integers(1, 50),
    level=st.floats(0.0, 8.0),
)
def test_spread_keeps_a_constant_and_the_total(
    lengths: list[int], cells: int, level: float
) -> None:
    """Averaging over other borders invents nothing."""
    ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
    items = [(end - length, end, level) for end, length in zip(ends, lengths, strict=True)]
    cut = strips.stretches(ends[-1], cells)
    assert strips.spread(items, cut) == pytest.approx([level] * len(cut))
    varied = [(start, end, float(start % 7)) for start, end, _ in items]
    total = sum((end - start) * value for start, end, value in varied)
    means = strips.spread(varied, cut)
    assert sum((end - start) * mean for (start, end), mean in zip(cut, means, strict=True)) == (
        pytest.approx(total)
    )


def test_counts_find_every_position() -> None:
    """Each position falls into one cell; a cell's count is per token."""
    assert strips.counts([0, 1, 5, 9], [(0, 5), (5, 10)]) == [2 / 5, 2 / 5]


def test_a_strip_runs_from_least_to_most() -> None:
    """The largest value fills the cell; a flat line is neither high nor low."""
    assert strips.strip([0, 1, 2, 7], unicode=True) == "▁▂▃█"
    assert strips.strip([3, 3], unicode=True) == "▄▄"
    assert strips.strip([0, 1, 8], unicode=False, zero_is_empty=True) == " :@"
    assert strips.strip([0, 0], unicode=True, zero_is_empty=True) == "··"
    assert strips.strip([], unicode=True) == ""


def test_one_odd_cell_does_not_flatten_the_strip() -> None:
    """The first words of a book surprise unlike any other; the rest must still show."""
    assert strips.strip([-900.0, *range(1, 39), 900.0], unicode=True)[1:-1:5] == "▁▁▃▄▅▆▇█"


def test_the_ruler_labels_changes_where_there_is_room() -> None:
    """A label stands under the first cell of its page, and labels never touch."""
    assert strips.ruler(["1", "1", "1", "2", "2", "3"], 6) == "1  2 3"
    assert strips.ruler(["10", "11", "12", "12"], 4) == "10"
    assert strips.ruler(["9", "10", "10", "10"], 4) == "9 10"


class Clock:
    """Time that moves when the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_a_table_of_bench_is_read_on_any_terminal(subtests: pytest.Subtests) -> None:
    """With columns where they fit, else row by row; no word is broken."""
    page = "suite niah\n\n| method | score % | read anew |\n|---|---:|---:|\n"
    page += "| sekv | 81.5 | 12 s |\n"
    for columns, lines in (
        (80, ["suite niah", "method  score %  read anew", "sekv       81.5       12 s"]),
        (20, ["suite niah", "sekv", "  score %    81.5", "  read anew  12 s"]),
    ):
        with subtests.test(columns=columns):
            out = Console(file=io.StringIO(), force_terminal=True, width=columns, no_color=True)
            format.print_markdown(out, page)
            shown = re.sub(r"\x1b\[[0-9;]*m", "", out.file.getvalue())
            assert [line.rstrip() for line in shown.splitlines()] == lines


def test_without_a_terminal_progress_is_plain_lines(clock: Clock) -> None:
    """A line every ten seconds with speed and time left, one at the end, none for trifles."""
    out = io.StringIO()
    with progress.Lines(out) as shown:
        shown.start("read", 3, "pages")
        clock.now += 0.5
        shown.advance(3)
        shown.start("prefill", 2000, "tokens")
        for _ in range(4):
            clock.now += 5
            shown.advance(250)
        shown.note("a remark\x1b[2J")
        clock.now += 1
        shown.advance(1000)
    assert out.getvalue().splitlines() == [
        "prefill: 25 % of 2,000 tokens, 50 tokens/s, 30 s left",
        "prefill: 50 % of 2,000 tokens, 50 tokens/s, 20 s left",
        "a remark\N{REPLACEMENT CHARACTER}[2J",
        "prefill: 2,000 tokens, 21 s",
    ]


def test_what_an_earlier_run_finished_tells_nothing_of_the_pace(clock: Clock) -> None:
    """It counts in the share and not in the speed, nor in what this run says that it did."""
    out = io.StringIO()
    with progress.Lines(out) as shown:
        shown.start("reading", 2000, "tokens")
        shown.resume(1000)
        clock.now += 10
        shown.advance(500)
        clock.now += 9
        shown.advance(500)
    assert out.getvalue().splitlines() == [
        "reading: 75 % of 2,000 tokens, 50 tokens/s, 10 s left",
        "reading: 1,000 tokens, 19.0 s",
    ]


def test_a_bar_goes_on_where_an_earlier_run_stopped() -> None:
    with progress.Bar(Terminal()) as bar:
        bar.start("reading", 2000, "tokens")
        bar.resume(600)
        bar.resume(400)
        (task,) = bar._progress.tasks
        assert (task.completed, task.total, task.speed) == (1000, 2000, None)
        bar.advance(500)
        assert task.completed == 1500


def test_a_stage_that_failed_does_not_claim_to_have_finished(clock: Clock) -> None:
    """The line about the failure says enough."""
    out = io.StringIO()

    def work() -> None:
        with progress.Lines(out) as shown:
            shown.start("prefill", 0, "tokens")
            clock.now += 30
            shown.advance(10)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert out.getvalue() == "prefill: 10 tokens, 30 s so far\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("columns", ["30", "50", "70", "120"])
def test_on_a_terminal_progress_is_one_line_that_goes_away(
    monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    """The bar fits any width, and a note stands above it for good."""
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(progress.sys, "stderr", Terminal())
    with progress.on_stderr() as shown:
        shown.start("prefill", 1000, "tokens")
        shown.advance(400)
        shown.note("page 3 has no text")
        shown.clear()
        shown.start("write", 10, "bytes")
        shown.advance(10)
    drawn: Any = progress.sys.stderr
    assert "prefill" in drawn.getvalue()
    assert "page 3 has no text" in drawn.getvalue()
    assert "\x1b[2K" in drawn.getvalue().rpartition("write")[2]


def test_where_stderr_goes_decides_how_progress_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control codes in a log file help nobody."""
    monkeypatch.setattr(progress.sys, "stderr", io.StringIO())
    assert isinstance(progress.on_stderr(), progress.Lines)


def test_the_line_behind_an_answer_says_how_far_to_trust_it(subtests: pytest.Subtests) -> None:
    cited = Citation("a.pdf", "1", 0, 1, "z", 1.0)
    model, nobody = Usage(6387, 0, 9, 3), Usage(6387, 0, 0, 0)
    for usage, citations, stats, said in (
        (model, [cited], {}, "(the passage may support it: 0.81 of 1)"),
        (model, [cited] * 2, {}, "(the passages may support it: 0.81 of 1)"),
        (model, [cited], {"judged": False}, "whether they support it is not judged"),
        (
            model,
            [cited],
            {"cut_short": True},
            "(cut short)\n(the passage may support it: 0.81 of 1)",
        ),
        (model, [], {"cut_short": True}, "(cut short)"),
        (model, [], {}, ""),
        (nobody, [cited], {}, ""),
    ):
        with subtests.test(said, citations=len(citations)):
            memory = MemoryUse(1, 2, 0, 0, 0)
            made = Answer("Q?", "A", tuple(citations), usage, memory, {}, stats, support=0.81)
            assert said in support_text(made)
            assert bool(said) == bool(support_text(made))
    assert "probably not stated" in support_text(replace(made, supported=False))
