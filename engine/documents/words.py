"""The words of a text that tell what it is about. torch-free."""

from __future__ import annotations

import re

WORD = re.compile(r"[^\W_]+")

STOP = frozenset(
    WORD.findall(
        "a about an and are as at be been being but by can could did do does doing for from had "
        "has have he her him his how i if in into is it its many me much my no not of on or our "
        "she so than that the their them there these they this those to was we were what when "
        "where which who whom whose why will with would you your s t"
    )
)
"""Words that a question has whatever it asks."""


def content_words(text: str) -> list[str]:
    """The words of a text in lower case but for stop words, in order."""
    return [word for word in WORD.findall(text.lower()) if word not in STOP]


def names(text: str) -> list[str]:
    """The words of a text that begin with a capital, in lower case, but for stop words, in order:
    names, and whatever else stands at the beginning of a sentence."""
    return content_words(" ".join(word for word in WORD.findall(text) if word[0].isupper()))
