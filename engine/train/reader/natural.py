"""Look-ups made by rule from real sentences. No invented facts.

Each rule looks at a tagged sentence (see `english`) and proposes questions with the span of
the answer; whether a question picks out its sentence in a document is decided by
`picks_out`.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from engine.train.reader.english import (
    NOUN_PHRASE,
    PEOPLE,
    Clause,
    Sentence,
    clauses,
    verbs,
    word_class,
)
from engine.train.reader.grammar import words_of
from engine.train.reader.names import DATA

if TYPE_CHECKING:
    from random import Random


@dataclass(frozen=True)
class Proposal:
    """A question about a sentence. span: the answer in the sentence."""

    text: str
    span: tuple[int, int]
    kind: str


_WORD: Final = re.compile(r"[A-Za-zÀ-ÿ0-9][A-Za-zÀ-ÿ0-9'’-]*")
_SIZES: Final = frozenset(words_of("old long high deep wide thick tall broad away distant off"))


@functools.cache
def _synonyms() -> dict[str, str]:
    found = {}
    for line in (DATA / "synonyms.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            word, other = line.split(" ", 1)
            found[word] = other
    return found


_NO_COUNT: Final = frozenset(words_of("between of and or to no. no"))
_NO_UNITS: Final = frozenset(words_of("a.m. p.m. strong o'clock o’clock or and per p a"))
_MEASURES: Final = {
    unit: asks
    for units, asks in (
        (
            "miles mile leagues yards feet fathoms paces",
            ("what distance", "how far", "what length"),
        ),
        (
            "days hours minutes weeks months years seconds",
            ("how long", "for how long", "for what length of time"),
        ),
        ("pounds lbs tons ounces", ("what weight", "how much", "what quantity")),
        ("dollars shillings guineas francs cents pence", ("how much money", "what sum")),
        ("degrees", ("what temperature", "how many degrees")),
        ("acres", ("what area", "how much land")),
    )
    for unit in units.split()
}
_KINDS: Final = words_of(
    "Island Islands River Bay Port Fort Mount Lake Street County Cape Creek Harbour Point Strait "
    "House Hall Church Bridge Road Castle Camp Valley Station Gulf Ferry Landing Court Park Hotel"
)
_FAR: Final = frozenset(words_of("away distant off"))
_OBJECTS: Final = {"i": "me", "he": "him", "she": "her", "we": "us", "they": "them"}
_WHEN: Final = re.compile(r"P(?:D#?(?:om)?y?|m#?c?y?|#my?|y)(?![#N])")
_NAME_AFTER: Final = re.compile(r"[Po](?P<n>(?:D[NC]*)?T?C+)")
_NUMBER: Final = re.compile(r"(?P<n>#+)(?P<u>N{1,2})(?!C)")
_WHERE: Final = {
    "in": ("where", "in what place"),
    "at": ("where", "at what place", "at which place"),
    "near": ("near what place", "where"),
    "to": ("to what place", "where", "to which place"),
    "into": ("into what place", "where"),
    "from": ("from what place", "from where"),
    "towards": ("towards what place", "where"),
    "toward": ("towards what place", "where"),
    "off": ("off what place", "where"),
    "through": ("through what place",),
    "across": ("across what",),
    "over": ("over what",),
    "on": ("on what",),
    "of": ("of what", "of whom"),
    "under": ("under whom", "under what"),
    "between": ("between what",),
    "round": ("round what",),
    "beyond": ("beyond what place",),
    "above": ("above what place",),
    "below": ("below what place",),
    "up": ("up what",),
    "down": ("down what",),
    "along": ("along what",),
    "aboard": ("aboard what",),
}
_WHOM: Final = {
    "by": ("by whom",),
    "with": ("with whom",),
    "to": ("to whom",),
    "from": ("from whom",),
    "for": ("for whom",),
    "of": ("of whom",),
    "between": ("between whom",),
    "against": ("against whom",),
    "under": ("under whom",),
    "among": ("among whom",),
}


def _tidy(text: str) -> str:
    """A proposal's text as a question."""
    text = re.sub(r"\s+([,.;?])", r"\1", " ".join(text.split()))
    text = text.lstrip(" ,;:-\"'“”‘’_(").rstrip(" ,;:-_(")
    return text[:1].upper() + text[1:] + "?"


def _from_clause(clause: Clause, rng: Random) -> list[Proposal]:
    sentence = clause.sentence
    tags = sentence.tags
    words = sentence.words
    found: list[Proposal] = []
    rest = words(clause.rest, clause.end)

    def add(kind: str, first: int, last: int, *texts: str) -> None:
        found.append(
            Proposal(_tidy(rng.choice(texts)), sentence.span(first, last), f"natural/{kind}")
        )

    def without(first: int, last: int) -> str:
        return f"{words(clause.rest, first)} {words(last, clause.end)}"

    if not clause.pronoun and clause.end - clause.rest >= 2:
        verb = words(clause.verb, clause.rest)
        who = "who" if clause.person else "what"
        add(
            "subject",
            clause.first,
            clause.verb,
            f"{who} {verb} {rest}",
            f"{who} {verb} {rest}",
            f"{who} was it that {verb} {rest}",
            f"tell me {who} {verb} {rest}",
            f"which person or thing {verb} {rest}",
        )
    for match in _NUMBER.finditer(tags, clause.rest, clause.end):
        first, last = match.span()
        unit = words(match.start("u"), last)
        before = sentence.tokens[first - 1].text.lower()
        if before in _NO_COUNT or unit.split()[0] in _NO_UNITS or not unit[0].isalpha():
            continue
        # `some sixteen feet`: what only weakens the number goes with it.
        vague = first - (before in ("some", "about", "nearly", "almost", "only", "over"))
        turned = clause.asked(without(max(vague, clause.rest), last))
        measures = _MEASURES.get(unit.split()[0].rstrip("."), ())
        if measures and rng.random() < 0.5:
            add("amount", first, match.start("u") + 1, *(f"{ask} {turned}" for ask in measures))
        else:
            many = f"how many {unit} {turned}"
            add("number", first, match.end("n"), many, many, f"what number of {unit} {turned}")
        size = sentence.tokens[last].text if last < len(sentence.tokens) else ""
        if size in _SIZES and tags[clause.verb] == "B" and clause.rest == clause.verb + 1:
            be = sentence.tokens[clause.verb].text
            far = f"far {size}" if size in _FAR else size
            add(
                "size",
                first,
                last,
                f"how {far} {be} {clause.subject}",
                f"about how many {unit} {size} {be} {clause.subject}",
            )
    for match in _WHEN.finditer(tags, clause.rest, clause.end):
        first, last = match.span()
        if tags[first] == "P":
            first += 1
        if not re.search(r"[ym]|D#", tags[first:last]):
            continue
        if "D#" in tags[first:last] and not re.search(r"\d(?:st|nd|rd|th)", words(first, last)):
            continue
        turned = clause.asked(without(first - 1, last))
        add(
            "when",
            first,
            last,
            f"when {turned}",
            f"on what day or in what year {turned}",
            f"when was it that {clause.subject} {words(clause.verb, clause.rest)} "
            f"{without(first - 1, last)}",
        )
    for match in _NAME_AFTER.finditer(tags, clause.rest, clause.end):
        first, last = match.span("n")
        before = sentence.tokens[first - 1].text.lower()
        name = words(first, last).lower()
        if name.endswith(("'s", "’s", "s'")):
            continue
        human = "T" in tags[first:last] or bool(PEOPLE.search(name))
        asks = _WHOM.get(before) if human else _WHERE.get(before)
        typed = next((kind for kind in _KINDS if kind.lower() in name.split()), "")
        if typed and asks and rng.random() < 0.5:
            asks = (f"{before} which {typed.lower()}",)
        if asks:
            turned = clause.asked(without(first - 1, last))
            add("whom" if human else "where", first, last, f"{rng.choice(asks)} {turned}")
    phrase = NOUN_PHRASE.match(tags, clause.rest, clause.end)
    if phrase:
        first, last = phrase.span()
        after = words(last, clause.end)
        verb_tag = tags[clause.rest - 1]
        if tags[clause.verb : clause.rest] == "B":
            be = sentence.tokens[clause.verb].text
            plain = not clause.pronoun and last == clause.end and tags[first] in "DTC"
            if plain and sentence.tokens[first].text != "all":
                who = "who" if clause.person else "what"
                add(
                    "copula",
                    first,
                    clause.end,
                    f"{who} {be} {clause.subject}",
                    f"what {be} {clause.subject}",
                    f"what does the text call {clause.subject}",
                )
        elif verb_tag in "VEN" and tags[clause.verb] != "B":
            human = "T" in tags[first:last]
            turned = clause.asked(after)
            add(
                "object",
                first,
                last,
                f"{'whom' if human else 'what'} {turned}",
                f"{'who' if human else 'what'} {turned}",
            )
    passive = tags[clause.verb] == "B" and tags[clause.rest - 1] == "E"
    if (
        passive
        and sentence.tokens[clause.rest].text == "by"
        and "not" not in words(clause.verb, clause.rest).split()
    ):
        agent = NOUN_PHRASE.match(tags, clause.rest + 1, clause.end)
        if agent:
            turned = clause.asked(words(agent.end(), clause.end))
            add(
                "agent",
                *agent.span(),
                f"by whom or what {turned}",
                f"who or what {base_past(sentence, clause)} "
                f"{_OBJECTS.get(clause.subject.lower(), clause.subject)}",
            )
    return found


def base_past(sentence: Sentence, clause: Clause) -> str:
    """The past tense of a passive's verb, where it is regular."""
    verb = sentence.tokens[clause.rest - 1].text
    if verb.endswith("ed"):
        return verb
    base = verbs()[1].get(verb, "")
    return next((past for past, root in verbs()[0].items() if root == base), verb)


_THERE: Final = re.compile(
    r"\b[Tt]here (was|were|are|is|had been|have been) (?:about |only |some |nearly |but )?"
    r"((?:\d[\d,]*|[a-z]+(?:-[a-z]+)?)) ((?:[a-z-]+ )?[a-z-]+s|men|women|people|children)\b"
    r"([^,;.:]{4,60})"
)
_NAMED: Final = re.compile(
    r"\b(?:[Aa]n?|[Tt]he|[Hh]is|[Hh]er|[Oo]ur|[Mm]y) ((?:[a-z-]+ )?[a-z-]+),? "
    r"(?:named|called|by name|known as) [\"“'‘_]?((?:[A-Z][\w’'-]+)(?: (?:(?:de|of|la|the|No\.) )?"
    r"(?:[A-Z][\w’'-]+|\d+))*)"
)
_APPOSED: Final = re.compile(
    r"\b(?:[Tt]he|[Oo]ur|[Mm]y|[Hh]is|[Hh]er) ((?:[a-z-]+ ){0,2}[a-z-]+), "
    r"((?:(?:Mr|Mrs|Dr|Capt|Lieut|St)\.? )?[A-Z][\w’'-]+(?: [A-Z][\w’'-]+){0,2}),"
)
_APPOSITION: Final = re.compile(
    r"\b((?:(?:Mr|Mrs|Dr|Capt|Lieut)\.? )?[A-Z][\w’'-]+(?: [A-Z][\w’'-]+){0,2}), "
    r"((?:the|a|an|our|his|my|her) (?:[a-z-]+ ){0,3}[a-z-]+(?: of (?:the )?[A-Za-z’'-]+)?)[,.]"
)
_SAID: Final = re.compile(
    r"[\"“]([A-Z][^\"“”]{12,70}?)[,!?.]?[\"”],? (?:said|cried|answered|asked|replied|exclaimed) "
    r"((?:the [a-z]+|(?:(?:Mr|Mrs|Dr)\.? )?[A-Z][a-z’'-]+(?: [A-Z][a-z’'-]+)?))"
)
_SIZED: Final = re.compile(
    r"\b((?:about |nearly |over |some |almost )?(?:[\d,.]+|[a-z]+(?:-[a-z]+)?) "
    r"(?:feet|foot|inches|yards|miles|fathoms|tons|pounds|lbs\.?|days|weeks|months|years|hours|"
    r"minutes|degrees|acres|leagues|knots|paces|dollars|shillings|guineas))"
    r"(?: (old|long|high|deep|wide|thick|tall|broad|away|distant|off))?\b"
)
_HEADING: Final = re.compile(
    r"((?:CHAPTER|Chapter|BOOK|Book|PART|Part|SECTION|Section|FEDERALIST|No\.|Letter) "
    r"[IVXLC\d.]+)[.:]? +([A-Z][\w ,'’-]{5,79})(?=[.]|$)"
)
_TRADE: Final = re.compile(r"(?:er|or|ist|ian|man|woman|ant|ess|eon|ain|ard)$")


def _patterns(sentence: Sentence, rng: Random) -> list[Proposal]:
    """Rules that look at characters."""
    text = sentence.text
    found: list[Proposal] = []

    def add(kind: str, span: tuple[int, int], *texts: str) -> None:
        found.append(Proposal(_tidy(rng.choice(texts)), span, f"natural/{kind}"))

    for m in _THERE.finditer(text):
        if m[2][0].isdigit() or all(part in word_class("numbers") for part in m[2].split("-")):
            be = {"had been": "had there been", "have been": "have there been"}.get(
                m[1], f"{m[1]} there"
            )
            add("number", m.span(2), f"how many {m[3]} {be}{m[4]}")
    for m in _NAMED.finditer(text):
        add(
            "named",
            m.span(2),
            f"what was the {m[1]} {rng.choice(('named', 'called'))}",
            f"what was the name of the {m[1]}",
            f"by what name is the {m[1]} known",
            f"which name did the {m[1]} have",
        )
    for m in _APPOSED.finditer(text):
        if word_class("determiners") & set(m[1].split()) or not (
            PEOPLE.search(m[1]) or _TRADE.search(m[1])
        ):
            continue
        add(
            "named",
            m.span(2),
            f"who was the {m[1]}",
            f"what was the name of the {m[1]}",
            f"who is the {m[1]} that is mentioned",
        )
    for m in _APPOSITION.finditer(text):
        if m[1].split()[0] in word_class("not_names"):
            continue
        add(
            "apposition",
            m.span(2),
            f"what was {m[1]}",
            f"who was {m[1]}",
            f"how is {m[1]} described",
            f"what do we learn about {m[1]}",
        )
        thing = re.sub(r"^(?:a|an|our|his|my|her) ", "the ", m[2])
        add("apposition", m.span(1), f"who was {thing}", f"which name belongs to {thing}")
    for m in _SAID.finditer(text):
        who = m[2]
        add("said", m.span(2), f'who said "{m[1]}"', f"who spoke the words '{m[1]}'")
        add("said", m.span(1), f"what did {who} say", f"what were the words of {who}")
    for m in _HEADING.finditer(text):
        add(
            "heading",
            m.span(2),
            f"what is the title of {m[1]}",
            f"what is {m[1]} about",
            f"how is {m[1]} headed",
        )
    return found


def _keywords(sentence: Sentence, rng: Random, avoid: tuple[int, int], count: int) -> list[str]:
    """Telling words of the sentence outside a span, in their order."""
    picked = [
        token
        for token in sentence.tokens
        if token.tag in "NCVE#y"
        and len(token.text) > 3
        and token.text.lower() not in word_class("stop")
        and not avoid[0] <= token.start < avoid[1]
    ]
    chosen = rng.sample(picked, min(count, len(picked)))
    if rng.random() < 0.7:
        chosen.sort(key=lambda token: token.start)
    return [t.text if t.tag in "CTm" and t.start else t.text.lower() for t in chosen]


def _mentioned(sentence: Sentence, rng: Random) -> list[Proposal]:
    """Numbers, dates, names and sizes asked for by telling words of their sentence."""
    found: list[Proposal] = []
    spans: list[tuple[str, tuple[int, int], str]] = []
    for m in _SIZED.finditer(sentence.text):
        if m[1].split()[-2].lower() in word_class("stop") | {"few", "several", "these", "those"}:
            continue
        if not re.match(r"\d", m[1].split()[-2]) and not all(
            w in word_class("numbers") for w in m[1].split()[-2].split("-")
        ):
            continue
        unit = m[1].split()[-1]
        kind = {
            "miles": "distance",
            "feet": "length or height",
            "days": "time",
            "years": "time",
            "hours": "time",
            "tons": "weight",
            "pounds": "amount",
            "lbs": "weight",
        }.get(unit, "measure")
        spans.append(
            (
                rng.choice(
                    (
                        f"what {kind} is given",
                        f"how many {unit} are mentioned",
                        "what measure is stated",
                        f"what {kind} do we read of",
                    )
                ),
                m.span(1),
                "measure",
            )
        )
    names = [m for m in re.finditer(r"T?C+", sentence.tags) if m.start() > 0]
    for m in names if len(names) == 1 else ():
        name = sentence.span(*m.span())
        human = sentence.tags[m.start()] == "T"
        ask = (
            ("who is mentioned", "which person is named", "who appears")
            if human
            else ("which name is mentioned", "what name occurs", "who or what is named")
        )
        spans.append((rng.choice(ask), name, "name"))
    for m in re.finditer(r"m#?(?:c?y)?|#m|y", sentence.tags):
        spans.append(
            (
                rng.choice(
                    (
                        "which date is given",
                        "when is this said to be",
                        "what date or year is mentioned",
                    )
                ),
                sentence.span(*m.span()),
                "date",
            )
        )
    for m in _NUMBER.finditer(sentence.tags):
        unit = sentence.words(*m.span("u"))
        spans.append((f"how many {unit} are mentioned", sentence.span(*m.span("n")), "count"))
    if not spans:
        return []
    for asks, span, kind in rng.sample(spans, min(2, len(spans))):
        words = _keywords(sentence, rng, span, rng.choice((3, 3, 4, 5)))
        if len(words) < 3:
            continue
        listed = ", ".join(words[:-1]) + " and " + words[-1]
        link = rng.choice(
            (
                "together with",
                "in connection with",
                "where we read of",
                "along with",
                "in the passage on",
                "in the sentence about",
            )
        )
        text = f"{asks} {link} {listed}"
        if rng.random() < 0.15:
            text = f"{link} {listed}, {asks}"
        found.append(Proposal(_tidy(text), span, f"natural/mentioned-{kind}"))
    return found


def _cloze(sentence: Sentence, rng: Random) -> list[Proposal]:
    """Complete a sentence from its beginning, or fill a gap in it."""
    text = sentence.text
    tokens = [t for t in sentence.tokens if t.tag != "x"]
    if len(tokens) < 9:
        return []
    if rng.random() < 0.5:
        at = rng.randint(4, min(10, len(tokens) - 3))
        last = min(len(tokens) - 1, at + rng.randint(2, 8))
        head = text[: tokens[at - 1].end]
        if rng.random() < 0.4:
            head = text[tokens[max(0, at - rng.randint(4, 7))].start : tokens[at - 1].end]
        form = rng.choice(_OPENINGS)
        return [Proposal(form.format(head), (tokens[at].start, tokens[last].end), "natural/cloze")]
    phrases = [m for m in NOUN_PHRASE.finditer(sentence.tags) if m.start() > 0]
    numbers = list(re.finditer(r"#+", sentence.tags))
    if not phrases and not numbers:
        return []
    match = rng.choice(phrases + numbers)
    start, end = sentence.span(*match.span())
    left = max(0, match.start() - rng.randint(3, 8))
    right = min(len(sentence.tokens), match.end() + rng.randint(3, 8))
    while left < match.start() and sentence.tags[left] in "cx":
        left += 1
    before = text[sentence.tokens[left].start : start]
    after = text[end : sentence.tokens[right - 1].end]
    form = rng.choice(_GAPS)
    return [
        Proposal(
            form.format(before + rng.choice(("___", "...", "____")) + after),
            (start, end),
            "natural/gap",
        )
    ]


_OPENINGS: Final = (
    "Complete: '{}'",
    "Complete the sentence: '{} ...'",
    "What follows '{}'?",
    "How does the sentence with '{}' go on?",
    'Finish: "{} ..."',
    "What comes after '{}'?",
    "Which words come next: '{} ...'?",
    "{} ...",
)
_GAPS: Final = (
    "Fill the gap: '{}'",
    "What is missing in '{}'?",
    "Which words are left out here: '{}'?",
    'Fill in: "{}"',
    "What belongs in the gap: '{}'?",
)


def _softened(text: str, rng: Random) -> str:
    """Now and then a synonym for a plain word."""
    known = _synonyms()
    words = text.split(" ")
    for at in range(1, len(words)):
        other = known.get(words[at])
        if other is not None and rng.random() < 0.3:
            words[at] = other
    return " ".join(words)


_FIRST: Final = re.compile(r"\b(was|did|had|could|would|have|am|must|should|were) (I|we)\b")


def _voiced(proposal: Proposal, rng: Random) -> Proposal:
    """Now and then a narrator is spoken of, not quoted."""
    who = rng.choice(("the author", "the narrator", "the writer"))
    text = _FIRST.sub(lambda m: f"{m[1]} {who if m[2] == 'I' else 'they'}", proposal.text, 1)
    if text == proposal.text or rng.random() < 0.5:
        return proposal
    return Proposal(text, proposal.span, proposal.kind)


def propose(text: str, rng: Random) -> list[Proposal]:
    """Questions the rules find in one sentence; one kind of rule at a time."""
    if not 30 <= len(text) <= 260 or text.isupper():
        return []
    sentence = Sentence(text)
    draw = rng.random()
    if draw < 0.85:
        asked = [_voiced(p, rng) for clause in clauses(sentence) for p in _from_clause(clause, rng)]
        asked += _patterns(sentence, rng) * 2
        found = [_checked(p, rng) for p in asked if _sound(p, text)]
        if not found or draw > 0.75:
            found = [_checked(p, rng) for p in _mentioned(sentence, rng) if _sound(p, text)]
        if found or draw < 0.55:
            return found
    return [p for p in _cloze(sentence, rng) if len(text[slice(*p.span)].strip("_'")) > 1]


def _sound(proposal: Proposal, text: str) -> bool:
    """Whether the answer is short, is a phrase and is not given away."""
    value = text[slice(*proposal.span)]
    return (
        1 <= len(value) <= 80
        and value.lower() not in proposal.text.lower()
        and (12 <= len(proposal.text) <= 170)
    )


def _checked(proposal: Proposal, rng: Random) -> Proposal:
    return Proposal(_softened(proposal.text, rng), proposal.span, proposal.kind)


def content(text: str) -> list[str]:
    """The words of a question that can pick out a sentence, lower-case, each once."""
    words = (match.group().lower() for match in _WORD.finditer(text))
    return list(
        dict.fromkeys(word for word in words if word not in word_class("stop") and len(word) > 1)
    )


_LONG: Final = 200
_STRONG: Final = re.compile(r"(?<=[;:])\s+|\s*--\s*|\s*—\s*")


def units(text: str) -> list[tuple[int, int]]:
    """What is quoted of a sentence: all of it, or of a long one the parts between marks."""
    if len(text) <= _LONG:
        return [(0, len(text))]
    found = []
    start = 0
    for match in _STRONG.finditer(text):
        if match.start() - start >= 40:
            found.append((start, match.start()))
            start = match.end()
    if len(text) - start >= 40:
        found.append((start, len(text)))
    return found


def picks_out(question: str, sentence: str, document: str, texts: list[str]) -> bool:
    """Whether the question's content words point at one sentence and no other.

    Args:
        sentence: the supporting sentence, or the part of it that is quoted.
        document, texts: the document and its sentences, lower-case.
    """
    low = sentence.lower()
    known = [word for word in content(question) if word in low]
    if len(known) < 2 or min(document.count(word) for word in known) > 3:
        return False
    # A sentence that shares most of the words would be a fair answer too.
    most = max(2, round(0.7 * len(known)))
    return not any(
        low not in other and sum(word in other for word in known) >= most for other in texts
    )


def answered(question: str, document: str) -> bool:
    """Whether the document (lower-case) may hold what a question from elsewhere asks."""
    words = content(question)
    return len(words) < 3 or sum(word in document for word in words) > 0.6 * len(words)
