"""Lexical overlap of a question with passages; words that are rare in the document count more.

Words are cut to stems, so that "warned" and "warns" are one. Rarity is inverse document frequency
(Sparck Jones, 1972) with sentences as documents, their number taken from the length of the text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

WORD = re.compile(r"[^\W_]+")
ENDING = re.compile(r"(?<=\w{3})(?:ing|ed|es|s|ly|e)$")
SENTENCE = 100
"""Characters of a sentence, about; the rarity of a word hardly depends on it."""

STOP = frozenset(
    WORD.findall(
        "a about an and are as at be been being but by can could did do does doing for from had "
        "has have he her him his how i if in into is it its many me much my no not of on or our "
        "she so than that the their them there these they this those to was we were what when "
        "where which who whom whose why will with would you your s t"
    )
)
"""Words that a question has whatever it asks."""

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


def content_words(text: str) -> list[str]:
    """The words of a text in lower case but for stop words, in order."""
    return [word for word in WORD.findall(text.lower()) if word not in STOP]


def names(text: str) -> list[str]:
    """The words of a text that begin with a capital, in lower case, but for stop words, in order:
    names, and whatever else stands at the beginning of a sentence."""
    return content_words(" ".join(word for word in WORD.findall(text) if word[0].isupper()))


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
