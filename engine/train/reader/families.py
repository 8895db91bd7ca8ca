"""Relations and events, their wordings, and which wordings training may use.

A family is one relation (mayor of a town, birthplace of a person) or one event (somebody
bought something somewhere). Attributes, counts, measures and events share the frames of
data/frames.txt, so that every frame is met with hundreds of words; relations bring their
own wordings. Sentences are made of them in `facts`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from engine.train.reader.grammar import (
    Template,
    held_out_family,
    held_out_frame,
    template,
    words_of,
)
from engine.train.reader.names import DATA, VALUE_KINDS, kinds

if TYPE_CHECKING:
    from random import Random

_PLACES: Final = frozenset(
    words_of(
        "town port island river mountain region country lake station museum school hotel street "
        "church garden castle hospital house"
    )
)
_TIMES: Final = frozenset(("year", "date", "time", "weekday", "month"))
_TEXTS: Final = frozenset(
    words_of(
        "version phone ip hash uuid coordinates port_number grade score magic_number ordinal ratio"
    )
)


def value_class(value: str) -> str:
    """Which question words suit a value kind: person, place, time, number or thing."""
    if value == "person":
        return "person"
    if value in _PLACES:
        return "place"
    if value in _TIMES:
        return "time"
    if value in VALUE_KINDS and value not in _TEXTS:
        return "number"
    return "thing"


@dataclass(frozen=True, eq=False)
class Family:
    """One relation between a subject and a value; compared by identity.

    backs: questions for the subject by the value.
    words: what slots of shared frames may say, such as the names of an attribute.
    shared: whether its wordings are the frames all families of its sort share.
    """

    name: str
    sort: str
    subjects: tuple[str, ...]
    value: str
    facts: tuple[Template, ...]
    asks: tuple[Template, ...]
    backs: tuple[Template, ...] = ()
    words: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @property
    def label(self) -> str:
        return f"{self.sort}/{self.name}"

    @property
    def shared(self) -> bool:
        return self.sort != "relation"


@dataclass(frozen=True)
class Role:
    """A circumstance of events: its phrase, what fills it, and how it is asked for."""

    name: str
    phrases: tuple[Template, ...]
    value: str
    asks: tuple[str, ...]


@dataclass(frozen=True)
class Event:
    """One verb. forms: (base, past, participle) of the verb and its synonyms.

    objects: kinds of what is acted on; empty for verbs without an object.
    """

    name: str
    forms: tuple[tuple[str, str, str], ...]
    agents: tuple[str, ...]
    objects: tuple[str, ...]
    roles: tuple[str, ...]

    @property
    def label(self) -> str:
        return f"event/{self.name}"


def _lines(name: str) -> list[str]:
    text = (DATA / name).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def _list(text: str, mark: str = "=") -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(mark) if part.strip())


@functools.cache
def frames() -> dict[str, dict[str, tuple[Template, ...]]]:
    """Shared frames: {"F" | "Q" | ...: {class: templates}}."""
    found: dict[str, dict[str, list[Template]]] = {}
    for line in _lines("frames.txt"):
        head, body = line.split(": ", 1)
        letter, kind = head.split()
        found.setdefault(letter, {}).setdefault(kind, []).append(template(body))
    return {letter: {k: tuple(v) for k, v in by.items()} for letter, by in found.items()}


def _shared(sort: str, name: str, subjects: str, value: str, **words: tuple[str, ...]) -> Family:
    by_letter = frames()
    classes = [sort]
    if sort == "attribute":
        classes += [value_class(value)]
    told, asked, backs = (
        tuple(t for c in classes for t in by_letter[letter].get(c, ())) for letter in "FQI"
    )
    label = name.replace(" ", "_")
    return Family(
        label, sort, tuple(subjects.split()), value, told, asked, backs, tuple(words.items())
    )


@functools.cache
def families() -> tuple[Family, ...]:
    """Every attribute, count, measure and relation of the data files."""
    found: list[Family] = []
    for line in _lines("attributes.txt"):
        names, value, subjects = _list(line, "|")
        attributes = _list(names)
        found.append(_shared("attribute", attributes[0], subjects, value, attr=attributes))
    for line in _lines("counts.txt"):
        names, subjects = _list(line, "|")
        nouns = _list(names)
        found.append(_shared("count", nouns[0], subjects, "count", noun=nouns))
    for line in _lines("measures.txt"):
        adjectives, nouns_text, value, subjects = _list(line, "|")
        adjs, nouns = _list(adjectives), _list(nouns_text)
        found.append(_shared("measure", adjs[0], subjects, value, adj=adjs, attr=nouns))
    found += _relations()
    for family in found:
        unknown = set(family.subjects) - set(kinds())
        if unknown:
            raise ValueError(f"family {family.name} has unknown kinds {sorted(unknown)}")
    return tuple(found)


@functools.cache
def _made() -> tuple[tuple[tuple[tuple[str, ...], str], ...], tuple[str, ...]]:
    """Heads (with synonyms) and value kinds, and modifiers, of made-up attributes."""
    heads = tuple(
        (_list(names), value) for names, value in (_list(line, "|") for line in _lines("heads.txt"))
    )
    modifiers = tuple(word for line in _lines("modifiers.txt") for word in line.split())
    return heads, modifiers


def make_up(rng: Random, held: bool) -> Family:
    """An attribute nobody listed, such as the winter warden, on one side of the split.

    So a reader meets more attributes than it could learn, and has to match their words.
    """
    heads, modifiers = _made()
    while True:
        names, value = heads[int(rng.random() * len(heads))]
        modifier = modifiers[int(rng.random() * len(modifiers))]
        if held_out_family(f"{modifier} {names[0]}") == held:
            break
    attributes = tuple(f"{modifier} {name}" for name in names)
    subjects = " ".join(rng.sample(sorted(kinds()), 3))
    return _shared("attribute", attributes[0], subjects, value, attr=attributes)


def _relations() -> list[Family]:
    found: list[Family] = []
    head: tuple[str, ...] = ()
    facts: list[Template] = []
    asks: list[Template] = []
    backs: list[Template] = []
    for line in [*_lines("relations.txt"), "= end"]:
        letter, body = line[0], line[2:]
        if letter == "F":
            facts.append(template(body))
        elif letter == "Q":
            asks.append(template(body))
        elif letter == "I":
            backs.append(template(body))
        else:
            if head:
                found.append(
                    Family(
                        head[0],
                        "relation",
                        tuple(head[1].split()),
                        head[2],
                        tuple(facts),
                        tuple(asks),
                        tuple(backs),
                    )
                )
            head, facts, asks, backs = _list(body, "|"), [], [], []
    return found


@functools.cache
def roles() -> dict[str, Role]:
    """Circumstances of events."""
    found = {}
    for line in _lines("roles.txt"):
        name, phrases, value, asks = _list(line, "|")
        found[name] = Role(
            name, tuple(template(p) for p in _list(phrases, ";")), value, _list(asks, ";")
        )
    return found


@functools.cache
def events() -> tuple[Event, ...]:
    """Every verb of data/events.txt."""
    found = []
    for line in _lines("events.txt"):
        verbs, agents, objects, role_names = (part.strip() for part in line.split("|"))
        forms = []
        for verb in _list(verbs, ";"):
            base, past, participle = _list(verb, ",")
            forms.append((base, past, participle))
        event = Event(
            forms[0][0].replace(" ", "_"),
            tuple(forms),
            tuple(agents.split()),
            tuple(objects.split()),
            tuple(role_names.split()),
        )
        unknown = set(event.agents) - set(kinds()) | set(event.roles) - set(roles())
        if unknown:
            raise ValueError(f"event {event.name} has unknown words {sorted(unknown)}")
        found.append(event)
    return tuple(found)


# --------------------------------------------------------------------------- the split


@dataclass(frozen=True)
class Wording:
    """Which wordings may be used. mode: "train", or "unseen" for the held-out ones.

    ease: from 0 to 1, how often the question uses the fact's own words and the fact
    stands bare; for the beginning of a training.

    A family with frames of its own is unseen as a whole; shared frames are unseen one by
    one, whatever the family, for a new attribute in a familiar frame is no new wording.
    """

    mode: str = "train"
    ease: float = 0.0

    def allowed(self, family: Family, options: tuple[Template, ...]) -> list[Template]:
        """The permitted ones of a family's templates."""
        return _allowed(self.mode, family, options)

    def shared(self, letter: str, kind: str) -> list[Template]:
        """The permitted shared frames."""
        held = self.mode == "unseen"
        return [t for t in frames()[letter].get(kind, ()) if held_out_frame(t.source) == held]

    def permits(self, family: Family | Event) -> bool:
        """Whether facts of `family` can be stated and asked for."""
        if isinstance(family, Event):
            return self.mode == "unseen" or not held_out_family(family.name)
        if self.mode == "train" and held_out_family(family.name):
            return False
        return bool(self.allowed(family, family.facts) and self.allowed(family, family.asks))


@functools.cache
def _allowed(mode: str, family: Family, options: tuple[Template, ...]) -> list[Template]:
    if mode == "unseen":
        if held_out_family(family.name) and not family.shared:
            return list(options)
        return [t for t in options if held_out_frame(t.source)]
    return [t for t in options if not held_out_frame(t.source)]


@functools.cache
def concepts() -> dict[str, str]:
    """Family name -> the first name of those that mean the same."""
    found: dict[str, str] = {}
    for line in _lines("concepts.txt"):
        names = line.split()
        for name in names:
            found.setdefault(name, found.get(names[0], names[0]))
    return found


def concept(name: str) -> str:
    """What a family means, so that two wordings of one thing never meet in a document."""
    return concepts().get(name, name)
