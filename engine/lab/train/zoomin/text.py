"""Documents to learn from: excerpts of a folder's texts, and what a reader reads after them.

Every document is a function of the seed and the step, so that a resumed run meets the same ones.
What is held out, whole texts or the last tenth of every one, is never trained on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from engine.errors import TrainError

if TYPE_CHECKING:
    from engine.models.reader import Reader

HELD_OUT = 0.1
LONGEST_QUOTE = 32


@dataclass(frozen=True)
class Lesson:
    """document: N token ids. blocks: what is read after it, each on its own, in tokens: first
    the text as it goes on, then questions that a passage of the document answers."""

    document: list[int]
    blocks: list[list[int]]


@dataclass(frozen=True)
class Texts:
    """The token ids of a folder, the trained and the held-out part. names: of the texts that each
    part is from."""

    train: npt.NDArray[np.int32]
    held_out: npt.NDArray[np.int32]
    names: dict[str, list[str]]

    @classmethod
    def of(cls, folder: Path, reader: Reader, needed: int, held_out: tuple[str, ...] = ()) -> Texts:
        """Read the .txt files of a folder, in order of their names.

        Args:
            needed: tokens of the longest document with what is read after it.
            held_out: names of the texts to hold out, without .txt; () for a tenth of each.
        Raises:
            TrainError: no such folder, no texts in it or not those, or less text than one document
                takes.
        """
        if not folder.is_dir():
            raise TrainError(f"there is no folder {folder}; name one of .txt files with --text")
        paths = sorted(folder.glob("*.txt"))
        if not paths:
            raise TrainError(f"no .txt files in {folder}; name a folder of texts with --text")
        unknown = sorted(set(held_out) - {path.stem for path in paths})
        if unknown:
            raise TrainError(
                f"there is no {unknown[0]}.txt in {folder} to hold out; name one of it"
            )
        empty = np.zeros(0, np.int32)
        parts: dict[str, list[npt.NDArray[np.int32]]] = {"train": [empty], "held out": [empty]}
        names: dict[str, list[str]] = {part: [] for part in parts}
        for path in paths:
            text = path.read_text(encoding="utf-8", errors="replace")
            ids = reader.tokenizer.encode(
                text, add_special_tokens=False, split_special_tokens=True, verbose=False
            )
            cut = len(ids) - int(HELD_OUT * len(ids))
            if held_out:
                cut = 0 if path.stem in held_out else len(ids)
            for part, some in (("train", ids[:cut]), ("held out", ids[cut:])):
                if some:
                    parts[part].append(np.asarray(some, np.int32))
                    names[part].append(path.stem)
        texts = cls(np.concatenate(parts["train"]), np.concatenate(parts["held out"]), names)
        shorter = min(len(texts.train), len(texts.held_out))
        if shorter < needed:
            raise TrainError(
                f"{folder} holds {len(texts.train)} tokens and {len(texts.held_out)} held out; a "
                f"document takes {needed}: add text, or name a shorter --length"
            )
        return texts

    def lesson(
        self, reader: Reader, rng: Random, tokens: int, query: int, questions: int, *, train: bool
    ) -> Lesson:
        """A document of so many tokens at a random place, and what is read after it.

        Args:
            query: most tokens of a block.  questions: blocks beside the text's own continuation.
        """
        source = self.train if train else self.held_out
        start = rng.randrange(len(source) - tokens - query + 1)
        ids = source[start : start + tokens + query].tolist()
        document = ids[:tokens]
        blocks = [
            ids[tokens:],
            *(_question(reader, rng, document, query) for _ in range(questions)),
        ]
        return Lesson(document, blocks)


def _question(reader: Reader, rng: Random, document: list[int], query: int) -> list[int]:
    """A question made of half the words of a passage, and the passage as its answer.

    The text alone seldom makes a reader look far back; a question does, and it is what routers
    are for. Every causal model copies, so that none needs to be taught to answer.
    """
    length = min(LONGEST_QUOTE, query // 2, len(document))
    start = rng.randrange(len(document) - length + 1)
    passage = document[start : start + length]
    words = reader.tokenizer.decode(passage).split()
    kept = sorted(rng.sample(range(len(words)), (len(words) + 1) // 2))
    asked = reader.prompt.question(reader.tokenizer, " ".join(words[i] for i in kept))
    return (asked + passage)[:query]
