"""A model that says what it is told, through the real decoding, memory and streamer. Not a test.

Only its last step is made up: the logits that leave the output layer name the next token of a
queue. Everything before them, attention over the document included, is computed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from engine.models.reader import Reader


def replace_loading(patched: pytest.MonkeyPatch, load: Callable[..., Any]) -> None:
    """Let ingests and sessions call this where they would load a model."""
    for user in ("engine.models.reader", "engine.answer.opened"):
        patched.setattr(f"{user}.load_reader", load)


@contextmanager
def scripted(reader: Reader) -> Iterator[deque[int]]:
    """A queue of tokens that this model says, in order, whatever it is asked.

    Put tokens in before each question. A queue that runs dry says what the model itself would.
    """
    queue: deque[int] = deque()

    def say(_: Any, __: Any, logits: torch.Tensor) -> torch.Tensor:
        if not queue:
            return logits
        only = torch.zeros_like(logits)
        only[..., queue.popleft()] = 50.0
        return only

    hook = reader.model.get_output_embeddings().register_forward_hook(say)
    try:
        yield queue
    finally:
        hook.remove()
