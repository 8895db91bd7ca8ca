"""The reader: a transformers causal LM that prefills windows and refuses to bypass the memory.

It knows prompts and positions, not spans: what happens with the keys and values of a window is
the business of `compression` and `ingest`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache

from engine.attention import seam
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
from engine.models.load import (
    check_supported,
    load_config,
    load_tokenizer,
    load_weights,
    pick_device,
    pick_dtype,
)
from engine.models.locate import SILENT, Located, locate
from engine.models.prompt import Prompt
from engine.models.surprisal import surprisal
from engine.models.window_cache import window_cache
from engine.types import ModelIdentity, Progress

NOTHING = Observe()
PROBE_TOKENS = 24  # ids of the probe; read twice, so that attention and positions matter


@dataclass(frozen=True)
class Chunk:
    """A stretch of a window after its forward: document tokens start .. start + n - 1.

    k, v: per layer [Hkv, n, D], keys after RoPE. surprisal: float32 [n] nats.
    hidden: [1, d] the last row's hidden state, which predicts the next chunk's first token.
    queries, spread, near: what was asked to be observed, see `observation.ObservingProbe`; `places`
    are the document tokens whose queries `spread` holds.
    """

    start: int
    k: list[Tensor]
    v: list[Tensor]
    surprisal: Tensor
    hidden: Tensor
    queries: list[Tensor] = field(default_factory=list)
    near: Tensor | None = None
    spread: list[Tensor] = field(default_factory=list)
    places: list[int] = field(default_factory=list)


class Reader:
    """A loaded model with its tokenizer, prompt and identity.

    located: what it was loaded from. reads_well: document tokens that it reads well in one
    context, 0 if nobody knows. terms: of the softmax of each layer, known once `behaviour` is.
    """

    def __init__(
        self, model: Any, tokenizer: Any, identity: ModelIdentity, prompt: Prompt, located: Located
    ):
        self.model, self.tokenizer = model, tokenizer
        self.identity, self.prompt = identity, prompt
        self.located = located
        config = model.config.get_text_config()
        self.layers: int = config.num_hidden_layers
        self.max_positions: int = config.max_position_embeddings
        self.reads_well: int = located.window
        self.devices = _layer_devices(model, self.layers)
        self.dtype: torch.dtype = model.dtype
        self.terms: dict[int, Terms] = {}
        self._last_hidden: Tensor | None = None

    @property
    def dtype_name(self) -> str:
        """The dtype it computes in, as manifests name it."""
        return str(self.dtype).removeprefix("torch.")

    # -- prefill -------------------------------------------------------------------

    @torch.inference_mode()
    def prefix(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of the prompt's prefix, per layer [Hkv, P, D]. Read once per store."""
        cache = DynamicCache(config=self.model.config)
        if not self.prompt.prefix:
            raise ReaderError("the prompt has no token before the document; a reader needs one")
        hidden = self._forward(list(self.prompt.prefix), 0, cache)
        self._last_hidden = hidden[-1:]
        rows = [(k[0], v[0]) for k, v in _rows(cache)]
        identity = self.identity
        shape = (identity.kv_heads, len(self.prompt.prefix), identity.head_dim)
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
        cache = window_cache(self.layers, before + len(ids), prefix)
        if self._last_hidden is None:
            self.prefix()
        assert self._last_hidden is not None
        hidden_before = self._last_hidden
        start = 0
        for chunk in done:
            for index, device in enumerate(self.devices):
                k, v = chunk.k[index].to(device), chunk.v[index].to(device)
                cache.update(k[None], v[None], index)
            hidden_before = chunk.hidden
            start = chunk.start + len(chunk.surprisal)
        wanted = spread_places(len(ids), observe.spread) if observe.spread else []
        while start < len(ids):
            piece = ids[start : start + chunk_tokens]
            places = [place for place in wanted if start <= place < start + len(piece)]
            picked = [place - start for place in places]
            reading = ObservingProbe(observe, self.layers, before, picked)
            hidden = self._forward(piece, before + start, cache, reading, causal=True)
            rows = torch.cat([hidden_before.to(hidden), hidden[:-1]])
            nats = self._surprisal(rows, piece)
            hidden_before = hidden[-1:].clone()  # no view of all rows
            here = slice(before + start, before + start + len(piece))
            yield Chunk(
                start,
                [k[0, :, here] for k, _ in _rows(cache)],
                [v[0, :, here] for _, v in _rows(cache)],
                nats,
                hidden_before,
                reading.queries,
                reading.near,
                reading.spread,
                places,
            )
            start += len(piece)

    @torch.inference_mode()
    def behaviour(self) -> tuple[float, ...]:
        """What model, library and code together make of fixed token ids, said twice in a row: the
        surprisal of each but the first in nats. Whoever computes otherwise differs here."""
        vocabulary = self.model.get_input_embeddings().num_embeddings
        ids = [(7919 * i * i + 104729 * i + 13) % vocabulary for i in range(PROBE_TOKENS)] * 2
        seen = _TermsProbe(self.terms)
        hidden = self._forward(ids, 0, DynamicCache(config=self.model.config), seen)
        return tuple(round(nats, 3) for nats in self._surprisal(hidden[:-1], ids[1:]).tolist())

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
        cache = window_cache(self.layers, before + max(map(len, fitting), default=0), prefix)
        for chunk in chunks:
            for index, device in enumerate(self.devices):
                k, v = chunk.k[index].to(device), chunk.v[index].to(device)
                cache.update(k[None], v[None], index)
        for tokens in filter(None, fitting):
            self._forward(tokens, before, cache, probe)
            cache.crop(-len(tokens))

    def query_statistics(
        self, prefix: list[tuple[Tensor, Tensor]], chunks: list[Chunk]
    ) -> list[QueryMoments]:
        """What the window's own queries make of its keys and values, per layer; empty where none
        were observed while it was read."""
        places = [place for chunk in chunks for place in chunk.places]
        if not places:
            return []
        return [
            query_moments(
                torch.cat([chunk.spread[layer] for chunk in chunks], 1),
                places,
                joined_rows(chunks, layer),
                (before[0].cpu(), before[1].cpu()),
                self.terms.get(layer, PLAIN),
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
        rope = getattr(self.model.base_model, "rotary_emb", None)
        if rope is None:
            raise ReaderError(f"{name} has no RoPE: its keys are the same before it")
        device = self.devices[0]
        places = torch.arange(start, start + tokens, device=device)[None]
        cos, sin = (t[0].float().cpu() for t in rope(torch.zeros(1, device=device), places))
        # The first layer's key follows from token and position alone: held against each other.
        first, last = (self._first_key(place) for place in (start, start + tokens - 1))
        if cos.shape[-1] == size:
            rotated = apply_rope(invert_rope(first, cos[:1], sin[:1]), cos[-1:], sin[-1:])
            if float((rotated - last).norm()) <= 0.05 * float(last.norm()):  # 16-bit models round
                return cos, sin
        raise ReaderError(
            f"{name} turns only a part of a key's components, or other pairs than (i, i + D / 2): "
            "keys before RoPE are not known"
        )

    @torch.inference_mode()
    def _first_key(self, position: int) -> Tensor:
        """The first layer's keys [Hkv, 1, D] of some token alone at a position."""
        cache = DynamicCache(config=self.model.config)
        self._forward([self.prompt.prefix[0]], position, cache)
        return _rows(cache)[0][0][0].float().cpu()

    def read_behind(
        self, ids: list[int], cache: seam.MemoryCache, stop: Callable[[], bool] | None = None
    ) -> Tensor:
        """Read tokens behind a memory; their keys and values are in `cache` then.

        Args:
            stop: asked between chunks of them whether to give up.
        Returns:
            their surprisal in nats, float32 [n]; 0 for the first, which nothing here foretells.
        Raises:
            StoppedError: `stop` said so.
        """
        outputs = chunked.read(self.model, ids, cache, stop, output_hidden_states=True)
        hidden = torch.cat([out.hidden_states[-1][0] for out in outputs])
        within = [self._surprisal(hidden[:-1], ids[1:])] if ids[1:] else []
        return torch.cat([torch.zeros(1), *within])

    def _forward(
        self,
        ids: list[int],
        position: int,
        cache: Cache,
        probe: Probe | None = None,
        *,
        causal: bool = False,
    ) -> Tensor:
        """Hidden states [n, d] of a piece; never any logits. causal: it follows all that is in the
        cache, which a CPU attends to without a mask."""
        tokens = torch.tensor([ids], device=self.devices[0])
        places = torch.arange(position, position + len(ids), device=self.devices[0])[None]
        keywords: dict[str, Any] = {} if probe is None else {"probe": probe}
        if causal and all(device.type == "cpu" for device in self.devices):
            keywords["causal"] = True
        out = self.model.base_model(
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
        factor = getattr(config, "logit_scale", 1.0) / getattr(config, "logits_scaling", 1.0)
        cap = getattr(config, "final_logit_softcapping", None)
        return surprisal(hidden, targets, self.model.get_output_embeddings(), factor, cap)


@dataclass(frozen=True)
class _TermsProbe:
    """A probe that notes the terms of every layer's softmax."""

    found: dict[int, Terms]

    def observe(self, layer: int, q: Tensor, k: Tensor, v: Tensor, terms: Terms = PLAIN) -> None:
        self.found[layer] = terms


def joined_rows(chunks: list[Chunk], layer: int) -> tuple[Tensor, Tensor]:
    """k, v [Hkv, n, D] of a layer of all chunks, on the CPU."""
    k = torch.cat([chunk.k[layer] for chunk in chunks], 1)
    v = torch.cat([chunk.v[layer] for chunk in chunks], 1)
    return k.cpu(), v.cpu()


def _rows(cache: Cache) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of every layer, [1, Hkv, n, D]; `check_supported` let only such layers in."""
    return [(layer.keys, layer.values) for layer in cache.layers]  # type: ignore[misc,union-attr]


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
    placement: dict[str, Any] = {"attn_implementation": seam.NAME}
    if place.type != "cpu":
        placement["device_map"] = "auto" if device == "auto" else str(place)
    identity = identify(model, config, tokenizer, progress)
    pack = kind == torch.float32 and place.type == "cpu" and can_pack() and not gradients
    loaded = load_weights(model.folder, kind, placement, pack=pack)
    seam.attach(loaded)
    reader = Reader(loaded, tokenizer, identity, Prompt.of(tokenizer), model)
    reader.identity = replace(identity, behaviour=reader.behaviour())
    return reader


def _layer_devices(model: Any, layers: int) -> list[torch.device]:
    """The device of every decoder layer, as accelerate placed it."""
    devices: dict[int, torch.device] = {}
    for module in model.modules():
        index = getattr(module, "layer_idx", None)
        if isinstance(index, int) and index not in devices:
            # Packed weights are no parameters, and on the CPU.
            parameter = next(module.parameters(), torch.empty(0))
            if parameter.device.type != "meta":
                devices[index] = parameter.device
    if sorted(devices) != list(range(layers)):
        raise ReaderError(
            f"{type(model).__name__}: {len(devices)} of {layers} layers have attention modules "
            "this tool knows; the memory would be silently bypassed"
        )
    return [devices[i] for i in range(layers)]
