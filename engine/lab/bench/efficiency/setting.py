"""What one run of the efficiency suite measures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.ingest.windows import longest_window
from engine.lab.bench.budgets import ALL
from engine.types import AUTO_SHARE

if TYPE_CHECKING:
    from engine.models.reader import Reader

QUESTION = "Where did they arrive at last?"
DECODED = 24
"""Tokens of an answer at most, whose pace is taken."""


@dataclass(frozen=True)
class EfficiencySetting:
    """lengths: document tokens. budget: of what is opened. budgets: at which the pace of an answer
    is taken, `budgets.ALL` for everything zoomed. rounds: how often each contender runs. window:
    tokens of one; 0: a document that the model's positions hold is one context, a longer one is
    read in windows as `sekv ingest` takes them. processes: how often each program is started anew,
    0 for not at all. peer: `llama.cpp@FILE.gguf` or "" for none."""

    lengths: tuple[int, ...] = (2048, 6144)
    method: str = "sekv"
    budget: str = f"{AUTO_SHARE:.0%}"
    budgets: tuple[str, ...] = ("10%", "20%", f"{AUTO_SHARE:.0%}", ALL)
    rounds: int = 5
    window: int = 0
    processes: int = 3
    peer: str = ""

    def window_of(self, reader: Reader, length: int) -> int:
        """What `--window` is for a document of so many tokens."""
        if self.window or not in_one_context(reader, length):
            return self.window
        return most_tokens(reader)


def most_tokens(reader: Reader) -> int:
    """Document tokens that the model's positions hold beside a question."""
    return longest_window(reader.max_positions, 0, 0)


def in_one_context(reader: Reader, length: int) -> bool:
    """Whether the rivals, which have no windows, can read a document of so many tokens."""
    return length <= most_tokens(reader)
