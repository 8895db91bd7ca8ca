"""llama.cpp as its C interface has it: read tokens, keep the state in a file, put it back.

    python -m engine.lab.bench.llamacpp FILE.gguf STATE KIND TOKENS THREADS ID...

goes from the saved state of so many tokens, of a cache of that kind, to the first token of the
answer to a question's ids, in a process of its own and without torch; the efficiency suite starts
it beside `sekv ask`.
llama-cpp-python is imported only when a model is loaded.
"""

from __future__ import annotations

import ctypes
import logging
import sys
import time
from collections.abc import Sequence
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

BATCH = 512
"""Tokens of one call."""

KINDS = ("f16", "q8_0", "q4_0")
"""Of a cache: what its keys and values are kept as. The first one is llama.cpp's own choice."""

ASKED, ASIDE = 0, 1
"""Sequences: the one that is read and asked, and the one where windows wait that were read."""


class LlamaWeights:
    """A model file, loaded for the CPU.

    Raises:
        RuntimeError: llama.cpp cannot read it.
    """

    def __init__(self, file: str):
        self.library: Any = import_module("llama_cpp")
        logging.getLogger("llama-cpp-python").setLevel(logging.CRITICAL)
        self.library.llama_backend_init()
        params = self.library.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = self.library.llama_model_load_from_file(file.encode(), params)
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot read {file}")
        vocabulary = self.library.llama_model_get_vocab(self.model)
        self.vocabulary = int(self.library.llama_vocab_n_tokens(vocabulary))

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """Those of `KINDS` that there are for this model: a quantised cache wants the numbers of a
        head in blocks of 32."""
        return tuple(kind for kind in KINDS if self._has(kind))

    def _has(self, kind: str) -> bool:
        try:
            Context(self, BATCH, 1, kind)
        except RuntimeError:
            return False
        return True

    def __del__(self) -> None:
        if getattr(self, "model", None):
            self.library.llama_model_free(self.model)


class Context:
    """What llama.cpp holds of one document.

    cells: tokens it has room for. kind: of its cache, of `KINDS`. n_tokens: the position of the
    next token.

    Raises:
        RuntimeError: llama.cpp refuses, here and in every method.
    """

    def __init__(self, weights: LlamaWeights, cells: int, threads: int, kind: str = KINDS[0]):
        self._weights, self._library = weights, weights.library
        params = self._library.llama_context_default_params()
        params.n_ctx, params.n_batch = cells, BATCH
        params.n_seq_max, params.kv_unified = 2, True
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = getattr(self._library, f"GGML_TYPE_{kind.upper()}")
        params.flash_attn_type = self._library.LLAMA_FLASH_ATTN_TYPE_ENABLED
        self._context = self._library.llama_init_from_model(weights.model, params)
        if not self._context:
            raise RuntimeError(f"llama.cpp makes no {kind} cache of {cells} tokens for this model")
        self._memory = self._library.llama_get_memory(self._context)
        self.n_tokens = 0

    def __del__(self) -> None:
        if getattr(self, "_context", None):
            self._library.llama_free(self._context)

    def eval(self, tokens: Sequence[int]) -> None:
        """Read tokens at n_tokens and on, and forget what was there."""
        self._library.llama_memory_seq_rm(self._memory, ASKED, self.n_tokens, -1)
        for start in range(0, len(tokens), BATCH):
            piece = tokens[start : start + BATCH]
            array = (self._library.llama_token * len(piece))(*piece)
            batch = self._library.llama_batch_get_one(array, len(piece))
            if self._library.llama_decode(self._context, batch):
                raise RuntimeError(f"llama.cpp could not read {len(piece)} tokens")
            self.n_tokens += len(piece)

    def read(self, prefix: Sequence[int], windows: Sequence[Sequence[int]]) -> None:
        """Read windows side by side, each right behind the prefix and blind to the others."""
        copy, remove = self._library.llama_memory_seq_cp, self._library.llama_memory_seq_rm
        self.eval(prefix)
        for window in windows:
            self.n_tokens = len(prefix)
            self.eval(window)
            copy(self._memory, ASKED, ASIDE, len(prefix), -1)
        remove(self._memory, ASKED, len(prefix), -1)
        copy(self._memory, ASIDE, ASKED, -1, -1)
        remove(self._memory, ASIDE, -1, -1)
        self.n_tokens = len(prefix) + max(map(len, windows))

    def logits(self) -> npt.NDArray[np.float32]:
        """float32 [V] of the token to come."""
        row = self._library.llama_get_logits_ith(self._context, -1)
        shape = (self._weights.vocabulary,)
        return np.ctypeslib.as_array(row, shape=shape).astype(np.float32)

    def save(self, file: Path, ids: Sequence[int]) -> None:
        """Write the state; ids: the tokens that were read."""
        tokens = (self._library.llama_token * len(ids))(*ids)
        if not self._library.llama_state_seq_save_file(
            self._context, str(file).encode(), ASKED, tokens, len(ids)
        ):
            raise RuntimeError(f"llama.cpp could not write {file}")

    def restore(self, file: Path, cells: int, position: int) -> int:
        """Put a saved state of so many tokens back; the bytes of its keys and values.

        Args:
            position: of the next token.
        """
        tokens, found = (self._library.llama_token * cells)(), ctypes.c_size_t()
        if (
            not self._library.llama_state_seq_load_file(
                self._context, str(file).encode(), ASKED, tokens, cells, ctypes.byref(found)
            )
            or found.value != cells
        ):
            raise RuntimeError(f"llama.cpp could not restore {file}")
        self.n_tokens = position
        return int(self._library.llama_state_seq_get_size(self._context, ASKED))


def read_and_save(
    weights: LlamaWeights,
    threads: int,
    ids: Sequence[int],
    question: Sequence[int],
    file: Path,
    kind: str = KINDS[0],
) -> tuple[float, float]:
    """Seconds from a document's tokens to the first one of the answer, and to write its state."""
    at = time.perf_counter()
    context = Context(weights, len(ids) + len(question), threads, kind)
    context.eval(ids)
    read = time.perf_counter()
    context.save(file, ids)
    saved = time.perf_counter()
    context.eval(question)
    context.logits().argmax()
    return time.perf_counter() - at - (saved - read), saved - read


def restore_and_ask(
    weights: LlamaWeights,
    threads: int,
    count: int,
    question: Sequence[int],
    file: Path,
    more: int,
    kind: str = KINDS[0],
) -> tuple[float, float]:
    """Seconds from the state of so many tokens to the first token, and for so many more tokens."""
    at = time.perf_counter()
    context = Context(weights, count + len(question) + more, threads, kind)
    context.restore(file, count, count)
    context.eval(question)
    token = int(context.logits().argmax())
    first = time.perf_counter() - at
    for _ in range(more):
        context.eval([token])
        token = int(context.logits().argmax())
    return first, time.perf_counter() - at - first


def main(file: str, state: str, kind: str, count: int, threads: int, ids: list[int]) -> None:
    """Print the first token of the answer."""
    context = Context(LlamaWeights(file), count + len(ids), threads, kind)
    context.restore(Path(state), count, count)
    context.eval(ids)
    print(int(context.logits().argmax()))


if __name__ == "__main__":
    model, saved, kind = sys.argv[1:4]
    tokens, threads, *question = map(int, sys.argv[4:])
    main(model, saved, kind, tokens, threads, question)
