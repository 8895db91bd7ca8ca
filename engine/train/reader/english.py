"""A little English: word classes, a tagger of one letter per word, clauses, past tenses.

Closed word lists, irregular verbs, capitals and endings; no trained tagger. Good enough to
find subject, verb and rest in plain sentences, and made to find nothing rather than
something wrong. What is asked about a sentence is decided in `natural`.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Final

from engine.train.reader.names import DATA


@functools.cache
def word_class(name: str) -> frozenset[str]:
    """The words of one class of data/classes.txt."""
    found: dict[str, list[str]] = {}
    at = ""
    for line in (DATA / "classes.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("= "):
            at = line[2:]
        elif not line.startswith("#"):
            found.setdefault(at, []).extend(line.split())
    return frozenset(found[name])


_TOKEN: Final = re.compile(
    r"(?:Mr|Mrs|Ms|Dr|St|Capt|Col|Gen|Lieut|Lt|Rev|Hon|Prof|Maj|Sergt|No|lbs|ft|in|p\.m|a\.m)\.(?!\w)"
    r"|\d[\d,]*(?:\.\d+)?(?:st|nd|rd|th)?|[A-Za-zÀ-ÿ]+(?:['’-][A-Za-zÀ-ÿ]+)*(?:['’])?|--|\S"
)


@functools.cache
def verbs() -> tuple[dict[str, str], dict[str, str]]:
    """Irregular pasts and participles, each to its base."""
    past: dict[str, str] = {}
    participle: dict[str, str] = {}
    for line in (DATA / "verbs.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            base, one, two = line.split()
            past[one] = base
            participle[two] = base
    return past, participle


_DOUBLED: Final = re.compile(r"([bdgklmnprt])\1ed$")
_VOWEL_E: Final = re.compile(
    r"(?:[aeiou][bcdgklmnprstvz]|[^aeiou][aeiou]s|[rlns][cgsvz]|[aeiouy]ng|bl|cl|dl|fl|gl|kl|pl|tl|"
    r"tr|u|[aeiou]qu|[aeiou]th)ed$"
)

_NO_E: Final = re.compile(
    r"(?:ss|[aeiou]{2}[bdgklmnpt]|(?:ea|oa|ou|ai|ee|oo)r|[^aeiou]en|er|on|[^cdvr]it|[^aiou]or|[^aeipr]et|al|el|il)ed$"
)


def base_of(past: str) -> str:
    """The base form of a past tense, as well as rules can tell."""
    known = verbs()[0].get(past)
    if known:
        return known
    if past.endswith("ied"):
        return past[:-3] + "y"
    if _DOUBLED.search(past) and not past.endswith(("lled", "ssed")):
        return past[:-3]
    if past.endswith("lled") and past[:-3] in ("control", "travel", "cancel", "compel", "expel"):
        return past[:-3]
    if _VOWEL_E.search(past) and not _NO_E.search(past):
        return past[:-1]
    return past[:-2]


_CONTRACTED: Final = re.compile(
    r"(?:n['’]t|['’](?:ll|ve|re|m|d))$|^(?:it|he|she|that|there|what|who|here|let)['’]s$", re.I
)


@dataclass(frozen=True)
class Token:
    """A word or mark with its place and its letter."""

    text: str
    start: int
    end: int
    tag: str


def _tag(text: str, before: str, first: bool) -> str:
    """One letter per word.

    D determiner, N other word, C name, T title, P preposition, o `of`, O pronoun subject, B be,
    H have, M modal, V past tense, E participle, R adverb, # number, y year, m month or day,
    J conjunction, c comma, x any other mark.
    """
    low = text.lower()
    past, participle = verbs()
    tag = "N"
    if _CONTRACTED.search(text):
        tag = "x"
    elif not text[0].isalnum():
        tag = "c" if text == "," else "x"
    elif text[0].isdigit():
        tag = "y" if re.fullmatch(r"1[5-9]\d\d|20\d\d", text) else "#"
    elif text in word_class("titles") and not (first and text == "No"):
        tag = "T"
    elif (
        text in word_class("months") and not (first and text in ("May", "March"))
    ) or text in word_class("days"):
        tag = "m"
    elif low in word_class("pronouns"):
        tag = "O"
    elif low in word_class("determiners"):
        tag = "D"
    elif low in word_class("numbers") or all(
        part in word_class("numbers") for part in low.split("-")
    ):
        tag = "#"
    elif low in word_class("be"):
        tag = "B"
    elif low in word_class("have"):
        tag = "H"
    elif low in word_class("modals"):
        tag = "M"
    elif low == "of":
        tag = "o"
    elif low in word_class("prepositions"):
        tag = "P"
    elif low in word_class("joints"):
        tag = "J"
    elif low in word_class("adverbs") or (low.endswith("ly") and len(low) > 4 and text == low):
        tag = "R"
    elif text[0].isupper() and text not in word_class("not_names") and (not first or len(text) > 1):
        tag = "C"
    elif text == low:
        if before in ("B", "H"):
            if low in participle or low.endswith("ed"):
                tag = "E"
        elif before in ("O", "C", "N", "R", "y", "#", "c", "m") and (
            low in past or (low.endswith("ed") and len(low) > 3 and not low.endswith("eed"))
        ):
            tag = "V"
    return tag


def tagged(text: str) -> tuple[list[Token], str]:
    """The tokens of a sentence and the string of their letters."""
    tokens: list[Token] = []
    before = ""
    for match in _TOKEN.finditer(text):
        word = match.group()
        tag = _tag(word, before, not tokens)
        tokens.append(Token(word, match.start(), match.end(), tag))
        # An adverb between an auxiliary and its participle does not part them.
        if not (tag == "R" and before in ("B", "H")):
            before = tag
    return tokens, "".join(token.tag for token in tokens)


_NP: Final = r"(?:DR?[#N]*N|D#?[NC]*C+|T?C+|#N+)"
_SUBJECT: Final = rf"(?:O|{_NP}(?:[oP]{_NP}|y)?|T?C+cD[NC]+c)"
_CLAUSE: Final = re.compile(rf"(?P<s>{_SUBJECT})(?P<v>R*V|B(?:R*E)?|HR*E|H(?=[D#])|MR*N)")
NOUN_PHRASE: Final = re.compile(_NP + rf"(?:o{_NP})?")


class Sentence:
    """A tagged sentence that rules look at."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens, self.tags = tagged(text)

    def span(self, first: int, last: int) -> tuple[int, int]:
        """Characters of tokens first .. last-1."""
        return self.tokens[first].start, self.tokens[last - 1].end

    def words(self, first: int, last: int) -> str:
        if last <= first:
            return ""
        start, end = self.span(first, last)
        return self.text[start:end]

    def clause_end(self, at: int, most: int = 14) -> int:
        """Where the clause that goes on at token `at` ends at the latest."""
        end = at
        while end < len(self.tokens) and end - at < most:
            if self.tags[end] == "x" or (self.tags[end] == "J" and end > at):
                break
            if self.tags[end] == "c":
                break
            end += 1
        # Never stop behind a word that needs another one.
        while end > at and self.tags[end - 1] in "DPoRJcT":
            end -= 1
        return end


def lowered(sentence: Sentence, at: int, text: str) -> str:
    """A phrase as it stands inside a question: no sentence capital, unless it is a name."""
    if sentence.tags[at] in "CTm" or text.startswith(("I ", "I'")) or text == "I":
        return text
    return text[:1].lower() + text[1:]


@dataclass(frozen=True)
class Clause:
    """Subject, verb and rest of a clause, by token numbers."""

    sentence: Sentence
    first: int
    verb: int
    rest: int
    end: int

    @property
    def subject(self) -> str:
        text = self.sentence.words(self.first, self.verb)
        return lowered(self.sentence, self.first, text)

    @property
    def pronoun(self) -> bool:
        return self.sentence.tags[self.first] == "O"

    @property
    def person(self) -> bool:
        tags = self.sentence.tags[self.first : self.verb]
        text = self.sentence.words(self.first, self.verb).lower()
        return (
            "T" in tags
            or bool(PEOPLE.search(text))
            or (tags.startswith("C") and len(tags) <= 2 and not _THINGS.search(text))
        )

    def asked(self, left: str) -> str:
        """`did she leave ...`: the clause turned round, with `left` as what follows the verb."""
        tokens, tags = self.sentence.tokens, self.sentence.tags
        words = self.sentence.words
        if tags[self.verb] == "H" and self.rest == self.verb + 1:
            turned = f"did {self.subject} have"
        elif tags[self.verb] in "BHM":
            after = words(self.verb + 1, self.rest)
            turned = f"{tokens[self.verb].text} {self.subject} {after}"
        else:
            adverbs = words(self.verb, self.rest - 1)
            turned = f"did {self.subject} {adverbs} {base_of(tokens[self.rest - 1].text)}"
        return " ".join(f"{turned} {left}".split())


PEOPLE: Final = re.compile(
    r"\b(?:man|woman|boy|girl|captain|doctor|lady|gentleman|king|queen|father|mother|brother|sister|"
    r"son|daughter|wife|husband|uncle|aunt|cousin|priest|officer|general|soldier|servant|master|"
    r"mate|sailor|colonel|landlord|lawyer|nurse|cook|carpenter|professor|secretary|policeman|"
    r"detective|inspector|merchant|farmer|chief|governor|president|commander|prince|princess|"
    r"people|men|women|children|crew|boys|girls|party|pilot|teacher|maid|clerk|judge|poet|widow)\b"
)
_THINGS: Final = re.compile(
    r"\b(?:river|island|bay|street|house|ship|lake|mount|mountain|city|harbour|gate|castle|hall|park|"
    r"corps|army|government|states|congress|union|river|islands|isle|sea|ocean|court|bank|church)\b"
)


def clauses(sentence: Sentence) -> list[Clause]:
    """Main clauses at the start of the sentence, behind a fronted phrase or a joint."""
    found = []
    for match in _CLAUSE.finditer(sentence.tags):
        first = match.start("s")
        before = sentence.tags[first - 1] if first else ""
        if before not in ("", "c", "x", "J", "m", "y"):
            continue
        verb, rest = match.start("v"), match.end("v")
        if sentence.tokens[verb].tag == "M" and sentence.tokens[rest - 1].text.endswith("ing"):
            continue
        end = sentence.clause_end(rest)
        # A second verb means that the clause was cut wrongly.
        if end - rest >= 1 and not set(sentence.tags[rest:end]) & set("VBHMO"):
            found.append(Clause(sentence, first, verb, rest, end))
    return found
