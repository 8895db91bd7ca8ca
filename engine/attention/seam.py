"""The seam to transformers: one attention function, no model code.

A model loaded with `attn_implementation="sekv"` behaves as with sdpa until a forward gets a
`MemoryCache`; then every full-attention layer attends over the document memory and the live
rows in one softmax. The cache tells positions and mask sizes; the attention function selects,
because only it sees the query. State is passed as a keyword of `forward`, never kept on modules.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from engine.attention.causal_chunk import attend_chunk, attend_rows
from engine.attention.memory_cache import LiveLayer, MemoryCache
from engine.attention.row_form import Expansion, Expansions, widened
from engine.compression.query_statistics import Probe
from engine.compression.terms import PLAIN, Terms
from engine.errors import ReaderError

NAME = "sekv"


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
    number = _number(module)
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


def _number(module: nn.Module) -> int:
    """The number of the layer whose attention calls.

    Raises:
        ReaderError: it is that of several layers, as in Zamba.
    """
    if not isinstance(module.layer_idx, int):
        raise ReaderError(
            f"{type(module).__name__} is one attention that several layers share, so that it does "
            "not say which layer's memory it would look at"
        )
    return module.layer_idx


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
