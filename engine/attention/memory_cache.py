"""The cache of one question, in the library's own classes: live rows beside a document's memory.

Of a layer with full attention it holds the live keys and values and knows the memory, which
`seam.attention` looks at; of other layers it holds their state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import (
    Cache,
    DummyLayer,
    DynamicLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionLayer,
)

from engine.attention.layer import LayerMemory
from engine.attention.layer_states import (
    States,
    cache_layers,
    has_memory,
    has_state,
    put_states,
    states_of,
)
from engine.attention.long_answer import LongAnswer, LongAnswerLayer
from engine.attention.row_form import Expansions, cached_rows, memory_rows
from engine.attention.shared import Shared
from engine.attention.widen import Retry
from engine.compression.selectors import Transcript
from engine.compression.terms import Terms
from engine.errors import ReaderError


class Attends(Protocol):
    """What stands for the document in one layer: `layer.LayerMemory`, or a stand-in of it."""

    def attend(
        self, q: Tensor, live_k: Tensor, live_v: Tensor, seen: Tensor | None, terms: Terms
    ) -> Tensor: ...


BLOCK = 64
"""Rows by which the buffers of live keys and values grow."""


class LiveLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Live keys and values of one layer beside its read-only document memory.

    length: tokens the positions of prefix and document take before the question. answer: what of
    the answer is compressed, where the method does so. latent: whether the model caches latents.
    keys, values: [1, Hkv, n, D], the rows so far, as a memory has them, of buffers that grow by
    blocks.
    """

    def __init__(
        self,
        memory: Attends,
        length: int,
        answer: LongAnswerLayer | None = None,
        *,
        latent: bool = False,
    ):
        super().__init__()  # type: ignore[no-untyped-call]
        self.memory, self.length, self.attended = memory, length, False
        self.answer, self.latent = answer, latent
        self._buffers: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        k, v = memory_rows(key_states, value_states, latent=self.latent)
        if not self.is_initialized:
            self.lazy_initialization(k, v)
        have, new = self.rows, int(k.shape[-2])
        if self._buffers is None or self._buffers[0].shape[-2] < have + new:
            self._grow(k, v, have + new)
        assert self._buffers is not None
        for buffer, states in zip(self._buffers, (k, v), strict=True):
            buffer[..., have : have + new, :] = states
        self.keys, self.values = (buffer[..., : have + new, :] for buffer in self._buffers)
        return cached_rows(self.keys, self.values, (key_states, value_states), latent=self.latent)

    def _grow(self, k: Tensor, v: Tensor, rows: int) -> None:
        """Buffers for at least so many rows, with what there was."""
        rows = -(-rows // BLOCK) * BLOCK
        old = (self.keys, self.values) if self.rows else (None, None)
        made = []
        for states, before in zip((k, v), old, strict=True):
            with torch.inference_mode(False):  # written to in whatever mode a forward runs
                shape = (*states.shape[:2], rows, states.shape[3])
                made.append(torch.zeros(shape, dtype=states.dtype, device=states.device))
            if before is not None:
                made[-1][..., : before.shape[-2], :] = before
        self._buffers = (made[0], made[1])

    def keep(self, k: Tensor, v: Tensor) -> None:
        """Have these rows in place of all there were."""
        if k is not self.keys:
            self.keys, self.values, self._buffers = k, v, None

    def caches(self, key: Tensor) -> bool:
        """Whether these keys are the ones that it holds."""
        return self.keys is not None and self.keys.data_ptr() == key.data_ptr()

    def cut(self, rows: int) -> None:
        """Keep only the first rows."""
        assert self.keys is not None
        assert self.values is not None
        self.keys, self.values = self.keys[..., :rows, :], self.values[..., :rows, :]

    @property
    def rows(self) -> int:
        """Live rows that are resident."""
        return 0 if self.keys is None or not self.keys.numel() else int(self.keys.shape[-2])

    @property
    def nbytes(self) -> int:
        """Bytes of the live rows, as they are allocated."""
        held = self._buffers or (self.keys, self.values)
        return sum(part.nbytes for part in held if part is not None)

    @property
    def live(self) -> int:
        """Live tokens so far; a compressed answer holds fewer rows than that."""
        return self.rows + (0 if self.answer is None else self.answer.away)

    def get_seq_length(self) -> int:
        return self.length + self.live

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.live + query_length, self.length


class LiveHybridLayer(LiveLayer, LinearAttentionAndFullAttentionLayer):  # type: ignore[misc,override,no-untyped-call]
    """The same of a layer that has recurrent states beside its full attention."""

    def __init__(
        self,
        memory: Attends,
        length: int,
        answer: LongAnswerLayer | None,
        number_of_states: int,
        *,
        latent: bool = False,
    ):
        super().__init__(memory, length, answer, latent=latent)
        LinearAttentionLayer.__init__(self, number_of_states)


@dataclass(frozen=True)
class OtherLayers:
    """How the layers without full attention go on from the end of a context.

    config: the model's. states: of every layer that keeps one, on its device.
    """

    config: Any
    states: States


class MemoryCache(Cache):
    """The cache of one question: shares the document memory, owns the live rows and, of a model
    that has layers of other kinds, their states.

    live: the layers with a memory, by their number in the model. transcript: the same rows as text.
    answer: what of them is compressed, where the method does so. retry: what to do with unsure
    steps, if anything.
    """

    def __init__(
        self,
        memories: Sequence[Attends],
        length: int,
        shared: Shared,
        text: Callable[[list[int]], str] = lambda ids: "",
        retry: Retry | None = None,
        others: OtherLayers | None = None,
        expansions: Expansions | None = None,
        context: int = 0,
    ):
        """others: None of a model whose layers all have full attention. expansions: of a model
        that caches latents. context: see `rope_length`."""
        self.context = context
        self.transcript, self.retry = Transcript(text), retry
        self.expansions, latent = expansions, expansions is not None
        rule = memories[0].recipe.output if isinstance(memories[0], LayerMemory) else None
        self.answer = None if rule is None else LongAnswer(rule, self.transcript, len(memories))
        self.peak_live_bytes = 0
        made: list[Any] = [DynamicLayer() for _ in memories]  # type: ignore[no-untyped-call]
        if others is not None:
            made = cache_layers(others.config)
        numbers = [number for number, layer in enumerate(made) if has_memory(layer)]
        self.live: dict[int, LiveLayer] = {}
        layer: LiveLayer
        for place, (number, memory) in enumerate(zip(numbers, memories, strict=True)):
            answer = None if self.answer is None else self.answer.layers[place]
            if has_state(made[number]):
                states = made[number].number_of_states
                layer = LiveHybridLayer(memory, length, answer, states, latent=latent)
            else:
                layer = LiveLayer(memory, length, answer, latent=latent)
            made[number] = self.live[number] = layer
        if others is not None:
            put_states(made, others.states, length)
        super().__init__(layers=made)
        self.shared, self.length = shared, length
        self._begun: tuple[int, States] = (0, {})

    def begin_forward(self) -> None:
        """No layer has attended to its memory yet."""
        for layer in self.live.values():
            layer.attended = False

    def missed(self) -> list[int]:
        """Layers that have not attended to their memory since the forward began."""
        return [number for number, layer in self.live.items() if not layer.attended]

    def live_of(self, number: int, key: Tensor) -> LiveLayer | None:
        """The layer whose memory attention layer `number` looks at with these keys; None where it
        has none. A layer that caches nothing may be given the keys of one that does."""
        if isinstance(self.layers[number], DummyLayer):
            return next((one for one in self.live.values() if one.caches(key)), None)
        return self.live.get(number)

    def states(self) -> States:
        """Copies of what the layers of other kinds keep now."""
        return states_of(self.layers)

    def check_used(self, model: Any) -> None:
        """Refuse what a model of transformers has said without any forward that was handed this
        cache; peers in the laboratory have models that read by themselves.

        Raises:
            ReaderError: there was none.
        """
        if isinstance(model, PreTrainedModel) and not self.peak_live_bytes:
            raise ReaderError(
                f"{type(model).__name__} of transformers {transformers.__version__} did not look "
                "into the document: its answer would be made up; install another release of it"
            )

    def note_places(self, places: Tensor) -> None:
        """Count the tokens of a forward that stand where the document was read already."""
        self.shared.recomputed_tokens += int((places < self.length).sum())

    def note_tokens(self, ids: Tensor) -> None:
        """Take the tokens [n] of a forward that begins."""
        self.transcript.append(ids.tolist())
        self.shared.transcript = self.transcript

    def begin(self) -> None:
        """A step begins that may be taken back."""
        assert self.retry is not None
        self.retry.begin()
        self._begun = next(iter(self.live.values())).live, self.states()

    def rollback(self) -> None:
        """Forget the live rows of the step, and what other layers kept of it."""
        rows, states = self._begun
        for layer in self.live.values():
            layer.cut(rows)
        put_states(self.layers, states, self.length + rows)

    def commit(self) -> None:
        """A forward is over: compress what is finished, and remember the most that was resident."""
        if self.answer is not None:
            self.answer.plan()
        resident = 0 if self.answer is None else self.answer.device_bytes
        for layer in self.live.values():
            assert layer.keys is not None
            assert layer.values is not None
            if layer.answer is not None:
                layer.keep(*layer.answer.rows(layer.keys, layer.values))
            resident += layer.nbytes
        self.peak_live_bytes = max(self.peak_live_bytes, resident)
