"""Text to token ids that know which characters they stand for.

The model's own tokenizer makes the ids, of each source as a whole: half a second
of one core for a book of 900,000 characters, so nothing faster stands in for it
and there is nothing to check against it.

A document is data. The literal text of a special token in it ("<|end|>") is
encoded as ordinary text and never becomes that token, so a document cannot
end its own turn in a prompt.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engine.errors import ReaderError

if TYPE_CHECKING:
    import numpy.typing as npt
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    from engine.documents import Document

    Ints = npt.NDArray[np.int32]

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, eq=False)
class Tokens:
    """The N tokens of a document, its sources one after the other, nothing between them.

    A token covers the characters that it has any byte of: where a character of
    several bytes is split over tokens, each of them covers it. Starts never
    decrease within a source; with byte-level BPE the tokens leave no gap.

    ids: [N] ids of the model's vocabulary.
    starts, ends: [N] character offsets into the text of the token's source.
    source: [N] index of the source in the document.
    engine: which implementation of the model's tokenizer made the ids, for the manifest.
    """

    ids: Ints
    starts: Ints
    ends: Ints
    source: Ints
    engine: str = "tokenizers"

    def __len__(self) -> int:
        return len(self.ids)


def tokenize(document: Document, tokenizer: PreTrainedTokenizerFast) -> Tokens:
    """Tokens of every source, without template, BOS or separators; those are the caller's.

    A lone surrogate, which is no character and which no tokenizer takes, is read as U+FFFD;
    offsets do not move. Takes about 150 bytes of memory per character of the longest source.

    Raises:
        ReaderError: the tokenizer cannot say where its tokens are in the text.
    """
    import tokenizers

    if not getattr(tokenizer, "is_fast", False):
        raise ReaderError(
            f"{type(tokenizer).__name__} is a slow tokenizer without character offsets, which"
            " citations need; use a model that comes with a tokenizer.json"
        )
    # A private copy: the caller's template, truncation and padding stay as they are,
    # and offsets come untrimmed (a ByteLevel post-processor would cut leading spaces).
    own = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    own.no_truncation()
    own.no_padding()
    own.post_processor = None
    own.encode_special_tokens = True
    parts = [_encode(source.text, own) for source in document.sources]
    ids, starts, ends = (np.concatenate(column) for column in zip(*parts, strict=True))
    owners = np.arange(len(parts), dtype=np.int32)
    return Tokens(ids, starts, ends, np.repeat(owners, [len(part[0]) for part in parts]))


def _encode(text: str, own: tokenizers.Tokenizer) -> tuple[Ints, Ints, Ints]:
    """Ids, starts and ends of one source."""
    encoding = own.encode(_SURROGATE.sub("\ufffd", text), add_special_tokens=False)
    ids = np.array(encoding.ids, dtype=np.int32)
    offsets = np.array(encoding.offsets, dtype=np.int32).reshape(-1, 2)
    # A normaliser may reorder what it maps to one character; the order of tokens stands.
    starts = np.maximum.accumulate(offsets[:, 0])
    return ids, starts, np.maximum(offsets[:, 1], starts)
