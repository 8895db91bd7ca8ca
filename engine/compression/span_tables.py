"""Span tables: what a device holds of the spans of a layer, and its names in a store.

A window is written as one `DeviceLayer` per layer; a memory joins those of all windows and picks
the spans that it shows as summaries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from engine.compression.params import Tensors
from engine.compression.tensor_names import CODING_ERRORS

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class SpanTables:
    """What routers and summaries keep of spans, along dimension 1 of every table.

    sketch: uint8 [1, N, bytes], coefficients of the key of every token, heads side by side.
    keys: float16 [Hkv, S, D] or [Hkv, S, C, D], a few keys for every span.
    ranks: float32 [Hkv, S], a choice made while the document was read.
    values: float16 [Hkv, S, D] or packed uint8 [1, S, bytes], what stands for a span's values.
    means, radii: uint8 [1, S, bytes] and float16 [Hkv, S, 2], the span level of a sketch, which no
    store keeps; see `routers.two_level`.
    """

    sketch: Tensor | None = None
    keys: Tensor | None = None
    ranks: Tensor | None = None
    values: Tensor | None = None
    means: Tensor | None = None
    radii: Tensor | None = None

    @classmethod
    def joined(cls, parts: Sequence[SpanTables]) -> SpanTables:
        """The spans of all parts, which have the same tables."""
        found = {}
        for field in fields(cls):
            tables = [getattr(part, field.name) for part in parts]
            if tables[0] is not None:
                found[field.name] = torch.cat(tables, 1)
        return cls(**found)

    def changed(self, of_tokens: Change, of_spans: Change) -> SpanTables:
        """With one function applied to the table that has a row per token, and another to those
        with a row per span."""
        return SpanTables(
            sketch=None if self.sketch is None else of_tokens(self.sketch),
            keys=None if self.keys is None else of_spans(self.keys),
            ranks=None if self.ranks is None else of_spans(self.ranks),
            values=None if self.values is None else of_spans(self.values),
            means=None if self.means is None else of_spans(self.means),
            radii=None if self.radii is None else of_spans(self.radii),
        )

    def pick(self, tokens: Tensor, spans: Tensor) -> SpanTables:
        """Some tokens and spans, by number or where a mask holds."""
        return self.changed(
            lambda table: table[:, tokens].contiguous(), lambda table: table[:, spans].contiguous()
        )

    def to(self, device: torch.device) -> SpanTables:
        return self.changed(lambda table: table.to(device), lambda table: table.to(device))

    @property
    def token_bytes(self) -> int:
        """Of the table with a row per token."""
        return 0 if self.sketch is None else self.sketch.nbytes

    @property
    def nbytes(self) -> int:
        tables = (getattr(self, field.name) for field in fields(self))
        return sum(table.nbytes for table in tables if table is not None)

    def tensors(self, key_names: Sequence[str]) -> Tensors:
        """As a store has them. key_names: of the router, see `Router.key_names`."""
        found = {"sketch.t": self.sketch, "rank.s": self.ranks, "value.s": self.values}
        if self.keys is not None:
            several = self.keys.unbind(2) if len(key_names) > 1 else (self.keys,)
            found |= zip(key_names, (keys.contiguous() for keys in several), strict=True)
        return {name: table for name, table in found.items() if table is not None}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], key_names: Sequence[str]) -> SpanTables:
        several = [tensors[name] for name in key_names if name in tensors]
        keys = torch.stack(several, 2) if len(several) > 1 else several[0] if several else None
        ranks, values = tensors.get("rank.s"), tensors.get("value.s")
        return cls(tensors.get("sketch.t"), keys, ranks, values)


@dataclass(frozen=True)
class DeviceLayer:
    """One layer of a window in a device section.

    tables: of its spans.  exact: k, v [Hkv, P, D] of the tokens that stay exact; None where all
    tokens are kept as rows.  errors: uint8 [Hkv, S], in 1/255 what the codes lost of each span's
    spread, for people; None where a codec does not say.
    """

    tables: SpanTables = SpanTables()
    exact: tuple[Tensor, Tensor] | None = None
    errors: Tensor | None = None

    @classmethod
    def joined(cls, parts: Sequence[DeviceLayer]) -> DeviceLayer:
        """Of several windows; what codes lost is left out."""
        exact = [part.exact for part in parts if part.exact is not None]
        tables = SpanTables.joined([part.tables for part in parts])
        if not exact:
            return cls(tables)
        k, v = (torch.cat(rows, 1) for rows in zip(*exact, strict=True))
        return cls(tables, (k, v))

    def tensors(self, key_names: Sequence[str]) -> Tensors:
        """As a store has them; see `SpanTables.tensors`."""
        found = self.tables.tensors(key_names)
        if self.exact is not None:
            found |= zip(("pinned_k", "pinned_v"), self.exact, strict=True)
        return found if self.errors is None else {**found, CODING_ERRORS: self.errors}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], key_names: Sequence[str]) -> DeviceLayer:
        exact = (tensors["pinned_k"], tensors["pinned_v"]) if "pinned_k" in tensors else None
        return cls(SpanTables.of(tensors, key_names), exact, tensors.get(CODING_ERRORS))
