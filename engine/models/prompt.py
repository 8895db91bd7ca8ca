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
TASK = "Answer the question from the document. Quote it where you can."


@dataclass(frozen=True)
class Prompt:
    """prefix: token ids before the document. before, after: text around the question.

    kind: "document" (template with a role of that name), "chat" or "plain".
    between: text between an answer and the next question of a conversation, "" for prompts that
    hold one question only.
    """

    prefix: tuple[int, ...]
    before: str
    after: str
    kind: str
    between: str = ""

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
            ask = "\n\nQuestion: "
            return cls(tuple(start), ask, "\nAnswer:", "plain", between=ask)
        kind, pieces = _render(tokenizer, str(template))
        prefix = tuple(tokenizer.encode(pieces[0], add_special_tokens=False))
        between = _between(tokenizer) if kind == "chat" else ""
        return cls(prefix, pieces[1], pieces[2], kind, between=between)

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
        return [*ids, *self._asked(tokenizer, text, first=first)]

    def turn(self, tokenizer: Any, turn: Turn, *, first: bool) -> list[int]:
        """Token ids of an earlier question and its answer; first: of the conversation's first."""
        answer = f" {turn.answer}" if self.kind == "plain" else turn.answer
        return [*self._asked(tokenizer, turn.question, first=first), *_plain(tokenizer, answer)]

    def _asked(self, tokenizer: Any, text: str, *, first: bool) -> list[int]:
        before = self.before if first else self.between
        return [
            *tokenizer.encode(before, add_special_tokens=False),
            *_plain(tokenizer, text),
            *tokenizer.encode(self.after, add_special_tokens=False),
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


def _render(tokenizer: Any, template: str) -> tuple[str, list[str]]:
    """The kind of a prompt, and its text around the document and the question.

    A template that names a role "document" gets the document in it, where it renders that role;
    one that only mentions the word is a chat template like any other.
    """
    if re.search(r"['\"]document['\"]", template):
        roles = [
            {"role": "document", "content": DOCUMENT},
            {"role": "user", "content": QUESTION},
        ]
        with suppress(ReaderError):
            return "document", _pieces(tokenizer, roles)
    content = f"{TASK}\n\n{DOCUMENT}\n\nQuestion: {QUESTION}"
    return "chat", _pieces(tokenizer, [{"role": "user", "content": content}])


def _pieces(tokenizer: Any, messages: list[dict[str, str]]) -> list[str]:
    """What a template puts before, between and behind document and question."""
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except (TemplateError, ValueError, TypeError) as error:
        raise ReaderError(f"the model's chat template cannot be rendered: {error}") from error
    pieces = re.split(f"{DOCUMENT}|{QUESTION}", text)
    if len(pieces) != 3 or text.find(DOCUMENT) > text.find(QUESTION):
        raise ReaderError("the model's chat template drops, repeats or moves the document")
    return pieces


def _between(tokenizer: Any) -> str:
    """What a chat template puts between an answer and the next question; "" if it takes none."""
    messages = [
        {"role": "user", "content": DOCUMENT},
        {"role": "assistant", "content": ANSWER},
        {"role": "user", "content": QUESTION},
    ]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except (TemplateError, ValueError, TypeError):
        return ""
    pieces = re.split(f"{ANSWER}|{QUESTION}", text)
    return pieces[1] if len(pieces) == 3 else ""
