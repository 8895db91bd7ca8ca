"""Where a quote begins: at the rarest word that the question shares with the sentence.

A small reader finds a sentence by the words it shares with the question, and best by the one that
stands nowhere else: the name of the thing asked about. A quote that begins there begins with a word
the question already names, so the reader starts by copying it and goes on by following the text.
Beginning at the head of the sentence, or at the value where that stands first, asks it for a word
it has not yet found: such facts kept the reader's first token wrong in two of five answers. The
value is given after the quote and may be any part of the sentence.
"""

from __future__ import annotations

import re

from engine.quoting import COMMON, WORD


def openings(question: str, sentence: str, value: str, document: str) -> list[int]:
    """Characters of the sentence where its quote may begin, the best of them first.

    They are the telling words that also stand in the question, by how rare they are in the
    document: words that stand there letter by letter before those with another ending, names before
    other words, of these the longest; the value itself if there is none. From any of them the
    quote comes to the same sentence; what stands more than twice as often as the rarest does not
    count, for the reader would have to find on the way what it was asked to begin with.
    """
    words = {word.group() for word in WORD.finditer(question)}
    asked = {_stem(word) for word in words}
    shared = [
        word
        for word in WORD.finditer(sentence)
        if word.group().lower() not in COMMON and _stem(word.group()) in asked
    ]

    def commonness(word: re.Match[str]) -> tuple[bool, int, bool, int]:
        text = word.group()
        name = text[0].isupper() or text[0].isdigit()
        return text not in words, document.count(text), not name, 0 if name else -len(text)

    if not shared:
        return [max(0, sentence.find(value))]
    shared.sort(key=commonness)
    often = 2 * document.count(shared[0].group())
    return [word.start() for word in shared if document.count(word.group()) <= often]


def _stem(word: str) -> str:
    """A word without case and its commonest endings."""
    word = word.lower().replace("’", "'")
    return re.sub(r"('s|ed|ing|es|s)$", "", word) if len(word) > 4 else word
