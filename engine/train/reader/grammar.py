"""A tiny template language, and the split of everything into seen and held out.

A template is a line such as ``[the|that] {attr} of {e} [is|was] {v}``: brackets hold
alternatives (nested, an empty one makes the part optional), braces hold slots. A slot
may ask for a form: ``{e's}`` is the possessive, ``{a v}`` puts the indefinite article
before it. Nothing here knows what a fact is.
"""

from __future__ import annotations

import functools
import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from random import Random

_TOKEN = re.compile(r"\[|\]|\||\{[^}]*\}|[^\[\]|{}]+")
_VOWEL_SOUND = re.compile(r"(?i)(?:[aeio]|u(?!ni|se|ti|s\b)|hour|honest|heir|8|1[18](?!\d))")


@dataclass(frozen=True)
class Slot:
    """A place for a name or value. form: "" | "'s" | "a"."""

    name: str
    form: str = ""


@dataclass(frozen=True)
class Choice:
    """One of several part lists."""

    options: tuple[tuple[str | Slot | Choice, ...], ...]


@dataclass(frozen=True)
class Rendered:
    """Text of one expansion and where each slot first stands in it."""

    text: str
    spans: Mapping[str, tuple[int, int]]


@dataclass(frozen=True, eq=False)
class Template:
    """A compiled line; `source` is the line itself and its identity for the split.

    Compared by identity, as `template` makes each line once.
    """

    source: str
    parts: tuple[str | Slot | Choice, ...]
    slots: frozenset[str]

    def render(self, rng: Random, fill: Mapping[str, str]) -> Rendered:
        """Expand with random alternatives.

        Args:
            fill: text for every slot that can occur.
        Returns:
            the text, not capitalised and without a full stop, and the slot spans.
        Raises:
            KeyError: a slot has no text.
        """
        out: list[str] = []
        spans: dict[str, tuple[int, int]] = {}
        self._walk(self.parts, rng, fill, out, spans, 0)
        return Rendered("".join(out), spans)

    def _walk(
        self,
        parts: tuple[str | Slot | Choice, ...],
        rng: Random,
        fill: Mapping[str, str],
        out: list[str],
        spans: dict[str, tuple[int, int]],
        at: int,
    ) -> int:
        for part in parts:
            if isinstance(part, str):
                out.append(part)
                at += len(part)
            elif isinstance(part, Slot):
                text = fill[part.name]
                if part.form == "a":
                    article = indefinite(text)
                    out.append(article)
                    at += len(article)
                spans.setdefault(part.name, (at, at + len(text)))
                if part.form == "'s":
                    text = possessive(text)
                out.append(text)
                at += len(text)
            else:
                option = part.options[int(rng.random() * len(part.options))]
                at = self._walk(option, rng, fill, out, spans, at)
        return at

    def count(self) -> int:
        """How many expansions the alternatives allow."""
        return _count(self.parts)


def _count(parts: tuple[str | Slot | Choice, ...]) -> int:
    total = 1
    for part in parts:
        if isinstance(part, Choice):
            total *= sum(_count(option) for option in part.options)
    return total


@functools.cache
def template(source: str) -> Template:
    """Compile one line.

    Raises:
        ValueError: brackets do not match.
    """
    names: set[str] = set()
    stack: list[list[list[str | Slot | Choice]]] = [[[]]]
    for token in _TOKEN.findall(source):
        if token == "[":
            stack.append([[]])
        elif token == "|" and len(stack) > 1:
            stack[-1].append([])
        elif token == "]":
            if len(stack) == 1:
                raise ValueError(f"unmatched ] in template: {source}")
            options = stack.pop()
            stack[-1][-1].append(Choice(tuple(tuple(option) for option in options)))
        elif token.startswith("{"):
            slot = _slot(token[1:-1])
            names.add(slot.name)
            stack[-1][-1].append(slot)
        else:
            stack[-1][-1].append(token)
    if len(stack) != 1:
        raise ValueError(f"unmatched [ in template: {source}")
    return Template(source, tuple(stack[0][0]), frozenset(names))


def _slot(inside: str) -> Slot:
    if inside.startswith("a "):
        return Slot(inside[2:], "a")
    if inside.endswith("'s"):
        return Slot(inside[:-2], "'s")
    return Slot(inside)


def words_of(text: str) -> tuple[str, ...]:
    """The words of a line, for lists written as text."""
    return tuple(text.split())


def indefinite(text: str) -> str:
    """The indefinite article for `text`, with its space."""
    return "an " if _VOWEL_SOUND.match(text) else "a "


def possessive(text: str) -> str:
    """`text` as an owner."""
    return text + ("'" if text.endswith("s") else "'s")


def sentence(text: str, stop: str = ".") -> str:
    """Capitalise and close a clause; the length grows by the stop alone."""
    first = 1 if text[:1] in "\"'(" and len(text) > 1 else 0
    closed = text.endswith((".", "?", "!", '."', ".)"))
    return (
        text[:first]
        + text[first : first + 1].upper()
        + text[first + 1 :]
        + ("" if closed else stop)
    )


_ORDERS = (
    "name ",
    "tell ",
    "give ",
    "find ",
    "state ",
    "say ",
    "quote ",
    "look ",
    "identify ",
    "report ",
    "complete",
    "finish",
    "i ",
    "i'd ",
    "please",
    "show ",
    "recall ",
    "read ",
)


def question(text: str) -> str:
    """Capitalise and close a question or an order."""
    return sentence(text, "." if text.lower().startswith(_ORDERS) else "?")


@functools.cache
def bucket(text: str, of: int) -> int:
    """A stable number in 0..of-1 for `text`; the same on every machine and run."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % of


def held_out_word(text: str) -> bool:
    """Whether a name belongs to the evaluation (about one in six)."""
    return bucket("word:" + text.lower(), 6) == 0


def held_out_frame(source: str) -> bool:
    """Whether a fact or question wording belongs to the evaluation (about one in six)."""
    return bucket("frame:" + source, 6) == 0


def held_out_family(name: str) -> bool:
    """Whether a whole relation belongs to the evaluation (about one in eight)."""
    return bucket("family:" + name, 8) == 0
