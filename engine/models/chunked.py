"""Tokens behind a memory, read in chunks, so that the reading of a long text can be given up.

A question of a few hundred tokens is one chunk, and read by one forward as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from engine.attention.memory_cache import MemoryCache
from engine.errors import StoppedError

CHUNK_TOKENS = 256
"""Most tokens of one forward: it takes a second or two on a CPU, the longest that anybody waits for
a reading to stop."""

Stop = Callable[[], bool]
"""Asked between chunks and before every token: whether to give up."""


def check(stop: Stop | None) -> None:
    """Ask whether to give up.

    Raises:
        StoppedError: yes.
    """
    if stop is not None and stop():
        raise StoppedError("the answer was stopped")


def read(
    model: Any, ids: list[int], cache: MemoryCache, stop: Stop | None, **more: Any
) -> Iterator[Any]:
    """Read tokens behind a memory and what of the conversation is in the cache already.

    Args:
        more: further keywords of the model's forward.
    Yields:
        the model's output for every chunk; its logits are those of the chunk's last token.
    Raises:
        StoppedError: `stop` said so between two chunks.
    """
    device = model.get_input_embeddings().weight.device
    for start in range(0, len(ids), CHUNK_TOKENS):
        check(stop)
        tokens = torch.tensor([ids[start : start + CHUNK_TOKENS]], device=device)
        places = torch.arange(cache.get_seq_length() + tokens.shape[1], device=device)[None]
        yield model(
            input_ids=tokens,
            attention_mask=torch.ones_like(places),
            position_ids=places[:, -tokens.shape[1] :],
            past_key_values=cache,
            **{"logits_to_keep": 1, **more},
        )


def read_ahead(model: Any, ids: list[int], cache: MemoryCache, stop: Stop | None) -> list[int]:
    """Read all of a prompt but its last chunk, which is returned: decoding begins with it.

    The last chunk is a full one, the first may be short: what is looked at while the last is read
    is the evidence of an answer, and a question stands at the end of its prompt.

    Nothing is done again with more room on the way: whether a step is sure is judged by the token
    that follows it, and here these are given.

    Raises:
        StoppedError: `stop` said so between two chunks.
    """
    cache.transcript.expected = len(ids)
    last = max(0, len(ids) - CHUNK_TOKENS)
    retry, cache.retry = cache.retry, None
    for _ in read(model, ids[:last], cache, stop):
        pass
    cache.retry = retry
    check(stop)
    return ids[last:]
