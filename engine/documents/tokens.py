"""Text to token ids that know which characters they stand for.

Not a tokenizer: the model's own decides what the ids are. Where that is
byte-level BPE, tiktoken gives the same ids an order of magnitude faster; it is
used only after it has agreed with the model's own on this very document.

A document is data. The literal text of a special token in it ("<|end|>") is
encoded as ordinary text and never becomes that token, so a document cannot
end its own turn in a prompt.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.errors import ReaderError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt
    import tiktoken
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    from engine.documents import Document

    Ints = npt.NDArray[np.int32]

# What ByteLevel does without a Split before it.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SLICES = 8
_SLICE_CHARS = 2_000
_WINDOW_CHARS = 16
_MAX_WINDOWS = 4_000


@dataclass(frozen=True, eq=False)
class Tokens:
    """The N tokens of a document, its sources one after the other, nothing between them.

    A token covers the characters that it has any byte of: where a character of
    several bytes is split over tokens, each of them covers it. Starts never
    decrease within a source; with byte-level BPE the tokens leave no gap.

    ids: [N] ids of the model's vocabulary.
    starts, ends: [N] character offsets into the text of the token's source.
    source: [N] index of the source in the document.
    engine: "tiktoken" or "tokenizers", whichever made the ids.
    """

    ids: Ints
    starts: Ints
    ends: Ints
    source: Ints
    engine: str

    def __len__(self) -> int:
        return len(self.ids)


def tokenize(document: Document, tokenizer: PreTrainedTokenizerFast) -> Tokens:
    """Tokens of every source, without template, BOS or separators; those are the caller's.

    Raises:
        ReaderError: the tokenizer cannot say where its tokens are in the text.
    """
    import tokenizers

    if not getattr(tokenizer, "is_fast", False):
        raise ReaderError(
            f"{type(tokenizer).__name__} is a slow tokenizer without character offsets, which"
            " citations need; use a model that comes with a tokenizer.json"
        )
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    # A private copy: the caller's template, truncation and padding stay as they are,
    # and offsets come untrimmed (a ByteLevel post-processor would cut leading spaces).
    own = tokenizers.Tokenizer.from_str(
        json.dumps(spec | {"truncation": None, "padding": None, "post_processor": None})
    )
    own.encode_special_tokens = True
    texts = [source.text for source in document.sources]
    fast = _ByteLevel.build(spec, own)
    if fast is not None and all(fast.agrees(text, own) for text in texts):
        made = [fast.encode(text) for text in texts]
        complete = [part for part in made if part is not None]
        if len(complete) == len(texts):
            return _together(complete, "tiktoken")
    return _together([_encode(text, own) for text in texts], "tokenizers")


_Part = tuple["Ints", "Ints", "Ints"]


def _together(parts: list[_Part], engine: str) -> Tokens:
    sizes = [len(ids) for ids, _, _ in parts]
    ids, starts, ends = (np.concatenate(column) for column in zip(*parts, strict=True))
    source = np.repeat(np.arange(len(parts), dtype=np.int32), sizes)
    return Tokens(ids, starts, ends, source, engine)


def _encode(text: str, own: tokenizers.Tokenizer) -> _Part:
    """Ids and offsets by the model's own tokenizer."""
    encoding = own.encode(text, add_special_tokens=False)
    ids = np.array(encoding.ids, dtype=np.int32)
    offsets = np.array(encoding.offsets, dtype=np.int32).reshape(-1, 2)
    # A normaliser may reorder what it maps to one character; the order of tokens stands.
    starts = np.maximum.accumulate(offsets[:, 0])
    return ids, starts, np.maximum(offsets[:, 1], starts)


class _ByteLevel:
    """A byte-level BPE tokenizer.json, run by tiktoken."""

    def __init__(
        self, encoding: tiktoken.Encoding, ids: Ints, lengths: Ints, added: dict[str, int],
        skipped: frozenset[str],
    ) -> None:  # fmt: skip
        self._encoding = encoding
        self._ids = ids  # [rank] id in the model's vocabulary
        self._lengths = lengths  # [rank] bytes
        self._added = added  # ordinary added tokens: split off before anything else
        self._skipped = skipped  # special tokens: ordinary text here
        # Longest first: of tokens that begin at one place, the longest wins.
        literals = sorted((*added, *skipped), key=len, reverse=True)
        self._literal = re.compile("|".join(map(re.escape, literals))) if added else None

    @classmethod
    def build(cls, spec: dict[str, Any], own: tokenizers.Tokenizer) -> _ByteLevel | None:
        """The same tokenizer for tiktoken; None where tiktoken could not be the same."""
        pattern = _pattern(spec["pre_tokenizer"])
        ranks = _ranks(spec["model"], {token["id"] for token in spec["added_tokens"]})
        if pattern is None or ranks is None:
            return None
        added = {}
        for token in spec["added_tokens"]:
            if token["special"]:
                continue
            # Stripping and word bounds are the model's own business; so is a token that the
            # normaliser changes, or one of the second pass (normalized) beside the first.
            content, normalizer = token["content"], own.normalizer
            if token["lstrip"] or token["rstrip"] or token["single_word"]:
                return None
            if token["normalized"] and normalizer and normalizer.normalize_str(content) != content:
                return None
            added[content] = token["id"]
        if len({token["normalized"] for token in spec["added_tokens"] if not token["special"]}) > 1:
            return None
        import tiktoken

        order, ids = ranks
        encoding = tiktoken.Encoding(
            "sekv", pat_str=pattern, mergeable_ranks=order, special_tokens={}
        )
        lengths = np.fromiter(map(len, order), dtype=np.int32, count=len(order))
        special = frozenset(t["content"] for t in spec["added_tokens"] if t["special"])
        return cls(encoding, ids, lengths, added, special)

    def agrees(self, text: str, own: tokenizers.Tokenizer) -> bool:
        """Whether both give the same ids on samples of `text`: slices spread over it, and a
        window round the first occurrence of every character that is not ASCII, which is where
        two regex engines or two versions of Unicode would differ."""
        if own.normalizer is not None and own.normalizer.normalize_str(text) != text:
            return False
        for sample in _samples(text):
            part = self.encode(sample)
            if part is None or not np.array_equal(part[0], _encode(sample, own)[0]):
                return False
        return True

    def encode(self, text: str) -> _Part | None:
        """Ids and offsets; None if tiktoken gives up or does not cover the text."""
        ids: list[Ints] = []
        lengths: list[Ints] = []
        for piece, added in self._pieces(text):
            if added is not None:
                ids.append(np.array([added], dtype=np.int32))
                lengths.append(np.array([len(piece.encode())], dtype=np.int32))
                continue
            try:
                ranks = self._encoding.encode_to_numpy(piece, disallowed_special=())
            except ValueError:  # the regex engine's limit: a megabyte of spaces, for one
                return None
            if self._encoding.decode_bytes(ranks.tolist()) != piece.encode():
                return None  # the pattern leaves characters out; the model's own keeps them
            ids.append(self._ids[ranks])
            lengths.append(self._lengths[ranks])
        empty = np.zeros(0, dtype=np.int32)
        ends = np.cumsum(np.concatenate([empty, *lengths]), dtype=np.int64)
        starts = np.concatenate([[0], ends])[:-1]
        first, last = _characters(text, starts), _characters(text, ends - 1)
        return np.concatenate([empty, *ids]), first, last + 1

    def _pieces(self, text: str) -> Iterator[tuple[str, int | None]]:
        """The text cut at added tokens: (piece, None) and (literal, id) in turn."""
        start = 0
        for match in self._literal.finditer(text) if self._literal else ():
            if match.group() in self._skipped:
                continue
            if match.start() > start:
                yield text[start : match.start()], None
            yield match.group(), self._added[match.group()]
            start = match.end()
        if start < len(text):
            yield text[start:], None


def _codes(text: str) -> npt.NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)


def _characters(text: str, positions: npt.NDArray[np.int64]) -> Ints:
    """Which character each byte position of the UTF-8 text belongs to."""
    if text.isascii():
        return positions.astype(np.int32)
    codes = _codes(text)
    widths = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)
    starts = np.cumsum(widths) - widths
    return (np.searchsorted(starts, positions, side="right") - 1).astype(np.int32)


def _samples(text: str) -> Iterator[str]:
    if len(text) <= _SLICES * _SLICE_CHARS:
        yield text
        return
    for at in np.linspace(0, len(text) - _SLICE_CHARS, _SLICES, dtype=np.int64).tolist():
        yield text[at : at + _SLICE_CHARS]
    if text.isascii():
        return
    codes = _codes(text)
    first = np.full(0x110000, -1, dtype=np.int64)
    first[codes[::-1]] = np.arange(len(codes) - 1, -1, -1)  # the last write is the first place
    places = first[0x80:][first[0x80:] >= 0][:_MAX_WINDOWS].tolist()
    yield "\n".join(text[max(0, at - _WINDOW_CHARS) : at + _WINDOW_CHARS] for at in places)


def _pattern(spec: dict[str, Any] | None) -> str | None:
    """The one regex that splits text before BPE; None for any other arrangement."""
    stages = (spec or {}).get("pretokenizers", [spec or {}])
    last = stages[-1]
    if last.get("type") != "ByteLevel" or last["add_prefix_space"]:
        return None
    if len(stages) == 1:
        return _GPT2 if last["use_regex"] else None
    split = stages[0]
    if len(stages) > 2 or split["type"] != "Split" or last["use_regex"]:
        return None
    pattern: str | None = split["pattern"].get("Regex")
    return pattern if split["behavior"] == "Isolated" and not split["invert"] else None


def _ranks(model: dict[str, Any], added: set[int]) -> tuple[dict[bytes, int], Ints] | None:
    """tiktoken's ranks of a byte-level BPE, and [rank] the model's id; None for other models.

    tiktoken ranks tokens where tokenizer.json ranks merges. Both mean the same
    where each token is made by one merge, or by several that stand together.
    """
    plain = model["type"] == "BPE" and not any(
        model.get(key)
        for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    )
    if not plain:
        return None
    vocabulary: dict[str, int] = model["vocab"]
    bytes_of = _alphabet()
    order = {bytes([value]): value for value in range(256)}
    ids = {bytes([value]): vocabulary.get(sign, -1) for sign, value in bytes_of.items()}
    for merge in model["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        token = left + right
        try:
            made = bytes(bytes_of[sign] for sign in token)
        except KeyError:
            return None
        order.setdefault(made, len(order))
        ids.setdefault(made, vocabulary.get(token, -1))
    remap = np.array([ids[token] for token in order], dtype=np.int32)
    if (remap < 0).any():
        return None
    # Whole words that no merge makes: found first by ignore_merges, never by tiktoken.
    if model.get("ignore_merges") and set(vocabulary.values()) - added - set(remap.tolist()):
        return None
    return order, remap


def _alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(256) if value not in printable]
    return {chr(value): value for value in printable} | {
        chr(256 + place): value for place, value in enumerate(others)
    }
