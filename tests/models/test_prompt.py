"""Prompts: split around the document so that the halves are the whole."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import ReaderError
from engine.models.prompt import DOCUMENT, LEAD, PLAIN_CUE, QUESTION, TASK, Prompt
from engine.types import Turn
from tiny_models import CHAT, tokenizer

ROLES = (
    "{% for m in messages %}{% if m['role'] == 'document' %}<|begin|><|system|>{{ m['content'] }}"
    "{% else %}<|user|>{{ m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

texts = st.text(max_size=20).filter(lambda text: "\x02" not in text)


def templated(template: str) -> Any:
    made = tokenizer()
    made.chat_template = template
    return made


def whole(made: Any, prompt: Prompt, document: str, question: str) -> list[int]:
    """The prompt as the memory sees it: prefix, document tokens, everything after."""
    plain = made.encode(document, add_special_tokens=False, split_special_tokens=True)
    return [*prompt.prefix, *plain, *prompt.question(made, question)]


@settings(max_examples=30)
@given(document=texts, question=texts)
def test_a_chat_prompt_is_what_the_template_makes_of_the_whole(
    document: str, question: str
) -> None:
    made = tokenizer(chat=True)
    prompt = Prompt.of(made)
    assert prompt.kind == "chat"
    messages = [
        {"role": "system", "content": TASK},
        {"role": "user", "content": f"{document}\n\nQuestion: {question}"},
    ]
    text = made.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) + LEAD
    assert whole(made, prompt, document, question) == made.encode(text, add_special_tokens=False)
    assert prompt.prefix[0] == made.bos_token_id


@settings(max_examples=30)
@given(document=texts, question=texts)
def test_a_document_prompt_gives_the_document_its_own_role(document: str, question: str) -> None:
    made = templated(ROLES)
    prompt = Prompt.of(made)
    assert prompt.kind == "document"
    text = made.apply_chat_template(
        [{"role": "document", "content": document}, {"role": "user", "content": question}],
        tokenize=False,
        add_generation_prompt=True,
    )
    ids = made.encode(text + LEAD, add_special_tokens=False)
    assert whole(made, prompt, document, question) == ids
    assert len(prompt.prefix) == 2


def test_without_a_template_the_prompt_is_plain() -> None:
    made = tokenizer()
    prompt = Prompt.of(made)
    assert prompt.kind == "plain"
    assert prompt.prefix == (made.bos_token_id,)
    asked = prompt.question(made, "Who?")
    assert made.decode(asked) == f"\n\nQuestion: Who?{PLAIN_CUE}"
    assert prompt.stops == ("\nQuestion:",)


def test_without_a_first_token_a_line_break_is_the_first() -> None:
    made = tokenizer()
    made.bos_token = None
    assert Prompt.of(made).prefix == tuple(made.encode("\n", add_special_tokens=False))


def test_marks_in_a_question_stay_text() -> None:
    """A question cannot end its own turn, nor can it be the document."""
    for made in (tokenizer(), tokenizer(chat=True), templated(ROLES)):
        prompt = Prompt.of(made)
        calm = prompt.question(made, "")
        for mark in ("<|end|>", "<|assistant|>", DOCUMENT, QUESTION):
            ids = prompt.question(made, mark)
            assert len(ids) == len(calm) + len(mark)
            specials = {i for i in ids if i >= 256}
            assert specials == {i for i in calm if i >= 256}


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m['role'] }}{% endfor %}",
        "{% for m in messages %}{{ m['content'] }}{{ m['content'] }}{% endfor %}",
        "{{ messages[0]['content'][:50] }}",
        "{% for word in messages[0]['content'].split()|reverse %}{{ word }} {% endfor %}",
    ],
)
def test_a_template_that_drops_repeats_or_moves_the_document_is_refused(template: str) -> None:
    with pytest.raises(ReaderError, match="drops, repeats or moves the document"):
        Prompt.of(templated(template))


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages|reverse %}{# 'document' #}{{ m['content'] }}{% endfor %}",
        "{% for m in messages if m['role'] != 'document' %}{{ m['content'] }}{% endfor %}",
        "{% if messages[0]['role'] == 'document' %}{{ raise_exception('no') }}{% endif %}"
        "{{ messages[0]['content'] }}",
    ],
)
def test_a_template_that_only_mentions_documents_is_a_chat_template(template: str) -> None:
    prompt = Prompt.of(templated(template))
    assert prompt.kind == "chat"
    assert prompt.before == "\n\nQuestion: "


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('only system prompts') }}",
        "{% for m in messages %}",
        "{{ messages[7]['content'] }}",
        "{{ 1 + messages }}",
    ],
)
def test_a_template_that_cannot_be_rendered_is_one_line(template: str) -> None:
    with pytest.raises(ReaderError, match=r"cannot be rendered|drops, repeats") as caught:
        Prompt.of(templated(template))
    assert "\n" not in str(caught.value)


def test_a_manifest_records_how_the_question_follows() -> None:
    prompt = Prompt.of(tokenizer(chat=True))
    assert prompt.to_json() == {
        "prefix": list(prompt.prefix),
        "before": "\n\nQuestion: ",
        "after": f"<|assistant|>{LEAD}",
        "kind": "chat",
    }
    assert CHAT


def test_a_conversation_is_what_the_template_makes_of_it() -> None:
    """Earlier turns stand between document and question as a chat of that model has them."""
    made = tokenizer(chat=True)
    prompt = Prompt.of(made)
    turns = [Turn("a?", "b"), Turn("c?", "d")]
    said = ["text\n\nQuestion: a?", f"{LEAD} b", "c?", f"{LEAD} d", "e?"]
    messages = [{"role": "system", "content": TASK}] + [
        {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)
    ]
    text = made.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) + LEAD
    plain = made.encode("text", add_special_tokens=False)
    found = [*prompt.prefix, *plain, *prompt.question(made, "e?", turns)]
    assert found == made.encode(text, add_special_tokens=False)


def test_without_a_template_a_conversation_is_questions_and_answers() -> None:
    made = tokenizer()
    prompt = Prompt.of(made)
    ids = prompt.question(made, "c?", [Turn("a?", "b")])
    assert made.decode(ids) == (f"\n\nQuestion: a?{PLAIN_CUE} b\n\nQuestion: c?{PLAIN_CUE}")


def test_a_prompt_for_one_question_has_nothing_between_answers() -> None:
    assert Prompt.of(templated(ROLES)).between == ""
    once = "{{ messages[0]['content'] }}{% if messages|length > 1 %}{{ raise() }}{% endif %}"
    assert Prompt.of(templated(once)).between == ""


# ---------------------------------------------------------------------------- templates as they are

MISTRAL = (
    "<|begin|>{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ raise_exception('Only user and assistant roles are supported!') }}"
    "{% elif m['role'] == 'user' %}<|user|> {{ m['content'] }} <|system|>"
    "{% else %} {{ m['content'] }}<|end|>{% endif %}{% endfor %}"
)
"""No system role and no generation prompt; an answer ends with a special token."""

SILENT = (
    "{% for m in messages if m['role'] != 'system' %}<|{{ m['role'] }}|>{{ m['content'] }}"
    "{% endfor %}<|assistant|>"
)
"""System messages are left out without a word."""

QWEN3 = (
    "{% for m in messages %}<|begin|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|begin|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)

ALWAYS = (
    "{% for m in messages %}<|begin|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|begin|>assistant\n<think>\n{% endif %}"
)
"""A reasoning model that cannot be asked not to think."""

DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|begin|>system\nYou are Max.<|end|>\n{% endif %}"
    + QWEN3
)


@pytest.mark.parametrize("template", [MISTRAL, SILENT])
def test_without_a_system_role_the_task_stands_before_the_document(template: str) -> None:
    made = templated(template)
    prompt = Prompt.of(made)
    assert made.decode(list(prompt.prefix)).endswith(f"{TASK}\n\n")
    assert prompt.before == "\n\nQuestion: "


def test_our_system_message_takes_the_place_of_the_template_s_own() -> None:
    made = templated(DEFAULT_SYSTEM)
    decoded = made.decode(list(Prompt.of(made).prefix))
    assert decoded == f"<|begin|>system\n{TASK}<|end|>\n<|begin|>user\n"


def test_a_model_that_can_answer_without_thinking_does() -> None:
    prompt = Prompt.of(templated(QWEN3))
    assert prompt.after == f"<|end|>\n<|begin|>assistant\n<think>\n\n</think>\n\n{LEAD}"
    assert prompt.reply == f"<|end|>\n<|begin|>assistant\n{LEAD}"
    assert not prompt.thinks


def test_a_model_that_thinks_first_is_given_no_lead() -> None:
    made = templated(ALWAYS)
    prompt = Prompt.of(made)
    assert prompt.thinks
    assert prompt.after.endswith("<think>\n")
    earlier = prompt.question(made, "c?", [Turn("a?", "b")])
    assert "<think>\nb" not in made.decode(earlier)


@pytest.mark.parametrize(
    ("template", "end"), [(CHAT, "<|user|>"), (MISTRAL, "<|end|>"), (QWEN3, "<|end|>")]
)
def test_an_answer_ends_with_what_the_template_puts_behind_it(template: str, end: str) -> None:
    made = templated(template)
    assert Prompt.of(made).ends == (made.convert_tokens_to_ids(end),)


def test_text_behind_an_answer_is_no_end() -> None:
    """Only a special token is one: the letters of a text also stand in answers."""
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    assert Prompt.of(templated(template)).ends == ()
