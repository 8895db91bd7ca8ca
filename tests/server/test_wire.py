"""The OpenAI protocol as records: what is read of a request, what an answer becomes."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.types import Answer, AskOptions, Citation, MemoryUse, Turn, Usage
from sekv_cli.server import wire

NAMES = ["book", "law"]
DEFAULTS = AskOptions(budget="12%", max_new_tokens=50)

ANSWER = Answer(
    question="Who?",
    answer="Ana",
    citations=(Citation("book.pdf", "6", 10, 13, "Ana", 0.8),),
    usage=Usage(300, 0, 12, 2),
    memory=MemoryUse(100, 1000, 4, 20, 0),
    timing={"total_s": 0.5},
    stats={"windows": 2, "cut_short": False},
)


def said(*messages: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in messages]


def parsed(**body: Any) -> wire.Request:
    whole = {"model": "book", "messages": said(("user", "Who?")), **body}
    return wire.parse(json.loads(json.dumps(whole)), NAMES, DEFAULTS, 100)


def test_a_plain_request_takes_what_the_server_was_started_with() -> None:
    asked = parsed()
    assert (asked.store, asked.question, asked.turns) == ("book", "Who?", ())
    assert asked.options == DEFAULTS
    assert not asked.stream


def test_every_field_of_a_request_counts() -> None:
    own = {"budget": "5%", "coverage": 0.5, "full": True, "widen": 2, "trace": True}
    asked = parsed(
        model="law", max_completion_tokens=7, temperature=0.5, top_p=0.9, seed=3, sekv=own,
        stream=True, stream_options={"include_usage": True}, n=1, tools=[], stop=None,
    )  # fmt: skip
    assert asked.store == "law"
    assert asked.options == AskOptions(
        budget="5%", coverage=0.5, full=True, widen=2.0, max_new_tokens=7, temperature=0.5,
        top_p=0.9, seed=3, trace=True,
    )  # fmt: skip
    assert asked.stream
    assert asked.with_usage


def test_no_request_gets_a_longer_answer_than_allowed() -> None:
    assert parsed(max_tokens=10**9).options.max_new_tokens == 100


def test_earlier_messages_are_turns_and_system_messages_are_told_apart() -> None:
    asked = parsed(
        messages=said(
            ("system", "Be brief."),
            ("user", "Who?"),
            ("assistant", "Ana."),
            ("user", "When?"),
            ("user", [{"type": "text", "text": "And "}, {"type": "text", "text": "why?"}]),
        )
    )
    assert asked.turns == (Turn("Who?", "Ana."),)
    assert asked.question == "When?\nAnd why?"
    assert asked.ignored == ("system",)


REFUSED = [
    ({"model": "other"}, 404, "there are book, law"),
    ({"model": None}, 404, "no model"),
    ({"messages": []}, 400, "messages"),
    ({"messages": "Who?"}, 400, "messages"),
    ({"messages": said(("tool", "x"))}, 400, "role"),
    ({"messages": ["Who?"]}, 400, "role"),
    ({"messages": said(("user", " "))}, 400, "last message"),
    ({"messages": said(("user", "a"), ("assistant", "b"))}, 400, "last message"),
    ({"messages": said(("user", [{"type": "image_url"}]))}, 400, "must be text"),
    ({"messages": said(("user", None))}, 400, "must be text"),
    ({"n": 2}, 400, "n is not"),
    ({"tools": [{}]}, 400, "tools is not"),
    ({"response_format": {"type": "json_object"}}, 400, "response_format"),
    ({"max_tokens": "9"}, 400, "max_tokens"),
    ({"max_tokens": True}, 400, "max_tokens"),
    ({"temperature": "hot"}, 400, "temperature"),
    ({"sekv": {"colour": 1}}, 400, "colour"),
    ({"sekv": {"budget": 5}}, 400, "budget"),
    ({"stream": 1}, 400, "stream"),
]


def test_what_cannot_be_answered_is_refused_with_a_reason(subtests: pytest.Subtests) -> None:
    for body, status, reason in REFUSED:
        with subtests.test(body=body):
            with pytest.raises(wire.RefusedError, match=reason) as caught:
                parsed(**body)
            assert caught.value.status == status


values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
fields = st.sampled_from(
    ["model", "messages", "sekv", "stream", "stream_options", "max_tokens", "temperature", "seed"]
)


@settings(max_examples=150)
@given(body=st.dictionaries(fields, values) | values)
def test_whatever_arrives_is_a_request_or_refused(body: Any) -> None:
    with contextlib.suppress(wire.RefusedError):
        assert wire.parse(body, NAMES, DEFAULTS, 100).store in NAMES


def test_a_request_of_our_own_is_read_back_as_it_was() -> None:
    turns = (Turn("Who?", "Ana."), Turn("When?", "Then."))
    options = AskOptions(budget="7%", coverage=0.75, max_new_tokens=9, temperature=0.25, trace=True)
    body = json.loads(json.dumps(wire.request("law", "Why?", turns, options)))
    asked = wire.parse(body, NAMES, DEFAULTS, 100)
    assert (asked.store, asked.question, asked.turns) == ("law", "Why?", turns)
    assert asked.options == options
    assert asked.stream


def test_an_answer_s_document_is_cached_prompt_and_its_citations_stand_beside() -> None:
    made = json.loads(json.dumps(wire.completion("id", 1, parsed(), ANSWER, {})))
    assert made["choices"][0]["message"]["content"] == "Ana"
    assert made["choices"][0]["finish_reason"] == "stop"
    assert made["usage"] == {
        "prompt_tokens": 312,
        "completion_tokens": 2,
        "total_tokens": 314,
        "prompt_tokens_details": {"cached_tokens": 300},
    }
    assert made["sekv"]["citations"][0]["text"] == "Ana"
    own = made["sekv"]
    own.pop("ignored")
    assert Answer.from_json(own) == ANSWER


def test_an_answer_without_support_is_told_as_none_and_kept_beside() -> None:
    answer = replace(ANSWER, supported=False, support=0.2)
    completed = wire.completion("n", 1, parsed(), answer, {})
    assert completed["choices"][0]["message"]["content"] == "not stated in the document"
    assert completed["choices"][0]["finish_reason"] == "stop"
    own = completed["sekv"]
    assert (own["answer"], own["supported"], own["support"]) == ("Ana", False, 0.2)


def test_a_cut_answer_says_so_and_nothing_of_the_document() -> None:
    answer = replace(ANSWER, stats={"cut_short": True})
    completed = wire.completion("n", 1, parsed(), answer, {})
    assert completed["choices"][0]["finish_reason"] == "length"
    assert completed["choices"][0]["message"]["content"] == "Ana"
    assert answer.shown == "Ana (cut short)"
    assert replace(answer, answer="").shown == "(cut short)"


def test_an_answer_survives_the_wire_with_all_it_has() -> None:
    answer = replace(ANSWER, supported=False, support=0.2, thinking="Hm.")
    assert Answer.from_json(json.loads(json.dumps(answer.to_json()))) == answer
