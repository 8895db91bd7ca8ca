"""The reader's vocabulary: byte-level BPE of 4096 with single digits, and its prompt.

Not a download: it is trained here on the training books and on generated facts. The
split pattern is one that tiktoken accepts, so the same ranks can be loaded there.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

if TYPE_CHECKING:
    from collections.abc import Iterable

BOS = "<|endoftext|>"
DOCUMENT = "<|document|>"
QUESTION = "<|question|>"
ANSWER = "<|answer|>"
VALUE = "<|value|>"
END = "<|end|>"
PAD = "<|pad|>"
SPECIALS = (BOS, DOCUMENT, QUESTION, ANSWER, VALUE, END, PAD)
NOT_STATED = "not stated"

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHAT_TEMPLATE = (
    "{{- bos_token -}}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}{{- message['content'] -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'document' -%}{{- '<|document|>' + message['content'] -}}"
    "{%- elif message['role'] == 'user' -%}{{- '<|question|> ' + message['content'] -}}"
    "{%- elif message['role'] == 'assistant' -%}"
    "{{- '<|answer|> ' + message['content'] + '<|end|>' -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|answer|>' -}}{%- endif -%}"
)


def train(texts: Iterable[str], size: int = 4096) -> Tokenizer:
    """Learn the merges from `texts`. Ids 0..6 are SPECIALS, in that order."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def wrap(tokenizer: Tokenizer, positions: int = 32768) -> PreTrainedTokenizerFast:
    """Dress the tokenizer for transformers, with the chat template of the reader."""
    wrapped = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[DOCUMENT, QUESTION, ANSWER, VALUE],
        model_max_length=positions,
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def ask(question: str) -> str:
    """A question up to where its answer begins."""
    return f"{QUESTION} {question}{ANSWER}"


def kin(tokenizer: Tokenizer) -> list[int]:
    """Classes of tokens that mean the same at birth.

    Returns:
        of each id its class: 0 for what ends a sentence or a paragraph and the document mark,
        1 for the marks of question and answer, one class
        for the spellings of a word with or without a space, small or capital,
        and one of its own for every other special token.
    """
    texts = tokenizer.get_vocab()
    names = {number: text for text, number in texts.items()}
    classes: dict[str, int] = {}
    found = []
    for number in range(len(names)):
        text = names[number]
        bare = text.replace("Ġ", "").replace("Ċ", "").lower()
        if text == DOCUMENT or (number >= len(SPECIALS) and _ends(text)):
            found.append(0)
        elif text in (QUESTION, ANSWER, VALUE, END):
            found.append(1)
        else:
            found.append(classes.setdefault(bare or text, len(classes) + 2))
    return found


def rarity(tokenizer: Tokenizer, texts: Iterable[str]) -> list[float]:
    """How rare each token is in `texts`: 0 for one in ten tokens, 1 from one in ten thousand."""
    counts = [1.0] * tokenizer.get_vocab_size()
    for text in texts:
        for number in tokenizer.encode(text, add_special_tokens=False).ids:
            counts[number] += 1
    total = sum(counts)
    rare = [min(1.0, max(0.0, (math.log10(total / count) - 1) / 3)) for count in counts]
    return [0.0 if number < len(SPECIALS) else one for number, one in enumerate(rare)]


def _ends(text: str) -> bool:
    bare = text.replace("Ċ", "").replace("Ġ", "")
    # A single line break may stand inside a sentence of wrapped text.
    return not any(c.isalnum() for c in bare) and (
        bare.rstrip("\"')")[-1:] in tuple(".!?") or "ĊĊ" in text or "ĊĠ" in text or text == "Ġ"
    )
