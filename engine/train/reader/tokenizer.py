"""The reader's vocabulary: byte-level BPE of 4096 with single digits, and its prompt.

Not a download: it is trained here on the training books and on generated facts. The
split pattern is one that tiktoken accepts, so the same ranks can be loaded there.
"""

from __future__ import annotations

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


def render(question: str, quote: str, value: str) -> str:
    """One question with its answer, exactly as the reader must produce it."""
    answer = f"{quote}{VALUE} {value}" if quote else NOT_STATED
    return f"{QUESTION} {question}{ANSWER} {answer}{END}"
