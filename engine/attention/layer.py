"""The memory of a document as attention sees it: three resolutions per KV head and span.

Pinned rows are exact and always there; folded spans are summary rows until a query needs them,
then decoded rows; hidden windows are not there at all. One softmax over everything. What was read
behind the document and folded, as the old turns of a talk are, stands after its last span.
Positions never change: keys are stored after RoPE, at the positions they were read at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from engine.attention.residency import Host, ResidentSpans, Traffic
from engine.attention.softmax import merge_resolutions
from engine.compression import summaries
from engine.compression.codecs.base import Records, Side
from engine.compression.codecs.layer_basis import of_document
from engine.compression.methods import Method
from engine.compression.ranges import gather_ranges
from engine.compression.routers import two_level
from engine.compression.routers.sketch import choose
from engine.compression.routers.span_zoom import Gated
from engine.compression.routers.two_level import Sketched
from engine.compression.scores import NEG_INF, group_queries
from engine.compression.selectors import ByShare, Choice, RoutingInput, Transcript


@dataclass(frozen=True)
class Step:
    """What one layer did in one forward, for traces and citations.

    spans: [F] document spans that could zoom. share: [Hkv, F] the router's estimate of their
    share of attention. zoomed, lengths: per KV head the spans decoded and their
    tokens. summary: [Hkv, G, F] weight of
    each summary row for the newest query. tokens: per KV head the document tokens of decoded
    and pinned rows, -1 for none. weight: per KV head [G, n] of those rows for the newest query.
    total: the same, added up over the newest `Shared.asked` queries of the forward.
    traffic: what moved for this layer since the question began.
    """

    layer: int
    spans: Tensor
    share: Tensor
    zoomed: list[Tensor]
    lengths: list[Tensor]
    summary: Tensor
    tokens: list[Tensor]
    weight: list[Tensor]
    total: list[Tensor]
    traffic: Traffic = field(default_factory=Traffic)


class Watcher(Protocol):
    def see(self, step: Step) -> None: ...


@dataclass(frozen=True)
class View:
    """Spans that stand as summaries and may zoom, in document order.

    spans: int64 [F] document spans. lengths: [F] tokens. bounds: [F + 1] their places in tensors
    that hold these spans alone. window: [F].
    """

    spans: Tensor
    lengths: Tensor
    bounds: Tensor
    window: Tensor

    @classmethod
    def of(cls, spans: Tensor, bounds: Tensor, window: Tensor) -> View:
        """From document spans and the document's bounds [S + 1] and windows [S]."""
        lengths = (bounds[spans + 1] - bounds[spans]).long()
        return cls(
            spans, lengths, torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]), window[spans]
        )

    def pick(self, keep: Tensor) -> tuple[View, Tensor]:
        """The part where `keep` bool [F] holds, and the token rows it has in this view."""
        rows = gather_ranges(self.bounds[:-1][keep], self.lengths[keep])
        lengths = self.lengths[keep]
        bounds = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        return View(self.spans[keep], lengths, bounds, self.window[keep]), rows

    def slice(self, tensors: Side, keep: Tensor, rows: Tensor) -> Side:
        """Device tensors of the picked part: rows per token (".t") or per span (".s")."""
        return {
            name: t[:, rows if name.endswith(".t") else keep].contiguous()
            for name, t in tensors.items()
        }


@dataclass(frozen=True, eq=False)
class Segment:
    """One layer of what was read behind the document and folded as it is: a turn of a talk.

    bounds: int64 [S + 1] tokens, from 0. folded: bool [S] spans that may zoom; the others are
    exact. rows: k, v [Hkv, P, D] of the exact ones. tensors: router and summaries of the folded.
    records: of all S.
    """

    bounds: Tensor
    folded: Tensor
    rows: tuple[Tensor, Tensor]
    tensors: Side
    records: Records

    @property
    def device_bytes(self) -> int:
        """Bytes that are resident while nothing of it is zoomed."""
        return sum(t.nbytes for t in (*self.rows, *self.tensors.values()))

    @property
    def nbytes(self) -> int:
        """Bytes of everything, wherever it is."""
        return self.device_bytes + self.records.payload.nbytes + self.records.offsets.nbytes


@dataclass
class Coverage:
    """How much of the attention was exact: pinned, live or zoomed rows, and not summaries.

    What a summary row weighs is the router's estimate, so this is one too. Means are over the
    rows and query heads of all steps; least: of the KV head that had most in summaries.
    """

    summaries: dict[int, Tensor] = field(default_factory=dict)
    rows: dict[int, int] = field(default_factory=dict)

    def note(self, layer: int, weight: Tensor) -> None:
        """weight: [Hkv, R, F] of a layer's summary rows."""
        self.summaries[layer] = self.summaries.get(layer, 0.0) + weight.sum((1, 2)).cpu()
        self.rows[layer] = self.rows.get(layer, 0) + weight.shape[1]

    def copy(self) -> Coverage:
        return Coverage(dict(self.summaries), dict(self.rows))

    def since(self, before: Coverage) -> Coverage:
        """What was noted after `before` was copied."""
        new = [layer for layer in self.rows if self.rows[layer] > before.rows.get(layer, 0)]
        return Coverage(
            {layer: self.summaries[layer] - before.summaries.get(layer, 0.0) for layer in new},
            {layer: self.rows[layer] - before.rows.get(layer, 0) for layer in new},
        )

    @property
    def _heads(self) -> Tensor:
        means = [self.summaries[layer] / self.rows[layer] for layer in self.summaries]
        return torch.cat(means) if means else torch.zeros(1)

    @property
    def mean(self) -> float:
        return 1 - float(self._heads.mean())

    @property
    def least(self) -> float:
        return 1 - float(self._heads.max())


@dataclass
class Shared:
    """What all layers know of the document. bounds: int64 [S + 1] tokens. windows: how many.

    scout: float [L, windows] while a question looks for its windows, else None.
    layers: all of them, in order. peak_bytes: the most that was resident at once.
    recomputed_tokens: of the document, that the model read once more while it answered.
    reserved: bytes per layer that the turns of a conversation take from the room to zoom.
    width: budgets that may be resident now; more than one while an unsure step is done again.
    coverage: since the question was asked.
    heard: the question that is being answered, and the answer so far.
    estimates: whether watchers want what the router estimates even where nothing is to be chosen.
    asked: tokens of the question that is being answered; the turns before it are none of them.
    """

    bounds: Tensor
    windows: int
    watchers: list[Watcher] = field(default_factory=list)
    scout: Tensor | None = None
    layers: list[LayerMemory] = field(default_factory=list)
    peak_bytes: int = 0
    recomputed_tokens: int = 0
    reserved: int = 0
    width: float = 1.0
    coverage: Coverage = field(default_factory=Coverage)
    heard: Transcript = field(default_factory=Transcript)
    estimates: bool = True
    asked: int = 1

    @property
    def tokens(self) -> int:
        return int(self.bounds[-1])

    @property
    def device_bytes(self) -> int:
        """Bytes of all layers on their devices now."""
        return sum(layer.device_bytes for layer in self.layers)

    def note_bytes(self) -> None:
        """Remember the most that was ever resident at once."""
        self.peak_bytes = max(self.peak_bytes, self.device_bytes)


def allot(caps: Sequence[float], least: Sequence[float], most: Sequence[float]) -> list[float]:
    """What each layer may hold when those that need less than their share leave the rest to others.

    Every layer keeps the smaller of its share and its need, whatever the others hold; the rest goes
    to those that need more, in proportion to what they lack. It follows from shares and needs
    alone, so that no layer can lose at one step what it was given at another.

    Args:
        caps: bytes, the share of each layer.  least: bytes that a layer takes whatever happens;
        where that is more than its share, all others give in proportion to what they have.
        most: bytes with which a layer has all it can use.
    Returns:
        bytes for each layer, their sum at most that of `caps` where what all take at least is.
    """
    own = [max(low, min(cap, high)) for cap, low, high in zip(caps, least, most, strict=True)]
    left = sum(caps) - sum(own)
    ends = most if left >= 0 else least
    ways = [abs(end - mine) for end, mine in zip(ends, own, strict=True)]
    total = sum(ways)
    part = min(1.0, abs(left) / total) if total > 0 else 0.0
    return [
        mine + part * (end - mine) if way > 0 else mine
        for mine, end, way in zip(own, ends, ways, strict=True)
    ]


@dataclass(frozen=True)
class Limits:
    """cap: device bytes per layer, everything counted; see `allot` for what others leave of theirs.
    coverage: share of the estimated attention to have exact. momentum: how much of a span's
    importance stays for the next step, so that spans in use are not fetched again."""

    cap: float
    coverage: float
    momentum: float = 0.25


OFFSET_BYTES = 8
TABLE_BYTES = 2 * OFFSET_BYTES
"""What a zoomed span costs beside its record: an id and an offset. Each KV head has one offset
more than spans."""


class LayerMemory:
    """One layer of the document memory on its device."""

    def __init__(
        self,
        layer: int,
        recipe: Method,
        shared: Shared,
        limits: Limits,
        side: Side,
        rows: tuple[Tensor, Tensor, Tensor],
        view: View,
        tensors: Side,
        host: Host,
    ):
        """rows: pinned k, v [Hkv, P, D] and their document tokens [P], -1 for the prefix.
        tensors: router and summaries of `view`. All on one device."""
        self.layer, self.recipe, self.shared, self.limits = layer, recipe, shared, limits
        self.side, self.host = side, host
        self.bounds = shared.bounds.to(rows[0].device)
        self.pinned_k, self.pinned_v, self.pinned_token = rows
        self.heads, _, self.size = self.pinned_k.shape
        self.device = self.pinned_k.device
        self._all, self.view, self.tensors = view, view, tensors
        self._document, self._exact = view, self.pinned_k.shape[1]
        self._behind: list[Segment] | None = []  # None while it changes
        self._runs: dict[str, list[tuple[int, int]]] | None = None
        self._most: int | None = None  # of the records in view
        self._fixed = self._weigh()
        self.zoomed = ResidentSpans(self.heads, self.device)
        self.choice: Choice = recipe.selector.begin()

    # -- bytes ---------------------------------------------------------------------

    @property
    def fixed_bytes(self) -> int:
        """Bytes that are on the device whatever is zoomed."""
        return self._fixed

    def _weigh(self) -> int:
        tensors = [self.pinned_k, self.pinned_v]
        if not self.recipe.selector.static:  # a static ranking stays on the host
            tensors += [*of_document(self.side).values(), *self.tensors.values()]
        return sum(t.nbytes for t in tensors)

    @property
    def device_bytes(self) -> int:
        return self.fixed_bytes + self.zoomed.nbytes

    @property
    def room(self) -> float:
        """Bytes left for zoomed records and their tables."""
        shared = self.shared
        layers = shared.layers or [self]
        caps = [shared.width * layer.limits.cap - shared.reserved for layer in layers]
        least = [layer.least_bytes for layer in layers]
        given = allot(caps, least, [layer.most_bytes for layer in layers])
        return given[layers.index(self)] - self.least_bytes

    @property
    def least_bytes(self) -> int:
        """Bytes of this layer when nothing is zoomed."""
        return self.fixed_bytes + OFFSET_BYTES * self.heads

    @property
    def most_bytes(self) -> int:
        """Bytes of this layer when every span in view is zoomed."""
        if self._most is None:
            sizes = self.host.sizes[:, self.view.spans.cpu()]
            self._most = int(sizes.sum()) + TABLE_BYTES * sizes.numel()
        return self.least_bytes + self._most

    def follow(self, behind: Sequence[Segment]) -> None:
        """Have these stretches behind the document, in place of any there before.

        Their spans stand after the document's and are chosen, fetched and weighed like them; no
        focus hides them, and watchers, who know the document alone, are not told of them.
        """
        self.release()
        if list(behind) == self._behind:
            return
        self._behind = None
        own, exact = self._document, self._exact
        bounds, spans, last = [self.shared.bounds], [own.spans], self.shared.bounds[-1:]
        for stretch in behind:
            first = sum(len(part) for part in bounds) - 1
            spans.append(torch.nonzero(stretch.folded)[:, 0].to(self.device) + first)
            bounds.append(stretch.bounds[1:] + last)
            last = bounds[-1][-1:]
        self.bounds = torch.cat(bounds).to(self.device)
        ids = torch.cat(spans)
        window = own.window.new_full((len(ids),), self.shared.windows)
        window[: len(own.spans)] = own.window
        lengths = self.bounds[ids + 1] - self.bounds[ids]
        places = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        self._all = self.view = View(ids, lengths, places, window)
        for name, t in self.tensors.items():
            kept = t[:, : own.bounds[-1] if name.endswith(".t") else len(own.spans)]
            parts = [stretch.tensors[name].to(t.device) for stretch in behind]
            self.tensors[name] = torch.cat([kept, *parts], 1)
        more = [[x.to(self.pinned_k) for x in stretch.rows] for stretch in behind]
        self.pinned_k = torch.cat([self.pinned_k[:, :exact], *(k for k, _ in more)], 1)
        self.pinned_v = torch.cat([self.pinned_v[:, :exact], *(v for _, v in more)], 1)
        unknown = self.pinned_token.new_full((self.pinned_k.shape[1] - exact,), -1)
        self.pinned_token = torch.cat([self.pinned_token[:exact], unknown])
        self.host.follow([stretch.records for stretch in behind])
        self._behind = list(behind)
        self._fixed, self._most = self._weigh(), None

    def focus(self, windows: Tensor | None) -> None:
        """See only these windows' spans (int64 ids), or all; forget what the last steps wanted."""
        self.view, self._runs, self.choice = self._all, None, self.recipe.selector.begin()
        self._most = None
        if windows is not None:
            behind = windows.new_full((1,), self.shared.windows)
            ids = torch.cat([windows, behind]).to(self.device).sort().values
            self.view, _ = self._all.pick(torch.isin(self._all.window, ids))
            first = torch.searchsorted(self._all.window, ids)
            last = torch.searchsorted(self._all.window, ids, right=True)
            self._runs = {
                kind: list(zip(places[first].tolist(), places[last].tolist(), strict=True))
                for kind, places in (
                    (".t", self._all.bounds),
                    (".s", torch.arange(len(self._all.bounds), device=self.device)),
                )
            }

    def release(self) -> None:
        """Give back everything a question brought to the device."""
        self.zoomed.sync([self.view.spans[:0]] * self.heads, self.host)
        self.focus(None)

    def _visible(self) -> Side:
        """Device tensors of the view; under a focus a passing copy, so that none stays twice."""
        runs = self._runs
        if runs is None:
            return self.tensors
        return {
            name: torch.cat([t[:, :0], *(t[:, a:b] for a, b in runs[name[-2:]])], 1)
            for name, t in self.tensors.items()
        }

    # -- attention -----------------------------------------------------------------

    def attend(self, q: Tensor, live_k: Tensor, live_v: Tensor, seen: Tensor) -> Tensor:
        """One softmax over pinned rows, summaries, zoomed tokens and the live rows.

        Args:
            q: [H, Q, D], scaled so that scores are q.k / sqrt(D).
            live_k, live_v: [Hkv, n, D] question and answer so far.
            seen: bool [Q, n] which live rows a query sees.
        Returns:
            [H, Q, D] float32.
        """
        rows = q.shape[1]
        q = group_queries(q, self.heads)
        scale = 1 / math.sqrt(self.size)
        pinned = torch.bmm(q, self.pinned_k.float().mT) * scale
        live = torch.bmm(q, live_k.float().mT) * scale
        live = live.masked_fill(~seen.repeat(q.shape[1] // rows, 1), NEG_INF)
        if self._everything_fits():
            wanted = self.view.spans.new_ones(self.heads, len(self.view.spans), dtype=torch.bool)
            share, mass = q.new_empty(self.heads, 0), q.new_empty(self.heads, q.shape[1], 0)
            values = self.pinned_v.new_empty(self.heads, 0, self.size)
        else:
            share, mass, wanted, values = self._estimate(q, rows, pinned, live, live_k)
        if self.choice.hidden is not None:
            live = live.masked_fill(self.choice.hidden[:, None], NEG_INF)
        self.zoomed.sync([self.view.spans[w] for w in wanted], self.host)
        self.shared.note_bytes()
        zoom_k, zoom_v, tokens = self._decode()
        zoom = torch.bmm(q, zoom_k.mT) * scale
        zoom = zoom.masked_fill((tokens < 0)[:, None], NEG_INF)
        out, weights = merge_resolutions(
            [pinned, live, mass, zoom], [self.pinned_v, live_v, values, zoom_v]
        )
        if self.shared.scout is None:
            self.shared.coverage.note(self.layer, weights[2])
        if self.shared.watchers:
            self._report(share, weights, tokens, rows)
        return out.reshape(-1, rows, self.size)

    def _everything_fits(self) -> bool:
        """Whether every span in view is zoomed whatever is asked, so that nothing is to be
        estimated: what a method that fills its room has room for."""
        shared = self.shared
        if shared.estimates or shared.scout is not None or self.limits.coverage < 1:
            return False
        if not isinstance(self.recipe.selector, ByShare) or isinstance(self.recipe.router, Gated):
            return False
        sizes = self.host.sizes[:, self.view.spans.cpu()]
        return int(sizes.sum()) + TABLE_BYTES * sizes.numel() <= self.room

    def _estimate(
        self, q: Tensor, rows: int, pinned: Tensor, live: Tensor, live_k: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the router says of the spans in view, and what the selector makes of it.

        Args:
            q: [Hkv, R, D].  pinned, live: their scores on the rows that are exact.
        Returns:
            share [Hkv, F], largest over rows; the scores [Hkv, R, F] and values [Hkv, F, D] of the
            summary rows; and bool [Hkv, F], what is zoomed instead.
        """
        tensors = self._visible()
        router, hides = self.recipe.router, self.recipe.selector.hides
        mass, refined = self._mass(q, tensors)
        drawn = None
        if isinstance(router, Gated):
            share = worth = router.wish(q, tensors, self.side, self.view.bounds)
        else:
            drawn = _shares(pinned, live, mass)
            share = worth = drawn.amax(1)
            if refined is not None:
                worth = two_level.ranked(worth, refined)
        wanted = torch.zeros_like(share, dtype=torch.bool)
        if self.shared.scout is not None:
            self._scout(mass if refined is None else mass.masked_fill(~refined[:, None], NEG_INF))
        if self.shared.scout is None or hides:
            wanted = self._choose(q, rows, worth, drawn, live_k, tensors)
        if hides:
            values = self.pinned_v.new_zeros(1).expand(self.heads, mass.shape[-1], self.size)
            return share, torch.full_like(mass, NEG_INF), wanted, values
        values = summaries.unpack_values(tensors, self.side)
        return share, mass.masked_fill(wanted[:, None], NEG_INF), wanted, values

    def _mass(self, q: Tensor, tensors: Side) -> tuple[Tensor, Tensor | None]:
        """The router's log-mass [Hkv, R, F]; where the view is long, by tokens of the best spans
        alone, and which these are, bool [Hkv, F]."""
        router, levels, bounds = self.recipe.router, self.recipe.levels, self.view.bounds
        if "ball.s" in tensors and isinstance(router, Sketched) and bounds[-1] >= levels.beyond:
            return two_level.logmass(router, levels, q, tensors, self.side, bounds)
        return router.logmass(q, tensors, self.side, bounds), None

    def _choose(
        self,
        q: Tensor,
        rows: int,
        share: Tensor,
        drawn: Tensor | None,
        live_k: Tensor,
        tensors: Side,
    ) -> Tensor:
        """bool [Hkv, F]: what to zoom now, as the method's selector has it; drawn: see `choose`."""
        current = [torch.isin(self.view.spans, spans) for spans in self.zoomed.spans]
        look = RoutingInput(
            q=q,
            rows=rows,
            share=share,
            current=torch.stack(current),
            live_k=live_k,
            heard=self.shared.heard,
            momentum=self.limits.momentum,
            uncovered=1 - self.limits.coverage,
            estimate=lambda q: self._mass(q, tensors)[0],
            fit=partial(self._fit, drawn=drawn),
        )
        return self.choice.choose(look)

    def _fit(
        self,
        worth: Tensor,
        uncovered: float = 0.0,
        live: Sequence[int] = (),
        drawn: Tensor | None = None,
    ) -> Tensor:
        """What fits the room by falling worth; see `RoutingInput.fit`.

        live: tokens of each live range.
        """
        sizes = self.host.sizes[:, self.view.spans.cpu()].to(self.device)
        cost = sizes + TABLE_BYTES
        kept = sizes > 0  # a strict method has dropped the others for good
        if live:
            row = self.pinned_k.element_size() * 2 * self.size
            more = cost.new_tensor([row * tokens for tokens in live]).expand(self.heads, -1)
            cost, kept = torch.cat([cost, more], 1), torch.cat([kept, more > 0], 1)
        if len(worth) < self.heads:
            kept, cost = kept.all(0, keepdim=True), cost.sum(0, keepdim=True)
        if isinstance(self.recipe.router, Gated):
            kept = kept & (worth > 0)  # where its gate is closed nothing is zoomed
        chosen = choose(worth.masked_fill(~kept, -1.0), cost, self.room, uncovered, drawn) & kept
        return chosen.expand(self.heads, -1)

    def _scout(self, mass: Tensor) -> None:
        """Let every query row vote for windows by the best span of each; mass [Hkv, GQ, F].

        Windows are held against each other alone, so that a head which mostly looks at the
        question still says where in the document it would look.
        """
        assert self.shared.scout is not None
        best = mass.new_full((*mass.shape[:2], self.shared.windows + 1), NEG_INF)
        best.scatter_reduce_(2, self.view.window.expand_as(mass), mass, "amax")
        votes = torch.softmax(best[..., :-1], -1).sum((0, 1))  # what stands behind has no window
        self.shared.scout[self.layer] = votes.to(self.shared.scout.device)

    def _decode(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of the zoomed spans, padded over heads: k, v [Hkv, M, D], tokens [Hkv, M] or -1."""
        ks, vs, tokens = [], [], []
        bounds = self.bounds
        for head, spans in enumerate(self.zoomed.spans):
            lengths = bounds[spans + 1] - bounds[spans]
            k, v = self.recipe.codec.decode(
                head, self.zoomed.payload[head], self.zoomed.offsets[head], lengths, self.side
            )
            ks.append(k)
            vs.append(v)
            tokens.append(gather_ranges(bounds[spans], lengths))
        pad = torch.nn.utils.rnn.pad_sequence
        return (
            pad(ks, batch_first=True),
            pad(vs, batch_first=True),
            pad(tokens, batch_first=True, padding_value=-1),
        )

    def _report(self, share: Tensor, weights: list[Tensor], tokens: Tensor, rows: int) -> None:
        pinned, _, summary, zoom = (
            w.reshape(self.heads, w.shape[1] // rows, rows, w.shape[2]) for w in weights
        )
        spans = self.view.spans[self.view.spans < len(self.shared.bounds) - 1]
        zoomed = [s[s < len(self.shared.bounds) - 1] for s in self.zoomed.spans]
        tokens = tokens.masked_fill(tokens >= self.shared.tokens, -1)
        first = max(0, rows - self.shared.asked)
        step = Step(
            layer=self.layer,
            spans=spans,
            share=share[:, : len(spans)],
            zoomed=zoomed,
            lengths=[self.bounds[s + 1] - self.bounds[s] for s in zoomed],
            summary=summary[:, :, -1, : len(spans)],
            tokens=[torch.cat([t, self.pinned_token]) for t in tokens],
            weight=[torch.cat([zoom[h, :, -1], pinned[h, :, -1]], -1) for h in range(self.heads)],
            total=[
                torch.cat([zoom[h, :, first:].sum(1), pinned[h, :, first:].sum(1)], -1)
                for h in range(self.heads)
            ],
            traffic=replace(self.zoomed.traffic),
        )
        for watcher in self.shared.watchers:
            watcher.see(step)


def _shares(pinned: Tensor, live: Tensor, mass: Tensor) -> Tensor:
    """The estimated share of each row's attention that each span draws, [Hkv, R, F]."""
    total = torch.logaddexp(pinned.logsumexp(-1), live.logsumexp(-1))
    total = torch.logaddexp(total, mass.logsumexp(-1))
    return torch.exp(mass - total[..., None])


def no_spans(device: torch.device) -> View:
    """A view of nothing."""
    none = torch.empty(0, dtype=torch.int64, device=device)
    return View(none, none, none.new_zeros(1), none)


class WholeLayer(LayerMemory):
    """A layer whose every token is on the device as a row: method `full`, and `--full`."""

    def attend(self, q: Tensor, live_k: Tensor, live_v: Tensor, seen: Tensor) -> Tensor:
        rows = q.shape[1]
        q = group_queries(q, self.heads)
        scale = 1 / math.sqrt(self.size)
        pinned = torch.bmm(q, self.pinned_k.float().mT) * scale
        live = torch.bmm(q, live_k.float().mT) * scale
        live = live.masked_fill(~seen.repeat(q.shape[1] // rows, 1), NEG_INF)
        out, weights = merge_resolutions([pinned, live], [self.pinned_v, live_v])
        if self.shared.watchers:
            nothing = torch.zeros(self.heads, 0, device=self.device)
            none = torch.empty(self.heads, 0, dtype=torch.int64, device=self.device)
            self._report(
                nothing,
                [
                    weights[0],
                    weights[1],
                    nothing[:, None].expand(-1, q.shape[1], -1),
                    nothing[:, None].expand(-1, q.shape[1], -1),
                ],
                none,
                rows,
            )
        return out.reshape(-1, rows, self.size)


def whole_rows(recipe: Method, host: Host, bounds: Tensor, side: Side) -> tuple[Tensor, Tensor]:
    """All tokens of a layer decoded from the host: k, v float32 [Hkv, N, D], on the CPU."""
    payload, starts = host.fetch(torch.arange(len(bounds) - 1))
    lengths = bounds.diff()
    ks, vs = [], []
    for head in range(host.heads):
        size = host.sizes[head].long()
        records = payload[gather_ranges(starts[:, head], size)]
        offsets = torch.cat([size.new_zeros(1), size.cumsum(0)])
        k, v = recipe.codec.decode(head, records, offsets, lengths, side)
        ks.append(k)
        vs.append(v)
    return torch.stack(ks), torch.stack(vs)
