"""Facts: sentences that state a relation or an event, and the questions they answer.

Wordings come from `families`; how facts are put into a document is decided in `episodes`.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from engine.train.reader.families import Event, Family, Role, Wording, concept, roles
from engine.train.reader.grammar import Template, question, sentence, template
from engine.train.reader.names import Entity, Namer, kinds

if TYPE_CHECKING:
    from collections.abc import Mapping
    from random import Random


@dataclass(frozen=True)
class Ask:
    """A question a sentence answers. span: where the value stands in the sentence.

    mentions: names and values the question uses; another claim of the same family that
    has them all makes the question ambiguous. frame: the identity of the wording.
    """

    text: str
    span: tuple[int, int]
    kind: str
    family: str
    mentions: frozenset[str]
    frame: str


@dataclass(frozen=True)
class Claim:
    """What is stated. meaning: the family's concept.

    names: of whom or what; the same meaning of the same names must not be stated twice.
    values: what is said of them.
    """

    meaning: str
    names: frozenset[str]
    values: frozenset[str] = frozenset()

    def answers(self, ask: Ask) -> bool:
        """Whether a question with these mentions can mean this claim."""
        return self.meaning == ask.family and ask.mentions <= self.names | self.values

    def repeats(self, other: Claim) -> bool:
        """Whether both speak of the same, so that they repeat or contradict each other."""
        return self.meaning == other.meaning and (
            self.names <= other.names or other.names <= self.names
        )


@dataclass(frozen=True)
class Line:
    """A sentence of a fact and the questions it answers."""

    text: str
    asks: tuple[Ask, ...] = ()


@dataclass(frozen=True)
class Fact:
    """Sentences that stand together and what they claim.

    frames: identities of all wordings.
    joint: what stands between the lines; a line break makes the fact a block of its own.
    """

    lines: tuple[Line, ...]
    claims: tuple[Claim, ...]
    entities: tuple[Entity, ...]
    frames: tuple[str, ...]
    joint: str = " "

    @property
    def size(self) -> int:
        return sum(len(line.text) + 1 for line in self.lines)


@dataclass(frozen=True)
class Clause:
    """A statement before it becomes a sentence; offsets count from its first character."""

    text: str
    asks: tuple[Ask, ...]
    claims: tuple[Claim, ...]
    entities: tuple[Entity, ...]
    frames: tuple[str, ...]

    def placed(self, before: str, after: str, frame: str = "") -> Clause:
        """The clause inside a longer sentence."""
        by = len(before)
        asks = tuple(replace(a, span=(a.span[0] + by, a.span[1] + by)) for a in self.asks)
        frames = (*self.frames, frame) if frame else self.frames
        return replace(self, text=before + self.text + after, asks=asks, frames=frames)

    def joined(self, joint: str, other: Clause) -> Clause:
        """This clause and another one in a single sentence."""
        later = other.placed(self.text + joint, "")
        return Clause(
            later.text,
            self.asks + later.asks,
            self.claims + later.claims,
            self.entities + later.entities,
            self.frames + later.frames,
        )

    def line(self) -> Line:
        return Line(sentence(self.text), self.asks)


_PLAIN: Final = 4  # the first wordings of every list are the plainest


def _choose(options: list[Template], rng: Random, ease: float = 0.0) -> Template:
    many = min(len(options), _PLAIN) if ease and rng.random() < ease else len(options)
    return options[int(rng.random() * many)]


@functools.cache
def pronominal(told: Template) -> Template | None:
    """The wording with a pronoun for the entity, None where that would not be English."""
    source = told.source.replace("{e's}", "{its}").replace(" the {kind} ", " ")
    source = re.sub(r"^\{e\} ", "{it} ", source)
    if "{e}" in source or source == told.source:
        return None
    return template(source)


def _slots(entity: Entity, name: str) -> dict[str, str]:
    return {
        "e": name,
        "it": entity.pronoun,
        "its": entity.possessive_pronoun,
        "kind": kinds()[entity.kind].noun,
    }


def ask_of(
    family: Family, entity: Entity, said: Mapping[str, str], wording: Wording, rng: Random
) -> tuple[str, str]:
    """A question for `family` of `entity` and its frame. said: the words of the fact."""
    asked = _choose(wording.allowed(family, family.asks), rng, wording.ease)
    fill = _slots(entity, entity.short)
    for slot, options in family.words:
        fill[slot] = options[int(rng.random() * len(options))]
        if rng.random() < wording.ease:
            fill[slot] = said.get(slot, fill[slot])
    return _wrap_question(asked.render(rng, fill).text, wording, rng), asked.source


def _wrap_question(text: str, wording: Wording, rng: Random) -> str:
    if rng.random() < 0.1 * (1 - wording.ease) and (around := wording.shared("W", "question")):
        text = _choose(around, rng).render(rng, {"q": text}).text
    return question(text)


def clause(
    family: Family,
    entity: Entity,
    namer: Namer,
    wording: Wording,
    rng: Random,
    *,
    pronoun: bool = False,
    asks: int = 1,
) -> Clause | None:
    """State `family` of `entity` with a fresh value; None if no wording fits."""
    options = wording.allowed(family, family.facts)
    told = _choose(options, rng, wording.ease)
    frame = told.source
    if pronoun:
        bare = [p for p in map(pronominal, options) if p is not None]
        if not bare:
            return None
        told = _choose(bare, rng)
        frame = ""
    value = namer.value(family.value, rng)
    fill = {**_slots(entity, entity.full), "v": value}
    if pronoun and entity.pronoun == "it" and rng.random() < 0.4:
        fill["it"] = "the " + fill["kind"]
        fill["its"] = rng.choice(("its", fill["it"] + "'s"))
    for slot, words in family.words:
        fill[slot] = words[int(rng.random() * len(words))]
    stated = told.render(rng, fill)
    mentions = frozenset((entity.short,))
    meaning = concept(family.name)
    made = []
    for _ in range(asks):
        text, asked = ask_of(family, entity, fill, wording, rng)
        made.append(Ask(text, stated.spans["v"], family.label, meaning, mentions, asked))
    used = tuple(a.frame for a in made) + ((frame,) if frame else ())
    if "e" in stated.spans and len(value) > 3 and rng.random() < 0.1:
        asked_back = inverse(family, entity, value, fill, stated.spans["e"], wording, rng)
        if asked_back is not None:
            made = [asked_back]
            used = (asked_back.frame, frame)
    claim = Claim(meaning, mentions, frozenset((value,)))
    return Clause(stated.text, tuple(made), (claim,), (entity,), used)


def inverse(
    family: Family,
    entity: Entity,
    value: str,
    fill: Mapping[str, str],
    span: tuple[int, int],
    wording: Wording,
    rng: Random,
) -> Ask | None:
    """The question the other way round: whose value is it? None if no wording fits."""
    options = wording.allowed(family, family.backs)
    if not options:
        return None
    asked = _choose(options, rng)
    text = _wrap_question(asked.render(rng, {**fill, "v": value}).text, wording, rng)
    meaning = concept(family.name)
    return Ask(text, span, f"inverse/{family.name}", meaning, frozenset((value,)), asked.source)


def dressed(bare: Clause, wording: Wording, rng: Random) -> Clause:
    """Sometimes put a clause into a frame such as `according to the register, ...`."""
    if rng.random() < 0.28 * (1 - wording.ease) and (around := wording.shared("W", "fact")):
        chosen = _choose(around, rng)
        shell = chosen.render(rng, {"f": "\0"}).text
        before, after = shell.split("\0")
        return bare.placed(before, after, chosen.source)
    return bare


def fact_of(made: Clause, lead: str = "") -> Fact:
    """A clause as a fact of one sentence, behind a lead sentence if there is one."""
    lines = (Line(lead), made.line()) if lead else (made.line(),)
    return Fact(lines, made.claims, made.entities, made.frames)


def state(
    family: Family, entity: Entity, namer: Namer, wording: Wording, rng: Random, asks: int = 1
) -> Fact | None:
    """One relation of one entity, now and then as a pronoun after a first mention."""
    if rng.random() < 0.08 * (1 - wording.ease):
        told = clause(family, entity, namer, wording, rng, pronoun=True, asks=asks)
        leads = wording.shared("L", "person" if entity.kind == "person" else "thing")
        if told is not None and leads:
            lead = _choose(leads, rng)
            text = sentence(lead.render(rng, _slots(entity, entity.full)).text)
            made = fact_of(told, text)
            return replace(made, frames=(*made.frames, lead.source))
    told = clause(family, entity, namer, wording, rng, asks=asks)
    return None if told is None else fact_of(dressed(told, wording, rng))


def state_two(
    first: Family, second: Family, entity: Entity, namer: Namer, wording: Wording, rng: Random
) -> Fact | None:
    """Two relations of one entity: in one sentence, or in two with a pronoun."""
    one = clause(first, entity, namer, wording, rng)
    two = clause(second, entity, namer, wording, rng, pronoun=True)
    if one is None or two is None:
        return None
    joints = (" and ", ", and ", "; ", ", while ", ", but ")
    if rng.random() < 0.5:
        return fact_of(one.joined(rng.choice(joints), two))
    return Fact(
        (one.line(), two.line()),
        one.claims + two.claims,
        one.entities,
        one.frames + two.frames,
    )


def profile(
    chosen: list[Family], entity: Entity, namer: Namer, wording: Wording, rng: Random
) -> Fact | None:
    """A paragraph on one entity that names it once or twice, as encyclopaedias do."""
    lead = clause(chosen[0], entity, namer, wording, rng)
    if lead is None:
        return None
    told = [lead]
    for family in chosen[1:]:
        by_name = rng.random() < 0.15
        more = clause(family, entity, namer, wording, rng, pronoun=not by_name)
        if more is not None:
            told.append(more)
    return Fact(
        tuple(one.line() for one in told),
        tuple(claim for one in told for claim in one.claims),
        (entity,),
        tuple(frame for one in told for frame in one.frames),
    )


def record(
    chosen: list[Family], entity: Entity, namer: Namer, wording: Wording, rng: Random
) -> Fact:
    """Attributes of one entity as a block of labelled lines under its name."""
    style = rng.choice(("{}: {}", "- {}: {}", "{} = {}", "{}\t{}", "* {} - {}", "  {}: {}"))
    heads = ("{}", "{}:", "# {}", "[{}]", "== {} ==", "Entry: {}", "Name: {}")
    lines = [Line(sentence(rng.choice(heads).format(entity.short), ""))]
    claims = []
    used = []
    mentions = frozenset((entity.short,))
    for family in chosen:
        label = rng.choice(dict(family.words)["attr"])
        if rng.random() < 0.6:
            label = label.capitalize()
        value = namer.value(family.value, rng)
        text = style.format(label, value)
        at = text.rindex(value)
        asked, frame = ask_of(family, entity, {"attr": label.lower()}, wording, rng)
        meaning = concept(family.name)
        span = (at, at + len(value))
        lines.append(
            Line(text, (Ask(asked, span, f"record/{family.name}", meaning, mentions, frame),))
        )
        claims.append(Claim(meaning, mentions, frozenset((value,))))
        used.append(frame)
    return Fact(tuple(lines), tuple(claims), (entity,), tuple(used), "\n")


def table(
    chosen: list[Family], rows: list[Entity], namer: Namer, wording: Wording, rng: Random
) -> Fact:
    """Attributes of several entities of one kind as a table; the quote is the row."""
    bar = rng.choice((" | ", "\t", ", ", " ; ", "  "))
    labels = [rng.choice(dict(family.words)["attr"]).capitalize() for family in chosen]
    lines = [Line(bar.join([kinds()[rows[0].kind].noun.capitalize(), *labels]))]
    claims = []
    used = []
    for entity in rows:
        mentions = frozenset((entity.short,))
        text = entity.short
        asks = []
        for family in chosen:
            value = namer.value(family.value, rng)
            text += bar
            span = (len(text), len(text) + len(value))
            text += value
            asked, frame = ask_of(family, entity, {}, wording, rng)
            meaning = concept(family.name)
            asks.append(Ask(asked, span, f"table/{family.name}", meaning, mentions, frame))
            claims.append(Claim(meaning, mentions, frozenset((value,))))
            used.append(frame)
        lines.append(Line(text, tuple(asks)))
    return Fact(tuple(lines), tuple(claims), tuple(rows), tuple(used), "\n")


# --------------------------------------------------------------------------- events


def definite(text: str) -> str:
    """How a question refers to what a sentence introduced: `a brass lamp` -> `the brass lamp`."""
    for article in ("a ", "an "):
        if text.startswith(article):
            return "the " + text[len(article) :]
    return text


_MONTHS: Final = re.compile(
    r"(?:January|February|March|April|May|June|July|August|September|"
    r"October|November|December) \d{4}$|\d{4}$"
)


def _phrase(role: Role, value: str, rng: Random) -> tuple[str, int]:
    """The circumstance as it stands in a sentence, and where its value starts."""
    if role.name == "time":
        before = "in " if _MONTHS.match(value) else "on "
        return before + value, len(before)
    made = role.phrases[int(rng.random() * len(role.phrases))].render(rng, {"v": value})
    return made.text, made.spans["v"][0]


def state_event(
    event: Event,
    known: Mapping[str, list[Entity]],
    namer: Namer,
    wording: Wording,
    rng: Random,
    asks: int = 1,
) -> Fact | None:
    """An event with its circumstances and questions for some of its parts.

    Args:
        known: entities already in the document by kind; some are used again.
    """

    def entity(kind: str) -> Entity:
        pool = known.get(kind, [])
        if pool and rng.random() < 0.3:
            return rng.choice(pool)
        if pool and rng.random() < 0.3:
            return namer.twin(rng.choice(pool), rng)
        return namer.entity(kind, rng)

    agent = entity(rng.choice(event.agents))
    entities = [agent]
    acted = acted_short = ""
    if event.objects:
        kind = rng.choice(event.objects)
        if kind in kinds():
            thing = entity(kind)
            if thing.short == agent.short:
                return None
            entities.append(thing)
            acted, acted_short = thing.full, thing.short
        else:
            acted = namer.value(kind, rng)
            acted_short = definite(acted)
    sort = "event" if event.objects else "motion"
    options = wording.shared("F", sort)
    if not options:
        return None
    told = _choose(options, rng, wording.ease)
    present = [r for r in event.roles if rng.random() < 0.62] or [rng.choice(event.roles)]
    rng.shuffle(present)
    given: dict[str, tuple[str, int, str]] = {}
    for name in present:
        role = roles()[name]
        value = namer.value(rng.choice(role.value.split()), rng)
        text, at = _phrase(role, value, rng)
        given[name] = (text, at, value)
    front = ""
    front_role = ""
    if "front" in told.slots and rng.random() < 0.4:
        fronts = [n for n in present if n in ("time", "place", "year", "reason")]
        if fronts:
            front_role = rng.choice(fronts)
            front = given[front_role][0] + rng.choice((", ", " "))
    tail = ""
    at_in_tail: dict[str, int] = {}
    for name in present:
        if name != front_role:
            tail += " " + given[name][0]
            at_in_tail[name] = len(tail) - len(given[name][0]) + given[name][1]
    base, past, participle = rng.choice(event.forms)
    fill = {
        "a": agent.full,
        "o": acted,
        "front": front,
        "tail": tail,
        "past": past,
        "pp": participle,
        "base": base,
        "kind": kinds()[agent.kind].noun,
    }
    stated = told.render(rng, fill)

    spans = {"agent": stated.spans["a"]}
    if acted:
        spans["object"] = stated.spans["o"]
    for name, (_, at, value) in given.items():
        start = (
            stated.spans["front"][0] + at
            if name == front_role
            else stated.spans["tail"][0] + at_in_tail[name]
        )
        spans[name] = (start, start + len(value))
    names = {agent.short, *(value for _, _, value in given.values())}
    if acted:
        names.add(acted_short)
    made: list[Ask] = []
    used = [told.source]
    wanted = list(spans)
    rng.shuffle(wanted)
    for target in wanted:
        if len(made) >= asks:
            break
        ask = _ask_event(
            event, target, sort, agent, acted_short, given, (base, past, participle), wording, rng
        )
        if ask is not None:
            text, mentions, frame = ask
            label = f"{event.label}.{target}"
            made.append(Ask(text, spans[target], label, concept(event.name), mentions, frame))
            used.append(frame)
    if not made:
        return None
    claim = Claim(concept(event.name), frozenset(names))
    bare = Clause(stated.text, tuple(made), (claim,), tuple(entities), tuple(used))
    return fact_of(dressed(bare, wording, rng))


def _ask_event(
    event: Event,
    target: str,
    sort: str,
    agent: Entity,
    acted: str,
    given: Mapping[str, tuple[str, int, str]],
    form: tuple[str, str, str],
    wording: Wording,
    rng: Random,
) -> tuple[str, frozenset[str], str] | None:
    """A question for one part of an event: its text, the names it uses, its frame."""
    role = target if target in ("agent", "object") else "role"
    options = wording.shared("Q", f"{sort}.{role}")
    if not options:
        return None
    asked = _choose(options, rng, wording.ease)
    mentions = set()
    if "a" in asked.slots:
        mentions.add(agent.short)
    if "o" in asked.slots:
        mentions.add(acted)
    tail = ""
    for name, (text, _, value) in given.items():
        # A question that names nothing but the verb needs a circumstance to be about.
        if name != target and (rng.random() < 0.35 or not mentions):
            tail += " " + text
            mentions.add(value)
    if not mentions:
        return None
    base, past, participle = rng.choice(event.forms)
    fill = {
        "a": agent.short,
        "o": acted,
        "tail": tail,
        "base": base,
        "past": past,
        "pp": participle,
        "kind": kinds()[agent.kind].noun,
    }
    fill["who"] = "who" if agent.kind == "person" or rng.random() < 0.5 else f"which {fill['kind']}"
    if role == "role":
        fill["wh"] = rng.choice(_wh(target, given[target][2]))
    text = asked.render(rng, fill).text
    return _wrap_question(text, wording, rng), frozenset(mentions), asked.source


def _wh(role: str, value: str) -> tuple[str, ...]:
    if role == "time" and re.fullmatch(r"\d{4}", value):
        return ("when", "in which year", "in what year")
    return roles()[role].asks
