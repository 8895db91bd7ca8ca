"""What people see of an answer: its support, its passages, what it cost; conversations to keep."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING

from engine.documents.line_ends import flat
from sekv_cli import names
from sekv_cli.format import (
    bytes_text,
    clean,
    count_text,
    facts,
    is_unicode,
    seconds_text,
    share_text,
    some,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console

    from engine.types import Answer, Citation, WindowRead

QUOTED = 320
"""Characters of a passage that a terminal shows; a pipe gets all of it."""


def print_question(out: Console, question: str) -> None:
    """Which question comes now, when there are several."""
    out.print(clean(question), style="bold")


def support_text(answer: Answer) -> str:
    """In words how far to trust it, right behind its end; "" where there is nothing to say: it is
    a fact of the store, which no model made."""
    from engine.types import CUT_SHORT, UNSUPPORTED

    if not answer.supported:
        return UNSUPPORTED
    carried = _carried(answer)
    if answer.cut_short:
        return f"{CUT_SHORT}\n{carried}".rstrip()
    return carried


def _carried(answer: Answer) -> str:
    """How far the passages carry what a model said; "" where there are none."""
    if not answer.citations or not answer.usage.answer_tokens:
        return ""
    if not answer.stats.get("judged", True):
        return "(made from some passages; whether they support it is not judged)"
    those = "the passage" if len(answer.citations) == 1 else "the passages"
    return f"({those} may support it: {answer.support:.2f} of 1)"


def print_citations(
    out: Console, citations: Sequence[Citation], sources: Sequence[str] = ()
) -> None:
    """Where the answer was read: page, source, and the words themselves.

    A terminal shows the beginning of a long passage; a pipe gets each passage whole, on one line.

    sources: the paths of all sources of the store, which are told apart by name.
    """
    from rich.padding import Padding
    from rich.text import Text

    called = names.shortest([*sources, *(citation.source for citation in citations)])
    for number, citation in enumerate(citations, 1):
        head = Text("  ")
        head.append(f"[{number}] ", style="cyan")
        head.append(clean(place(citation, _document(citation, called))))
        out.print(head)
        words = clean(flat(citation.text))
        shown = _shortened(words) if out.is_terminal else words
        quoted = _quoted(shown, unicode=is_unicode(out))
        out.print(Padding(Text(quoted), (0, 0, 0, 6), expand=False))


def print_around(out: Console, before: str, passage: str, after: str) -> None:
    """A passage in its place: bold, or in brackets where there is no colour."""
    from rich.text import Text

    painted = out.color_system is not None and not out.no_color
    line = Text(clean(before).lstrip())
    line.append(clean(passage) if painted else f"[{clean(passage)}]", style="bold")
    line.append(clean(after).rstrip())
    out.print(line)


def print_commands(out: Console, commands: Iterable[tuple[str, str]]) -> None:
    """What can be typed, and what it does."""
    out.print(facts(commands))


def conversation(store: str, answers: Sequence[Answer], sources: Sequence[str] = ()) -> str:
    """Questions, answers and their passages as Markdown; sources as in `print_citations`."""
    cited = (citation.source for answer in answers for citation in answer.citations)
    called = names.shortest([*sources, *cited])
    parts = [f"# {PurePath(store).name}\n"]
    for answer in answers:
        parts.append(f"## {clean(answer.question)}\n\n{clean(answer.shown)}\n")
        for number, citation in enumerate(answer.citations, 1):
            words = clean(flat(citation.text))
            name = clean(place(citation, _document(citation, called)))
            parts.append(f"{number}. {name}:\n   > {words}\n")
    return "\n".join(parts)


def _document(citation: Citation, called: Mapping[str, str]) -> str:
    """What the document of a passage is called: by its source; in a library by its store, which has
    the name of the one document that it was made of, without that one's ending."""
    if not citation.store:
        return called[citation.source]
    store, source = PurePath(citation.store.removesuffix(".sekv")), PurePath(citation.source)
    return str(store.with_name(source.name) if store.name == source.stem else store)


def place(citation: Citation, name: str) -> str:
    """Page first: "p. 12, book.pdf"; "Chapter 2, notes.md"; without a page the name alone."""
    page = names.page(citation.page, citation.sheet, citation.printed)
    return f"{page}, {name}" if page else name


def _shortened(words: str) -> str:
    """The beginning of a long passage, cut at a word."""
    if len(words) <= QUOTED:
        return words
    return f"{words[:QUOTED].rpartition(' ')[0] or words[:QUOTED]} …"


def _quoted(words: str, *, unicode: bool) -> str:
    """In quotation marks, unless the passage brings its own."""
    own = "\"'“”‘’«»„"
    if words[:1] in own or words[-1:] in own:
        return words
    return words.join("“”" if unicode else '""')


def windows_text(retrieval: Sequence[WindowRead]) -> str:
    """The windows that were chosen and by what: "12 (p. 5, words 14.2), 40 (words 9.7)"; "" where
    none was chosen, because all were seen."""
    parts = []
    for each in retrieval:
        why = [clean(names.page(each.page))] if each.page else []
        why += [f"words {each.lexical:.1f}"] if each.lexical is not None else []
        why += [f"votes {each.attention:.1f}"] if each.attention is not None else []
        why += ["read now"] if each.read_now else []
        if each.lexical is not None or each.attention is not None:
            parts.append(f"{each.window} ({', '.join(why)})")
    return ", ".join(parts)


def print_stats(out: Console, answer: Answer, *, everything: bool = False) -> None:
    """What an answer cost, in five lines; and whatever else was counted, where that is wanted."""
    out.print(facts([*_five(answer), *(_others(answer) if everything else ())]))


def _five(answer: Answer) -> list[tuple[str, str]]:
    """What was read, held, waited for, made in which time, and looked at."""
    usage, memory, timing = answer.usage, answer.memory, answer.timing
    before = timing.get("model_load_s", 0.0) + timing.get("store_open_s", 0.0)
    wait = f"; before it {seconds_text(before)} to load libraries, model and store"
    again = count_text(usage.recomputed_document_tokens)
    total = count_text(usage.document_tokens)
    new = sum(window.read_now for window in answer.retrieval)
    first = f"{some(new, 'window')} for the first time; {again} of {total} tokens a second time"
    share = share_text(memory.device_kv_bytes, memory.full_kv_bytes)
    return [
        ("read", first) if new else ("read again", f"{again} of the document's {total} tokens"),
        (
            "memory",
            f"{bytes_text(memory.device_kv_bytes)} for the document, "
            f"{share} of its full cache's {bytes_text(memory.full_kv_bytes)}",
        ),
        (
            "first token",
            f"after {seconds_text(timing.get('first_token_s', 0.0))}"
            f"{wait if before >= 0.01 else ''}",
        ),
        (
            "speed",
            f"{timing.get('tokens_per_s', 0.0):.1f} tokens/s, {some(usage.answer_tokens, 'token')}",
        ),
        ("windows", _windows(answer)),
    ]


def _windows(answer: Answer) -> str:
    """How many windows the question saw, and where they begin."""
    total = answer.stats.get("windows", len(answer.retrieval))
    seen = len(answer.retrieval) or total
    pages = [names.page(window.page) for window in answer.retrieval if window.page]
    where = f", which begin at {', '.join(clean(page) for page in pages)}" if pages else ""
    return f"{count_text(seen)} of {count_text(total)} seen{where if seen <= 4 else ''}"


def _others(answer: Answer) -> list[tuple[str, str]]:
    """Everything else that was counted, for who compares methods and budgets."""
    usage, memory = answer.usage, answer.memory
    # Only a GPU counts its peak; elsewhere there is nothing to say.
    peak = bytes_text(memory.peak_device_bytes) if memory.peak_device_bytes else ""
    return [
        ("question", some(usage.question_tokens, "token")),
        ("working memory", f"{bytes_text(memory.working_bytes)} beside the document's"),
        ("device peak", peak),
        ("budget", f"worth {some(memory.budget_tokens, 'token')} of the document"),
        ("zoom", f"{count_text(memory.zoomed_spans)} of {some(memory.total_spans, 'span')}"),
        ("chosen windows", windows_text(answer.retrieval)),
        ("time", _timing(answer.timing)),
        *((name.replace("_", " "), _plain(name, value)) for name, value in answer.stats.items()),
    ]


def _timing(timing: Mapping[str, float]) -> str:
    parts = [
        f"{name.removesuffix('_s').replace('_', ' ')} {seconds_text(value)}"
        for name, value in timing.items()
        if name.endswith("_s") and name != "tokens_per_s"
    ]
    if "tokens_per_s" in timing:
        parts.append(f"{timing['tokens_per_s']:.1f} tokens/s")
    return ", ".join(parts)


def _plain(name: str, value: object) -> str:
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int) and name.endswith("bytes"):
        return bytes_text(value)
    if isinstance(value, int):
        return count_text(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(key, part)}" for key, part in value.items())
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value)
