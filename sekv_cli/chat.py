"""`sekv chat`: a conversation with a store."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engine.answer import checks
from engine.errors import SekvError
from engine.models import named
from engine.object_storage import Address
from engine.store import glance
from engine.types import AUTO, AskOptions
from sekv_cli import options, outputs, streams, unread
from sekv_cli.endings import explain

if TYPE_CHECKING:
    from engine.types import Answer, Turn
    from sekv_cli.asker import Asker
    from sekv_cli.progress import Shown

AROUND = 300
"""Characters before and after a passage that /cite N shows."""


def chat(
    context: typer.Context,
    asked: options.StoreOrDocument,
    max_new_tokens: options.MaxNewTokens = 256,
    budget: options.Budget = AUTO,
    no_read: options.NoRead = False,
    history: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Where typed lines are kept. [default: ~/.local/state/sekv/history]",
            show_default=False,
        ),
    ] = None,
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
) -> None:
    """Talk with a store or a document: one question after the other, each answer
    with its passages.

    The latest turns, as far as an eighth of the budget holds them, are read again
    with each question; older ones are compressed as the document is, within the
    budget.

    /help lists the commands. Ctrl-C stops an answer, Ctrl-D ends the talk.

    \b
    Example:
      sekv chat book.pdf
      sekv chat book.sekv
      sekv chat book.sekv --budget 10% --temperature 0.7
    """
    how = {"pages": pages, "window": window, "chunk_tokens": chunk_tokens, "method": method}
    place, document, given = unread.find(asked, output, how)
    named.check(model, offline=offline)
    streams.binary()
    outputs.check_history(history)

    from sekv_cli import progress
    from sekv_cli.asker import computes_here, open_asker

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
        offline=offline,
        read=not no_read,
    )
    here, first_read = computes_here(context), unread.to_read(document, chosen, given)
    with (
        progress.on_stderr(verbose) as shown,
        open_asker(place, chosen, shown, no_server=here, unread=first_read) as asker,
    ):
        shown.clear()
        for line in glance.changed_sources(place):
            shown.note(line)
        talk = Talk(place, asker, shown)
        for line in _lines(history):
            if not talk.take(line):
                break


class Talk:
    """The conversation so far, and what a line does to it.

    What fails is said in one line and the talk goes on, but where stdout takes nothing any more.
    """

    def __init__(self, store: Address, asker: Asker, shown: Shown) -> None:
        self._store, self._asker, self._shown = store, asker, shown
        self._turns: list[Turn] = []  # without those that found nothing: they only mislead
        self._before: tuple[Turn, ...] = ()  # the latest question
        self._answers: list[Answer] = []
        self._commands: dict[str, tuple[str, Callable[[str], None]]] = {
            "/cite": ("[N]", self._cite),
            "/zoom": ("", self._zoom),
            "/budget": ("[SHARE|TOKENS|auto]", self._budget),
            "/save": ("FILE", self._save),
            "/forget": ("", self._forget),
            "/help": ("", self._help),
            "/quit": ("", self._help),
        }

    def take(self, line: str) -> bool:
        """Do what a line says; False when it ends the talk.

        Raises:
            OSError: stdout takes nothing.
        """
        name, _, rest = line.strip().partition(" ")
        if name == "/quit" or line.strip().lower() in ("exit", "quit"):
            return False
        try:
            if name.startswith("/"):
                if name not in self._commands:
                    raise SekvError(f"there is no {name}; /help lists the commands")
                self._commands[name][1](rest.strip())
            elif name:
                self._ask(line.strip())
        except KeyboardInterrupt:
            print("\n(stopped)", flush=True)
        except SekvError as error:
            self._shown.clear()
            print(f"sekv: {explain(error).line}", file=sys.stderr, flush=True)
        return True

    # -- questions -----------------------------------------------------------------

    def _ask(self, question: str) -> None:
        from engine.types import Turn
        from sekv_cli.stream import Stream

        checks.check_question(question)
        stream = Stream(self._shown, "", live=True, sources=glance.source_paths(self._store))
        self._before = tuple(self._turns)
        answer = self._asker.ask(question, stream.text, turns=self._before)
        stream.finish(answer, stats="")
        print(flush=True)
        if answer.supported:
            self._turns.append(Turn(question, answer.stated))
        self._answers.append(answer)

    # -- commands; each docstring is its line of /help -----------------------------

    def _cite(self, rest: str) -> None:
        """The last answer's passages; with N the Nth with what stands around it."""
        from sekv_cli import answers, format

        citations = self._last().citations
        if not citations:
            raise SekvError("the last answer cites nothing")
        if not rest:
            answers.print_citations(format.console(), citations, glance.source_paths(self._store))
            return
        if not rest.isdecimal() or not 1 <= int(rest) <= len(citations):
            raise SekvError(f"there is no passage {rest}; there are 1 to {len(citations)}")
        from engine.answer import inspect

        citation = citations[int(rest) - 1]
        store = self._store / citation.store if citation.store else self._store
        before, after = inspect.around(store, citation, AROUND)
        answers.print_around(format.console(), before, citation.text, after)

    def _zoom(self, rest: str) -> None:
        """What the last question zoomed into; it is asked once more to see."""
        from engine.answer import inspect
        from sekv_cli import format, inspection

        question, asker = self._last().question, self._asker
        within = self._last().store
        store = self._store / within if within else self._store
        before = asker.options
        asker.retune(replace(before, trace=True))
        try:
            asker.ask(question, turns=self._before)
        finally:
            asker.retune(before)
        report = inspect.inspect(store, trace=asker.trace(), options=before, progress=self._shown)
        words = inspect.excerpts(store, inspection.heaviest(report.zoom))
        inspection.print_zoom(format.console(), report, words)

    def _budget(self, rest: str) -> None:
        """How much may be resident; with a share or a number of tokens it is that from now on."""
        if rest:
            try:
                wanted = options.budget(rest)
            except typer.BadParameter as error:
                raise SekvError(str(error)) from None
            self._asker.retune(replace(self._asker.options, budget=wanted))
        print(f"budget {self._asker.options.budget}", flush=True)

    def _save(self, rest: str) -> None:
        """Write the conversation with its passages as Markdown."""
        if not rest:
            raise SekvError("name a file: /save talk.md")
        path = Path(rest).expanduser()
        outputs.check_new(path)

        from sekv_cli import answers

        sources = glance.source_paths(self._store)
        outputs.write(path, answers.conversation(str(self._store), self._answers, sources))
        print(f"saved to {path}", flush=True)

    def _forget(self, rest: str) -> None:
        """Begin anew: earlier turns are not read any more."""
        self._turns.clear()
        print("forgotten", flush=True)

    def _help(self, rest: str) -> None:
        """This list. /quit, exit or Ctrl-D ends the talk, Ctrl-C stops an answer."""
        from sekv_cli import answers, format

        answers.print_commands(
            format.console(),
            [
                (f"{name} {takes}".strip(), (act.__doc__ or "").strip())
                for name, (takes, act) in self._commands.items()
                if name != "/quit"
            ],
        )

    def _last(self) -> Answer:
        if not self._answers:
            raise SekvError("nothing was asked yet; type a question")
        return self._answers[-1]


def _lines(history: Path | None) -> Iterator[str]:
    """What is typed, with a line editor on a terminal; else the lines of stdin."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        for line in streams.raw_lines():  # what is not UTF-8 is refused as a question
            yield line.decode("utf-8", "surrogateescape")
        return
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory

    editor: PromptSession[str] = PromptSession(history=FileHistory(str(_private(history))))
    print("/help lists the commands, Ctrl-D ends the talk", flush=True)
    while True:
        try:
            yield editor.prompt("> ")
        except KeyboardInterrupt:
            continue
        except EOFError:
            return


def _private(history: Path | None) -> Path:
    """The history's file, made for its owner alone."""
    if history is None:
        state = os.environ.get("XDG_STATE_HOME")
        history = (Path(state) if state else Path.home() / ".local" / "state") / "sekv" / "history"
        history.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(history, os.O_CREAT | os.O_WRONLY, 0o600))
    return history
