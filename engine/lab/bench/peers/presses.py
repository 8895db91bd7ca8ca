"""The presses of NVIDIA's kvpress: what they keep when they have seen the document alone.

The model reads every window in one forward under the press, as kvpress does it, and what is left
in the cache is held. Presses that only mask (kvpress: "does not reduce peak memory") keep every
row, and their bytes say so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from engine.lab.bench.peers.held import FAILURES, Held, PeerError, allowed_bytes, failure, put

if TYPE_CHECKING:
    from pathlib import Path

    from engine.answer.session import Session

INSTALL = (
    "pip install 'sekv[bench]' and then pip install --no-deps kvpress (it pins an older "
    "transformers than sekv needs, and runs with this one all the same)"
)
TRIES = 8
"""Times a press may be asked to keep less, until its real bytes are within the budget."""

_Rows = tuple[Tensor, Tensor, Tensor]
"""Of one layer: k, v [Hkv, P, D] and bool [Hkv, P], which of them are hidden."""


@dataclass(frozen=True)
class Press:
    """One press. make: from kvpress and the share of tokens to remove. masks: it frees nothing."""

    name: str
    make: Callable[[Any, float], Any]
    source: str
    masks: bool = False
    whole: bool = False

    def missing(self) -> str:
        if find_spec("kvpress") is None:
            return f"needs kvpress, which is not installed: {INSTALL}"
        try:
            _library()
        except FAILURES as error:
            return f"kvpress cannot be imported ({error}): {INSTALL}"
        return ""

    def hold(self, session: Session, budget: str, place: Path) -> int:
        manifest = session.store.manifest
        share = allowed_bytes(session, budget) / manifest.tokens
        parts = []
        for window in manifest.windows:
            ids = session.ids[window.start : window.end].tolist()
            parts.append(self._fitted(session, ids, share * len(ids), first=window.start == 0))
        held = []
        for layers in zip(*parts, strict=True):
            k, v, hidden = (torch.cat(column, 1) for column in zip(*layers, strict=True))
            held.append(Held.plain(k, v, hidden if bool(hidden.any()) else None))
        put(session, held)
        return 0

    def _fitted(
        self, session: Session, ids: list[int], allowed: float, *, first: bool
    ) -> list[_Rows]:
        """What the press leaves of a window in at most so many bytes."""
        length = len(session.reader.prompt.prefix) + len(ids)
        model = session.store.manifest.model
        row = 2 * model.numbers_per_token
        kept = allowed / row
        used = 0
        for _ in range(TRIES):
            # Half a token more, so that rounding down gives the tokens that were meant.
            ratio = min(max(0.0, 1 - (int(kept) + 0.5) / length), 1 - 0.5 / length)
            layers = self._pressed(session, ids, ratio, first=first)
            used = sum(k.nbytes + v.nbytes for k, v, _ in layers)
            if self.masks or used <= allowed:
                return layers
            kept -= max(1.0, (used - allowed) / row)
        raise PeerError(
            f"{self.name} keeps {used} bytes of a window at the least, where the budget is "
            f"{allowed:.0f}"
        )

    @torch.inference_mode()
    def _pressed(
        self, session: Session, ids: list[int], ratio: float, *, first: bool
    ) -> list[_Rows]:
        """What a press leaves of a window. The prefix is before every window; only that of the
        first one is seen."""
        reader = session.reader
        prefix = list(reader.prompt.prefix)
        tokens = torch.tensor([[*prefix, *ids]], device=reader.devices[0])
        places = torch.arange(tokens.shape[1], device=tokens.device)
        cache = DynamicCache(config=reader.model.config)
        try:
            press = self.make(_library(), ratio)
            with _prefixes(reader.model, len(prefix)) as before, press(reader.model):
                if hasattr(press, "prefix_length"):  # KVzip guesses it from a chat template
                    press.prefix_length = len(prefix)
                reader.model.base_model(
                    input_ids=tokens,
                    position_ids=places[None],
                    past_key_values=cache,
                    use_cache=True,
                    cache_position=places,  # gone from transformers; presses still ask for it
                )
            masked = _take_masks(reader.model)
        except FAILURES as error:
            _take_masks(reader.model)
            raise failure(self, error) from error
        found = []
        layers: list[Any] = list(cache.layers)
        for index, layer in enumerate(layers):
            k, v = layer.keys[0], layer.values[0]
            hidden = torch.zeros(k.shape[:2], dtype=torch.bool, device=k.device)
            if index in masked:
                _, heads, rows = (part.to(k.device) for part in masked[index])
                hidden[heads, rows] = True
            if not first:  # a kept row of the prefix is a copy, to the last bit
                own = before[index][:, None] == k[:, :, None]
                hidden |= own.all(-1).any(-1)
            if k.dtype == torch.float32:  # as the exact rows of every method are kept
                k, v = k.half(), v.half()
            found.append((k, v, hidden))
        return found


def _library() -> Any:
    """kvpress. On import it puts wrappers around all attention functions, which mask what masking
    presses chose; masks are applied by us, and no other row's attention is to be touched."""
    before = dict(ALL_ATTENTION_FUNCTIONS.items())
    logging.getLogger("kvpress").setLevel(logging.ERROR)  # it warns at every document, on stderr
    library = import_module("kvpress")
    for name, function in before.items():
        ALL_ATTENTION_FUNCTIONS[name] = function
    return library


@contextmanager
def _prefixes(model: Any, count: int) -> Iterator[dict[int, Tensor]]:
    """Keys [Hkv, count, D] by layer of a prompt's first tokens, seen before a press acts."""
    found: dict[int, Tensor] = {}

    def look(module: Any, _: Any, given: dict[str, Any], __: Any) -> None:
        layer = int(module.layer_idx)
        if layer not in found:
            found[layer] = given["past_key_values"].layers[layer].keys[0, :, :count].clone()

    hooks = [module.register_forward_hook(look, with_kwargs=True) for module in _attentions(model)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _attentions(model: Any) -> list[Any]:
    """Where presses act and leave their masks."""
    return [layer.self_attn for layer in model.base_model.layers]


def _take_masks(model: Any) -> dict[int, tuple[Tensor, ...]]:
    """The rows that masking presses left on the modules, by layer; none stay there.

    kvpress would put a key in their place that no query sees; here they are hidden, which means
    the same and cannot fail.
    """
    found = {}
    for module in _attentions(model):
        mask = getattr(module, "masked_key_indices", None)
        if mask is not None:
            found[int(module.layer_idx)] = mask
            module.masked_key_indices = None
    return found


PRESSES = (
    Press(
        "kvpress:snapkv",
        lambda kvpress, ratio: kvpress.SnapKVPress(ratio),
        "kvpress SnapKVPress (arXiv 2404.14469), its last 64 tokens the document's own",
    ),
    Press(
        "kvpress:expectedattention",
        lambda kvpress, ratio: kvpress.ExpectedAttentionPress(ratio),
        "kvpress ExpectedAttentionPress (arXiv 2510.00636)",
    ),
    Press(
        "kvpress:keydiff",
        lambda kvpress, ratio: kvpress.KeyDiffPress(ratio),
        "kvpress KeyDiffPress (arXiv 2504.15364)",
    ),
    Press(
        "kvpress:pyramidkv",
        lambda kvpress, ratio: kvpress.PyramidKVPress(ratio),
        "kvpress PyramidKVPress (arXiv 2406.02069)",
    ),
    Press(
        "kvpress:tova",
        lambda kvpress, ratio: kvpress.TOVAPress(ratio),
        "kvpress TOVAPress (arXiv 2401.06104)",
    ),
    Press(
        "kvpress:chunkkv",
        lambda kvpress, ratio: kvpress.ChunkKVPress(kvpress.SnapKVPress(ratio)),
        "kvpress ChunkKVPress on SnapKV (arXiv 2502.00299)",
    ),
    Press(
        "kvpress:streamingllm",
        lambda kvpress, ratio: kvpress.StreamingLLMPress(ratio),
        "kvpress StreamingLLMPress (arXiv 2309.17453)",
    ),
    Press(
        "kvpress:adakv",
        lambda kvpress, ratio: kvpress.AdaKVPress(kvpress.ExpectedAttentionPress(ratio)),
        "kvpress AdaKVPress on ExpectedAttention (arXiv 2407.11550); masks, frees no bytes",
        masks=True,
    ),
    Press(
        "kvpress:kvzip",
        lambda kvpress, ratio: kvpress.KVzipPress(ratio),
        "kvpress KVzipPress (arXiv 2505.23416); masks, frees no bytes",
        masks=True,
    ),
)
