"""Streams an answer while it is generated: visible text, thinking, and where it ends.

Decoding is transformers' own `generate`, which calls an `AnswerStreamer` as a stopping criterion
with every token that was chosen. Its own streamers get a token too late: after the criteria were
asked, and on some devices after the next forward.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import StoppingCriteria
from transformers import StoppingCriteriaList as Criteria

from engine.answer import repetition, stop_marks
from engine.answer.evidence import Evidence
from engine.answer.trace import Trace
from engine.models import chunked
from engine.models.chunked import Stop
from engine.models.prompt import THINKING

if TYPE_CHECKING:
    from engine.models.reader import Reader

_BLOCK = re.compile(
    "|".join(rf"\s*{re.escape(o)}(.*?)(?:{re.escape(c)}|\Z)" for o, c in THINKING), re.DOTALL
)
_REST_OF_BLOCK = re.compile(
    rf"(.*?)(?:{'|'.join(re.escape(c) for _, c in THINKING)}|\Z)", re.DOTALL
)


def split_thinking(text: str, *, inside: bool = False) -> tuple[str, str]:
    """An answer and the thinking before it, both without white space at their ends.

    Blocks count at the beginning of a text and nowhere else, so that a quoted mark stays text. A
    block that never ends is thinking to its end.

    Args:
        inside: whether the prompt has opened the first block.
    """
    thoughts: list[str] = []
    at = 0
    found = _REST_OF_BLOCK.match(text) if inside else _BLOCK.match(text)
    while found is not None:
        thoughts.append(next((part for part in found.groups() if part), "").strip())
        at = found.end()
        found = _BLOCK.match(text, at)
    return text[at:].strip(), "\n\n".join(thought for thought in thoughts if thought)


class AnswerStreamer:
    """Takes tokens as they are generated; shows the answer, feeds evidence and trace.

    stop: asked before every token whether to give up. marks: texts that end the answer, beside
    those of the prompt. first, shown: times of the first token and of the first text that was
    shown.
    """

    def __init__(
        self,
        reader: Reader,
        evidence: Evidence,
        trace: Trace,
        on_text: Callable[[str], None] | None,
        stop: Stop | None,
        marks: Sequence[str] = (),
    ):
        self.evidence, self.trace, self.stop = evidence, trace, stop
        self._on_text = on_text
        self._tokenizer, self._thinks = reader.tokenizer, reader.prompt.thinks
        self._marks = (*reader.prompt.stops, *marks)
        own = reader.model.generation_config.eos_token_id
        own = [] if own is None else own if isinstance(own, list) else [own]
        self.ends: list[int] = sorted({*own, *reader.prompt.ends})
        self._hidden = _unshown(reader.tokenizer)
        self.first = time.perf_counter()
        self.shown: float | None = None
        self.tokens: list[int] = []
        self._written = ""

    def controls(self) -> dict[str, Any]:
        """What `generate` takes so that this sees what it needs and ends what is over."""
        ends = {"eos_token_id": self.ends} if self.ends else {}
        return {
            "stopping_criteria": Criteria([_EndOfAnswer(self)]),
            **ends,
        }

    def put(self, token: int) -> bool:
        """Take the token that the newest forward led to; whether the answer is over with it.

        Raises:
            StoppedError: `stop` said so.
        """
        chunked.check(self.stop)
        if not self.tokens:
            self.first = time.perf_counter()
        self.evidence.add_token(token)
        self.tokens.append(token)
        self.trace.add_token(self._tokenizer.decode([token]))
        self._show(self._settled())
        return self.over

    def finish(self) -> None:
        """The answer is complete."""
        self.evidence.forget()
        self._show(self.answer)

    @property
    def answer(self) -> str:
        """The answer so far, without thinking."""
        return self._split()[0]

    @property
    def thinking(self) -> str:
        """What the model said to itself so far."""
        return self._split()[1]

    @property
    def over(self) -> bool:
        """Whether the answer has come to an end: a mark, a text that ends it, or a loop."""
        if self.tokens[-1] in self.ends or repetition.loops(self.tokens):
            return True
        said = self._said()
        return repetition.begins(said) < len(said) or stop_marks.cut(said, self._marks)[1]

    def cut_short(self, most: int) -> bool:
        """Whether the answer ended for want of tokens."""
        return len(self.tokens) >= most and not self.over

    def _text(self) -> str:
        """All that was said, without the repetition at its end."""
        said = self._said()
        return said[: repetition.begins(said)]

    def _said(self) -> str:
        """All that was said, without tokens that were said again at its end."""
        repeated = repetition.loops(self.tokens)
        end = len(self.tokens) - repeated
        if repeated and self._tokenizer.decode([self.tokens[end]]).strip() in {".", "!", "?"}:
            end += 1  # what stands before a sentence and at its end is found as its beginning
        said = self.tokens[:end]
        kept = [token for token in said if token not in self._hidden]
        text: str = self._tokenizer.decode(kept)
        return repetition.whole_sentences(text) if repeated else text

    def _split(self) -> tuple[str, str]:
        text, _ = stop_marks.cut(self._text(), self._marks)
        return split_thinking(text, inside=self._thinks)

    def _settled(self) -> str:
        """The answer as far as no later token can take back any of it.

        An unfinished character decodes to U+FFFD; wait for its last byte. It may yet be white
        space, so that the space before it may yet be the end. What may be the beginning of a
        mark waits too, and what may become a sentence that was said before.
        """
        text, _ = stop_marks.cut(self._text(), self._marks)
        text = stop_marks.safe(text.rstrip("\ufffd"), self._marks)
        text = text[: repetition.may_begin(text)]
        text, _ = split_thinking(text, inside=self._thinks)
        return "" if any(opening.startswith(text) for opening, _ in THINKING) else text

    def _show(self, text: str) -> None:
        if len(text) > len(self._written):
            self.shown = self.shown or time.perf_counter()
            if self._on_text:
                self._on_text(text[len(self._written) :])
            self._written = text


class _EndOfAnswer(StoppingCriteria):
    """Ends the answer where the streamer says so."""

    def __init__(self, streamer: AnswerStreamer):
        self._streamer = streamer

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> Any:
        over = self._streamer.put(int(input_ids[0, -1]))
        return torch.full((len(input_ids),), over, device=input_ids.device)


def _unshown(tokenizer: Any) -> frozenset[int]:
    """Special tokens, which are no text; marks of thinking are, whatever a tokenizer calls them."""
    marks = {mark for pair in THINKING for mark in pair}
    return frozenset(
        token
        for token in tokenizer.all_special_ids
        if tokenizer.convert_ids_to_tokens(token) not in marks
    )
