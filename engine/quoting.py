"""Hold a look-up reader to the document while it speaks: pointer, quote, value, or "not stated".

The built-in reader answers by copying. It points: some tokens that stand in the document, a name
the question gave most often, until they stand in one sentence alone. That sentence is then quoted
for it, word for word, and of the quote it says which part is the value. What is said is the
reader's choice among what stands there; that it stands there is not left to it. No model and no
tensors: token ids in, allowed token ids out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]
    Floats = npt.NDArray[np.float32]
    Flags = npt.NDArray[np.bool_]


SENTENCE_END = re.compile(
    r"""(?:(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)(?<!\bSt)(?<!\bProf)(?<!\b[A-Z])\.|[!?…])"""
    r"""["'”’)\]]*\s+(?=["'“‘(\[]?[A-Z0-9À-ÞЁ-Я])|[。！？]["'”’」』）]*|\n\s*\n"""
)

CHUNK = re.compile(r"--+|[ぁ-ヿ㐀-鿿가-힣฀-๿]|(?:(?!--)[^\s—ぁ-ヿ㐀-鿿가-힣฀-๿])+")
OPENING, CLOSING = "\"'“”‘’«»([{<*_.,;:!?…", "\"'“”‘’«»)]}>*_.,;:!?…–-"
OWNED = ("'s", "’s")

TOGETHER = 2
"""Windows of a long document that a look-up reader is asked of at a time. It practises on texts of
a window's length; what it looks for drowns in a book where all windows are asked at once."""

WORD = re.compile(r"\w+(?:[-'’.]\w+)*")
COMMON = frozenset(
    WORD.findall(
        "a an the of in on at to by for from with and or but is are was were be been being it its "
        "this that these those he she they his her their him them who whom whose which what when "
        "where why how do does did done has have had as not no nor so than then there here one "
        "ones any some all many much about into over under up out off i you we my your our me us"
    )
)


def telling(question: str) -> tuple[str, ...]:
    """The words of a question that tell what it is about, each also with its article."""
    words = [match.group() for match in WORD.finditer(question)]
    names = [word for word in words if word.lower() not in COMMON]
    return tuple(f" {before}{name}" for name in names for before in ("", "the ", "a ", "The "))


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
class Told:
    """A document as a guide sees it, token by token.

    ids: int64 [N]. sentence: int64 [N], ascending, see `sentences`. begins, closes: bool [N],
    whether a value may have the token as its first, as its last.
    """

    ids: Ints
    sentence: Ints
    begins: Flags
    closes: Flags

    @classmethod
    def of(cls, text: str, ids: Ints, ends: Ints) -> Self:
        """ids: int64 [N], the tokens of the text. ends: int64 [N], where they end, ascending.

        What stands between white spaces is given whole or not at all, without the punctuation
        around it: 1888-03-03, $3,257 and o.russo@fau.net are one each. Scripts that set no spaces
        have their characters instead; Ann's is also given as Ann.
        """
        first, last, owned = [], [], []
        for start, end in _whole(text):
            first.append(start)
            last.append(end)
            if text.endswith(OWNED, start, end):
                owned.append(end - 2)
        tokens = np.arange(len(ids))
        begins = np.isin(tokens, np.searchsorted(ends, np.array(first), side="right"))
        closes = np.isin(tokens, np.searchsorted(ends, np.array(last + owned)))
        return cls(ids, sentences(text, ends), begins, closes)

    @classmethod
    def join(cls, parts: Sequence[Told]) -> Self:
        """Sources one behind the other; their sentences ascend already."""
        return cls(
            np.concatenate([part.ids for part in parts]),
            np.concatenate([part.sentence for part in parts]),
            np.concatenate([part.begins for part in parts]),
            np.concatenate([part.closes for part in parts]),
        )

    def at(self, tokens: Ints | slice) -> Told:
        """Some of the tokens."""
        return Told(
            self.ids[tokens], self.sentence[tokens], self.begins[tokens], self.closes[tokens]
        )


@dataclass(frozen=True)
class Marks:
    """The reader's own tokens.

    quote: stands between pointer and quote. value: between quote and value. end: of the answer.
    refusal: the tokens of "not stated". alike: [V] of every token the class of those that differ
    by a leading space alone, for a pointer may begin where the document has a line break.
    """

    quote: int
    value: int
    end: int
    refusal: tuple[int, ...]
    alike: Ints

    @classmethod
    def of(
        cls, tokenizer: Any, quote: int, value: int, end: int, refusal: tuple[int, ...]
    ) -> Marks:
        """The marks of a tokenizer with a byte-level vocabulary."""
        names = tokenizer.get_vocab()
        classes: dict[str, int] = {}
        alike = np.zeros(max(names.values()) + 1, dtype=np.int64)
        for name, number in names.items():
            bare = name.removeprefix("Ġ")
            alike[number] = classes.setdefault(bare or name, len(classes))
        return cls(quote, value, end, refusal, alike)


def passage(sentence: Ints, place: int, far: int) -> tuple[int, int]:
    """Tokens [start, stop) of the sentence around a token, at most `far` from it either way."""
    start = int(np.searchsorted(sentence, sentence[place], side="left"))
    stop = int(np.searchsorted(sentence, sentence[place], side="right"))
    return max(start, place - far), min(stop, place + 1 + far)


@dataclass
class Guide:
    """What may come next in one answer.

    told: the document. asked: tokens of each of what `telling` finds in the question; a value that
    gives these back is no answer, so it is made of others where there are others.
    longest: tokens of a pointer at most; one that stands in several sentences to its end means the
    first of them. far: see `passage`; some texts have sentences without an end.
    """

    marks: Marks
    told: Told
    asked: Sequence[Sequence[int]] = ()
    longest: int = 24
    far: int = 48
    _said: list[int] = field(default_factory=list)
    _places: Ints | None = None  # document positions of the pointer's last token
    _due: list[int] = field(default_factory=list)  # what must be said next, in order
    _value: Ints | None = None  # document positions that the value's last token may be of
    _stop: int = -1  # where the quote ends in the document
    _valued: int = 0  # tokens of the value
    _open: Flags = field(default_factory=lambda: np.ones(0, dtype=np.bool_))

    @property
    def quoting(self) -> bool:
        """Whether the pointer is done."""
        return self._stop >= 0

    def allowed(self) -> Ints:
        """Token ids that may come next, ascending, at least one."""
        marks = self.marks
        said = len(self._said)
        if self._due:
            return np.array(self._due[:1])
        if self._value is not None:
            if not self._valued:
                return _with_alike(self.told.ids[self._value], marks.alike)
            following = self._following()
            done = not len(following) or self.told.closes[self._value].any()
            ends = [marks.end] if done else []
            return np.unique(np.append(self.told.ids[following], ends).astype(np.int64))
        found: list[Ints] = []
        if tuple(self._said) == marks.refusal[:said]:
            rest = marks.refusal[said : said + 1]
            found.append(np.array(rest or (marks.end,), dtype=np.int64))
        if self._places is None:
            found.append(_with_alike(self.told.ids, marks.alike))
        else:
            following = self._places[self._places + 1 < len(self.told.ids)] + 1
            found.append(self.told.ids[following])
        return np.unique(np.concatenate(found))

    def choices(self, scores: Floats, reluctance: float = 0.0) -> Ints:
        """Those of `allowed` that the reader leaves itself.

        It refuses at the first token or not at all, and by what it holds likely of all pointers
        together: a quote may begin at several words of one sentence, so the likeliest of them says
        less than their sum.

        Args:
            scores: [V] logits of the token to come.
            reluctance: nats that a refusal must be likelier by.
        """
        allowed = self.allowed()
        if self._said or self._due or self._value is not None:
            return allowed
        refusal = np.array(self.marks.refusal[:1])
        return refusal if self.margin(scores) < -reluctance else np.setdiff1d(allowed, refusal)

    def margin(self, scores: Floats) -> float:
        """Nats by which a quote is likelier than a refusal, before anything was said.

        Args:
            scores: [V] logits of the first token.
        """
        refusal = self.marks.refusal[0]
        pointers = np.setdiff1d(self.allowed(), [refusal])
        return float(np.logaddexp.reduce(scores[pointers], initial=-np.inf) - scores[refusal])

    def say(self, token: int) -> None:
        """Take the token that was chosen."""
        alike = self.marks.alike
        if self._due:
            self._due.pop(0)
        elif self._value is not None:
            if self._valued:
                following = self._following()
                self._value = following[self.told.ids[following] == token]
            else:
                self._value = self._value[alike[self.told.ids[self._value]] == alike[token]]
            self._valued += 1
        else:
            if self._places is None:
                self._places = np.flatnonzero(alike[self.told.ids] == alike[token])
            else:
                following = self._places[self._places + 1 < len(self.told.ids)] + 1
                self._places = following[self.told.ids[following] == token]
            self._said.append(token)
            said = len(self._said)
            if len(self._places) and tuple(self._said) != self.marks.refusal[:said]:
                begun = self._places - said + 1
                lines = self.told.sentence[begun]
                further = np.minimum(self._places + 1, len(self.told.ids) - 1)
                ended = (self.told.sentence[further] != lines) | (self._places == further)
                if lines[0] == lines[-1] or said >= self.longest or ended.all():
                    self._quote(int(begun[0]))

    @property
    def dictates(self) -> bool:
        """Whether what comes next is no choice: the quote, once it is pointed at. The end of an
        answer is always left to be said."""
        if not self.quoting:
            return False
        allowed = self.allowed()
        return len(allowed) == 1 and int(allowed[0]) != self.marks.end

    def dictated(self) -> list[int]:
        """All tokens until there is a choice again, in order; they count as said."""
        tokens = []
        while self.dictates:
            tokens.append(int(self.allowed()[0]))
            self.say(tokens[-1])
        return tokens

    def _quote(self, place: int) -> None:
        """From here on the sentence of that place is said, and its mark, and then a value."""
        start, self._stop = passage(self.told.sentence, place, self.far)
        quote = self.told.ids[start : self._stop].tolist()
        self._due = [self.marks.quote, *quote, self.marks.value]
        self._open = np.ones(self._stop - start, dtype=np.bool_)
        alike = self.marks.alike[self.told.ids[start : self._stop]]
        for word in self.asked:
            run = self.marks.alike[np.array(word, dtype=np.int64)]
            for at in np.flatnonzero(alike == run[0]):
                if (alike[at : at + len(run)] == run[: len(alike) - at]).all():
                    self._open[at : at + len(run)] = False
        if not self._open.any():
            self._open[:] = True
        begins = self._open & self.told.begins[start : self._stop]
        self._value = start + np.flatnonzero(begins if begins.any() else self._open)

    def _following(self) -> Ints:
        """Where the value may go on."""
        assert self._value is not None
        ahead = self._value[self._value + 1 < self._stop] + 1
        return ahead[self._open[ahead - self._stop]]


def _whole(text: str) -> Iterator[tuple[int, int]]:
    """Characters [start, end) of what no value is cut out of."""
    for match in CHUNK.finditer(text):
        chunk = match.group().rstrip(CLOSING)
        bare = chunk.lstrip(OPENING)
        if any(c.isalnum() for c in bare):
            start = match.start() + len(chunk) - len(bare)
            yield start, start + len(bare)


def _with_alike(ids: Ints, alike: Ints) -> Ints:
    """All tokens of the same classes as `ids`."""
    return np.flatnonzero(np.isin(alike, np.unique(alike[ids])))
