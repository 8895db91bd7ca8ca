"""Checks questions and their options before anything is loaded or computed.

Torch-free, and the one place for these bounds: the command line, the server and the engine ask
here, so that all of them refuse the same values for the same reason.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from engine.errors import OptionError, QuestionError
from engine.types import AUTO, AskOptions, Turn

MOST_CHARS = 32_768
"""Longest question, in characters. What is longer is a document: ingest it and ask about it."""

MOST_SEED = 2**64 - 1
"""Random number generators take seeds of 64 bits."""

TEMPERATURES = (1e-06, 1000.0)
"""Lowest and highest temperature but 0, which is greedy. Scores are divided by it in float32: far
below the lowest they overflow, far above the highest nothing of them is left."""

MOST_MARKS, MOST_MARK_CHARS = 4, 256
"""Texts that may end an answer, and characters of each."""

MOST_WIDEN = 1000.0
MOST_TOKENS = 10**9
"""Most tokens that a budget or an answer may name."""


def check_question(question: str, turns: Sequence[Turn] = ()) -> None:
    """Whether a question and the turns before it can be read.

    Raises:
        QuestionError: it is empty or too long, or holds what is no character or a NUL; an
            earlier turn holds what is no character.
    """
    if not question.strip():
        raise QuestionError("the question is empty; type what you want to know")
    if len(question) > MOST_CHARS:
        raise QuestionError(
            f"the question has {len(question):,} characters, the most is {MOST_CHARS:,}; "
            "ingest a long text as a document and ask about it"
        )
    if "\0" in question:
        raise QuestionError("the question holds NUL characters; is it UTF-16? save it as UTF-8")
    if not is_text(question):
        raise QuestionError("the question is not UTF-8 text; save it as UTF-8")
    if not all(is_text(turn.question) and is_text(turn.answer) for turn in turns):
        raise QuestionError("an earlier message is not UTF-8 text")


def is_text(text: str) -> bool:
    """False where a string holds a lone surrogate: half a character, or a byte of no UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def check_options(options: AskOptions, *, measuring: bool = False) -> None:
    """Whether every number of the options is in its range.

    measuring: a budget may exceed the document, whose rows of 32 bits take twice what a share of
    it counts; that is of use in measurements alone.

    Raises:
        OptionError: the first that is not.
    """
    for name in RULES:
        if name != "budget" or not measuring:
            check(name, getattr(options, name))


def check(name: str, value: Any) -> None:
    """Whether this value of one option, named as in `AskOptions`, is in its range.

    Raises:
        OptionError: it is not.
    """
    reason = RULES[name](value)
    if reason:
        raise OptionError(name, reason)


def _budget(text: str) -> str:
    """ "10%", "4096" or "auto": a share of the document's tokens, a number of them, the default."""
    if text == AUTO:
        return ""
    parts = re.fullmatch(r"\s*([0-9]{1,30}(?:\.[0-9]{1,30})?)\s*(%?)\s*", text)
    number = float(parts[1]) if parts else 0.0
    share = parts is not None and parts[2] == "%"
    whole = share or number == int(number)
    if share and number > 100:
        return f"{text[:40]!r} is more than the whole document; 100% is all of it"
    if not 0 < number <= (100 if share else MOST_TOKENS) or not whole:
        shown = text if len(text) <= 40 else f"{text[:40]}..."
        return (
            f"{shown!r} is neither a share of the document such as 10% nor a number of tokens "
            "such as 4096"
        )
    return ""


def _share(value: float) -> str:
    """A number in (0, 1]: nothing cannot be covered, and no more than all can."""
    return "" if 0.0 < value <= 1.0 else f"{value:g} is not above 0 and at most 1"


def _widen(value: float) -> str:
    return "" if 1.0 <= value <= MOST_WIDEN else f"{value:g} is not 1 or more, up to {MOST_WIDEN:g}"


def _temperature(value: float) -> str:
    least, most = TEMPERATURES
    fits = value == 0.0 or (math.isfinite(value) and least <= value <= most)
    return "" if fits else f"{value:g} is neither 0 nor a number from {least:g} to {most:g}"


def _seed(value: int) -> str:
    return "" if 0 <= value <= MOST_SEED else "it is not a number from 0 to 2^64 - 1"


def _stop(marks: Sequence[str]) -> str:
    fit = len(marks) <= MOST_MARKS and all(
        0 < len(mark) <= MOST_MARK_CHARS and is_text(mark) for mark in marks
    )
    return "" if fit else f"it takes up to {MOST_MARKS} texts of 1 to {MOST_MARK_CHARS} characters"


def _tokens(value: int) -> str:
    fits = 1 <= value <= MOST_TOKENS
    return "" if fits else f"it is not a number from 1 to {MOST_TOKENS:,}"


RULES: dict[str, Callable[[Any], str]] = {
    "budget": _budget,
    "coverage": _share,
    "widen": _widen,
    "max_new_tokens": _tokens,
    "temperature": _temperature,
    "top_p": _share,
    "seed": _seed,
    "stop": _stop,
}
"""By option what is wrong with a value of it, "" for nothing."""
