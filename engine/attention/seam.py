"""The seam to transformers: one attention function and one cache class, no model code.

A model loaded with `attn_implementation="sekv"` behaves as with sdpa until a forward gets a
`MemoryCache`; then every full-attention layer attends over the document memory and the live
rows in one softmax. The cache tells positions and mask sizes; the attention function selects,
because only it sees the query. State is passed as a keyword of `forward`, never kept on modules.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import transformers
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.cache_utils import (
    Cache,
    DummyLayer,
    DynamicLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionLayer,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from engine.attention.causal_chunk import attend_chunk, attend_rows
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
from engine.attention.row_form import Expansion, Expansions, cached_rows, memory_rows, widened
from engine.attention.shared import Shared
from engine.attention.widen import Retry
from engine.compression.query_statistics import Probe
from engine.compression.selectors import Transcript
from engine.compression.terms import PLAIN, Terms
from engine.errors import ReaderError

NAME = "sekv"


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


def attach(model: PreTrainedModel) -> None:
    """Register the attention function and hand every forward's MemoryCache to it."""

    def hand_over(
        _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        cache = _memory_cache(args, kwargs)
        if cache is not None:
            ids = kwargs.get("input_ids", args[0] if args else None)
            if ids is not None and len(ids) != 1:
                raise ReaderError("a document memory answers one sequence at a time (no beams)")
            kwargs = {**kwargs, "sekv": cache}
            cache.begin_forward()
            if cache.retry is not None and cache.retry.again:
                return args, kwargs  # all else was noted at the first try
            places = kwargs.get("position_ids")
            if places is not None:  # else the model takes them from the cache: behind the document
                cache.note_places(places)
            if ids is not None:
                cache.note_tokens(ids[0])
            if cache.retry is not None:
                cache.begin()
        return args, kwargs

    def check(_: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        cache = _memory_cache(args, kwargs)
        if cache is not None:
            missed = cache.missed()
            if missed:
                raise ReaderError(
                    f"{type(model).__name__} does not call the registered attention in layers "
                    f"{missed}: the memory would be silently bypassed; use another model"
                )
            retry = cache.retry
            if retry is not None and not retry.again:
                if retry.unsure(output.logits[0, -1]):
                    with retry.wider():
                        cache.rollback()
                        output = model(*args, **kwargs)
                retry.commit()
            cache.commit()
        return output

    model.register_forward_pre_hook(hand_over, with_kwargs=True)
    model.register_forward_hook(check, with_kwargs=True)


def _memory_cache(args: Sequence[Any], kwargs: dict[str, Any]) -> MemoryCache | None:
    """The cache of a forward, whatever transformers calls the argument: `past_key_values` to 5.23,
    `cache` since."""
    found = (one for one in (*kwargs.values(), *args) if isinstance(one, MemoryCache))
    return next(found, None)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sekv: MemoryCache | None = None,
    probe: Probe | None = None,
    causal: Collection[int] = (),
    expansions: Expansions | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """query [1, H, Q, Dk], key [1, Hkv, n, Dk] and value [1, Hkv, n, Dv] of the live rows ->
    [1, Q, H, Dv].

    causal: layers in which, in a plain prefill on a CPU, every row sees all before it: no padding,
    no window. expansions: of a model that caches latents, where a probe looks at them.
    """
    number = int(module.layer_idx)  # type: ignore[arg-type]
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    terms = terms_of(module, kwargs)
    if sekv is None and probe is not None:
        expansion = None if expansions is None else expansions.of(module)
        q, width = _memory_queries(query, value, scale, expansion)
        probe.observe(number, q, widened(key[0], width), widened(value[0], width), terms)
    if sekv is None and number in causal and not _bounded(kwargs):
        width = max(key.shape[-1], value.shape[-1])
        q, k, v = (widened(part, width) for part in (query, key, value))
        return attend_chunk(q, k, v, scale, terms)[..., : value.shape[-1]], None
    layer = None if sekv is None else sekv.live_of(number, key)
    if sekv is None or layer is None:
        return _plain(module, query, key, value, attention_mask, scaling, dropout, **kwargs)
    layer.attended = True
    expansion = None if sekv.expansions is None else sekv.expansions.of(module)
    _check_unchanged(module, layer, key, value)
    q, _ = _memory_queries(query, value, scale, expansion)
    rows, live = query.shape[2], key.shape[2]
    if sekv.answer is not None:
        assert layer.answer is not None
        sekv.answer.vote(layer.answer, q)
    seen = None  # a single row sees all before it
    if attention_mask is not None:
        seen = attention_mask[0, 0, :, -live:]
        seen = seen if seen.dtype == torch.bool else seen >= 0
    elif rows > 1:
        seen = torch.ones(rows, live, dtype=torch.bool, device=query.device).tril(live - rows)
    sekv.shared.asking = number
    assert layer.keys is not None
    assert layer.values is not None
    out = layer.memory.attend(q, layer.keys[0], layer.values[0], seen, terms)
    out = out[..., : value.shape[-1]] if expansion is None else expansion.outputs(out)
    return out.to(query.dtype).transpose(0, 1)[None].contiguous(), None


def _memory_queries(
    query: Tensor, value: Tensor, scale: float, expansion: Expansion | None
) -> tuple[Tensor, int]:
    """Queries [H, Q, D] of the rows of a memory, scaled so that scores are q.k / sqrt(D), and D."""
    if expansion is None:
        q = widened(query[0], max(query.shape[-1], value.shape[-1]))
    else:
        q = expansion.queries(query[0])
    return q * (scale * math.sqrt(q.shape[-1])), q.shape[-1]


def _check_unchanged(module: nn.Module, layer: LiveLayer, key: Tensor, value: Tensor) -> None:
    """Refuse code that attends to other keys and values than it has cached. What is made of latents
    is other tensors; there the logits of `ingest.parity` tell.

    Raises:
        ReaderError: it does.
    """
    for given, cached in ((key, layer.keys), (value, layer.values)):
        assert cached is not None
        same = given.shape[1:3] == cached.shape[1:3] and given.data_ptr() == cached.data_ptr()
        if not same and not layer.latent:
            raise ReaderError(
                f"{type(module).__name__} changes keys or values after it has cached them; the "
                "memory would be silently wrong"
            )


UNKNOWN = {
    "position_bias": "a bias of its own for every distance",
    "indices": "sparse attention to rows that an indexer picks",
    "block_indices": "sparse attention to blocks that an indexer picks",
    "sinks": "sinks that have values",
}
"""Arguments of an attention function that change what it computes in ways a memory does not, and
what a layer does that is called with one."""


def terms_of(module: nn.Module, kwargs: dict[str, Any]) -> Terms:
    """The terms of a layer's softmax, from the keywords its attention function is called with.

    Raises:
        ReaderError: it computes something else than a softmax with such terms.
    """
    for name, does in UNKNOWN.items():
        if kwargs.get(name) is not None:
            raise ReaderError(
                f"{type(module).__name__} has {does}, which a document memory does not compute"
            )
    cap, sinks = kwargs.get("softcap"), kwargs.get("s_aux")
    return PLAIN if cap is None and sinks is None else Terms(cap, sinks)


def _bounded(kwargs: dict[str, Any]) -> bool:
    """Whether a layer's attention is more than the kernel of a plain prefill computes."""
    return any(kwargs.get(name) is not None for name in ("sliding_window", "softcap"))


def _plain(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    dropout: float,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention without a memory: the library's sdpa, always with a mask where there is a past; our
    own where the softmax has terms that sdpa leaves out."""
    terms = terms_of(module, kwargs)
    if terms is not PLAIN:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        return attend_rows(query, key, value, mask, scale, terms), None
    rows, columns = query.shape[2], key.shape[2]
    if mask is None and 1 < rows < columns:
        mask = torch.ones(rows, columns, dtype=torch.bool, device=query.device)
        mask = mask.tril(columns - rows)[None, None]
    out, _ = sdpa_attention_forward(
        module, query, key, value, mask, dropout=dropout, scaling=scaling, **kwargs
    )
    return out, None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
