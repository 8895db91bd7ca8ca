"""RULER's thirteen tasks, generated from public-domain text and word lists; and its needles alone.

Source: RULER (arXiv 2404.06654), tasks and settings of its synthetic.yaml, templates and string
match as published. What differs: the haystack is books and not essays, names and words are our
lists' and the books', the two question-answering tasks ask about generated facts among paragraphs
(one step, two steps) and not SQuAD and HotpotQA, and no beginning of the answer is put into the
model's mouth.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice, pairwise
from random import Random
from uuid import UUID

from engine.lab.bench.suites.types import Ask, Count, Item, Sample, fill

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
_ADJECTIVES = """
    able amber ancient brave bright calm clever coastal crimson curious daring distant eager
    early faithful famous fearless frozen gentle golden grand hidden hollow honest humble idle
    ivory jolly keen lively lonely loyal lunar mellow mighty modest noble northern patient
    polished proud quiet rapid restless rustic scarlet silent silver sober solemn steady sturdy
    subtle sunny swift tender thirsty timid tranquil vast velvet vivid wandering wary western
    wild windy wise woven
"""
_NOUNS = """
    acorn almond anchor anvil arrow badger banner barrel basket beacon bell bridge bucket candle
    canyon castle cedar chapel cliff cloak clover comet compass copper cottage crane crown
    dagger falcon feather fiddle forest fountain galley garden garnet glacier goblet hammer
    harbour harp hazel heron island ivy juniper kettle lantern ledger lily magnet maple marble
    meadow mirror monsoon moth oak orchard otter paddle palace parrot pebble pepper pilgrim
    plough quarry raven reef ribbon river saddle sail sapphire shepherd shovel sparrow spindle
    tower trumpet tunnel turnip valley violin walnut whistle willow window
"""
_TOWNS = """
    Arden Belwick Corrin Dunmere Elsford Farlow Garrick Hexton Ilmere Jorvik Kelso
"""
_PEOPLE = """
    Alba Bertin Cosima Dorian Edda Fabian Greta Hollis Ines Jasper Klara Ludo Marta
"""
ADJECTIVES, NOUNS = tuple(_ADJECTIVES.split()), tuple(_NOUNS.split())
TOWNS, PEOPLE = tuple(_TOWNS.split()), tuple(_PEOPLE.split())

NEEDLE = "One of the special magic {kind}s for {key} is: {value}."
HIDDEN = (
    "Some special magic {kind}s are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind}s afterwards.\n{context}"
)
ONE_HIDDEN = (
    "A special magic {kind} is hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n{context}"
)
ASK_ONE = "What is the special magic {kind} for {query} mentioned in the provided text?"
ASK_ALL = "What are all the special magic {kind}s for {query} mentioned in the provided text?"

Task = Callable[[Random, int], tuple[str, str, list[str]]]
"""A generator and a number of filler units -> document, question, right answers."""


@dataclass(frozen=True)
class Needles:
    """Keys with values hidden in text.

    around: "noise", "books" or "needles" of other keys. key, value: "words", "numbers", "uuids".
    keys: hidden ones; values: of each; queries: keys that are asked about together.
    """

    around: str = "books"
    key: str = "words"
    value: str = "numbers"
    keys: int = 1
    values: int = 1
    queries: int = 1


NEEDLES = {
    "niah_single_1": Needles("noise"),
    "niah_single_2": Needles(),
    "niah_single_3": Needles(value="uuids"),
    "niah_multikey_1": Needles(keys=4),
    "niah_multikey_2": Needles("needles"),
    "niah_multikey_3": Needles("needles", "uuids", "uuids"),
    "niah_multivalue": Needles(values=4),
    "niah_multiquery": Needles(keys=4, queries=4),
}
MOST = {"niah": 128, "vt": 30, "cwe": 120, "fwe": 50, "qa": 32}
TASKS = (*NEEDLES, "vt", "cwe", "fwe", "qa_1", "qa_2")


@dataclass
class Library:
    """The text that tasks are made from. sentences: of public-domain books, in order.
    words: common and rare ones of theirs, lower case."""

    sentences: Sequence[str]
    words: Sequence[str] = field(init=False)

    def __post_init__(self) -> None:
        if not self.sentences:
            raise ValueError("no sentences")
        found = dict.fromkeys(
            word
            for sentence in self.sentences[:20_000]
            for word in re.findall(r"\b[a-z]{4,10}\b", sentence)
        )
        self.words = [*found, *(f"{a}{n}" for a in ADJECTIVES for n in NOUNS)]

    def run(self, rng: Random, count: int) -> list[str]:
        """So many sentences as they follow each other, from a random place, round the end."""
        start = rng.randrange(len(self.sentences))
        turned = islice(cycle(self.sentences), start, start + count)
        return list(turned)


def value(rng: Random, kind: str) -> str:
    """A name, a number of seven digits, or a UUID."""
    if kind == "words":
        return f"{rng.choice(ADJECTIVES)}-{rng.choice(NOUNS)}"
    if kind == "numbers":
        return str(rng.randrange(1_000_000, 10_000_000))
    return str(UUID(int=rng.getrandbits(128), version=4))


def needles(setting: Needles, library: Library, depth: float | None = None) -> Task:
    """A task of needles; `depth` puts a single one there, else each has a random one."""
    kind = {"numbers": "number", "words": "word", "uuids": "uuid"}[setting.value]

    def make(rng: Random, units: int) -> tuple[str, str, list[str]]:
        keys: dict[str, list[str]] = {}
        while len(keys) < setting.keys:
            values = [value(rng, setting.value) for _ in range(setting.values)]
            keys.setdefault(value(rng, setting.key), values)
        asked = list(keys)[: setting.queries]
        hidden = [
            NEEDLE.format(kind=kind, key=key, value=v) for key, vs in keys.items() for v in vs
        ]
        places = [rng.random() if depth is None else depth for _ in hidden]
        if setting.around == "noise":
            text = list(islice(cycle(re.findall(r"[^.]+\.", NOISE)), units))
            text = [sentence.strip() for sentence in text]
        elif setting.around == "books":
            text = library.run(rng, units)
        else:
            text = [
                NEEDLE.format(
                    kind=kind, key=value(rng, setting.key), value=value(rng, setting.value)
                )
                for _ in range(units)
            ]
        for place, sentence in sorted(zip(places, hidden, strict=True), reverse=True):
            text.insert(round(place * units), sentence)
        single = len(hidden) == 1
        context = ("\n" if setting.around == "needles" else " ").join(text)
        document = (ONE_HIDDEN if single else HIDDEN).format(kind=kind, context=context)
        query = asked[0] if len(asked) == 1 else ", ".join(asked[:-1]) + f", and {asked[-1]}"
        several = len(asked) * setting.values > 1
        question = (ASK_ALL if several else ASK_ONE).format(kind=kind, query=query)
        return document, question, [v for key in asked for v in keys[key]]

    return make


def variable_tracking(rng: Random, units: int, hops: int = 4) -> tuple[str, str, list[str]]:
    """One chain of assignments in noise: all variables that hold its first value."""
    names = ["".join(rng.choices(string.ascii_uppercase, k=5)) for _ in range(hops + 1)]
    first = str(rng.randrange(10_000, 100_000))
    chain = [f"VAR {names[0]} = {first}"]
    chain += [f"VAR {new} = VAR {old} " for old, new in pairwise(names)]
    text = [NOISE] * units
    places = sorted(rng.sample(range(units + len(chain)), len(chain)))
    for place, step in zip(places, chain, strict=True):
        text.insert(place, step)
    context = "\n".join(text)
    document = (
        "Memorize and track the chain(s) of variable assignment hidden in the following text."
        f"\n\n{context}"
    )
    question = f"Find all variables that are assigned the value {first} in the text above."
    return document, question, names


def common_words(library: Library) -> Task:
    """A numbered list where ten words stand thirty times and the others three times."""

    def make(rng: Random, units: int) -> tuple[str, str, list[str]]:
        words = rng.sample(library.words, min(len(library.words), 10 + units))
        often, seldom = words[:10], words[10:]
        # A short list keeps the proportion of the long one and has ten words at least twice.
        times, rare = (30, 3) if units > 40 else (6, 1)
        listed = often * times + seldom * rare
        rng.shuffle(listed)
        context = " ".join(f"{i}. {word}" for i, word in enumerate(listed, 1))
        document = (
            "Below is a numbered list of words. In these words, some appear more often than "
            f"others. Memorize the ones that appear most often.\n{context}"
        )
        return document, "What are the 10 most common words in the above list?", often

    return make


def frequent_words(rng: Random, units: int, alpha: float = 2.0) -> tuple[str, str, list[str]]:
    """Coded words drawn by a zeta distribution; the three most frequent ones, noise dots apart."""
    coded: dict[str, None] = {}
    while len(coded) < 50:
        coded.setdefault("".join(rng.choices(string.ascii_lowercase, k=6)))
    words = list(coded)
    weights = [1 / (rank + 1) ** alpha for rank in range(1, len(words))]
    drawn: list[str] = []
    for word, weight in zip(words[1:], weights, strict=True):
        drawn += [word] * max(1, round(units * weight / sum(weights)))
    drawn += [words[0]] * (drawn.count(words[1]) // 2 + 1)  # the noise of dots
    rng.shuffle(drawn)
    context = " ".join("...." if word == words[0] else word for word in drawn)
    document = (
        "Read the following coded text and track the frequency of each coded word. Find the three "
        f"most frequently appeared coded words. {context}"
    )
    question = (
        "Do not provide any explanation. Please ignore the dots '....'. What are the three most "
        "frequently appeared words in the above coded text?"
    )
    return document, question, words[1:4]


def reading(library: Library, steps: int) -> Task:
    """Paragraphs of books, each with a fact of its own; a question on one fact, or over two."""

    def make(rng: Random, units: int) -> tuple[str, str, list[str]]:
        things = [f"{rng.choice(ADJECTIVES)} {noun}" for noun in rng.sample(NOUNS, 8)]
        people, towns = rng.sample(PEOPLE, 8), rng.sample(TOWNS, 8)
        facts = [
            f"The {thing} is kept by {who}." for thing, who in zip(things, people, strict=True)
        ]
        homes = [f"{who} lives in {town}." for who, town in zip(people, towns, strict=True)]
        if steps == 2:
            facts += homes
        rng.shuffle(facts)
        documents = [library.run(rng, max(1, units // len(facts))) for _ in facts]
        for text, fact in zip(documents, facts, strict=True):
            text.insert(rng.randrange(len(text) + 1), fact)
        context = "\n\n".join(
            f"Document {i}:\n{' '.join(text)}" for i, text in enumerate(documents, 1)
        )
        rule = (
            "Answer the question based on the given documents. Only give me the answer and do not "
            "output any other words."
        )
        document = f"{rule}\n\nThe following are given documents.\n\n{context}"
        chosen = rng.randrange(8)
        if steps == 1:
            return document, f"Who keeps the {things[chosen]}?", [people[chosen]]
        question = f"In which town does the person live who keeps the {things[chosen]}?"
        return document, question, [towns[chosen]]

    return make


@dataclass(frozen=True)
class Ruler:
    """All tasks, or some, at every length, `samples` of each."""

    library: Library
    lengths: tuple[int, ...]
    samples: int
    seed: int
    tasks: tuple[str, ...] = TASKS
    name: str = "ruler"

    @property
    def items(self) -> Sequence[Item]:
        return [
            Item(f"{task}/{length}/{i}", task, length)
            for i in range(self.samples)  # interrupted early, every task has some
            for length in self.lengths
            for task in self.tasks
        ]

    def draw(self, item: Item, count: Count) -> Sample:
        return drawn(self._task(item.task), item, self.seed, count)

    def _task(self, task: str) -> Task:
        if task in NEEDLES:
            return needles(NEEDLES[task], self.library)
        return {
            "vt": variable_tracking,
            "cwe": common_words(self.library),
            "fwe": frequent_words,
            "qa_1": reading(self.library, 1),
            "qa_2": reading(self.library, 2),
        }[task]


@dataclass(frozen=True)
class NeedleGrid:
    """One needle at every depth and length: the heat map.

    Source: Needle in a haystack (Kamradt 2023); needle, question and score are RULER's.
    """

    library: Library
    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    samples: int
    seed: int
    name: str = "niah"

    @property
    def items(self) -> Sequence[Item]:
        return [
            Item(f"{length}/{depth:g}/{i}", f"{length} tokens", length, depth)
            for i in range(self.samples)
            for length in self.lengths
            for depth in self.depths
        ]

    def draw(self, item: Item, count: Count) -> Sample:
        return drawn(needles(Needles(), self.library, item.depth), item, self.seed, count)


@dataclass(frozen=True)
class ManyQuestions:
    """One document with so many needles, one question on each: a store that is asked and asked."""

    library: Library
    lengths: tuple[int, ...]
    samples: int
    seed: int
    questions: int = 20
    name: str = "multi"

    @property
    def items(self) -> Sequence[Item]:
        return [
            Item(f"{length}/{i}", f"{length} tokens", length)
            for i in range(self.samples)
            for length in self.lengths
        ]

    def draw(self, item: Item, count: Count) -> Sample:
        def make(units: int) -> tuple[str, list[tuple[str, str]]]:
            rng = Random(f"{self.seed} {self.name} {item.key}")
            text = self.library.run(rng, units)
            keys: dict[str, str] = {}
            while len(keys) < self.questions:
                keys.setdefault(value(rng, "words"), value(rng, "numbers"))
            for key, number in keys.items():
                needle = NEEDLE.format(kind="number", key=key, value=number)
                text.insert(rng.randrange(len(text) + 1), needle)
            return " ".join(text), list(keys.items())

        document, pairs = make(fill(lambda n: make(n)[0], item.tokens, count))
        asks = (
            Ask(ASK_ONE.format(kind="number", query=key), (number,), "all_found", MOST["niah"])
            for key, number in pairs
        )
        return Sample(document, tuple(asks))


def drawn(task: Task, item: Item, seed: int, count: Count) -> Sample:
    """The document of an item that fills its length, and its question."""

    def made(units: int) -> tuple[str, str, list[str]]:
        return task(Random(f"{seed} {item.key}"), units)

    least = 16 if item.task.startswith("qa") else 1
    document, question, answers = made(fill(lambda n: made(n)[0], item.tokens, count, least))
    group = item.task.split("_")[0]
    metric = "any_found" if group == "qa" else "all_found"
    return Sample(document, (Ask(question, tuple(answers), metric, MOST.get(group, 128)),))
