"""Support: how far a document carries an answer, from 0 to 1, and from where it is stated.

A logistic regression over a few signals that every model gives: how much of the attention lay on a
cited passage while the answer was said, and which of the words that the answer adds to the question
stand in the passages. How likely the model found its own words is no signal: a small model is as
sure of what it makes up (docs/results.md). Fitted by `sekv bench --suite support`
(`lab.bench.support`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

from engine.answer.overlap import overlap, stem_list, stems

if TYPE_CHECKING:
    from engine.answer.citations import DocumentText
    from engine.answer.evidence import Evidence
    from engine.types import Citation

FIRST = 3
"""Words that an answer is judged by: small models say what was asked first and ramble then."""

LITTLE = 0.01
"""Share of attention that is as good as none."""

TALK = stems("according answer document mentions passage says specifically states text")
"""Words that answers have whatever they say."""

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

    words: of the first words that the answer adds to the question, the share of their rarity that
    stands in the cited passages; 0 of an answer that adds none. held:
    logarithm of the share of the attention of heads that look at evidence which lay on one cited
    passage while the answer was said, of the passage with most: where such heads find nothing they
    rest on the first token of the prompt.
    """

    words: float
    held: float

    @classmethod
    def of(
        cls,
        book: DocumentText,
        question: str,
        answer: str,
        citations: Sequence[Citation],
        evidence: Evidence,
    ) -> Signals:
        """Of an answer, its passages and what was looked at."""
        cited = "\n".join(citation.text for citation in citations)
        asked = stems(question) | TALK
        new = [stem for stem in stem_list(answer) if stem not in asked][:FIRST]
        held = max((book.amount(evidence.answered, one) for one in citations), default=0.0)
        return cls(
            words=overlap(book.rare(new), cited),
            held=math.log(held + LITTLE),
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


CALIBRATED = Calibration(bias=3.2099, slopes=(3.658, 1.9865), least=0.408)
"""Of the default model, on natural questions about excerpts of 1,100 tokens; docs/results.md."""

WORDS_ALONE = Calibration(bias=-1.0, slopes=(3.0, 0.0), least=0.0)
"""For models whose heads nobody measured: words say too little to deny an answer, so none is."""


def refuses(answer: str) -> bool:
    """Whether the model says itself that the document gives no answer."""
    return REFUSAL.match(answer) is not None
