"""The zoomed spans of one layer on its device, in slots.

Slots are allocated once, as many as the budget allows. A span is copied from its records into free
slots, and frees them when it is no longer wanted; a set of spans that stays the same costs nothing.
Codes keep the bits they have in the store; spans stored as rows share a tensor with pinned rows.
The order of slots does not matter to a softmax. Which spans are wanted is decided in `layer`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.attention.copies import Copies, InPlace
from engine.attention.host_records import Host, Traffic
from engine.attention.view import View
from engine.compression.code_space import CodeSpace
from engine.compression.codecs.base import Codec, CodedRows, ExactRows, Placed
from engine.compression.codecs.shared_basis import FINER
from engine.compression.columns import CodeColumns, CodeLayout
from engine.compression.params import LayerParams, needed
from engine.compression.products import CodeProducts, Residuals
from engine.compression.ranges import gather_ranges
from engine.compression.scores import NEG_INF
from engine.compression.terms import PLAIN, Terms

SLACK = 1.5
"""Residuals that slots have room for, over what as many tokens have on average: they lie thickest
where tokens are unlike the others."""

RESIDUAL_BYTES, TOKEN_BYTES = 6, 4
"""Of a residual: where it belongs and how much it is. Of a slot: which token it holds."""


@dataclass(frozen=True, eq=False)
class Arriving:
    """Spans on their way into slots.

    wanted: bool [Hkv, F], all that are held when they are there. some: [M] places in the view of
    those whose records come. coming: bool [Hkv, M], to which heads. starts: of the records, see
    `Host.fetch`. nbytes: of them. payload: gives them on the device. All but these on the host.
    """

    wanted: Tensor
    some: Tensor
    coming: Tensor
    starts: Tensor
    nbytes: int
    payload: Callable[[], Tensor]


@dataclass(frozen=True)
class Room:
    """Slots for coded rows and for exact rows, of each KV head, and residuals of each, [Hkv]."""

    coded: int
    exact: int
    residuals: tuple[int, ...]

    def caps(self, device: torch.device) -> Tensor:
        """int64 [3, Hkv], as `Needs.cost` counts."""
        heads = len(self.residuals)
        rows = [[self.coded] * heads, [self.exact] * heads, list(self.residuals)]
        return torch.tensor(rows, device=device)


@dataclass(frozen=True, eq=False)
class Needs:
    """What the spans in view take.

    cost: int32 [3, Hkv, F] slots for coded rows, slots for exact rows and residuals of each span,
    all 0 of what a method has dropped. most: of all spans together. longest: exact rows of a span
    at most. coded_bytes, exact_bytes: of a slot, all heads together.
    """

    cost: Tensor
    most: Room
    longest: int
    coded_bytes: int
    exact_bytes: int

    @classmethod
    def of(
        cls,
        codec: Codec,
        sizes: Tensor,
        view: View,
        params: LayerParams,
        layout: CodeLayout | None,
        rows: Tensor,
    ) -> Needs:
        """sizes: bytes of records [Hkv, F] of the view, on the CPU.  layout: of codes, None where
        there are none.  rows: [Hkv, P, D] such as exact rows are kept as."""
        heads, _, size = rows.shape
        if not len(view.spans):
            nothing = torch.zeros(3, heads, 0, dtype=torch.int32, device=rows.device)
            return cls(nothing, Room(0, 0, (0,) * heads), 0, 0, 0)
        lengths = view.lengths.cpu()
        held = codec.contents(sizes, lengths, params)
        exact = torch.where(held.exact, lengths, 0)
        coded = torch.zeros_like(exact) if layout is None else lengths - exact
        cost = torch.stack([coded, exact, held.residuals])
        totals = cost.sum(-1)
        most = Room(int(totals[0].max()), int(totals[1].max()), tuple(totals[2].tolist()))
        return cls(
            cost.int().to(view.spans.device),
            most,
            int(cost[1].max()),
            (0 if layout is None else layout.width) + TOKEN_BYTES * heads,
            heads * (2 * size * rows.element_size() + TOKEN_BYTES),
        )

    def nbytes(self, room: Room) -> int:
        """Bytes of slots of that room."""
        rows = room.coded * self.coded_bytes + room.exact * self.exact_bytes
        return rows + RESIDUAL_BYTES * sum(room.residuals)

    def fit(self, room: float) -> Room:
        """The most slots that `room` bytes hold, of each kind in proportion to what there is, and
        for at least one span of exact rows where that leaves something to the others."""
        most = self.most
        padded = tuple(math.ceil(SLACK * count) for count in most.residuals)
        whole = self.nbytes(Room(most.coded, most.exact, padded))
        if self.nbytes(most) <= room:
            return most
        share = max(0.0, min(1.0, room / max(1, whole)))
        residuals = tuple(
            min(total, int(share * more))
            for total, more in zip(most.residuals, padded, strict=True)
        )
        exact = int(share * most.exact)
        if exact < self.longest and 2 * self.longest * self.exact_bytes <= room:
            exact = self.longest
        left = room - self.nbytes(Room(0, exact, residuals))
        coded = min(most.coded, int(max(0.0, left) / max(1, self.coded_bytes)))
        made = Room(coded if most.coded else 0, exact, residuals)
        return made if self.nbytes(made) <= room else Room(0, 0, (0,) * len(residuals))


NOWHERE, FREE = -1, -2
"""What stands in place of a document token in a slot: a row of none, and no row."""


class ResidentSpans:
    """The spans of a layer that are zoomed, by KV head, and the exact rows that always stay.

    tokens: int32 [Hkv, n] the document token of each slot: of slots for coded rows, of the rows
    that stay, of slots for exact rows. k, v: [Hkv, P + exact slots, D]. row_bytes: of the rows that
    stay. residuals: of the codes of keys and of values. room: the slots there are.
    view: the spans that may come. cost: what they take, see `Needs`, on the host. held: bool
    [Hkv, F]. holds_all: whether these are all. traffic: what came and what was there.

    Who comes and who goes is decided on the host, which keeps a copy of `held`: while all are held,
    nobody has to ask the device.
    """

    def __init__(
        self,
        codec: Codec,
        params: LayerParams,
        rows: tuple[Tensor, Tensor, Tensor],
        view: View,
        copies: Copies | None = None,
    ):
        """rows: k, v [Hkv, P, D] that stay and their document tokens [P], -1 for none. copies: to
        their device, where that is no CPU."""
        self.codec, self.params = codec, params
        self.device = rows[0].device
        layout = codec.layout(params) if len(view.spans) else None
        self.space: CodeSpace | None = None
        if layout is not None:
            self.space = CodeSpace(needed(params.keys), needed(params.codes), layout)
        self.traffic, self._copies = Traffic(), copies or InPlace()
        self.begin(view, rows)

    def begin(self, view: View, rows: tuple[Tensor, Tensor, Tensor]) -> None:
        """Hold nothing but these rows and have no slots; spans of this view may come."""
        self.k, self.v, token = rows
        self.heads, self.pinned, self.size = self.k.shape
        self.row_bytes = row_bytes(rows)
        self._pinned_tokens = token.int().expand(self.heads, -1)
        self.view, self._spans = view, view.spans.cpu()
        nothing = torch.zeros(3, self.heads, len(view.spans), dtype=torch.int32)
        self.allocate(Room(0, 0, (0,) * self.heads), nothing)

    def allocate(self, room: Room, cost: Tensor) -> None:
        """Free slots of that room, in place of all there were, for spans that take of it what
        `cost` says; see `Needs`."""
        self.cost = cost.cpu()
        width = 0 if self.space is None else self.space.layout.width
        k, v = self.pinned_k, self.pinned_v
        with torch.inference_mode(False):  # what is written to later must belong to no mode
            tokens = torch.full((self.heads, room.coded), FREE, dtype=torch.int32)
            free = torch.full((self.heads, room.exact), FREE, dtype=torch.int32)
            pinned = self._pinned_tokens.clone()
            self.tokens = torch.cat([tokens.to(pinned), pinned, free.to(pinned)], 1)
            self.codes = torch.zeros(width, room.coded, dtype=torch.uint8, device=self.device)
            size = 0 if self.space is None else self.space.layout.components
            nothing = Residuals.none(self.heads, size, room.coded, self.device)
            self.residuals = (nothing, nothing)
            if room.exact or self.k.shape[1] != self.pinned:
                none = k.new_zeros(self.heads, room.exact, self.size)
                self.k, self.v = torch.cat([k, none], 1), torch.cat([v, none], 1)
        self._hold(torch.zeros(self.heads, len(self.view.spans), dtype=torch.bool))
        self.room, self._some_free = room, bool(room.coded + room.exact)
        self._slots = room.caps(self.cost.device)[:2]

    def _hold(self, wanted: Tensor) -> None:
        """Note what is held."""
        self._held, self.held = wanted, wanted.to(self.device)
        self._count = int(wanted.sum())
        self.holds_all = self._count == wanted.numel()

    # -- what is there -------------------------------------------------------------

    @property
    def pinned_k(self) -> Tensor:
        """[Hkv, P, D], as `pinned_v`."""
        return self.k[:, : self.pinned]

    @property
    def pinned_v(self) -> Tensor:
        return self.v[:, : self.pinned]

    @property
    def pinned_token(self) -> Tensor:
        """int32 [P]."""
        return self._pinned_tokens[0]

    @property
    def spans(self) -> list[Tensor]:
        """Ascending document spans that each KV head holds."""
        return [self.view.spans[held] for held in self.held]

    @property
    def fixed_bytes(self) -> int:
        """Bytes of the rows that stay, and of what codes are read with."""
        return self.row_bytes + (0 if self.space is None else self.space.layout.nbytes)

    @property
    def nbytes(self) -> int:
        """Bytes of the slots as they are allocated, and of all residuals there is room for."""
        exact = 2 * self.heads * self.room.exact * self.size * self.k.element_size()
        slots = TOKEN_BYTES * self.heads * (self.room.coded + self.room.exact)
        return exact + slots + self.codes.nbytes + RESIDUAL_BYTES * sum(self.room.residuals)

    def working_bytes(self, queries: int) -> int:
        """Bytes that products of so many query rows of a head with all slots take beside them."""
        wide = 0 if self.k.dtype == torch.float32 else 4
        rows = 2 * self.heads * self.k.shape[1] * self.size * wide
        codes = self.products()
        return rows if codes is None else rows + codes.working_bytes(queries)

    # -- who comes and who goes ----------------------------------------------------

    def sync(self, wanted: Tensor, host: Host) -> None:
        """Hold exactly the spans wanted, bool [Hkv, F] on the host, for which there is room; fetch
        only what is new.

        Raises:
            StoreError: a record is damaged; what was held is still held.
        """
        if torch.equal(wanted, self._held):
            self.reuse()
        else:
            self.take(self.fetch(wanted, host), host)

    def reuse(self) -> None:
        """Hold what is held."""
        self.traffic.reused_spans += self._count

    def fetch_all(self, host: Host) -> Arriving | None:
        """Begin to bring all spans of the view; None where all are held.

        Raises:
            StoreError: a record does not match its checksum.
        """
        return None if self.holds_all else self.fetch(torch.ones_like(self._held), host)

    def fetch(self, wanted: Tensor, host: Host) -> Arriving:
        """Begin to bring what is new of these spans; until it is taken, nothing else may come.

        Raises:
            StoreError: a record does not match its checksum.
        """
        coming = wanted & ~self._held
        some = coming.any(0).nonzero()[:, 0]
        payload, starts = host.fetch(self._spans[some])
        begun = self._copies.begin(payload)
        return Arriving(wanted.clone(), some, coming[:, some], starts, payload.nbytes, begun)

    def take(self, arriving: Arriving, host: Host) -> None:
        """Put what was fetched into slots, in place of what is not wanted any more.

        Raises:
            StoreError: a record is damaged; what was held is still held.
        """
        wanted, new = arriving.wanted, int(arriving.coming.sum())
        found = self._expand(arriving, host) if new else []
        self._drop(self._held & ~wanted)
        for head, tokens, rows in found:
            if isinstance(rows, CodedRows):
                self._put_coded(head, tokens, rows)
            else:
                self._put_exact(head, tokens, rows)
        self._hold(wanted)
        filled = (self.cost[:2] * wanted).sum(-1)  # of each kind and head
        self._some_free = bool((filled < self._slots).any())
        self.traffic.fetched_bytes += arriving.nbytes
        self.traffic.fetched_spans += new
        self.traffic.reused_spans += self._count - new

    def _expand(
        self, arriving: Arriving, host: Host
    ) -> list[tuple[int, Tensor, CodedRows | ExactRows]]:
        """Per KV head the document tokens and rows of the spans that come to it."""
        some, coming = arriving.some, arriving.coming
        payload, starts = arriving.payload(), arriving.starts.to(self.device)
        sizes = host.sizes[:, self._spans[some]].to(self.device).long()
        coded, exact = (
            (coming & (self.cost[kind][:, some] > 0)).to(self.device) for kind in (0, 1)
        )
        some = some.to(self.device)
        first, lengths = self.view.starts[some], self.view.lengths[some]
        out: list[tuple[int, Tensor, CodedRows | ExactRows]] = []
        for head in range(self.heads):
            records = Placed(starts[:, head], sizes[head], lengths)
            if self.space is not None:
                mine, tokens = _of(records, coded[head], first)
                if len(tokens):
                    layout = self.space.layout
                    rows = self.codec.unpack(head, payload, mine, self.params, layout)
                    out.append((head, tokens, rows))
            if self.room.exact:
                mine, tokens = _of(records, exact[head], first)
                if len(tokens):
                    out.append((head, tokens, self.codec.expand(head, payload, mine, self.params)))
        return out

    def _drop(self, leaving: Tensor) -> None:
        """Free the slots of spans that leave, bool [Hkv, F] on the host."""
        if not bool(leaving.any()):
            return
        places = self.view.of_tokens(self.tokens)
        gone = torch.nn.functional.pad(leaving.to(self.device), (0, 1)).gather(1, places)
        before, behind = self.room.coded, self.room.coded + self.pinned
        gone[:, before:behind] = False
        self.tokens.masked_fill_(gone, FREE)
        k, v = (some.masked(self._filled(some)) for some in self.residuals)
        self.residuals = (k, v)

    def _filled(self, residuals: Residuals) -> Tensor:
        """bool [M]: which of them are of slots that hold a row."""
        size = 1 if self.space is None else self.space.layout.components
        head = torch.div(residuals.index, size, rounding_mode="floor")
        return self.tokens[head, residuals.row] != FREE

    def _free(self, head: int, first: int, last: int, count: int) -> Tensor:
        """The first `count` free slots of a head among first .. last - 1."""
        return (self.tokens[head, first:last] == FREE).nonzero()[:count, 0] + first

    def _put_coded(self, head: int, tokens: Tensor, rows: CodedRows) -> None:
        assert self.space is not None
        layout = self.space.layout
        slots = self._free(head, 0, self.room.coded, len(tokens))
        self.tokens[head, slots] = tokens.int()
        mine = layout.order[layout.first[head] : layout.first[head + 1]].to(self.device)
        if int(slots[-1]) - int(slots[0]) == len(slots) - 1:  # as when all are free: much quicker
            self.codes[mine, int(slots[0]) : int(slots[-1]) + 1] = rows.packed.T.contiguous()
        else:
            self.codes[mine[:, None], slots[None]] = rows.packed.T
        row, part, component, amount = rows.residuals
        if not len(row):
            return
        value = amount / (FINER * layout.lower[part, head, component].float())
        index, slot = head * layout.components + component, slots[row]
        k, v = (
            some.appended(index[mine], slot[mine], value[mine])
            for some, mine in zip(self.residuals, (part == 0, part == 1), strict=True)
        )
        self.residuals = (k, v)

    def _put_exact(self, head: int, tokens: Tensor, rows: ExactRows) -> None:
        first = self.room.coded + self.pinned
        slots = self._free(head, first, self.tokens.shape[1], len(tokens))
        self.tokens[head, slots] = tokens.int()
        self.k[head, slots - self.room.coded] = rows.k.to(self.k)
        self.v[head, slots - self.room.coded] = rows.v.to(self.v)

    # -- attention -----------------------------------------------------------------

    def products(self) -> CodeProducts | None:
        """Products with the slots for coded rows, keys and values, for one forward; None
        where there are no such slots."""
        if self.space is None or not self.room.coded:
            return None
        return CodeProducts(CodeColumns(self.space.layout, self.codes), self.residuals)

    def scores(
        self, q: Tensor, pinned: Tensor, codes: CodeProducts | None, terms: Terms = PLAIN
    ) -> Tensor:
        """Nats of queries [Hkv, Q, D] with every slot, [Hkv, Q, n]; -inf where one is free.

        pinned: [Hkv, Q, P] those with the rows that stay, under the cap of `terms`.  codes: see
        `products`.
        """
        parts = [pinned]
        if codes is not None:
            assert self.space is not None
            projected, beside = self.space.query(q)
            parts.insert(0, terms.capped(codes.scores(0, projected).add_(beside)))
        if self.room.exact:
            parts.append(terms.capped(row_scores(q, self.k[:, self.pinned :])))
        found = torch.cat(parts, -1) if len(parts) > 1 else pinned
        return (
            found.masked_fill((self.tokens == FREE)[:, None], NEG_INF) if self._some_free else found
        )

    def outputs(
        self, weight: Tensor, codes: CodeProducts | None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Weighted sums over all slots.

        weight: [Hkv, Q, n].  codes: see `products`.
        Returns:
            of exact rows [Hkv, Q, D]; of coded ones as coefficients in the basis of the values, see
            `code_space.from_basis`, and the sums of their weights [Hkv, Q, 1].
        """
        coded, exact = weight[..., : self.room.coded], weight[..., self.room.coded :]
        rows, total = torch.bmm(exact, self.v.float()), coded.sum(-1, keepdim=True)
        if codes is None:
            return rows, None, total
        assert self.space is not None
        return rows, self.space.value(codes.sums(1, coded), total), total


def _of(records: Placed, some: Tensor, first: Tensor) -> tuple[Placed, Tensor]:
    """The records where bool [M] holds, and the document tokens they are of; first: [M] of each."""
    mine = records.where(some)
    return mine, gather_ranges(first[some], mine.lengths)


def row_bytes(rows: tuple[Tensor, Tensor, Tensor]) -> int:
    """Bytes of exact rows k, v [Hkv, P, D] and of the token of each, which every head notes."""
    k, v, token = rows
    return k.nbytes + v.nbytes + TOKEN_BYTES * len(k) * len(token)


def row_scores(q: Tensor, k: Tensor) -> Tensor:
    """Nats of queries float32 [Hkv, Q, D] with rows [Hkv, n, D] of any dtype."""
    return torch.bmm(q, k.float().mT) / math.sqrt(q.shape[-1])
