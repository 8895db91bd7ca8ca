"""Questions about the whole of a document, and about a named part of it. Pure functions.

No passage answers "What is this book about?" by itself, and the words of "Summarise page 12" are
not those of page 12. Such questions are recognised by their form; all others are left to retrieval.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from engine.documents.words import content_words

ABOUT, CONTENTS, PAGES, HEADINGS, WORDS, COUNT = (
    "about", "contents", "pages", "headings", "words", "count",
)  # fmt: skip
"""Kinds of questions: what the whole is about; its list of contents; how many pages, chapters or
words there are; and how many of anything else, which needs the whole to be read and counted."""

IMPRINT = TITLE, AUTHOR, PUBLISHER, DATE, FRONT = (
    "title", "author", "publisher", "date", "front",
)  # fmt: skip
"""Kinds that the first pages answer: title, author, publisher, date, and what else stands there,
such as the edition and the translator."""

_THING = (
    r"(?:(?:the|this|that|my|whole|entire|present|short)\s+)*"
    r"(?:book|document|text|paper|article|novel|story|report|manual|pdf|file|play|poem|publication|"
    r"specification|guide|essay|work|volume|memoir|source|e-?book)"
)
_SELF = (
    rf"(?:{_THING}|this\s+(?:thesis|handbook|standard|web\s*page|website|pamphlet)|it|this|that)"
)
_OF_SELF = rf"(?:\s+(?:of|for|on|to|behind)\s+{_SELF})?\W*$"
_MADE = (
    r"(?:written|authored|composed|published|printed|issued|released|produced|made|created|"
    r"put\s+out|brought\s+out)"
)
_IT = rf"(?:{_THING}|it|this|that|everything|all\s+of\s+(?:it|this))"
_PARTS = r"(?:chapters?|sections?|parts?|headings?|volumes?|contents|appendix|appendices)"
_FORMS = (
    (CONTENTS, rf"\b(?:table|list)\s+of\s+(?:the\s+)?contents?\b|\b{_THING}'s\s+contents\b"),
    (
        CONTENTS,
        rf"^\W*(?:please\s+|can\s+you\s+|could\s+you\s+)*(?:list|name|show|give|enumerate|print)\b"
        rf"[^.?]{{0,30}}\b{_PARTS}\b(?:\s+(?:of|in)\s+{_IT}|\s+titles?|\s+headings?)?\W*$",
    ),
    (
        CONTENTS,
        rf"^\W*(?:what|which)\s+(?:are\s+the\s+)?{_PARTS}"
        rf"(?:\s+(?:are\s+there|does|do|is|are|of|in|make\s+up)\b[^?]{{0,30}})?\W*$",
    ),
    (
        CONTENTS,
        rf"\bhow\s+is\s+{_THING}\s+(?:structured|organi[sz]ed|divided|laid\s+out|arranged)\b",
    ),
    (PAGES, rf"\bhow\s+(?:many\s+pages|long\s+is\s+{_THING})\b"),
    (HEADINGS, r"\bhow\s+many\s+(?:chapters|sections|parts|headings)\b(?!\s+(?:did|were))"),
    (WORDS, r"\bhow\s+many\s+(?:words|tokens)\b[^?]*\b(?:document|book|text|file|it)\b"),
    (COUNT, r"\bhow\s+(?:many\s+times|often)\b[^?]*\b(?:mention|occur|appear|use|say|word|name)"),
    (
        COUNT,
        rf"\bhow\s+many\b[^?]*\b(?:in\s+(?:total|all)\b|altogether|throughout\b|"
        rf"in\s+the\s+(?:whole|entire)\s+{_THING}|in\s+{_THING}\W*$)",
    ),
    (ABOUT, rf"\bwhat(?:'s|\s+is|\s+was)?\s+{_IT}\s+(?:all\s+)?(?:mainly\s+)?about\b"),
    (ABOUT, rf"\bwhat\s+(?:does|do)\s+{_THING}\s+(?:deal\s+with|cover|discuss|describe)\W*$"),
    (ABOUT, rf"\b(?:subject|topic|theme|purpose|gist|plot|point|aim|message)s?\s+of\s+{_THING}\b"),
    (ABOUT, rf"\b(?:main|central|key|most\s+important)\s+(?:\w+\s+)?(?:of|in)\s+{_THING}\b"),
    (
        ABOUT,
        rf"^\W*(?:please\s+|can\s+you\s+|could\s+you\s+)*(?:summari[sz]e|sum\s+up|"
        rf"(?:(?:give|write|make)\s+(?:me\s+)?)?(?:an?\s+|the\s+)?(?:short\s+|brief\s+|quick\s+)*"
        rf"(?:summary|overview|outline|synopsis|abstract)(?:\s+of)?)\s*{_IT}?\W*$",
    ),
    (ABOUT, rf"\bwhat\s+(?:kind|sort|type)\s+of\s+{_THING}\s+is\s+(?:this|it)\b"),
    (ABOUT, r"\b(?:tl;?dr|in\s+a\s+nutshell)\b"),
    (ABOUT, rf"^\W*(?:describe|explain|introduce)\s+{_IT}\W*$|\btell\s+me\s+about\s+{_THING}\W*$"),
)
_WHO = r"\bwho(?:'s|'re|\s+(?:is|are|was|were))\s+(?:the\s+)?(?:\w+\s+)?"
_IMPRINTS = (
    (TITLE, rf"\b(?:title|name)\s+of\s+{_SELF}\W*$|\b{_SELF}'s\s+(?:title|name)\W*$"),
    (TITLE, r"^\W*(?:what(?:'s|\s+is|\s+was)\s+)?(?:the|its)?\s*(?:full\s+)?title\W*$"),
    (TITLE, rf"^\W*(?:what|how)(?:'s|\s+is)\s+{_SELF}\s+(?:called|titled|entitled|named)\W*$"),
    (TITLE, rf"^\W*(?:what|which)\s+{_THING}\s+(?:is|am)\s+(?:this|it|i\s+reading)\W*$"),
    (AUTHOR, rf"\bwho\s+(?:wrote|authored|composed|has\s+written)\s+{_SELF}\W*$"),
    (AUTHOR, rf"\bby\s+whom\s+(?:is|was|were)\s+{_SELF}\s+(?:written|authored|composed)\W*$"),
    (AUTHOR, rf"\bwho\s+(?:is|was)\s+{_SELF}\s+(?:(?:written|authored)\s+)?by\W*$"),
    (AUTHOR, rf"(?:{_WHO}|^\W*(?:the\s+)?|\bnames?\s+of\s+the\s+)(?:author|writer)s?{_OF_SELF}"),
    (AUTHOR, r"\b(?:author|writer)(?:'s|s')?\s+names?\W*$"),
    (AUTHOR, rf"\b{_SELF}'s\s+(?:author|writer)s?\W*$"),
    (
        PUBLISHER,
        rf"\b(?:who|(?:what|which)\s+(?:\w+\s+)?(?:publisher|company|organi[sz]ation|agency|institut\w+|"
        rf"press|house|body))\s+(?:published|issued|printed|released|(?:put|brought)\s+out)\s+"
        rf"{_SELF}\W*$",
    ),
    (PUBLISHER, rf"\bby\s+whom\s+(?:is|was)\s+{_SELF}\s+(?:published|issued|printed|released)\W*$"),
    (PUBLISHER, rf"(?:{_WHO}|^\W*(?:the\s+)?|\bname\s+of\s+the\s+)publishers?{_OF_SELF}"),
    (
        DATE,
        rf"^\W*(?:when|(?:(?:in|on)\s+)?(?:what|which)\s+(?:year|date|day|month))\s+(?:is|was|were|did)\s+{_SELF}\s+"
        rf"(?:first\s+|originally\s+)?(?:{_MADE}|come\s+out|appear|from|dated)(?:\s+in)?\W*$",
    ),
    (
        FRONT,
        rf"^\W*(?:where|(?:in\s+)?(?:what|which)\s+(?:place|city|country|journal|magazine|"
        rf"conference|language))\s+(?:is|was|were|did)\s+{_SELF}\s+(?:first\s+|originally\s+)?"
        rf"(?:{_MADE}|come\s+out|appear)(?:\s+in)?\W*$",
    ),
    (DATE, rf"\b(?:(?:date|year)\s+of\s+publication|publication\s+(?:date|year)){_OF_SELF}"),
    (DATE, rf"\b(?:date|copyright)\s+(?:of|on|for)\s+{_SELF}\W*$|\bhow\s+old\s+is\s+{_SELF}\W*$"),
    (FRONT, rf"\b(?:edition|version|isbn|issn|doi)\s+(?:of|on|for)\s+{_SELF}\W*$"),
    (FRONT, rf"\bwho\s+(?:translated|edited|illustrated|commissioned)\s+{_SELF}\W*$"),
    (FRONT, rf"{_WHO}(?:translator|editor|illustrator)s?{_OF_SELF}"),
    (FRONT, rf"^\W*(?:what|which)\s+(?:edition|version)\s+(?:of\s+{_THING}\s+)?is\s+{_SELF}\W*$"),
)
_KINDS = tuple((kind, re.compile(form, re.IGNORECASE)) for kind, form in (*_FORMS, *_IMPRINTS))
_NUMBER = r"(\d{1,4}(?:\.\d{1,2}){0,3}|[ivxlc]{1,8}|[a-h](?=\W*$))"
_PART = re.compile(
    rf"\b(?:on|in|of|from|at|summari[sz]e|does|is|about|for|read|explain|describe|and|^)\s+"
    rf"(page|p\.|printed\s+page|sheet|chapter|section|part|book|letter|appendix|federalist\s+no\.?)\s*{_NUMBER}\b",
    re.IGNORECASE,
)
_OF_SUMMARIES = re.compile(
    r"summari[sz]e[sd]?|summary|sum|up|overview|gist|outline|happen(?:s|ed|ing)?|sa(?:y|ys|id)|"
    r"state[sd]?|describe[sd]?|explain(?:s|ed)?|discuss(?:es|ed)?|cover(?:s|ed)?|deals?|tells?|"
    r"give|contents?|contains?|main|key|points?|ideas?|topics?|subjects?|written|short|brief(?:ly)?|"
    r"please|document|book|paper|text|read|just|page|words"
)


PAGE_KINDS = ("page", "printed page", "sheet")
"""Kinds of parts that are pages: by label, by the number printed on them, by place in the file."""


@dataclass(frozen=True)
class Part:
    """A part that a question names. kind: "page", "chapter", ... number: as the question has it."""

    kind: str
    number: str


def kind_of(question: str, *, follows: bool = False) -> str:
    """How a question is about the whole, "" where it is not.

    follows: it follows another one, so that "Who wrote it?" asks for something said before.
    """
    plain = " ".join(question.replace("’", "'").split())
    kind = next((kind for kind, form in _KINDS if form.search(plain)), "")
    said_before = follows and kind in IMPRINT and re.search(r"\b(?:it|its|that)\b", plain, re.I)
    return "" if said_before else kind


def part_of(question: str) -> Part | None:
    """The page, chapter or section that a question is about, if it names one."""
    found = _PART.search(question)
    if found is None:
        return None
    kind = " ".join(found[1].lower().split())
    kind = {"p.": "page"}.get(kind, kind)
    return Part(kind, found[2])


def topic_of(question: str) -> list[str]:
    """What a question about a named part asks for in it: its content words but for those that name
    the part and those that any summary is asked with; none where it wants the part as a whole."""
    words = content_words(_PART.sub(" ", question))
    return [word for word in words if not _OF_SUMMARIES.fullmatch(word)]


def invents_figures(answer: str, front: str) -> bool:
    """Whether an answer from the first pages has a figure that they lack: a small model that finds
    no date there, or no day, makes one up, and the words around it are theirs."""
    said, known = (set(map(int, re.findall(r"\d+", text))) for text in (answer, front))
    return not said <= known
