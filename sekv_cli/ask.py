"""`sekv ask`: answer questions from one store, each as it is made."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from engine.errors import SekvError
from sekv_cli import options

if TYPE_CHECKING:
    from engine.types import Answer
    from sekv_cli.progress import Shown


def ask(
    store: options.Store,
    questions: Annotated[
        list[str] | None,
        typer.Argument(metavar="QUESTION", help="Questions; - reads them from stdin."),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file", "-f", metavar="FILE", help="Questions, one a line.", show_default=False
        ),
    ] = None,
    budget: options.Budget = "20%",
    coverage: options.Coverage = 1.0,
    full: options.Full = False,
    max_new_tokens: options.MaxNewTokens = 128,
    temperature: options.Temperature = 0.0,
    top_p: options.TopP = 1.0,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    dtype: options.DTypeOption = options.DType.auto,
    model: options.Model = "",
    router: options.Router = None,
    no_stream: Annotated[
        bool, typer.Option("--no-stream", help="Print the answer when it is complete.")
    ] = False,
    stats: Annotated[
        bool, typer.Option("--stats", help="Add tokens, memory and time of each answer.")
    ] = False,
    trace: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Record every zoom decision, one JSON object per question and line.",
            show_default=False,
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Answer questions from a store, with page citations.

    The document is not read again: its memory is opened, and only what the
    question asks for is brought to full resolution. Below the answer stand the
    passages it was read from.

    \b
    Example:
      sekv ask book.sekv "Who warned Jonathan Harker?"
      sekv ask book.sekv -f questions.txt --json
      echo "What is the date?" | sekv ask book.sekv - --budget 10% --stats
    """
    waiting = _questions(questions or [], file)
    first = next(waiting, None)
    if first is None:
        raise SekvError("there is no question; give one after the store, with -f FILE or with -")
    if trace is not None and (trace.is_dir() or not trace.absolute().parent.is_dir()):
        raise SekvError(f"{trace} cannot be written; name a file in an existing folder")

    from engine.types import AskOptions
    from sekv_cli import format, progress

    chosen = AskOptions(
        budget=budget,
        coverage=coverage,
        full=full,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        device=device,
        dtype=dtype.value,
        model=model,
        router=str(router) if router else "",
        trace=trace is not None,
    )
    several = file is not None or "-" in (questions or []) or len(questions or []) > 1
    traces = []
    with progress.on_stderr() as shown:
        from engine.ask import Session

        with Session(store, chosen, shown) as session:
            for question in chain([first], waiting):
                if as_json:
                    answer = session.ask(question)
                    shown.clear()
                    format.emit_json(answer.to_json())
                else:
                    stream = _Stream(shown, question if several else "", live=not no_stream)
                    answer = session.ask(question, stream.text)
                    stream.finish(answer, stats=stats)
                if trace is not None:
                    traces.append(json.dumps(session.trace()))
                    trace.write_text("\n".join(traces) + "\n", encoding="utf-8")


class _Stream:
    """Writes an answer while it is made, and what belongs below it when it is complete."""

    def __init__(self, shown: Shown, question: str, *, live: bool) -> None:
        self._shown = shown
        self._question = question
        self._live = live
        self._begun = False

    def text(self, piece: str) -> None:
        """The next piece of the answer."""
        if self._live and piece:
            self._begin()
            self._write(piece)

    def finish(self, answer: Answer, *, stats: bool) -> None:
        """The end: the answer if it was not streamed, its citations, its figures."""
        from sekv_cli import format

        if not self._begun:
            self._begin()
            self._write(answer.answer)
        self._write("\n")
        out = format.console()
        if answer.citations:
            out.print()
            format.print_citations(out, answer.citations)
        if stats:
            out.print()
            format.print_stats(out, answer)
        if self._question:
            out.print()
        sys.stdout.flush()

    def _begin(self) -> None:
        from sekv_cli import format

        if not self._begun:
            self._begun = True
            self._shown.clear()
            if self._question:
                format.print_question(format.console(), self._question)

    @staticmethod
    def _write(text: str) -> None:
        from sekv_cli.format import clean

        sys.stdout.write(clean(text))
        sys.stdout.flush()


def _questions(named: list[str], file: Path | None) -> Iterator[str]:
    """The questions of the command line, then those of the file; stdin line by line as it comes."""
    if any(not question.strip() for question in named):
        raise SekvError("the question is empty")
    for question in named:
        if question == "-":
            yield from _lines(sys.stdin)
        else:
            yield question.strip()
    if file is not None and str(file) == "-":
        yield from _lines(sys.stdin)
    elif file is not None:
        try:
            text = file.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            raise SekvError(f"{file} is not UTF-8 text; save the questions as UTF-8") from None
        yield from (line.strip() for line in text.splitlines() if line.strip())


def _lines(stream: TextIO) -> Iterator[str]:
    for line in stream:
        if line.strip():
            yield line.strip()
