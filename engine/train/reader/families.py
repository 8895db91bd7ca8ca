"""Relations and the facts stated with them. No documents: those are put together in `episodes`.

A family is one relation (mayor of a town, birthplace of a person) with its ways to state
it and to ask for it. Attributes share the frames of data/frames.txt, so that every frame
is seen with hundreds of attributes; relations bring their own wordings.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from engine.train.reader.grammar import (
    Template,
    held_out_family,
    held_out_frame,
    question,
    sentence,
    template,
)
from engine.train.reader.names import DATA, VALUE_KINDS, Entity, Namer, kinds

if TYPE_CHECKING:
    from random import Random

_PLACES: Final = frozenset(
    {
        "town",
        "port",
        "island",
        "river",
        "mountain",
        "region",
        "country",
        "lake",
        "station",
        "museum",
        "school",
        "hotel",
        "street",
        "church",
    }
)
_TIMES: Final = frozenset({"year", "date", "time", "weekday", "month"})
_TEXT_VALUES: Final = frozenset(
    {
        "version",
        "phone",
        "ip",
        "hash",
        "uuid",
        "coordinates",
        "port_number",
        "grade",
        "score",
        "magic_number",
        "ordinal",
    }
)


def value_class(value: str) -> str:
    """Which question words suit a value kind."""
    if value == "person":
        return "person"
    if value in _PLACES:
        return "place"
    if value in _TIMES:
        return "time"
    if value in VALUE_KINDS and value not in _TEXT_VALUES:
        return "number"
    return "thing"


@dataclass(frozen=True)
class Family:
    """One relation. attributes: the names a shared frame may call it by."""

    name: str
    subjects: tuple[str, ...]
    value: str
    facts: tuple[Template, ...]
    asks: tuple[Template, ...]
    attributes: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        return ("attribute/" if self.attributes else "relation/") + self.name


@dataclass(frozen=True)
class Ask:
    """A question a fact answers. span: where the value stands in the fact's quote.

    mentions: names the question uses; if another fact of the same family has them
    all, the question is ambiguous.
    """

    text: str
    span: tuple[int, int]
    kind: str
    mentions: tuple[str, ...]


@dataclass(frozen=True)
class Fact:
    """A stated fact. lead: sentences that must stand before the quote, or "".

    frames: the identities of all wordings used, for the split.
    """

    family: str
    lead: str
    quote: str
    asks: tuple[Ask, ...]
    names: tuple[str, ...]
    frames: tuple[str, ...]
    entities: tuple[Entity, ...]


def _lines(name: str) -> list[str]:
    text = (DATA / name).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


@functools.cache
def frames() -> dict[str, dict[str, tuple[Template, ...]]]:
    """Shared frames: {"F" | "Q": {class: templates}}."""
    found: dict[str, dict[str, list[Template]]] = {"F": {}, "Q": {}}
    for line in _lines("frames.txt"):
        head, body = line.split(": ", 1)
        letter, kind = head.split()
        found[letter].setdefault(kind, []).append(template(body))
    return {letter: {k: tuple(v) for k, v in by.items()} for letter, by in found.items()}


@functools.cache
def families() -> tuple[Family, ...]:
    """Every family of the data files."""
    found: list[Family] = []
    shared = frames()
    for line in _lines("attributes.txt"):
        names, value, subjects = (part.strip() for part in line.split("|"))
        attributes = tuple(part.strip() for part in names.split("="))
        kind = value_class(value)
        found.append(
            Family(
                attributes[0].replace(" ", "_"),
                tuple(subjects.split()),
                value,
                shared["F"]["any"] + shared["F"].get(kind, ()),
                shared["Q"]["any"] + shared["Q"].get(kind, ()),
                attributes,
            )
        )
    head: list[str] = []
    facts: list[Template] = []
    asks: list[Template] = []

    def close() -> None:
        if head:
            found.append(
                Family(head[0], tuple(head[1].split()), head[2], tuple(facts), tuple(asks))
            )

    for line in _lines("relations.txt"):
        letter, body = line[0], line[2:]
        if letter == "=":
            close()
            head, facts, asks = [part.strip() for part in body.split("|")], [], []
        elif letter == "F":
            facts.append(template(body))
        else:
            asks.append(template(body))
    close()
    for family in found:
        unknown = set(family.subjects) - set(kinds())
        if unknown:
            raise ValueError(f"family {family.name} has unknown kinds {sorted(unknown)}")
    return tuple(found)


@dataclass(frozen=True)
class Wording:
    """Which wordings may be used: those of training, the held out ones, or all."""

    mode: str = "train"

    def pick(self, family: Family, options: tuple[Template, ...], rng: Random) -> Template | None:
        """A permitted template, or None if there is none."""
        if self.mode == "unseen":
            if held_out_family(family.name):
                return rng.choice(options)
            allowed = [t for t in options if held_out_frame(t.source)]
        else:
            allowed = [t for t in options if not held_out_frame(t.source)]
        return rng.choice(allowed) if allowed else None

    def permits(self, family: Family) -> bool:
        """Whether facts of `family` can be stated and asked in this mode."""
        if self.mode == "unseen":
            return held_out_family(family.name) or (
                any(held_out_frame(t.source) for t in family.facts)
                and any(held_out_frame(t.source) for t in family.asks)
            )
        return not held_out_family(family.name)


def state(
    family: Family, entity: Entity, namer: Namer, wording: Wording, rng: Random
) -> Fact | None:
    """State `family` of `entity` with a fresh value, and ask for it; None if no wording fits."""
    told = wording.pick(family, family.facts, rng)
    asked = wording.pick(family, family.asks, rng)
    if told is None or asked is None:
        return None
    fill = {"e": entity.full, "v": namer.value(family.value, rng)}
    ask_fill = {"e": entity.short}
    if family.attributes:
        fill["attr"] = rng.choice(family.attributes)
        ask_fill["attr"] = rng.choice(family.attributes)
    stated = told.render(rng, fill)
    ask = Ask(
        question(asked.render(rng, ask_fill).text), stated.spans["v"], family.label, (entity.short,)
    )
    return Fact(
        family.name,
        "",
        sentence(stated.text),
        (ask,),
        (entity.short,),
        (told.source, asked.source),
        (entity,),
    )
