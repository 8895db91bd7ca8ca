"""Where an answer only repeats itself: small models end so and do not stop by themselves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

LOOP_SIZE, LOOP_TIMES, LOOP_TOKENS = 64, 4, 16
"""An answer is over that ends with the same stretch of tokens, at most LOOP_SIZE long, LOOP_TIMES
in a row and over at least LOOP_TOKENS tokens: the noughts of a number are no loop."""

LOOP_SENTENCE = 12
"""Tokens of a stretch that is a loop when it is said twice: a sentence said again word for word."""

ITEM_WORDS, ITEM_TIMES = 4, 3
"""A numbered list loops whose item of ITEM_WORDS words or more was said before; a shorter one must
have been said by the ITEM_TIMES - 1 items before it: "1. Yes 2. No 3. Yes" is no loop."""

_NUMBERED = re.compile(r"(?:(?<=\s)|\A)(\d{1,3})[.)]\s+")

SENTENCE_WORDS = 6
"""Words of a sentence that ends an answer when it is said again; "I do not know." may be."""

_SENTENCE_END = re.compile(r"[.!?](?<!\d.)[\"”’')]*\s+")


def loops(tokens: list[int]) -> int:
    """How many tokens at the end only repeat those before them; 0 if that is no loop."""
    for size in range(1, LOOP_SIZE + 1):
        times = 2 if size >= LOOP_SENTENCE else max(LOOP_TIMES, -(-LOOP_TOKENS // size))
        if size * times > len(tokens) or tokens[-1] != tokens[-1 - size]:
            continue
        tail = tokens[-size * times :]
        if tail == tail[:size] * times:
            return size * (times - 1)
    return 0


def looping_item(text: str) -> int:
    """Where an item of a numbered list begins that says the words of an earlier one again, so that
    the list has no end; the length of the text if none does. The last item may go on yet."""
    said: list[list[str]] = []
    following = 0
    for mark, behind in pairwise(_NUMBERED.finditer(text)):
        if int(mark[1]) != following:  # another list
            said.clear()
        following = int(mark[1]) + 1
        words = text[mark.end() : behind.start()].casefold().split()
        recent = said[1 - ITEM_TIMES :]
        short = len(recent) == ITEM_TIMES - 1 and all(each == words for each in recent)
        if words and (short or (len(words) >= ITEM_WORDS and words in said)):
            return mark.start()
        said.append(words)
    return len(text)


def begins(text: str) -> int:
    """Where a text begins to repeat itself by an item of a list or a whole sentence; its length if
    it does not."""
    starts, last = _sentences(text)
    whole = last[-1:] and last[-1] in '.!?"”' and len(last.split()) >= SENTENCE_WORDS
    again = whole and last in _earlier(text, starts, last)
    return min(looping_item(text), starts[-1] if again else len(text))


def may_begin(text: str) -> int:
    """Where the last sentence begins if, as far as it goes, an earlier one began so; the length of
    the text if none did."""
    starts, last = _sentences(text)
    begun = any(each.startswith(last) for each in _earlier(text, starts, last))
    return starts[-1] if begun else len(text)


def whole_sentences(text: str) -> str:
    """A text that was cut where it began to loop, without the beginning of a sentence at its end;
    all of it where it has no whole sentence."""
    ends = [found.end() for found in _SENTENCE_END.finditer(f"{text} ")]
    return text[: ends[-1]] if ends else text


def _sentences(text: str) -> tuple[list[int], str]:
    """Where they begin, and the words of the last."""
    starts = [0, *(found.end() for found in _SENTENCE_END.finditer(text.rstrip()))]
    return starts, _words(text[starts[-1] :])


def _earlier(text: str, starts: list[int], last: str) -> Iterator[str]:
    """The words of the sentences before the last one that begin with its letter: this is asked at
    every token of an answer."""
    for first, end in pairwise(starts):
        if text[first:end].lstrip()[:1].casefold()[:1] == last[:1]:
            yield _words(text[first:end])


def _words(sentence: str) -> str:
    return " ".join(sentence.casefold().split())
