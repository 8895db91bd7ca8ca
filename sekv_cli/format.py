"""How things are shown to people: numbers, tables, and where results go.

It decides how things look, never what is true: everything comes from the
engine's reports. Degrades by itself to 40 columns, to no colour (NO_COLOR, a
pipe) and to a terminal without Unicode.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from engine.lab.train.zoomin.loop import Result

UNBROKEN = 1_000_000
"""Columns of a line that nobody breaks."""

_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""Characters that act on a terminal instead of showing, for a document must not drive it; and what
is no character: bytes of a file's name that are not UTF-8."""

_PADDING = re.compile(r" +(?=\n)")

SECTIONED = (".epub", ".docx", ".md", ".markdown", ".html", ".htm", ".xhtml")
"""Endings of sources that are cited by heading and not by page."""


def clean(text: str) -> str:
    """Make text from a document safe to print: tabs and line breaks stay, control codes do not."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n")
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", lines)


def emit_json(record: Mapping[str, Any]) -> None:
    """Print one JSON object on one line of stdout. ASCII: any pipe and any locale carries it."""
    print(json.dumps(record, allow_nan=False), flush=True)


def bytes_text(number: int) -> str:
    """12_345_678 -> "12.3 MB"."""
    size = float(number)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 999.95:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def seconds_text(seconds: float) -> str:
    """0.42 -> "0.42 s", 75 -> "1 min 15 s", 3700 -> "1 h 01 min"."""
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.0f} s" if seconds >= 20 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def left_text(seconds: float) -> str:
    """A guess at the future, in whole seconds."""
    return f"{math.ceil(seconds)} s" if seconds <= 59 else seconds_text(seconds)


def count_text(number: int) -> str:
    """12345 -> "12,345"."""
    return f"{number:,}"


def share_text(part: float, whole: float) -> str:
    """Part of whole in per cent, "" when there is no whole."""
    return f"{100 * part / whole:.1f} %" if whole else ""


def amount_text(number: float, unit: str) -> str:
    """1234, "tokens" -> "1,234 tokens"; 0.31 keeps two digits; bytes in their own way."""
    if unit == "bytes":
        return bytes_text(round(number))
    few = number < 10 and number != round(number)
    return f"{number:.2g} {unit}" if few else f"{count_text(round(number))} {unit}"


def some(number: int, thing: str) -> str:
    """1, "page" -> "1 page"; 2, "page" -> "2 pages"."""
    return f"{count_text(number)} {thing}{'s' * (number != 1)}"


def console() -> Console:
    """Where results go: stdout as it is now, nothing in the text taken for markup."""
    from rich.console import Console

    class Results(Console):
        def on_broken_pipe(self) -> None:
            raise  # Not rich's own exit: the boundary in `main` knows what a closed pipe means.

        def print(self, *objects: Any, **said: Any) -> None:
            if self.is_terminal:
                super().print(*objects, **said)
                return
            # A pipe has no width: no line is broken, and none is padded.
            width, self.width = self.width, UNBROKEN
            try:
                with self.capture() as made:
                    super().print(*objects, **said)
            finally:
                self.width = width
            self.file.write(_PADDING.sub("", made.get()))

    return Results(highlight=False, markup=False, emoji=False)


def is_unicode(out: Console) -> bool:
    return out.encoding.startswith("utf")


def facts(rows: Iterable[tuple[str, str]]) -> Table:
    """Label and value, two columns, the value folding in narrow places."""
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in rows:
        if value:
            table.add_row(f"  {label}", clean(value))
    return table


def grid(header: Sequence[str], rows: Iterable[Sequence[str]], left: Iterable[int] = (0,)) -> Table:
    """A table with a quiet header; columns in `left` align left and may fold."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    texts = set(left)
    for index, name in enumerate(header):
        if index in texts:
            table.add_column(name, overflow="fold")
        else:
            table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(clean(cell) for cell in row))
    return table


def print_table(
    out: Console, header: Sequence[str], rows: Iterable[Sequence[str]], left: Iterable[int] = (0,)
) -> None:
    """A `grid`, or on a terminal that is too narrow for it each row's cells below its name."""
    rows = list(rows)
    table = grid(header, rows, left)
    if not out.is_terminal or _width(out, table) <= out.width:
        out.print(table)
        return
    for name, *cells in rows:
        out.print(clean(name), style="bold")
        out.print(facts(zip(header[1:], cells, strict=False)))


def _width(out: Console, table: Table) -> int:
    """Columns of a table of which nothing is folded."""
    return out.measure(table, options=out.options.update(max_width=UNBROKEN)).maximum


def extent(path: str, parts: int, chars: int) -> str:
    """How long a source is; only a PDF has pages, other formats have headings."""
    thing = "section" if PurePath(path).suffix.lower() in SECTIONED else "page"
    return (
        f"{some(parts, thing)}, {some(chars, 'character')}" if parts else some(chars, "character")
    )


def reading(tokens: int, windows: int, window_tokens: int) -> str:
    if windows <= 1:
        return f"{count_text(tokens)} in one context, exact"
    return f"{count_text(tokens)} in {some(windows, 'window')} of up to {count_text(window_tokens)}"


def read_so_far(tokens: int, read: int, windows: int) -> str:
    """How much of a partly read store is read, and how the rest comes to be."""
    return (
        f"{count_text(read)} of {some(windows, 'window')} ({count_text(tokens)} tokens); questions "
        "read what they need, sekv ingest the rest"
    )


def print_router(out: Console, path: PurePath, result: Result) -> None:
    """What was learnt, what it weighs, and whether it finds more than routing without training."""
    out.print(f"{clean(str(path))} is ready", style="bold")
    rows = [
        (
            "trained",
            f"{count_text(result.parameters)} parameters, "
            f"{100 * result.share:.3f} % of the model's",
        ),
        ("steps", count_text(result.steps)),
    ]
    rows += [
        (
            f"{name} form",
            f"{100 * row['trained']:.1f} % of the attention found in 5 % of held-out tokens, "
            f"{100 * row['untrained']:.1f} % without training, {100 * row['oracle']:.1f} % at "
            f"best; of step {result.best_step[name]}",
        )
        for name, row in result.found.items()
    ]
    out.print(facts(rows))


def print_markdown(out: Console, page: str) -> None:
    """A page of the engine's own as a terminal shows it; in a pipe it stays Markdown.

    A table that is wider than the terminal is shown row by row, a cell to a line.
    """
    if not out.is_terminal:
        out.file.write(page)
        return
    from itertools import groupby

    from rich.markdown import Markdown

    for is_table, lines in groupby(page.splitlines(), lambda line: line.startswith("|")):
        if not is_table:
            out.print(Markdown("\n".join(lines)))
            continue
        header, *rows = [_cells(line) for line in lines if not re.fullmatch(r"[|:\-]+", line)]
        print_table(out, header, rows)


def _cells(line: str) -> list[str]:
    """The cells of a row of a Markdown table."""
    return [cell.strip() for cell in line.strip().strip("|").split("|")]
