"""Documents with questions: what the reader is trained and measured on.

An episode is a document (book prose, lists, facts hidden in them) and questions, each with
the sentence that supports its answer. The split decides names, wordings and books; the
rules that make facts are in `families`, those that question real sentences in `natural`.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from engine.train.reader.families import Ask, Fact, Family, Wording, families, state
from engine.train.reader.haystack import Haystack, load_books, wrap
from engine.train.reader.names import Namer, distinct
from engine.train.reader.natural import picks_out, propose

if TYPE_CHECKING:
    from pathlib import Path

CHARS_PER_TOKEN = 3


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
    """A sentence on its way into a document; at: its offset there once written."""

    text: str
    fact: Fact | None = None
    at: int = -1


class Episodes:
    """Draws episodes of one side of the split.

    Args:
        books: folder of .txt books.  split: "train" or "eval".
        seed: of the generator used when `sample` gets none.
    Raises:
        ValueError: unknown split, or no book of that side.
    """

    def __init__(self, books: Path, split: str, seed: int) -> None:
        if split not in ("train", "eval"):
            raise ValueError(f'split must be "train" or "eval", not {split!r}')
        self.split = split
        self.haystack = Haystack(load_books(books, split))
        self.namer = Namer(split)
        self._rng = Random(seed)
        self._families = {
            mode: tuple(f for f in families() if Wording(mode).permits(f))
            for mode in ("train", "unseen")
        }

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
    ) -> Episode:
        """One episode.

        Args:
            tokens: aimed length of the document, three characters to a token.
            facts: inserted facts; None draws 0 to 16.
            same_type: all facts of one family, or mixed; None draws.
            unseen_wording: only held-out families and frames (split "eval").
            questions: at most so many; None draws by length.
            unanswerable: share of questions the document does not answer.
            kind: None, "facts" (inserted facts only), "natural" or "ruler".
        """
        rng = rng or self._rng
        size = tokens * CHARS_PER_TOKEN
        wording = Wording("unseen" if unseen_wording else "train")
        if facts is None:
            facts = 0 if kind == "natural" else rng.choice((1, 1, 2, 3, 4, 4, 6, 8, 12, 16))
            facts = min(facts, max(1, tokens // 40)) if kind != "natural" else 0
        elif kind is None:
            kind = "facts"
        if kind == "ruler" or (kind is None and rng.random() < 0.06):
            stated = self._magic(facts, rng)
        else:
            stated = self._facts(facts, same_type, wording, rng)
        asked = questions if questions is not None else rng.randint(2, 4 + min(20, tokens // 80))
        room = size - sum(len(f.lead) + len(f.quote) + 1 for f in stated)
        paragraphs = [[_Piece(s) for s in p] for p in self.haystack.prose(max(0, room), rng)]
        self._insert(paragraphs, stated, rng)
        document = self._write(paragraphs, rng)
        pieces = [piece for paragraph in paragraphs for piece in paragraph]
        found = self._ask_facts(document, pieces, stated, rng)
        if kind in (None, "natural"):
            share = 1.0 if kind == "natural" else rng.choice((0.0, 0.3, 0.5, 0.7))
            wanted = asked if kind == "natural" else round(asked * share)
            natural = self._ask_natural(document, pieces, wanted, rng)
            found = found[: max(0, asked - len(natural))] + natural
        found = found[:asked]
        missing = sum(rng.random() < unanswerable for _ in range(len(found)))
        if missing and kind != "natural":
            found = found[: len(found) - missing]
            found += self._unanswerable(stated, missing, wording, rng)
        rng.shuffle(found)
        return Episode(document, tuple(found))

    def _facts(
        self, count: int, same_type: bool | None, wording: Wording, rng: Random
    ) -> list[Fact]:
        found: list[Fact] = []
        if same_type is None:
            same_type = rng.random() < 0.4
        pool = self._families[wording.mode]
        family = rng.choice(pool)
        few = [rng.choice(pool) for _ in range(rng.choice((2, 3, 4, 8, 16)))]
        kind = rng.choice(family.subjects)
        tries = 0
        while len(found) < count and tries < count * 20:
            tries += 1
            if not same_type:
                family = rng.choice(few)
                kind = rng.choice(family.subjects)
            known = [e for f in found for e in f.entities if e.kind == kind]
            if known and not same_type and rng.random() < 0.4:
                entity = rng.choice(known)
            elif known and rng.random() < 0.35:
                entity = self.namer.twin(rng.choice(known), rng)
            else:
                entity = self.namer.entity(kind, rng)
            if any(
                f.family == family.name and not distinct(entity.short, n)
                for f in found
                for n in f.names
            ):
                continue
            fact = state(family, entity, self.namer, wording, rng)
            if fact is not None:
                found.append(fact)
        return found

    def _magic(self, count: int, rng: Random) -> list[Fact]:
        """RULER's needles: special magic numbers, uuids or words for keys."""
        noun, value = rng.choice(
            (
                ("number", "magic_number"),
                ("number", "magic_number"),
                ("uuid", "uuid"),
                ("word", "magic"),
            )
        )
        uuid_keys = rng.random() < 0.15
        found: dict[str, Fact] = {}
        while len(found) < count:
            key = (
                self.namer.value("uuid", rng)
                if uuid_keys
                else "-".join(self.namer.word("magic", rng) for _ in range(rng.choice((1, 2, 2))))
            )
            if any(not distinct(key, other) for other in found):
                continue
            head = f"One of the special magic {noun}s for {key} is: "
            text = self.namer.value(value, rng)
            ask = rng.choice(
                (
                    f"What is the special magic {noun} for {key} mentioned in the provided text?",
                    f"What is the special magic {noun} for {key}?",
                    f"What are all the special magic {noun}s for {key} mentioned in the text?",
                    f"Which special magic {noun} belongs to {key}?",
                )
            )
            found[key] = Fact(
                f"magic_{noun}",
                "",
                f"{head}{text}.",
                (Ask(ask, (len(head), len(head) + len(text)), f"ruler/{noun}", (key,)),),
                (key,),
                (),
                (),
            )
        return list(found.values())

    def _insert(self, paragraphs: list[list[_Piece]], stated: list[Fact], rng: Random) -> None:
        own = rng.random() < 0.25
        for fact in stated:
            unit = [_Piece(fact.lead)] if fact.lead else []
            unit.append(_Piece(fact.quote, fact))
            if own or not paragraphs:
                paragraphs.insert(rng.randint(0, len(paragraphs)), unit)
                continue
            home = rng.choice(paragraphs)
            at = rng.randint(0, len(home))
            while at < len(home) and (told := home[at].fact) is not None and told.lead:
                at += 1
            home[at:at] = unit

    def _write(self, paragraphs: list[list[_Piece]], rng: Random) -> str:
        gap = rng.choice((" ", " ", "  "))
        between = rng.choice(("\n\n", "\n\n", "\n\n", "\n", "\n    "))
        out: list[str] = []
        at = 0
        for number, paragraph in enumerate(paragraphs):
            if number:
                out.append(between)
                at += len(between)
            for place, piece in enumerate(paragraph):
                if place:
                    out.append(gap)
                    at += len(gap)
                piece.at = at
                out.append(piece.text)
                at += len(piece.text)
        text = "".join(out)
        if rng.random() < 0.5:
            text = wrap(text, rng.randint(55, 90))
        return text

    def _ask_facts(
        self, document: str, pieces: list[_Piece], stated: list[Fact], rng: Random
    ) -> list[Question]:
        found: list[Question] = []
        for piece in pieces:
            if piece.fact is None:
                continue
            quote = document[piece.at : piece.at + len(piece.text)]
            if document.find(quote) != piece.at:
                continue
            for ask in piece.fact.asks:
                if any(
                    other is not piece.fact
                    and other.family == piece.fact.family
                    and set(ask.mentions) <= set(other.names)
                    for other in stated
                ):
                    continue
                found.append(Question(ask.text, quote, quote[ask.span[0] : ask.span[1]], ask.kind))
        rng.shuffle(found)
        return found

    def _ask_natural(
        self, document: str, pieces: list[_Piece], count: int, rng: Random
    ) -> list[Question]:
        found: list[Question] = []
        prose = [piece for piece in pieces if piece.fact is None]
        lower = {id(piece): piece.text.lower() for piece in pieces}
        tries = min(len(prose), 4 * count + 4)
        for piece in rng.sample(prose, tries):
            if len(found) >= count:
                break
            proposals = propose(piece.text, rng)
            if not proposals:
                continue
            one = rng.choice(proposals)
            others = [low for key, low in lower.items() if key != id(piece)]
            quote = document[piece.at : piece.at + len(piece.text)]
            if document.find(quote) == piece.at and picks_out(one.text, piece.text, others):
                found.append(Question(one.text, quote, quote[one.span[0] : one.span[1]], one.kind))
        return found

    def _unanswerable(
        self, stated: list[Fact], count: int, wording: Wording, rng: Random
    ) -> list[Question]:
        found: list[Question] = []
        pool = self._families[wording.mode]
        by_name: dict[str, Family] = {family.name: family for family in pool}
        entities = [(f.family, e) for f in stated for e in f.entities]
        for _ in range(count * 6):
            if len(found) >= count:
                break
            if entities and rng.random() < 0.75:
                told, known = rng.choice(entities)
                if rng.random() < 0.5 and told in by_name:
                    family, entity = by_name[told], self.namer.twin(known, rng)
                    if any(not distinct(entity.short, e.short) for _, e in entities):
                        continue
                else:
                    others = [
                        f
                        for f in rng.sample(pool, min(40, len(pool)))
                        if known.kind in f.subjects and f.name != told
                    ]
                    if not others:
                        continue
                    family, entity = others[0], known
            else:
                family = rng.choice(pool)
                entity = self.namer.entity(rng.choice(family.subjects), rng)
            if any(f.family == family.name and entity.short in f.names for f in stated):
                continue
            fact = state(family, entity, self.namer, wording, rng)
            if fact is not None:
                ask = rng.choice(fact.asks)
                found.append(Question(ask.text, "", "", "unanswerable"))
        return found
