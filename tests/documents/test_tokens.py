"""Ids are the model's own, and offsets are exact in characters.

Every tokenizer here is trained on the spot, in each of the shapes that models come in.
"""

from __future__ import annotations

import itertools
import json
import re
from functools import cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from engine.documents import Document, Source
from engine.documents.tokens import Tokens, tokenize
from engine.errors import ReaderError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPUS = [
    "The harbour lay quiet in the morning, and nobody had seen the ship come in.",
    "It's 1912; they'll say we've lost 4,096 letters — “naïve café”, Überschrift, Ελλάδα.",
    "def main():\n    return [x for x in range(10)]\n\n\n日本語のテキスト и русский текст 🙂🙂",
    "the the the there then them these morning harbour harbours ship shipping",
] * 5
SPECIALS = ["<|start|>", "<|end|>"]
ADDED = ["<tool>", "<think>"]


def ready(inner: Tokenizer) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    inner.add_special_tokens(SPECIALS)
    inner.add_tokens(ADDED)
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>")


def byte_level(pre: Any, normalizer: Any = None, **model: Any) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    inner = Tokenizer(models.BPE(**model))
    inner.pre_tokenizer = pre
    if normalizer is not None:
        inner.normalizer = normalizer
    inner.decoder = decoders.ByteLevel()
    inner.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=alphabet, show_progress=False, special_tokens=[]
    )
    inner.train_from_iterator(CORPUS, trainer)
    return inner


def gpt2() -> Tokenizer:
    from tokenizers import pre_tokenizers

    return byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))


def qwen() -> Tokenizer:
    from tokenizers import Regex, normalizers, pre_tokenizers

    split = pre_tokenizers.Split(Regex(QWEN), "isolated")
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return byte_level(pre_tokenizers.Sequence([split, last]), normalizers.NFC())


def llama3() -> Tokenizer:
    """ignore_merges, and every way to make a token listed as a merge of its own."""
    from tokenizers import Tokenizer

    spec = json.loads(gpt2().to_str())
    vocabulary = spec["model"]["vocab"]
    merges = []
    for left, right in spec["model"]["merges"]:
        token = left + right
        ways = [(token[:at], token[at:]) for at in range(1, len(token))]
        merges += [way for way in ways if way[0] in vocabulary and way[1] in vocabulary]
    spec["model"] |= {"merges": merges, "ignore_merges": True}
    return Tokenizer.from_str(json.dumps(spec))


def prefixed() -> Tokenizer:
    from tokenizers import pre_tokenizers

    return byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True))


def unigram() -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    inner = Tokenizer(models.Unigram())
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    inner.train_from_iterator(
        CORPUS,
        trainers.UnigramTrainer(
            vocab_size=300, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
        ),
    )
    return inner


def byte_fallback() -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers

    inner = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    inner.normalizer = normalizers.Replace(" ", "▁")
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    bytes_ = ["<unk>", *(f"<0x{value:02X}>" for value in range(256))]
    # Letters only: everything else must come from bytes.
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=bytes_, limit_alphabet=30, show_progress=False
    )
    inner.train_from_iterator(CORPUS, trainer)
    return inner


BYTEWISE: tuple[Callable[[], Tokenizer], ...] = (gpt2, qwen, llama3)
OTHERS: tuple[Callable[[], Tokenizer], ...] = (prefixed, unigram, byte_fallback)


@cache
def tokenizer(make: Callable[[], Tokenizer]) -> PreTrainedTokenizerFast:
    return ready(make())


def document(*texts: str) -> Document:
    return Document(tuple(Source("", "text", text, (), "") for text in texts))


def literal(own: PreTrainedTokenizerFast, text: str) -> Any:
    """What the model's own tokenizer makes of text in which special tokens are just text."""
    backend = own.backend_tokenizer
    backend.encode_special_tokens = True
    try:
        return backend.encode(text, add_special_tokens=False)
    finally:
        backend.encode_special_tokens = False


def check_offsets(made: Tokens, text: str, *, bytewise: bool) -> None:
    assert made.ids.dtype == made.starts.dtype == made.ends.dtype == np.int32
    starts, ends = made.starts.tolist(), made.ends.tolist()
    assert starts == sorted(starts)
    assert all(0 <= a <= b <= len(text) for a, b in zip(starts, ends, strict=True))
    if bytewise and text:
        assert starts[0] == 0
        assert ends[-1] == len(text)
        # No gaps; an overlap only inside one character that is split over tokens.
        for end, start in itertools.pairwise(zip(starts, ends, strict=True)):
            assert start[0] in (end[1], end[1] - 1)


any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=80) | st.text(
    alphabet="the harbo\n  '<|end>tool🙂é\u0301ſK1234", max_size=80
)
relaxed = settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize("make", [*BYTEWISE, *OTHERS])
@relaxed
@given(any_text)
@example("")
@example(" leading and trailing  \n\n ")
@example("a<|end|>b<tool><|start|><think>\n<tool")
@example("it'ſ the Kelvin K, e\u0301 and \u1e9b\u0323")
@example("🙂" * 9 + "日本語\u200d\ufeff\x00\x85")
def test_ids_are_the_models_own(make: Callable[[], Tokenizer], text: str) -> None:
    own = tokenizer(make)
    made = tokenize(document(text), own)
    assert made.ids.tolist() == literal(own, text).ids
    normalizer = own.backend_tokenizer.normalizer
    unchanged = normalizer is None or normalizer.normalize_str(text) == text
    bytewise = make in BYTEWISE and unchanged
    check_offsets(made, text, bytewise=bytewise)
    if bytewise:
        assert own.decode(made.ids, clean_up_tokenization_spaces=False) == text


@pytest.mark.parametrize("make", BYTEWISE)
@relaxed
@given(any_text)
def test_a_token_stands_on_the_characters_that_its_bytes_are_of(
    make: Callable[[], Tokenizer], text: str
) -> None:
    """Offsets counted again from the bytes of the tokens alone."""
    own = tokenizer(make)
    normalizer = own.backend_tokenizer.normalizer
    if normalizer is not None:
        text = normalizer.normalize_str(text)
    made = tokenize(document(text), own)
    owner = [at for at, sign in enumerate(text) for _ in sign.encode()]
    place, expected = 0, []
    for token in own.convert_ids_to_tokens(made.ids.tolist()):
        size = len(token.encode() if token in ADDED else token)  # one sign stands for one byte
        expected.append((owner[place], owner[place + size - 1] + 1))
        place += size
    assert place == len(owner)
    assert list(zip(made.starts.tolist(), made.ends.tolist(), strict=True)) == expected


@pytest.mark.parametrize("make", [*BYTEWISE, *OTHERS])
def test_a_lone_surrogate_is_read_as_the_sign_for_what_is_no_character(
    make: Callable[[], Tokenizer],
) -> None:
    own = tokenizer(make)
    for text in ("the \ud800ship", "\udfff", "a\ud83d \ude42b harbour"):
        made = tokenize(document(text), own)
        same = tokenize(document(re.sub("[\ud800-\udfff]", "\ufffd", text)), own)
        assert made.ids.tolist() == same.ids.tolist()
        check_offsets(made, text, bytewise=make in BYTEWISE)


@pytest.mark.parametrize("make", [*BYTEWISE, *OTHERS])
def test_special_tokens_in_a_document_are_ordinary_text(make: Callable[[], Tokenizer]) -> None:
    own = tokenizer(make)
    made = tokenize(document("turn over <|end|> or <|start|>now"), own)
    assert not set(made.ids.tolist()) & set(own.convert_tokens_to_ids(SPECIALS))
    assert own.backend_tokenizer.encode_special_tokens is False  # the caller's is as it was


def test_ordinary_added_tokens_stay_tokens() -> None:
    own = tokenizer(gpt2)
    made = tokenize(document("a <tool>b"), own)
    at = made.ids.tolist().index(own.convert_tokens_to_ids("<tool>"))
    assert (made.starts[at], made.ends[at]) == (2, 8)


def test_added_tokens_with_rules_of_their_own_follow_them() -> None:
    from tokenizers import AddedToken

    inner = gpt2()
    inner.add_tokens([AddedToken("<strip>", lstrip=True, rstrip=True)])
    own = ready(inner)
    made = tokenize(document("one  <strip> two"), own)
    assert made.ids.tolist() == literal(own, "one  <strip> two").ids


def test_sources_follow_each_other_with_offsets_of_their_own() -> None:
    own = tokenizer(gpt2)
    texts = ["the harbour", "", "🙂 the ship"]
    made = tokenize(document(*texts), own)
    single = [tokenize(document(text), own) for text in texts]
    assert made.ids.tolist() == [token for part in single for token in part.ids.tolist()]
    assert made.starts.tolist() == [start for part in single for start in part.starts.tolist()]
    assert made.source.tolist() == [at for at, part in enumerate(single) for _ in range(len(part))]
    assert len(made) == len(made.ids)


def test_a_character_split_over_tokens_is_covered_by_each_of_them() -> None:
    made = tokenize(document("a\U00010348b"), tokenizer(gpt2))
    assert made.starts.tolist() == [0, 1, 1, 1, 1, 2]
    assert made.ends.tolist() == [1, 2, 2, 2, 2, 3]


def test_templates_truncation_and_padding_do_not_reach_a_document() -> None:
    from tokenizers import processors

    inner = gpt2()
    inner.post_processor = processors.TemplateProcessing("$A", special_tokens=[])
    own = ready(inner)
    own.backend_tokenizer.enable_truncation(4)
    own.backend_tokenizer.enable_padding(length=64)
    text = "the harbour lay quiet in the morning"
    made = tokenize(document(text), own)
    check_offsets(made, text, bytewise=True)
    assert own.backend_tokenizer.truncation is not None


def test_a_difference_deep_in_a_long_text_is_seen() -> None:
    """Each part of a long text is cut as it is alone: no sample stands for the rest."""
    own = tokenizer(gpt2)
    filler = " ".join([CORPUS[0], CORPUS[3]]) * 60
    odd = "\nxqzj'll vexing's zyzzyva\t\t4096\n"
    made = tokenize(document(filler + odd + filler), own)
    ids = tokenize(document(odd), own).ids
    first = int(np.searchsorted(made.starts, len(filler)))
    assert made.ids[first : first + len(ids)].tolist() == ids.tolist()
    assert made.ids.tolist() == literal(own, filler + odd + filler).ids


@pytest.mark.parametrize("sign", [" ", "x", "\n", "字"])
def test_a_run_of_one_sign_is_no_trap(sign: str) -> None:
    text = "the" + sign * 300_000 + "ship"
    check_offsets(tokenize(document(text), tokenizer(gpt2)), text, bytewise=True)


def test_words_that_no_merge_makes_are_found() -> None:
    """ignore_merges takes a whole word that no merge puts together."""
    from tokenizers import Tokenizer

    spec = json.loads(llama3().to_str())
    spec["model"]["vocab"]["zyzzyva"] = max(spec["model"]["vocab"].values()) + 1
    own = ready(Tokenizer.from_str(json.dumps(spec)))
    made = tokenize(document("zyzzyva"), own)
    assert made.ids.tolist() == [spec["model"]["vocab"]["zyzzyva"]]


def test_slow_tokenizers_are_refused() -> None:
    slow: Any = SimpleNamespace(is_fast=False)
    with pytest.raises(ReaderError, match="slow tokenizer without character offsets"):
        tokenize(document("text"), slow)
