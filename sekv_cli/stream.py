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
        self._begun = False

    def text(self, piece: str) -> None:
        """The next piece of the answer."""
        if self._live and piece:
            self._begin()
            self._write(piece)

    def finish(self, answer: Answer, *, stats: bool) -> None:
        """The end: the answer if it was not streamed, its citations, its figures."""
        from engine.types import CUT_SHORT, UNSUPPORTED
        from sekv_cli import format

        if not self._begun:
            self._begin()
            self._write(answer.shown)
        elif answer.cut_short:
            self._write(f" {CUT_SHORT}")
        elif not answer.supported:
            self._write(f"\n{UNSUPPORTED}")
        self._write("\n")
        out = format.console()
        if answer.citations:
            out.print()
            if not answer.supported:
                out.print("closest passages:", style="dim")
            format.print_citations(out, answer.citations, self._sources)
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
