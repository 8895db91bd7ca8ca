"""Where a quote begins: at the first words that the question shares with the sentence.

A small reader finds a sentence by the words it shares with the question. Beginning the quote
there makes its first word one that the question already names, so that the reader starts by
copying and goes on by following the text; beginning at the head of the sentence asks it to
find a place it has no word for.
"""

from __future__ import annotations

import re

WORD = re.compile(r"\w+(?:[-'’.]\w+)*")
COMMON = frozenset(
    WORD.findall(
        "a an the of in on at to by for from with and or but is are was were be been being it its "
        "this that these those he she they his her their him them who whom whose which what when "
        "where why how do does did done has have had as not no nor so than then there here one "
        "ones any some all many much about into over under up out off i you we my your our me us"
    )
)


def opening(question: str, sentence: str, value: str) -> int:
    """Character of the sentence where its quote begins.

    The first telling word that also stands in the question, or the value if that comes earlier;
    0 if the question shares no telling word and the value is not there.
    """
    asked = {_stem(word.group()) for word in WORD.finditer(question)}
    limit = sentence.find(value)
    for word in WORD.finditer(sentence):
        if 0 <= limit <= word.start():
            break
        if word.group().lower() not in COMMON and _stem(word.group()) in asked:
            return word.start()
    return max(limit, 0)


def _stem(word: str) -> str:
    """A word without case and its commonest endings."""
    word = word.lower().replace("’", "'")
    return re.sub(r"('s|ed|ing|es|s)$", "", word) if len(word) > 4 else word
