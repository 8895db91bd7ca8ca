"""What the ingest of a library shows while it runs, and what it says at the end."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Self, TextIO

import typer

from engine.types import SilentLibrary
from sekv_cli.endings import CHECK_FAILED
from sekv_cli.format import (
    bytes_text,
    clean,
    console,
    count_text,
    emit_json,
    facts,
    left_text,
    seconds_text,
    some,
)
from sekv_cli.progress import QUIET_SECONDS

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console

    from engine.types import DocumentOutcome, LibraryProgress, LibraryReport, LibraryStatus

MOST_LINES = 20
"""Documents of one kind that are named at the end; `--json` has them all."""


def on_stderr(verbose: bool | None = None) -> AbstractContextManager[LibraryProgress]:
    """The fitting display for where stderr goes now; verbose as in `progress.on_stderr`."""
    if verbose is False:
        return nullcontext(SilentLibrary())
    if sys.stderr.isatty() and not verbose:
        return _Bar(sys.stderr)
    return nullcontext(_Lines(sys.stderr))


def _so_far(status: LibraryStatus) -> str:
    parts = [f"{count_text(status.done)} of {some(status.documents, 'document')}"]
    parts += [f"{status.failed} failed"] if status.failed else []
    parts += [f"{count_text(round(status.tokens_per_s))} tokens/s"] if status.tokens else []
    parts += [f"{left_text(status.left_s)} left"] if status.left_s is not None else []
    return ", ".join(parts)


class _Lines:
    """A line every ten seconds."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._said = stream, time.monotonic()

    def status(self, status: LibraryStatus) -> None:
        if time.monotonic() - self._said >= QUIET_SECONDS:
            self._said = time.monotonic()
            self.note(_so_far(status))

    def note(self, line: str) -> None:
        print(clean(line), file=self._stream, flush=True)


class _Bar:
    """One live line, gone when the work is done."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._console = Console(file=stream, highlight=False, markup=False, emoji=False)
        text = TextColumn("{task.description}", markup=False)
        columns = [text, BarColumn()] if self._console.width >= 80 else [text]
        self._progress = Progress(*columns, console=self._console, transient=True)
        self._task = self._progress.add_task("looking at documents", total=1.0)

    def status(self, status: LibraryStatus) -> None:
        self._progress.update(self._task, completed=status.share, description=_so_far(status))

    def note(self, line: str) -> None:
        self._console.print(clean(line))

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()


def finish(report: LibraryReport, *, as_json: bool) -> None:
    """Print what became of the documents. Raises typer.Exit where some failed."""
    if as_json:
        emit_json(report.to_json())
    else:
        print_library(console(), report)
    if report.of("failed"):
        raise typer.Exit(CHECK_FAILED)


def print_library(out: Console, report: LibraryReport) -> None:
    """How many documents came to what, why some failed, and what has no source any more."""
    failed, gone, pruned = (report.of(state) for state in ("failed", "gone", "pruned"))
    read = [*report.of("read"), *report.of("replaced")]
    weight = sum(each.store_bytes for each in read)
    title = "nothing was read; this is what ingest would do" if report.dry_run else report.library
    out.print(clean(title), style="bold")
    tokens = f"{count_text(report.tokens)} read now, in {seconds_text(report.total_s)}"
    out.print(
        facts(
            [
                ("read", _count(report.of("read"))),
                ("read anew", _count(report.of("replaced"))),
                ("unchanged", _count(report.of("unchanged"))),
                ("removed", _count(pruned)),
                ("tokens", tokens if report.tokens else ""),
                ("stores", f"{bytes_text(weight)} written now" if weight else ""),
                ("failed", _count(failed)),
            ]
        )
    )
    for each in failed[:MOST_LINES]:
        said = each.reason if each.source in each.reason else f"{each.source}: {each.reason}"
        out.print(f"  {clean(said)}", style="red")
    _more(out, failed)
    if gone:
        out.print("  sources that are gone; --prune removes their stores:")
        for each in gone[:MOST_LINES]:
            out.print(f"  {clean(each.store)} ({clean(each.source)})")
        _more(out, gone)


def _count(documents: list[DocumentOutcome]) -> str:
    return some(len(documents), "document") if documents else ""


def _more(out: Console, documents: list[DocumentOutcome]) -> None:
    if len(documents) > MOST_LINES:
        out.print(f"  and {count_text(len(documents) - MOST_LINES)} more")
