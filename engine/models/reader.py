"""The reader: a transformers causal LM that prefills windows and refuses to bypass the memory.

It knows prompts and positions, not spans: what happens with the keys and values of a window is
the business of `compression` and `ingest`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.cache_utils import Cache

from engine.attention import seam
from engine.attention.layer_states import (
    States,
    looking_layers,
    moved,
    positions,
    put_states,
    states_of,
    take_back,
)
from engine.attention.memory_cache import Attends, MemoryCache
from engine.attention.rope_length import RopeLength, context_for
from engine.attention.row_form import Expansions, caches_latents
from engine.attention.shared import Shared
from engine.compression.observation import Observe, ObservingProbe
from engine.compression.query_statistics import (
    Probe,
    QueryMoments,
    query_moments,
    spread_places,
)
from engine.compression.rope import apply_rope, invert_rope
from engine.compression.terms import PLAIN, Terms
from engine.errors import ReaderError
from engine.models import chunked
from engine.models.half_weights import can_pack
from engine.models.identity import identify
from engine.models.layer_probes import OfLayers, TermsProbe
from engine.models.load import (
    check_supported,
    load_config,
    load_tokenizer,
    load_weights,
    loading,
    pick_device,
    pick_dtype,
)
from engine.models.locate import SILENT, Located, locate
from engine.models.prompt import Prompt
from engine.models.quantized import loading_options, quantization
from engine.models.surprisal import surprisal
from engine.models.text_part import body_of
from engine.models.window_cache import WindowLayer, window_cache
from engine.models.window_chunk import Chunk, joined_rows
from engine.types import STATELESS, ModelIdentity, Progress

NOTHING = Observe()
VECTORS_AT_ONCE = 4096  # words whose tokens' embeddings are held side by side
PROBE_TOKENS = 24  # ids of the probe; read twice, so that attention and positions matter


class Reader:
    """A loaded model with its tokenizer, prompt and identity.

    located: what it was loaded from. reads_well: document tokens that it reads well in one
    context, 0 if nobody knows. memory_layers: numbers of the layers with full attention; only these
    have a document memory, the others keep a state. terms: of the softmax of these layers, known
    once `behaviour` is. context: the length of context whose RoPE frequencies everything is read
    with, 0 where these do not depend on it (`attention.rope_length`); the shortest until `at` says
    otherwise. max_positions: of one context.
    """

    def __init__(
        self, model: Any, tokenizer: Any, identity: ModelIdentity, prompt: Prompt, located: Located
    ):
        self.model, self.tokenizer = model, tokenizer
        self.identity, self.prompt = identity, prompt
        self.located = located
        self.layers = identity.layers
        self.memory_layers = identity.memory_layers
        self._looking = looking_layers(model.config)
        self.expansions = Expansions() if caches_latents(model.config) else None
        self.context = context_for(model.config, 0)
        self.max_positions = self.context or positions(model.config)
        self._rope = RopeLength(self._body) if self.context else None
        self.reads_well: int = located.window
        self.devices = _layer_devices(model, identity)
        self.dtype: torch.dtype = model.dtype
        self.terms: dict[int, Terms] = {}
        self._behind_prefix: tuple[Tensor, States] | None = None

    @property
    def dtype_name(self) -> str:
        """The dtype it computes in, as manifests name it."""
        return str(self.dtype).removeprefix("torch.")

    def at(self, context: int) -> Reader:
        """The same model for contexts of this length, as a store's manifest names it.

        Raises:
            ReaderError: the model has no frequencies of that length.
        """
        if context == self.context:
            return self
        if context_for(self.model.config, context) != context:
            raise ReaderError(
                f"the keys were rotated for contexts of {context or 'any number of'} positions, "
                f"which {self.identity.architecture} does not have: ingest again"
            )
        other = copy.copy(self)
        other.context = other.max_positions = context
        other._behind_prefix = None
        return other

    @torch.inference_mode()
    def word_vectors(self, words: Sequence[str]) -> Tensor:
        """Vectors of words without context: the mean of the input embeddings of a word's tokens, as
        it stands behind a space. float32 [n, d]."""
        embeddings = self.model.get_input_embeddings()
        parts = []
        for start in range(0, len(words), VECTORS_AT_ONCE):
            some = [f" {word}" for word in words[start : start + VECTORS_AT_ONCE]]
            encoded = self.tokenizer.backend_tokenizer.encode_batch_fast(
                some, add_special_tokens=False
            )
            ids = [
                [token for token, real in zip(each.ids, each.attention_mask, strict=True) if real]
                for each in encoded
            ]
            count = torch.tensor([len(tokens) for tokens in ids])
            flat = torch.tensor([token for tokens in ids for token in tokens], dtype=torch.long)
            rows = embeddings(flat.to(self.devices[0])).float().cpu()
            owner = torch.repeat_interleave(count)
            total = torch.zeros(len(some), rows.shape[-1]).index_add_(0, owner, rows)
            parts.append(total / count.clamp_min(1)[:, None])
        return torch.cat(parts)

    # -- prefill -------------------------------------------------------------------

    @property
    def _body(self) -> Any:
        return body_of(self.model)

    def empty_cache(self, capacity: int) -> Cache:
        """A cache for so many tokens."""
        return window_cache(self.model.config, capacity, self.context)

    def cache_behind(
        self, memories: Sequence[Attends], length: int, shared: Shared, **more: Any
    ) -> MemoryCache:
        """An empty cache behind memories of so many positions. more: of `MemoryCache`."""
        return MemoryCache(
            memories, length, shared, expansions=self.expansions, context=self.context, **more
        )

    @cached_property
    def example_states(self) -> States:
        """What layers without full attention keep of one token: names, dtypes and shapes of what
        they keep of any number, but for the rows of a sliding window."""
        cache = self.empty_cache(1)
        with torch.inference_mode():
            self.forward([self.prompt.prefix[0]], 0, cache)
            return states_of(cache.layers)

    @torch.inference_mode()
    def prefix(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of the prompt's prefix, per layer with full attention [Hkv, P, D]. Read
        once per store."""
        ids = list(self.prompt.prefix)
        if not ids:
            raise ReaderError("the prompt has no token before the document; use another model")
        cache = self.empty_cache(len(ids))
        hidden = self.forward(ids, 0, cache)
        self._behind_prefix = hidden[-1:], states_of(cache.layers)
        rows = [(k[0], v[0]) for k, v in self._rows(cache)]
        identity = self.identity
        shape = (identity.kv_heads, len(ids), identity.head_dim)
        for k, v in rows:
            if k.shape != shape or v.shape != shape:
                raise ReaderError(
                    f"{identity.architecture} caches keys {list(k.shape)} and values "
                    f"{list(v.shape)} where its configuration says {list(shape)}; such attention "
                    "is not supported"
                )
        return rows

    @torch.inference_mode()
    def read_window(
        self,
        ids: list[int],
        prefix: list[tuple[Tensor, Tensor]],
        chunk_tokens: int,
        done: list[Chunk],
        observe: Observe = NOTHING,
    ) -> Iterator[Chunk]:
        """Prefill one window in chunks, right after the prefix.

        `done` are chunks of this window read earlier (a resumed ingest); they are put back, not
        read or yielded again. The rows of chunks are views of one buffer for each layer, which is
        free when all chunks have let go of that layer.
        """
        before = len(self.prompt.prefix)
        cache, hidden_before, start = self._cache_behind(prefix, done, before + len(ids))
        wanted = spread_places(len(ids), observe.spread) if observe.spread else []
        while start < len(ids):
            piece = ids[start : start + chunk_tokens]
            places = [place for place in wanted if start <= place < start + len(piece)]
            picked = [place - start for place in places]
            reading = ObservingProbe(observe, self.memory_layers, before, picked)
            hidden = self.forward(piece, before + start, cache, reading, causal=True)
            rows = torch.cat([hidden_before.to(hidden), hidden[:-1]])
            nats = self._surprisal(rows, piece)
            hidden_before = hidden[-1:].clone()  # no view of all rows
            here = slice(before + start, before + start + len(piece))
            yield Chunk(
                start,
                [k[0, :, here] for k, _ in self._rows(cache)],
                [v[0, :, here] for _, v in self._rows(cache)],
                nats,
                hidden_before,
                reading.queries,
                reading.near,
                reading.spread,
                places,
                states_of(cache.layers),
            )
            start += len(piece)

    def _cache_behind(
        self, prefix: list[tuple[Tensor, Tensor]], chunks: list[Chunk], capacity: int
    ) -> tuple[Cache, Tensor, int]:
        """A cache that holds the prefix and what was read of a window, the last hidden state [1, d]
        of that, and how many tokens of the window it is."""
        if self._behind_prefix is None:
            self.prefix()
        assert self._behind_prefix is not None
        hidden, states = self._behind_prefix
        read = 0
        cache = self.empty_cache(capacity)
        rows = [prefix, *(list(zip(chunk.k, chunk.v, strict=True)) for chunk in chunks)]
        for part in rows:
            for number, (k, v) in zip(self.memory_layers, part, strict=True):
                device, layer = self.devices[number], cache.layers[number]
                assert isinstance(layer, WindowLayer)
                layer.put(k[None].to(device), v[None].to(device))
        if chunks:
            hidden, states = chunks[-1].hidden, chunks[-1].states
            read = chunks[-1].start + len(chunks[-1].surprisal)
        states = moved(states, self.devices)
        put_states(cache.layers, states, len(self.prompt.prefix) + read)
        return cache, hidden, read

    @torch.inference_mode()
    def behaviour(self) -> tuple[float, ...]:
        """What model, library and code together make of fixed token ids, said twice in a row: the
        surprisal of each but the first in nats. Whoever computes otherwise differs here.

        Raises:
            ReaderError: the model's own code would not look into a memory, or does not go on from
                the state of a layer.
        """
        ids = self.probe_ids
        hidden = self.forward(ids, 0, self.empty_cache(len(ids)), TermsProbe(self.terms))
        missed = sorted(set(self.memory_layers) - self.terms.keys())
        if missed:
            raise ReaderError(
                f"{self.identity.architecture} does not call the registered attention in layers "
                f"{missed}: the memory would be silently bypassed"
            )
        if self.identity.state_layers:
            self._check_going_on(ids, hidden)
        return tuple(round(nats, 3) for nats in self._surprisal(hidden[:-1], ids[1:]).tolist())

    @property
    def probe_ids(self) -> list[int]:
        vocabulary = self.model.get_input_embeddings().num_embeddings
        return [(7919 * i * i + 104729 * i + 13) % vocabulary for i in range(PROBE_TOKENS)] * 2

    def _check_going_on(self, ids: list[int], whole: Tensor) -> None:
        """Refuse code that reads a text otherwise in chunks than at once: the state at the end of
        one chunk does not reach the next, and would not reach a question either.

        Args:
            whole: hidden states [n, d] of `ids`, read at once.
        """
        cache = self.empty_cache(len(ids))
        third = len(ids) // 3
        starts = range(0, len(ids), third)
        parts = [self.forward(ids[start : start + third], start, cache) for start in starts]
        apart = (torch.cat(parts) - whole).norm() / whole.norm()
        if float(apart) > (1e-3 if self.dtype == torch.float32 else 0.1):
            raise ReaderError(
                f"{self.identity.architecture} of transformers {transformers.__version__} does not "
                "go on from the state of its recurrent layers when it reads several tokens, so "
                "that a document cannot be read in chunks"
            )

    @torch.inference_mode()
    def look_on(
        self,
        ids: list[int],
        prefix: list[tuple[Tensor, Tensor]],
        chunks: list[Chunk],
        asked: Iterable[list[int]],
        probe: Probe,
    ) -> None:
        """Let a probe see each of the sequences `asked` follow a window that was read.

        Args:
            ids, chunks: the window.  asked: token ids, each right behind the window.
        """
        before = len(self.prompt.prefix) + len(ids)
        fitting = [tokens[: max(0, self.max_positions - before)] for tokens in asked]
        capacity = before + max(map(len, fitting), default=0)
        cache, _, _ = self._cache_behind(prefix, chunks, capacity)
        states = states_of(cache.layers)
        for tokens in filter(None, fitting):
            self.forward(tokens, before, cache, probe)
            take_back(cache.layers, len(tokens), states, before)

    def query_statistics(
        self, prefix: list[tuple[Tensor, Tensor]], chunks: list[Chunk]
    ) -> list[QueryMoments]:
        """What the window's own queries make of its keys and values, per layer with full attention;
        empty where none were observed while it was read."""
        places = [place for chunk in chunks for place in chunk.places]
        if not places:
            return []
        return [
            query_moments(
                torch.cat([chunk.spread[layer] for chunk in chunks], 1),
                places,
                joined_rows(chunks, layer),
                (before[0].cpu(), before[1].cpu()),
                self.terms.get(self.memory_layers[layer], PLAIN),
            )
            for layer, before in enumerate(prefix)
        ]

    @torch.inference_mode()
    def rotation(self, start: int, tokens: int) -> tuple[Tensor, Tensor]:
        """How keys are rotated at positions start .. start + tokens - 1, see `rope.apply_rope`:
        cos, sin float32 [tokens, D].

        Raises:
            ReaderError: this model does not turn its keys so: it has no RoPE, or turns a part of
                their components or other pairs of them.
        """
        name, size = self.identity.architecture, self.identity.head_dim
        rope = getattr(self.model.get_decoder(), "rotary_emb", None)
        if rope is None:
            raise ReaderError(
                f"{name} has no RoPE, which this --method is about; use another method"
            )
        device = self.devices[0]
        places = torch.arange(start, start + tokens, device=device)[None]
        if self._rope is not None:
            self._rope.hold(self.context)
        cos, sin = (t[0].float().cpu() for t in rope(torch.zeros(1, device=device), places))
        # The key of a token alone follows from it and its position: held against each other.
        first, last = (self._first_key(place) for place in (start, start + tokens - 1))
        if cos.shape[-1] == size:
            rotated = apply_rope(invert_rope(first, cos[:1], sin[:1]), cos[-1:], sin[-1:])
            if float((rotated - last).norm()) <= 0.05 * float(last.norm()):  # 16-bit models round
                return cos, sin
        raise ReaderError(
            f"{name} turns only a part of a key's components, or other pairs than (i, i + D / 2): "
            "its keys before RoPE are not known; use another --method"
        )

    @torch.inference_mode()
    def _first_key(self, position: int) -> Tensor:
        """The keys [Hkv, 1, D] of some token alone at a position, in the first layer that has full
        attention."""
        cache = self.empty_cache(1)
        self.forward([self.prompt.prefix[0]], position, cache)
        return self._rows(cache)[0][0][0].float().cpu()

    def read_behind(
        self, ids: list[int], cache: MemoryCache, stop: Callable[[], bool] | None = None
    ) -> Tensor:
        """Read tokens behind a memory; their keys and values are in `cache` then.

        Args:
            stop: asked between chunks of them whether to give up.
        Returns:
            their surprisal in nats, float32 [n]; 0 for the first, which nothing here foretells.
        Raises:
            StoppedError: `stop` said so.
        """
        more: dict[str, Any] = {"output_hidden_states": True}
        if STATELESS in self.identity.layer_kinds:
            # Gemma 4 computes layers that cache nothing for the rows alone whose logits are kept.
            more["logits_to_keep"] = 0
        outputs = chunked.read(self.model, ids, cache, stop, **more)
        hidden = torch.cat([out.hidden_states[-1][0] for out in outputs])
        within = [self._surprisal(hidden[:-1], ids[1:])] if ids[1:] else []
        return torch.cat([torch.zeros(1), *within])

    def forward(
        self,
        ids: list[int],
        position: int,
        cache: Cache,
        probe: Probe | None = None,
        *,
        causal: bool = False,
    ) -> Tensor:
        """Hidden states [n, d] of a piece; never any logits.

        Args:
            probe: is shown the layers whose queries see all tokens before.
            causal: the piece follows all that is in the cache, which a CPU attends to without a
                mask.
        Raises:
            ReaderError: it ends behind the context whose frequencies are held.
        """
        if self.context and position + len(ids) > self.context:
            raise ReaderError(
                f"{self.identity.architecture} rotates keys otherwise in contexts of more than "
                f"{self.context} positions, and {position + len(ids)} are needed"
            )
        tokens = torch.tensor([ids], device=self.devices[0])
        places = torch.arange(position, position + len(ids), device=self.devices[0])[None]
        looking = self._looking
        keywords: dict[str, Any] = {}
        if probe is not None:
            latents = None if self.expansions is None else cache
            shown = OfLayers(probe, looking, latents)
            keywords["probe"] = shown
            if latents is not None:
                keywords["expansions"] = self.expansions
        if causal and all(device.type == "cpu" for device in self.devices):
            keywords["causal"] = looking
        out = self._body(
            input_ids=tokens,
            position_ids=places,
            past_key_values=cache,
            use_cache=True,
            **keywords,
        )
        hidden: Tensor = out.last_hidden_state[0]
        return hidden

    def _surprisal(self, hidden: Tensor, targets: list[int]) -> Tensor:
        """-log p(target) in nats, float32 [n]."""
        config = self.model.config.get_text_config()
        scale = getattr(config, "logit_scale", None)
        factor = (1.0 if scale is None else scale) / getattr(config, "logits_scaling", 1.0)
        cap = getattr(config, "final_logit_softcapping", None)
        return surprisal(hidden, targets, self.model.get_output_embeddings(), factor, cap)

    def _rows(self, cache: Cache) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of every layer with full attention, [1, Hkv, n, D]."""
        layers: list[Any] = [cache.layers[number] for number in self.memory_layers]
        return [(layer.keys, layer.values) for layer in layers]


# ---------------------------------------------------------------------------- loading


def load_reader(
    model: str | Located,
    *,
    revision: str = "",
    device: str = "auto",
    dtype: str = "auto",
    gradients: bool = False,
    tokenizer: Any = None,
    progress: Progress = SILENT,
) -> Reader:
    """Load a causal LM and check that the memory cannot be bypassed.

    model: one that was located, or what `locate` takes.  revision: of a hub model.  gradients:
    whether they are to pass through it; else a CPU keeps 16-bit weights as they are.  tokenizer:
    the model's, where it is loaded already.

    Raises:
        ReaderError: no such model, unsupported attention, no such device.
    """
    if isinstance(model, str):
        model = locate(model, revision=revision, progress=progress)
    config = load_config(model.folder)
    check_supported(config)
    place = pick_device(device)
    kind = pick_dtype(dtype, place, config)
    tokenizer = tokenizer or load_tokenizer(model.folder)
    placement: dict[str, Any] = {"attn_implementation": seam.NAME, **loading_options(config)}
    quantized = bool(quantization(config))
    if place.type != "cpu" or quantized:  # a quantizer would take a GPU where none is named
        everywhere = device == "auto" and place.type != "cpu"
        placement["device_map"] = "auto" if everywhere else str(place)
    identity = identify(model, config, tokenizer, progress)
    pack = kind == torch.float32 and place.type == "cpu" and can_pack()
    pack = pack and not gradients and not quantized
    loaded = load_weights(model.folder, kind, placement, pack=pack)
    seam.attach(loaded)
    reader = Reader(loaded, tokenizer, identity, Prompt.of(tokenizer), model)
    with loading(model.name):  # its first forward
        reader.identity = replace(identity, behaviour=reader.behaviour())
    return reader


def _layer_devices(model: Any, identity: ModelIdentity) -> list[torch.device]:
    """The device of every decoder layer, as accelerate placed it; of a layer that keeps nothing,
    that of the first."""
    devices: dict[int, torch.device] = {}
    for module in model.modules():
        index = getattr(module, "layer_idx", None)
        if isinstance(index, int) and index not in devices:
            # Packed weights are no parameters, and on the CPU.
            parameter = next(module.parameters(), torch.empty(0))
            if parameter.device.type != "meta":
                devices[index] = parameter.device
    known = {*identity.memory_layers, *identity.state_layers}
    if not known <= devices.keys() or not devices.keys() <= set(range(identity.layers)):
        raise ReaderError(
            f"{type(model).__name__}: {len(devices)} of {identity.layers} layers have attention "
            "modules this tool knows; the memory would be silently bypassed"
        )
    first = devices[min(devices)]
    return [devices.get(number, first) for number in range(identity.layers)]
