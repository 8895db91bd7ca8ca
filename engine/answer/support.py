"""How far a document carries an answer, from 0 to 1, and from where on it counts as stated.

A logistic regression over a few signals that every model gives: what the cited passages share with
the words of question and answer, how much of the attention lies on the best of them, and how likely
the model found its own words. Fitted by `sekv bench --suite support` (`lab.bench.support`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from engine.answer.overlap import overlap

if TYPE_CHECKING:
    from engine.answer.citations import DocumentText
    from engine.answer.trace import Evidence
    from engine.types import Citation

REFUSAL = re.compile(
    r"\W*(?:"
    r"there is no (?:information|mention|answer)"
    r"|(?:it|(?:the|this) (?:document|text|passage|context)) (?:does not|doesn['’]t) "
    r"(?:say|state|mention|specify|provide|contain)"
    r"|(?:(?:it|this) is )?not (?:stated|mentioned|specified|given|provided)\b"
    r"|unanswerable\b)",
    re.IGNORECASE,
)
"""How models begin that say themselves that a document gives no answer."""


@dataclass(frozen=True)
class Signals:
    """What speaks for an answer.

    question, answer: share of the rarity of their words that stands in the cited passages.
    best: share of the attention to the document that lies on the best passage. asked, looked: how
    much of the attention of heads that look at evidence lay on the document, while the question
    was read and while the answer was said, 0 to 1: such heads rest on the first token of the
    prompt where they find nothing. likely: mean log probability of the answer's tokens in nats.
    """

    question: float
    answer: float
    best: float
    asked: float
    looked: float
    likely: float

    @classmethod
    def of(
        cls,
        book: DocumentText,
        question: str,
        answer: str,
        citations: Sequence[Citation],
        evidence: Evidence,
        likely: Sequence[float],
    ) -> Signals:
        """Of an answer, its passages, what was looked at and its tokens' log probabilities."""
        cited = "\n".join(citation.text for citation in citations)
        return cls(
            question=overlap(book.rare(question), cited),
            answer=overlap(book.rare(answer), cited),
            best=book.share(evidence.weight, citations[0]) if citations else 0.0,
            asked=evidence.looked[0] if evidence.looked else 0.0,
            looked=fmean(evidence.looked[1:]) if evidence.looked[1:] else 0.0,
            likely=fmean(likely) if likely else 0.0,
        )


@dataclass(frozen=True)
class Calibration:
    """Coefficients in the order of `Signals`, and the least support of an answer that is stated."""

    bias: float
    slopes: tuple[float, ...]
    least: float

    def support(self, signals: Signals) -> float:
        """0 to 1."""
        score = self.bias + sum(
            slope * value for slope, value in zip(self.slopes, astuple(signals), strict=True)
        )
        return 1 / (1 + math.exp(-max(-50.0, min(50.0, score))))


CALIBRATED = Calibration(bias=0.0, slopes=(0.0, 1.0, 0.0, 0.0, 1.0, 0.0), least=0.3)

WORDS_ALONE = Calibration(bias=-2.0, slopes=(2.0, 3.0, 0.0, 0.0, 0.0, 0.0), least=0.0)
"""For models whose heads nobody measured: words say too little to deny an answer, so none is."""


def refuses(answer: str) -> bool:
    """Whether the model says itself that the document gives no answer."""
    return REFUSAL.match(answer) is not None
