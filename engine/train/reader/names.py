"""Open-vocabulary entities and values. No sentences: those are made in `families`.

Word lists and entity patterns come from data/words.txt and data/kinds.txt; most names
are invented from syllables, so that a reader can know none of them by heart. A namer
uses either the names of training or those held out, never both.
"""

from __future__ import annotations

import functools
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from engine.train.reader.grammar import held_out_word, indefinite, template, words_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

DATA: Final = Path(__file__).parent / "data"
SPLIT_LISTS: Final = (
    "female",
    "male",
    "last",
    "place",
    "adjective",
    "noun",
    "thing",
    "magic",
    "animal",
)

_ONSETS: Final = words_of(
    "b br c ch cl cr d dr f fl fr g gl gr h j k kl kn kr l m n p pl pr qu r s sc sh sk sl sp st "
    "str sv t th tr v w y z"
)
_NUCLEI: Final = words_of("a a a e e e i i o o o u u ai au ea ei ia io oa ou y")
_CODAS: Final = words_of("l ld lk lm ln m n nd ng nk nt r rd rk rl rn rs rt s sh sk ss st t x ck")
_ENDINGS: Final = words_of(
    "a a e o en er in is on or us ia ine ith ora ane ell ett ick ock und ard ham ford wick ton ley "
    "by mouth stad berg holm vik au ona ira ula esk ov ino ez"
)


@functools.cache
def words(split: str) -> dict[str, tuple[str, ...]]:
    """Every word list; the name lists cut down to the words of `split`."""
    lists: dict[str, tuple[str, ...]] = {}
    name = ""
    for line in (DATA / "words.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("= "):
            name = line[2:].strip()
            lists[name] = ()
        else:
            lists[name] += tuple(word.replace("_", " ") for word in line.split())
    held = split == "eval"
    for key in SPLIT_LISTS:
        lists[key] = tuple(word for word in lists[key] if held_out_word(word) == held)
    return lists


@dataclass(frozen=True)
class Entity:
    """Something facts are about.

    full: as a text calls it first.  short: as a question may call it.
    stems: the names in it that decide its side of the split, by slot.
    """

    kind: str
    full: str
    short: str
    pronoun: str = "it"
    stems: tuple[tuple[str, str], ...] = ()

    @property
    def possessive_pronoun(self) -> str:
        return {"it": "its", "he": "his", "she": "her"}[self.pronoun]


@dataclass(frozen=True)
class Kind:
    """A sort of entity: what it is called and how its names are built."""

    name: str
    noun: str
    patterns: tuple[str, ...]


@functools.cache
def kinds() -> dict[str, Kind]:
    """All kinds of data/kinds.txt."""
    found: dict[str, Kind] = {}
    for line in (DATA / "kinds.txt").read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        name, rest = line.split(": ", 1)
        noun, *patterns = _split_bars(rest)
        found[name] = Kind(name, noun, tuple(patterns))
    return found


def _split_bars(text: str) -> list[str]:
    """Split at bars outside brackets."""
    parts, depth, start = [], 0, 0
    for at, char in enumerate(text):
        if char == "[":
            depth += 1
        elif char == "]":
            depth -= 1
        elif char == "|" and depth == 0:
            parts.append(text[start:at].strip())
            start = at + 1
    parts.append(text[start:].strip())
    return parts


_SLOT = re.compile(r"\{(\w+)\}")
_TITLES: Final = (
    "Captain",
    "Dr",
    "Mr",
    "Professor",
    "Colonel",
    "Sir",
    "Inspector",
    "Father",
    "Judge",
    "Major",
    "Lieutenant",
    "Sergeant",
)
_NAME_SLOTS: Final = frozenset(
    {
        "stem",
        "place",
        "first",
        "first2",
        "last",
        "last2",
        "female",
        "adjective",
        "adjective_l",
        "noun",
        "noun2",
        "noun_l",
        "lower",
        "lower2",
        "code",
        "num3",
        "num5",
        "person",
        "animal",
        "thing",
    }
)


def syllables(rng: Random) -> str:
    """An invented lower-case name."""
    pick = rng.random
    out = []
    for _ in range(1 if pick() < 0.65 else 2):
        out.append(_ONSETS[int(pick() * len(_ONSETS))])
        out.append(_NUCLEI[int(pick() * len(_NUCLEI))])
        if pick() < 0.5:
            out.append(_CODAS[int(pick() * len(_CODAS))])
    out.append(_ENDINGS[int(pick() * len(_ENDINGS))])
    return "".join(out)


def mutate(word: str, rng: Random) -> str:
    """A near-identical spelling: one letter or digit changed, doubled or dropped."""
    at = 1 + int(rng.random() * (len(word) - 1)) if len(word) > 1 else 0
    old = word[at]
    if old.isdigit():
        new = rng.choice([d for d in "0123456789" if d != old])
    elif old.isalpha():
        pool = "aeiou" if old.lower() in "aeiou" else "bdfglmnprstv"
        new = rng.choice([c for c in pool if c != old.lower()])
        if old.isupper():
            new = new.upper()
        if old.islower() and rng.random() < 0.25:
            new = old + old
    else:
        return mutate(word.replace(old, "", 1), rng) if len(word) > 2 else word + "a"
    return word[:at] + new + word[at + 1 :]


class Namer:
    """Makes entities and values of one side of the split."""

    def __init__(self, split: str) -> None:
        self.held = split == "eval"
        self.words = words(split)

    def stem(self, rng: Random) -> str:
        """An invented name on this side of the split."""
        while True:
            word = syllables(rng).capitalize()
            if 3 < len(word) < 12 and held_out_word(word) == self.held:
                return word

    def word(self, list_name: str, rng: Random) -> str:
        """A word of one list."""
        pool = self.words[list_name]
        return pool[int(rng.random() * len(pool))]

    def code(self, rng: Random) -> str:
        """A code such as K-417 or QZX88."""
        while True:
            letters = "".join(
                rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(rng.choice((1, 1, 2, 2, 3)))
            )
            digits = "".join(rng.choice("0123456789") for _ in range(rng.choice((2, 3, 3, 4, 5))))
            text = letters + rng.choice(("-", "-", "", "/")) + digits
            if rng.random() < 0.15:
                text += rng.choice("ABCDEFX")
            if held_out_word(text) == self.held:
                return text

    def entity(self, kind: str, rng: Random) -> Entity:
        """A new entity of `kind`."""
        return self._build(kind, rng, {})

    def twin(self, entity: Entity, rng: Random) -> Entity:
        """Another entity of the same kind with a name close to the first one's."""
        for _ in range(8):
            keep = dict(entity.stems)
            if keep and rng.random() < 0.8:
                slot = rng.choice(sorted(keep))
                if rng.random() < 0.4 and len(keep[slot]) > 3:
                    changed = mutate(keep[slot], rng)
                    if held_out_word(changed) == self.held:
                        keep[slot] = changed
                else:
                    keep = {slot: keep[slot]}
            made = self._build(entity.kind, rng, keep)
            if distinct(made.short, entity.short):
                return made
        return self.entity(entity.kind, rng)

    def _build(self, kind: str, rng: Random, keep: dict[str, str]) -> Entity:
        patterns = kinds()[kind].patterns
        usable = [p for p in patterns if all("{" + slot + "}" in p for slot in keep)] or patterns
        pattern = usable[int(rng.random() * len(usable))]
        stems: dict[str, str] = {}
        fill: dict[str, str] = {}
        pronoun = "it"
        if kind == "person":
            list_name = rng.choice(("female", "male"))
            if "first" in keep and keep["first"] in self.words["female"]:
                list_name = "female"
            elif "first" in keep and keep["first"] in self.words["male"]:
                list_name = "male"
            pronoun = "she" if list_name == "female" else "he"
            pattern = pattern.replace("{person}", "{first} {last}")
            if "{title}" in pattern and list_name == "female":
                fill["title"] = rng.choice(("Captain", "Dr", "Mrs", "Miss", "Professor", "Judge"))
            fill["first"] = self.word(list_name, rng)
            fill["first2"] = next(
                name
                for name in iter(lambda: self.word(list_name, rng), "")
                if name not in (fill["first"], keep.get("first"))
            )
        for slot in _SLOT.findall(pattern):
            text = keep.get(slot) or fill.get(slot) or self._slot(slot, rng)
            fill[slot] = text
            if slot in _NAME_SLOTS:
                stems[slot] = text
        text = template(pattern).render(rng, fill).text
        full = text.replace("<", "").replace(">", "")
        short = re.sub(r"<[^>]*>", "", text)
        return Entity(kind, full, short, pronoun, tuple(sorted(stems.items())))

    def _slot(self, slot: str, rng: Random) -> str:
        base = slot.rstrip("2") if slot not in ("num2",) else slot
        if base == "stem":
            return self.stem(rng)
        if base == "lower":
            return self.stem(rng).lower()
        if base == "first":
            return self.word(rng.choice(("female", "male")), rng)
        if base in ("adjective_l", "noun_l"):
            return self.word(base[:-2], rng).lower()
        if base == "code":
            return self.code(rng)
        if base == "title":
            return rng.choice(_TITLES)
        if base == "initial":
            return rng.choice("ABCDEFGHJKLMNPRSTW")
        if base == "letter":
            return rng.choice("ABCDEFGH")
        if base == "letters":
            return rng.choice("ABCDEFGHKLMNPRSTW") + rng.choice("ABCDEFGHKLMNPRSTW")
        if base == "digit":
            return str(rng.randint(1, 9))
        if base == "num2":
            return str(rng.randint(2, 99))
        if base in ("num3", "num5"):
            low, high = (100, 999) if base == "num3" else (10_000, 99_999)
            while True:
                text = str(rng.randint(low, high))
                if held_out_word(text) == self.held:
                    return text
        return self.word(base, rng)

    def value(self, kind: str, rng: Random) -> str:
        """A value of `kind`: an entity kind, a word list, or a sort of number."""
        if kind in kinds():
            return self.entity(kind, rng).short
        maker = _VALUES.get(kind)
        if maker is not None:
            return maker(rng)
        if kind == "code":
            return self.code(rng)
        if kind == "email":
            return (
                f"{self.word(rng.choice(('female', 'male')), rng).lower()}"
                f"{rng.choice(('.', '_', ''))}{self.word('last', rng).lower()}@"
                f"{self.stem(rng).lower()}.{rng.choice(('org', 'com', 'net', 'example'))}"
            )
        if kind == "url":
            return f"https://{self.stem(rng).lower()}.{rng.choice(('org', 'com', 'net'))}"
        if kind == "path":
            return rng.choice(("/var/", "/opt/", "/srv/", "/etc/", "/home/")) + "/".join(
                self.stem(rng).lower() for _ in range(rng.randint(1, 2))
            )
        if kind == "password":
            return self.stem(rng) + rng.choice(("-", "_", ".", "")) + str(rng.randint(10, 9999))
        if kind == "motto":
            noun, other = self.word("noun", rng), self.word("noun", rng).lower()
            return rng.choice(
                (
                    f'"{noun} before {other}"',
                    f'"No {noun.lower()} without {other}"',
                    f'"By {noun.lower()} and {other}"',
                    f'"Ever {self.word("adjective", rng).lower()}"',
                )
            )
        if kind == "object":
            return self.object(rng)
        return self.word(kind, rng)

    def object(self, rng: Random) -> str:
        """An indefinite thing: `a brass telescope`."""
        thing = self.word("thing", rng)
        looks = rng.choice(("old", "small", "broken", "new", "heavy", "carved", "painted"))
        first = rng.choice(("", self.word("material", rng), self.word("colour", rng), looks))
        text = f"{first} {thing}".strip()
        return indefinite(text) + text


def distinct(one: str, other: str) -> bool:
    """Whether neither name contains the other."""
    low, up = one.lower(), other.lower()
    return low not in up and up not in low


_ONES: Final = words_of(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
)
_TENS: Final = words_of("zero ten twenty thirty forty fifty sixty seventy eighty ninety")


def spell(number: int) -> str:
    """A number below one million in words."""
    if number < 20:
        return _ONES[number]
    if number < 100:
        ones = f"-{_ONES[number % 10]}" if number % 10 else ""
        return _TENS[number // 10] + ones
    if number < 1000:
        rest = f" and {spell(number % 100)}" if number % 100 else ""
        return f"{_ONES[number // 100]} hundred{rest}"
    units = number % 1000
    joint = " and " if 0 < units < 100 else " "
    return f"{spell(number // 1000)} thousand" + (joint + spell(units) if units else "")


def ordinal(number: int) -> str:
    """1st, 2nd, ..."""
    if 10 < number % 100 < 20:
        return f"{number}th"
    return f"{number}{({1: 'st', 2: 'nd', 3: 'rd'}).get(number % 10, 'th')}"


def _number(rng: Random, low: int, high: int, spelled: float = 0.25) -> str:
    # Log-uniform, so that small and large numbers are equally common.
    value = int(low * math.exp(math.log(high / low) * rng.random()))
    if value < 120 and rng.random() < spelled:
        return spell(value)
    if value >= 1000 and rng.random() < 0.6:
        return f"{value:,}"
    return str(value)


def _decimal(rng: Random, low: float, high: float) -> str:
    value = low * (high / low) ** rng.random()
    return f"{value:.1f}" if rng.random() < 0.4 else _number(rng, max(1, int(low)), int(high) + 1)


def _unit(rng: Random, low: float, high: float, *units: str) -> str:
    return f"{_decimal(rng, low, high)} {rng.choice(units)}"


def _date(rng: Random) -> str:
    month = rng.choice(words("train")["month"])
    day = rng.randint(1, 28)
    year = rng.randint(1680, 2030)
    return rng.choice(
        (
            f"{day} {month} {year}",
            f"{month} {day}, {year}",
            f"{day} {month}",
            f"{month} {day}",
            f"the {ordinal(day)} of {month}",
            f"{month} {year}",
            f"{year}-{rng.randint(1, 12):02d}-{day:02d}",
        )
    )


def _time(rng: Random) -> str:
    hour, minute = rng.randint(1, 12), rng.choice((0, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55))
    return rng.choice(
        (
            f"{hour}:{minute:02d} {rng.choice(('am', 'pm', 'a.m', 'p.m'))}",
            f"{rng.randint(0, 23):02d}:{minute:02d}",
            f"{spell(hour)} o'clock",
            f"half past {spell(hour)}",
            f"a quarter to {spell(hour)}",
        )
    )


def _money(rng: Random) -> str:
    amount = _number(rng, 3, 900_000, 0.1)
    return rng.choice(
        (
            f"{amount} {rng.choice(words('train')['currency'])}",
            f"{rng.choice('$£€')}{amount if amount[0].isdigit() else '12'}",
            f"{amount} {rng.choice(words('train')['currency'])}",
        )
    )


def _hex(rng: Random, count: int) -> str:
    return "".join(rng.choice("0123456789abcdef") for _ in range(count))


_VALUES: Final[dict[str, Callable[[Random], str]]] = {
    "year": lambda rng: str(rng.randint(1200, 2090)),
    "date": _date,
    "time": _time,
    "money": _money,
    "count": lambda rng: _number(rng, 2, 90),
    "few": lambda rng: _number(rng, 2, 40, 0.5),
    "many": lambda rng: _number(rng, 60, 900_000),
    "integer": lambda rng: _number(rng, 2, 60_000, 0.0),
    "percent": lambda rng: (
        f"{_decimal(rng, 1, 99)} {rng.choice(('per cent', 'percent'))}"
        if rng.random() < 0.6
        else f"{rng.randint(1, 99)}%"
    ),
    "length": lambda rng: _unit(rng, 2, 900, "metres", "feet", "yards", "m", "cm", "inches"),
    "distance": lambda rng: _unit(rng, 2, 2000, "miles", "kilometres", "km", "leagues"),
    "weight": lambda rng: _unit(
        rng, 2, 900, "kilograms", "pounds", "tons", "kg", "lbs", "tonnes", "grams", "ounces"
    ),
    "area": lambda rng: _unit(rng, 2, 9000, "acres", "hectares", "square miles", "square metres"),
    "volume": lambda rng: _unit(rng, 2, 900, "litres", "gallons", "pints", "barrels", "ml"),
    "speed": lambda rng: _unit(rng, 2, 400, "knots", "miles an hour", "km/h", "mph"),
    "temperature": lambda rng: _unit(
        rng, 2, 900, "degrees", "degrees Celsius", "°C", "°F", "degrees below zero"
    ),
    "duration": lambda rng: _unit(
        rng, 2, 90, "days", "hours", "weeks", "months", "years", "minutes"
    ),
    "age": lambda rng: f"{_number(rng, 2, 99, 0.3)} years",
    "power": lambda rng: _unit(
        rng, 2, 900, "horsepower", "kilowatts", "watts", "MW", "volts", "amperes"
    ),
    "data": lambda rng: _unit(rng, 2, 900, "megabytes", "gigabytes", "GB", "MB", "KB", "bits"),
    "port_number": lambda rng: str(rng.randint(1024, 65_535)),
    "version": lambda rng: f"{rng.randint(0, 20)}.{rng.randint(0, 30)}.{rng.randint(0, 9)}",
    "phone": lambda rng: (
        f"{rng.randint(100, 999)}-{rng.randint(100, 999)}-{rng.randint(1000, 9999)}"
    ),
    "ip": lambda rng: ".".join(str(rng.randint(1, 254)) for _ in range(4)),
    "hash": lambda rng: _hex(rng, rng.choice((6, 8, 10))),
    "uuid": lambda rng: "-".join(_hex(rng, n) for n in (8, 4, 4, 4, 12)),
    "magic_number": lambda rng: str(rng.randint(1_000_000, 9_999_999)),
    "coordinates": lambda rng: f"{rng.randint(1, 89)}° {rng.randint(1, 59)}' {rng.choice('NS')}",
    "grade": lambda rng: f"grade {rng.randint(1, 12)}",
    "score": lambda rng: f"{rng.randint(0, 9)}-{rng.randint(0, 9)}",
    "ordinal": lambda rng: ordinal(rng.randint(1, 90)),
    "ratio": lambda rng: f"{rng.randint(1, 9)} to {rng.randint(10, 60)}",
}
VALUE_KINDS: Final = frozenset(_VALUES)
