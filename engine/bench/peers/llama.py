"""llama.cpp through llama-cpp-python: the state of a document saved to a file and restored.

llama.cpp has a model file of its own, so that the peer is named with it: `llama.cpp@FILE.gguf`,
converted from the same checkpoint. It is fed the reader's token ids; only its forward is its own.
"""

from __future__ import annotations

import copy
import ctypes
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from engine.bench.peers.held import FAILURES, Held, PeerError, failure, put

if TYPE_CHECKING:
    import numpy.typing as npt

    from engine.ask import Session

ROOM = 512
"""Positions for a question and its answer."""


class Engine(Protocol):
    """A context that holds n_tokens; what `llama_cpp.Llama` is, as far as it is used here."""

    n_tokens: int

    def eval(self, tokens: list[int]) -> None:
        """Read tokens behind the first n_tokens, and forget what was behind them."""

    def logits(self) -> npt.NDArray[np.float32]:
        """float32 [V] of the token to come."""


class Greedy:
    """Stands in for a transformers model where a session generates; a document lies in `engine`.

    start: how many tokens that is.
    """

    def __init__(self, engine: Engine, start: int, model: Any):
        self.engine, self.start, self.model = engine, start, model
        self.generation_config = model.generation_config

    def get_input_embeddings(self) -> Any:
        return self.model.get_input_embeddings()

    def generate(
        self,
        ids: Tensor,
        *,
        max_new_tokens: int,
        streamer: Any,
        logits_processor: Any,
        **_: Any,
    ) -> Tensor:
        """Greedy decoding behind the document; see `transformers.GenerationMixin.generate`."""
        ends = self.generation_config.eos_token_id
        ends = set(ends) if isinstance(ends, list) else {ends}
        streamer.put(ids)
        self.engine.n_tokens = self.start
        self.engine.eval(ids[0].tolist())
        for _step in range(max_new_tokens):
            scores = torch.from_numpy(self.engine.logits().copy())[None]
            token = logits_processor(ids, scores).argmax(-1)
            streamer.put(token)
            ids = torch.cat([ids, token[None]], 1)
            if int(token) in ends:
                break
            self.engine.eval([int(token)])
        streamer.end()
        return ids


@dataclass(frozen=True)
class LlamaCpp:
    """file: the model as GGUF, "" where none was named."""

    file: str
    whole: bool = True
    source: str = "llama.cpp, 16-bit KV, llama_state_seq_save_file and _load_file"

    @property
    def name(self) -> str:
        return f"llama.cpp@{self.file}" if self.file else "llama.cpp"

    def missing(self) -> str:
        if find_spec("llama_cpp") is None:
            return (
                "needs llama-cpp-python, which is not installed: pip install llama-cpp-python "
                "(it compiles for minutes)"
            )
        if not self.file:
            return (
                "needs the reader's weights as GGUF: convert the checkpoint with llama.cpp's "
                "convert_hf_to_gguf.py and name the file: llama.cpp@FILE.gguf"
            )
        return "" if Path(self.file).is_file() else f"there is no file {self.file}"

    def hold(self, session: Session, budget: str, place: Path) -> int:
        manifest = session.store.manifest
        if len(manifest.windows) > 1:
            raise PeerError(
                f"{self.name} reads a document in one piece, and this one has "
                f"{len(manifest.windows)} windows"
            )
        ids = [*session.reader.prompt.prefix, *session.ids.tolist()]
        known = session.reader.model.get_input_embeddings().num_embeddings
        state = place / "llama.state"
        try:
            first = _Context(self.file, len(ids) + ROOM)
            if first.vocabulary != known:
                raise PeerError(
                    f"{self.file} has {first.vocabulary} tokens and the reader {known}: it is "
                    "another model"
                )
            first.eval(ids)
            first.save(state, ids)
            first.close()
            again = _Context(self.file, len(ids) + ROOM)
            resident = again.restore(state, len(ids))
        except FAILURES as error:
            raise failure(self, error) from error
        # What the session counts; its own rows are never attended to.
        parts = len(session.memory.layers)
        shares = [resident // parts + (i < resident % parts) for i in range(parts)]
        put(session, [Held(share, _nothing) for share in shares])
        session.reader = copy.copy(session.reader)
        session.reader.model = Greedy(again, len(ids), session.reader.model)
        return state.stat().st_size


class _Context:
    """A context of llama.cpp with one sequence."""

    def __init__(self, file: str, positions: int):
        self._library: Any = import_module("llama_cpp")
        self._llama = self._library.Llama(
            file, n_ctx=positions, n_gpu_layers=0, flash_attn=True, verbose=False
        )
        self.vocabulary = int(self._llama.n_vocab())

    @property
    def n_tokens(self) -> int:
        return int(self._llama.n_tokens)

    @n_tokens.setter
    def n_tokens(self, count: int) -> None:
        self._llama.n_tokens = count

    def eval(self, tokens: list[int]) -> None:
        self._llama.eval(tokens)

    def logits(self) -> npt.NDArray[np.float32]:
        row = self._library.llama_get_logits_ith(self._llama.ctx, -1)
        return np.ctypeslib.as_array(row, shape=(self.vocabulary,)).astype(np.float32)

    def save(self, file: Path, ids: list[int]) -> None:
        tokens = (self._library.llama_token * len(ids))(*ids)
        done = self._library.llama_state_seq_save_file(
            self._llama.ctx, str(file).encode(), 0, tokens, len(ids)
        )
        if not done:
            raise PeerError(f"llama.cpp could not write {file}")

    def restore(self, file: Path, count: int) -> int:
        """Put a saved sequence of so many tokens back; the bytes it takes."""
        tokens = (self._library.llama_token * count)()
        found = ctypes.c_size_t()
        done = self._library.llama_state_seq_load_file(
            self._llama.ctx, str(file).encode(), 0, tokens, count, ctypes.byref(found)
        )
        if not done or found.value != count:
            raise PeerError(f"llama.cpp could not restore {file}")
        self.n_tokens = count
        return int(self._library.llama_state_seq_get_size(self._llama.ctx, 0))

    def close(self) -> None:
        self._llama.close()


def _nothing() -> tuple[Tensor, Tensor]:
    raise PeerError("the rows of llama.cpp are its own")
