"""How a document and a question become one prompt, split around the document.

Before the document stands the prefix, read once with it; after it the question and the cue to
answer. Templates are rendered with markers and cut; models without a template get plain text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from engine.errors import ReaderError
from engine.types import Turn

DOCUMENT, QUESTION, ANSWER = "\x02document\x02", "\x02question\x02", "\x02answer\x02"

TASK = "Answer the question with a few words copied from the document."
"""The system message, or the first line of the user's where a template has no such role."""

ASK = "\n\nQuestion: "
"""Between document and question."""

LEAD = "According to the document,"
"""How a chat model's answer begins; it is read with the question and no part of what is shown.
A small model that goes on from here keeps to the document more often (docs/results.md)."""

STOP = "\nQuestion:"
"""What small models go on with once they have answered."""

PLAIN_CUE = "\nAnswer (a few words copied from the document):"
"""Behind the question, for models without a template."""

THINKING = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))
"""How reasoning models mark what they say to themselves before they answer."""


@dataclass(frozen=True)
class Prompt:
    """prefix: token ids before the document. before, after: text around the question.

    kind: "document" (template with a role of that name), "chat" or "plain".
    between: text between an answer and the next question of a conversation, "" for prompts that
    hold one question only. reply: what stands between an earlier question and its answer; a
    reasoning model's `after` may hold marks that earlier answers do not have.
    ends: token ids that end an answer by the template, beside the model's own. stops: texts that
    end one and are no part of it.
    """

    prefix: tuple[int, ...]
    before: str
    after: str
    kind: str
    between: str = ""
    reply: str = ""
    ends: tuple[int, ...] = ()
    stops: tuple[str, ...] = ()

    @classmethod
    def of(cls, tokenizer: Any) -> Prompt:
        """The prompt of a tokenizer.

        Raises:
            ReaderError: its chat template drops or reorders the document.
        """
        template = tokenizer.chat_template
        if not template:
            start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
            if not start:
                start = tokenizer.encode("\n", add_special_tokens=False)
            return cls(tuple(start), ASK, PLAIN_CUE, "plain", ASK, PLAIN_CUE, (), (STOP,))
        kind, pieces = _render(tokenizer, str(template))
        prefix = tuple(tokenizer.encode(pieces[0], add_special_tokens=False))
        reply, between = _turns(tokenizer)
        after, reply = _led(pieces[2]), _led(reply or pieces[2])
        between = between if kind == "chat" else ""
        ends = _ends(tokenizer, between)
        stops = (STOP,) if kind == "chat" else ()
        return cls(prefix, pieces[1], after, kind, between, reply, ends, stops)

    @property
    def thinks(self) -> bool:
        """Whether an answer begins inside a thinking block that the prompt has opened."""
        return _opens_thinking(self.after)

    def question(
        self, tokenizer: Any, text: str, turns: Sequence[Turn] = (), *, first: bool = True
    ) -> list[int]:
        """Token ids of everything after the document; special-token text stays plain text.

        turns: earlier questions and answers that stand before this one; none where `between` is
        empty. first: whether nothing of the conversation stands before them.
        """
        ids: list[int] = []
        for turn in turns:
            ids += self.turn(tokenizer, turn, first=first)
            first = False
        return [*ids, *self._asked(tokenizer, text, self.after, first=first)]

    def turn(self, tokenizer: Any, turn: Turn, *, first: bool) -> list[int]:
        """Token ids of an earlier question and its answer; first: of the conversation's first."""
        led = self.kind == "plain" or self.reply.endswith(LEAD)
        answer = f" {turn.answer}" if led else turn.answer
        asked = self._asked(tokenizer, turn.question, self.reply or self.after, first=first)
        return [*asked, *_plain(tokenizer, answer)]

    def _asked(self, tokenizer: Any, text: str, after: str, *, first: bool) -> list[int]:
        before = self.before if first else self.between
        return [
            *tokenizer.encode(before, add_special_tokens=False),
            *_plain(tokenizer, text),
            *tokenizer.encode(after, add_special_tokens=False),
        ]

    def to_json(self) -> dict[str, Any]:
        """What a manifest records."""
        return {
            "prefix": list(self.prefix),
            "before": self.before,
            "after": self.after,
            "kind": self.kind,
        }


def _plain(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text in which no mark of the prompt is one."""
    return list(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))


def _opens_thinking(after: str) -> bool:
    return after.rstrip().endswith(tuple(opening for opening, _ in THINKING))


def _led(after: str) -> str:
    """What stands before an answer, with the lead; a model that thinks first begins by itself."""
    return after if _opens_thinking(after) else after + LEAD


def _render(tokenizer: Any, template: str) -> tuple[str, list[str]]:
    """The kind of a prompt, and its text around the document and the question.

    A template that names a role "document" gets the document in it, where it renders that role;
    one that only mentions the word is a chat template like any other. The task is the system
    message where the template shows one before the document; some refuse that role, some leave
    such messages out.
    """
    if re.search(r"['\"]document['\"]", template):
        roles = [
            {"role": "document", "content": DOCUMENT},
            {"role": "user", "content": QUESTION},
        ]
        with suppress(ReaderError):
            return "document", _pieces(tokenizer, roles)
    content = f"{DOCUMENT}{ASK}{QUESTION}"
    with suppress(ReaderError):
        system = {"role": "system", "content": TASK}
        pieces = _pieces(tokenizer, [system, {"role": "user", "content": content}])
        if TASK in pieces[0]:
            return "chat", pieces
    return "chat", _pieces(tokenizer, [{"role": "user", "content": f"{TASK}\n\n{content}"}])


def _pieces(tokenizer: Any, messages: list[dict[str, str]]) -> list[str]:
    """What a template puts before, between and behind document and question."""
    try:
        text = _applied(tokenizer, messages)
    except (TemplateError, ValueError, TypeError) as error:
        raise ReaderError(f"the model's chat template cannot be rendered: {error}") from error
    pieces = re.split(f"{DOCUMENT}|{QUESTION}", text)
    if len(pieces) != 3 or text.find(DOCUMENT) > text.find(QUESTION):
        raise ReaderError(
            "the model's chat template drops, repeats or moves the document; use another model"
        )
    return pieces


def _turns(tokenizer: Any) -> tuple[str, str]:
    """What a chat template puts between a question and its answer, and between that answer and the
    next question; "" and "" if it takes no conversation."""
    messages = [
        {"role": "user", "content": DOCUMENT},
        {"role": "assistant", "content": ANSWER},
        {"role": "user", "content": QUESTION},
    ]
    try:
        text = _applied(tokenizer, messages)
    except (TemplateError, ValueError, TypeError):
        return "", ""
    pieces = re.split(f"{DOCUMENT}|{ANSWER}|{QUESTION}", text)
    return (pieces[1], pieces[2]) if len(pieces) == 4 else ("", "")


def _applied(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    """A rendered template, asked for answers without thinking where it offers a choice."""
    return str(
        tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
    )


def _ends(tokenizer: Any, between: str) -> tuple[int, ...]:
    """The special token that ends an answer in a conversation, if the template has one."""
    ids = tokenizer.encode(between.strip(), add_special_tokens=False)[:1]
    marks = set(tokenizer.all_special_ids)
    marks |= {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return tuple(id for id in ids if id in marks)
