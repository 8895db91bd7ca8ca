"""One layer of a document memory: attention over exact rows, coded spans and span summaries.

Pinned rows are exact and always attended to. A compressed span is one summary row; once it is
chosen (zoomed), its coded rows replace the summary. What lies outside the passages chosen for a
question is hidden. One softmax covers all rows that are left. Compressed older turns of a
conversation come after the document's last span. Positions never change: keys are stored after
RoPE, at the positions they were read at.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from engine.attention.host_records import Host
from engine.attention.index import SpanIndex
from engine.attention.resident import (
    NOWHERE,
    Arriving,
    Needs,
    ResidentSpans,
    row_bytes,
    row_scores,
)
from engine.attention.shared import Shared
from engine.attention.shares import Limits, allot
from engine.attention.softmax import AttendedRows, AttentionWeights, QueryRows
from engine.attention.step import Step
from engine.attention.view import Segment, Stretch, View
from engine.compression.choose_spans import choose
from engine.compression.methods import Method
from engine.compression.params import LayerParams
from engine.compression.routers import two_level
from engine.compression.scores import NEG_INF, group_queries
from engine.compression.selectors import Choice, RoutingInput
from engine.compression.span_tables import SpanTables
from engine.compression.terms import PLAIN, Terms

MOST_SCORES = 1 << 22
"""Scores of query rows that are held at once; more rows are attended to one part after another."""


@dataclass(frozen=True, eq=False)
class RouterEstimate:
    """A router's estimates for the spans in view; either is None where it was not computed.

    share: [Hkv, F] of the attention.  mass: [Hkv, GQ, F] log-mass in nats, the logit of a summary.
    """

    share: Tensor | None = None
    mass: Tensor | None = None


class LayerMemory:
    """One layer of the document memory on its device."""

    def __init__(
        self,
        layer: int,
        recipe: Method,
        shared: Shared,
        limits: Limits,
        params: LayerParams,
        rows: tuple[Tensor, Tensor, Tensor],
        view: View,
        tables: SpanTables,
        host: Host,
    ):
        """rows: pinned k, v [Hkv, P, D] and their document tokens [P], -1 for the prefix.
        tables: router and summaries of `view`; on the CPU where the selector is static, all else
        on the layer's device."""
        self.layer, self.recipe, self.shared, self.limits = layer, recipe, shared, limits
        self.params, self.host = params, host
        self.bounds = shared.bounds.to(rows[0].device)
        self.heads, _, self.size = rows[0].shape
        self.device = rows[0].device
        self._own_rows, self._document = rows, view
        self.index = SpanIndex.of(recipe.router, recipe.levels, params, tables)
        self._behind: list[Segment] | None = []  # None while it changes
        self._replace(view, rows)

    def _replace(self, view: View, rows: tuple[Tensor, Tensor, Tensor]) -> None:
        """Hold these spans and these exact rows, and no others."""
        self._all, self._rows, self.view = view, rows, view
        self._row_bytes = row_bytes(rows)
        copies = self.shared.copies_to(self.device)
        self.zoomed = ResidentSpans(self.recipe.codec, self.params, rows, view, copies)
        self._set_view(view, rows)

    def _set_view(self, view: View, rows: tuple[Tensor, Tensor, Tensor]) -> None:
        """Attend to these spans and rows, and forget the choices of earlier steps. Zoomed spans are
        freed, unless all of the same spans are zoomed: the next question would zoom them again."""
        self.choice: Choice = self.recipe.selector.begin()
        self._arriving: Arriving | None = None
        self._fixed_sum: int | None = None
        same = len(view.spans) and torch.equal(rows[2].int(), self.zoomed.pinned_token)
        if same and self.zoomed.holds_all and torch.equal(view.spans, self.view.spans):
            return
        self.view = view
        self.zoomed.begin(view, rows)
        self._needs: Needs | None = None
        self._planned: tuple[float, int, Limits] | None = None
        self._document_spans = int((view.spans < self.shared.spans).sum())  # of the document itself

    # -- bytes ---------------------------------------------------------------------

    @property
    def full(self) -> bool:
        """Whether everything is zoomed whatever is asked, without a budget."""
        return self.limits.full

    @property
    def pinned_k(self) -> Tensor:
        """Rows that stay, [Hkv, P, D]; so `pinned_v`, and `pinned_token` [P]."""
        return self.zoomed.pinned_k

    @property
    def pinned_v(self) -> Tensor:
        return self.zoomed.pinned_v

    @property
    def pinned_token(self) -> Tensor:
        return self.zoomed.pinned_token

    @property
    def _focused(self) -> bool:
        """Whether exact rows are hidden; those that are seen are then copies."""
        return self.zoomed.pinned < len(self._rows[2])

    @property
    def fixed_bytes(self) -> int:
        """Bytes that are on the device whatever is zoomed: pinned rows, hidden or not, the index,
        and the parameters that both are read with. A static ranking stays on the host."""
        if self._fixed_sum is None:  # asked by every layer of every other one
            self._fixed_sum = sum(self._fixed().values())
        return self._fixed_sum

    def _fixed(self) -> dict[str, int]:
        """`fixed_bytes` by kind."""
        rows = self._row_bytes if self._focused else self.zoomed.row_bytes
        layout = self.zoomed.fixed_bytes - self.zoomed.row_bytes
        if self.recipe.selector.static or not len(self._all.spans):
            return {"exact_rows": rows, "sketches": 0, "summaries": 0, "parameters": layout}
        sketches = self.index.sketch_bytes
        return {
            "exact_rows": rows,
            "sketches": sketches,
            "summaries": self.index.nbytes - sketches,
            "parameters": layout + self.params.nbytes,
        }

    @property
    def resident_bytes(self) -> dict[str, int]:
        """`device_bytes` by kind: rows that always stay exact, sketches, summaries, the parameters
        that they are read with, and the slots of zoomed spans."""
        return {**self._fixed(), "zoomed_rows": self.zoomed.nbytes}

    @property
    def device_bytes(self) -> int:
        """Bytes on the device now: slots count as they are allocated, filled or not."""
        return self.fixed_bytes + self.zoomed.nbytes

    @property
    def needs(self) -> Needs:
        """What the spans in view take when they are zoomed."""
        if self._needs is None:
            sizes = self.host.sizes[:, self.view.spans.cpu()].long()
            space, codec = self.zoomed.space, self.recipe.codec
            layout = None if space is None else space.layout
            self._needs = Needs.of(codec, sizes, self.view, self.params, layout, self.pinned_k)
        return self._needs

    @property
    def slot_bytes(self) -> float:
        """Bytes that slots may take."""
        shared = self.shared
        layers = shared.layers or [self]
        caps = [shared.width * layer.limits.cap - shared.reserved for layer in layers]
        least = [layer.fixed_bytes for layer in layers]
        given = allot(caps, least, [layer.most_bytes for layer in layers])
        return given[layers.index(self)] - self.fixed_bytes

    @property
    def most_bytes(self) -> int:
        """Bytes of this layer when every span in view is zoomed."""
        return self.fixed_bytes + self.needs.nbytes(self.needs.most)

    def _plan(self) -> None:
        """Allocate the slots that the budget allows now."""
        now = (self.shared.width, self.shared.reserved, self.limits)
        if now == self._planned:
            return
        room = self.needs.most if self.full else self.needs.fit(self.slot_bytes)
        if room != self.zoomed.room:
            self.zoomed.allocate(room, self.needs.cost)
            self._arriving = None
        self._caps = room.caps(self.device)
        self._planned = now
        self.shared.note_bytes()

    # -- what is seen --------------------------------------------------------------

    def follow(self, behind: Sequence[Segment]) -> None:
        """Put these segments behind the document, in place of those there before.

        Their spans come after the document's and are chosen, fetched and weighted like them. A
        focus never hides them; watchers, which know only the document, do not get them.
        """
        self.release()
        if list(behind) == self._behind:
            return
        self._behind = None
        own = self._document
        spans, lengths, starts = [own.spans], [self.shared.bounds.diff()], [self.shared.starts]
        last = self.shared.tokens
        for segment in behind:
            first = sum(len(part) for part in lengths)
            spans.append(torch.nonzero(segment.compressed)[:, 0].to(self.device) + first)
            lengths.append(segment.bounds.diff())
            starts.append(segment.bounds[:-1] + last)
            last += int(segment.bounds[-1])
        sizes, ids = torch.cat(lengths).to(self.device), torch.cat(spans)
        self.bounds = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        window = own.window.new_full((len(sizes),), self.shared.windows)
        window[own.spans] = own.window
        tables = [segment.tables.to(self.device) for segment in behind]
        self.index = self.index.followed_by(len(own.spans), own.tokens, tables)
        k, v, token = self._own_rows
        more = [[x.to(k) for x in segment.rows] for segment in behind]
        k, v = (
            torch.cat([k, *(each[0] for each in more)], 1),
            torch.cat([v, *(x[1] for x in more)], 1),
        )
        token = torch.cat([token, token.new_full((k.shape[1] - len(token),), -1)])
        self.host.follow([segment.records for segment in behind])
        begins = torch.cat(starts).to(self.device)
        self._replace(View.of(ids, self.bounds, window, begins), (k, v, token))
        self._behind = list(behind)

    def focus(self, stretches: Sequence[Stretch] | None) -> None:
        """See only the spans that have tokens in these stretches of the document, and the exact
        rows in them; None: all. The prefix and the segments behind the document are always seen.
        The choices of earlier steps are forgotten."""
        if stretches is None:
            self.index = self.index.pick(None, None)
            self._set_view(self._all, self._rows)
            return
        spans, tokens = self._all.runs([*stretches, (self.shared.tokens, sys.maxsize)])
        self.index = self.index.pick(spans, tokens)
        k, v, token = self._rows
        seen = token < 0
        for first, end in stretches:
            seen |= (first <= token) & (token < end)
        rows = k[:, seen], v[:, seen], token[seen]
        self._set_view(self._all.pick(self._all.within(spans))[0], rows)

    def release(self) -> None:
        """Undo the last question: see the whole document, and free the zoomed spans unless every
        question zooms all of them."""
        self.focus(None)

    # -- attention -----------------------------------------------------------------

    @property
    def _asking(self) -> int:
        """The layer that attends now: this one, where nobody says otherwise."""
        return self.layer if self.shared.asking < 0 else self.shared.asking

    def attend(
        self,
        q: Tensor,
        live_k: Tensor,
        live_v: Tensor,
        seen: Tensor | None,
        terms: Terms = PLAIN,
    ) -> Tensor:
        """One softmax over pinned rows, summaries, zoomed tokens and the live rows.

        Args:
            q: [H, Q, D], scaled so that scores are q.k / sqrt(D).
            live_k, live_v: [Hkv, n, D] question and answer so far.
            seen: bool [Q, n] which live rows a query sees; None for all.
            terms: of the layer's softmax.
        Returns:
            [H, Q, D] float32.
        """
        rows = q.shape[1]
        q = group_queries(q, self.heads)
        pinned = terms.capped(row_scores(q, self.pinned_k))
        live = terms.capped(row_scores(q, live_k))
        if seen is not None:
            live = live.masked_fill(~seen.repeat(q.shape[1] // rows, 1), NEG_INF)
        queries = QueryRows(q, pinned, live, None, terms, terms.sink_column(self.heads, rows))
        estimate = self._route(queries, rows, live_k)
        if self.choice.hidden is not None:
            live = live.masked_fill(self.choice.hidden[:, None], NEG_INF)
        queries = replace(queries, live=live, mass=estimate.mass)
        out, weights = self._merge(queries, rows, live_v)
        behind = self._layer_behind
        if behind is not None:
            behind.prepare()
        if self.shared.watchers:
            self._report(estimate, weights)
        return out.reshape(-1, rows, self.size)

    def _route(self, queries: QueryRows, rows: int, live_k: Tensor) -> RouterEstimate:
        """Run the router, and load the spans that the selector picks into slots.

        queries: their summaries are not known yet.
        """
        self.prepare()
        if self._everything_fits():
            arriving, self._arriving = self._arriving, None
            if arriving is None:
                self.zoomed.reuse()
            else:
                self.zoomed.take(arriving, self.host)
            return RouterEstimate()
        mass, refined = self._mass(queries.q, queries.terms)
        if self.shared.votes is not None:
            self._vote(mass if refined is None else mass.masked_fill(~refined[:, None], NEG_INF))
        if self._looking:
            return RouterEstimate(mass=mass)
        share, scores, row_shares = self._rank(queries, mass, refined)
        wanted = self._choose(queries, rows, scores, row_shares, live_k)
        self.zoomed.sync(wanted.cpu(), self.host)
        if self.recipe.selector.hides:
            return RouterEstimate(share)
        return RouterEstimate(share, mass.masked_fill(wanted[:, None], NEG_INF))

    @property
    def _looking(self) -> bool:
        """Whether rows vote for windows by summaries alone, and nothing is zoomed."""
        return self.shared.votes is not None and not self.recipe.selector.hides

    @property
    def _layer_behind(self) -> LayerMemory | None:
        """The next one that has a memory."""
        layers = self.shared.layers or [self]
        place = layers.index(self) + 1
        return layers[place] if place < len(layers) else None

    def prepare(self) -> None:
        """Have slots for what the budget allows now, and begin to fetch what is wanted whatever the
        queries are: all spans, where all fit. The layer before this one has it done while its own
        attention is computed.

        Raises:
            StoreError: a record is damaged.
        """
        if not self._looking:
            self._plan()
        if self._arriving is None and self._everything_fits():
            self._arriving = self.zoomed.fetch_all(self.host)

    def _everything_fits(self) -> bool:
        """Whether all spans in view fit the budget, so that they are all zoomed and the router need
        not run."""
        if self.full or not len(self.view.spans):
            return True
        if self.shared.estimates or self.shared.votes is not None or self.limits.coverage < 1:
            return False
        if not self.recipe.selector.by_share or self.recipe.router.gated:
            return False
        return self.zoomed.room == self.needs.most

    def _mass(self, q: Tensor, terms: Terms) -> tuple[Tensor, Tensor | None]:
        """As `SpanIndex.mass`, under the cap of the scores."""
        mass, refined = self.index.mass(q, self.view)
        return terms.capped_mass(mass, self.view.lengths), refined

    def _rank(
        self, queries: QueryRows, mass: Tensor, refined: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Per KV head and span [Hkv, F] the estimated share of attention, largest over rows, and
        what spans are ranked by; and the shares of all rows [Hkv, GQ, F], where they say so."""
        if self.recipe.router.gated:
            scores = self.index.zoom_scores(queries.q, self.view)
            return scores, scores, None
        row_shares = _shares(queries, mass)
        share = row_shares.amax(1)
        scores = share if refined is None else two_level.ranked(share, refined)
        return share, scores, row_shares

    def _choose(
        self,
        queries: QueryRows,
        rows: int,
        scores: Tensor,
        row_shares: Tensor | None,
        live_k: Tensor,
    ) -> Tensor:
        """bool [Hkv, F]: what to zoom now, by the method's selector; row_shares: see `choose`."""
        routing = RoutingInput(
            q=queries.q,
            rows=rows,
            share=scores,
            current=self.zoomed.held,
            live_k=live_k,
            transcript=self.shared.transcript,
            uncovered=1 - self.limits.coverage,
            estimate=lambda q: self._mass(q, queries.terms)[0],
            fit=partial(self._fit, row_shares=row_shares),
        )
        return self.choice.choose(routing)

    def _fit(
        self,
        scores: Tensor,
        uncovered: float = 0.0,
        live: Sequence[int] = (),
        row_shares: Tensor | None = None,
    ) -> Tensor:
        """What fits the slots, by falling score; see `RoutingInput.fit`.

        live: tokens of each live range.
        """
        cost, caps = self.needs.cost, self._caps
        if live:
            more = cost.new_zeros(3, self.heads, len(live))
            more[0 if self.zoomed.space is not None else 1] = cost.new_tensor(list(live))
            cost = torch.cat([cost, more], -1)
        kept = cost[:2].sum(0) > 0  # a strict method has dropped the others for good
        if len(scores) < self.heads:
            kept, cost = kept.all(0, keepdim=True), cost.amax(1, keepdim=True)
            caps = caps.amin(1, keepdim=True)
        if self.recipe.router.gated:
            kept = kept & (scores > 0)  # where its gate is closed nothing is zoomed
        chosen = choose(scores.masked_fill(~kept, -1.0), cost, caps, uncovered, row_shares) & kept
        return chosen.expand(self.heads, -1)

    def _vote(self, mass: Tensor) -> None:
        """Let every query row vote for windows by the best span of each; mass [Hkv, GQ, F].

        Votes are normalised over windows only, so that a head which mostly attends to the question
        still has a full vote.
        """
        assert self.shared.votes is not None
        best = mass.new_full((*mass.shape[:2], self.shared.windows + 1), NEG_INF)
        best.scatter_reduce_(2, self.view.window.expand_as(mass), mass, "amax")
        votes = torch.softmax(best[..., :-1], -1)  # what stands behind has no window
        heads = self.shared.votes.shape[1]
        votes = votes.reshape(heads, -1, self.shared.windows).sum(1)
        self.shared.votes[self._asking] += votes.to(self.shared.votes.device)

    def _merge(
        self, queries: QueryRows, rows: int, live_v: Tensor
    ) -> tuple[Tensor, AttentionWeights]:
        """One softmax over slots, live rows and summaries: [Hkv, GQ, D], and its weights."""
        attended = AttendedRows(self.zoomed, self.zoomed.products(), self.index, live_v)
        columns = self.zoomed.tokens.shape[1] + queries.columns
        at_once = max(1, MOST_SCORES // (self.heads * columns))
        self._note_working(min(at_once, len(queries)), len(queries), columns)
        first = max(0, rows - self.shared.question_tokens)
        if len(queries) <= at_once:
            out, weight, summary = attended.attend(queries)
            self._note_coverage(weight, summary)
            return out, AttentionWeights.of(weight, summary, rows, first)
        places = torch.arange(len(queries), device=self.device)
        parts = []
        for at in range(0, len(places), at_once):
            some = places[at : at + at_once]
            out, weight, summary = attended.attend(queries.pick(some))
            self._note_coverage(weight, summary)
            parts.append(out)
        newest = places.view(-1, rows)[:, first if self.shared.watchers else -1 :]
        return torch.cat(parts, 1), attended.weights(queries, newest, at_once)

    def _note_coverage(self, weight: Tensor, summary: Tensor | None) -> None:
        """Count what summaries weigh beside exact rows, but while rows vote for windows."""
        if self.shared.votes is None:
            self.shared.coverage.note(self.layer, weight[..., :0] if summary is None else summary)

    def _note_working(self, rows: int, all_rows: int, columns: int) -> None:
        """Bytes that this forward takes beside what is resident: codes as they are unpacked, copies
        of the exact rows that a focus shows, what a router works out, and scores and weights of the
        rows that are attended to at once."""
        scores = 4 * self.heads * (2 * rows * columns + all_rows * columns)
        taken = scores + self.zoomed.working_bytes(rows)
        if self._focused:
            taken += self.zoomed.row_bytes
        if len(self._all.spans) and not self._everything_fits():
            taken += self.index.working_bytes(all_rows, self.view)
        self.shared.working_bytes = max(self.shared.working_bytes, taken)

    def _report(self, estimate: RouterEstimate, weights: AttentionWeights) -> None:
        """Let the watchers record the document's own spans and tokens."""
        view, own = self.view, self._document_spans
        none = weights.newest.new_zeros(self.heads, own)
        held = self.zoomed.held[:, :own]
        tokens = self.zoomed.tokens
        if self._behind:
            tokens = tokens.masked_fill(tokens >= self.shared.tokens, NOWHERE)
        summary = none[:, None].expand(-1, weights.newest.shape[1], -1)
        if weights.summary is not None:
            summary = weights.summary[..., :own]
        step = Step(
            layer=self._asking,
            spans=view.spans[:own],
            starts=view.starts[:own],
            lengths=view.lengths[:own],
            share=none if estimate.share is None else estimate.share[:, :own],
            zoomed=torch.zeros_like(held) if self.full else held,
            summary=summary,
            tokens=tokens.clone(),
            weight=weights.newest,
            total=weights.total,
            traffic=replace(self.zoomed.traffic),
        )
        for watcher in self.shared.watchers:
            watcher.record(step)


def _shares(queries: QueryRows, mass: Tensor) -> Tensor:
    """The estimated share of each row's attention that each span gets, [Hkv, GQ, F]."""
    total = torch.logaddexp(queries.pinned.logsumexp(-1), queries.live.logsumexp(-1))
    total = torch.logaddexp(total, mass.logsumexp(-1))
    if queries.sink is not None:
        total = torch.logaddexp(total, queries.sink[..., 0])
    return torch.exp(mass - total[..., None])
