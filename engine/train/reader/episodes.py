"""Documents with questions: what the reader is trained and measured on.

An episode is a document (book prose, lists, facts hidden in them) and questions, each with
the sentence that supports its answer. The split decides names, wordings and books; the
rules that make facts are in `facts`, those that question real sentences in `natural`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random
from typing import TYPE_CHECKING, Final

from engine.train.reader.facts import (
    Ask,
    Claim,
    Fact,
    Line,
    profile,
    record,
    state,
    state_event,
    state_two,
    table,
)
from engine.train.reader.families import Event, Family, Wording, concept, events, families, make_up
from engine.train.reader.haystack import Haystack, load_books, wrap
from engine.train.reader.names import Entity, Namer, distinct
from engine.train.reader.natural import answered, picks_out, propose, units

if TYPE_CHECKING:
    from pathlib import Path

CHARS_PER_TOKEN: Final = 3
KINDS: Final = ("facts", "natural", "ruler")
_FACT_COUNTS: Final = (1, 1, 1, 2, 2, 3, 4, 4, 4, 6, 8, 8, 12, 16, 16, 24)
# Shares of the sorts of facts; within a sort all families are alike.
_WEIGHTS: Final = {
    "attribute": 0.36,
    "relation": 0.24,
    "event": 0.24,
    "count": 0.08,
    "measure": 0.08,
}


@dataclass(frozen=True)
class Question:
    """A question and its answer.

    quote: the supporting sentence exactly as it stands in the document, "" if not stated.
    value: the short answer, a substring of quote, "" if not stated.
    kind: family or category, for evaluation.
    """

    text: str
    quote: str
    value: str
    kind: str


@dataclass(frozen=True)
class Episode:
    """A document and the questions on it."""

    document: str
    questions: tuple[Question, ...]


@dataclass
class _Piece:
    """A sentence on its way into a document.

    asks: what it answers, empty for prose.  glued: must follow the piece before it.
    at: its offset in the document once that is written.
    """

    text: str
    asks: tuple[Ask, ...] = ()
    fact: bool = False
    glued: bool = False
    at: int = -1


@dataclass
class _Paragraph:
    """Pieces with the same separator: None for the document's own, or a line break."""

    pieces: list[_Piece]
    joint: str | None = None


@dataclass
class _Stated:
    """The facts of a document so far."""

    facts: list[Fact] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    known: dict[str, list[Entity]] = field(default_factory=dict)

    def add(self, fact: Fact) -> None:
        self.facts.append(fact)
        self.claims += fact.claims
        for entity in fact.entities:
            pool = self.known.setdefault(entity.kind, [])
            if entity not in pool:
                pool.append(entity)

    def clashes(self, fact: Fact) -> bool:
        """Whether the fact says again, or says otherwise, what is already stated."""
        if any(claim.repeats(other) for claim in fact.claims for other in self.claims):
            return True
        return self.confuses(fact.entities)

    def confuses(self, entities: tuple[Entity, ...]) -> bool:
        """Whether a name contains, or is contained in, another entity's name."""
        return any(
            entity.short != other.short and not distinct(entity.short, other.short)
            for entity in entities
            for other in self.known.get(entity.kind, ())
        )

    def answers(self, ask: Ask) -> int:
        """How many claims a question could mean."""
        return sum(claim.answers(ask) for claim in self.claims)


class Episodes:
    """Draws episodes of one side of the split.

    Args:
        books: folder of .txt books.  split: "train" or "eval".
        seed: of the generator used when `sample` gets none.
        names: side of the split that names come from, if not `split`; for measuring
            what familiar names are worth.
    Raises:
        ValueError: unknown split, or no book of that side.
    """

    def __init__(self, books: Path, split: str, seed: int, names: str | None = None) -> None:
        for side in (split, names or split):
            if side not in ("train", "eval"):
                raise ValueError(f'the split must be "train" or "eval", not {side!r}')
        self.split = split
        self.haystack = Haystack(load_books(books, split))
        self.namer = Namer(names or split)
        self._rng = Random(seed)
        self._pools = {mode: _pool(Wording(mode)) for mode in ("train", "unseen")}

    def sample(
        self,
        tokens: int,
        *,
        rng: Random | None = None,
        facts: int | None = None,
        same_type: bool | None = None,
        unseen_wording: bool = False,
        questions: int | None = None,
        unanswerable: float = 0.1,
        kind: str | None = None,
        groups: int = 1,
        asks: int = 1,
        ease: float = 0.0,
    ) -> Episode:
        """One episode.

        Args:
            tokens: aimed length of the document, three characters to a token.
            facts: inserted facts; None draws a number, and asks prose as well.
            same_type: all facts of one family, or mixed; None draws.
            unseen_wording: only held-out families and frames.
            questions: at most so many; None draws by length.
            unanswerable: share of questions the document does not answer.
            kind: None for all, or one of `KINDS`: inserted facts only, questions on the
                prose only, or magic numbers.
            groups: how many times `facts` facts, each time of another family.
            asks: how many questions each of `facts` facts is asked, in other words each time.
            ease: 0 to 1, share of what makes facts hard that is left out: near-identical
                names, other words in the question than in the fact, unusual wordings,
                pronouns, tables, many facts at once.
        Raises:
            ValueError: unknown kind.
        """
        if kind is not None and kind not in KINDS:
            raise ValueError(f"kind must be one of {KINDS}, not {kind!r}")
        rng = rng or self._rng
        wording = Wording("unseen" if unseen_wording else "train", ease)
        size = tokens * CHARS_PER_TOKEN
        prose_asked = kind == "natural" or (kind is None and facts is None)
        lists_only = facts is None and kind is None and rng.random() < 0.1
        if kind == "ruler" or (prose_asked and kind is None and rng.random() < 0.05):
            stated = self._magic(facts or rng.choice((1, 4, 4, 8, 16)), size, rng)
        elif kind == "natural":
            stated = _Stated()
        else:
            count = facts if facts is not None else rng.choice(_FACT_COUNTS)
            if facts is None:
                count = max(1, tokens // 30) if lists_only else min(count, max(1, tokens // 40))
                if rng.random() < ease:
                    count = min(count, 4)
            exact = facts is not None
            stated = _Stated()
            for _ in range(groups):
                self._facts(min(count, 120), same_type, wording, asks if exact else 0, stated, rng)
        asked = questions if questions is not None else rng.randint(3, 6 + min(24, tokens // 70))
        room = size - sum(fact.size for fact in stated.facts)
        paragraphs = [
            _Paragraph([_Piece(text) for text in paragraph], joint)
            for paragraph, joint in (
                [] if lists_only else self.haystack.passage(max(0, room), rng, prose_asked)
            )
        ]
        self._insert(paragraphs, stated.facts, rng)
        if kind == "ruler" and rng.random() < 0.5:
            paragraphs.insert(0, _Paragraph([_Piece(_MAGIC_NOTICE)]))
        document = _write(paragraphs, rng)
        pieces = [piece for paragraph in paragraphs for piece in paragraph.pieces]

        missing = sum(rng.random() < unanswerable for _ in range(asked))
        found = _ask_facts(document, pieces, stated, rng)[: asked - missing]
        if prose_asked:
            share = 1.0 if kind == "natural" else rng.choice((0.2, 0.35, 0.5, 0.6))
            wanted = max(round((asked - missing) * share), asked - missing - len(found))
            natural = _ask_prose(document, pieces, wanted, rng)
            found = found[: asked - missing - len(natural)] + natural
        if missing:
            # Where the document has little to ask, few questions may go unanswered.
            missing = min(missing, 1 + len(found) // 2) if unanswerable < 0.5 else missing
            if prose_asked and rng.random() < (1.0 if kind == "natural" else 0.3):
                found += self._foreign(document, missing, rng)
            else:
                found += self._unanswered(stated, missing, wording, rng)
        rng.shuffle(found)
        return Episode(document, tuple(_typed(asked, rng) for asked in found))

    # ----------------------------------------------------------------- facts

    def _family(self, wording: Wording, rng: Random) -> Family | Event:
        sorts, weights, pools = self._pools[wording.mode]
        sort = rng.choices(sorts, weights)[0]
        if sort == "attribute" and rng.random() < 0.3:
            return make_up(rng, wording.mode == "unseen")
        pool = pools[sort]
        return pool[int(rng.random() * len(pool))]

    def _entity(
        self, kind: str, stated: _Stated, same_type: bool, ease: float, rng: Random
    ) -> Entity:
        pool = stated.known.get(kind, [])
        if pool and not same_type and rng.random() < 0.4:
            return rng.choice(pool)
        if pool and rng.random() < 0.35 * (1 - ease):
            return self.namer.twin(rng.choice(pool), rng)
        return self.namer.entity(kind, rng)

    def _facts(
        self,
        count: int,
        same_type: bool | None,
        wording: Wording,
        asks: int,
        stated: _Stated,
        rng: Random,
    ) -> None:
        """State about `count` more facts in any form, or with `asks` exactly so many claims."""
        if same_type is None:
            same_type = rng.random() < 0.4
        few = [self._family(wording, rng) for _ in range(rng.choice((2, 3, 4, 8, 16)))]
        told = {claim.meaning for claim in stated.claims}
        family = next((f for f in few if concept(f.name) not in told), few[0])
        count += len(stated.claims)
        subject = "" if isinstance(family, Event) else rng.choice(family.subjects)
        for _ in range(count * 20):
            if len(stated.claims) >= count:
                break
            if not same_type:
                # Families of one subject meet often, so that other attributes of the
                # same entity stand about as distractors.
                family = rng.choice(few) if rng.random() < 0.5 else self._family(wording, rng)
                subject = "" if isinstance(family, Event) else rng.choice(family.subjects)
            if isinstance(family, Event):
                some = asks or rng.choice((1, 1, 2))
                fact = state_event(family, stated.known, self.namer, wording, rng, some)
            else:
                entity = self._entity(subject, stated, same_type, wording.ease, rng)
                if asks:
                    fact = state(family, entity, self.namer, wording, rng, asks)
                else:
                    fact = self._any_form(family, entity, same_type, count, stated, wording, rng)
            if fact is not None and not stated.clashes(fact):
                stated.add(fact)

    def _any_form(
        self,
        family: Family,
        entity: Entity,
        same_type: bool,
        count: int,
        stated: _Stated,
        wording: Wording,
        rng: Random,
    ) -> Fact | None:
        """A fact as a sentence, with another one, as a record or in a table."""
        draw = rng.random() if rng.random() >= wording.ease else 1.0
        left = count - len(stated.claims)
        if family.sort == "attribute" and left >= 3 and draw < (0.05 if same_type else 0.08):
            others = [
                f for f in self._siblings(family, entity.kind, wording) if f.sort == "attribute"
            ]
            if same_type or rng.random() < 0.4:
                rows = [entity]
                for _ in range(rng.randint(2, min(left, 12)) * 2):
                    row = (
                        self.namer.twin(rng.choice(rows), rng)
                        if rng.random() < 0.3
                        else self.namer.entity(entity.kind, rng)
                    )
                    if all(distinct(row.short, other.short) for other in rows):
                        rows.append(row)
                more = 0 if same_type else rng.randint(0, 2)
                columns = [family, *_apart(family, others, more, rng)]
                return table(columns, rows[: left + 1], self.namer, wording, rng)
            columns = [family, *_apart(family, others, rng.randint(1, 4), rng)]
            return record(columns, entity, self.namer, wording, rng)
        if not same_type and left >= 3 and draw < 0.15:
            others = self._siblings(family, entity.kind, wording)
            chosen = [family, *_apart(family, others, rng.randint(1, min(5, left)), rng)]
            return profile(chosen, entity, self.namer, wording, rng)
        if not same_type and draw < 0.24:
            others = _apart(family, self._siblings(family, entity.kind, wording), 1, rng)
            if others:
                return state_two(family, others[0], entity, self.namer, wording, rng)
        asks = 1 if count > 4 or rng.random() < 0.5 else 2
        return state(family, entity, self.namer, wording, rng, asks)

    def _siblings(self, family: Family, kind: str, wording: Wording) -> list[Family]:
        _, _, pools = self._pools[wording.mode]
        return [
            other
            for sort in ("attribute", "relation", "count", "measure")
            for other in pools[sort]
            if isinstance(other, Family) and kind in other.subjects and other is not family
        ]

    def _magic(self, count: int, size: int, rng: Random) -> _Stated:
        """RULER's needles: special magic numbers, uuids or words for keys."""
        stated = _Stated()
        noun, value = rng.choice(
            (
                ("number", "magic_number"),
                ("number", "magic_number"),
                ("uuid", "uuid"),
                ("word", "magic"),
            )
        )
        uuid_keys = rng.random() < 0.15
        if rng.random() < 0.15:
            count = max(count, size // 110)
        keys: set[str] = set()
        for _ in range(count * 4):
            if len(stated.facts) >= count:
                break
            key = (
                self.namer.value("uuid", rng)
                if uuid_keys
                else "-".join(self.namer.word("magic", rng) for _ in range(rng.choice((1, 2, 2))))
            )
            if any(not distinct(key, other) for other in keys):
                continue
            keys.add(key)
            head = f"One of the special magic {noun}s for {key} is: "
            text = self.namer.value(value, rng)
            asked = rng.choice(_MAGIC_QUESTIONS).format(noun=noun, key=key)
            mentions = frozenset((key,))
            span = (len(head), len(head) + len(text))
            ask = Ask(asked, span, f"ruler/{noun}", f"magic_{noun}", mentions, "")
            line = Line(f"{head}{text}.", (ask,))
            stated.add(Fact((line,), (Claim(ask.family, mentions),), (), ()))
        return stated

    # ----------------------------------------------------------------- questions without answer

    def _unanswered(
        self, stated: _Stated, count: int, wording: Wording, rng: Random
    ) -> list[Question]:
        """Questions on near-miss names, absent entities and things not said of present ones."""
        found: list[Question] = []
        told = [
            (claim.meaning, entity)
            for fact in stated.facts
            for claim in fact.claims
            for entity in fact.entities
        ]
        by_meaning: dict[str, list[Family]] = {}
        _, _, pools = self._pools[wording.mode]
        for pool in pools.values():
            for family in pool:
                if isinstance(family, Family):
                    by_meaning.setdefault(concept(family.name), []).append(family)
        for _ in range(count * 8):
            if len(found) >= count:
                break
            family = self._family(wording, rng)
            if isinstance(family, Event):
                fact = state_event(family, stated.known, self.namer, wording, rng)
            else:
                entity = self.namer.entity(rng.choice(family.subjects), rng)
                if told and rng.random() < 0.8:
                    meaning, known = rng.choice(told)
                    same = [f for f in by_meaning.get(meaning, ()) if known.kind in f.subjects]
                    if same and rng.random() < 0.55:
                        family, entity = rng.choice(same), self.namer.twin(known, rng)
                        if rng.random() < 0.4:
                            entity = self.namer.entity(known.kind, rng)
                    else:
                        others = self._siblings(family, known.kind, wording)
                        if not others:
                            continue
                        family, entity = rng.choice(others), known
                if stated.confuses((entity,)):
                    continue
                fact = state(family, entity, self.namer, wording, rng)
            if fact is None:
                continue
            asks = [ask for line in fact.lines for ask in line.asks]
            ask = rng.choice(asks)
            if not stated.answers(ask):
                found.append(Question(ask.text, "", "", "unanswerable"))
        return found

    def _foreign(self, document: str, count: int, rng: Random) -> list[Question]:
        """Questions on sentences of the books that this document does not hold."""
        found: list[Question] = []
        low = document.lower()
        for _ in range(count * 6):
            if len(found) >= count:
                break
            texts = [
                text for paragraph, _ in self.haystack.passage(900, rng, True) for text in paragraph
            ]
            if not texts:
                continue
            proposals = propose(rng.choice(texts), rng)
            if proposals:
                one = rng.choice(proposals)
                if not answered(one.text, low):
                    found.append(Question(one.text, "", "", "unanswerable/natural"))
        return found

    # ----------------------------------------------------------------- layout

    def _insert(self, paragraphs: list[_Paragraph], facts: list[Fact], rng: Random) -> None:
        own = 0.15 if rng.random() < 0.7 else 0.9
        homes = [p for p in paragraphs if p.joint is None]
        sizes = [sum(len(piece.text) for piece in p.pieces) for p in homes]
        for fact in facts:
            pieces = [
                _Piece(line.text, line.asks, True, bool(at)) for at, line in enumerate(fact.lines)
            ]
            if fact.joint == "\n" or not homes or rng.random() < own:
                joint = "\n" if fact.joint == "\n" else None
                paragraphs.insert(rng.randint(0, len(paragraphs)), _Paragraph(pieces, joint))
                continue
            home = rng.choices(homes, sizes)[0].pieces
            at = rng.randint(0, len(home))
            while at < len(home) and home[at].glued:
                at += 1
            home[at:at] = pieces


_MAGIC_NOTICE: Final = (
    "Some special magic things are hidden within the following text. Make sure to memorize it."
)
_MAGIC_QUESTIONS: Final = (
    "What is the special magic {noun} for {key} mentioned in the provided text?",
    "What are all the special magic {noun}s for {key} mentioned in the provided text?",
    "What is the special magic {noun} for {key}?",
    "Which special magic {noun} belongs to {key}?",
)

# How often a rule's question is taken, so that the rules that find something in every
# sentence leave room for the others.
_SHARES: Final = {
    "natural/cloze": 0.08,
    "natural/gap": 0.08,
    "natural/mentioned-name": 0.08,
    "natural/subject": 0.3,
    "natural/object": 0.4,
    "natural/mentioned-count": 0.3,
    "natural/mentioned-date": 0.4,
}

_Pool = tuple[list[str], list[float], dict[str, list["Family | Event"]]]


def _pool(wording: Wording) -> _Pool:
    """Permitted families by sort, with the weights of the sorts."""
    pools: dict[str, list[Family | Event]] = {sort: [] for sort in _WEIGHTS}
    for family in families():
        if wording.permits(family):
            pools[family.sort].append(family)
    pools["event"] += [event for event in events() if wording.permits(event)]
    sorts = [sort for sort, pool in pools.items() if pool]
    return sorts, [_WEIGHTS[sort] for sort in sorts], pools


def _typed(asked: Question, rng: Random) -> Question:
    """Now and then a question as people type it: no capitals, or no mark at the end."""
    draw = rng.random()
    if draw < 0.03:
        return replace(asked, text=asked.text.lower())
    if draw < 0.06:
        return replace(asked, text=asked.text.rstrip("?."))
    return asked


def _apart(family: Family, others: list[Family], count: int, rng: Random) -> list[Family]:
    """Up to `count` families that mean different things, from each other and from `family`."""
    meanings = {concept(family.name)}
    found: list[Family] = []
    for other in rng.sample(others, min(len(others), count * 3)):
        if len(found) < count and concept(other.name) not in meanings:
            meanings.add(concept(other.name))
            found.append(other)
    return found


def _write(paragraphs: list[_Paragraph], rng: Random) -> str:
    """The document's text; notes in each piece where it stands."""
    gap = rng.choice((" ", " ", "  "))
    between = rng.choice(("\n\n", "\n\n", "\n\n", "\n", "\n    "))
    out: list[str] = []
    at = 0
    for number, paragraph in enumerate(paragraphs):
        if number:
            out.append(between)
            at += len(between)
        joint = gap if paragraph.joint is None else paragraph.joint
        for place, piece in enumerate(paragraph.pieces):
            if place:
                out.append(joint)
                at += len(joint)
            piece.at = at
            out.append(piece.text)
            at += len(piece.text)
    text = "".join(out)
    # PDFs and text files break their lines; quotes then hold line breaks too.
    return wrap(text, rng.randint(55, 90)) if rng.random() < 0.4 else text


def _quote(document: str, at: int, size: int) -> str:
    """What stands at a place of the document, "" if it stands in another place too."""
    text = document[at : at + size]
    if document.find(text) != at or document.find(text, at + 1) >= 0:
        return ""
    return text


def _ask_facts(document: str, pieces: list[_Piece], stated: _Stated, rng: Random) -> list[Question]:
    """Every question on inserted facts that has one answer."""
    found: list[Question] = []
    for piece in pieces:
        quote = _quote(document, piece.at, len(piece.text)) if piece.asks else ""
        if not quote:
            continue
        for ask in piece.asks:
            if stated.answers(ask) == 1:
                found.append(Question(ask.text, quote, quote[slice(*ask.span)], ask.kind))
    rng.shuffle(found)
    return found


def _ask_prose(document: str, pieces: list[_Piece], count: int, rng: Random) -> list[Question]:
    """Questions made from sentences of the prose."""
    found: list[Question] = []
    plain: list[Question] = []
    prose = [piece for piece in pieces if not piece.fact]
    low = document.lower()
    texts = [piece.text.lower() for piece in pieces]
    tries = min(len(prose), 14 * count + 14)
    for piece in rng.sample(prose, tries):
        if len(found) >= count:
            break
        parts = units(piece.text)
        if not parts:
            continue
        start, end = rng.choice(parts)
        text = piece.text[start:end]
        proposals = propose(text, rng)
        if not proposals:
            continue
        one = rng.choices(proposals, [_SHARES.get(p.kind, 1.0) for p in proposals])[0]
        quote = _quote(document, piece.at + start, len(text))
        if quote and picks_out(one.text, text, low, texts):
            made = Question(one.text, quote, quote[slice(*one.span)], one.kind)
            common = rng.random() > 2 * _SHARES.get(one.kind, 1.0)
            (plain if common else found).append(made)
    # Easy kinds fill up where the text yields nothing better, but not without end.
    return (found + plain[: 1 + count // 3])[:count]
