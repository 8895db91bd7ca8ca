"""Look-ups made by rule from real sentences. No invented facts.

Every rule reads one sentence and proposes a question with the span of its answer; whether
the question picks out that sentence alone in a document is checked by `picks_out`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from engine.train.reader.grammar import words_of

if TYPE_CHECKING:
    from random import Random


@dataclass(frozen=True)
class Proposal:
    """A question about a sentence. span: the answer in the sentence."""

    text: str
    span: tuple[int, int]
    kind: str


_WORD: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9'’-]*")
STOP: Final = frozenset(words_of(
    "a an the of to in on at by for from with and or but as is was were are be been being it its "
    "he she they them his her their this that these those which who whom whose what when where how "
    "many much why not no so if than then there here had has have do does did will would shall "
    "should could can may might must i me my we us our you your very more most some any all into "
    "upon about after before out up down over under again only also such one complete finish "
    "sentence text says name tell give words follow follows continue"))


def content(text: str) -> list[str]:
    """The words of a question that can pick out a sentence, lower-case."""
    return [w for w in (m.group().lower() for m in _WORD.finditer(text)) if w not in STOP]


def cloze(text: str, rng: Random) -> list[Proposal]:
    """Complete a sentence from its beginning."""
    starts = [m.start() for m in _WORD.finditer(text)]
    if len(starts) < 10:
        return []
    cut = starts[rng.randint(5, min(10, len(starts) - 4))]
    end = len(text.rstrip(".!?\"'”’_ "))
    if end - cut > 60:
        end = starts[min(len(starts) - 1, sum(s < cut for s in starts) + 8)]
        end = len(text[:end].rstrip(" ,;:-\"'"))
    if end <= cut:
        return []
    head = text[:cut].rstrip()
    form = rng.choice(
        (
            "Complete: '{}'",
            "Complete the sentence: '{} ...'",
            "How does the sentence that begins '{}' go on?",
            "What follows '{}'?",
            'Finish: "{} ..."',
        )
    )
    return [Proposal(form.format(head), (cut, end), "natural/cloze")]


_NAMED: Final = re.compile(
    r"\b(?:an?|the) ((?:[a-z]+ )?[a-z]+),? (?:named|called) ((?:[A-Z][\w’']+ ?)+)"
)


def named(text: str, rng: Random) -> list[Proposal]:
    """`a trawler named X`."""
    return [
        Proposal(
            rng.choice(
                (
                    f"What was the {m[1]} {rng.choice(('named', 'called'))}?",
                    f"What was the name of the {m[1]}?",
                )
            ),
            (m.start(2), m.start(2) + len(m[2].rstrip())),
            "natural/named",
        )
        for m in _NAMED.finditer(text)
    ]


RULES: Final = (cloze, named)


def propose(text: str, rng: Random) -> list[Proposal]:
    """All questions the rules find in one sentence."""
    if not 40 <= len(text) <= 240:
        return []
    return [p for rule in RULES for p in rule(text, rng)]


def picks_out(question: str, quote: str, others: list[str]) -> bool:
    """Whether no other sentence holds all content words of the question.

    Args:
        others: every other sentence of the document, lower-case.
    """
    words = content(question)
    low = quote.lower()
    known = [w for w in words if w in low]
    if len(known) < 2:
        return False
    known.sort(key=len, reverse=True)
    return not any(all(w in other for w in known) for other in others)
