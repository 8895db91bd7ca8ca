"""Lexical overlap of a question with passages; words that are rare in the document count more.

Words are cut to stems, so that "warned" and "warns" are one. Rarity is inverse document frequency
(Sparck Jones, 1972) with sentences as documents, their number taken from the length of the text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

from engine.documents.words import WORD, content_words

ENDING = re.compile(r"(?<=\w{3})(?:ing|ed|es|s|ly|e)$")
SENTENCE = 100
"""Characters of a sentence, about; the rarity of a word hardly depends on it."""

NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        WORD.findall(
            "zero one two three four five six seven eight nine ten eleven twelve thirteen "
            "fourteen fifteen sixteen seventeen eighteen nineteen twenty"
        )
    )
}
"""Numbers that books write as words and models as figures."""


def stem_list(text: str) -> list[str]:
    """The stems of a text's words but for stop words, in order, each once; small numbers as
    figures."""
    words = content_words(text)
    return list(dict.fromkeys(NUMBERS.get(word) or ENDING.sub("", word) for word in words))


def stems(text: str) -> set[str]:
    """The stems of a text, without order."""
    return set(stem_list(text))


def rarities(wanted: Iterable[str], lowered: str) -> dict[str, float]:
    """How much each stem tells in a document.

    Args:
        lowered: the document's text in lower case.
    """
    sentences = len(lowered) / SENTENCE + 1
    words = {figure: word for word, figure in NUMBERS.items()}
    counts = {
        stem: len(re.findall(rf"\b(?:{re.escape(stem)}|{words.get(stem, stem)})", lowered))
        for stem in wanted
    }
    return {
        stem: math.log(1 + (sentences - min(n, sentences) + 0.5) / (n + 0.5))
        for stem, n in counts.items()
    }


def overlap(wanted: Mapping[str, float], text: str) -> float:
    """Share of the wanted stems' rarity that stands in a text, 0 to 1; 0 if nothing is wanted."""
    found = stems(text)
    total = sum(wanted.values())
    return sum(weight for stem, weight in wanted.items() if stem in found) / total if total else 0.0
