"""An answer on stdout: written while it is made, then its citations and figures."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.types import Answer
    from sekv_cli.progress import Shown


class Stream:
    """Writes an answer while it is made, and what belongs below it when it is complete.

    sources: the paths of all sources of the store, which citations tell apart.
    """

    def __init__(
        self, shown: Shown, question: str, *, live: bool, sources: Sequence[str] = ()
    ) -> None:
        self._shown, self._sources = shown, sources
        self._question = question
        self._live = live
        self._begun = self._streamed = False

    def text(self, piece: str) -> None:
        """The next piece of the answer."""
        if self._live and piece:
            self._begin()
            self._streamed = True
            self._write(piece)

    def finish(self, answer: Answer, *, stats: str) -> None:
        """The end: the answer if it was not streamed, how far it is supported, its passages.

        stats: "", "short" or "full", for what it cost.
        """
        from sekv_cli import answers, format

        if not self._begun:
            self._begin()
            self._write(answer.stated)
        said = answers.support_text(answer)
        if said and (self._streamed or answer.supported):  # else "not stated" says it already
            self._write(f"{' ' if answer.cut_short else chr(10)}{said}")
        self._write("\n")
        out = format.console()
        if answer.citations:
            out.print()
            if not answer.supported:
                out.print("closest passages:", style="dim")
            answers.print_citations(out, answer.citations, self._sources)
        if stats:
            out.print()
            answers.print_stats(out, answer, everything=stats == "full")
        if self._question:
            out.print()
        sys.stdout.flush()

    def _begin(self) -> None:
        from sekv_cli import answers, format

        if not self._begun:
            self._begun = True
            self._shown.clear()
            if self._question:
                answers.print_question(format.console(), self._question)

    @staticmethod
    def _write(text: str) -> None:
        from sekv_cli.format import clean

        sys.stdout.write(clean(text))
        sys.stdout.flush()
