"""The data the reader is trained on: answers are in the text, and the split holds."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.train.reader.english import Sentence, base_of, clauses
from engine.train.reader.episodes import KINDS, Episode, Episodes
from engine.train.reader.facts import Fact, state, state_event
from engine.train.reader.families import Event, Family, Wording, events, families, frames
from engine.train.reader.grammar import (
    held_out_family,
    held_out_frame,
    held_out_word,
    indefinite,
    question,
    template,
)
from engine.train.reader.haystack import HELD_OUT_BOOKS, filler, load_books, sentences, wrap
from engine.train.reader.names import Namer, distinct, kinds, mutate, spell, words
from engine.train.reader.natural import propose, units

if TYPE_CHECKING:
    from pathlib import Path

_PROSE = """THE LOG

The rudder came bobbing back into our cove on May 13. We had covered sixteen miles before noon,
and Captain Tulloch was on the bridge. He kept a goat named Dolly, and the goat ate his charts.

"There is a light on the shore," said Mr. Brandt. The meteorologist, Dr. Hale, came off to the
ship with two dogs. The trawler was built by Christensen at Sandefjord in 1904. Nobody slept.
There were twenty men in the hut at Cape Wild. The wind fell to nothing during the night; the
men cheered, and the cook burned the soup.

In the morning a party of eight men took the whole load of stores to Hut Point on September 24.
"""


@pytest.fixture(scope="session")
def books(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("books")
    for name in ("log", "shackleton-south"):
        text = "\n\n".join(_PROSE.replace("Tulloch", f"Tulloch{name[0]}") for _ in range(12))
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def train(books: Path) -> Episodes:
    return Episodes(books, "train", 0)


@pytest.fixture(scope="session")
def evaluation(books: Path) -> Episodes:
    return Episodes(books, "eval", 0)


def _check(episode: Episode) -> None:
    for asked in episode.questions:
        assert asked.text
        assert asked.kind
        if asked.quote:
            assert episode.document.count(asked.quote) == 1
            assert asked.value
            assert asked.value in asked.quote
        else:
            assert asked.value == ""
            assert asked.kind.startswith("unanswerable")


_SOME = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@_SOME
@given(
    seed=st.integers(0, 10**9),
    tokens=st.integers(40, 1500),
    facts=st.none() | st.integers(0, 20),
    same_type=st.none() | st.booleans(),
    unseen=st.booleans(),
    kind=st.none() | st.sampled_from(KINDS),
)
def test_every_answer_stands_once_in_the_document(
    evaluation: Episodes,
    seed: int,
    tokens: int,
    facts: int | None,
    same_type: bool | None,
    unseen: bool,
    kind: str | None,
) -> None:
    """A quote that is not in the text, or is there twice, would teach the wrong thing."""
    _check(
        evaluation.sample(
            tokens,
            rng=Random(seed),
            facts=facts,
            same_type=same_type,
            unseen_wording=unseen,
            kind=kind,
        )
    )


@_SOME
@given(seed=st.integers(0, 10**9), tokens=st.integers(40, 1500))
def test_training_episodes_hold_their_answers(train: Episodes, seed: int, tokens: int) -> None:
    _check(train.sample(tokens, rng=Random(seed)))


def test_the_same_seed_draws_the_same_episodes(books: Path) -> None:
    one, two = (Episodes(books, "train", 7) for _ in range(2))
    assert [one.sample(300) for _ in range(5)] == [two.sample(300) for _ in range(5)]
    assert one.sample(300, rng=Random(3)) == two.sample(300, rng=Random(3))
    assert one.sample(300, rng=Random(3)) != two.sample(300, rng=Random(4))


@pytest.mark.parametrize("tokens", [100, 400, 2000])
def test_a_document_has_about_the_length_asked_for(evaluation: Episodes, tokens: int) -> None:
    for seed in range(8):
        size = len(evaluation.sample(tokens, rng=Random(seed), facts=2).document)
        assert 0.8 * 3 * tokens - 150 < size < 1.25 * 3 * tokens + 250


def test_a_number_of_facts_is_kept(evaluation: Episodes) -> None:
    """Evaluation cells are named by the number of same-type facts: it has to be exact."""
    for seed in range(20):
        episode = evaluation.sample(
            900, rng=Random(seed), facts=4, same_type=True, questions=9, unanswerable=0.0
        )
        kinds_asked = {asked.kind.split(".")[0].split("/")[1] for asked in episode.questions}
        assert len(kinds_asked) == 1
        assert 1 <= len(episode.questions) <= 4


def test_ease_asks_in_the_words_of_the_fact(train: Episodes) -> None:
    """A training begins with plain matches; the same words must then stand in both."""

    def shared(ease: float) -> float:
        hits = []
        for seed in range(40):
            episode = train.sample(
                300, rng=Random(seed), facts=3, same_type=False, unanswerable=0.0, ease=ease
            )
            for asked in episode.questions:
                quote = set(asked.quote.lower().rstrip(".").split())
                words = asked.text.lower().rstrip("?.").split()
                hits.append(sum(word in quote for word in words) / len(words))
        return sum(hits) / len(hits)

    assert shared(1.0) > shared(0.0) + 0.05


def test_unanswerable_only(evaluation: Episodes) -> None:
    episode = evaluation.sample(300, rng=Random(1), facts=4, questions=6, unanswerable=1.0)
    assert len(episode.questions) == 6
    assert all(not asked.quote for asked in episode.questions)


def test_unknown_words_are_refused(books: Path, train: Episodes) -> None:
    with pytest.raises(ValueError, match="split"):
        Episodes(books, "test", 0)
    with pytest.raises(ValueError, match="kind"):
        train.sample(100, kind="poem")
    with pytest.raises(ValueError, match="no train books"):
        Episodes(books / "nowhere", "train", 0)


# --------------------------------------------------------------------------- the split


@pytest.mark.parametrize("split", ["train", "eval"])
def test_names_keep_to_their_side(split: str) -> None:
    """A held-out name seen once in training makes the evaluation a test of memory."""
    namer, rng = Namer(split), Random(5)
    held = split == "eval"
    for kind in kinds():
        for _ in range(25):
            made = namer.entity(kind, rng)
            for entity in (made, namer.twin(made, rng)):
                for slot, stem in entity.stems:
                    name = stem.capitalize() if slot.startswith("lower") else stem
                    if not slot.endswith("_l"):
                        assert held_out_word(name) == held, (kind, slot, stem)
                assert "{" not in entity.full
                assert "<" not in entity.full + entity.short


def test_name_lists_are_divided() -> None:
    for name in ("female", "male", "last", "place", "magic"):
        seen, held = set(words("train")[name]), set(words("eval")[name])
        assert not seen & held
        assert 0.08 < len(held) / (len(seen) + len(held)) < 0.3


def _facts(wording: Wording, split: str, count: int, seed: int) -> list[tuple[str, Fact]]:
    namer, rng = Namer(split), Random(seed)
    every: list[Family | Event] = [f for f in families() if wording.permits(f)]
    every += [e for e in events() if wording.permits(e)]
    found: list[tuple[str, Fact]] = []
    while len(found) < count:
        family = rng.choice(every)
        if isinstance(family, Event):
            fact = state_event(family, {}, namer, wording, rng)
        else:
            subject = namer.entity(rng.choice(family.subjects), rng)
            fact = state(family, subject, namer, wording, rng)
        if fact is not None:
            found.append((family.name, fact))
    return found


def test_training_uses_no_held_out_wording() -> None:
    for name, fact in _facts(Wording("train"), "train", 2500, 1):
        assert not held_out_family(name)
        assert not any(held_out_frame(frame) for frame in fact.frames)


def test_unseen_wordings_are_held_out_throughout() -> None:
    own = {f.name for f in families() if not f.shared and held_out_family(f.name)}
    for name, fact in _facts(Wording("unseen"), "eval", 2500, 2):
        if name not in own:
            assert all(held_out_frame(frame) for frame in fact.frames), fact.frames


def test_every_sort_of_fact_has_held_out_wordings() -> None:
    for letter, by_kind in frames().items():
        for kind, made in by_kind.items():
            if (letter, kind) in {("F", "attribute"), ("Q", "attribute"), ("F", "event")}:
                assert sum(held_out_frame(t.source) for t in made) >= 5
            assert any(not held_out_frame(t.source) for t in made)


def test_books_are_divided(books: Path) -> None:
    assert {book.name for book in load_books(books, "train")}.isdisjoint(HELD_OUT_BOOKS)
    assert {book.name for book in load_books(books, "eval")} <= HELD_OUT_BOOKS


def test_prose_comes_from_books_of_the_side(train: Episodes, evaluation: Episodes) -> None:
    seen = "".join(train.sample(400, rng=Random(s), facts=1).document for s in range(8))
    held = "".join(evaluation.sample(400, rng=Random(s), facts=1).document for s in range(8))
    assert "Tullochl" in seen
    assert "Tullochs" not in seen
    assert "Tullochs" in held


# --------------------------------------------------------------------------- breadth


def test_wordings_are_too_many_to_learn_by_heart() -> None:
    """The recipe rests on breadth: the counts may grow, not shrink."""
    assert len(families()) + len(events()) >= 600
    assert len({f.facts for f in families() if not f.shared}) >= 90
    pairs = {fact.frames[:3] for _, fact in _facts(Wording("train"), "train", 3000, 3)}
    assert len(pairs) >= 1800
    everything = [t for by_kind in frames().values() for made in by_kind.values() for t in made]
    assert sum(t.count() for t in everything) >= 900


def test_family_frames_hold_the_slots_they_need() -> None:
    for family in families():
        for told in family.facts:
            assert "v" in told.slots, told.source
            assert {"e", "its"} & told.slots, told.source
        for asked in family.asks:
            assert "v" not in asked.slots, asked.source
            assert "e" in asked.slots, asked.source
        for back in family.backs:
            assert "v" in back.slots, back.source
            assert "e" not in back.slots, back.source


def test_a_document_holds_several_facts_of_one_entity(train: Episodes) -> None:
    """Other attributes of the same entity are the distractors that matter most."""
    shared = 0
    for seed in range(20):
        episode = train.sample(600, rng=Random(seed), facts=12, same_type=False)
        names = [n.quote for n in episode.questions]
        shared += len(names) > 2
    assert shared >= 10


# --------------------------------------------------------------------------- parts


def test_templates_expand_alternatives_and_slots() -> None:
    made = template("[the|that] {attr} of {e's} [old |]ship is {a v}")
    assert made.count() == 4
    text = made.render(Random(0), {"attr": "mast", "e": "Hals", "v": "oak"})
    assert text.text.endswith("ship is an oak")
    assert text.text[slice(*text.spans["v"])] == "oak"
    assert "Hals' " in text.text
    for broken in ("[a|b", "a]"):
        with pytest.raises(ValueError, match="unmatched"):
            template(broken)


def test_orders_end_with_a_full_stop_and_questions_do_not() -> None:
    assert question("name the mayor of Lorne") == "Name the mayor of Lorne."
    assert question("who runs Lorne") == "Who runs Lorne?"
    assert indefinite("hour") == "an "
    assert indefinite("unicorn") == "a "


def test_numbers_are_spelled() -> None:
    assert spell(0) == "zero"
    assert spell(342) == "three hundred and forty-two"
    assert spell(21_005) == "twenty-one thousand and five"


@given(word=st.text("abcdefgh12345", min_size=2, max_size=9), seed=st.integers(0, 99))
def test_near_misses_differ_from_the_name(word: str, seed: int) -> None:
    assert mutate(word, Random(seed)) != word


def test_names_inside_names_are_not_distinct() -> None:
    assert not distinct("Port Lorne", "Lorne")
    assert distinct("Port Lorne", "Lorne Bay")


@given(text=st.text("ab \n", max_size=200), width=st.integers(3, 30))
def test_wrapping_only_turns_spaces_into_breaks(text: str, width: int) -> None:
    """Offsets of facts are taken before the lines are broken."""
    wrapped = wrap(text, width)
    assert len(wrapped) == len(text)
    assert wrapped.replace("\n", " ") == text.replace("\n", " ")


def test_abbreviations_do_not_end_sentences() -> None:
    assert sentences('Mr. Hale left. "Why?" said Dr. A. Brandt. He ran.') == [
        "Mr. Hale left.",
        '"Why?" said Dr. A. Brandt.',
        "He ran.",
    ]


def test_filler_is_as_long_as_asked() -> None:
    assert sum(len(line) for lines, _ in filler(3000, Random(0)) for line in lines) > 2500


def test_long_sentences_are_quoted_in_parts() -> None:
    text = "The first part is told here at some length; " * 6
    parts = units(text)
    assert len(parts) > 3
    assert all(len(text[a:b]) <= 200 for a, b in parts)
    assert units("A short one.") == [(0, 12)]


@pytest.mark.parametrize(
    ("past", "base"),
    [
        ("took", "take"),
        ("carried", "carry"),
        ("stopped", "stop"),
        ("loved", "love"),
        ("walked", "walk"),
        ("passed", "pass"),
        ("closed", "close"),
        ("opened", "open"),
        ("visited", "visit"),
        ("arrived", "arrive"),
        ("called", "call"),
        ("changed", "change"),
        ("reached", "reach"),
        ("moved", "move"),
        ("examined", "examine"),
        ("covered", "cover"),
        ("appeared", "appear"),
        ("required", "require"),
    ],
)
def test_past_tenses_find_their_base(past: str, base: str) -> None:
    assert base_of(past) == base


def _asked(text: str) -> dict[str, str]:
    found = {}
    for seed in range(120):
        for one in propose(text, Random(seed)):
            found[one.text] = text[slice(*one.span)]
    return found


@pytest.mark.parametrize(
    ("text", "start", "answer"),
    [
        (
            "The Endurance covered sixteen miles before the noon of that day.",
            "How many miles",
            "sixteen",
        ),
        (
            "They bought a trawler named Instituto de Pesca from the government.",
            "What was the trawler",
            "Instituto de Pesca",
        ),
        (
            "The meteorologist, Mr. Tulloch, came off to the ship at once.",
            "Who was the meteorologist",
            "Mr. Tulloch",
        ),
        (
            "She was built by Christensen for the sealing trade.",
            "Who or what built her",
            "Christensen",
        ),
        (
            "Captain Hale took the stores to Hut Point on September 24.",
            "When did Captain Hale take",
            "September 24",
        ),
        (
            "Captain Hale took the stores to Hut Point on September 24.",
            "Who took the stores",
            "Captain Hale",
        ),
        (
            "Sherman was to cross the Tennessee at Brown's Ferry with all his men.",
            "Where was Sherman to cross the Tennessee",
            "Brown's Ferry",
        ),
        ("There were twenty men in the hut at Cape Wild.", "How many men were there", "twenty"),
        ('"There is a light on the shore," said Mr. Brandt.', "Who said", "Mr. Brandt"),
    ],
)
def test_rules_turn_sentences_into_questions(text: str, start: str, answer: str) -> None:
    found = {value for asked, value in _asked(text).items() if asked.startswith(start)}
    assert answer in found, _asked(text)


def test_a_clause_knows_subject_and_verb() -> None:
    first = clauses(Sentence("On Monday the old cook burned the soup again."))[0]
    assert first.subject == "the old cook"
    assert first.asked("the soup") == "did the old cook burn the soup"
