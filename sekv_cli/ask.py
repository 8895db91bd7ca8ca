"""`sekv ask`: answer questions from one store, each as it is made."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from engine.answer import checks, replay
from engine.errors import QuestionError, SekvError
from engine.models import named
from engine.store import glance
from engine.store.manifest import NAME
from engine.types import AUTO, AskOptions
from sekv_cli import options, outputs, streams, unread
from sekv_cli.commands import ALL_STATS, RESEARCH

LARGE = 1_000_000
"""Bytes of a trace that are worth a word."""


def ask(
    context: typer.Context,
    asked: options.StoreOrDocument,
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
    stats: Annotated[
        bool,
        typer.Option(
            "--stats", help="Add what each answer cost, in five lines; --stats=full for all of it."
        ),
    ] = False,
    all_stats: Annotated[bool, typer.Option(ALL_STATS, hidden=True)] = False,
    as_json: options.Json = False,
    no_stream: Annotated[
        bool, typer.Option("--no-stream", help="Print the answer when it is complete.")
    ] = False,
    max_new_tokens: options.MaxNewTokens = 128,
    budget: options.Budget = AUTO,
    whole: options.Whole = None,
    no_read: options.NoRead = False,
    verbose: options.Verbose = None,
    output: unread.Output = None,
    pages: unread.Pages = "",
    window: unread.Window = None,
    chunk_tokens: unread.ChunkTokens = None,
    method: unread.Method = "",
    model: options.Model = "",
    device: options.Device = "auto",
    dtype: options.DTypeOption = options.DType.auto,
    offline: options.Offline = False,
    no_server: options.NoServer = False,
    temperature: options.Temperature = 0.0,
    top_p: options.TopP = 1.0,
    seed: options.Seed = 0,
    full: options.Full = False,
    coverage: options.Coverage = 1.0,
    widen: options.Widen = 1.0,
    router: options.Router = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Record every zoom decision for `sekv inspect --trace`, one JSON object per "
            "question and line: megabytes for a long answer, much less as FILE.gz.",
            show_default=False,
            rich_help_panel=RESEARCH,
        ),
    ] = None,
) -> None:
    """Answer questions from a store or a document, with page citations.

    Of a document, what the questions need is read and kept in a store, name.sekv
    in the current folder; `sekv ingest` reads the rest. What a store has is not
    read again: its memory is opened, and only what the question asks for is
    brought to full resolution. Below the answer stand the passages it was read
    from. A running `sekv serve` of yours that has the store loaded answers at
    once; without one, model and store are loaded first.

    \b
    Example:
      sekv ask book.pdf "Who warned Jonathan Harker?"
      sekv ask book.sekv "Who warned Jonathan Harker?"
      sekv ask book.sekv -f questions.txt --json
      echo "What is the date?" | sekv ask book.sekv - --budget 10% --stats
    """
    waiting = _questions(questions or [], file)
    first = next(waiting, None)
    if first is None:
        raise SekvError("there is no question; give one after the store, with -f FILE or with -")
    how = {"pages": pages, "window": window, "chunk_tokens": chunk_tokens, "method": method}
    place, document, given = unread.find(asked, output, how)
    named.check(model, offline=offline)
    options.check_router(router)
    outputs.check_trace(trace)

    from sekv_cli import format, progress
    from sekv_cli.asker import computes_here, open_asker
    from sekv_cli.stream import Stream

    chosen = AskOptions(
        budget=budget,
        coverage=coverage,
        full=full,
        widen=widen,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        device=device,
        dtype=dtype.value,
        model=model,
        router=str(router) if router else "",
        trace=trace is not None,
        offline=offline,
        read=not no_read,
        whole=whole,
    )
    here, first_read = computes_here(context), unread.to_read(document, chosen, given)
    several = file is not None or "-" in (questions or []) or len(questions or []) > 1
    cost = "full" if all_stats else "short" if stats else ""
    traces, unanswered = [], []
    with (
        progress.on_stderr(verbose) as shown,
        open_asker(place, chosen, shown, no_server=here, unread=first_read) as session,
    ):
        for line in glance.changed_sources(place):
            shown.note(line)
        for question in chain([first], waiting):
            try:
                if as_json:
                    answer = session.ask(question)
                    shown.clear()
                    format.emit_json(answer.to_json())
                else:
                    heading, sources = question if several else "", glance.source_paths(place)
                    stream = Stream(shown, heading, live=not no_stream, sources=sources)
                    stream.finish(session.ask(question, stream.text), stats=cost)
            except QuestionError as error:
                if not several:
                    raise
                shown.clear()
                unanswered.append(f'"{question}": {error}')
                shown.note(unanswered[-1])
                continue
            if trace is not None:
                traces.append(replay.line(session.trace()))
                size = outputs.write(trace, "\n".join(traces) + "\n")
                if size > LARGE and trace.suffix != replay.PACKED:
                    shown.note(
                        f"{trace} has {format.bytes_text(size)}; name it {trace.name}.gz to have "
                        "it compressed, or ask for less with --max-new-tokens"
                    )
    if unanswered:  # the others were
        more = f", and {len(unanswered) - 1} more" if unanswered[1:] else ""
        raise QuestionError(f"not answered: {unanswered[0]}{more}")


def _questions(named: list[str], file: Path | None) -> Iterator[str]:
    """The questions of the command line, then those of the file; stdin line by line as it comes.

    All that is there already is checked before the first question is given, so that a wrong one
    costs no answer.
    """
    for question in named:
        if _is_store(question):  # as `sekv ask *.sekv "Who?"` names them
            raise SekvError(
                f"{question} is a store, and one is asked at a time; ask each by itself, or ingest "
                "their sources into one"
            )
        if question != "-":
            checks.check_question(question)
    if "-" in named or str(file) == "-":
        streams.binary()
    from_file = _read(file) if file is not None and str(file) != "-" else []
    for question in named:
        if question == "-":
            yield from _typed()
        else:
            yield question.strip()
    if file is not None and str(file) == "-":
        yield from _typed()
    yield from from_file


def _is_store(question: str) -> bool:
    try:
        return (Path(question) / NAME).is_file()
    except (OSError, ValueError):  # too long for a name, or with a NUL
        return False


def _read(file: Path) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise SekvError(f"{file} is not UTF-8 text; save the questions as UTF-8") from None
    found = [line.strip() for line in text.splitlines() if line.strip()]
    for question in found:
        checks.check_question(question)
    return found


def _typed() -> Iterator[str]:
    """The questions that come through stdin, one a line."""
    for line in streams.lines():
        if line.strip():
            yield line.strip()
