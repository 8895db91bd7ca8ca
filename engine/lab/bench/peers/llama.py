"""llama.cpp through llama-cpp-python: the state of a document saved to a file and restored.

llama.cpp has a model file of its own, so that the peer is named with it: `llama.cpp@FILE.gguf`,
made from the same checkpoint (`peers.gguf`), or `llama.cpp:q8_0@FILE.gguf` with a quantised cache.
It is fed the reader's token ids and windows; its forward and its state are its own.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
from torch import Tensor
from transformers.modeling_outputs import CausalLMOutputWithPast

from engine.lab.bench.llamacpp import KINDS, Context, LlamaWeights
from engine.lab.bench.peers.held import FAILURES, Held, PeerError, failure, put

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from engine.answer.session import Session

LLAMA = "llama.cpp"
QUESTION = 1024
"""Room for a question's tokens."""


class Engine(Protocol):
    """What `llamacpp.Context` is, as far as an answer needs it."""

    n_tokens: int

    def eval(self, tokens: list[int]) -> None:
        """Read tokens behind the first n_tokens, and forget what was behind them."""

    def logits(self) -> npt.NDArray[np.float32]:
        """float32 [V] of the token to come."""


class Greedy:
    """Stands in for a transformers model where a session generates, or is stepped through a
    continuation; a document lies in `engine`.

    start: how many tokens that is.
    """

    def __init__(self, engine: Engine, start: int, model: Any):
        self.engine, self.start, self.model = engine, start, model
        self.generation_config = model.generation_config
        self._read: WeakKeyDictionary[Any, list[int]] = WeakKeyDictionary()
        self._latest: ReferenceType[Any] | None = None

    def __call__(
        self, input_ids: Tensor, *, past_key_values: Any, **_: Any
    ) -> CausalLMOutputWithPast:
        """Logits [1, 1, V] of the token to come, as a transformers model gives them.

        past_key_values: which continuation this is; where another was read meanwhile, what was read
        of this one before is read again.
        """
        self._read_on(past_key_values, input_ids[0].tolist())
        logits = torch.from_numpy(self.engine.logits().copy())
        return CausalLMOutputWithPast(logits=logits[None, None])

    def get_input_embeddings(self) -> Any:
        return self.model.get_input_embeddings()

    def generate(
        self,
        ids: Tensor,
        *,
        past_key_values: Any,
        max_new_tokens: int,
        logits_processor: Any = None,
        eos_token_id: Any = None,
        stopping_criteria: Any = None,
        **_: Any,
    ) -> Tensor:
        """Greedy decoding behind the document; see `transformers.GenerationMixin.generate`.

        past_key_values: which answer this is; what was read of it before is read again.
        """
        ends = eos_token_id or self.generation_config.eos_token_id
        ends = set(ends) if isinstance(ends, list) else {ends}
        self._latest, given = None, ids.shape[1]
        self._read_on(past_key_values, ids[0].tolist())
        for left in reversed(range(max_new_tokens)):
            scores = torch.from_numpy(self.engine.logits().copy())[None]
            if logits_processor is not None:
                scores = logits_processor(ids, scores)
            token = scores.argmax(-1)
            ids = torch.cat([ids, token[None]], 1)
            stopped = stopping_criteria is not None and stopping_criteria(ids, scores).all()
            if not left or stopped or int(token) in ends:
                break
            self.engine.eval([int(token)])
        self._read[past_key_values] += ids[0, given:-1].tolist()
        return ids

    def _read_on(self, continuation: Any, unread: list[int]) -> None:
        """Read tokens of a continuation, and first what was read of it before, unless the engine is
        there yet."""
        before = self._read.get(continuation, [])
        known = self._latest is not None and self._latest() is continuation
        self.engine.n_tokens = self.start + (len(before) if known else 0)
        self.engine.eval(unread if known else [*before, *unread])
        self._read[continuation] = [*before, *unread]
        self._latest = ref(continuation)


@dataclass(frozen=True)
class LlamaCpp:
    """file: the model as GGUF, "" where none was named. kind: of its cache, of `KINDS`."""

    file: str
    kind: str = KINDS[0]
    whole: bool = True

    @property
    def source(self) -> str:
        return f"llama.cpp, {self.kind} KV, llama_state_seq_save_file and _load_file"

    @property
    def name(self) -> str:
        kind = "" if self.kind == KINDS[0] else f":{self.kind}"
        file = f"@{self.file}" if self.file else ""
        return f"{LLAMA}{kind}{file}"

    def missing(self) -> str:
        if find_spec("llama_cpp") is None:
            return (
                "needs llama-cpp-python, which is not installed: pip install llama-cpp-python "
                "(it compiles for minutes)"
            )
        if not self.file:
            return (
                "needs the reader's weights as GGUF: make them with python -m "
                f"engine.lab.bench.peers.gguf FILE.gguf, and name the file: {self.name}@FILE.gguf"
            )
        return "" if Path(self.file).is_file() else f"there is no file {self.file}"

    def hold(self, session: Session, budget: str, place: Path) -> int:
        manifest = session.store.manifest
        prefix, ids = list(session.reader.prompt.prefix), session.ids.tolist()
        known = session.reader.model.get_input_embeddings().num_embeddings
        cells = len(prefix) + len(ids)
        room = cells + QUESTION + session.options.max_new_tokens
        state = place / "llama.state"
        try:
            weights = LlamaWeights(self.file)
            if weights.vocabulary != known:
                raise PeerError(
                    f"{self.file} has {weights.vocabulary} tokens and the reader {known}: it is "
                    "another model"
                )
            first = Context(weights, room, torch.get_num_threads(), self.kind)
            first.read(prefix, [ids[window.start : window.end] for window in manifest.windows])
            first.save(state, [*prefix, *ids])
            again = Context(weights, room, torch.get_num_threads(), self.kind)
            resident = again.restore(state, cells, first.n_tokens)
        except FAILURES as error:
            raise failure(self, error) from error
        # What the session counts; its own rows are never attended to.
        parts = len(session.memory.layers)
        shares = [resident // parts + (i < resident % parts) for i in range(parts)]
        put(session, [Held(share, _nothing) for share in shares])
        session.reader = copy.copy(session.reader)
        session.reader.model = Greedy(again, again.n_tokens, session.reader.model)
        return state.stat().st_size


def _nothing() -> tuple[Tensor, Tensor]:
    raise PeerError("the rows of llama.cpp are its own")
