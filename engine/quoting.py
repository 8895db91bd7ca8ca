"""Hold a look-up reader to the document while it speaks: a quote, its value, or "not stated".

The built-in reader answers by copying. Left alone, a small model now and then slips from one
sentence into another; here every token of the quote must continue a run of the document's own
tokens, and the value must be a run of the sentence that is quoted. What is said is still the
reader's choice among what stands there. No model and no tensors: token ids in, allowed token ids
out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]


SENTENCE_END = re.compile(
    r"""(?:(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)(?<!\bSt)(?<!\bProf)(?<!\b[A-Z])\.|[!?…])"""
    r"""["'”’)\]]*\s+(?=["'“‘(\[]?[A-Z0-9À-ÞЁ-Я])|[。！？]["'”’」』）]*|\n\s*\n"""
)


def sentences(text: str, ends: Ints) -> Ints:
    """Number the sentences of a text, token by token.

    Args:
        ends: int64 [N], where the tokens end in the text, ascending.
    Returns:
        int64 [N], ascending: the sentence of every token; white space belongs to the one before.
    """
    bounds = np.array([match.end() for match in SENTENCE_END.finditer(text)], dtype=np.int64)
    return np.searchsorted(bounds, ends - 1, side="right")


@dataclass(frozen=True)
class Marks:
    """The reader's own tokens.

    value: stands between quote and value. end: of the answer. refusal: the tokens of "not
    stated". alike: [V] of every token the class of those that differ by a leading space alone,
    for a quote may begin where the document has a line break.
    """

    value: int
    end: int
    refusal: tuple[int, ...]
    alike: Ints

    @classmethod
    def of(cls, tokenizer: Any, value: int, end: int, refusal: tuple[int, ...]) -> Marks:
        """The marks of a transformers tokenizer with a byte-level vocabulary."""
        names = tokenizer.get_vocab()
        classes: dict[str, int] = {}
        alike = np.zeros(max(names.values()) + 1, dtype=np.int64)
        for name, number in names.items():
            bare = name.removeprefix("Ġ")
            alike[number] = classes.setdefault(bare or name, len(classes))
        return cls(value, end, refusal, alike)


@dataclass
class Guide:
    """What may come next in one answer.

    ids: int64 [N], the tokens of the document. sentence: int64 [N], ascending, see `sentences`.
    longest: tokens of a quote at most. far: how many tokens from the quote its value may stand,
    for some texts have sentences without an end.
    """

    marks: Marks
    ids: Ints
    sentence: Ints
    longest: int = 72
    far: int = 96
    _said: list[int] = field(default_factory=list)
    _places: Ints | None = None  # document positions of the quote's last token
    _value: Ints | None = None  # document positions that the value's last token may be of,
    _stop: Ints | None = None  # and where the sentence of each ends
    _valued: int = 0  # tokens of the value

    def allowed(self) -> Ints:
        """Token ids that may come next, ascending, at least one."""
        marks = self.marks
        said = len(self._said)
        if self._value is not None and self._stop is not None:
            if not self._valued:
                return _with_alike(self.ids[self._value], marks.alike)
            following = self._value[self._value + 1 < self._stop] + 1
            return np.unique(np.append(self.ids[following], marks.end))
        found: list[Ints] = []
        if tuple(self._said) == marks.refusal[:said]:
            rest = marks.refusal[said : said + 1]
            found.append(np.array(rest or (marks.end,), dtype=np.int64))
        if self._places is None and not said:
            found.append(_with_alike(self.ids, marks.alike))
        elif self._places is not None and len(self._places):
            found.append(np.array([marks.value]))
            if said < self.longest:
                following = self._places[self._places + 1 < len(self.ids)] + 1
                found.append(self.ids[following])
        return np.unique(np.concatenate(found))

    def say(self, token: int) -> None:
        """Take the token that was chosen."""
        alike = self.marks.alike
        if self._value is not None and self._stop is not None:
            if self._valued:
                inside = self._value + 1 < self._stop
                self._value, self._stop = self._value[inside] + 1, self._stop[inside]
                said = self.ids[self._value] == token
            else:
                said = alike[self.ids[self._value]] == alike[token]
            self._value, self._stop = self._value[said], self._stop[said]
            self._valued += 1
            return
        if token == self.marks.value and self._places is not None:
            first = self._places - len(self._said) + 1
            low = np.searchsorted(self.sentence, self.sentence[first], side="left")
            high = np.searchsorted(self.sentence, self.sentence[self._places], side="right")
            low = np.maximum(low, first - self.far)
            high = np.minimum(high, self._places + 1 + self.far)
            near = [np.arange(*bounds) for bounds in zip(low, high, strict=True)]
            self._value, self._stop = np.concatenate(near), np.repeat(high, high - low)
            return
        if self._places is None:
            self._places = np.flatnonzero(alike[self.ids] == alike[token])
        else:
            following = self._places[self._places + 1 < len(self.ids)] + 1
            self._places = following[self.ids[following] == token]
        self._said.append(token)


def _with_alike(ids: Ints, alike: Ints) -> Ints:
    """All tokens of the same classes as `ids`."""
    return np.flatnonzero(np.isin(alike, np.unique(alike[ids])))
