"""Plain transformers: the model's own attention, a DynamicCache, and `generate`.

The reference of every answer: the prompt is the one every other row gets, and nothing of our memory
takes part in it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache

from engine.lab.bench.peers.held import Held, PeerError, put

if TYPE_CHECKING:
    from pathlib import Path

    from engine.answer.session import Session
    from engine.models.reader import Reader

PLAIN = "transformers:plain"
ATTENTION = "sdpa"
CHUNK = 1024
"""Tokens of one forward, as many as ingest reads at once."""


@dataclass(frozen=True)
class PlainTransformers:
    """Prefix and document read anew, question and answer behind them in one context."""

    name: str = PLAIN
    whole: bool = True
    source: str = "transformers' own attention, DynamicCache and generate, all in one context"

    def missing(self) -> str:
        return ""

    def hold(self, session: Session, budget: str, place: Path) -> int:
        reader, ids = session.reader, session.ids.tolist()
        ids = [*reader.prompt.prefix, *ids]
        room = reader.max_positions - session.options.max_new_tokens
        if len(ids) >= room:
            raise PeerError(
                f"the document has {len(ids)} tokens and the model {reader.max_positions} positions"
            )
        stand_in = PlainModel(reader, ids)
        put(session, [Held(nbytes, _nothing) for nbytes in stand_in.bytes_of_layers])
        session.reader = copy.copy(reader)
        session.reader.model = stand_in
        return 0


class PlainModel:
    """Stands in for the model where a session generates.

    ids: tokens of prefix and document. Attributes that a session asks for are the model's.
    """

    def __init__(self, reader: Reader, ids: list[int]):
        self.model = reader.model
        self.generation_config = self.model.generation_config
        self.read = torch.tensor([ids], device=reader.devices[0])
        self.cache = DynamicCache(config=self.model.config)
        with _own_attention(self.model), torch.inference_mode():
            for start in range(0, len(ids), CHUNK):
                self.model.base_model(
                    input_ids=self.read[:, start : start + CHUNK], past_key_values=self.cache
                )

    @property
    def bytes_of_layers(self) -> list[int]:
        """Of the keys and values of each layer."""
        layers: list[Any] = list(self.cache.layers)
        return [layer.keys.nbytes + layer.values.nbytes for layer in layers]

    def get_input_embeddings(self) -> Any:
        return self.model.get_input_embeddings()

    def generate(
        self, ids: Tensor, *, attention_mask: Tensor, past_key_values: Any, **options: Any
    ) -> Tensor:
        """What the plain model says behind the document; as `GenerationMixin.generate`.

        The memory of the session in `past_key_values` is not looked at.
        """
        known = self.read.shape[1]
        whole = torch.cat([self.read, ids], 1)
        with _own_attention(self.model):
            said: Tensor = self.model.generate(
                whole,
                attention_mask=torch.ones_like(whole),
                past_key_values=self.cache,
                **options,
            )
        self.cache.crop(known - self.cache.get_seq_length())
        return said[:, known:]


@contextmanager
def _own_attention(model: Any) -> Iterator[None]:
    """The attention that transformers itself has, for as long as this lasts."""
    ours = model.config._attn_implementation
    model.set_attn_implementation(ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation(ours)


def _nothing() -> tuple[Tensor, Tensor]:
    raise PeerError("the rows of plain transformers are its own")
