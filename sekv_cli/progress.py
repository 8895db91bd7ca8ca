"""What long work shows while it runs: a bar on a terminal, plain lines anywhere else.

Always on stderr, so that stdout carries results alone. It draws; what to count
is decided where the work is done (`engine.types.Progress`).
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Protocol, Self, TextIO

from engine.types import Silent
from sekv_cli.format import amount_text, clean, left_text, seconds_text

if TYPE_CHECKING:
    from types import TracebackType

    from rich.progress import ProgressColumn

QUIET_SECONDS = 10.0
"""Plain lines: how long a stage stays silent between two lines about it."""

SHORT_SECONDS = 1.0
"""Plain lines: a stage shorter than this is not worth a line."""


class Shown(Protocol):
    """A Progress with a lifetime, that can make room for other output."""

    def start(self, stage: str, total: int, unit: str) -> None: ...

    def advance(self, done: int) -> None: ...

    def resume(self, done: int) -> None: ...

    def note(self, line: str) -> None: ...

    def clear(self) -> None:
        """The current stage is over; leave the terminal to others until the next one."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def on_stderr(verbose: bool | None = None) -> Shown:
    """The fitting one for where stderr goes now.

    verbose: True for a line per stage, however short; False for nothing at all.
    """
    if verbose is False:
        return Nothing()
    if verbose:
        return Lines(sys.stderr, shortest=0.0)
    return Bar(sys.stderr) if sys.stderr.isatty() else Lines(sys.stderr)


class Nothing(Silent):
    """No progress and no remarks."""

    def clear(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class Lines:
    """One line per stage that took a while, and one in between every ten seconds.

    shortest: seconds of a stage that is worth a line.
    """

    def __init__(self, stream: TextIO, shortest: float = SHORT_SECONDS) -> None:
        self._stream, self._shortest = stream, shortest
        self._stage = ""
        self._unit = ""
        self._total = 0
        self._done = self._before = 0
        self._begun = self._said = 0.0

    def start(self, stage: str, total: int, unit: str) -> None:
        self.clear()
        self._stage, self._total, self._unit = stage, total, unit
        self._done = self._before = 0
        self._begun = self._said = time.monotonic()

    def advance(self, done: int) -> None:
        self._done += done
        now = time.monotonic()
        if self._stage and now - self._said >= QUIET_SECONDS:
            self._said = now
            self._say(self._so_far(now - self._begun))

    def resume(self, done: int) -> None:
        self._before += done
        self.advance(done)

    def note(self, line: str) -> None:
        self._say(clean(line))

    def clear(self) -> None:
        took = time.monotonic() - self._begun
        if self._stage and took >= self._shortest:
            done = self._amount(self._done - self._before)
            self._say(f"{self._stage}: {done}{seconds_text(took)}")
        self._stage = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._stage = ""  # Not done: the line about the failure says enough.
        self.clear()

    def _so_far(self, elapsed: float) -> str:
        rate = (self._done - self._before) / elapsed
        if not self._total or not rate:
            return f"{self._stage}: {self._amount(self._done)}{seconds_text(elapsed)} so far"
        left = left_text(max(self._total - self._done, 0) / rate)
        return (
            f"{self._stage}: {100 * self._done // self._total} % of {self._amount(self._total)}"
            f"{amount_text(rate, self._unit)}/s, {left} left"
        )

    def _amount(self, number: int) -> str:
        return f"{amount_text(number, self._unit)}, " if number else ""

    def _say(self, line: str) -> None:
        print(line, file=self._stream, flush=True)


class Bar:
    """One live line with a bar, the speed and the time left; gone when the work is done."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import Progress

        self._console = Console(file=stream, highlight=False, markup=False, emoji=False)
        self._progress = Progress(
            *_columns(self._console.width), console=self._console, transient=True
        )
        self._task = self._progress.add_task("", visible=False, total=None, unit="")

    def start(self, stage: str, total: int, unit: str) -> None:
        self._progress.reset(
            self._task, total=total or None, description=stage, visible=True, unit=unit
        )
        self._progress.start()

    def advance(self, done: int) -> None:
        self._progress.advance(self._task, done)

    def resume(self, done: int) -> None:
        # Of a task that is reset rich forgets the pace, and measures it from there.
        (task,) = self._progress.tasks
        self._progress.reset(self._task, completed=int(task.completed) + done)

    def note(self, line: str) -> None:
        self._console.print(clean(line))

    def clear(self) -> None:
        self._progress.update(self._task, visible=False)
        self._progress.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.clear()


def _columns(width: int) -> list[ProgressColumn]:
    """As much as the width carries, the time left last to go."""
    from rich.progress import BarColumn, ProgressColumn, Task, TextColumn
    from rich.text import Text

    class Speed(ProgressColumn):
        def render(self, task: Task) -> Text:
            if not task.speed:
                return Text("")
            return Text(f"{amount_text(task.speed, task.fields['unit'])}/s")

    class Left(ProgressColumn):
        def render(self, task: Task) -> Text:
            if task.time_remaining is None:
                return Text(left_text(task.elapsed or 0.0))
            return Text(f"{left_text(task.time_remaining)} left")

    columns: list[ProgressColumn] = [TextColumn("{task.description}", markup=False)]
    if width >= 40:
        columns.append(BarColumn(bar_width=None if width < 80 else 40))
    if width >= 60:
        columns.append(Speed())
    return [*columns, Left()]
